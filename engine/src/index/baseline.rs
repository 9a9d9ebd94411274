//! An earlier image of a volume, kept beside the present one, to tell which blocks have changed
//! since: the leaves of one shard in terms of the present chunk table.
//!
//! A leaf that did not change is the very same one in both, so that it costs no memory and a
//! comparison costs nothing. See `docs/internals/extent-index.md`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::base::ShardBase;
use super::diff::{Old, Places};
use super::leaf::{ChunkLoc, ChunkOrdinal, Leaf, LeafEntry, LeafKey};
use super::volume::VolumeBase;
use crate::block::ShardId;

/// Stands for every chunk that the present image does not have: nothing is ever in it.
const GONE: ChunkOrdinal = ChunkOrdinal(u32::MAX);

/// Ordinals that name another chunk than they did when a baseline was made: blocks that it has
/// there are not where it says. Shared by the baselines of all shards.
///
/// To be told by [`Reassigned::note`] of every change of the chunk table before anybody sees leaves
/// that name the new chunk. Most volumes never need it: a chunk that a snapshot needs stays in the
/// table. A clone forgets chunks of its parent, and their ordinals are used again.
#[derive(Debug)]
pub struct Reassigned {
    /// The random part of the name of each ordinal's chunk; 0 if there was none.
    named: Box<[u64]>,
    /// A bit for each ordinal.
    reassigned: Box<[AtomicU64]>,
}

impl Reassigned {
    /// Nothing has changed yet in the chunk table of `base`.
    pub fn new(base: &VolumeBase) -> Self {
        let ordinals = base.chunks().map(|(ordinal, _)| ordinal.0 as usize + 1);
        let mut named = vec![0; ordinals.max().unwrap_or(0)];
        for (ordinal, entry) in base.chunks() {
            named[ordinal.0 as usize] = entry.reference.key.random;
        }
        let words = named.len().div_ceil(64);
        Self {
            named: named.into(),
            reassigned: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Looks for ordinals that name other chunks than at first.
    pub fn note(&self, base: &VolumeBase) {
        for (ordinal, entry) in base.chunks() {
            let at = ordinal.0 as usize;
            let named = self.named.get(at);
            if named.is_some_and(|named| *named != entry.reference.key.random) {
                self.reassigned[at / 64].fetch_or(1 << (at % 64), Ordering::Release);
            }
        }
    }

    fn contains(&self, ordinal: ChunkOrdinal) -> bool {
        let at = ordinal.0 as usize;
        let word = self.reassigned.get(at / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (at % 64) != 0)
    }
}

/// Two images of one volume that are about to be compared.
pub struct Comparison<'a> {
    from: &'a VolumeBase,
    to: &'a VolumeBase,
    places: Places,
    reassigned: Arc<Reassigned>,
}

impl<'a> Comparison<'a> {
    /// Compares `to`, the present image, with `from`. What changes in `to` from now on is noted in
    /// `reassigned`.
    pub fn new(from: &'a VolumeBase, to: &'a VolumeBase, reassigned: Arc<Reassigned>) -> Self {
        let places = Places::new(from, to);
        Self {
            from,
            to,
            places,
            reassigned,
        }
    }

    /// The earlier image of one shard. Time is in the blocks that it maps.
    pub fn shard(&self, shard: ShardId) -> Baseline {
        let mut leaves = ShardBase::new();
        for (key, leaf) in self.from.shard(shard).leaves() {
            let now = self.to.shard(shard).leaf(key);
            leaves.install([(key, self.translated(leaf, now))]);
        }
        Baseline {
            leaves,
            reassigned: Arc::clone(&self.reassigned),
        }
    }

    /// The leaf in terms of the present chunk table; `now` itself if that is the same.
    fn translated(&self, leaf: &Leaf, now: Option<&Leaf>) -> Option<Leaf> {
        let mut entries: Vec<LeafEntry> = Vec::with_capacity(leaf.mapped() as usize);
        let mut same = true;
        leaf.for_each(|index, loc| {
            let place = match self.places.of(loc) {
                Old::At(place) => place,
                // Slots that ascend make a run.
                Old::Elsewhere | Old::Nowhere => ChunkLoc {
                    chunk: GONE,
                    slot: u32::from(index),
                },
            };
            same &= place == loc;
            entries.push((index, place));
        });
        let translated = match same {
            true => Some(leaf.clone()),
            false => Leaf::build(&entries),
        };
        match now {
            Some(now) if translated.as_ref() == Some(now) => Some(now.clone()),
            _ => translated,
        }
    }
}

/// An earlier image of one shard.
#[derive(Clone)]
pub struct Baseline {
    leaves: ShardBase,
    reassigned: Arc<Reassigned>,
}

impl Baseline {
    /// An image in terms of a chunk table that never changes.
    #[cfg(test)]
    pub(crate) fn of(leaves: ShardBase) -> Self {
        let reassigned = Arc::new(Reassigned::new(&VolumeBase::new()));
        Self { leaves, reassigned }
    }

    /// What it maps; the places count for nothing.
    pub fn base(&self) -> &ShardBase {
        &self.leaves
    }

    /// Calls `visit` with ranges of the blocks `range` (indices in the leaf `key`) that `now`, the
    /// present leaf, does not have where this image has them; ascending, and never touching.
    ///
    /// A block that was moved to another chunk has changed, too: it may be too much, never too
    /// little. Returns how many entries were looked at.
    pub fn changed(
        &self,
        key: LeafKey,
        now: Option<&Leaf>,
        range: Range<u16>,
        mut visit: impl FnMut(Range<u16>),
    ) -> usize {
        let then = self.leaves.leaf(key);
        match (then, now) {
            (None, None) => return 0,
            (Some(then), Some(now)) if then.is(now) => return 0,
            _ => {}
        }
        let at = |index: u16| usize::from(index - range.start);
        // Where the block was; in the end only of those that have changed.
        let mut places: Vec<Option<ChunkLoc>> = vec![None; range.len()];
        let gone = ChunkLoc {
            chunk: GONE,
            slot: 0,
        };
        let mut looks = 0;
        if let Some(then) = then {
            then.entries_in(range.clone(), |index, loc| {
                let stays = !self.reassigned.contains(loc.chunk);
                places[at(index)] = Some(if stays { loc } else { gone });
                looks += 1;
            });
        }
        if let Some(now) = now {
            now.entries_in(range.clone(), |index, loc| {
                let place = &mut places[at(index)];
                *place = (*place != Some(loc)).then_some(gone);
                looks += 1;
            });
        }
        let mut index = range.start;
        for part in places.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let end = index + part.len() as u16;
            if part[0].is_some() {
                visit(index..end);
            }
            index = end;
        }
        looks
    }
}

#[cfg(test)]
mod tests;

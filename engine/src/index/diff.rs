//! Which blocks differ between two images of one volume, by their indices alone: nothing is read.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::leaf::{ChunkLoc, ChunkOrdinal, LEAF_BLOCKS, Leaf, LeafKey};
use super::volume::VolumeBase;
use crate::block::{BlockNum, LocalBlock, SHARD_COUNT, ShardId};
use crate::object::ChunkKey;

/// What the later image says of blocks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// They hold data from another place. It may have the same bytes.
    Data,
    /// They read as zeros and were mapped before.
    Zeros,
}

/// Neighbouring blocks that differ alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// The first block.
    pub start: BlockNum,
    /// How many.
    pub count: u64,
    /// How.
    pub what: Changed,
}

/// Calls `visit` with everything that may differ in `to` from what is in `from`, ascending;
/// neighbours that differ alike are one run.
///
/// A block is the same iff both images have it in the same slot of the same object, or neither has
/// it. So what was written again with the same bytes, or moved to another object, differs: the
/// answer may be too much, never too little.
pub fn changed_runs(from: &VolumeBase, to: &VolumeBase, visit: &mut impl FnMut(ChangedRun)) {
    let places = Places::new(from, to);
    let mut rows = Rows::new(visit);
    let mut keys = BTreeSet::new();
    keys.extend(leaf_keys(from).chain(leaf_keys(to)));
    for key in keys {
        rows.marks.fill(None);
        for shard in ShardId::all() {
            let leaf = |base: &VolumeBase| base.shard(shard).leaf(key).cloned();
            let (old, new) = (leaf(from), leaf(to));
            rows.compare(shard, old.as_ref(), new.as_ref(), &places);
        }
        rows.tell(key);
    }
    rows.end();
}

fn leaf_keys(base: &VolumeBase) -> impl Iterator<Item = LeafKey> {
    ShardId::all().flat_map(|shard| base.shard(shard).leaves().map(|(key, _)| key))
}

/// Where the chunks of the earlier image are in the table of the later one.
pub(super) struct Places(HashMap<ChunkOrdinal, ChunkOrdinal>);

impl Places {
    pub(super) fn new(from: &VolumeBase, to: &VolumeBase) -> Self {
        let later: HashMap<ChunkKey, ChunkOrdinal> = to
            .chunks()
            .map(|(ordinal, entry)| (entry.reference.key, ordinal))
            .collect();
        let kept = from.chunks().filter_map(|(ordinal, entry)| {
            let later = later.get(&entry.reference.key)?;
            Some((ordinal, *later))
        });
        Self(kept.collect())
    }

    /// The place in terms of the later image; [`Old::Elsewhere`] if its chunk is not in there.
    pub(super) fn of(&self, loc: ChunkLoc) -> Old {
        match self.0.get(&loc.chunk) {
            Some(chunk) => Old::At(ChunkLoc {
                chunk: *chunk,
                ..loc
            }),
            None => Old::Elsewhere,
        }
    }
}

/// Where the earlier image has a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Old {
    Nowhere,
    At(ChunkLoc),
    Elsewhere,
}

/// The blocks that the leaves of all shards with one key cover.
struct Rows<'a, F> {
    /// How each block differs, in the order of the volume.
    marks: Vec<Option<Changed>>,
    /// The leaf of the earlier image, opened.
    old: Vec<Old>,
    /// A run that may go on.
    open: Option<ChangedRun>,
    visit: &'a mut F,
}

impl<'a, F: FnMut(ChangedRun)> Rows<'a, F> {
    fn new(visit: &'a mut F) -> Self {
        Self {
            marks: vec![None; LEAF_BLOCKS as usize * SHARD_COUNT],
            old: vec![Old::Nowhere; LEAF_BLOCKS as usize],
            open: None,
            visit,
        }
    }

    fn mark(&mut self, shard: ShardId, index: usize, what: Changed) {
        let block = LocalBlock(index as u64).global(shard);
        self.marks[block.0 as usize] = Some(what);
    }

    fn compare(&mut self, shard: ShardId, old: Option<&Leaf>, new: Option<&Leaf>, places: &Places) {
        if let Some(old) = old {
            old.for_each(|index, loc| self.old[usize::from(index)] = places.of(loc));
        }
        if let Some(new) = new {
            new.for_each(|index, loc| {
                let index = usize::from(index);
                if std::mem::replace(&mut self.old[index], Old::Nowhere) != Old::At(loc) {
                    self.mark(shard, index, Changed::Data);
                }
            });
        }
        if let Some(old) = old {
            old.for_each(|index, _| {
                let index = usize::from(index);
                if std::mem::replace(&mut self.old[index], Old::Nowhere) != Old::Nowhere {
                    self.mark(shard, index, Changed::Zeros);
                }
            });
        }
    }

    /// Tells what is marked.
    fn tell(&mut self, key: LeafKey) {
        let first = key.first().global(ShardId::FIRST).0;
        let marks = std::mem::take(&mut self.marks);
        for (at, what) in (first..).zip(&marks) {
            if let Some(what) = *what {
                self.add(BlockNum(at), what);
            }
        }
        self.marks = marks;
    }

    fn add(&mut self, block: BlockNum, what: Changed) {
        if let Some(open) = &mut self.open
            && open.what == what
            && open.start.0 + open.count == block.0
        {
            open.count += 1;
            return;
        }
        let run = ChangedRun {
            start: block,
            count: 1,
            what,
        };
        if let Some(whole) = self.open.replace(run) {
            (self.visit)(whole);
        }
    }

    fn end(self) {
        if let Some(whole) = self.open {
            (self.visit)(whole);
        }
    }
}

#[cfg(test)]
mod tests;

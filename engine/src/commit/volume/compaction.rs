//! Which chunks of a volume are worth rewriting, and the commit of what was read of them.

use std::sync::Arc;

use super::{Chunks, VolumeCommit};
use crate::commit::compaction::{CompactionJob, CompactionPolicy, CompactionRead, Source};
use crate::index::{ChunkEntry, ChunkOrdinal};
use crate::object::SealedRef;
use crate::pack::{CopiedBlock, PackPlan};

/// A chunk with fewer live blocks than a full one divided by this is small.
const SMALL: u64 = 8;
/// So many small chunks are merged, however little they hold together.
const MERGED_MIN: usize = 64;

/// What compaction would do in a volume, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all chunks of the table.
    pub chunk_bytes: u64,
    /// Bytes of live blocks.
    pub live_bytes: u64,
    /// Chunks with live blocks whose live share is under the threshold, those included that only
    /// wait for a checkpoint or that snapshots need.
    pub sparse_chunks: u64,
    /// Chunks that compaction could not read, and leaves alone.
    pub unreadable_chunks: u64,
}

impl VolumeCommit {
    /// How much of the volume's chunks is live.
    pub fn usage(&self, policy: &CompactionPolicy) -> Usage {
        let stride = crate::chunk::slot_stride(self.block_size()) as u64;
        let mut usage = Usage::default();
        for (_, entry) in self.base.chunks() {
            let is_set_aside = self.set_aside.contains(&entry.reference.key);
            usage.unreadable_chunks += u64::from(entry.live > 0 && is_set_aside);
            usage.chunk_bytes += entry.reference.bytes;
            usage.live_bytes += u64::from(entry.live) * stride;
            usage.sparse_chunks += u64::from(entry.live > 0 && is_sparse(entry, policy));
        }
        usage
    }

    /// Chunks to be rewritten now, if any are worth it: sparse ones, the emptiest first, filled up
    /// with small ones; or else small ones alone. The same chunks for the same state.
    ///
    /// Not chosen are chunks of other volumes, those that a snapshot needs (rewriting them would
    /// free nothing), and those whose effect no checkpoint holds (they could not be condemned).
    /// None while a commit is under way, unless it is a cut that waits for room.
    pub fn choose_compaction(&self, policy: &CompactionPolicy) -> Option<CompactionJob> {
        if !self.is_idle() && !self.is_without_room() {
            return None;
        }
        let full = u64::from(self.chunk_slots());
        let (mut sparse, mut small) = (Vec::new(), Vec::new());
        for (ordinal, entry) in self.base.chunks().filter(|(_, e)| self.is_candidate(e)) {
            let source = Source {
                ordinal,
                reference: entry.reference,
                live: entry.live,
            };
            if is_sparse(entry, policy) {
                sparse.push(source);
            } else if u64::from(entry.live) * SMALL < full {
                small.push(source);
            }
        }
        let share = |s: &Source| (u64::from(s.live) << 32) / u64::from(s.reference.slots);
        sparse.sort_by_key(|s| (share(s), s.reference.key));
        small.sort_by_key(|s| (s.live, s.reference.key));
        let room = full * u64::from(policy.chunks_max.max(1));
        let mut sources = fitting(&sparse, room);
        let live = |sources: &[Source]| sources.iter().map(|s| u64::from(s.live)).sum::<u64>();
        let slots = sources.iter().map(|s| u64::from(s.reference.slots));
        let freed = slots.sum::<u64>() - live(&sources);
        if freed > 0 && freed * 100 >= full * u64::from(policy.freed_percent) {
            let rest = live(&sources).next_multiple_of(full) - live(&sources);
            sources.extend(fitting(&small, rest));
        } else {
            sources = fitting(&small, full);
            if live(&sources) * 2 < full && sources.len() < MERGED_MIN {
                return None;
            }
        }
        Some(self.job_of(sources))
    }

    pub(super) fn job_of(&self, sources: Vec<Source>) -> CompactionJob {
        CompactionJob {
            volume: self.volume(),
            block_size: self.block_size(),
            sources,
            shards: Box::new(self.base.shards().clone()),
        }
    }

    /// Whether a commit of nothing would let objects go that are needed no more, worth a full chunk
    /// at least: in the end nobody else makes it.
    pub fn wants_sweep(&self) -> bool {
        let full = u64::from(self.chunk_slots());
        let waiting = self.garbage.waiting_slots(self.head.number);
        self.is_idle() && self.dead_slots() + waiting + self.unsettled_slots() >= full
    }

    /// Slots of own chunks without live blocks that nothing needs.
    pub(super) fn dead_slots(&self) -> u64 {
        self.base
            .chunks()
            .filter(|(_, entry)| entry.live == 0 && self.is_own_and_unneeded(entry))
            .filter(|(_, e)| !self.is_kept_by_points(&SealedRef::Chunk(e.reference.key)))
            .map(|(_, entry)| u64::from(entry.reference.slots))
            .sum()
    }

    /// Dead blocks of chunks that no checkpoint holds, so that they can be neither condemned nor
    /// rewritten.
    pub(super) fn unsettled_slots(&self) -> u64 {
        let chunks = self.base.chunks().filter(|(_, e)| !e.checkpointed);
        let own = chunks.filter(|(_, e)| self.is_own_and_unneeded(e));
        own.map(|(_, e)| u64::from(e.reference.slots - e.live))
            .sum()
    }

    /// Begins a commit that condemns, notes and checkpoints what it can and changes nothing else.
    ///
    /// # Panics
    /// While a commit is under way.
    pub fn start_sweep(&mut self) {
        self.is_sweeping = true;
        self.begin_rewrite(&[], bytes::Bytes::new());
    }

    /// Begins to commit what was read, as a manifest of its own under the head's epoch. Blocks that
    /// are not in their source any more are left out; the check holds until the commit, because no
    /// other one comes in between. Returns whether anything was left to be done.
    ///
    /// A chunk that cannot be stored ends it: the volume is idle again and its head the same.
    /// Sources that could not be read are not chosen any more by this writer.
    ///
    /// # Panics
    /// While a commit is under way.
    pub fn start_compaction(&mut self, read: CompactionRead) -> bool {
        assert!(self.is_idle(), "one commit at a time");
        let unreadable = read.unreadable.iter().map(|(chunk, _)| *chunk);
        self.set_aside.extend(unreadable);
        let is_same = |source: &&Source| {
            let entry = self.base.chunk(source.ordinal);
            let may = |e: &ChunkEntry| self.is_foreign(e) || self.is_candidate(e);
            entry.is_some_and(|e| e.reference == source.reference && may(e))
        };
        let same = read.sources.iter().filter(is_same);
        let same: hashbrown::HashSet<ChunkOrdinal> = same.map(|source| source.ordinal).collect();
        let holds = |copied: &&crate::commit::compaction::Copied| {
            same.contains(&copied.from.chunk) && self.base.lookup(copied.block) == Some(copied.from)
        };
        let kept = read.blocks.iter().filter(holds);
        let kept: Vec<CopiedBlock> = kept
            .map(|copied| CopiedBlock {
                block: copied.block,
                crc: copied.crc,
                at: copied.at,
            })
            .collect();
        if kept.is_empty() {
            return false;
        }
        self.begin_rewrite(&kept, read.bytes);
        true
    }

    pub(super) fn begin_rewrite(&mut self, blocks: &[CopiedBlock], bytes: bytes::Bytes) {
        assert!(self.is_idle(), "one commit at a time");
        let slots = self.chunk_slots();
        let (epoch, size) = (self.head.epoch, self.block_size());
        let plan = PackPlan::copied(epoch, size, slots, blocks, bytes);
        self.begin_chunks(Arc::new(plan), Vec::new());
    }

    /// Ends a compaction of which a chunk could not be stored. The names of those that are, or may
    /// be, stored were in no manifest and never will be: they are deleted.
    pub(super) fn give_up(&mut self, chunks: &Chunks) {
        let tried = chunks.specs[..chunks.tried].iter();
        self.garbage
            .stray(tried.map(|spec| SealedRef::Chunk(spec.key)));
    }

    /// Own, with live blocks, readable, needed by no snapshot, and to be condemned once it is idle.
    fn is_candidate(&self, entry: &ChunkEntry) -> bool {
        let is_set_aside = self.set_aside.contains(&entry.reference.key);
        entry.live > 0 && entry.checkpointed && !is_set_aside && self.is_own_and_unneeded(entry)
    }

    fn is_own_and_unneeded(&self, entry: &ChunkEntry) -> bool {
        let key = entry.reference.key;
        let next = self.head.number.next();
        key.volume == self.head.volume && !self.snapshots.needs(&SealedRef::Chunk(key), next)
    }

    /// Whether chunks that no checkpoint holds are so empty together that one is worth it: they
    /// can be neither condemned nor rewritten before.
    pub(super) fn is_stale(&self) -> bool {
        let full = u64::from(self.chunk_slots());
        let slots = self
            .base
            .chunks()
            .map(|(_, e)| u64::from(e.reference.slots));
        let (dead, all) = (self.unsettled_slots(), slots.sum());
        dead >= STALE_CHUNKS * full && dead * STALE_SHARE >= all
    }
}

/// Dead blocks in chunks that no checkpoint holds make one due if they are worth so many chunks …
const STALE_CHUNKS: u64 = 4;
/// … and all slots divided by this.
const STALE_SHARE: u64 = 8;

fn is_sparse(entry: &ChunkEntry, policy: &CompactionPolicy) -> bool {
    let (live, slots) = (u64::from(entry.live), u64::from(entry.reference.slots));
    live * 100 < slots * u64::from(policy.threshold_percent)
}

/// The first of `sources` that together have at most `room` live blocks.
fn fitting(sources: &[Source], room: u64) -> Vec<Source> {
    let mut left = room;
    let fits = |source: &&Source| {
        let live = u64::from(source.live);
        let fits = live <= left;
        left = left.saturating_sub(live);
        fits
    };
    sources.iter().take_while(fits).copied().collect()
}

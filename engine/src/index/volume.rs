//! The committed index of a whole volume, as the uploader keeps it: leaves of all shards, the table
//! of chunks, how many blocks of each chunk are still named, and what a checkpoint must write.

mod checkpoint;
mod recount;

use std::collections::BTreeSet;
use std::ops::Range;

use hashbrown::HashMap;

use super::base::{LeafChanges, ShardBase};
use super::leaf::{ChunkLoc, ChunkOrdinal, LEAF_BLOCKS, Leaf, LeafEntry, LeafKey};
use crate::block::{BlockNum, BlockSize, SHARD_COUNT, ShardId, Span};
use crate::chunk::{ChunkRef, DataRun, ZeroRun};

pub use checkpoint::PartItems;
pub use recount::Miscount;

/// A chunk that the volume names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// The object.
    pub reference: ChunkRef,
    /// Its blocks that are still the newest version.
    pub live: u32,
    /// A committed checkpoint holds the effect of this chunk, so that no rebuild reads it.
    pub checkpointed: bool,
}

/// A chunk about to be applied: which blocks it holds and which it zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedChunk {
    /// The object.
    pub reference: ChunkRef,
    /// Its data, ascending.
    pub runs: Vec<DataRun>,
    /// Its zeros, ascending, disjoint from its data.
    pub zeros: Vec<ZeroRun>,
}

/// Changed leaves by shard, 16 entries.
pub type VolumeChanges = Vec<LeafChanges>;

/// What applying chunks did.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Changed leaves, for the shards' own bases.
    pub leaves: VolumeChanges,
    /// Ordinals that the chunks got, in their order.
    pub ordinals: Vec<ChunkOrdinal>,
}

/// The committed index of one volume.
#[derive(Clone, Default)]
pub struct VolumeBase {
    shards: [ShardBase; SHARD_COUNT],
    chunks: Vec<Option<ChunkEntry>>,
    free: Vec<ChunkOrdinal>,
    /// Chunks of which no block is named.
    empty: BTreeSet<ChunkOrdinal>,
    /// Leaves and chunks changed since the last checkpoint.
    dirty_leaves: BTreeSet<(ShardId, LeafKey)>,
    dirty_chunks: BTreeSet<ChunkOrdinal>,
    /// Chunks of a checkpoint that is being loaded.
    loading: HashMap<ChunkOrdinal, ChunkRef>,
}

/// Edits of one shard, ascending by block.
#[derive(Default)]
struct ShardEdits {
    /// Leaf, index within it, new place.
    points: Vec<(LeafKey, LeafEntry)>,
    /// Shard-local ranges.
    zeros: Vec<Range<u64>>,
}

impl VolumeBase {
    /// A base in which nothing is mapped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the block is; `None` if it is not mapped and reads as zeros.
    pub fn lookup(&self, block: BlockNum) -> Option<ChunkLoc> {
        self.shards[block.shard().index()].lookup(block.local())
    }

    /// Whether any of the run's blocks might be mapped (asked at the grain of a leaf).
    pub fn may_map(&self, run: &ZeroRun) -> bool {
        let mut shards = ShardId::all().filter(|shard| !run.spared.contains(*shard));
        shards.any(|shard| {
            let range = local_range(run.start, run.count, shard);
            let (from, to) = leaf_range(&range);
            let base = self.shard(shard);
            !range.is_empty() && base.leaves_between(from, to).next().is_some()
        })
    }

    /// The base of one shard; cloning it shares the leaves.
    pub fn shard(&self, shard: ShardId) -> &ShardBase {
        &self.shards[shard.index()]
    }

    /// The bases of all shards; cloning them shares the leaves.
    pub fn shards(&self) -> &[ShardBase; SHARD_COUNT] {
        &self.shards
    }

    /// The chunk with this ordinal.
    pub fn chunk(&self, ordinal: ChunkOrdinal) -> Option<&ChunkEntry> {
        self.chunks.get(ordinal.0 as usize)?.as_ref()
    }

    /// All chunks, by ordinal.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkOrdinal, &ChunkEntry)> {
        let numbered = self.chunks.iter().zip(0..);
        numbered.filter_map(|(entry, i)| Some((ChunkOrdinal(i), entry.as_ref()?)))
    }

    /// Blocks mapped in all shards.
    pub fn mapped_blocks(&self) -> u64 {
        self.shards.iter().map(ShardBase::mapped_blocks).sum()
    }

    /// Heap memory in bytes: leaves and their directories, chunk table, dirty sets (estimated).
    pub fn heap_bytes(&self) -> usize {
        let leaves: usize = self.shards.iter().map(ShardBase::heap_bytes).sum();
        leaves
            + self.chunks.capacity() * size_of::<Option<ChunkEntry>>()
            + (self.dirty_leaves.len() + self.dirty_chunks.len()) * 16
    }

    /// Applies chunks in their order (a later one wins) and tells what changed for the shards.
    pub fn apply(&mut self, added: &[AddedChunk]) -> Applied {
        let mut touched: [BTreeSet<LeafKey>; SHARD_COUNT] = Default::default();
        let mut ordinals = Vec::with_capacity(added.len());
        let mut rest = added;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(disjoint_prefix(rest));
            self.apply_disjoint(batch, &mut ordinals, &mut touched);
            rest = later;
        }
        let changes_of = |shard: ShardId| -> LeafChanges {
            let keys = touched[shard.index()].iter();
            keys.map(|&key| (key, self.shard(shard).leaf(key).cloned()))
                .collect()
        };
        let leaves = ShardId::all().map(changes_of).collect();
        Applied { leaves, ordinals }
    }

    /// Chunks of which no block is named any more and that no rebuild needs: they may be condemned.
    pub fn condemnable(&self) -> impl Iterator<Item = (ChunkOrdinal, &ChunkEntry)> {
        self.chunks()
            .filter(|(_, entry)| entry.live == 0 && entry.checkpointed)
    }

    /// Forgets a condemned chunk. Its ordinal is used again only after [`VolumeBase::recycle`].
    ///
    /// # Panics
    /// If a block still names it.
    pub fn condemn(&mut self, ordinal: ChunkOrdinal) {
        let entry = self.chunks[ordinal.0 as usize].take();
        assert!(
            entry.is_some_and(|entry| entry.live == 0),
            "condemned a chunk in use"
        );
        self.dirty_chunks.insert(ordinal);
    }

    /// Lets the ordinal of a condemned chunk name another one: no reader can hold it any more.
    pub fn recycle(&mut self, ordinal: ChunkOrdinal) {
        assert!(self.chunks[ordinal.0 as usize].is_none());
        self.free.push(ordinal);
    }

    /// Forgets all chunks of which no block is named. Only of a base that nobody reads: all
    /// ordinals without a chunk are used again.
    pub fn forget_idle(&mut self) {
        let idle = self.chunks().filter(|(_, entry)| entry.live == 0);
        let idle: Vec<_> = idle.map(|(ordinal, _)| ordinal).collect();
        for ordinal in idle {
            self.condemn(ordinal);
        }
        let free = self.chunks.iter().zip(0..);
        let free = free.filter_map(|(entry, i)| entry.is_none().then_some(ChunkOrdinal(i)));
        self.free = free.collect();
    }

    /// Takes up a chunk of which nothing is mapped yet.
    pub fn add_chunk(&mut self, reference: ChunkRef) -> ChunkOrdinal {
        let entry = ChunkEntry {
            reference,
            live: 0,
            checkpointed: false,
        };
        let ordinal = self.free.pop().unwrap_or_else(|| {
            self.chunks.push(None);
            ChunkOrdinal(self.chunks.len() as u32 - 1)
        });
        self.chunks[ordinal.0 as usize] = Some(entry);
        self.empty.insert(ordinal);
        self.dirty_chunks.insert(ordinal);
        ordinal
    }

    /// Applies chunks that touch each block at most once.
    fn apply_disjoint(
        &mut self,
        added: &[AddedChunk],
        ordinals: &mut Vec<ChunkOrdinal>,
        touched: &mut [BTreeSet<LeafKey>; SHARD_COUNT],
    ) {
        let mut edits: [ShardEdits; SHARD_COUNT] = Default::default();
        for chunk in added {
            let ordinal = self.add_chunk(chunk.reference);
            ordinals.push(ordinal);
            split_chunk(chunk, ordinal, &mut edits);
        }
        let mut scratch = Vec::new();
        for (shard, edits) in ShardId::all().zip(&mut edits) {
            edits.zeros.sort_unstable_by_key(|zero| zero.start);
            edits
                .points
                .sort_unstable_by_key(|(key, (index, _))| (*key, *index));
            for key in self.leaves_of(shard, edits) {
                self.edit_leaf(shard, key, edits, &mut scratch);
                touched[shard.index()].insert(key);
                self.dirty_leaves.insert((shard, key));
            }
        }
    }

    /// Leaves that the edits change: those with points, and existing ones under zeros.
    fn leaves_of(&self, shard: ShardId, edits: &ShardEdits) -> BTreeSet<LeafKey> {
        let mut keys: BTreeSet<_> = edits.points.iter().map(|(key, _)| *key).collect();
        for zero in &edits.zeros {
            let (from, to) = leaf_range(zero);
            keys.extend(
                self.shards[shard.index()]
                    .leaves_between(from, to)
                    .map(|(key, _)| key),
            );
        }
        keys
    }

    fn edit_leaf(
        &mut self,
        shard: ShardId,
        key: LeafKey,
        edits: &ShardEdits,
        scratch: &mut Vec<LeafEntry>,
    ) {
        let from = edits.points.partition_point(|point| point.0 < key);
        let points: Vec<LeafEntry> = edits.points[from..]
            .iter()
            .take_while(|point| point.0 == key)
            .map(|point| point.1)
            .collect();
        let zeros = zeros_within(&edits.zeros, key);
        for (_, loc) in &points {
            self.note_named(*loc);
        }
        let mut displaced = Vec::new();
        let old = self.shard(shard).leaf(key);
        let leaf = Leaf::merged(old, &zeros, &points, scratch, &mut |loc| {
            displaced.push(loc)
        });
        displaced
            .into_iter()
            .for_each(|loc| self.note_displaced(loc));
        self.shards[shard.index()].install([(key, leaf)]);
    }

    fn note_named(&mut self, loc: ChunkLoc) {
        let entry = entry_of(&mut self.chunks, loc);
        entry.live += 1;
        if entry.live == 1 {
            self.empty.remove(&loc.chunk);
        }
    }

    fn note_displaced(&mut self, loc: ChunkLoc) {
        let entry = entry_of(&mut self.chunks, loc);
        entry.live -= 1;
        if entry.live == 0 {
            self.empty.insert(loc.chunk);
        }
    }
}

/// Shard-local blocks of `count` blocks from `start`.
fn local_range(start: BlockNum, count: u64, shard: ShardId) -> Range<u64> {
    // Numbers do not depend on the block size; the smallest keeps the byte offsets in range.
    let shift = BlockSize::MIN.shift();
    let span = Span {
        offset: start.0 << shift,
        len: count << shift,
        block_size: BlockSize::MIN,
    };
    span.local_range(shard)
}

/// The leaves that a shard-local range touches: first, and one beyond the last.
fn leaf_range(range: &Range<u64>) -> (LeafKey, LeafKey) {
    let from = LeafKey((range.start / LEAF_BLOCKS) as u32);
    let to = LeafKey(range.end.div_ceil(LEAF_BLOCKS) as u32);
    (from, to)
}

/// How many leading chunks touch no block twice, so that they can be applied as one.
fn disjoint_prefix(chunks: &[AddedChunk]) -> usize {
    let mut data = 0u64;
    let mut last_zero_end = 0u64;
    for (i, chunk) in chunks.iter().enumerate() {
        let first = chunk.runs.first().map_or(data, |run| run.start.0);
        // Chunks of one commit ascend, and only one of them carries zeros. Anything else is taken
        // one by one, which is only slower.
        let ascends = first >= data && chunk.zeros.is_empty() && last_zero_end == 0;
        if i > 0 && !ascends {
            return i;
        }
        data = chunk
            .runs
            .last()
            .map_or(data, |run| run.start.0 + u64::from(run.count));
        last_zero_end = chunk.zeros.last().map_or(0, |run| run.start.0 + run.count);
    }
    chunks.len()
}

/// Sorts the contents of a chunk by shard.
fn split_chunk(chunk: &AddedChunk, ordinal: ChunkOrdinal, edits: &mut [ShardEdits; SHARD_COUNT]) {
    for run in &chunk.runs {
        for i in 0..run.count {
            let block = BlockNum(run.start.0 + u64::from(i));
            let (key, index) = LeafKey::of(block.local());
            let loc = ChunkLoc {
                chunk: ordinal,
                slot: run.slot + i,
            };
            edits[block.shard().index()]
                .points
                .push((key, (index, loc)));
        }
    }
    for zero in &chunk.zeros {
        for shard in ShardId::all().filter(|shard| !zero.spared.contains(*shard)) {
            let range = local_range(zero.start, zero.count, shard);
            let zeros = &mut edits[shard.index()].zeros;
            match zeros.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ if range.is_empty() => {}
                _ => zeros.push(range),
            }
        }
    }
}

/// The parts of ascending shard-local ranges inside one leaf, as indices of the leaf.
fn zeros_within(zeros: &[Range<u64>], key: LeafKey) -> Vec<Range<u16>> {
    let first = key.first().0;
    let end = first + LEAF_BLOCKS;
    let from = zeros.partition_point(|zero| zero.end <= first);
    zeros[from..]
        .iter()
        .take_while(|zero| zero.start < end)
        .map(|zero| {
            let from = zero.start.max(first) - first;
            let to = zero.end.min(end) - first;
            from as u16..to as u16
        })
        .collect()
}

fn entry_of(chunks: &mut [Option<ChunkEntry>], loc: ChunkLoc) -> &mut ChunkEntry {
    let entry = chunks[loc.chunk.0 as usize].as_mut();
    let entry = entry.expect("a mapped block names a chunk of the table");
    debug_assert!(loc.slot < entry.reference.slots);
    entry
}

#[cfg(test)]
mod tests;

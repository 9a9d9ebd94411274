//! The packer: merges what 16 shards sealed of one volume into a plan of chunks. No I/O.

mod zeros;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::block::{BlockNum, BlockSize, SHARD_COUNT, ShardId};
use crate::chunk::{ChunkBuilder, ChunkRef, ChunkSpec, DataRun, ZERO_RUNS_MAX, ZeroRun};
use crate::error::Result;
use crate::identity::{BatchNum, Epoch};
use crate::index::{AddedChunk, Overlay, VolumeBase};
use crate::wal::place::Place;

/// One block to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackBlock {
    /// The block; its shard's log holds the bytes.
    pub block: BlockNum,
    /// Where in that log.
    pub place: Place,
    /// CRC32C of the bytes.
    pub crc: u32,
}

/// How one cut of one volume becomes chunks: the newest version of each block, ascending, cut into
/// chunks of the volume's chunk size. Each block is in the plan at most once, as data or as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackPlan {
    epoch: Epoch,
    block_size: BlockSize,
    chunk_slots: u32,
    blocks: Vec<PackBlock>,
    zeros: Vec<ZeroRun>,
    /// The blocks' bytes, if they are copied from other chunks: a place is an index here.
    copies: Option<Bytes>,
}

/// A block that is copied from another chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedBlock {
    /// The block.
    pub block: BlockNum,
    /// CRC32C of the bytes.
    pub crc: u32,
    /// Which block of the bytes it is.
    pub at: u32,
}

impl PackPlan {
    /// The plan for `layers` of one volume, all sealed at `epoch` or earlier. Layers may come in
    /// any order, several of one shard too (cuts that were not packed merge).
    pub fn new<'a>(
        epoch: Epoch,
        block_size: BlockSize,
        chunk_slots: u32,
        layers: impl IntoIterator<Item = (ShardId, &'a Overlay)>,
    ) -> Self {
        assert!(chunk_slots > 0);
        let mut by_shard: [Vec<&Overlay>; SHARD_COUNT] = Default::default();
        for (shard, layer) in layers {
            by_shard[shard.index()].push(layer);
        }
        let mut blocks = Vec::new();
        let mut zeroed: [Vec<Range<u64>>; SHARD_COUNT] = Default::default();
        for shard in ShardId::all() {
            let merged;
            let layer = match by_shard[shard.index()].as_slice() {
                [] => continue,
                [one] => *one,
                many => {
                    merged = merge(many);
                    &merged
                }
            };
            let winners = layer.winners();
            blocks.extend(winners.points.iter().map(|(local, point)| PackBlock {
                block: local.global(shard),
                place: point.place,
                crc: point.crc,
            }));
            zeroed[shard.index()] = winners.zeros;
        }
        // Sixteen ascending runs: the stable sort finds and merges them.
        blocks.sort_by_key(|block| block.block);
        let zeros = zeros::without_data(zeros::across_shards(&zeroed), &blocks);
        Self {
            epoch,
            block_size,
            chunk_slots,
            blocks,
            zeros,
            copies: None,
        }
    }

    /// The plan for blocks of other chunks, ascending, whose bytes are in `copies`; it changes no
    /// content.
    pub fn copied(
        epoch: Epoch,
        block_size: BlockSize,
        chunk_slots: u32,
        blocks: &[CopiedBlock],
        copies: Bytes,
    ) -> Self {
        assert!(blocks.is_sorted_by(|a, b| a.block < b.block));
        let block = |copied: &CopiedBlock| PackBlock {
            block: copied.block,
            place: Place {
                batch: BatchNum(u64::from(copied.at)),
                page: 0,
            },
            crc: copied.crc,
        };
        Self {
            epoch,
            block_size,
            chunk_slots,
            blocks: blocks.iter().map(block).collect(),
            zeros: Vec::new(),
            copies: Some(copies),
        }
    }

    /// Whether its blocks are copied from other chunks.
    pub fn is_copied(&self) -> bool {
        self.copies.is_some()
    }

    /// Drops zeros that cover nothing mapped (at the grain of a leaf), so that discarding a fresh
    /// volume costs nothing.
    pub fn drop_idle_zeros(&mut self, base: &VolumeBase) {
        self.zeros.retain(|run| base.may_map(run));
    }

    /// The cut.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Chunks to be written; zero for a plan that changes nothing.
    pub fn chunks(&self) -> usize {
        let data = self.blocks.len().div_ceil(self.chunk_slots as usize);
        data.max(self.zeros.len().div_ceil(ZERO_RUNS_MAX as usize))
    }

    /// Blocks with data.
    pub fn blocks_len(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of data to be packed.
    pub fn data_bytes(&self) -> u64 {
        self.blocks.len() as u64 * self.block_size.bytes() as u64
    }

    /// Heap memory of the plan in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<PackBlock>()
            + self.zeros.capacity() * size_of::<ZeroRun>()
    }

    /// Blocks of one chunk, in the order of its slots.
    pub fn chunk_blocks(&self, chunk: usize) -> &[PackBlock] {
        part(&self.blocks, chunk, self.chunk_slots as usize)
    }

    /// Zero runs of one chunk.
    pub fn chunk_zeros(&self, chunk: usize) -> &[ZeroRun] {
        part(&self.zeros, chunk, ZERO_RUNS_MAX as usize)
    }

    /// What the index must know of a stored chunk of this plan.
    pub fn added(&self, chunk: usize, reference: ChunkRef) -> AddedChunk {
        let blocks = self.chunk_blocks(chunk);
        assert_eq!(blocks.len(), reference.slots as usize);
        let mut runs: Vec<DataRun> = Vec::new();
        for (block, slot) in blocks.iter().zip(0..) {
            match runs.last_mut() {
                Some(run) if run.start.0 + u64::from(run.count) == block.block.0 => run.count += 1,
                _ => runs.push(DataRun {
                    start: block.block,
                    count: 1,
                    slot,
                }),
            }
        }
        AddedChunk {
            reference,
            runs,
            zeros: self.chunk_zeros(chunk).to_vec(),
        }
    }
}

/// The `index`th part of `items` in parts of `size`; empty beyond the end.
fn part<T>(items: &[T], index: usize, size: usize) -> &[T] {
    let from = items.len().min(index * size);
    let to = items.len().min(from + size);
    &items[from..to]
}

/// Several layers of one shard as one.
fn merge(layers: &[&Overlay]) -> Overlay {
    let mut merged = Overlay::new();
    layers.iter().for_each(|layer| merged.absorb(layer));
    merged
}

/// One chunk to be built and stored. A retry builds the same bytes: name and salt are part of it,
/// so an object that exists already under this name is this very chunk.
#[derive(Clone, Debug)]
pub struct ChunkJob {
    /// Which chunk of the plan.
    pub index: usize,
    /// Name and identity of the object.
    pub spec: ChunkSpec,
    /// The plan.
    pub plan: Arc<PackPlan>,
}

impl ChunkJob {
    /// Whether it is copied from other chunks.
    pub fn is_copied(&self) -> bool {
        self.plan.is_copied()
    }

    /// Blocks to be copied, in the order of the chunk's slots.
    pub fn blocks(&self) -> &[PackBlock] {
        self.plan.chunk_blocks(self.index)
    }

    /// A builder whose slots take [`ChunkJob::blocks`] in order; for a caller that reads the
    /// blocks asynchronously.
    pub fn builder(&self) -> Result<ChunkBuilder> {
        let blocks: Vec<_> = self.blocks().iter().map(|block| block.block).collect();
        ChunkBuilder::new(&self.spec, &blocks, self.plan.chunk_zeros(self.index))
    }

    /// Builds the object of a chunk that is copied from others; `None` for any other.
    pub fn build_copied(&self) -> Option<Result<(Bytes, ChunkRef)>> {
        let copies = self.plan.copies.as_ref()?;
        let copy = |block: &PackBlock, slot: &mut [u8]| {
            let from = block.place.batch.0 as usize * slot.len();
            slot.copy_from_slice(&copies[from..from + slot.len()]);
            Ok(())
        };
        Some(self.build_from(copy))
    }

    /// Builds the object. `read` copies one block's bytes into its slot, and may be wrong: the
    /// bytes are checked against the CRC of the WAL's record. Not asked for copied blocks.
    pub fn build(
        &self,
        read: impl FnMut(&PackBlock, &mut [u8]) -> Result<()>,
    ) -> Result<(Bytes, ChunkRef)> {
        self.build_copied().unwrap_or_else(|| self.build_from(read))
    }

    fn build_from(
        &self,
        mut read: impl FnMut(&PackBlock, &mut [u8]) -> Result<()>,
    ) -> Result<(Bytes, ChunkRef)> {
        let mut builder = self.builder()?;
        for block in self.blocks() {
            builder.push_with(block.crc, |slot| read(block, slot))?;
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests;

//! The chunk object: an immutable pack of blocks that says itself which blocks it holds.
//!
//! Format: `docs/internals/chunk.md`. Written by [`ChunkBuilder`], read by [`ChunkView`] (header
//! and extent table) and [`verify_slot`] (one block), so that a cold read is one ranged GET.

mod builder;
mod view;

use std::ops::Range;

use serde::{Serialize, Serializer};

use crate::block::{BlockNum, BlockSize, SHARD_COUNT, ShardSet};
use crate::identity::Epoch;
use crate::object::ChunkKey;

pub use builder::ChunkBuilder;
pub use view::{ChunkView, Found, SlotStamp, fuzz_chunk, open_slot, verify_slot};

/// First bytes of every chunk object.
pub const MAGIC: [u8; 8] = *b"TaipanCk";
/// Version of the format, if no zero run spares a shard.
pub const VERSION: u16 = 1;
/// Version of the format with zero runs that spare shards.
pub const VERSION_SPARING: u16 = 2;
/// Bytes of the fixed header, before the extent table.
pub const HEADER_BYTES: usize = 128;
/// Bytes after each block in its slot: CRC32C and low bits of the block number.
pub const SLOT_TRAILER_BYTES: usize = 8;
/// Most blocks of one chunk (64 MiB of 4 KiB blocks).
pub const SLOTS_MAX: u32 = 16384;
/// Most zero runs of one chunk.
pub const ZERO_RUNS_MAX: u32 = 65536;
/// Block numbers stay below this (64 TiB of 4 KiB blocks).
pub const BLOCK_NUM_END: u64 = 1 << 34;

const RUN_BYTES: usize = 16;

/// Offsets of the header's fields.
pub(crate) mod field {
    use std::ops::Range;

    pub(crate) const MAGIC: Range<usize> = 0..8;
    pub(crate) const VERSION: Range<usize> = 8..10;
    pub(crate) const FLAGS: Range<usize> = 10..12;
    pub(crate) const BLOCK_SIZE: Range<usize> = 12..16;
    pub(crate) const KEY: Range<usize> = 16..48;
    pub(crate) const SALT: Range<usize> = 48..64;
    pub(crate) const KEY_ID: Range<usize> = 64..68;
    pub(crate) const HEAD_BYTES: Range<usize> = 68..72;
    pub(crate) const SLOTS: Range<usize> = 72..76;
    pub(crate) const DATA_RUNS: Range<usize> = 76..80;
    pub(crate) const ZERO_RUNS: Range<usize> = 80..84;
    pub(crate) const TABLE_CRC: Range<usize> = 84..88;
    pub(crate) const OBJECT_BYTES: Range<usize> = 88..96;
    pub(crate) const EPOCH: Range<usize> = 96..104;
    pub(crate) const RESERVED: Range<usize> = 104..124;
    pub(crate) const HEADER_CRC: Range<usize> = 124..128;
}
const _: () = assert!(field::HEADER_CRC.end == HEADER_BYTES);
const _: () = assert!(field::KEY.end - field::KEY.start == ChunkKey::ENCODED_BYTES);

/// What identifies a chunk that is about to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSpec {
    /// Its name.
    pub key: ChunkKey,
    /// Block size of the volume.
    pub block_size: BlockSize,
    /// The cut to which its blocks belong.
    pub epoch: Epoch,
    /// Random, for key derivation when payloads are encrypted.
    pub salt: [u8; 16],
}

/// Consecutive blocks in consecutive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DataRun {
    /// First block, in the volume's numbering.
    #[serde(serialize_with = "block_number")]
    pub start: BlockNum,
    /// Blocks, above zero.
    pub count: u32,
    /// Slot of the first block.
    pub slot: u32,
}

/// Consecutive blocks that read as zeros and have no slot. Those of some shards may be left out, so
/// that a range of any length that only some shards zeroed is one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ZeroRun {
    /// First block, in the volume's numbering.
    #[serde(serialize_with = "block_number")]
    pub start: BlockNum,
    /// Blocks from the first to the last, above zero.
    pub count: u64,
    /// Shards of whose blocks nothing is said. If there are any, the run is made of whole rows:
    /// start and count are multiples of 16.
    #[serde(skip_serializing_if = "ShardSet::is_empty")]
    pub spared: ShardSet,
}

impl ZeroRun {
    /// All blocks of `start..start + count`.
    pub fn new(start: BlockNum, count: u64) -> Self {
        Self {
            start,
            count,
            spared: ShardSet::NONE,
        }
    }

    /// Whether it says that `block` is zeros.
    pub fn covers(&self, block: BlockNum) -> bool {
        let is_within = block.0.checked_sub(self.start.0);
        is_within.is_some_and(|at| at < self.count) && !self.spared.contains(block.shard())
    }

    /// Blocks that it says are zeros.
    pub fn zeroed_blocks(&self) -> u64 {
        let shards = SHARD_COUNT as u64;
        match u64::from(self.spared.count()) {
            0 => self.count,
            spared => self.count / shards * (shards - spared),
        }
    }

    /// Its second word in the table: count, and the spared shards in the bits that no count needs.
    fn second_word(&self) -> u64 {
        u64::from(self.spared.0) << SPARED_SHIFT | self.count
    }

    fn from_words(start: u64, second: u64) -> Self {
        Self {
            start: BlockNum(start),
            count: second & ((1 << SPARED_SHIFT) - 1),
            spared: ShardSet((second >> SPARED_SHIFT) as u16),
        }
    }
}

/// Bits of a zero run's count in the table.
const SPARED_SHIFT: u32 = 48;
const _: () = assert!(BLOCK_NUM_END < 1 << SPARED_SHIFT);

/// What a manifest and the chunk table keep of a chunk: enough to read any slot with one GET.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChunkRef {
    /// Its name.
    pub key: ChunkKey,
    /// Bytes of header and extent table; the payload starts there.
    pub head_bytes: u32,
    /// Blocks held.
    pub slots: u32,
    /// Bytes of the whole object.
    pub bytes: u64,
}

impl ChunkRef {
    /// Bytes of a reference in a manifest.
    pub const ENCODED_BYTES: usize = ChunkKey::ENCODED_BYTES + 16;

    /// Bytes of the object that hold `count` slots from `slot`; panics beyond the last slot.
    pub fn slot_range(&self, block_size: BlockSize, slot: u32, count: u32) -> Range<u64> {
        assert!(
            u64::from(slot) + u64::from(count) <= u64::from(self.slots),
            "slots {slot}+{count} of a chunk of {} slots",
            self.slots
        );
        let stride = slot_stride(block_size) as u64;
        let start = u64::from(self.head_bytes) + u64::from(slot) * stride;
        start..start + u64::from(count) * stride
    }
}

/// Bytes of one slot: the block, its CRC32C, and the low bits of its number.
pub fn slot_stride(block_size: BlockSize) -> usize {
    block_size.bytes() + SLOT_TRAILER_BYTES
}

/// Bytes of header and table for so many runs.
fn head_bytes(data_runs: usize, zero_runs: usize) -> usize {
    HEADER_BYTES + (data_runs + zero_runs) * RUN_BYTES
}

fn block_number<S: Serializer>(block: &BlockNum, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(block.0)
}

/// The bits of a block number that its slot repeats.
fn low_bits(block: BlockNum) -> u32 {
    block.0 as u32
}

#[cfg(test)]
mod tests;

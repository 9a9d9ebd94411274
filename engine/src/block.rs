//! Block arithmetic: how bytes become blocks, blocks become shards, and requests become spans.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// Number of shards of every volume; part of the on-disk format.
pub const SHARD_COUNT: usize = 16;
const SHARD_BITS: u32 = 4;
const SHARD_MASK: u64 = 0xF;
const _: () = assert!(1 << SHARD_BITS == SHARD_COUNT && SHARD_MASK as usize == SHARD_COUNT - 1);

/// Bytes of one page: the grain of O_DIRECT, of WAL headers and of the smallest block.
pub const PAGE_BYTES: usize = 4096;

/// Index of a shard, `0..16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(u8);

impl ShardId {
    /// The first shard.
    pub const FIRST: Self = Self(0);

    /// The shard with this index; `None` unless below [`SHARD_COUNT`].
    pub fn new(index: u8) -> Option<Self> {
        (usize::from(index) < SHARD_COUNT).then_some(Self(index))
    }

    /// All shards in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARD_COUNT as u8).map(Self)
    }

    /// The index, `0..16`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The data core that owns this shard among `cores` data cores (`shard % cores`).
    pub fn core(self, cores: usize) -> usize {
        self.index() % cores
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

/// Some of the shards: bit n is shard n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShardSet(pub u16);

const _: () = assert!(SHARD_COUNT == u16::BITS as usize);

impl ShardSet {
    /// No shard.
    pub const NONE: Self = Self(0);
    /// Every shard.
    pub const ALL: Self = Self(u16::MAX);

    /// Whether it holds no shard.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Shards in it, at most [`SHARD_COUNT`].
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether `shard` is in it.
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 >> shard.0 & 1 == 1
    }

    /// Whether the shards of the blocks `from..to` are all in it.
    pub fn contains_all_of(self, blocks: Range<u64>) -> bool {
        let count = blocks.end.saturating_sub(blocks.start);
        let shards = 0..count.min(SHARD_COUNT as u64);
        shards
            .map(|i| BlockNum(blocks.start + i).shard())
            .all(|shard| self.contains(shard))
    }
}

/// Number of a block within its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNum(pub u64);

impl BlockNum {
    /// The owning shard. The only place where the routing rule is written.
    pub fn shard(self) -> ShardId {
        ShardId((self.0 & SHARD_MASK) as u8)
    }

    /// Number of this block among the blocks of its shard.
    pub fn local(self) -> LocalBlock {
        LocalBlock(self.0 >> SHARD_BITS)
    }
}

/// Number of a block within one shard of its volume (`block >> 4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalBlock(pub u64);

impl LocalBlock {
    /// The volume's number of this block of `shard`.
    pub fn global(self, shard: ShardId) -> BlockNum {
        BlockNum(self.0 << SHARD_BITS | shard.index() as u64)
    }
}

/// A volume's block size in bytes: a power of two from 4 KiB to 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The smallest and default size.
    pub const MIN: Self = Self(4096);
    /// The largest size.
    pub const MAX: Self = Self(65536);

    /// The block size of so many bytes; `None` unless a power of two in 4 KiB..=64 KiB.
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&bytes))
            .then_some(Self(bytes))
    }

    /// Bytes of one block.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Pages (4 KiB) of one block, 1..=16.
    pub fn pages(self) -> usize {
        self.bytes() / PAGE_BYTES
    }

    /// log2 of the size in bytes.
    pub fn shift(self) -> u32 {
        self.0.trailing_zeros()
    }

    /// The block that holds the byte at `offset`.
    pub fn block_of(self, offset: u64) -> BlockNum {
        BlockNum(offset >> self.shift())
    }
}

/// A non-empty byte range of a volume, seen as blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, above zero.
    pub len: u64,
    /// Block size of the volume.
    pub block_size: BlockSize,
}

impl Span {
    /// First block touched.
    pub fn first(self) -> BlockNum {
        self.block_size.block_of(self.offset)
    }

    /// Last block touched.
    pub fn last(self) -> BlockNum {
        self.block_size.block_of(self.offset + self.len - 1)
    }

    /// Blocks touched, partly or wholly.
    pub fn blocks(self) -> u64 {
        self.last().0 - self.first().0 + 1
    }

    /// Shard-local range of the blocks of `shard` touched by this span; may be empty.
    pub fn local_range(self, shard: ShardId) -> Range<u64> {
        let s = shard.index() as u64;
        let ceil = |b: u64| (b + SHARD_MASK - s) >> SHARD_BITS;
        ceil(self.first().0)..ceil(self.last().0 + 1)
    }

    /// The part of `block` inside this span: (range within the block, offset within the span).
    pub fn part(self, block: BlockNum) -> (Range<usize>, usize) {
        let start = block.0 << self.block_size.shift();
        let from = self.offset.max(start);
        let to = (self.offset + self.len).min(start + self.block_size.bytes() as u64);
        (
            (from - start) as usize..(to - start) as usize,
            (from - self.offset) as usize,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ranges_partition_every_span() {
        for first in 0..40u64 {
            for count in 1..70u64 {
                let span = Span {
                    offset: first * 4096 + 100,
                    len: count * 4096 - 150,
                    block_size: BlockSize::MIN,
                };
                let mut seen = Vec::new();
                for shard in ShardId::all() {
                    for local in span.local_range(shard) {
                        let block = LocalBlock(local).global(shard);
                        assert_eq!((block.shard(), block.local()), (shard, LocalBlock(local)));
                        seen.push(block.0);
                    }
                }
                seen.sort_unstable();
                assert_eq!(seen, (span.first().0..=span.last().0).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn parts_cover_the_span_once() {
        let span = Span {
            offset: 5000,
            len: 20_000,
            block_size: BlockSize::MIN,
        };
        let mut at = 0;
        for b in span.first().0..=span.last().0 {
            let (range, offset) = span.part(BlockNum(b));
            assert_eq!(offset, at);
            at += range.len();
        }
        assert_eq!(at as u64, span.len);
    }
}

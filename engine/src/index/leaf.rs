//! One immutable leaf of the committed index: where each of 4096 neighbouring blocks is packed.

mod scan;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::block::LocalBlock;
use crate::error::{Error, Result};

/// Shard-local blocks that one leaf covers. At 4096 a leaf's fixed cost stays under 2 bytes per
/// block even when only one block in a hundred is mapped; a larger leaf would make one random write
/// rewrite more.
pub const LEAF_BLOCKS: u64 = 4096;
/// Leaves a shard may have: the largest volume at the smallest block size.
pub const LEAVES_MAX: u32 = (crate::volume::SIZE_BYTES_MAX / 4096 / 16 / LEAF_BLOCKS) as u32;

/// Number of a leaf within its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafKey(pub u32);

impl LeafKey {
    /// The leaf of `local`, and the block's index within it.
    #[inline]
    pub fn of(local: LocalBlock) -> (Self, u16) {
        (
            Self((local.0 / LEAF_BLOCKS) as u32),
            (local.0 % LEAF_BLOCKS) as u16,
        )
    }

    /// The first block of this leaf.
    pub fn first(self) -> LocalBlock {
        LocalBlock(u64::from(self.0) * LEAF_BLOCKS)
    }
}

/// Number of a chunk within the open volume; recycled when the chunk is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkOrdinal(pub u32);

/// Where a committed block is: a slot of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkLoc {
    /// The chunk.
    pub chunk: ChunkOrdinal,
    /// Slot in the chunk's payload, below 2^16.
    pub slot: u32,
}

/// One entry of a leaf: index of the block in the leaf, below [`LEAF_BLOCKS`], and its place.
pub type LeafEntry = (u16, ChunkLoc);

/// Byte layout; the same in memory and in index parts. Little endian.
mod field {
    use super::Range;

    pub(super) const KIND: usize = 0;
    pub(super) const SLOT_BITS: usize = 1;
    pub(super) const VALUE_BYTES: usize = 2;
    pub(super) const ZERO: usize = 3;
    pub(super) const ITEMS: Range<usize> = 4..6;
    pub(super) const MAPPED: Range<usize> = 6..8;
    pub(super) const HEADER_BYTES: usize = 8;

    pub(super) const RUN_BYTES: usize = 12;
    pub(super) const RUN_FIRST: Range<usize> = 0..2;
    pub(super) const RUN_COUNT: Range<usize> = 2..4;
    pub(super) const RUN_CHUNK: Range<usize> = 4..8;
    pub(super) const RUN_SLOT: Range<usize> = 8..10;
    pub(super) const RUN_STEP: Range<usize> = 10..12;

    /// Blocks per rank entry of a dense leaf.
    pub(super) const RANK_BLOCKS: usize = 256;
    pub(super) const RANKS_BYTES: usize = super::LEAF_BLOCKS as usize / RANK_BLOCKS * 2;
    pub(super) const BITMAP_BYTES: usize = super::LEAF_BLOCKS as usize / 8;
    pub(super) const BITMAP: usize = HEADER_BYTES + RANKS_BYTES;
    pub(super) const DENSE_VALUES: usize = BITMAP + BITMAP_BYTES;
}

/// Largest encoding of a leaf: dense, all blocks mapped, 6 bytes a value.
pub const LEAF_BYTES_MAX: usize = field::DENSE_VALUES + LEAF_BLOCKS as usize * VALUE_BYTES_MAX;
const VALUE_BYTES_MAX: usize = 6;
const SLOT_BITS_MAX: u32 = 16;
const _: () = assert!(SLOT_BITS_MAX + 32 <= VALUE_BYTES_MAX as u32 * 8);
const _: () = assert!(LEAF_BLOCKS <= u16::MAX as u64);

/// How a leaf holds its entries; each leaf takes the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafKind {
    /// Runs with a stride: sequential data.
    Runs,
    /// Sorted indices and values: few scattered blocks.
    Sparse,
    /// A bitmap and values: many scattered blocks.
    Dense,
}

impl LeafKind {
    fn code(self) -> u8 {
        match self {
            Self::Runs => 1,
            Self::Sparse => 2,
            Self::Dense => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Runs, Self::Sparse, Self::Dense]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// An immutable, never empty leaf; cloning shares it.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf(Arc<[u8]>);

/// Blocks `first..first + count` of the leaf in one chunk, their slots `step` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u16,
    count: u16,
    chunk: u32,
    slot: u16,
    /// Zero iff `count` is one.
    step: u16,
}

impl Leaf {
    /// The leaf of these entries, whose indices ascend strictly; `None` if there are none.
    ///
    /// # Panics
    /// On an index not below [`LEAF_BLOCKS`] or a slot not below 2^16: neither can come from a
    /// chunk that was parsed.
    pub fn build(entries: &[LeafEntry]) -> Option<Self> {
        let last = entries.last()?;
        assert!(u64::from(last.0) < LEAF_BLOCKS);
        debug_assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
        let shape = ValueShape::of(entries);
        let n = entries.len();
        let sparse = n * (2 + shape.bytes);
        let dense = field::DENSE_VALUES - field::HEADER_BYTES + n * shape.bytes;
        let runs = runs_of(entries, sparse.min(dense) / field::RUN_BYTES);
        let bytes = match runs {
            Some(runs) => encode_runs(&runs, n),
            None if sparse <= dense => encode_sparse(entries, shape),
            None => encode_dense(entries, shape),
        };
        debug_assert!(bytes.len() <= LEAF_BYTES_MAX);
        Some(Self(bytes.into()))
    }

    /// This leaf (or an empty one) after `zeros` were unmapped and then `points` mapped; `None` if
    /// nothing stays. Both ascend; zeros do not overlap. Each place no longer named is reported to
    /// `displaced`. `scratch` only saves allocations.
    pub fn merged(
        old: Option<&Self>,
        zeros: &[Range<u16>],
        points: &[LeafEntry],
        scratch: &mut Vec<LeafEntry>,
        displaced: &mut impl FnMut(ChunkLoc),
    ) -> Option<Self> {
        scratch.clear();
        let (mut zeros, mut points) = (zeros, points);
        if let Some(old) = old {
            old.for_each(|index, loc| {
                let before = points.partition_point_linear(index);
                scratch.extend_from_slice(&points[..before]);
                points = &points[before..];
                while zeros.first().is_some_and(|zero| zero.end <= index) {
                    zeros = &zeros[1..];
                }
                let zeroed = zeros.first().is_some_and(|zero| zero.start <= index);
                let replaced = points.first().is_some_and(|point| point.0 == index);
                if zeroed || replaced {
                    displaced(loc);
                } else {
                    scratch.push((index, loc));
                }
            });
        }
        scratch.extend_from_slice(points);
        Self::build(scratch)
    }

    /// Where the block with this index is; `None` if it is not mapped.
    pub fn lookup(&self, index: u16) -> Option<ChunkLoc> {
        debug_assert!(u64::from(index) < LEAF_BLOCKS);
        match self.kind() {
            LeafKind::Runs => {
                let body = self.body();
                let at = partition(self.items(), |i| run_at(body, i).first <= index);
                let run = run_at(body, at.checked_sub(1)?);
                (index - run.first < run.count).then(|| run.loc(index - run.first))
            }
            LeafKind::Sparse => {
                let body = self.body();
                let at = partition(self.items(), |i| read_u16(body, i * 2) < index);
                (at < self.items() && read_u16(body, at * 2) == index).then(|| self.value(at))
            }
            LeafKind::Dense => {
                let (byte, bit) = (usize::from(index) / 8, index % 8);
                let bitmap = &self.0[field::BITMAP..field::DENSE_VALUES];
                (bitmap[byte] >> bit & 1 == 1).then(|| self.value(self.rank(index)))
            }
        }
    }

    /// Calls `visit` with every entry, ascending.
    pub fn for_each(&self, mut visit: impl FnMut(u16, ChunkLoc)) {
        match self.kind() {
            LeafKind::Runs => {
                for i in 0..self.items() {
                    let run = run_at(self.body(), i);
                    (0..run.count).for_each(|k| visit(run.first + k, run.loc(k)));
                }
            }
            LeafKind::Sparse => {
                let body = self.body();
                (0..self.items()).for_each(|i| visit(read_u16(body, i * 2), self.value(i)));
            }
            LeafKind::Dense => {
                let mut at = 0;
                let bitmap = &self.0[field::BITMAP..field::DENSE_VALUES];
                for (byte, &bits) in bitmap.iter().enumerate() {
                    let mut left = bits;
                    while left != 0 {
                        let bit = left.trailing_zeros() as u16;
                        left &= left - 1;
                        visit(byte as u16 * 8 + bit, self.value(at));
                        at += 1;
                    }
                }
            }
        }
    }

    /// Whether this is that very leaf, not another one that says the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Blocks mapped, at least one.
    pub fn mapped(&self) -> u64 {
        u64::from(read_u16(&self.0, field::MAPPED.start))
    }

    /// How the entries are held.
    pub fn kind(&self) -> LeafKind {
        // Built or checked by `decode`, so the code is known.
        LeafKind::from_code(self.0[field::KIND]).unwrap_or(LeafKind::Dense)
    }

    /// Memory of the leaf in bytes: counts of the `Arc`, contents, the allocator's word, rounded to
    /// its grain.
    pub fn heap_bytes(&self) -> usize {
        (16 + self.0.len() + 8).next_multiple_of(16)
    }

    /// The encoding, at most [`LEAF_BYTES_MAX`] bytes.
    pub fn encode(&self) -> &[u8] {
        &self.0
    }

    /// Checks every rule of the format; never panics. After it no accessor does.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check(bytes).map_err(|why| Error::corrupt(format!("index leaf: {why}")))?;
        Ok(Self(bytes.into()))
    }

    fn items(&self) -> usize {
        usize::from(read_u16(&self.0, field::ITEMS.start))
    }

    fn body(&self) -> &[u8] {
        &self.0[field::HEADER_BYTES..]
    }

    fn value(&self, at: usize) -> ChunkLoc {
        let start = match self.kind() {
            LeafKind::Dense => field::DENSE_VALUES,
            _ => field::HEADER_BYTES + self.items() * 2,
        };
        value_at(&self.0, start, at).loc(u32::from(self.0[field::SLOT_BITS]))
    }

    /// Entries of a dense leaf before `index`.
    fn rank(&self, index: u16) -> usize {
        let group = usize::from(index) / field::RANK_BLOCKS;
        let before = usize::from(read_u16(&self.0, field::HEADER_BYTES + group * 2));
        let from = field::BITMAP + group * field::RANK_BLOCKS / 8;
        let to = field::BITMAP + usize::from(index) / 8;
        let whole: u32 = self.0[from..to].iter().map(|b| b.count_ones()).sum();
        let below = self.0[to] & ((1u16 << (index % 8)) - 1) as u8;
        before + (whole + below.count_ones()) as usize
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("kind", &self.kind())
            .field("mapped", &self.mapped())
            .field("bytes", &self.0.len())
            .finish()
    }
}

/// Points before an index, for a merge that walks both sides: the answer is near.
trait LinearPoints {
    fn partition_point_linear(&self, index: u16) -> usize;
}

impl LinearPoints for &[LeafEntry] {
    fn partition_point_linear(&self, index: u16) -> usize {
        self.iter().take_while(|point| point.0 < index).count()
    }
}

impl Run {
    fn loc(self, k: u16) -> ChunkLoc {
        ChunkLoc {
            chunk: ChunkOrdinal(self.chunk),
            slot: u32::from(self.slot) + u32::from(k) * u32::from(self.step),
        }
    }

    fn last_slot(self) -> u32 {
        self.loc(self.count - 1).slot
    }
}

/// How values are packed: `ordinal << slot_bits | slot` in so many bytes.
#[derive(Clone, Copy)]
struct ValueShape {
    slot_bits: u32,
    bytes: usize,
}

impl ValueShape {
    /// The narrowest shape that holds all of `entries`.
    fn of(entries: &[LeafEntry]) -> Self {
        let (mut slot, mut chunk) = (0, 0);
        for (_, loc) in entries {
            slot = slot.max(loc.slot);
            chunk = chunk.max(loc.chunk.0);
        }
        let slot_bits = u32::BITS - slot.leading_zeros();
        assert!(
            slot_bits <= SLOT_BITS_MAX,
            "slot {slot} is beyond any chunk"
        );
        let bits = slot_bits + u32::BITS - chunk.leading_zeros();
        let bytes = bits.div_ceil(8).max(1) as usize;
        Self { slot_bits, bytes }
    }

    fn put(self, loc: ChunkLoc, out: &mut Vec<u8>) {
        let value = u64::from(loc.chunk.0) << self.slot_bits | u64::from(loc.slot);
        out.extend_from_slice(&value.to_le_bytes()[..self.bytes]);
    }
}

/// A packed value.
#[derive(Clone, Copy)]
struct Value(u64);

impl Value {
    fn loc(self, slot_bits: u32) -> ChunkLoc {
        ChunkLoc {
            chunk: ChunkOrdinal((self.0 >> slot_bits) as u32),
            slot: (self.0 & ((1 << slot_bits) - 1)) as u32,
        }
    }
}

fn value_at(leaf: &[u8], values: usize, at: usize) -> Value {
    let width = usize::from(leaf[field::VALUE_BYTES]);
    let from = values + at * width;
    let bytes = &leaf[from..from + width];
    Value(bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn run_at(body: &[u8], i: usize) -> Run {
    let run = &body[i * field::RUN_BYTES..][..field::RUN_BYTES];
    let chunk = field::RUN_CHUNK.start;
    Run {
        first: read_u16(run, field::RUN_FIRST.start),
        count: read_u16(run, field::RUN_COUNT.start),
        chunk: u32::from_le_bytes([run[chunk], run[chunk + 1], run[chunk + 2], run[chunk + 3]]),
        slot: read_u16(run, field::RUN_SLOT.start),
        step: read_u16(run, field::RUN_STEP.start),
    }
}

/// Number of leading items for which `holds`; it holds for a prefix.
fn partition(items: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (0, items);
    while from < to {
        let middle = from + (to - from) / 2;
        if holds(middle) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    from
}

/// The runs of `entries`, or `None` if there are more than `most`.
fn runs_of(entries: &[LeafEntry], most: usize) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for &(index, loc) in entries {
        let slot = loc.slot as u16;
        if let Some(run) = runs.last_mut()
            && run.chunk == loc.chunk.0
            && run.first + run.count == index
            && loc.slot > run.last_slot()
        {
            let step = (loc.slot - run.last_slot()) as u16;
            if run.count == 1 || run.step == step {
                run.step = step;
                run.count += 1;
                continue;
            }
        }
        if runs.len() == most {
            return None;
        }
        runs.push(Run {
            first: index,
            count: 1,
            chunk: loc.chunk.0,
            slot,
            step: 0,
        });
    }
    Some(runs)
}

fn header(kind: LeafKind, shape: ValueShape, items: usize, mapped: usize, body: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(field::HEADER_BYTES + body);
    out.extend_from_slice(&[kind.code(), shape.slot_bits as u8, shape.bytes as u8, 0]);
    out.extend_from_slice(&(items as u16).to_le_bytes());
    out.extend_from_slice(&(mapped as u16).to_le_bytes());
    debug_assert_eq!(out.len(), field::HEADER_BYTES);
    out
}

fn encode_runs(runs: &[Run], mapped: usize) -> Vec<u8> {
    let none = ValueShape {
        slot_bits: 0,
        bytes: 0,
    };
    let body = runs.len() * field::RUN_BYTES;
    let mut out = header(LeafKind::Runs, none, runs.len(), mapped, body);
    for run in runs {
        out.extend_from_slice(&run.first.to_le_bytes());
        out.extend_from_slice(&run.count.to_le_bytes());
        out.extend_from_slice(&run.chunk.to_le_bytes());
        out.extend_from_slice(&run.slot.to_le_bytes());
        out.extend_from_slice(&run.step.to_le_bytes());
    }
    out
}

fn encode_sparse(entries: &[LeafEntry], shape: ValueShape) -> Vec<u8> {
    let n = entries.len();
    let mut out = header(LeafKind::Sparse, shape, n, n, n * (2 + shape.bytes));
    for (index, _) in entries {
        out.extend_from_slice(&index.to_le_bytes());
    }
    entries
        .iter()
        .for_each(|(_, loc)| shape.put(*loc, &mut out));
    out
}

fn encode_dense(entries: &[LeafEntry], shape: ValueShape) -> Vec<u8> {
    let n = entries.len();
    let body = field::DENSE_VALUES - field::HEADER_BYTES + n * shape.bytes;
    let mut out = header(LeafKind::Dense, shape, n, n, body);
    let mut bitmap = [0u8; field::BITMAP_BYTES];
    for (index, _) in entries {
        bitmap[usize::from(*index) / 8] |= 1 << (index % 8);
    }
    let mut before = 0u16;
    for group in bitmap.chunks(field::RANK_BLOCKS / 8) {
        out.extend_from_slice(&before.to_le_bytes());
        before += group.iter().map(|b| b.count_ones() as u16).sum::<u16>();
    }
    out.extend_from_slice(&bitmap);
    entries
        .iter()
        .for_each(|(_, loc)| shape.put(*loc, &mut out));
    out
}

/// Checks an encoding of unknown origin; the error says which rule it breaks.
fn check(bytes: &[u8]) -> std::result::Result<(), &'static str> {
    if bytes.len() < field::HEADER_BYTES {
        return Err("shorter than its header");
    }
    let kind = LeafKind::from_code(bytes[field::KIND]).ok_or("unknown kind")?;
    if bytes[field::ZERO] != 0 {
        return Err("reserved byte is not zero");
    }
    let items = usize::from(read_u16(bytes, field::ITEMS.start));
    let mapped = usize::from(read_u16(bytes, field::MAPPED.start));
    if items == 0 || mapped > LEAF_BLOCKS as usize {
        return Err("impossible number of entries");
    }
    match kind {
        LeafKind::Runs => check_runs(bytes, items, mapped),
        LeafKind::Sparse | LeafKind::Dense if items != mapped => {
            Err("entries and mapped blocks differ")
        }
        LeafKind::Sparse => {
            let values = field::HEADER_BYTES + items * 2;
            check_values(bytes, values, items)?;
            let indices: Vec<_> = (0..items)
                .map(|i| read_u16(bytes, field::HEADER_BYTES + i * 2))
                .collect();
            let ascending = indices.is_sorted_by(|a, b| a < b);
            let inside = indices.iter().all(|&i| u64::from(i) < LEAF_BLOCKS);
            (ascending && inside)
                .then_some(())
                .ok_or("bad order of indices")
        }
        LeafKind::Dense => {
            check_values(bytes, field::DENSE_VALUES, items)?;
            check_bitmap(bytes, items)
        }
    }
}

fn check_runs(bytes: &[u8], items: usize, mapped: usize) -> std::result::Result<(), &'static str> {
    if bytes.len() != field::HEADER_BYTES + items * field::RUN_BYTES {
        return Err("length does not fit the number of runs");
    }
    if bytes[field::SLOT_BITS] != 0 || bytes[field::VALUE_BYTES] != 0 {
        return Err("runs with a value shape");
    }
    let (mut free_from, mut sum) = (0u32, 0);
    for i in 0..items {
        let run = run_at(&bytes[field::HEADER_BYTES..], i);
        let end = u32::from(run.first) + u32::from(run.count);
        if run.count == 0 || (run.count == 1) != (run.step == 0) {
            return Err("empty run or wrong step");
        }
        if u32::from(run.first) < free_from || u64::from(end) > LEAF_BLOCKS {
            return Err("runs overlap or leave the leaf");
        }
        if run.last_slot() > u32::from(u16::MAX) {
            return Err("run ends beyond any chunk");
        }
        free_from = end;
        sum += usize::from(run.count);
    }
    (sum == mapped)
        .then_some(())
        .ok_or("runs and mapped blocks differ")
}

fn check_values(
    bytes: &[u8],
    values: usize,
    items: usize,
) -> std::result::Result<(), &'static str> {
    let slot_bits = u32::from(bytes[field::SLOT_BITS]);
    let width = usize::from(bytes[field::VALUE_BYTES]);
    if slot_bits > SLOT_BITS_MAX || !(1..=VALUE_BYTES_MAX).contains(&width) {
        return Err("bad value shape");
    }
    if bytes.len() != values + items * width {
        return Err("length does not fit the number of values");
    }
    let fits = |i| value_at(bytes, values, i).0 >> slot_bits <= u64::from(u32::MAX);
    (0..items)
        .all(fits)
        .then_some(())
        .ok_or("chunk ordinal too large")
}

fn check_bitmap(bytes: &[u8], items: usize) -> std::result::Result<(), &'static str> {
    let mut before = 0usize;
    let bitmap = &bytes[field::BITMAP..field::DENSE_VALUES];
    for (i, group) in bitmap.chunks(field::RANK_BLOCKS / 8).enumerate() {
        if usize::from(read_u16(bytes, field::HEADER_BYTES + i * 2)) != before {
            return Err("rank and bitmap differ");
        }
        before += group.iter().map(|b| b.count_ones() as usize).sum::<usize>();
    }
    (before == items)
        .then_some(())
        .ok_or("bitmap and entries differ")
}

#[cfg(test)]
mod tests;

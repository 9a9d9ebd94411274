//! The uncommitted part of one volume's index in one shard: blocks in the WAL, and zeroed ranges.

mod regions;
mod scan;

use std::collections::BTreeMap;
use std::ops::Range;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;

use crate::block::LocalBlock;
use crate::identity::{BatchNum, Lsn};
use crate::wal::place::Place;

use regions::Regions;
pub use scan::Scan;

/// The newest data of one block, still in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Record that wrote it.
    pub lsn: Lsn,
    /// Where its bytes are.
    pub place: Place,
    /// CRC32C of its bytes.
    pub crc: u32,
}

/// What an overlay knows about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// Its data.
    Data(Point),
    /// It was zeroed or trimmed by this record.
    Zero(Lsn),
}

/// What an overlay holds after older versions are dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Winners {
    /// Blocks with data, ascending, each once.
    pub points: Vec<(LocalBlock, Point)>,
    /// Ranges zeroed, ascending, neither touching nor overlapping. They may cover blocks of
    /// `points` (data written after the zeroing): apply zeros first, then points.
    pub zeros: Vec<Range<u64>>,
}

/// Bits of a packed place that hold the page.
const PAGE_BITS: u32 = 16;
/// Batch numbers must stay below this to pack beside a page: 2^48 batches outlast the hardware.
const BATCH_LIMIT: u64 = 1 << (64 - PAGE_BITS);
/// Bytes of a B-tree entry of the zero map, node slack included (an estimate).
const ZERO_ENTRY_BYTES: usize = 40;

/// One block of the table, 24 bytes: an overlay is touched on every write and read, so cache lines
/// count.
#[derive(Clone, Copy)]
struct Entry {
    lsn: u64,
    batch_page: u64,
    crc: u32,
    /// Local block numbers fit: 64 TiB / 4 KiB / 16 shards = 2^30.
    local: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);
const _: () = assert!(crate::volume::SIZE_BYTES_MAX / 4096 / 16 <= u32::MAX as u64);

impl Entry {
    fn new(local: u32, point: Point) -> Self {
        debug_assert!(point.place.batch.0 < BATCH_LIMIT);
        Self {
            lsn: point.lsn.0,
            batch_page: point.place.batch.0 << PAGE_BITS | u64::from(point.place.page),
            crc: point.crc,
            local,
        }
    }

    fn point(self) -> Point {
        Point {
            lsn: Lsn(self.lsn),
            place: Place {
                batch: BatchNum(self.batch_page >> PAGE_BITS),
                page: self.batch_page as u16,
            },
            crc: self.crc,
        }
    }
}

/// Hash of a local block: one widening multiply, both halves folded. The table takes its position
/// from the low bits and its tag from the top ones, so both must depend on all bits of the input,
/// also for strided block numbers; a client that seeks collisions slows only its own volume.
#[inline]
fn hash(local: u32) -> u64 {
    let product = u128::from(local) * 0x9E37_79B9_7F4A_7C15;
    (product >> 64) as u64 ^ product as u64
}

/// A zeroed range: its end and the record that zeroed it (keyed by its start).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ZeroedTo {
    end: u64,
    lsn: Lsn,
}

/// Blocks and zeroed ranges of one volume in one shard that no committed manifest holds yet.
///
/// The greatest LSN wins, whatever the order of insertion: recovery inserts the WAL's records first
/// and those of the memory region after them. An entry with an equal LSN replaces (the same record
/// appended again elsewhere).
#[derive(Default)]
pub struct Overlay {
    points: HashTable<Entry>,
    /// Where points are, for scans.
    regions: Regions,
    /// Non-overlapping. Data and zeros are compared at lookup, so that a TRIM costs one insertion
    /// however many blocks it covers.
    zeros: BTreeMap<u64, ZeroedTo>,
}

impl Overlay {
    /// An empty overlay; allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `point` holds the block `local`, which must be below 2^32.
    #[inline]
    pub fn insert_point(&mut self, local: LocalBlock, point: Point) {
        let key = key_of(local);
        let entry = self
            .points
            .entry(hash(key), |e| e.local == key, |e| hash(e.local));
        match entry {
            TableEntry::Occupied(mut at) => {
                if at.get().lsn <= point.lsn.0 {
                    *at.get_mut() = Entry::new(key, point);
                }
            }
            TableEntry::Vacant(at) => {
                at.insert(Entry::new(key, point));
                self.regions.note(key);
            }
        }
    }

    /// Notes that the blocks `range` (local numbers, each below 2^32) were zeroed by `lsn`.
    pub fn insert_zero(&mut self, range: Range<u64>, lsn: Lsn) {
        debug_assert!(range.end <= 1 << 32);
        if range.is_empty() {
            return;
        }
        // From the left: what stays of the new range between older-wins neighbours is inserted.
        let mut at = range.start;
        for (start, old) in self.zeros_overlapping(&range) {
            if old.lsn <= lsn {
                self.cut_zero(start, old, &range);
            } else {
                self.put_zero(at..start, lsn);
                at = old.end;
            }
        }
        self.put_zero(at..range.end, lsn);
    }

    /// Takes over all that `other` knows; greatest LSN wins.
    pub fn absorb(&mut self, other: &Self) {
        for entry in &other.points {
            self.insert_point(LocalBlock(u64::from(entry.local)), entry.point());
        }
        for (&start, zero) in &other.zeros {
            self.insert_zero(start..zero.end, zero.lsn);
        }
    }

    /// Drops every zeroed range, the data below them, and the data for which `keep` is false. For a
    /// layer over a base that holds the same blocks: what is dropped is then found there.
    pub fn keep_points(&mut self, mut keep: impl FnMut(Place) -> bool) {
        let zeros = std::mem::take(&mut self.zeros);
        let mut regions = Regions::default();
        self.points.retain(|entry| {
            let local = u64::from(entry.local);
            let zero = zeros
                .range(..=local)
                .next_back()
                .filter(|(_, zero)| local < zero.end);
            let is_visible = zero.is_none_or(|(_, zero)| zero.lsn.0 <= entry.lsn);
            let is_kept = is_visible && keep(entry.point().place);
            if is_kept {
                regions.note(entry.local);
            }
            is_kept
        });
        self.regions = regions;
    }

    /// What is known of `local`; `None` if no uncommitted record touched it.
    #[inline]
    pub fn lookup(&self, local: LocalBlock) -> Option<Hit> {
        let key = key_of(local);
        let entry = self.points.find(hash(key), |e| e.local == key);
        if self.zeros.is_empty() {
            return entry.map(|e| Hit::Data(e.point()));
        }
        match (entry, self.zero_at(local.0)) {
            (Some(entry), Some(lsn)) if entry.lsn < lsn.0 => Some(Hit::Zero(lsn)),
            (Some(entry), _) => Some(Hit::Data(entry.point())),
            (None, zero) => zero.map(Hit::Zero),
        }
    }

    /// No record was inserted.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.zeros.is_empty()
    }

    /// Blocks with data, those since zeroed included.
    pub fn points_len(&self) -> usize {
        self.points.len()
    }

    /// Zeroed ranges held.
    pub fn zeros_len(&self) -> usize {
        self.zeros.len()
    }

    /// Heap memory in bytes (that of the zero map estimated).
    pub fn heap_bytes(&self) -> usize {
        self.points.allocation_size()
            + self.regions.heap_bytes()
            + self.zeros.len() * ZERO_ENTRY_BYTES
    }

    /// The newest version of everything, sorted.
    pub fn winners(&self) -> Winners {
        let mut points: Vec<_> = self
            .points
            .iter()
            .filter(|e| {
                self.zeros.is_empty()
                    || self
                        .zero_at(u64::from(e.local))
                        .is_none_or(|z| z.0 <= e.lsn)
            })
            .map(|e| (LocalBlock(u64::from(e.local)), e.point()))
            .collect();
        points.sort_unstable_by_key(|(local, _)| *local);
        let mut zeros: Vec<Range<u64>> = Vec::with_capacity(self.zeros.len());
        for (&start, zero) in &self.zeros {
            match zeros.last_mut() {
                Some(last) if last.end == start => last.end = zero.end,
                _ => zeros.push(start..zero.end),
            }
        }
        Winners { points, zeros }
    }

    /// The record that zeroed `local`, if any did.
    fn zero_at(&self, local: u64) -> Option<Lsn> {
        let (_, zero) = self.zeros.range(..=local).next_back()?;
        (local < zero.end).then_some(zero.lsn)
    }

    fn zeros_overlapping(&self, range: &Range<u64>) -> Vec<(u64, ZeroedTo)> {
        let before = self.zeros.range(..range.start).next_back();
        before
            .into_iter()
            .filter(|(_, old)| old.end > range.start)
            .chain(self.zeros.range(range.clone()))
            .map(|(&start, &old)| (start, old))
            .collect()
    }

    /// Removes from the zeroed range at `start` what lies inside `range`.
    fn cut_zero(&mut self, start: u64, old: ZeroedTo, range: &Range<u64>) {
        self.zeros.remove(&start);
        self.put_zero(start..range.start, old.lsn);
        self.put_zero(range.end..old.end, old.lsn);
    }

    /// Inserts a zeroed range that overlaps none; ignores an empty one.
    fn put_zero(&mut self, range: Range<u64>, lsn: Lsn) {
        if range.start < range.end {
            let end = range.end;
            self.zeros.insert(range.start, ZeroedTo { end, lsn });
        }
    }
}

#[inline]
fn key_of(local: LocalBlock) -> u32 {
    debug_assert!(local.0 <= u64::from(u32::MAX));
    local.0 as u32
}

#[cfg(test)]
mod tests;

//! The directory of a cache file: which slot's block is where in it, with its CRC. The file is
//! written in segments, one after the other, round and round; what was read from a segment since it
//! was filled lets it live one more round.
//!
//! The directory is in memory only: after a restart the cache starts empty.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use super::{Holdings, SlotKey};
use crate::block::{BlockSize, PAGE_BYTES};
use crate::chunk::SlotStamp;
use crate::object::ChunkKey;

/// Bytes of a segment.
const SEGMENT_BYTES: u64 = 1 << 20;
const SEGMENT_PAGES: u16 = (SEGMENT_BYTES / PAGE_BYTES as u64) as u16;
/// Segments that are let live on one search for the next one, at most.
const SPARED_MAX: u32 = 8;
/// A segment lives on if one in so many of its blocks was read.
const SPARED_SHARE: u32 = 4;

/// Where a block is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDisk {
    /// Its first byte, page-aligned.
    pub file_offset: u64,
    /// What its slot said about it: the file's bytes must match that.
    pub stamp: SlotStamp,
}

/// Room for a block, which is to be written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where to write it.
    pub file_offset: u64,
    segment: u32,
    entry: u16,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    chunk: u32,
    stamp: SlotStamp,
    slot: u16,
    page: u16,
    /// It can be found: it was written and not dropped.
    live: bool,
}

#[derive(Debug, Default)]
struct Segment {
    entries: Vec<Entry>,
    pages: u16,
    /// Reserved and not yet written.
    pending: u32,
    /// Reads since it was filled, or since it was last spared.
    reads: u32,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u32,
    entry: u16,
}

/// Chunks by a short number, as long as an entry names them.
#[derive(Debug, Default)]
struct Chunks {
    numbers: HashMap<ChunkKey, u32>,
    slab: Vec<(Option<ChunkKey>, u32)>,
    free: Vec<u32>,
}

impl Chunks {
    fn take(&mut self, key: &ChunkKey) -> u32 {
        let number = *self.numbers.entry(*key).or_insert_with(|| {
            let number = self.free.pop().unwrap_or(self.slab.len() as u32);
            if number as usize == self.slab.len() {
                self.slab.push((None, 0));
            }
            self.slab[number as usize] = (Some(*key), 0);
            number
        });
        self.slab[number as usize].1 += 1;
        number
    }

    fn give_back(&mut self, number: u32) {
        let (key, users) = &mut self.slab[number as usize];
        *users -= 1;
        if *users == 0
            && let Some(key) = key.take()
        {
            self.numbers.remove(&key);
            self.free.push(number);
        }
    }
}

/// The directory. Bounded: about 32 bytes for each block that fits into the file, and a name for
/// each chunk that has one there.
#[derive(Debug)]
pub struct DiskMap {
    segments: Vec<Segment>,
    segments_max: u32,
    current: u32,
    index: HashTable<Place>,
    chunks: Chunks,
    hasher: DefaultHashBuilder,
    holdings: Holdings,
}

impl DiskMap {
    /// Bytes of memory that the directory needs for each page of the file, about.
    pub const MEMORY_PER_PAGE: u64 = 36;

    /// The directory of an empty file of so many bytes; whole MiB of it are used.
    pub fn new(file_bytes: u64) -> Self {
        Self {
            segments: Vec::new(),
            segments_max: u32::try_from(file_bytes / SEGMENT_BYTES).unwrap_or(u32::MAX),
            current: 0,
            index: HashTable::new(),
            chunks: Chunks::default(),
            hasher: DefaultHashBuilder::default(),
            holdings: Holdings::default(),
        }
    }

    /// What can be found, for other threads.
    pub fn holdings(&self) -> Holdings {
        self.holdings.clone()
    }

    /// Where the slot's block is.
    pub fn find(&mut self, key: &SlotKey) -> Option<OnDisk> {
        let place = self.place_of(key)?;
        let segment = &mut self.segments[place.segment as usize];
        segment.reads = segment.reads.saturating_add(1);
        Some(self.on_disk(place))
    }

    /// Whether the slot's block is there; no read.
    pub fn contains(&self, key: &SlotKey) -> bool {
        self.place_of(key).is_some()
    }

    /// Takes room for a block. `None` if it is there already, or if there is no room for now.
    pub fn reserve(
        &mut self,
        key: &SlotKey,
        block_size: BlockSize,
        stamp: SlotStamp,
    ) -> Option<Reserved> {
        let slot = u16::try_from(key.slot).ok()?;
        let pages = block_size.pages() as u16;
        if self.segments_max == 0 || self.place_of(key).is_some() {
            return None;
        }
        if self.segments.is_empty() {
            self.segments.push(Segment::default());
        }
        if self.segments[self.current as usize].pages + pages > SEGMENT_PAGES {
            self.next_segment()?;
        }
        let chunk = self.chunks.take(&key.chunk);
        let segment = &mut self.segments[self.current as usize];
        let page = segment.pages;
        segment.pages += pages;
        segment.pending += 1;
        segment.entries.push(Entry {
            chunk,
            stamp,
            slot,
            page,
            live: false,
        });
        Some(Reserved {
            file_offset: file_offset(self.current, page),
            segment: self.current,
            entry: segment.entries.len() as u16 - 1,
        })
    }

    /// The block is written, or could not be.
    pub fn written(&mut self, reserved: Reserved, succeeded: bool) {
        let segment = &mut self.segments[reserved.segment as usize];
        segment.pending -= 1;
        let entry = segment.entries[reserved.entry as usize];
        let key = self.chunks.slab[entry.chunk as usize].0;
        let Some(chunk) = key.filter(|_| succeeded) else {
            return;
        };
        let key = SlotKey {
            chunk,
            slot: u32::from(entry.slot),
        };
        if self.place_of(&key).is_some() {
            return;
        }
        let place = Place {
            segment: reserved.segment,
            entry: reserved.entry,
        };
        self.segments[reserved.segment as usize].entries[reserved.entry as usize].live = true;
        let hash = self.hash(entry.chunk, entry.slot);
        let (segments, hasher) = (&self.segments, &self.hasher);
        self.index.insert_unique(hash, place, |place| {
            let entry = &segments[place.segment as usize].entries[place.entry as usize];
            hasher.hash_one((entry.chunk, entry.slot))
        });
        self.holdings.add(&key.chunk, [key.slot]);
    }

    /// Drops a block whose bytes are not what they should be. False if it was no longer at that
    /// place, so that its bytes say nothing.
    pub fn remove(&mut self, key: &SlotKey, at: &OnDisk) -> bool {
        match self.place_of(key) {
            Some(place) if self.on_disk(place) == *at => {
                self.forget(place);
                true
            }
            _ => false,
        }
    }

    /// Blocks that can be found.
    pub fn blocks(&self) -> u64 {
        self.index.len() as u64
    }

    fn hash(&self, chunk: u32, slot: u16) -> u64 {
        self.hasher.hash_one((chunk, slot))
    }

    fn place_of(&self, key: &SlotKey) -> Option<Place> {
        let chunk = *self.chunks.numbers.get(&key.chunk)?;
        let slot = u16::try_from(key.slot).ok()?;
        let is_it = |place: &Place| {
            let entry = &self.segments[place.segment as usize].entries[place.entry as usize];
            entry.chunk == chunk && entry.slot == slot
        };
        self.index.find(self.hash(chunk, slot), is_it).copied()
    }

    fn on_disk(&self, place: Place) -> OnDisk {
        let entry = &self.segments[place.segment as usize].entries[place.entry as usize];
        OnDisk {
            file_offset: file_offset(place.segment, entry.page),
            stamp: entry.stamp,
        }
    }

    /// Makes a block unfindable.
    fn forget(&mut self, place: Place) {
        let entry = &mut self.segments[place.segment as usize].entries[place.entry as usize];
        if !std::mem::take(&mut entry.live) {
            return;
        }
        if let (Some(chunk), _) = self.chunks.slab[entry.chunk as usize] {
            self.holdings.remove(&chunk, [u32::from(entry.slot)]);
        }
        let hash = self.hasher.hash_one((entry.chunk, entry.slot));
        let is_it = |other: &Place| other.segment == place.segment && other.entry == place.entry;
        if let Ok(found) = self.index.find_entry(hash, is_it) {
            found.remove();
        }
    }

    /// Moves on to the next segment that may be filled anew, and empties it.
    fn next_segment(&mut self) -> Option<()> {
        if (self.segments.len() as u32) < self.segments_max {
            self.current = self.segments.len() as u32;
            self.segments.push(Segment::default());
            return Some(());
        }
        let mut spared = 0;
        let mut candidate = self.current;
        loop {
            candidate = (candidate + 1) % self.segments_max;
            let segment = &mut self.segments[candidate as usize];
            let wanted = (segment.entries.len() as u32).div_ceil(SPARED_SHARE).max(1);
            let read = segment.reads >= wanted;
            if segment.pending == 0 && !(read && spared < SPARED_MAX) {
                break;
            }
            // Never more than once round: all may be waiting for their writes.
            spared += 1;
            segment.reads = 0;
            if spared > self.segments_max.max(SPARED_MAX) {
                return None;
            }
        }
        for entry in 0..self.segments[candidate as usize].entries.len() as u16 {
            self.forget(Place {
                segment: candidate,
                entry,
            });
        }
        let emptied = std::mem::take(&mut self.segments[candidate as usize]);
        for entry in emptied.entries {
            self.chunks.give_back(entry.chunk);
        }
        self.current = candidate;
        Some(())
    }
}

fn file_offset(segment: u32, page: u16) -> u64 {
    u64::from(segment) * SEGMENT_BYTES + u64::from(page) * PAGE_BYTES as u64
}

//! Verified blocks in memory, bounded in bytes, in which a scan cannot push out what is used often.
//!
//! S3-FIFO: new blocks enter a small queue; those used again before they reach its end move to the
//! main queue, the others leave and are remembered by name only, so that a block that comes back
//! soon enters the main queue at once. What is read ahead is kept as it came, in a queue of bodies
//! which is never longer than its share even while there is room: a reader in order goes round in
//! the same memory instead of filling (and faulting in) all of it.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};

use super::scan::{Body, Scan};
use super::{Holdings, SlotKey};
use crate::chunk::SlotStamp;

/// Share of the small queue.
const SMALL_PERCENT: u64 = 25;
/// Share of the queue of what was read ahead, and what it never exceeds.
const SCAN_PERCENT: u64 = 25;
const SCAN_BYTES_MAX: u64 = 64 << 20;
/// What an entry costs beside its block: map, queue, slab, allocator.
const ENTRY_BYTES: u64 = 192;
/// Blocks whose memory is kept for the next ones, at most.
const SPARE_MAX: usize = 64;
/// Rounds that a block survives in the main queue without use, at most.
const USES_MAX: u8 = 3;
/// Names remembered of blocks that left, at most as many as entries and never more than this.
const GHOSTS_MAX: usize = 1 << 20;

/// A block found.
#[derive(Debug, PartialEq, Eq)]
pub struct Hit<'a> {
    /// Its bytes.
    pub block: &'a [u8],
    /// What its slot says about it.
    pub stamp: SlotStamp,
}

/// Counts since the start, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RamCounts {
    /// Bytes held, overhead included.
    pub bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Bytes held that were read ahead and not used yet.
    pub ahead_bytes: u64,
    /// Blocks that were read ahead and then used.
    pub ahead_used: u64,
    /// Blocks that were read ahead and left unused.
    pub ahead_wasted: u64,
    /// Blocks that left to make room.
    pub evicted: u64,
}

#[derive(Debug)]
struct Entry {
    key: SlotKey,
    stamp: SlotStamp,
    block: Box<[u8]>,
    uses: u8,
}

impl Entry {
    fn cost(&self) -> u64 {
        cost(self.block.len())
    }
}

fn cost(block_bytes: usize) -> u64 {
    block_bytes as u64 + ENTRY_BYTES
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<u32>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, index: u32, cost: u64) {
        self.entries.push_back(index);
        self.bytes += cost;
    }
}

/// The cache.
#[derive(Debug)]
pub struct RamCache {
    capacity_bytes: u64,
    map: HashMap<SlotKey, u32>,
    slab: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Memory of blocks that left, for those that come.
    spare: Vec<Box<[u8]>>,
    small: Queue,
    main: Queue,
    /// Read ahead, used or not.
    scan: Scan,
    ghosts: VecDeque<u64>,
    ghost_set: HashSet<u64>,
    hasher: DefaultHashBuilder,
    counts: RamCounts,
    holdings: Holdings,
}

impl RamCache {
    /// An empty cache of at most so many bytes; with 0 it keeps nothing.
    pub fn new(capacity_bytes: u64) -> Self {
        let holdings = Holdings::default();
        Self {
            capacity_bytes,
            map: HashMap::new(),
            slab: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            small: Queue::default(),
            main: Queue::default(),
            scan: Scan::new(holdings.clone()),
            ghosts: VecDeque::new(),
            ghost_set: HashSet::new(),
            hasher: DefaultHashBuilder::default(),
            counts: RamCounts::default(),
            holdings,
        }
    }

    /// What is here, for other threads.
    pub fn holdings(&self) -> Holdings {
        self.holdings.clone()
    }

    /// Most bytes that are kept.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Most bytes of blocks that were read ahead and may wait for their use.
    pub fn ahead_bytes_max(&self) -> u64 {
        self.scan_max() / 2
    }

    fn scan_max(&self) -> u64 {
        (self.capacity_bytes / 100 * SCAN_PERCENT).min(SCAN_BYTES_MAX)
    }

    fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes + self.scan.bytes()
    }

    fn small_max(&self) -> u64 {
        self.capacity_bytes / 100 * SMALL_PERCENT
    }

    /// The block of a slot; counts as a use.
    pub fn get(&mut self, key: &SlotKey) -> Option<Hit<'_>> {
        let Some(index) = self.map.get(key) else {
            let (block, stamp) = self.scan.get(key)?;
            return Some(Hit { block, stamp });
        };
        let entry = self.slab[*index as usize].as_mut()?;
        entry.uses = (entry.uses + 1).min(USES_MAX);
        Some(Hit {
            block: &entry.block,
            stamp: entry.stamp,
        })
    }

    /// Whether the slot's block is here; no use.
    pub fn contains(&self, key: &SlotKey) -> bool {
        self.map.contains_key(key) || self.scan.contains(key)
    }

    /// Keeps a verified block that somebody asked for. What is there under the name is replaced: it
    /// was read later.
    pub fn insert(&mut self, key: SlotKey, stamp: SlotStamp, block: &[u8]) {
        if let Some(&index) = self.map.get(&key) {
            if let Some(entry) = self.slab[index as usize].as_mut()
                && entry.block.len() == block.len()
            {
                entry.stamp = stamp;
                entry.block.copy_from_slice(block);
            }
            return;
        }
        self.scan.forget(&key);
        let cost = cost(block.len());
        if cost > self.small_max() {
            return;
        }
        while self.bytes() + cost > self.capacity_bytes {
            self.evict();
        }
        let entry = Entry {
            key,
            stamp,
            block: self.boxed(block),
            uses: 0,
        };
        let came_back = self.ghost_set.remove(&self.hasher.hash_one(key));
        let index = self.place(entry);
        self.map.insert(key, index);
        self.holdings.add(&key.chunk, [key.slot]);
        let queue = match came_back {
            true => &mut self.main,
            false => &mut self.small,
        };
        queue.push(index, cost);
    }

    /// Keeps what was read ahead, its blocks verified. What is here already stays.
    pub fn insert_ahead(&mut self, body: &Body<'_>) {
        let cost = Scan::cost_of(body);
        if cost > self.scan_max() {
            return;
        }
        while self.scan.bytes() + cost > self.scan_max() {
            self.evict_scanned();
        }
        while self.bytes() + cost > self.capacity_bytes {
            self.evict();
        }
        let (map, scan) = (&self.map, &mut self.scan);
        scan.push(body, |key| map.contains_key(key));
    }

    fn boxed(&mut self, block: &[u8]) -> Box<[u8]> {
        match self.spare.pop() {
            Some(mut memory) if memory.len() == block.len() => {
                memory.copy_from_slice(block);
                memory
            }
            _ => block.into(),
        }
    }

    fn place(&mut self, entry: Entry) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.slab[index as usize] = Some(entry);
                index
            }
            None => {
                self.slab.push(Some(entry));
                self.slab.len() as u32 - 1
            }
        }
    }

    /// The oldest body of those read ahead leaves; its blocks go to the main queue if they were
    /// used more than the once for which they were read.
    fn evict_scanned(&mut self) {
        let Some(left) = self.scan.pop() else {
            return;
        };
        self.counts.ahead_wasted += left.unused;
        self.counts.evicted += left.gone;
        for (key, stamp, block) in left.kept {
            // Another body may have it, too.
            self.scan.forget(&key);
            let cost = cost(block.len());
            let entry = Entry {
                key,
                stamp,
                block,
                uses: 0,
            };
            let index = self.place(entry);
            self.map.insert(key, index);
            self.holdings.add(&key.chunk, [key.slot]);
            self.main.push(index, cost);
        }
    }

    /// Makes room: one block leaves, or moves to where it leaves from later.
    fn evict(&mut self) {
        let few = self.small.entries.is_empty() && self.main.entries.is_empty();
        if few || self.scan.bytes() > self.scan_max() / 2 {
            return self.evict_scanned();
        }
        if self.small.bytes > self.small_max() || self.main.entries.is_empty() {
            while let Some(index) = self.small.entries.pop_front() {
                let entry = self.queued(index);
                let cost = entry.cost();
                let used = std::mem::take(&mut entry.uses) > 0;
                self.small.bytes -= cost;
                if !used {
                    self.remember(index);
                    return self.drop_entry(index);
                }
                self.main.push(index, cost);
            }
        }
        while let Some(index) = self.main.entries.pop_front() {
            let entry = self.queued(index);
            if entry.uses == 0 {
                self.main.bytes -= entry.cost();
                return self.drop_entry(index);
            }
            entry.uses -= 1;
            self.main.entries.push_back(index);
        }
    }

    fn queued(&mut self, index: u32) -> &mut Entry {
        self.slab[index as usize]
            .as_mut()
            .expect("queues name entries that are there")
    }

    fn drop_entry(&mut self, index: u32) {
        let entry = self.slab[index as usize]
            .take()
            .expect("queues name entries that are there");
        self.map.remove(&entry.key);
        self.holdings.remove(&entry.key.chunk, [entry.key.slot]);
        self.free.push(index);
        self.counts.evicted += 1;
        if self.spare.len() < SPARE_MAX {
            self.spare.push(entry.block);
        }
    }

    fn remember(&mut self, index: u32) {
        let key = self.queued(index).key;
        let name = self.hasher.hash_one(key);
        if self.ghost_set.insert(name) {
            self.ghosts.push_back(name);
        }
        while self.ghosts.len() > self.map.len().min(GHOSTS_MAX) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.ghost_set.remove(&oldest);
            }
        }
    }

    /// Counts now.
    pub fn counts(&self) -> RamCounts {
        RamCounts {
            bytes: self.bytes(),
            blocks: self.map.len() as u64 + self.scan.blocks(),
            ahead_bytes: self.scan.fresh_bytes(),
            ahead_used: self.scan.used(),
            ..self.counts
        }
    }
}

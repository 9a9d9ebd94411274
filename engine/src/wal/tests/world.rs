//! A log on a simulated disk, and a model of what it must keep.
//!
//! The disk has a volatile cache: a write is durable by its own dsync or by a barrier issued after
//! it completed. Power loss keeps any subset of 512-byte sectors of what is not durable; a killed
//! process leaves its memory region and every completed write.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::arena::Arena;
use crate::block::{BlockSize, LocalBlock, PAGE_BYTES, ShardId};
use crate::identity::{BatchNum, Epoch, Incarnation, Lsn, VolumeId};
use crate::wal::format::{HEAD_SLOTS, LogHead};
use crate::wal::replay::blank_head;
use crate::wal::{
    BarrierMark, BootId, Content, LogConfig, LogIdentity, MarkKind, Place, ReadMedia, RecordHead,
    Recovered, RegionRecord, ShardLog, Shortage, WalId, WalWrite, recover_noted_shard,
    recover_shard,
};

use super::dice::Dice;

const SECTOR_BYTES: usize = 512;

/// A small geometry, so that segments are recycled soon.
pub(super) fn small() -> LogConfig {
    let config = LogConfig {
        arena_bytes: 200 << 10,
        undurable_bytes_max: 160 << 10,
        batch_payload_max: 64 << 10,
        segment_bytes: 160 << 10,
        segments: 8,
        reserve_segments: 3,
    };
    config.validate().unwrap();
    config
}

pub(super) fn identity(incarnation: u64) -> LogIdentity {
    LogIdentity {
        wal: WalId(0xFEED),
        shard: ShardId::new(3).unwrap(),
        incarnation: Incarnation(incarnation),
        boot: BootId([7; 16]),
    }
}

/// A new WAL file.
pub(super) fn blank_file(config: &LogConfig) -> Vec<u8> {
    let mut file = vec![0; config.file_bytes() as usize];
    let first = blank_head(&identity(1), config);
    for head in [
        LogHead {
            sequence: 0,
            ..first
        },
        first,
    ] {
        let at = head.file_offset() as usize;
        head.encode(&mut file[at..at + PAGE_BYTES]);
    }
    file
}

/// The file as if no writer had said where its log ends.
pub(super) fn without_end(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    for slot in HEAD_SLOTS {
        let page = &mut file[slot as usize..slot as usize + PAGE_BYTES];
        if let Some(mut head) = LogHead::decode(page, slot) {
            head.end = None;
            head.encode(page);
        }
    }
    file
}

pub(super) fn new_log(config: LogConfig) -> ShardLog {
    let arena = Arena::anonymous(config.arena_bytes).unwrap();
    let blank = Recovered::blank(&identity(1), &config);
    ShardLog::resume(identity(1), config, arena, &blank).unwrap()
}

/// Bytes of a block: different for every record and block.
pub(super) fn block_bytes(lsn: Lsn, index: u32, out: &mut [u8]) {
    for (word, chunk) in out.chunks_exact_mut(8).enumerate() {
        let value = lsn.0 << 40 | u64::from(index) << 20 | word as u64;
        chunk.copy_from_slice(&value.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    }
}

#[derive(Clone, Debug)]
struct Stored {
    offset: usize,
    data: Vec<u8>,
}

/// A disk with a volatile cache.
pub(super) struct Disk {
    durable: Vec<u8>,
    /// Completed writes that are not durable, in order.
    cached: Vec<Stored>,
}

impl Disk {
    fn store(image: &mut [u8], write: &Stored) {
        image[write.offset..write.offset + write.data.len()].copy_from_slice(&write.data);
    }

    /// Lets any of the sectors of a write through.
    fn tear(image: &mut [u8], write: &Stored, dice: &mut Dice) {
        let mode = dice.roll(4);
        for (index, sector) in write.data.chunks(SECTOR_BYTES).enumerate() {
            let kept = match mode {
                0 => false,
                1 => true,
                _ => dice.roll(2) == 0,
            };
            if kept {
                let at = write.offset + index * SECTOR_BYTES;
                image[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }

    /// What reads see.
    pub(super) fn view(&self) -> Vec<u8> {
        let mut image = self.durable.clone();
        self.cached
            .iter()
            .for_each(|write| Self::store(&mut image, write));
        image
    }
}

/// What was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    volume: VolumeId,
    epoch: Epoch,
    start: u64,
    count: u32,
    kind: Option<MarkKind>,
    block_size: BlockSize,
    crcs: Vec<u32>,
    places: Vec<Place>,
    batch: BatchNum,
}

struct InFlight {
    write: WalWrite,
    data: Vec<u8>,
}

struct Barrier {
    mark: BarrierMark,
    /// Writes of the cache that it makes durable.
    covered: usize,
    /// A later durable write or power loss changed the cache.
    spent: usize,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    Power,
    Kill,
}

pub(super) struct World {
    config: LogConfig,
    pub(super) log: ShardLog,
    pub(super) disk: Disk,
    in_flight: Vec<InFlight>,
    barrier: Option<Barrier>,
    regions: Vec<Vec<u8>>,
    /// What was noted at the last end, and at the one before.
    noted: [Option<Vec<u8>>; 2],
    recovering: VecDeque<RegionRecord>,
    model: BTreeMap<Lsn, Expected>,
    next_lsn: Lsn,
    epoch: Epoch,
    committed: Epoch,
    incarnation: u64,
    dice: Dice,
    /// Recoveries so far.
    pub(super) recoveries: u32,
    /// Of these, those that did not search the file.
    pub(super) unsearched: u32,
    /// Of these, those that believed what was noted.
    pub(super) from_notes: u32,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let config = small();
        Self {
            config,
            log: new_log(config),
            disk: Disk {
                durable: blank_file(&config),
                cached: Vec::new(),
            },
            in_flight: Vec::new(),
            barrier: None,
            regions: Vec::new(),
            noted: [None, None],
            recovering: VecDeque::new(),
            model: BTreeMap::new(),
            next_lsn: Lsn(1),
            epoch: Epoch(1),
            committed: Epoch(0),
            incarnation: 1,
            dice: Dice(seed),
            recoveries: 0,
            unsearched: 0,
            from_notes: 0,
        }
    }

    /// Appends a run of blocks; while recovering, a record of the region instead.
    pub(super) fn append(&mut self, count: u32, block_size: BlockSize) -> Result<(), Shortage> {
        if !self.recovering.is_empty() || !self.regions.is_empty() {
            return self.append_recovered();
        }
        let lsn = self.next_lsn;
        let head = RecordHead {
            volume: VolumeId(1 + lsn.0 % 3),
            epoch: self.epoch,
            lsn,
            start: LocalBlock(lsn.0 * 7 % 50),
            count,
            block_size,
        };
        let (mut crcs, mut places) = (Vec::new(), Vec::new());
        let fill = |index: u32, block: &mut [u8]| {
            block_bytes(lsn, index, block);
            crc32c::crc32c(block)
        };
        let batch = self.log.append_data(&head, fill, |_, place, crc| {
            places.push(place);
            crcs.push(crc);
        })?;
        self.next_lsn = lsn.next();
        let (volume, epoch, start) = (head.volume, head.epoch, head.start.0);
        let kind = None;
        let expected = Expected {
            volume,
            epoch,
            start,
            count,
            kind,
            block_size,
            crcs,
            places,
            batch,
        };
        self.model.insert(lsn, expected);
        Ok(())
    }

    pub(super) fn mark(&mut self, count: u32) -> Result<(), Shortage> {
        if !self.recovering.is_empty() || !self.regions.is_empty() {
            return self.append_recovered();
        }
        let (lsn, epoch) = (self.next_lsn, self.epoch);
        let volume = VolumeId(1 + lsn.0 % 3);
        let range = 5..5 + u64::from(count);
        let batch = self
            .log
            .append_mark(volume, epoch, lsn, range, MarkKind::Trim)?;
        self.next_lsn = lsn.next();
        let expected = Expected {
            volume,
            epoch,
            start: 5,
            count,
            kind: Some(MarkKind::Trim),
            block_size: BlockSize::MIN,
            crcs: Vec::new(),
            places: Vec::new(),
            batch,
        };
        self.model.insert(lsn, expected);
        Ok(())
    }

    fn append_recovered(&mut self) -> Result<(), Shortage> {
        let Some(record) = self.recovering.front() else {
            // All are appended; the old regions go once they are durable.
            self.log.close();
            if self.log.durable_through() >= self.log.last() {
                self.regions.clear();
            }
            return Ok(());
        };
        if record.epoch > self.committed {
            let mut places = Vec::new();
            let batch = self
                .log
                .append_recovered(record, |_, place, _| places.push(place))?;
            let expected = self
                .model
                .get_mut(&record.lsn)
                .expect("checked at recovery");
            (expected.places, expected.batch) = (places, batch);
        }
        self.recovering.pop_front();
        Ok(())
    }

    /// Whether the old regions are no longer needed.
    pub(super) fn is_recovered(&self) -> bool {
        self.recovering.is_empty() && self.regions.is_empty()
    }

    pub(super) fn start_write(&mut self, dsync: bool) -> bool {
        let Some(write) = self.log.start_write(dsync) else {
            return false;
        };
        let data = self.log.arena.bytes(write.arena_offset, write.len).to_vec();
        self.in_flight.push(InFlight { write, data });
        true
    }

    /// Completes one of the writes in flight; with `code`, by an error that leaves any part of it.
    pub(super) fn finish_write(&mut self, which: usize, code: Option<i32>) -> bool {
        if self.in_flight.is_empty() {
            return false;
        }
        let InFlight { write, data } = self.in_flight.swap_remove(which % self.in_flight.len());
        let now = self.log.arena.bytes(write.arena_offset, write.len);
        assert_eq!(now, data, "memory under a write does not change");
        let stored = Stored {
            offset: write.file_offset as usize,
            data,
        };
        match code {
            None if write.dsync => {
                // Only itself: what was written plainly before stays volatile.
                Disk::store(&mut self.disk.durable, &stored);
                self.disk.cached.iter().for_each(|old| {
                    let apart = old.offset + old.data.len() <= stored.offset
                        || stored.offset + stored.data.len() <= old.offset;
                    assert!(apart, "no write over one that may still be lost");
                });
            }
            None => self.disk.cached.push(stored),
            Some(_) => Disk::tear(&mut self.disk.durable, &stored, &mut self.dice),
        }
        self.log.write_finished(&write, code.map_or(Ok(()), Err));
        true
    }

    pub(super) fn start_barrier(&mut self) {
        if self.barrier.is_none() {
            let mark = self.log.barrier_mark();
            self.barrier = Some(Barrier {
                mark,
                covered: self.disk.cached.len(),
                spent: 0,
            });
        }
    }

    pub(super) fn finish_barrier(&mut self, code: Option<i32>) {
        let Some(barrier) = self.barrier.take() else {
            return;
        };
        if code.is_none() {
            for write in self.disk.cached.drain(..barrier.covered - barrier.spent) {
                Disk::store(&mut self.disk.durable, &write);
            }
        } else {
            // A failed flush may have dropped anything (fsyncgate).
            for write in std::mem::take(&mut self.disk.cached) {
                Disk::tear(&mut self.disk.durable, &write, &mut self.dice);
            }
        }
        self.log
            .barrier_finished(barrier.mark, code.map_or(Ok(()), Err));
    }

    /// Commits everything up to the current epoch: every block must be readable for packing.
    pub(super) fn commit(&mut self) {
        self.check_readable();
        self.committed = self.epoch;
        self.epoch = self.epoch.next();
        self.model
            .retain(|_, expected| expected.epoch > self.committed);
        self.release();
    }

    pub(super) fn release(&mut self) {
        let committed = self.committed;
        self.log.release(|_, epoch| epoch <= committed);
    }

    /// Makes everything durable, whatever is in flight.
    pub(super) fn settle(&mut self) {
        for _ in 0..4 {
            self.log.close();
            while self.start_write(false) {}
            while self.finish_write(0, None) {}
            self.finish_barrier(None);
            self.start_barrier();
            self.finish_barrier(None);
        }
        assert_eq!(self.log.durable_through(), self.log.last());
    }

    fn check_readable(&self) {
        let view = self.disk.view();
        let places_map = self.log.places(self.log.last());
        for (lsn, expected) in &self.model {
            let mut block = vec![0; expected.block_size.bytes()];
            for (index, place) in expected.places.iter().enumerate() {
                block_bytes(*lsn, index as u32, &mut block);
                let location = places_map
                    .locate(*place)
                    .expect("an uncommitted block is known");
                match self.log.memory(*place, block.len()) {
                    Some(bytes) => assert!(bytes == block, "{lsn} block {index} in memory"),
                    None => {
                        let at = self.log.file_offset(*place).expect("not released");
                        assert_eq!(at, location.file_offset);
                        let found = &view[at as usize..at as usize + block.len()];
                        assert!(found == block, "{lsn} block {index} in the file");
                    }
                }
            }
        }
    }

    /// Ends the log in order if it is at rest. `written`: its last head gets to the disk; else that
    /// is in flight when the process ends.
    pub(super) fn end(&mut self, written: bool) -> bool {
        let ended = self.log.end();
        while ended && self.start_write(true) {}
        while ended && written && self.finish_write(0, None) {}
        let mut noted = Vec::new();
        if self.log.note_headers(&mut noted) {
            self.noted.swap(0, 1);
            self.noted[0] = Some(noted);
        }
        ended
    }

    /// What the next process finds of the notes: they may be gone, old, cut short or damaged.
    fn notes_found(&mut self) -> Option<Vec<u8>> {
        let which = usize::from(self.dice.roll(6) == 0);
        let mut noted = self.noted[which].clone()?;
        match self.dice.roll(6) {
            0 => return None,
            1 => noted.truncate(self.dice.roll(noted.len() as u64 + 1) as usize),
            2 if !noted.is_empty() => {
                let at = self.dice.roll(noted.len() as u64) as usize;
                noted[at] ^= 1 << self.dice.roll(8);
            }
            _ => {}
        }
        Some(noted)
    }

    /// Ends the process, recovers and compares with the model.
    pub(super) fn crash(&mut self, crash: Crash) {
        let durable = self.log.durable_through();
        let mut image = match crash {
            Crash::Power => {
                self.regions.clear();
                let mut image = self.disk.durable.clone();
                for write in &self.disk.cached {
                    Disk::tear(&mut image, write, &mut self.dice);
                }
                image
            }
            Crash::Kill => {
                let region = self.log.arena.bytes(0, self.config.arena_bytes).to_vec();
                self.regions.push(region);
                self.disk.view()
            }
        };
        for flying in self.in_flight.drain(..) {
            let offset = flying.write.file_offset as usize;
            Disk::tear(
                &mut image,
                &Stored {
                    offset,
                    data: flying.data,
                },
                &mut self.dice,
            );
        }
        // The next process flushes before it reads.
        self.disk = Disk {
            durable: image,
            cached: Vec::new(),
        };
        self.barrier = None;
        self.recover(crash, durable);
    }

    fn recover(&mut self, crash: Crash, durable: BatchNum) {
        self.incarnation += 1;
        self.recoveries += 1;
        let identity = identity(self.incarnation);
        let noted = self.notes_found();
        let noted = noted.as_deref();
        let regions = self.regions.iter().map(|r| r as &dyn ReadMedia);
        let regions: Vec<_> = regions.collect();
        let recovered = match recover_noted_shard(&identity, &self.disk.durable, noted, &regions) {
            Ok(recovered) => recovered,
            Err(damage) => panic!("no bit was damaged, yet: {damage}"),
        };
        self.compare_with_search(&identity, &recovered, &regions);
        self.unsearched += u32::from(!recovered.searched);
        self.from_notes += u32::from(recovered.noted);
        self.compare(crash, durable, &recovered);
        assert!(
            recovered.next_lsn
                >= self
                    .model
                    .last_key_value()
                    .map_or(Lsn(1), |(l, _)| l.next())
        );
        self.next_lsn = recovered.next_lsn;
        self.epoch = Epoch(self.epoch.0.max(recovered.max_epoch.0) + 1);
        let mut arena = Arena::anonymous(self.config.arena_bytes).unwrap();
        // Memory that was used before, but for the control area.
        let ring = self.log.layout.ring_start();
        let used = arena.bytes_mut(ring, self.config.arena_bytes - ring);
        used.fill(self.dice.roll(256) as u8);
        self.log = ShardLog::resume(identity, self.config, arena, &recovered).unwrap();
        self.recovering = recovered.region_only.into();
        self.model
            .retain(|_, expected| expected.epoch > self.committed);
        self.check_file_blocks();
    }

    /// What a head says of a log's end is what a search of the whole file finds.
    fn compare_with_search(
        &self,
        identity: &LogIdentity,
        recovered: &Recovered,
        regions: &[&dyn ReadMedia],
    ) {
        let unended = without_end(&self.disk.durable);
        let searched = recover_shard(identity, &unended, regions).expect("no bit was damaged");
        assert!(searched.searched);
        let batches = |found: &Recovered| -> Vec<_> {
            let batches = found.batches().iter();
            batches
                .map(|b| (b.number, b.file_offset, b.pages))
                .collect()
        };
        assert_eq!(batches(recovered), batches(&searched));
        assert_eq!(recovered.next_batch, searched.next_batch);
        assert_eq!(recovered.region_only, searched.region_only);
        assert_eq!(recovered.memory_survived, searched.memory_survived);
        assert_eq!(recovered.last_lsn, searched.last_lsn);
        // A search finds no more of what was used again since.
        assert!(recovered.next_lsn >= searched.next_lsn);
        assert!(recovered.max_epoch >= searched.max_epoch);
        assert!(recovered.last_generation >= searched.last_generation);
        if !recovered.batches().is_empty() {
            assert_eq!(recovered.chain, searched.chain);
        }
        if recovered.searched {
            assert_eq!(recovered.next_lsn, searched.next_lsn);
            assert_eq!(recovered.torn, searched.torn);
        }
    }

    /// What was recovered is exactly a prefix of what was appended: all of it after a kill, at
    /// least what was durable after power loss.
    fn compare(&mut self, crash: Crash, durable: BatchNum, recovered: &Recovered) {
        let mut got: BTreeMap<Lsn, Expected> = BTreeMap::new();
        for record in recovered.records() {
            let (kind, block_size) = match record.content {
                Content::Mark(kind) => (Some(kind), BlockSize::MIN),
                Content::Data { block_size, .. } => (None, block_size),
            };
            let expected = Expected {
                volume: record.volume,
                epoch: record.epoch,
                start: record.blocks.start,
                count: (record.blocks.end - record.blocks.start) as u32,
                kind,
                block_size,
                crcs: record.points().map(|(_, _, crc)| crc).collect(),
                places: record.points().map(|(_, place, _)| place).collect(),
                batch: record.batch,
            };
            assert!(
                got.insert(record.lsn, expected).is_none(),
                "one record of each LSN"
            );
        }
        let in_file = got.len();
        for record in &recovered.region_only {
            assert_eq!(crash, Crash::Kill);
            let expected = Expected {
                volume: record.volume,
                epoch: record.epoch,
                start: record.blocks.start,
                count: (record.blocks.end - record.blocks.start) as u32,
                kind: record.mark,
                block_size: record.block_size,
                crcs: record.crcs.clone(),
                places: Vec::new(),
                batch: BatchNum(u64::MAX),
            };
            assert!(
                got.insert(record.lsn, expected).is_none(),
                "only what the file lacks"
            );
        }
        assert_eq!(got.len(), in_file + recovered.region_only.len());
        got.retain(|_, record| record.epoch > self.committed);
        let found: Vec<_> = got.keys().copied().collect();
        let appended: Vec<_> = self.model.keys().copied().collect();
        assert!(
            appended.starts_with(&found),
            "found {found:?} of appended {appended:?}"
        );
        for (lsn, wanted) in &self.model {
            let Some(record) = got.get(lsn) else {
                assert_eq!(crash, Crash::Power, "{lsn} was answered and is lost");
                assert!(wanted.batch > durable, "{lsn} was durable and is lost");
                continue;
            };
            let comparable = |e: &Expected| Expected {
                places: Vec::new(),
                batch: BatchNum(0),
                ..e.clone()
            };
            assert_eq!(comparable(record), comparable(wanted), "{lsn}");
        }
        self.model = got;
    }

    fn check_file_blocks(&self) {
        for (lsn, expected) in &self.model {
            let mut block = vec![0; expected.block_size.bytes()];
            for (index, place) in expected.places.iter().enumerate() {
                block_bytes(*lsn, index as u32, &mut block);
                let at = self
                    .log
                    .file_offset(*place)
                    .expect("recovered, not released") as usize;
                assert!(
                    self.disk.durable[at..at + block.len()] == block,
                    "{lsn} {index}"
                );
            }
        }
    }
}

/// A file whose reads are counted.
pub(super) struct Counting(pub(super) Vec<u8>, pub(super) Cell<u64>);

impl ReadMedia for Counting {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.1.set(self.1.get() + 1);
        self.0.read_at(offset, out)
    }
}

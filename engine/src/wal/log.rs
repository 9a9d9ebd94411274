//! The write-ahead log of one shard as a state machine: appends into batches in the arena, and
//! says what is to be written where.
//!
//! ```text
//!  append_* ──► open batch ──close──► queued ──start_write──► writing ──┬─plain──► written ─┐
//!                                        ▲                              └─dsync──► durable  │
//!                                        └────── rewritten once after an error ◄────────────┤
//!                                                             durable ◄── barrier ──────────┘
//! ```
//!
//! A batch counts as durable for answers ([`ShardLog::durable_through`]) only when all before it
//! are, as replay stops at the first gap.

use std::ops::Range;
use std::sync::Arc;

use crate::arena::{Arena, ArenaReader, ArenaSlice};
use crate::block::PAGE_BYTES;
use crate::error::{Error, Result as EngineResult};
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId};

use super::batch::{Batch, Batches, State};
use super::config::{LogConfig, LogIdentity};
use super::ending::Used;
use super::format::{BatchHeader, HEADER_PAGES, TABLE_START, put_u32};
use super::headers::Headers;
use super::pages::PageRing;
use super::place::Place;
use super::places::PlaceMap;
use super::record::{CRC_BYTES, MarkKind, RECORD_BYTES, RecordHead, encode_data, encode_mark};
use super::region::{RegionLayout, live_word};
use super::replay::{Recovered, RegionRecord};
use super::segments::{Reserve, Segments};
use super::write::Writer;

/// Why an append has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The log has failed or ended: no append will be accepted any more.
    Failed,
    /// No free segment: wait for a commit and [`ShardLog::release`].
    Log,
    /// Too much is undurable, or all memory holds undurable batches: write and flush.
    Memory,
}

/// The batch being filled. Without one, `pages_limit` is zero, so that nothing fits.
#[derive(Debug)]
struct Open {
    number: BatchNum,
    /// First byte of the header page in the arena.
    arena_offset: usize,
    /// Offset of the `live` word of its descriptor.
    live_offset: usize,
    /// Payload pages appended.
    pages: u32,
    /// Payload pages that fit.
    pages_limit: u32,
    /// End of the record table within the header page.
    table_end: u32,
    records: u32,
    /// Volume and epoch noted last as users of the segment.
    noted: Option<(VolumeId, Epoch)>,
}

const NONE_OPEN: Open = Open {
    number: BatchNum(0),
    arena_offset: 0,
    live_offset: 0,
    pages: 0,
    pages_limit: 0,
    table_end: PAGE_BYTES as u32,
    records: 0,
    noted: None,
};

/// One shard's log. Single-threaded; owned by the shard's data core.
#[derive(Debug)]
pub struct ShardLog {
    pub(super) identity: LogIdentity,
    pub(super) config: LogConfig,
    pub(super) layout: RegionLayout,
    pub(super) arena: Arena,
    ring: PageRing,
    pub(super) segments: Segments,
    pub(super) batches: Batches,
    /// Of batches that are not in memory.
    pub(super) headers: Headers,
    open: Open,
    /// First batch of this incarnation.
    pub(super) first: BatchNum,
    /// Content CRC of the last closed batch.
    pub(super) chain: u32,
    pub(super) last_lsn: Lsn,
    /// Greatest numbers in use, by void batches too.
    pub(super) used: Used,
    pub(super) durable_through: BatchNum,
    /// Pages of closed batches above `durable_through`.
    pub(super) undurable_pages: usize,
    pub(super) writer: Writer,
}

impl ShardLog {
    /// Goes on after a replay, in a fresh segment and with a new `arena` whose control area
    /// is zeroed. The first thing
    /// that [`ShardLog::start_write`] hands out is a log head.
    ///
    /// # Errors
    /// `Invalid` when `config` does not fit itself, the arena or the replayed file.
    pub fn resume(
        identity: LogIdentity,
        config: LogConfig,
        mut arena: Arena,
        recovered: &Recovered,
    ) -> EngineResult<Self> {
        config.validate()?;
        if arena.bytes_len() < config.arena_bytes {
            return Err(Error::invalid("the arena is smaller than configured"));
        }
        recovered.check_geometry(&config)?;
        let layout = RegionLayout::new(config.arena_bytes, config.undurable_bytes_max);
        layout.format(&mut arena, &identity);
        let before = BatchNum(recovered.next_batch.0 - 1);
        RegionLayout::note_start(&mut arena, before);
        let mut segments = Segments::new(&config, recovered.last_generation);
        let mut batches = Batches::new(recovered.first_batch());
        let mut headers = Headers::new(&config);
        for batch in recovered.batches() {
            let uses = batch.records().map(|record| (record.volume, record.epoch));
            segments.adopt(batch.number, batch.file_offset, uses);
            batches.push_durable(batch.file_offset, batch.pages);
            headers.keep(batch.header, Arc::clone(&batch.table));
        }
        assert_eq!(
            batches.next(),
            recovered.next_batch,
            "replayed batches have no gaps"
        );
        Ok(Self {
            ring: PageRing::new(layout.ring_pages()),
            writer: Writer::new(&recovered.head, recovered.next_batch),
            open: NONE_OPEN,
            first: recovered.next_batch,
            chain: recovered.chain,
            last_lsn: recovered.last_lsn,
            used: Used::by(recovered),
            durable_through: before,
            undurable_pages: 0,
            identity,
            config,
            layout,
            arena,
            segments,
            batches,
            headers,
        })
    }

    /// Appends one run of blocks. `fill(i, block)` writes the i-th block's bytes, all of them, and
    /// returns their CRC32C; `placed(i, place, crc)` is told where they are. All or nothing.
    /// Returns the batch that must be durable for the record to be.
    ///
    /// # Panics
    /// When the run is empty or exceeds [`LogConfig::batch_payload_max`] or
    /// [`ShardLog::blocks_max`].
    ///
    /// # Errors
    /// What has to be waited for.
    #[inline]
    pub fn append_data(
        &mut self,
        head: &RecordHead,
        fill: impl FnMut(u32, &mut [u8]) -> u32,
        placed: impl FnMut(u32, Place, u32),
    ) -> Result<BatchNum, Shortage> {
        self.append_blocks(head, Reserve::Keep, fill, placed)
    }

    /// Appends a record of a killed process's region again, with its LSN and epoch; may take all of
    /// the reserve. Records are appended in the order in which recovery gives them.
    ///
    /// # Errors
    /// What has to be waited for.
    pub fn append_recovered(
        &mut self,
        record: &RegionRecord,
        placed: impl FnMut(u32, Place, u32),
    ) -> Result<BatchNum, Shortage> {
        if let Some(kind) = record.mark {
            let blocks = record.blocks.clone();
            let stamps = (record.volume, record.epoch, record.lsn);
            return self.append_range(stamps, blocks, kind, Reserve::Recovery);
        }
        let fill = |index: u32, block: &mut [u8]| {
            let start = index as usize * block.len();
            block.copy_from_slice(&record.payload[start..start + block.len()]);
            record.crcs[index as usize]
        };
        self.append_blocks(&record.head(), Reserve::Recovery, fill, placed)
    }

    #[inline]
    fn append_blocks(
        &mut self,
        head: &RecordHead,
        reserve: Reserve,
        mut fill: impl FnMut(u32, &mut [u8]) -> u32,
        mut placed: impl FnMut(u32, Place, u32),
    ) -> Result<BatchNum, Shortage> {
        let count = head.count as usize;
        let block_bytes = head.block_size.bytes();
        let pages = count * head.block_size.pages();
        let table_bytes = RECORD_BYTES + count * CRC_BYTES;
        debug_assert!(count > 0, "a record has blocks");
        if !self.fits(pages, table_bytes) {
            self.make_room(pages, table_bytes, reserve)?;
        }
        let open = &mut self.open;
        let batch = open.number;
        let first_page = HEADER_PAGES + open.pages;
        let mut block_at = open.arena_offset + first_page as usize * PAGE_BYTES;
        let record_at = open.arena_offset + open.table_end as usize;
        let mut page = first_page as u16;
        for index in 0..head.count {
            let crc = fill(index, self.arena.bytes_mut(block_at, block_bytes));
            let crc_at = record_at + RECORD_BYTES + index as usize * CRC_BYTES;
            put_u32(self.arena.bytes_mut(crc_at, CRC_BYTES), 0, crc);
            placed(index, Place { batch, page }, crc);
            block_at += block_bytes;
            page += head.block_size.pages() as u16;
        }
        encode_data(head, self.arena.bytes_mut(record_at, RECORD_BYTES));
        self.complete(
            pages as u32,
            table_bytes as u32,
            (head.volume, head.epoch, head.lsn),
        );
        Ok(batch)
    }

    /// Appends a record without payload that makes the shard-local `blocks` read as zeros; may take
    /// a segment of the reserve.
    ///
    /// # Panics
    /// When the range is empty or has 2^32 blocks or more.
    ///
    /// # Errors
    /// What has to be waited for.
    pub fn append_mark(
        &mut self,
        volume: VolumeId,
        epoch: Epoch,
        lsn: Lsn,
        blocks: Range<u64>,
        kind: MarkKind,
    ) -> Result<BatchNum, Shortage> {
        self.append_range((volume, epoch, lsn), blocks, kind, Reserve::Marks)
    }

    fn append_range(
        &mut self,
        (volume, epoch, lsn): (VolumeId, Epoch, Lsn),
        blocks: Range<u64>,
        kind: MarkKind,
        reserve: Reserve,
    ) -> Result<BatchNum, Shortage> {
        let count = u32::try_from(blocks.end - blocks.start).expect("fewer than 2^32 blocks");
        assert!(count > 0, "a mark has blocks");
        if self.open.table_end as usize + RECORD_BYTES > PAGE_BYTES {
            self.make_room(0, RECORD_BYTES, reserve)?;
        }
        let record_at = self.open.arena_offset + self.open.table_end as usize;
        let out = self.arena.bytes_mut(record_at, RECORD_BYTES);
        encode_mark(volume, epoch, lsn, (blocks.start, count), kind, out);
        self.complete(0, RECORD_BYTES as u32, (volume, epoch, lsn));
        Ok(self.open.number)
    }

    #[inline]
    fn fits(&self, pages: usize, table_bytes: usize) -> bool {
        self.open.pages as usize + pages <= self.open.pages_limit as usize
            && self.open.table_end as usize + table_bytes <= PAGE_BYTES
    }

    /// Makes the record just written part of the batch: `live` is stored last.
    #[inline]
    fn complete(&mut self, pages: u32, table: u32, (volume, epoch, lsn): (VolumeId, Epoch, Lsn)) {
        assert!(
            lsn > self.last_lsn,
            "records are appended in the order of their LSN"
        );
        self.last_lsn = lsn;
        if self.open.noted != Some((volume, epoch)) {
            self.open.noted = Some((volume, epoch));
            self.segments.note_use(volume, epoch);
            self.used.note_epoch(epoch);
        }
        let open = &mut self.open;
        open.pages += pages;
        open.table_end += table;
        open.records += 1;
        self.arena
            .store_word(open.live_offset, live_word(open.records, open.pages));
    }

    /// Closes the open batch and opens one with room for `pages` and `table_bytes`.
    #[cold]
    fn make_room(
        &mut self,
        pages: usize,
        table_bytes: usize,
        reserve: Reserve,
    ) -> Result<(), Shortage> {
        assert!(
            pages * PAGE_BYTES <= self.config.batch_payload_max
                && TABLE_START + table_bytes <= PAGE_BYTES,
            "a record fits into an empty batch"
        );
        self.close();
        if self.writer.failed().is_some() || self.writer.has_ended() {
            return Err(Shortage::Failed);
        }
        let need = HEADER_PAGES + pages as u32;
        // A batch of marks in the reserve gets no room for data that follows.
        let marks_only = reserve == Reserve::Marks && self.segments.only_reserve_left();
        let want = if marks_only {
            need
        } else {
            self.batch_pages_max()
        };
        let number = self.batches.next();
        let undurable = number.0 - self.durable_through.0;
        let undurable_pages_max = self.config.undurable_bytes_max / PAGE_BYTES;
        let room = undurable_pages_max.saturating_sub(self.undurable_pages) as u32;
        if room < need || undurable > u64::from(self.layout.descriptors()) {
            return Err(Shortage::Memory);
        }
        let want = want.min(room);
        self.evict(self.ring.wanted(need, want));
        let run = self.ring.plan(need, want).ok_or(Shortage::Memory)?;
        let file = self
            .segments
            .plan(number, (need, run.pages), reserve)
            .ok_or(Shortage::Log)?;
        let pages = run.pages.min(file.pages);
        let arena_offset = self.layout.ring_start() + self.ring.page(run.position) * PAGE_BYTES;
        self.ring.take(run, pages);
        self.segments.take(number, file, pages);
        self.batches.push(Batch {
            state: State::Open,
            position: run.position,
            arena_offset,
            file_offset: file.file_offset,
            pages,
        });
        self.open = Open {
            number,
            arena_offset,
            live_offset: self
                .layout
                .describe(&mut self.arena, number, arena_offset, pages),
            pages: 0,
            pages_limit: pages - HEADER_PAGES,
            table_end: TABLE_START as u32,
            records: 0,
            noted: None,
        };
        Ok(())
    }

    fn batch_pages_max(&self) -> u32 {
        (self.config.batch_bytes_max() / PAGE_BYTES) as u32
    }

    /// Evicts the oldest durable batches from memory until `pages` are free, as far as it goes.
    fn evict(&mut self, pages: u64) {
        let mut free_before = self.batches.resident_from(self.ring.head());
        let enough = |ring: &PageRing, before: u64| ring.has_free_after(before, pages);
        while !enough(&self.ring, free_before)
            && self.batches.evicted_below() <= self.durable_through
        {
            self.keep_header(self.batches.evicted_below());
            self.batches.evict_oldest();
            free_before = self.batches.resident_from(self.ring.head());
        }
        if free_before > self.ring.tail() && self.arena.evict_below(self.batches.evicted_below()) {
            self.ring.free_before(free_before);
        }
    }

    /// Completes the open batch and queues it for writing; `None` when there is none.
    pub fn close(&mut self) -> Option<BatchNum> {
        if !self.has_open() {
            return None;
        }
        let open = std::mem::replace(&mut self.open, NONE_OPEN);
        let pages = HEADER_PAGES + open.pages;
        let table_bytes = open.table_end as usize - TABLE_START;
        let batch = self.batches.get_mut(open.number);
        let unused = batch.pages - pages;
        batch.state = State::Queued;
        batch.pages = pages;
        let file_offset = batch.file_offset;
        self.ring.give_back(unused);
        self.segments.give_back(unused);
        self.undurable_pages += pages as usize;
        let page = self.arena.bytes_mut(open.arena_offset, PAGE_BYTES);
        page[open.table_end as usize..].fill(0);
        let table_crc = crc32c::crc32c(&page[TABLE_START..open.table_end as usize]);
        let mut header = BatchHeader {
            shard: self.identity.shard,
            wal: self.identity.wal,
            incarnation: self.identity.incarnation,
            first: self.first,
            number: open.number,
            generation: self.segments.generation_at(file_offset),
            file_offset,
            durable_through: self.durable_through,
            released_before: self.released_before(),
            payload_pages: open.pages,
            records: open.records,
            table_bytes: table_bytes as u32,
            table_crc,
            previous_crc: self.chain,
            content_crc: 0,
        };
        header.content_crc = header.compute_content_crc();
        header.encode(self.arena.bytes_mut(open.arena_offset, PAGE_BYTES));
        self.chain = header.content_crc;
        Some(open.number)
    }

    /// Whether a batch is being filled.
    #[inline]
    pub fn has_open(&self) -> bool {
        self.open.number.0 != 0
    }

    /// Bytes of the open batch so far, header included; 0 without one.
    #[inline]
    pub fn open_bytes(&self) -> usize {
        if self.has_open() {
            (HEADER_PAGES + self.open.pages) as usize * PAGE_BYTES
        } else {
            0
        }
    }

    /// The last batch with content, the open one included.
    #[inline]
    pub fn last(&self) -> BatchNum {
        BatchNum(self.batches.next().0 - 1)
    }

    /// The greatest batch up to which all are durable: what FLUSH and FUA wait for.
    #[inline]
    pub fn durable_through(&self) -> BatchNum {
        self.durable_through
    }

    /// Bytes of memory that hold undurable batches.
    #[inline]
    pub fn undurable_bytes(&self) -> usize {
        self.undurable_pages * PAGE_BYTES + self.open_bytes()
    }

    /// Bytes of batches that are written and that a barrier would make durable.
    pub fn written_undurable_bytes(&self) -> usize {
        let written = self.written_through();
        self.batches
            .from(self.durable_through.next())
            .take_while(|(number, _)| *number <= written)
            .map(|(_, batch)| batch.pages as usize * PAGE_BYTES)
            .sum()
    }

    /// Most blocks of one run of `block_bytes` each.
    pub fn blocks_max(&self, block_bytes: usize) -> usize {
        let by_table = (PAGE_BYTES - TABLE_START - RECORD_BYTES) / CRC_BYTES;
        (self.config.batch_payload_max / block_bytes).min(by_table)
    }

    /// The bytes of the block at `place`, if they are still in memory.
    #[inline]
    pub fn memory(&self, place: Place, block_bytes: usize) -> Option<&[u8]> {
        let offset = self.batches.arena_offset(place)?;
        Some(self.arena.bytes(offset, block_bytes))
    }

    /// Where the block at `place` lies in the WAL file; `None` once its segment is released. Holds
    /// for batches that are no longer in memory; an error may still move the others.
    pub fn file_offset(&self, place: Place) -> Option<u64> {
        if place.batch < self.released_before() {
            return None;
        }
        let batch = self.batches.find(place.batch)?;
        Some(batch.file_offset + u64::from(place.page) * PAGE_BYTES as u64)
    }

    /// Where all batches up to `up_to` are, in memory and in the file. A block read from the file
    /// must be checked against its CRC: an error may have moved a batch since.
    pub fn places(&self, up_to: BatchNum) -> Arc<PlaceMap> {
        let first = self.released_before().max(self.batches.first());
        let entries = self
            .batches
            .from(first)
            .take_while(|(number, _)| *number <= up_to);
        let evicted = self.batches.evicted_below();
        Arc::new(PlaceMap::new(
            first,
            entries.map(|(number, batch)| {
                (
                    (number >= evicted).then_some(batch.arena_offset),
                    batch.file_offset,
                )
            }),
        ))
    }

    /// A handle for copying blocks out of memory from another thread.
    pub fn reader(&self) -> ArenaReader {
        self.arena.reader()
    }

    /// The memory of a write handed out by [`ShardLog::start_write`].
    pub fn io_slice(&self, write: &super::WalWrite) -> ArenaSlice {
        self.arena.io_slice(write.arena_offset, write.len)
    }

    /// Batches below this number are released.
    pub fn released_before(&self) -> BatchNum {
        self.segments.released_before(self.batches.next())
    }

    /// Bytes of the file's segments.
    pub fn total_bytes(&self) -> u64 {
        self.segments.count() as u64 * self.config.segment_bytes
    }

    /// Bytes of segments that are not free.
    pub fn used_bytes(&self) -> u64 {
        (self.segments.count() - self.segments.free()) as u64 * self.config.segment_bytes
    }

    /// Sizes, for status, metrics and deciding when to cut.
    pub fn stats(&self) -> LogStats {
        LogStats {
            wal_bytes: self.total_bytes(),
            wal_used_bytes: self.used_bytes(),
            free_segments: self.segments.free() as u32,
            reserve_segments: self.config.reserve_segments,
            arena_bytes: self.config.arena_bytes,
            resident_bytes: self.ring.used() as usize * PAGE_BYTES,
            undurable_bytes: self.undurable_bytes(),
            batches: self.batches.next().0 - self.batches.first().0,
        }
    }

    /// The bytes of a write that was started, for a driver without a ring.
    pub fn write_bytes(&self, write: &super::WalWrite) -> &[u8] {
        self.arena.bytes(write.arena_offset, write.len)
    }

    /// The sizes with which it was set up.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Whose log it is.
    pub fn identity(&self) -> &LogIdentity {
        &self.identity
    }
}

/// Sizes of a log at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes of all segments.
    pub wal_bytes: u64,
    /// Bytes of segments that are not free.
    pub wal_used_bytes: u64,
    /// Free segments, reserve included.
    pub free_segments: u32,
    /// Free segments that data appends leave alone.
    pub reserve_segments: u32,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes of batches in memory.
    pub resident_bytes: usize,
    /// Bytes of batches that are not durable.
    pub undurable_bytes: usize,
    /// Batches known.
    pub batches: u64,
}

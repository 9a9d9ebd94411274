//! Bytes of the WAL file: log heads and batch headers. Tables: `docs/internals/wal.md`.
//!
//! All numbers are little endian. Every structure carries a magic, a version, the identity of its
//! WAL and shard, and a CRC32C, so that a page of anything else is not mistaken for it.

use crate::block::{PAGE_BYTES, ShardId};
use crate::identity::{BatchNum, Epoch, Incarnation, Lsn};

use super::config::WalId;

/// Bytes before the first segment; holds the two log head slots.
pub const HEAD_AREA_BYTES: u64 = 64 << 10;
/// File offsets of the two log head slots, written in turn (`sequence % 2`).
pub const HEAD_SLOTS: [u64; 2] = [0, 32 << 10];
/// Bytes of the fixed part of a log head and of a batch header.
pub const FIXED_BYTES: usize = 128;
/// First byte of a batch's record table within its header page.
pub const TABLE_START: usize = FIXED_BYTES;
/// Header pages of a batch in this version.
pub const HEADER_PAGES: u32 = 1;

/// No segment is larger, whatever a log head says.
const SEGMENT_BYTES_END: u64 = 1 << 32;

/// Version of the format of batches and log heads.
pub const VERSION: u16 = 1;
/// First bytes of a batch header.
pub const BATCH_MAGIC: [u8; 8] = *b"TAIPWALB";
/// First bytes of a log head.
pub const HEAD_MAGIC: [u8; 8] = *b"TAIPWALH";

const MAGIC: usize = 0;
const VERSION_AT: usize = 8;
const SHARD: usize = 10;
const HEADER_PAGES_AT: usize = 11;
const PAYLOAD_PAGES: usize = 12;
const WAL: usize = 16;
const INCARNATION: usize = 24;
const FIRST: usize = 32;
const NUMBER: usize = 40;
const GENERATION: usize = 48;
const FILE_OFFSET: usize = 56;
const DURABLE_THROUGH: usize = 64;
const RELEASED_BEFORE: usize = 72;
const RECORDS: usize = 80;
const TABLE_BYTES: usize = 84;
const TABLE_CRC: usize = 88;
const PREVIOUS_CRC: usize = 92;
const CONTENT_CRC: usize = 96;
const FIXED_CRC: usize = 124;

// A log head shares the places of what it has in common with a batch header.
const HEAD_SEGMENTS: usize = 12;
const HEAD_SEQUENCE: usize = 40;
const HEAD_SEGMENT_BYTES: usize = 48;
const HEAD_FILE_OFFSET: usize = 56;
const HEAD_NEXT_LSN: usize = 80;
const HEAD_LAST_LSN: usize = 88;
const HEAD_MAX_EPOCH: usize = 96;
const HEAD_GENERATION: usize = 104;
const HEAD_CHAIN: usize = 112;
const HEAD_ENDED: usize = 116;

/// In the place of [`HEAD_ENDED`] when the log ended in order.
const ENDED: u32 = 1;

const _: () = assert!(CONTENT_CRC + 4 <= FIXED_CRC && FIXED_CRC + 4 == FIXED_BYTES);
const _: () = assert!(HEAD_ENDED + 4 <= FIXED_CRC);
const _: () = assert!(HEAD_SLOTS[1] + PAGE_BYTES as u64 <= HEAD_AREA_BYTES);

/// Fixed part of a batch's header page. The record table follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Shard whose log this is.
    pub shard: ShardId,
    /// The WAL.
    pub wal: WalId,
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// First batch of that incarnation: older incarnations' batches from here on are void.
    pub first: BatchNum,
    /// The batch.
    pub number: BatchNum,
    /// Use of the segment; grows with every segment taken, so a rewritten copy has the greater.
    pub generation: u64,
    /// Where this batch starts in the file: a copied page is not believed elsewhere.
    pub file_offset: u64,
    /// All batches up to here were durable when this one was closed.
    pub durable_through: BatchNum,
    /// Batches below were committed; their space may have been reused.
    pub released_before: BatchNum,
    /// 4 KiB pages that follow the header page.
    pub payload_pages: u32,
    /// Records in the table.
    pub records: u32,
    /// Bytes of the table.
    pub table_bytes: u32,
    /// CRC32C of the table.
    pub table_crc: u32,
    /// [`BatchHeader::content_crc`] of the batch before.
    pub previous_crc: u32,
    /// CRC32C of what does not depend on the position; links the chain.
    pub content_crc: u32,
}

impl BatchHeader {
    /// CRC32C over everything that stays the same when the batch is written elsewhere. The table
    /// holds the CRCs of the blocks, so it covers them too.
    pub fn compute_content_crc(&self) -> u32 {
        let mut bytes = [0u8; 40];
        put_u64(&mut bytes, 0, self.wal.0);
        put_u64(&mut bytes, 8, self.incarnation.0);
        put_u64(&mut bytes, 16, self.number.0);
        put_u32(&mut bytes, 24, self.payload_pages);
        put_u32(&mut bytes, 28, self.records);
        put_u32(&mut bytes, 32, self.table_crc);
        put_u32(&mut bytes, 36, self.previous_crc);
        crc32c::crc32c(&bytes)
    }

    /// Writes the fixed part; `out` is its [`FIXED_BYTES`].
    pub fn encode(&self, out: &mut [u8]) {
        debug_assert_eq!(self.content_crc, self.compute_content_crc());
        let out = &mut out[..FIXED_BYTES];
        out.fill(0);
        out[MAGIC..MAGIC + 8].copy_from_slice(&BATCH_MAGIC);
        put_u16(out, VERSION_AT, VERSION);
        out[SHARD] = self.shard.index() as u8;
        out[HEADER_PAGES_AT] = HEADER_PAGES as u8;
        put_u32(out, PAYLOAD_PAGES, self.payload_pages);
        put_u64(out, WAL, self.wal.0);
        put_u64(out, INCARNATION, self.incarnation.0);
        put_u64(out, FIRST, self.first.0);
        put_u64(out, NUMBER, self.number.0);
        put_u64(out, GENERATION, self.generation);
        put_u64(out, FILE_OFFSET, self.file_offset);
        put_u64(out, DURABLE_THROUGH, self.durable_through.0);
        put_u64(out, RELEASED_BEFORE, self.released_before.0);
        put_u32(out, RECORDS, self.records);
        put_u32(out, TABLE_BYTES, self.table_bytes);
        put_u32(out, TABLE_CRC, self.table_crc);
        put_u32(out, PREVIOUS_CRC, self.previous_crc);
        put_u32(out, CONTENT_CRC, self.content_crc);
        seal(out);
    }

    /// Reads the fixed part of a header page. `None` unless magic, version and CRC are right and
    /// the numbers are possible; where it lies and whose it is, the caller compares.
    pub fn decode(page: &[u8]) -> Option<Self> {
        let fixed = opened(page, &BATCH_MAGIC)?;
        let header = Self::fields(fixed)?;
        let possible = u32::from(fixed[HEADER_PAGES_AT]) == HEADER_PAGES
            && header.number.0 > 0
            && header.number.0 < u64::MAX
            && header.generation < u64::MAX
            && header.first <= header.number
            && header.durable_through < header.number
            && header.released_before <= header.number
            && header.released_before.0 <= header.durable_through.0 + 1
            && header.payload_pages < u32::from(u16::MAX)
            && header.table_bytes as usize <= PAGE_BYTES - TABLE_START
            && header.content_crc == header.compute_content_crc();
        possible.then_some(header)
    }

    /// The fields as they are.
    pub(super) fn fields(fixed: &[u8]) -> Option<Self> {
        Some(Self {
            shard: ShardId::new(fixed[SHARD])?,
            wal: WalId(get_u64(fixed, WAL)),
            incarnation: Incarnation(get_u64(fixed, INCARNATION)),
            first: BatchNum(get_u64(fixed, FIRST)),
            number: BatchNum(get_u64(fixed, NUMBER)),
            generation: get_u64(fixed, GENERATION),
            file_offset: get_u64(fixed, FILE_OFFSET),
            durable_through: BatchNum(get_u64(fixed, DURABLE_THROUGH)),
            released_before: BatchNum(get_u64(fixed, RELEASED_BEFORE)),
            payload_pages: get_u32(fixed, PAYLOAD_PAGES),
            records: get_u32(fixed, RECORDS),
            table_bytes: get_u32(fixed, TABLE_BYTES),
            table_crc: get_u32(fixed, TABLE_CRC),
            previous_crc: get_u32(fixed, PREVIOUS_CRC),
            content_crc: get_u32(fixed, CONTENT_CRC),
        })
    }

    /// Bytes of header page and payload.
    pub fn batch_bytes(&self) -> u64 {
        u64::from(HEADER_PAGES + self.payload_pages) * PAGE_BYTES as u64
    }

    /// The record table within the header page; `None` when its CRC is wrong.
    pub fn table<'a>(&self, page: &'a [u8]) -> Option<&'a [u8]> {
        let table = page.get(TABLE_START..TABLE_START + self.table_bytes as usize)?;
        (crc32c::crc32c(table) == self.table_crc).then_some(table)
    }
}

/// The log's own record: written at every start and before segments are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Shard whose log this is.
    pub shard: ShardId,
    /// The WAL.
    pub wal: WalId,
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// First batch of that incarnation.
    pub first: BatchNum,
    /// Grows with every head; the slot is `sequence % 2`.
    pub sequence: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments of the file.
    pub segments: u32,
    /// All batches up to here were durable.
    pub durable_through: BatchNum,
    /// Batches below were committed; their space may have been reused.
    pub released_before: BatchNum,
    /// Set when the writer ended in order: it wrote nothing behind `durable_through`.
    pub end: Option<LogEnd>,
}

/// What a replay of the whole file would find of a log that ended in order, besides the batches
/// that are not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Greater than every LSN ever used, by void batches too.
    pub next_lsn: Lsn,
    /// The last record's.
    pub last_lsn: Lsn,
    /// Greatest epoch ever stamped, in void batches too.
    pub max_epoch: Epoch,
    /// Greatest segment generation.
    pub last_generation: u64,
    /// Content CRC of the last batch.
    pub chain: u32,
}

impl LogEnd {
    fn encode(&self, out: &mut [u8]) {
        put_u64(out, HEAD_NEXT_LSN, self.next_lsn.0);
        put_u64(out, HEAD_LAST_LSN, self.last_lsn.0);
        put_u64(out, HEAD_MAX_EPOCH, self.max_epoch.0);
        put_u64(out, HEAD_GENERATION, self.last_generation);
        put_u32(out, HEAD_CHAIN, self.chain);
        put_u32(out, HEAD_ENDED, ENDED);
    }

    /// `None` when the log did not end in order, or when no log ends like that.
    fn decode(fixed: &[u8]) -> Option<Self> {
        let end = Self {
            next_lsn: Lsn(get_u64(fixed, HEAD_NEXT_LSN)),
            last_lsn: Lsn(get_u64(fixed, HEAD_LAST_LSN)),
            max_epoch: Epoch(get_u64(fixed, HEAD_MAX_EPOCH)),
            last_generation: get_u64(fixed, HEAD_GENERATION),
            chain: get_u32(fixed, HEAD_CHAIN),
        };
        let possible = get_u32(fixed, HEAD_ENDED) == ENDED
            && end.last_lsn < end.next_lsn
            && end.next_lsn.0 < u64::MAX
            && end.max_epoch.0 < u64::MAX
            && end.last_generation < u64::MAX;
        possible.then_some(end)
    }
}

impl LogHead {
    /// Where this head is written.
    pub fn file_offset(&self) -> u64 {
        HEAD_SLOTS[(self.sequence % 2) as usize]
    }

    /// Writes the head; `page` is one page.
    pub fn encode(&self, page: &mut [u8]) {
        page.fill(0);
        let out = &mut page[..FIXED_BYTES];
        out[MAGIC..MAGIC + 8].copy_from_slice(&HEAD_MAGIC);
        put_u16(out, VERSION_AT, VERSION);
        out[SHARD] = self.shard.index() as u8;
        put_u32(out, HEAD_SEGMENTS, self.segments);
        put_u64(out, WAL, self.wal.0);
        put_u64(out, INCARNATION, self.incarnation.0);
        put_u64(out, FIRST, self.first.0);
        put_u64(out, HEAD_SEQUENCE, self.sequence);
        put_u64(out, HEAD_SEGMENT_BYTES, self.segment_bytes);
        put_u64(out, HEAD_FILE_OFFSET, self.file_offset());
        put_u64(out, DURABLE_THROUGH, self.durable_through.0);
        put_u64(out, RELEASED_BEFORE, self.released_before.0);
        if let Some(end) = &self.end {
            end.encode(out);
        }
        seal(out);
    }

    /// Reads a head slot's page at `file_offset`. `None` unless it is a whole head of this slot.
    pub fn decode(page: &[u8], file_offset: u64) -> Option<Self> {
        let fixed = opened(page, &HEAD_MAGIC)?;
        let head = Self {
            shard: ShardId::new(fixed[SHARD])?,
            wal: WalId(get_u64(fixed, WAL)),
            incarnation: Incarnation(get_u64(fixed, INCARNATION)),
            first: BatchNum(get_u64(fixed, FIRST)),
            sequence: get_u64(fixed, HEAD_SEQUENCE),
            segment_bytes: get_u64(fixed, HEAD_SEGMENT_BYTES),
            segments: get_u32(fixed, HEAD_SEGMENTS),
            durable_through: BatchNum(get_u64(fixed, DURABLE_THROUGH)),
            released_before: BatchNum(get_u64(fixed, RELEASED_BEFORE)),
            end: LogEnd::decode(fixed),
        };
        let possible = head.file_offset() == file_offset
            && get_u64(fixed, HEAD_FILE_OFFSET) == file_offset
            && head.first.0 > 0
            && head.durable_through.0 < u64::MAX - 1
            && head.released_before.0 <= head.durable_through.0 + 1
            && head.first.0 <= head.durable_through.0 + 1
            && head.sequence < u64::MAX
            && is_possible_geometry(head.segments, head.segment_bytes);
        possible.then_some(head)
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        HEAD_AREA_BYTES + u64::from(self.segments) * self.segment_bytes
    }

    /// The segment in which a page of the file lies, if it is one of a segment.
    pub(super) fn segment_of(&self, file_offset: u64) -> Option<u32> {
        let behind = file_offset.checked_sub(HEAD_AREA_BYTES)?;
        let segment = u32::try_from(behind / self.segment_bytes).ok()?;
        let is_page = behind.is_multiple_of(PAGE_BYTES as u64);
        (is_page && segment < self.segments).then_some(segment)
    }

    /// First byte of a segment.
    pub fn segment_start(&self, segment: u32) -> u64 {
        HEAD_AREA_BYTES + u64::from(segment) * self.segment_bytes
    }
}

/// Whether a log may have such segments. No number computed from those that may overflows, and
/// every byte of the file has an offset that the kernel takes.
pub(super) fn is_possible_geometry(segments: u32, segment_bytes: u64) -> bool {
    let file_bytes = u64::from(segments)
        .checked_mul(segment_bytes)
        .and_then(|bytes| bytes.checked_add(HEAD_AREA_BYTES));
    segments > 0
        && segment_bytes >= 2 * PAGE_BYTES as u64
        && segment_bytes.is_multiple_of(PAGE_BYTES as u64)
        && segment_bytes <= SEGMENT_BYTES_END
        && file_bytes.is_some_and(|bytes| bytes <= i64::MAX as u64)
}

/// Stores the CRC of a fixed part.
pub(super) fn seal(fixed: &mut [u8]) {
    let crc = crc32c::crc32c(&fixed[..FIXED_CRC]);
    put_u32(fixed, FIXED_CRC, crc);
}

fn opened<'a>(page: &'a [u8], magic: &[u8; 8]) -> Option<&'a [u8]> {
    let fixed = page.get(..FIXED_BYTES)?;
    let valid = fixed[MAGIC..MAGIC + 8] == *magic
        && get_u16(fixed, VERSION_AT) == VERSION
        && crc32c::crc32c(&fixed[..FIXED_CRC]) == get_u32(fixed, FIXED_CRC);
    valid.then_some(fixed)
}

pub(super) fn put_u16(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

//! Records of a batch: what was written where, without the bytes.

use std::ops::Range;

use crate::block::{BlockSize, LocalBlock};
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId};

use super::format::{HEADER_PAGES, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use super::place::Place;

/// Bytes of a record without its CRCs.
pub const RECORD_BYTES: usize = 40;
/// Bytes of the CRC of one block in the record table.
pub const CRC_BYTES: usize = 4;
/// Shard-local block numbers stay below, so that ranges cannot overflow.
pub const LOCAL_BLOCKS_MAX: u64 = 1 << 48;

const VOLUME: usize = 0;
const EPOCH: usize = 8;
const LSN: usize = 16;
const START: usize = 24;
const COUNT: usize = 32;
const KIND: usize = 36;
const BLOCK_SHIFT: usize = 37;
const KEY_ID: usize = 38;

const KIND_DATA: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_TRIM: u8 = 3;

/// What is known of a data record before its bytes are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Incarnation of the volume.
    pub volume: VolumeId,
    /// Global epoch with which the shard stamped it.
    pub epoch: Epoch,
    /// Its number within the shard; greater than of all before.
    pub lsn: Lsn,
    /// First shard-local block.
    pub start: LocalBlock,
    /// Consecutive shard-local blocks, at least one.
    pub count: u32,
    /// Bytes of each.
    pub block_size: BlockSize,
}

/// Kinds of records without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// The range reads as zeros and no longer needs space.
    Trim,
    /// The range reads as zeros.
    Zero,
}

/// One record as found in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The batch that holds it.
    pub batch: BatchNum,
    /// Incarnation of the volume.
    pub volume: VolumeId,
    /// Stamp.
    pub epoch: Epoch,
    /// Number within the shard.
    pub lsn: Lsn,
    /// Shard-local blocks.
    pub blocks: Range<u64>,
    /// Data, or what the mark means.
    pub content: Content<'a>,
}

/// What a record does to its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// New bytes in the pages of the batch.
    Data {
        /// Bytes of each block.
        block_size: BlockSize,
        /// Page of the first block within the batch; the others follow.
        first_page: u16,
        /// CRC32C of each block, little endian.
        crcs: &'a [u8],
    },
    /// No bytes.
    Mark(MarkKind),
}

impl Record<'_> {
    /// The blocks of a data record: (shard-local block, place, CRC32C); none for a mark.
    pub fn points(&self) -> impl Iterator<Item = (LocalBlock, Place, u32)> + '_ {
        let (crcs, first_page, pages) = match &self.content {
            Content::Data {
                block_size,
                first_page,
                crcs,
            } => (*crcs, *first_page, block_size.pages() as u16),
            Content::Mark(_) => (&[][..], 0, 0),
        };
        let batch = self.batch;
        let start = self.blocks.start;
        crcs.chunks_exact(CRC_BYTES)
            .zip(0u16..)
            .map(move |(crc, index)| {
                let place = Place {
                    batch,
                    page: first_page + index * pages,
                };
                (LocalBlock(start + u64::from(index)), place, get_u32(crc, 0))
            })
    }
}

/// Writes the fixed part of a data record; `out` is its [`RECORD_BYTES`].
#[inline]
pub(super) fn encode_data(head: &RecordHead, out: &mut [u8]) {
    put_u64(out, VOLUME, head.volume.0);
    put_u64(out, EPOCH, head.epoch.0);
    put_u64(out, LSN, head.lsn.0);
    put_u64(out, START, head.start.0);
    put_u32(out, COUNT, head.count);
    out[KIND] = KIND_DATA;
    out[BLOCK_SHIFT] = head.block_size.shift() as u8;
    put_u16(out, KEY_ID, 0);
}

/// Writes a mark; `out` is its [`RECORD_BYTES`].
pub(super) fn encode_mark(
    volume: VolumeId,
    epoch: Epoch,
    lsn: Lsn,
    (start, count): (u64, u32),
    kind: MarkKind,
    out: &mut [u8],
) {
    put_u64(out, VOLUME, volume.0);
    put_u64(out, EPOCH, epoch.0);
    put_u64(out, LSN, lsn.0);
    put_u64(out, START, start);
    put_u32(out, COUNT, count);
    out[KIND] = match kind {
        MarkKind::Zero => KIND_ZERO,
        MarkKind::Trim => KIND_TRIM,
    };
    out[BLOCK_SHIFT] = 0;
    put_u16(out, KEY_ID, 0);
}

/// Walks a record table whose bytes are trusted no further than their checksum: stops with `Err`
/// at the first record that cannot be.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    batch: BatchNum,
    table: &'a [u8],
    at: usize,
    left: u32,
    page: u32,
}

/// A record table that does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Records<'a> {
    /// The `records` records at the start of `table`.
    pub fn new(batch: BatchNum, table: &'a [u8], records: u32) -> Self {
        Self {
            batch,
            table,
            at: 0,
            left: records,
            page: HEADER_PAGES,
        }
    }

    /// Bytes of the table walked so far.
    pub fn table_bytes(&self) -> usize {
        self.at
    }

    /// Payload pages of the records walked so far.
    pub fn payload_pages(&self) -> u32 {
        self.page - HEADER_PAGES
    }

    fn parse(&mut self) -> Option<Record<'a>> {
        let fixed = self.table.get(self.at..self.at + RECORD_BYTES)?;
        let start = get_u64(fixed, START);
        let count = get_u32(fixed, COUNT);
        let end = start.checked_add(u64::from(count))?;
        let stamps = get_u64(fixed, LSN).max(get_u64(fixed, EPOCH));
        if count == 0 || end > LOCAL_BLOCKS_MAX || get_u16(fixed, KEY_ID) != 0 || stamps == u64::MAX
        {
            return None;
        }
        let mut at = self.at + RECORD_BYTES;
        let content = match (fixed[KIND], fixed[BLOCK_SHIFT]) {
            (KIND_DATA, shift) => {
                let block_size = BlockSize::new(1u32.checked_shl(u32::from(shift))?)?;
                let crcs = self
                    .table
                    .get(at..at + (count as usize).checked_mul(CRC_BYTES)?)?;
                at += crcs.len();
                let first_page = u16::try_from(self.page).ok()?;
                // The table bounds `count`, so this cannot overflow.
                self.page += count * block_size.pages() as u32;
                u16::try_from(self.page).ok()?;
                Content::Data {
                    block_size,
                    first_page,
                    crcs,
                }
            }
            (KIND_ZERO, 0) => Content::Mark(MarkKind::Zero),
            (KIND_TRIM, 0) => Content::Mark(MarkKind::Trim),
            _ => return None,
        };
        self.at = at;
        Some(Record {
            batch: self.batch,
            volume: VolumeId(get_u64(fixed, VOLUME)),
            epoch: Epoch(get_u64(fixed, EPOCH)),
            lsn: Lsn(get_u64(fixed, LSN)),
            blocks: start..end,
            content,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let record = self.parse();
        if record.is_none() {
            self.left = 0;
        }
        Some(record.ok_or(Malformed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(start: u64, count: u32, block_size: u32) -> RecordHead {
        RecordHead {
            volume: VolumeId(7),
            epoch: Epoch(3),
            lsn: Lsn(11),
            start: LocalBlock(start),
            count,
            block_size: BlockSize::new(block_size).unwrap(),
        }
    }

    fn table() -> Vec<u8> {
        let mut table = vec![0; 3 * RECORD_BYTES + 3 * CRC_BYTES];
        encode_data(&head(5, 2, 8192), &mut table);
        put_u32(&mut table, 40, 0xAABB_CCDD);
        put_u32(&mut table, 44, 1);
        let mark = &mut table[48..];
        encode_mark(VolumeId(8), Epoch(4), Lsn(12), (0, 9), MarkKind::Trim, mark);
        encode_data(&head(1, 1, 4096), &mut table[88..]);
        put_u32(&mut table, 128, 2);
        table
    }

    #[test]
    fn records_have_these_bytes() {
        let table = table();
        #[rustfmt::skip]
        assert_eq!(&table[..48], [
            7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            11, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 1, 13, 0, 0, 0xDD, 0xCC, 0xBB, 0xAA, 1, 0, 0, 0,
        ]);
        assert_eq!(&table[80..88], [9, 0, 0, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn a_table_parses_back() {
        let table = table();
        let mut walk = Records::new(BatchNum(4), &table, 3);
        let records: Vec<_> = walk.by_ref().map(Result::unwrap).collect();
        assert_eq!((walk.table_bytes(), walk.payload_pages()), (table.len(), 5));
        let place = |page| Place {
            batch: BatchNum(4),
            page,
        };
        let points: Vec<_> = records[0].points().collect();
        assert_eq!(
            points,
            [
                (LocalBlock(5), place(1), 0xAABB_CCDD),
                (LocalBlock(6), place(3), 1)
            ]
        );
        assert_eq!(records[1].blocks, 0..9);
        assert_eq!(records[1].content, Content::Mark(MarkKind::Trim));
        assert_eq!(records[1].points().count(), 0);
        assert_eq!(
            records[2].points().next(),
            Some((LocalBlock(1), place(5), 2))
        );
    }

    #[test]
    fn impossible_records_end_the_walk() {
        let cases: [(usize, &[u8]); 9] = [
            (LSN, &[0xFF; 8]),
            (EPOCH, &[0xFF; 8]),
            (KIND, &[0]),
            (KIND, &[9]),
            (BLOCK_SHIFT, &[11]),
            (BLOCK_SHIFT, &[200]),
            (COUNT, &[0, 0, 0, 0]),
            (COUNT, &[0xFF, 0xFF, 0xFF, 0xFF]),
            (START, &[0xFF; 8]),
        ];
        for (at, bytes) in cases {
            let mut table = table();
            table[at..at + bytes.len()].copy_from_slice(bytes);
            let all: Vec<_> = Records::new(BatchNum(4), &table, 3).collect();
            assert_eq!(all, [Err(Malformed)], "{at} {bytes:?}");
        }
        let short = &table()[..60];
        assert_eq!(
            Records::new(BatchNum(4), short, 3)
                .filter(Result::is_ok)
                .count(),
            1
        );
    }
}

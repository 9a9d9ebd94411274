//! Reads back what a killed process had answered but not yet written: the regions it left.

use crate::block::{BlockSize, PAGE_BYTES};
use crate::identity::{BatchNum, Lsn};

use super::super::config::LogIdentity;
use super::super::format::{HEADER_PAGES, TABLE_START, get_u32};
use super::super::media::ReadMedia;
use super::super::record::{CRC_BYTES, Content, Record, Records};
use super::super::region::{RegionBatch, RegionHeader, RegionPage};
use super::RegionRecord;
use super::damage::{ProblemKind, Problems};

/// A region to be believed.
pub(super) struct Opened<'a> {
    header: RegionHeader,
    media: &'a dyn ReadMedia,
}

fn damaged(problems: &mut Problems, why: impl Into<String>) {
    problems.add(None, ProblemKind::Region { why: why.into() });
}

/// Regions of this WAL, shard and boot, the oldest writer first. A region of an earlier boot went
/// through a crash of the host, which memory does not survive: it is not believed.
pub(super) fn open<'a>(
    identity: &LogIdentity,
    regions: &[&'a dyn ReadMedia],
    problems: &mut Problems,
) -> Vec<Opened<'a>> {
    let mut opened = Vec::new();
    for &media in regions {
        let mut page = vec![0; PAGE_BYTES];
        if media.len() < PAGE_BYTES as u64 {
            continue;
        }
        if let Err(error) = media.read_at(0, &mut page) {
            damaged(
                problems,
                format!("its control page cannot be read: {error}"),
            );
            continue;
        }
        let header = match RegionPage::decode(&page, media.len()) {
            RegionPage::Blank => continue,
            RegionPage::Damaged => {
                damaged(problems, "its control page is damaged");
                continue;
            }
            RegionPage::Header(header) => header,
        };
        if header.wal != identity.wal || header.boot != identity.boot {
            continue;
        }
        if header.shard != identity.shard {
            damaged(problems, format!("it belongs to shard {}", header.shard));
        } else if header.incarnation >= identity.incarnation {
            let incarnation = header.incarnation.0;
            problems.add(None, ProblemKind::FromTheFuture { incarnation });
        } else {
            opened.push(Opened { header, media });
        }
    }
    opened.sort_by_key(|opened| opened.header.incarnation);
    opened
}

/// Up to here the writers knew their batches durable.
pub(super) fn durable_floor(opened: &[Opened<'_>]) -> BatchNum {
    opened
        .iter()
        .map(|opened| opened.header.durable_through)
        .max()
        .unwrap_or_default()
}

/// The records after `last_lsn`, in order. A record that several regions hold is taken once.
pub(super) fn collect(
    opened: Vec<Opened<'_>>,
    last_lsn: Lsn,
    problems: &mut Problems,
) -> Vec<RegionRecord> {
    let mut collector = Collector {
        last_lsn,
        records: Vec::new(),
    };
    for region in opened {
        if let Err(why) = collector.add(&region) {
            let incarnation = region.header.incarnation;
            damaged(problems, format!("incarnation {incarnation}: {why}"));
        }
    }
    collector.records
}

struct Collector {
    last_lsn: Lsn,
    records: Vec<RegionRecord>,
}

impl Collector {
    fn add(&mut self, region: &Opened<'_>) -> Result<(), String> {
        let mut table = vec![0; region.header.descriptors_bytes()];
        read(region.media, region.header.descriptors_start(), &mut table)?;
        let batches = region
            .header
            .undurable(&table)
            .map_err(|batch| format!("batch {batch} is not described"))?;
        for (number, batch) in batches {
            self.add_batch(region.media, number, batch)?;
        }
        Ok(())
    }

    fn add_batch(
        &mut self,
        media: &dyn ReadMedia,
        number: BatchNum,
        batch: RegionBatch,
    ) -> Result<(), String> {
        let mut page = vec![0; PAGE_BYTES];
        read(media, batch.first_byte, &mut page)?;
        let mut walk = Records::new(number, &page[TABLE_START..], batch.records);
        let mut at = batch.first_byte + u64::from(HEADER_PAGES) * PAGE_BYTES as u64;
        let end = at + u64::from(batch.payload_pages) * PAGE_BYTES as u64;
        let malformed = || format!("the records of batch {number} do not parse");
        for record in walk.by_ref() {
            let record = record.map_err(|_| malformed())?;
            let bytes = payload_bytes(&record);
            if at + bytes > end {
                return Err(malformed());
            }
            if record.lsn > self.last_lsn {
                self.last_lsn = record.lsn;
                self.records.push(copy_record(media, at, &record)?);
            }
            at += bytes;
        }
        if walk.payload_pages() != batch.payload_pages {
            return Err(malformed());
        }
        Ok(())
    }
}

/// Bytes of the record's blocks.
pub(super) fn payload_bytes(record: &Record<'_>) -> u64 {
    match record.content {
        Content::Data {
            block_size, crcs, ..
        } => (crcs.len() / CRC_BYTES * block_size.bytes()) as u64,
        Content::Mark(_) => 0,
    }
}

fn copy_record(
    media: &dyn ReadMedia,
    at: u64,
    record: &Record<'_>,
) -> Result<RegionRecord, String> {
    let mut copy = blank_copy(record);
    read(media, at, &mut copy.payload)?;
    let blocks = copy.payload.chunks_exact(copy.block_size.bytes());
    if !blocks
        .zip(&copy.crcs)
        .all(|(block, crc)| crc32c::crc32c(block) == *crc)
    {
        return Err(format!("record {} does not have its checksum", record.lsn));
    }
    Ok(copy)
}

/// A copy of the record whose bytes are still to be read.
pub(super) fn blank_copy(record: &Record<'_>) -> RegionRecord {
    let mut copy = RegionRecord {
        volume: record.volume,
        epoch: record.epoch,
        lsn: record.lsn,
        blocks: record.blocks.clone(),
        block_size: BlockSize::MIN,
        mark: None,
        payload: vec![0; payload_bytes(record) as usize],
        crcs: Vec::new(),
    };
    match record.content {
        Content::Mark(kind) => copy.mark = Some(kind),
        Content::Data {
            block_size, crcs, ..
        } => {
            copy.block_size = block_size;
            let crcs = crcs.chunks_exact(CRC_BYTES);
            copy.crcs = crcs.map(|crc| get_u32(crc, 0)).collect();
        }
    }
    copy
}

fn read(media: &dyn ReadMedia, at: u64, out: &mut [u8]) -> Result<(), String> {
    media
        .read_at(at, out)
        .map_err(|error| format!("{} bytes at {at}: {error}", out.len()))
}

//! Takes the records to be quarantined out of a replayed log, with their bytes.

use std::io;

use super::{QuarantineKind, QuarantineRecord};
use crate::block::{PAGE_BYTES, ShardId};
use crate::error::{Error, Result};
use crate::identity::{Epoch, VolumeId};
use crate::wal::replay::RecoveredBatch;
use crate::wal::{Content, MarkKind, Record, Recovered, RegionRecord};

/// The records of one shard that `wanted` names, in the order of their LSN. `read` reads from the
/// WAL file. Blocks that fail their checksum are taken as they are, and the record says so.
pub fn records_of<'a>(
    shard: ShardId,
    found: &'a Recovered,
    read: impl Fn(u64, &mut [u8]) -> io::Result<()> + 'a,
    wanted: impl Fn(VolumeId, Epoch) -> bool + Clone + 'a,
) -> impl Iterator<Item = Result<QuarantineRecord>> + 'a {
    let in_memory_too = wanted.clone();
    let in_file = found
        .batches()
        .iter()
        .flat_map(|batch| batch.records().map(move |record| (batch, record)))
        .filter(move |(_, record)| wanted(record.volume, record.epoch))
        .map(move |(batch, record)| copy(shard, &read, batch, &record));
    let in_memory = found
        .region_only
        .iter()
        .filter(move |record| in_memory_too(record.volume, record.epoch))
        .map(move |record| Ok(copy_of_region(shard, record)));
    in_file.chain(in_memory)
}

fn copy(
    shard: ShardId,
    read: &impl Fn(u64, &mut [u8]) -> io::Result<()>,
    batch: &RecoveredBatch,
    record: &Record<'_>,
) -> Result<QuarantineRecord> {
    let mut copy = QuarantineRecord {
        kind: QuarantineKind::Data,
        shard: shard.index() as u8,
        damaged: false,
        epoch: record.epoch,
        lsn: record.lsn,
        start: record.blocks.start,
        count: record.blocks.end - record.blocks.start,
        payload: Vec::new(),
    };
    match &record.content {
        Content::Mark(kind) => copy.kind = kind_of(*kind),
        Content::Data { block_size, .. } => {
            for (_, place, crc) in record.points() {
                let offset = batch.file_offset + u64::from(place.page) * PAGE_BYTES as u64;
                let mut block = vec![0; block_size.bytes()];
                read(offset, &mut block).map_err(|e| {
                    Error::io("reading the WAL to copy records out", e)
                        .with_shard(shard)
                        .with_offset(offset)
                })?;
                copy.damaged |= crc32c::crc32c(&block) != crc;
                copy.payload.extend_from_slice(&block);
            }
        }
    }
    Ok(copy)
}

/// A record that only shared memory had.
fn copy_of_region(shard: ShardId, record: &RegionRecord) -> QuarantineRecord {
    QuarantineRecord {
        kind: record.mark.map_or(QuarantineKind::Data, kind_of),
        shard: shard.index() as u8,
        damaged: false,
        epoch: record.epoch,
        lsn: record.lsn,
        start: record.blocks.start,
        count: record.blocks.end - record.blocks.start,
        payload: record.payload.clone(),
    }
}

fn kind_of(mark: MarkKind) -> QuarantineKind {
    match mark {
        MarkKind::Zero => QuarantineKind::Zero,
        MarkKind::Trim => QuarantineKind::Trim,
    }
}

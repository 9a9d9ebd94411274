//! Replay: which batches of a WAL file count, and which records only the region still has.
//!
//! Rules and reasons: `docs/internals/recovery.md`. Nothing here writes.

mod accept;
mod damage;
mod ended;
mod noted;
mod region;
mod salvage;
mod scan;

use std::ops::Range;
use std::sync::Arc;

use crate::block::BlockSize;
use crate::error::{Error, Result as EngineResult};
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId};

use super::config::{LogConfig, LogIdentity};
use super::format::{BatchHeader, HEADER_PAGES, LogHead};
use super::media::ReadMedia;
use super::record::{MarkKind, Record, RecordHead, Records};

pub use damage::{Damage, Problem, ProblemKind};
pub use salvage::{LostRange, Salvage, salvage_shard};

/// What a replay found. Hand it to [`super::ShardLog::resume`].
#[derive(Debug)]
pub struct Recovered {
    pub(super) head: LogHead,
    batches: Vec<RecoveredBatch>,
    /// Records that only a region of a killed process has, in the order of their LSN: append them
    /// again with [`super::ShardLog::append_recovered`], make them durable, then delete the region.
    pub region_only: Vec<RegionRecord>,
    /// The next batch's number.
    pub next_batch: BatchNum,
    /// Greater than every LSN ever used as far as can be seen.
    pub next_lsn: Lsn,
    /// Greatest LSN of the batches that count.
    pub(super) last_lsn: Lsn,
    /// Greatest epoch seen, void batches included.
    pub max_epoch: Epoch,
    /// Content CRC of the last batch.
    pub(super) chain: u32,
    /// Greatest segment generation seen.
    pub(super) last_generation: u64,
    /// What was cut off behind the last batch, if anything.
    pub torn: Option<TornTail>,
    /// Whether a region of this WAL and boot was there: what a killed process had answered and not
    /// yet written is known. A region that was only just created does not count.
    pub memory_survived: bool,
    /// Whether the file was searched for its end: the writer before did not end in order, or what
    /// it said of the end does not fit what is there.
    pub searched: bool,
    /// Whether the batch headers came from what the writer before noted at its end.
    pub noted: bool,
}

/// A batch that counts.
#[derive(Debug)]
pub struct RecoveredBatch {
    /// Its number.
    pub number: BatchNum,
    /// First byte in the file.
    pub file_offset: u64,
    /// Header and payload pages.
    pub pages: u32,
    pub(super) header: BatchHeader,
    pub(super) table: Arc<[u8]>,
}

impl RecoveredBatch {
    /// Its records, in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        Records::new(self.number, &self.table, self.header.records)
            .map(|record| record.expect("the table was walked when it was accepted"))
    }
}

/// A record of a region that the WAL file does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionRecord {
    /// Incarnation of the volume.
    pub volume: VolumeId,
    /// Stamp.
    pub epoch: Epoch,
    /// Its number, which it keeps.
    pub lsn: Lsn,
    /// Shard-local blocks.
    pub blocks: Range<u64>,
    /// Bytes of each; meaningless for a mark.
    pub block_size: BlockSize,
    /// Set for a mark.
    pub mark: Option<MarkKind>,
    /// Bytes of the blocks; empty for a mark.
    pub payload: Vec<u8>,
    /// CRC32C of each block.
    pub crcs: Vec<u32>,
}

impl RegionRecord {
    /// The head for appending its data.
    pub fn head(&self) -> RecordHead {
        RecordHead {
            volume: self.volume,
            epoch: self.epoch,
            lsn: self.lsn,
            start: crate::block::LocalBlock(self.blocks.start),
            count: (self.blocks.end - self.blocks.start) as u32,
            block_size: self.block_size,
        }
    }
}

/// The end of a log that was being written when the host crashed: not damage, but worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The first batch that is missing or incomplete.
    pub first: BatchNum,
    /// Whole batches behind it, which are void.
    pub void_batches: u64,
}

impl Recovered {
    /// What a replay of a WAL that was just created finds.
    pub fn blank(identity: &LogIdentity, config: &LogConfig) -> Self {
        Self {
            head: blank_head(identity, config),
            batches: Vec::new(),
            region_only: Vec::new(),
            next_batch: BatchNum(1),
            next_lsn: Lsn(1),
            last_lsn: Lsn(0),
            max_epoch: Epoch(0),
            chain: 0,
            last_generation: 0,
            torn: None,
            memory_survived: false,
            searched: false,
            noted: false,
        }
    }

    /// The batches that count, in order, without gaps up to `next_batch`.
    pub fn batches(&self) -> &[RecoveredBatch] {
        &self.batches
    }

    /// The records of the WAL file, in order. Skip those whose epoch is committed.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.batches.iter().flat_map(RecoveredBatch::records)
    }

    pub(super) fn first_batch(&self) -> BatchNum {
        self.batches
            .first()
            .map_or(self.next_batch, |batch| batch.number)
    }

    pub(super) fn check_geometry(&self, config: &LogConfig) -> EngineResult<()> {
        if (config.segment_bytes, config.segments) == (self.head.segment_bytes, self.head.segments)
        {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the WAL file has {} segments of {} bytes, not {} of {}; its size cannot be changed",
            self.head.segments, self.head.segment_bytes, config.segments, config.segment_bytes
        )))
    }
}

/// The head with which a new WAL file starts, in both slots.
pub(super) fn blank_head(identity: &LogIdentity, config: &LogConfig) -> LogHead {
    LogHead {
        shard: identity.shard,
        wal: identity.wal,
        incarnation: crate::identity::Incarnation(0),
        first: BatchNum(1),
        sequence: 1,
        segment_bytes: config.segment_bytes,
        segments: config.segments,
        durable_through: BatchNum(0),
        released_before: BatchNum(1),
        end: None,
    }
}

/// Replays one shard's WAL file and the regions of killed processes, oldest first. `identity` is
/// that of the new writer: its incarnation is greater than any before.
///
/// The file must have been flushed after its last writer was gone, so that what is read here stays.
///
/// # Errors
/// [`Damage`] when something that was durable is missing or cannot be read. Nothing was changed.
pub fn recover_shard(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    regions: &[&dyn ReadMedia],
) -> Result<Recovered, Damage> {
    recover_noted_shard(identity, file, None, regions)
}

/// The same with the headers that the writer before may have noted at its end
/// ([`super::ShardLog::note_headers`]). They are believed only if the file says the same as far as
/// it is read; else this is [`recover_shard`].
///
/// # Errors
/// As there; whatever is noted never is one.
pub fn recover_noted_shard(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    noted: Option<&[u8]>,
    regions: &[&dyn ReadMedia],
) -> Result<Recovered, Damage> {
    let mut problems = damage::Problems::new(identity.shard);
    let Some(head) = scan::read_head(identity, file, &mut problems) else {
        return Err(problems.into_damage());
    };
    let recovered = replay(identity, file, noted, &head, regions, &mut problems);
    if problems.any() {
        return Err(problems.into_damage());
    }
    Ok(recovered)
}

/// Takes everything that counts; what is missing is among the `problems`.
fn replay(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    noted: Option<&[u8]>,
    head: &LogHead,
    regions: &[&dyn ReadMedia],
    problems: &mut damage::Problems,
) -> Recovered {
    let opened = region::open(identity, regions, problems);
    let memory_survived = !opened.is_empty();
    let floor = region::durable_floor(&opened);
    let ended = ended::accept_ended(identity, file, noted, head, floor);
    let searched = ended.is_none();
    let (accepted, noted) = ended.unwrap_or_else(|| {
        let found = scan::scan(identity, file, head, problems);
        (accept::accept(file, head, found, floor, problems), false)
    });
    let region_only = region::collect(opened, accepted.last_lsn, problems);
    let last_region = region_only.last().map_or(Lsn(0), |record| record.lsn);
    let region_epoch = region_only.iter().map(|record| record.epoch).max();
    Recovered {
        next_lsn: accepted.max_lsn.max(last_region).next(),
        max_epoch: accepted.max_epoch.max(region_epoch.unwrap_or_default()),
        head: accepted.head,
        batches: accepted.batches,
        region_only,
        next_batch: accepted.next_batch,
        last_lsn: accepted.last_lsn,
        chain: accepted.chain,
        last_generation: accepted.last_generation,
        torn: accepted.torn,
        memory_survived,
        searched,
        noted,
    }
}

impl RecoveredBatch {
    fn new(header: &BatchHeader, table: Arc<[u8]>) -> Self {
        Self {
            number: header.number,
            file_offset: header.file_offset,
            pages: HEADER_PAGES + header.payload_pages,
            header: *header,
            table,
        }
    }
}

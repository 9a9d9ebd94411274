//! What can be taken out of a damaged log once the operator has decided to give the rest up.

use crate::block::PAGE_BYTES;
use crate::identity::{Epoch, Lsn, VolumeId};

use super::super::config::{LogConfig, LogIdentity};
use super::super::format::HEADER_PAGES;
use super::super::media::ReadMedia;
use super::damage::{Damage, ProblemKind, Problems};
use super::{Recovered, RegionRecord, blank_head, region, replay, scan};

/// A damaged log: what is wrong with it, and what it still has.
#[derive(Debug)]
pub struct Salvage {
    /// What is wrong.
    pub damage: Damage,
    /// Everything that can be read, with gaps.
    found: Recovered,
}

/// Records that are not there, as far as their neighbours tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRange {
    /// The first.
    pub first: Lsn,
    /// The last; there may be more behind it if it is the greatest number.
    pub last: Lsn,
    /// Stamped at this or later.
    pub from: Epoch,
    /// Stamped at this or earlier.
    pub through: Epoch,
}

/// Looks at a shard's WAL file and the regions of killed processes as
/// [`recover_shard`](super::recover_shard) does. `None` when nothing is damaged. `config` has the
/// file's segments, in case its own heads are gone.
pub fn salvage_shard(
    identity: &LogIdentity,
    config: &LogConfig,
    file: &dyn ReadMedia,
    regions: &[&dyn ReadMedia],
) -> Option<Salvage> {
    let mut problems = Problems::new(identity.shard);
    let head = scan::read_head(identity, file, &mut problems);
    let head = head.unwrap_or_else(|| blank_head(identity, config));
    let found = replay(identity, file, None, &head, regions, &mut problems);
    problems.any().then(|| Salvage {
        damage: problems.into_damage(),
        found,
    })
}

impl Salvage {
    /// Whether the files are newer than what knows of them: then nothing is damaged, but the wrong
    /// `wal/state` is there.
    pub fn is_from_the_future(&self) -> bool {
        let future = |kind: &ProblemKind| matches!(kind, ProblemKind::FromTheFuture { .. });
        self.damage.problems.iter().any(|p| future(&p.kind))
    }

    /// Volumes that have records here.
    pub fn volumes(&self) -> Vec<VolumeId> {
        let mut volumes: Vec<VolumeId> = self.stamps().map(|(volume, ..)| volume).collect();
        volumes.sort_unstable();
        volumes.dedup();
        volumes
    }

    /// Number of the records that are kept.
    pub fn kept(&self) -> usize {
        self.stamps().count()
    }

    /// The gaps between the records that are kept.
    pub fn lost(&self) -> Vec<LostRange> {
        let mut lost = Vec::new();
        let mut before: Option<(Lsn, Epoch)> = None;
        for (_, lsn, epoch) in self.stamps() {
            let (last, from) = before.unwrap_or((Lsn(lsn.0 - 1), Epoch(0)));
            if lsn.0 > last.0 + 1 {
                lost.push(LostRange {
                    first: last.next(),
                    last: Lsn(lsn.0 - 1),
                    from,
                    through: epoch,
                });
            }
            before = Some((lsn, epoch));
        }
        lost
    }

    fn stamps(&self) -> impl Iterator<Item = (VolumeId, Lsn, Epoch)> {
        let in_file = self.found.records().map(|r| (r.volume, r.lsn, r.epoch));
        let in_memory = self.found.region_only.iter();
        in_file.chain(in_memory.map(|r| (r.volume, r.lsn, r.epoch)))
    }

    /// The records that are kept, in order, with their bytes, for
    /// [`ShardLog::append_recovered`](super::super::ShardLog::append_recovered). A block that
    /// cannot be read, or fails its checksum, keeps the checksum that it should have: reading it
    /// stays an error.
    pub fn records<'a>(
        &'a self,
        file: &'a dyn ReadMedia,
    ) -> impl Iterator<Item = RegionRecord> + 'a {
        let in_file = self.found.batches.iter().flat_map(move |batch| {
            let payload = u64::from(HEADER_PAGES) * PAGE_BYTES as u64;
            let mut at = batch.file_offset + payload;
            batch.records().map(move |record| {
                let start = at;
                at += region::payload_bytes(&record);
                let mut copy = region::blank_copy(&record);
                if file.read_at(start, &mut copy.payload).is_err() {
                    copy.payload.fill(0);
                }
                copy
            })
        });
        in_file.chain(self.found.region_only.iter().cloned())
    }
}

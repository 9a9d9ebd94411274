//! What the WAL files hold of a volume while the daemon runs: a tail to be copied out, or records
//! that an opening merges as a start would.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use taipan_engine::block::ShardId;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Epoch, Incarnation, VolumeId};
use taipan_engine::index::Overlay;
use taipan_engine::registry::quarantine::{QuarantineRecord, records_of};
use taipan_engine::registry::{LocalHead, RecordFate, replayed_overlays};
use taipan_engine::wal::files::FileMedia;
use taipan_engine::wal::{LogIdentity, ReadMedia, Recovered, recover_shard};

/// The WAL files of this daemon.
#[derive(Clone)]
pub(crate) struct LiveLogs {
    /// Whose log each shard's file is.
    pub(crate) identities: Vec<LogIdentity>,
    /// The files, in the same order.
    pub(crate) paths: Vec<PathBuf>,
}

/// One shard's WAL file as it was found.
pub(crate) struct ScannedLog {
    pub(crate) shard: ShardId,
    file: File,
    pub(crate) found: Recovered,
}

/// What counts of a volume's records, by shard.
#[derive(Default)]
pub struct Tail(HashMap<ShardId, Overlay>);

/// Reads a volume's tail when its record, which judges it, is known; that takes as long as reading
/// the WAL.
pub(crate) type TailSource = Box<dyn FnOnce(&LocalHead) -> Result<Tail> + Send>;

impl LiveLogs {
    /// The files as they are now. What their next writer would find of a volume that is not served
    /// is whole: segments that hold such records are not recycled before these are forgotten.
    pub(crate) fn scan(&self) -> Result<Vec<ScannedLog>> {
        let scan = |(identity, path): (&LogIdentity, &PathBuf)| {
            let failed = |e| Error::io("opening the WAL to copy records out", e).with_path(path);
            let file = File::open(path).map_err(failed)?;
            // As its next writer sees it.
            let next = LogIdentity {
                incarnation: Incarnation(identity.incarnation.0 + 1),
                ..*identity
            };
            let found = recover_shard(&next, &FileMedia::new(&file)?, &[])?;
            Ok(ScannedLog {
                shard: identity.shard,
                file,
                found,
            })
        };
        self.identities.iter().zip(&self.paths).map(scan).collect()
    }

    /// What counts of the records of a volume that is not served. `Busy` if some of them belong to
    /// a lineage that was lost: they must be copied out first.
    pub(crate) fn tail(&self, local: &LocalHead) -> Result<Tail> {
        let fate = |epoch| local.fate(epoch);
        let mut tail = Tail::default();
        for ScannedLog { shard, found, .. } in self.scan()? {
            let mut own = found.records().filter(|record| record.volume == local.id);
            if own.any(|record| fate(record.epoch) == RecordFate::Quarantine) {
                let text = "the WAL holds writes of a lineage that another appliance has replaced; \
                            they are copied out first";
                return Err(Error::new(ErrorKind::Busy, text).with_volume(local.id));
            }
            let wanted = |id, epoch| id == local.id && fate(epoch) == RecordFate::Replay;
            let mut overlays = replayed_overlays(&found, wanted);
            tail.0
                .insert(shard, overlays.remove(&local.id).unwrap_or_default());
        }
        Ok(tail)
    }
}

impl ScannedLog {
    /// The records of a volume with foreign stamps, with their bytes.
    pub(crate) fn records<'a>(
        &'a self,
        volume: VolumeId,
        foreign: &'a dyn Fn(Epoch) -> bool,
    ) -> impl Iterator<Item = Result<QuarantineRecord>> + 'a {
        let read = |offset, out: &mut [u8]| {
            let media = FileMedia::new(&self.file).map_err(io::Error::other)?;
            media.read_at(offset, out)
        };
        let wanted = move |id, epoch| id == volume && foreign(epoch);
        records_of(self.shard, &self.found, read, wanted)
    }
}

impl Tail {
    /// What there is of one shard.
    pub(crate) fn take(&mut self, shard: ShardId) -> Overlay {
        self.0.remove(&shard).unwrap_or_default()
    }
}

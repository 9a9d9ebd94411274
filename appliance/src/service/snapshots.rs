//! Snapshots and points in time, as the control plane asks for them.

use std::time::SystemTime;

use crossbeam_channel::{Sender, bounded};
use taipan_engine::api::{SnapshotInfo, TakeSnapshot, TakeSnapshotGroup, VolumeHistory};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::registry;
use taipan_engine::snapshot::{SnapshotId, SnapshotName, SnapshotWish};
use taipan_engine::volume::VolumeName;

use super::{Shared, stopping};
use crate::quarantine::unix_ms;
use crate::uploader::{GroupWish, Request};

impl Shared {
    /// Takes a snapshot, and waits as the request says.
    pub(super) fn snapshot(
        &self,
        name: &VolumeName,
        request: &TakeSnapshot,
    ) -> Result<SnapshotInfo> {
        let wish = SnapshotWish {
            id: SnapshotId(registry::random_u64()?),
            name: request.name.clone(),
            taken_ms: unix_ms(SystemTime::now()),
            group: None,
        };
        let (wanted, wait) = (name.clone(), request.wait);
        self.await_answer(|reply| Request::TakeSnapshot {
            name: wanted,
            wish,
            wait,
            reply,
        })?;
        self.taken(name, &request.name)
    }

    /// Takes snapshots of several volumes by one cut.
    pub(super) fn snapshot_group(&self, request: &TakeSnapshotGroup) -> Result<Vec<SnapshotInfo>> {
        let wish = GroupWish {
            volumes: request.volumes.clone(),
            name: request.name.clone(),
            taken_ms: unix_ms(SystemTime::now()),
            wait: request.wait,
        };
        self.await_answer(|reply| Request::TakeGroup { wish, reply })?;
        let volumes = request.volumes.iter();
        volumes.map(|of| self.taken(of, &request.name)).collect()
    }

    /// The snapshot that was just taken.
    fn taken(&self, volume: &VolumeName, name: &SnapshotName) -> Result<SnapshotInfo> {
        let all = self.snapshots(volume)?;
        let taken = all.into_iter().find(|info| info.name == *name);
        taken.ok_or_else(|| {
            let text = "the snapshot was taken, and deleted since";
            Error::new(ErrorKind::NotFound, text)
        })
    }

    /// All snapshots of a volume.
    pub(super) fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotInfo>> {
        let name = name.clone();
        self.await_answer(|reply| Request::ListSnapshots { name, reply })
    }

    /// The points in time of a volume.
    pub(super) fn points(&self, name: &VolumeName) -> Result<VolumeHistory> {
        let name = name.clone();
        self.await_answer(|reply| Request::History { name, reply })
    }

    /// Waits however long it takes: the backend may be slow, and the caller chose to wait for it.
    pub(super) fn await_answer<T>(
        &self,
        request: impl FnOnce(Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = bounded(1);
        self.parts.uploader.request(request(reply));
        answer.recv().unwrap_or_else(|_| Err(stopping()))
    }
}

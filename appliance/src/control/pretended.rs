//! A daemon without a data plane, behind which the servers are tested.

use std::collections::BTreeMap;
use std::sync::Mutex;

use taipan_engine::api::{
    ChangedSpan, CloneInfo, ConnectionInfo, ConnectionName, DelayInfo, FlattenState, FlattenStatus,
    ImagePoint, Lineage, RunState, SnapshotInfo, SnapshotWait, Status, SweepReport, SweepVolume,
    TakeSnapshot, TakeSnapshotGroup, UploadInfo, VolumeChanges, VolumeHistory, VolumeInfo,
    VolumePatch, VolumeState, WarmStatus, WarmVolume,
};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Epoch, ManifestNum, VolumeId};
use taipan_engine::index::Changed;
use taipan_engine::point::{Point, PointTable};
use taipan_engine::snapshot::{ImageName, SnapshotId, SnapshotName, SnapshotWish};
use taipan_engine::timestamp::UnixMs;
use taipan_engine::volume::{VolumeName, VolumeSettings};

use super::Appliance;
use crate::metrics::MetricsSnapshot;

/// A daemon without a data plane, for tests.
#[derive(Default)]
pub(crate) struct Pretended {
    /// Its volumes.
    pub(crate) volumes: Mutex<BTreeMap<VolumeName, VolumeInfo>>,
    /// Snapshots, whatever volume they are of.
    pub(crate) snapshots: Mutex<Vec<SnapshotInfo>>,
    /// What it says it is doing.
    pub(crate) state: Mutex<RunState>,
    /// How often it was drained.
    pub(crate) drains: Mutex<u32>,
}

impl Pretended {
    fn find_snapshot(&self, name: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        let all = self.list_snapshots(name)?;
        let found = all.iter().any(|info| info.name == *snapshot);
        found.then_some(()).ok_or_else(|| not_found(name))
    }

    fn change(
        &self,
        name: &VolumeName,
        change: impl FnOnce(&mut VolumeSettings) -> Result<()>,
    ) -> Result<VolumeInfo> {
        let mut volumes = self.volumes.lock().unwrap();
        let info = volumes.get_mut(name).ok_or_else(|| not_found(name))?;
        change(&mut info.settings)?;
        Ok(info.clone())
    }
}

fn not_found(name: &VolumeName) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no volume {name}"))
}

impl Appliance for Pretended {
    fn status(&self) -> Status {
        Status {
            version: "9".to_owned(),
            state: *self.state.lock().unwrap(),
            volumes: self.list(),
            problems: vec!["shard 03 failed".to_owned()],
            ..Status::default()
        }
    }

    fn list(&self) -> Vec<VolumeInfo> {
        self.volumes.lock().unwrap().values().cloned().collect()
    }

    fn show(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.change(name, |_| Ok(()))
    }

    fn create(&self, name: VolumeName, settings: VolumeSettings) -> Result<VolumeInfo> {
        let mut volumes = self.volumes.lock().unwrap();
        if volumes.contains_key(&name) {
            let text = format!("volume {name} exists");
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let info = VolumeInfo {
            name: name.clone(),
            id: VolumeId(1),
            settings,
            state: VolumeState::Online,
            cause: None,
            lineage: Lineage::Intact,
            connections: 0,
            mapped_blocks: 0,
            dirty_bytes: 0,
            committed_epoch: 0,
            manifest: 1,
            generation: 1,
            chunks: 0,
            usage: Default::default(),
            index_bytes: 0,
            last_commit_age_seconds: None,
            quarantine: None,
            upload: UploadInfo::default(),
            delays: DelayInfo::default(),
        };
        volumes.insert(name, info.clone());
        Ok(info)
    }

    fn resize(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo> {
        self.change(name, |settings| {
            if size_bytes < settings.size_bytes {
                return Err(Error::invalid("volumes only grow"));
            }
            settings.size_bytes = size_bytes;
            Ok(())
        })
    }

    fn configure(&self, name: &VolumeName, patch: VolumePatch) -> Result<VolumeInfo> {
        self.change(name, |settings| {
            *settings = patch.apply(settings);
            Ok(())
        })
    }

    fn take_over(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.show(name)
    }

    fn warm(&self, name: &VolumeName, _request: WarmVolume) -> Result<WarmStatus> {
        self.warm_status(name)
    }

    fn warm_status(&self, name: &VolumeName) -> Result<WarmStatus> {
        self.show(name).map(|_| WarmStatus::default())
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        if name.as_str() == "busy" {
            return Err(Error::new(ErrorKind::Busy, "2 clients are connected"));
        }
        let removed = self.volumes.lock().unwrap().remove(name);
        removed.map(drop).ok_or_else(|| not_found(name))
    }

    fn take_snapshot(&self, name: &VolumeName, request: TakeSnapshot) -> Result<SnapshotInfo> {
        self.show(name)?;
        let mut all = self.snapshots.lock().unwrap();
        let id = SnapshotId(all.len() as u64 + 1);
        if all.iter().any(|info| info.name == request.name) {
            let text = format!("snapshot {} exists", request.name);
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let wish = SnapshotWish {
            id,
            name: request.name,
            taken_ms: 5,
            group: None,
        };
        let info = SnapshotInfo::pending(name, &wish, request.wait == SnapshotWait::Taken);
        all.push(info.clone());
        Ok(info)
    }

    fn take_snapshot_group(&self, request: TakeSnapshotGroup) -> Result<Vec<SnapshotInfo>> {
        let members = request.volumes.iter().map(|volume| {
            let single = TakeSnapshot {
                name: SnapshotName::parse(&format!("{}-{}", request.name, volume.encoded()))?,
                wait: request.wait,
            };
            self.take_snapshot(volume, single)
        });
        members.collect()
    }

    fn list_snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotInfo>> {
        self.show(name)?;
        Ok(self.snapshots.lock().unwrap().clone())
    }

    fn delete_snapshot(&self, name: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        self.show(name)?;
        let mut all = self.snapshots.lock().unwrap();
        let before = all.len();
        all.retain(|info| info.name != *snapshot);
        match all.len() < before {
            true => Ok(()),
            false => Err(not_found(name)),
        }
    }

    fn changes(
        &self,
        name: &VolumeName,
        from: &SnapshotName,
        to: Option<&SnapshotName>,
    ) -> Result<VolumeChanges> {
        let info = self.show(name)?;
        let point = |snapshot: Option<&SnapshotName>| ImagePoint {
            snapshot: snapshot.cloned(),
            id: None,
            manifest: 3,
            epoch: 2,
            size_bytes: info.settings.size_bytes,
        };
        Ok(VolumeChanges {
            volume: name.clone(),
            id: info.id,
            from: point(Some(from)),
            to: point(to),
            block_size_bytes: 4096,
            data_bytes: 4096,
            zero_bytes: 0,
            ranges: vec![ChangedSpan {
                offset: 8192,
                length: 4096,
                now: Changed::Data,
            }],
        })
    }

    fn history(&self, name: &VolumeName) -> Result<VolumeHistory> {
        let point = Point {
            manifest: ManifestNum(12),
            epoch: Epoch(7),
            committed: UnixMs(1000),
            age_ms: 0,
            added_bytes: 4096,
        };
        Ok(VolumeHistory {
            volume: self.show(name)?.name,
            window_seconds: 60,
            points: vec![point],
        })
    }

    fn roll_back(&self, name: &VolumeName, to: &ImageName) -> Result<VolumeInfo> {
        match to {
            ImageName::Snapshot(snapshot) => self.find_snapshot(name, snapshot)?,
            ImageName::Point(point) => {
                let points = PointTable::new(self.history(name)?.points)?;
                points.find(*point)?;
            }
        }
        self.show(name)
    }

    fn clone_image(
        &self,
        name: &VolumeName,
        of: &ImageName,
        clone: VolumeName,
    ) -> Result<VolumeInfo> {
        if let ImageName::Snapshot(snapshot) = of {
            self.find_snapshot(name, snapshot)?;
        }
        self.create(clone, self.show(name)?.settings)
    }

    fn commit(&self, name: &VolumeName) -> Result<VolumeInfo> {
        self.show(name)
    }

    fn flatten(&self, name: &VolumeName) -> Result<FlattenStatus> {
        Ok(FlattenStatus {
            state: FlattenState::Copying,
            ..self.flatten_status(name)?
        })
    }

    fn flatten_status(&self, name: &VolumeName) -> Result<FlattenStatus> {
        self.show(name)?;
        Ok(FlattenStatus {
            volume: name.clone(),
            state: FlattenState::None,
            foreign_bytes: 4096,
            total_bytes: 8192,
            foreign_chunks: 1,
            waits_for: Vec::new(),
            last_failure: None,
        })
    }

    fn clones(&self, name: &VolumeName) -> Result<Vec<CloneInfo>> {
        self.show(name).map(|_| Vec::new())
    }

    fn sweep(&self, name: &VolumeName, request: SweepVolume) -> Result<SweepReport> {
        self.show(name)?;
        Ok(SweepReport {
            volume: name.clone(),
            dry_run: request.dry_run,
            objects: 7,
            bytes: 7000,
            orphans: 2,
            orphan_bytes: 2000,
            names: vec!["v1/x/chunks/y".to_owned()],
            strange: 0,
        })
    }

    fn connections(&self) -> Result<Vec<ConnectionInfo>> {
        Ok(Vec::new())
    }

    fn kick(&self, name: ConnectionName) -> Result<()> {
        let text = format!("there is no connection {name}");
        Err(Error::new(ErrorKind::NotFound, text))
    }

    fn drain(&self) -> Result<()> {
        *self.drains.lock().unwrap() += 1;
        Ok(())
    }

    fn metrics(&self) -> MetricsSnapshot {
        MetricsSnapshot::default()
    }
}

//! Snapshots of open volumes: taking one, telling which there are, deleting one.

use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::Sender;
use taipan_engine::api::{SnapshotInfo, SnapshotWait};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::VolumeId;
use taipan_engine::manifest::Manifest;
use taipan_engine::registry::{self, LocalHead};
use taipan_engine::snapshot::{Snapshot, SnapshotId, SnapshotName, SnapshotWish};
use taipan_engine::volume::VolumeName;

use super::Uploader;
use super::changes::{Change, Configured};
use super::effects::Means;
use super::patience::{Answer, until_known, within};

/// Names that a refusal spells out.
const NAMES_TOLD: usize = 5;
/// How long a refusal waits for the names of clones.
const ASKING: Duration = Duration::from_secs(10);

/// Somebody waits for a snapshot.
pub(super) struct SnapshotWaiter {
    volume: VolumeId,
    snapshot: SnapshotId,
    wait: SnapshotWait,
    reply: Sender<Result<()>>,
}

/// Deletes a snapshot in the backend, however long that takes: while its outcome is open no other
/// manifest may follow.
async fn delete(
    means: Rc<Means>,
    old: Manifest,
    mut local: LocalHead,
    snapshot: Snapshot,
    mut answer: Answer,
) -> Change {
    let id = old.volume;
    let backend = &*means.backend;
    let stored = until_known(backend, "delete a snapshot", &mut answer, async || {
        failpoint::hit("snapshot.delete").map_err(|e| Error::io("failpoint", e))?;
        registry::delete_snapshot(backend, &old, &snapshot).await
    });
    let result = match stored.await {
        Ok(head) => {
            local.advance(&head);
            let noted = means.save(local.clone()).await;
            Ok(Box::new(Configured {
                head,
                local,
                decided: None,
                noted,
            }))
        }
        Err(error) => Err(error),
    };
    Change::SnapshotDeleted { id, result, answer }
}

impl Uploader {
    /// Has the next cut of the volume be a snapshot.
    pub(super) fn take_snapshot(
        &mut self,
        name: &VolumeName,
        wish: SnapshotWish,
        wait: SnapshotWait,
        reply: Sender<Result<()>>,
    ) {
        match self.ask_for(name, &wish) {
            Ok(volume) => {
                self.snapshot_waits.push(SnapshotWaiter {
                    volume,
                    snapshot: wish.id,
                    wait,
                    reply,
                });
                self.coordinator.snapshot(volume, wish);
            }
            Err(error) => _ = reply.send(Err(error)),
        }
    }

    pub(super) fn ask_for(&self, name: &VolumeName, wish: &SnapshotWish) -> Result<VolumeId> {
        let (_, id) = self.find(name)?;
        let pending = || self.coordinator.pending_snapshots(id);
        // One that is committed may be pending, too, until its commit is over.
        let commit = &self.volumes[&id].commit;
        commit.may_take(&wish.name, pending().count())?;
        if pending().any(|(other, _)| other.name == wish.name) {
            let text = format!("a snapshot named {:?} is being taken", wish.name.as_str());
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        Ok(id)
    }

    /// All snapshots of the volume, oldest first.
    pub(super) fn list_snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotInfo>> {
        let (_, id) = self.find(name)?;
        let committed = self.volumes[&id].commit.snapshots();
        let pending = self.coordinator.pending_snapshots(id);
        // A commit that is not over yet may have put its manifest.
        let pending = pending.filter(|(wish, _)| committed.by_id(wish.id).is_none());
        let known = committed.iter().map(|snapshot| SnapshotInfo {
            group: self.group_of(snapshot),
            ..SnapshotInfo::committed(name, snapshot)
        });
        let coming = pending.map(|(wish, taken)| SnapshotInfo::pending(name, wish, taken));
        Ok(known.chain(coming).collect())
    }

    /// The volumes of the snapshot's group by name, if that exists.
    fn group_of(&self, snapshot: &Snapshot) -> Vec<String> {
        let group = snapshot.group.as_ref();
        let group = group.filter(|group| self.groups.is_complete(group.lead()));
        let volumes = group.into_iter().flat_map(|group| group.volumes());
        let name = |id: &VolumeId| match self.volumes.get(id) {
            Some(upload) => upload.volume.name.to_string(),
            None => id.to_string(),
        };
        let mut names: Vec<String> = volumes.map(name).collect();
        names.sort();
        names
    }

    /// Answers those whose snapshots are as far as they wait for, or never will be.
    pub(super) fn finish_snapshots(&mut self) {
        let waits = std::mem::take(&mut self.snapshot_waits);
        for waiter in waits {
            match self.outcome(&waiter) {
                Some(result) => _ = waiter.reply.send(result),
                None => self.snapshot_waits.push(waiter),
            }
        }
    }

    fn outcome(&self, waiter: &SnapshotWaiter) -> Option<Result<()>> {
        let committed = self.volumes.get(&waiter.volume).and_then(|volume| {
            let snapshots = volume.commit.snapshots();
            snapshots.by_id(waiter.snapshot)
        });
        if committed.is_some() {
            return Some(Ok(()));
        }
        let mut pending = self.coordinator.pending_snapshots(waiter.volume);
        match pending.find(|(wish, _)| wish.id == waiter.snapshot) {
            Some((_, true)) if waiter.wait == SnapshotWait::Taken => Some(Ok(())),
            Some(_) => None,
            None => {
                let text = "the volume is not served any more; the snapshot was not taken";
                Some(Err(Error::new(ErrorKind::Fenced, text)))
            }
        }
    }

    /// The volume of a committed snapshot.
    pub(super) fn find_snapshot(
        &self,
        name: &VolumeName,
        snapshot: &SnapshotName,
    ) -> Result<VolumeId> {
        let (_, id) = self.find(name)?;
        self.committed(id, snapshot).map(|_| id)
    }

    pub(super) fn committed(&self, id: VolumeId, name: &SnapshotName) -> Result<&Snapshot> {
        if let Some(snapshot) = self.volumes[&id].commit.snapshots().by_name(name) {
            return Ok(snapshot);
        }
        let mut pending = self.coordinator.pending_snapshots(id);
        let name_told = name.as_str();
        Err(match pending.any(|(wish, _)| wish.name == *name) {
            true => {
                let text = format!("snapshot {name_told:?} is not committed yet; try again later");
                Error::new(ErrorKind::Busy, text)
            }
            false => {
                let text = format!("there is no snapshot {name_told:?} of this volume");
                Error::new(ErrorKind::NotFound, text)
            }
        })
    }

    /// Begins to delete a snapshot; no commit of the volume is under way.
    pub(super) fn begin_snapshot_deletion(
        &mut self,
        id: VolumeId,
        name: &SnapshotName,
        reply: Sender<Result<()>>,
    ) {
        let found = self.committed(id, name).cloned();
        let snapshot = match found.and_then(|found| self.doom_view(id, name).map(|()| found)) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let upload = self.volumes.get_mut(&id).expect("it was looked at");
        upload.changing = true;
        let answer = Answer::new(reply, "the deletion is pending, it is tried again");
        let (head, local) = (upload.head().clone(), upload.local.clone());
        let means = Rc::clone(&self.means);
        self.spawn_change(delete(means, head, local, snapshot, answer));
    }

    /// A snapshot is deleted in the backend.
    pub(super) fn adopt_snapshots(&mut self, id: VolumeId, changed: Configured) -> Result<()> {
        let Some(upload) = self.volumes.get_mut(&id) else {
            return Ok(());
        };
        upload.adopt(changed.head, changed.local);
        upload.volume.verified();
        changed.noted
    }

    /// Whether the volume has snapshots, committed or not.
    pub(super) fn has_snapshots(&self, id: VolumeId) -> bool {
        let mut pending = self.coordinator.pending_snapshots(id);
        !self.volumes[&id].commit.snapshots().is_empty() || pending.next().is_some()
    }

    /// Tells why a volume with snapshots cannot be deleted, and which clones they have.
    pub(super) fn refuse_deletion(&self, id: VolumeId, reply: Sender<Result<()>>) {
        let committed: Vec<_> = self.volumes[&id]
            .commit
            .snapshots()
            .iter()
            .cloned()
            .collect();
        let pending = self.coordinator.pending_snapshots(id);
        let pending = pending.map(|(wish, _)| wish.name.to_string());
        let names = committed.iter().map(|s| s.name.to_string());
        let snapshots: Vec<String> = names.chain(pending).collect();
        let means = Rc::clone(&self.means);
        let task = async move {
            let clones = clone_names(&means, id, &committed);
            let clones = within(ASKING, "ask for clones", clones).await;
            let why = refusal(&snapshots, clones.as_deref().ok());
            let _ = reply.send(Err(Error::new(ErrorKind::Busy, why)));
        };
        glommio::spawn_local_into(task, self.uploads)
            .expect("the task queue exists")
            .detach();
    }
}

/// Names of the clones of these snapshots.
async fn clone_names(means: &Means, id: VolumeId, of: &[Snapshot]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for snapshot in of {
        let clones = registry::clones_of(&*means.backend, id, snapshot.id).await?;
        names.extend(clones.into_iter().map(|clone| clone.name.to_string()));
    }
    Ok(names)
}

/// `clones`: none if the backend did not tell.
fn refusal(snapshots: &[String], clones: Option<&[String]>) -> String {
    let told = |names: &[String]| {
        let told = &names[..names.len().min(NAMES_TOLD)];
        format!("{}: {told:?}", names.len())
    };
    let snapshots = told(snapshots);
    match clones {
        Some(clones) if !clones.is_empty() => format!(
            "the volume has clones, {}, and snapshots, {snapshots}; delete or flatten the clones \
             first (`taipan volume delete --promote` flattens them)",
            told(clones)
        ),
        _ => format!("the volume has snapshots, {snapshots}; delete them first"),
    }
}

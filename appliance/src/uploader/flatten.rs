//! Clones that become independent of their parents: the compactor copies what is of other volumes,
//! and when nothing is left that needs it, the parent's snapshot is let go of. That it is wanted is
//! in the volume's local record, so that the next process goes on. Rules:
//! `docs/internals/snapshots.md`.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::Sender;
use taipan_engine::api::{FlattenState, FlattenStatus};
use taipan_engine::error::{Error, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::registry::{self, LocalHead};
use taipan_engine::snapshot::Snapshot;
use taipan_engine::volume::VolumeName;

use super::changes::Change;
use super::effects::Means;
use super::patience::{Answer, within};
use super::{UploadVolume, Uploader};

/// Volumes are looked at so often.
const LOOK_EVERY_MS: u64 = 200;
/// First and longest wait after a failure.
const BACKOFF_MS: (u64, u64) = (1000, 60_000);
/// Reading the first manifest.
const ASKING: Duration = Duration::from_secs(20);
/// Reading the indexes of older snapshots, and letting go.
const LETTING_GO: Duration = Duration::from_secs(300);

/// How the flatten of one volume is getting on.
#[derive(Default)]
struct Flatten {
    /// What was to be copied when it began.
    total_bytes: u64,
    /// Snapshots of the volume that need something of other volumes.
    in_need: Vec<Snapshot>,
    waits_for: Vec<String>,
    /// A task looks at older snapshots and lets go.
    is_letting_go: bool,
    is_done: bool,
    failures: u32,
    last_failure: Option<String>,
    /// Nothing is tried before.
    next_ms: u64,
}

impl Flatten {
    fn failed(&mut self, error: &Error, now_ms: u64) {
        let (first, most) = BACKOFF_MS;
        self.next_ms = now_ms + (first << self.failures.min(16)).min(most);
        self.failures += 1;
        self.last_failure = Some(error.to_string());
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.last_failure = None;
    }
}

/// The flattens of this process.
#[derive(Default)]
pub(super) struct Flattens {
    of: HashMap<VolumeId, Flatten>,
    next_ms: u64,
}

impl Flattens {
    /// Something of the volume could not be copied.
    pub(super) fn failed(&mut self, id: VolumeId, error: &Error, now_ms: u64) {
        if let Some(flatten) = self.of.get_mut(&id) {
            flatten.failed(error, now_ms);
        }
    }

    /// Whether the volume waits after a failure.
    pub(super) fn hold(&self, id: VolumeId, now_ms: u64) -> bool {
        self.of
            .get(&id)
            .is_some_and(|flatten| now_ms < flatten.next_ms)
    }

    /// Something of the volume was copied.
    pub(super) fn succeeded(&mut self, id: VolumeId) {
        if let Some(flatten) = self.of.get_mut(&id) {
            flatten.succeeded();
        }
    }

    fn entry(&mut self, volume: &UploadVolume) -> &mut Flatten {
        self.of.entry(volume.id()).or_insert_with(|| Flatten {
            total_bytes: volume.commit.foreign().bytes,
            ..Flatten::default()
        })
    }
}

/// Notes durably that the volume is to be flattened, if it is a clone.
async fn note(means: Rc<Means>, mut local: LocalHead, answer: Answer) -> Change {
    let id = local.id;
    let work = async {
        let asked = registry::is_clone(&*means.backend, id);
        if !within(ASKING, "ask whether a volume is a clone", asked).await? {
            let text = "the volume is no clone: it needs nothing of other volumes";
            return Err(Error::invalid(text));
        }
        local.flattening = true;
        means.save(local.clone()).await?;
        Ok(Box::new(local))
    };
    let result = work.await;
    Change::FlattenNoted { id, result, answer }
}

/// Releases the pin at the parent's snapshot, unless snapshots of the volume are in need of it:
/// these.
async fn let_go(means: Rc<Means>, id: VolumeId, older: Vec<Snapshot>) -> Change {
    let backend = &*means.backend;
    let work = async {
        let in_need = registry::snapshots_in_need(backend, id, &older).await?;
        if in_need.is_empty() {
            registry::release_clone(backend, id).await?;
        }
        Ok(in_need)
    };
    let result = within(LETTING_GO, "let go of a clone's origin", work).await;
    Change::LetGo { id, result }
}

impl Uploader {
    /// Whether a volume may be flattened: its copies are paced as compaction is.
    pub(super) fn may_flatten(&self, name: &VolumeName) -> Result<VolumeId> {
        let (_, id) = self.find(name)?;
        if self.compactor.is_stopped() {
            let text = "compaction.bytes_per_second is 0, and a flatten keeps to that pace, too";
            return Err(Error::invalid(text));
        }
        Ok(id)
    }

    /// Begins a flatten; no commit of the volume is under way.
    pub(super) fn begin_flatten(&mut self, id: VolumeId, reply: Sender<Result<()>>) {
        let upload = self.volumes.get_mut(&id).expect("it was looked at");
        if upload.local.flattening {
            let _ = reply.send(Ok(()));
            return;
        }
        upload.changing = true;
        let answer = Answer::new(reply, "the request is being noted");
        let (means, local) = (Rc::clone(&self.means), upload.local.clone());
        self.spawn_change(note(means, local, answer));
    }

    /// It is noted that the volume is to be flattened, or not.
    pub(super) fn flatten_noted(
        &mut self,
        id: VolumeId,
        result: Result<Box<LocalHead>>,
        mut answer: Answer,
    ) {
        let result = result.map(|local| {
            if let Some(upload) = self.volumes.get_mut(&id) {
                upload.local = *local;
                self.flattens.of.remove(&id);
                let bytes = self.flattens.entry(upload).total_bytes;
                tracing::info!(volume = %upload.volume.name, bytes, "a flatten begins");
            }
        });
        self.end_change(id, &result);
        answer.give(result);
    }

    /// Looks after the volumes that are being flattened.
    pub(super) fn tend_flattens(&mut self, now_ms: u64) {
        if now_ms < self.flattens.next_ms {
            return;
        }
        self.flattens.next_ms = now_ms + LOOK_EVERY_MS;
        let volumes = &self.volumes;
        self.flattens.of.retain(|id, _| volumes.contains_key(id));
        let wanted = volumes.iter().filter(|(_, v)| v.local.flattening);
        let wanted: Vec<VolumeId> = wanted.map(|(id, _)| *id).collect();
        for id in wanted {
            self.tend_flatten(id, now_ms);
        }
    }

    fn tend_flatten(&mut self, id: VolumeId, now_ms: u64) {
        let volume = &self.volumes[&id];
        let flatten = self.flattens.entry(volume);
        if flatten.is_letting_go || now_ms < flatten.next_ms {
            return;
        }
        let commit = &volume.commit;
        if commit.independent_since().is_none() {
            flatten.waits_for.clear();
            return;
        }
        let is_there = |s: &Snapshot| commit.snapshots().by_id(s.id).is_some();
        flatten.in_need.retain(is_there);
        let names = flatten.in_need.iter();
        let names = names.map(|s| format!("snapshot {:?}", s.name.as_str()));
        flatten.waits_for = names.collect();
        if let Some(oldest) = commit.dependent_point() {
            let text = format!("points in time from @{oldest} on, to leave pitr_window");
            flatten.waits_for.push(text);
        }
        let busy = !volume.is_published() || volume.changing || volume.is_unverified();
        if busy || !flatten.waits_for.is_empty() {
            return;
        }
        flatten.is_letting_go = true;
        let older = commit.dependent_snapshots();
        self.spawn_change(let_go(Rc::clone(&self.means), id, older));
    }

    /// The origin was let go of, or some snapshots still need it.
    pub(super) fn clone_let_go(&mut self, id: VolumeId, result: Result<Vec<Snapshot>>) {
        let now_ms = self.now_ms();
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let flatten = self.flattens.entry(volume);
        flatten.is_letting_go = false;
        match result {
            Ok(in_need) if in_need.is_empty() => {
                // The record is saved with what is noted in it next; until then it is done again.
                volume.local.flattening = false;
                flatten.is_done = true;
                flatten.succeeded();
                tracing::info!(volume = %volume.volume.name, "volume flattened: it needs no other");
            }
            Ok(in_need) => {
                flatten.in_need = in_need;
                flatten.succeeded();
            }
            Err(error) => {
                tracing::warn!(volume = %volume.volume.name, %error, "a flatten goes on later");
                flatten.failed(&error, now_ms);
            }
        }
    }

    /// How the flatten of a volume is getting on.
    pub(super) fn flatten_status(&self, name: &VolumeName) -> Result<FlattenStatus> {
        let (_, id) = self.find(name)?;
        let volume = &self.volumes[&id];
        let foreign = volume.commit.foreign();
        let flatten = self.flattens.of.get(&id);
        let waits_for = flatten.map(|f| f.waits_for.clone()).unwrap_or_default();
        let state = match volume.local.flattening {
            true if waits_for.is_empty() => FlattenState::Copying,
            true => FlattenState::Waiting,
            false if flatten.is_some_and(|flatten| flatten.is_done) => FlattenState::Done,
            false => FlattenState::None,
        };
        Ok(FlattenStatus {
            volume: name.clone(),
            state,
            foreign_bytes: foreign.bytes,
            total_bytes: flatten.map_or(foreign.bytes, |f| f.total_bytes.max(foreign.bytes)),
            foreign_chunks: foreign.chunks,
            waits_for,
            last_failure: flatten.and_then(|flatten| flatten.last_failure.clone()),
        })
    }
}

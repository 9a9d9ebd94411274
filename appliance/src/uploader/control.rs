//! What operators ask of volumes: creation, growth, settings, deletion, commits. Done here because
//! the uploader is the one writer of a volume's manifests; what waits for the backend is done by
//! tasks ([`super::changes`]), so that no hung request stops anything else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam_channel::Sender;
use futures::channel::oneshot;
use taipan_engine::api::{
    FlattenStatus, SnapshotInfo, SnapshotWait, SweepReport, VolumeHistory, VolumeState,
};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::object::SealedRef;
use taipan_engine::registry::VolumeSeed;
use taipan_engine::snapshot::{ImageName, SnapshotName, SnapshotWish};
use taipan_engine::volume::{VolumeName, VolumeSettings};

use super::changes::{self, Change, Creation, Creations, Image};
use super::groups::GroupWish;
use super::patience::{Answer, Zeal};
use super::{Drain, Message, Uploader};
use crate::directory::Volume;
use crate::patience::{Limits, Watch};
use crate::tail::{Tail, TailSource};

/// Makes the new settings of a volume from the old, or refuses.
pub(crate) type SettingsChange = Box<dyn FnOnce(&VolumeSettings) -> Result<VolumeSettings> + Send>;

/// A request of the control plane. The answer comes over `reply`.
pub enum Request {
    /// Create a volume and serve it.
    Create {
        /// Its name.
        name: VolumeName,
        /// Its settings, validated.
        settings: VolumeSettings,
        /// Go on however long the backend is away, unlike for somebody who may ask again.
        insists: bool,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Change settings of a volume; growing is one of them.
    Configure {
        /// Its name.
        name: VolumeName,
        /// Makes the new settings from the old.
        change: SettingsChange,
        /// It says expressly what the loss of a cache means.
        decides: bool,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Open a volume of another appliance and serve it.
    Takeover {
        /// Its name.
        name: VolumeName,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Open a volume that is refused, as a start does, and serve it. One attempt.
    Reopen {
        /// Its name.
        name: VolumeName,
        /// Whoever owns it; else only if it is our own.
        takes_all: bool,
        /// Reads what the WAL holds of it.
        tail: TailSource,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Delete a volume.
    Delete {
        /// Its name.
        name: VolumeName,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Take a snapshot of a volume.
    TakeSnapshot {
        /// Its volume.
        name: VolumeName,
        /// What is wanted.
        wish: SnapshotWish,
        /// When to answer.
        wait: SnapshotWait,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Take snapshots of several volumes by one cut.
    TakeGroup {
        /// What is wanted.
        wish: GroupWish,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Delete a snapshot of a volume.
    DeleteSnapshot {
        /// Its volume.
        name: VolumeName,
        /// The snapshot.
        snapshot: SnapshotName,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Create a volume as a clone of a snapshot or point in time, and serve it.
    Clone {
        /// The volume of the image.
        of: VolumeName,
        /// The image.
        image: ImageName,
        /// Name of the new volume.
        name: VolumeName,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Take a volume back to a snapshot or point in time.
    RollBack {
        /// The volume.
        name: VolumeName,
        /// Its image.
        to: ImageName,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Make a clone independent of the volume that it was cloned from, in the background.
    Flatten {
        /// The clone.
        name: VolumeName,
        /// Tells that it is noted.
        reply: Sender<Result<()>>,
    },
    /// Tell how that is getting on.
    FlattenStatus {
        /// The clone.
        name: VolumeName,
        /// Takes it.
        reply: Sender<Result<FlattenStatus>>,
    },
    /// Delete what is stored under a volume and named by nothing, or only count it.
    Sweep {
        /// The volume.
        name: VolumeName,
        /// Only count.
        dry_run: bool,
        /// Tells what was found.
        reply: Sender<Result<SweepReport>>,
    },
    /// Say which of these objects nothing names or ever will. Asked by a sweep.
    Judge {
        /// The volume.
        id: VolumeId,
        /// Stored before this was asked.
        listed: Vec<SealedRef>,
        /// Tells which.
        reply: oneshot::Sender<Result<Vec<SealedRef>>>,
    },
    /// Tell the points in time of a volume.
    History {
        /// Its name.
        name: VolumeName,
        /// Takes them.
        reply: Sender<Result<VolumeHistory>>,
    },
    /// Tell the snapshots of a volume.
    ListSnapshots {
        /// Its name.
        name: VolumeName,
        /// Takes them.
        reply: Sender<Result<Vec<SnapshotInfo>>>,
    },
    /// Commit everything answered before, of all volumes.
    Drain {
        /// Tells how it ended.
        reply: Sender<std::result::Result<(), String>>,
    },
    /// Commit everything of one volume answered before.
    Commit {
        /// Its name.
        name: VolumeName,
        /// Tells how it ended.
        reply: Sender<std::result::Result<(), String>>,
    },
    /// End. `clean`: everything answered is durable in the WAL or committed.
    Stop {
        /// Mark the volumes as closed in order.
        clean: bool,
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
}

/// A request that waits until its volume has no commit under way. The volume is in no cut
/// meanwhile, so a commit that cannot end must not hold it for ever.
pub(super) struct Waiting {
    request: Request,
    id: VolumeId,
    watch: Watch,
}

impl Waiting {
    pub(super) fn is_for(&self, id: VolumeId) -> bool {
        self.id == id
    }
}

impl Uploader {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Create {
                name,
                settings,
                insists,
                reply,
            } => self.create(name, Image::Zeros(settings), Zeal::of(insists), reply),
            Request::Clone {
                ref of, ref image, ..
            } => match self.snapshot_to_clone(of, image) {
                Ok((id, Some(snapshot))) => self.clone_snapshot(id, snapshot, request),
                Ok((id, None)) => self.begin_when_settled(id, request),
                Err(error) => answer(request, error),
            },
            Request::Takeover { name, reply } => self.begin_takeover(name, reply),
            Request::Reopen {
                name,
                takes_all,
                tail,
                reply,
            } => self.begin_reopening(&name, takes_all, tail, reply),
            Request::Drain { reply } => self.drain(reply),
            Request::Commit { name, reply } => self.commit(&name, reply),
            Request::Stop { .. } => self.stopping = Some(request),
            Request::TakeSnapshot {
                name,
                wish,
                wait,
                reply,
            } => self.take_snapshot(&name, wish, wait, reply),
            Request::TakeGroup { wish, reply } => self.take_group(&wish, reply),
            Request::ListSnapshots { name, reply } => _ = reply.send(self.list_snapshots(&name)),
            Request::Sweep {
                name,
                dry_run,
                reply,
            } => self.begin_sweep(name, dry_run, reply),
            Request::Judge { id, .. } => match self.volumes.contains_key(&id) {
                true => self.begin_when_settled(id, request),
                false => answer(request, deleted()),
            },
            Request::History { name, reply } => _ = reply.send(self.history(&name)),
            Request::FlattenStatus { name, reply } => _ = reply.send(self.flatten_status(&name)),
            Request::Flatten { ref name, .. } => match self.may_flatten(name) {
                Ok(id) => self.begin_when_settled(id, request),
                Err(error) => answer(request, error),
            },
            Request::Configure { ref name, .. } | Request::Delete { ref name, .. } => {
                match self.find(name) {
                    Ok((_, id)) => self.begin_when_settled(id, request),
                    Err(error) => answer(request, error),
                }
            }
            Request::DeleteSnapshot {
                ref name,
                ref snapshot,
                ..
            } => match self.find_snapshot(name, snapshot) {
                Ok(id) => self.begin_when_settled(id, request),
                Err(error) => answer(request, error),
            },
            Request::RollBack {
                ref name, ref to, ..
            } => match self.find_image(name, to) {
                Ok((id, _)) => self.begin_when_settled(id, request),
                Err(error) => answer(request, error),
            },
        }
    }

    fn drain(&mut self, reply: Sender<std::result::Result<(), String>>) {
        self.coordinator.demand_cut();
        self.drains.push(Drain {
            volume: None,
            through: None,
            reply,
        });
    }

    fn commit(&mut self, name: &VolumeName, reply: Sender<std::result::Result<(), String>>) {
        match self.find(name) {
            Ok((_, id)) => {
                let through = self.clock.now();
                self.coordinator.want(id, through);
                self.drains.push(Drain {
                    volume: Some(id),
                    through: Some(through),
                    reply,
                });
            }
            Err(error) => _ = reply.send(Err(error.to_string())),
        }
    }

    fn begin_when_settled(&mut self, id: VolumeId, request: Request) {
        self.coordinator.hold(id);
        let answers = self.means.backend.answers();
        self.waiting.push(Waiting {
            request,
            id,
            watch: Watch::begin(Limits::default(), answers, Instant::now()),
        });
    }

    /// Begins the requests whose volume has no commit under way.
    pub(super) fn run_waiting(&mut self, now_ms: u64) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            let id = waiting.id;
            let Some(upload) = self.volumes.get_mut(&id) else {
                answer(waiting.request, deleted());
                // It may be served again, as after a rollback.
                self.unhold_if_free(id);
                continue;
            };
            if upload.volume.state().0 == VolumeState::Fenced {
                answer(waiting.request, fenced());
            } else if !upload.changing && upload.settle(now_ms) {
                self.begin(id, waiting.request);
            } else if self.may_settle(&mut waiting.watch) {
                self.waiting.push(waiting);
                continue;
            } else {
                answer(waiting.request, not_settled());
            }
            self.unhold_if_free(id);
        }
    }

    /// Whether a commit under way may still end soon.
    fn may_settle(&self, watch: &mut Watch) -> bool {
        let now = Instant::now();
        watch.look(self.means.backend.answers(), now);
        !watch.is_late(now)
    }

    /// Lets commits of the volume go on once nobody changes its head otherwise.
    fn unhold_if_free(&mut self, id: VolumeId) {
        let changing = self.volumes.get(&id).is_some_and(|volume| volume.changing);
        if !changing && self.waiting.iter().all(|waiting| waiting.id != id) {
            self.coordinator.unhold(id);
        }
    }

    fn begin(&mut self, id: VolumeId, request: Request) {
        match request {
            Request::Configure {
                change,
                decides,
                reply,
                ..
            } => {
                let settings = change(&self.volumes[&id].head().settings);
                let settings = settings.and_then(|s| {
                    s.validate()?;
                    self.may_set(id, &s).map(|()| (s, decides))
                });
                match settings {
                    Ok(settings) => {
                        let upload = self.volumes.get_mut(&id).expect("it was looked at");
                        upload.changing = true;
                        let text = "it is not known yet whether the settings are changed; that is \
                                    tried again as long as this daemon runs";
                        let answer = Answer::new(reply, text);
                        let (head, local) = (upload.head().clone(), upload.local.clone());
                        let means = std::rc::Rc::clone(&self.means);
                        self.spawn_change(changes::configure(means, head, local, settings, answer));
                    }
                    Err(error) => _ = reply.send(Err(error)),
                }
            }
            Request::Delete { reply, .. } => self.begin_deletion(id, reply),
            Request::DeleteSnapshot {
                snapshot, reply, ..
            } => self.begin_snapshot_deletion(id, &snapshot, reply),
            Request::RollBack { to, reply, .. } => self.begin_rollback(id, &to, reply),
            Request::Flatten { reply, .. } => self.begin_flatten(id, reply),
            Request::Clone { .. } => self.begin_clone_of_point(id, request),
            Request::Judge { listed, reply, .. } => {
                // The sweep may have been given up.
                let _ = reply.send(self.judge_orphans(id, &listed));
            }
            Request::TakeSnapshot { .. }
            | Request::TakeGroup { .. }
            | Request::History { .. }
            | Request::FlattenStatus { .. }
            | Request::ListSnapshots { .. }
            | Request::Sweep { .. }
            | Request::Create { .. }
            | Request::Takeover { .. }
            | Request::Reopen { .. }
            | Request::Drain { .. }
            | Request::Commit { .. }
            | Request::Stop { .. } => {}
        }
    }

    fn begin_deletion(&mut self, id: VolumeId, reply: Sender<Result<()>>) {
        if self.has_snapshots(id) {
            self.refuse_deletion(id, reply);
            return;
        }
        if let Err(error) = self.close_to_clients(id) {
            let _ = reply.send(Err(error));
            return;
        }
        let upload = self.volumes.get_mut(&id).expect("it was looked at");
        upload.changing = true;
        let answer = Answer::new(reply, "the deletion is pending, it is tried again");
        let (head, means) = (upload.head().clone(), std::rc::Rc::clone(&self.means));
        self.spawn_change(changes::delete(means, head, answer));
    }

    /// Lets no client come any more; `Busy` if there are some.
    pub(super) fn close_to_clients(&self, id: VolumeId) -> Result<()> {
        let volume = &self.volumes[&id].volume;
        volume.closing.store(true, Ordering::SeqCst);
        let clients = volume.connections.load(Ordering::SeqCst);
        if clients == 0 {
            return Ok(());
        }
        volume.closing.store(false, Ordering::SeqCst);
        let text = format!(
            "volume {:?} has connected clients: {clients}; disconnect them first \
             (`taipan connection list` tells who they are)",
            volume.name.as_str()
        );
        Err(Error::new(ErrorKind::Busy, text))
    }

    pub(super) fn create(
        &mut self,
        name: VolumeName,
        image: Image,
        zeal: Zeal,
        reply: Sender<Result<()>>,
    ) {
        let text = format!("a volume {:?} exists already", name.as_str());
        if self.directory.get(&name).is_some() {
            let _ = reply.send(Err(Error::new(ErrorKind::AlreadyExists, text)));
            return;
        }
        // A creation whose outcome is not known goes on under the same seed.
        let seed = match self.creations.begin(&name) {
            Ok(seed) => seed,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let creation = Creation {
            seed,
            name,
            image,
            stamped_through: self.clock.now(),
            zeal,
        };
        let answer = Answer::new(reply, "the creation is pending");
        let means = std::rc::Rc::clone(&self.means);
        self.spawn_change(changes::create(means, creation, answer));
    }

    pub(super) fn spawn_change(&self, work: impl Future<Output = Change> + 'static) {
        let own = self.own.clone();
        let task = async move {
            let change = work.await;
            // The uploader reads its inbox until it stops; the next start finds what was stored.
            let _ = own.unbounded_send(Message::Changed(Box::new(change)));
        };
        glommio::spawn_local_into(task, self.uploads)
            .expect("the task queue exists")
            .detach();
    }

    pub(super) fn find(&self, name: &VolumeName) -> Result<(Arc<Volume>, VolumeId)> {
        let volume = self.directory.get(name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no volume {:?}", name.as_str()),
            )
        })?;
        let id = volume.id;
        let (state, cause) = volume.state();
        if state == VolumeState::Fenced {
            return Err(fenced());
        }
        if !self.volumes.contains_key(&id) {
            let why = cause.unwrap_or_else(|| "it is not open".to_owned());
            let text = format!("volume {:?} cannot be changed: {why}", name.as_str());
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok((volume, id))
    }

    /// A task of an operator's request has ended.
    pub(super) fn changed(&mut self, change: Change) {
        match change {
            Change::ViewOpened(change) => self.view_opened(*change),
            Change::BitmapLoaded(change) => self.bitmap_loaded(*change),
            Change::Created {
                creation,
                result,
                mut answer,
            } => {
                self.creations.end(&creation.name, &result);
                self.keep_image(creation.image);
                let serve = |opened: Box<_>| self.serve_opened(*opened, Tail::default());
                let result = result.map(serve);
                answer.give(result);
            }
            Change::Configured {
                id,
                result,
                mut answer,
            } => {
                let result = result.and_then(|changed| self.adopt_settings(id, *changed));
                self.end_change(id, &result);
                answer.give(result);
            }
            Change::GroupSettled { lead, result } => self.group_settled(lead, result),
            Change::SnapshotDeleted {
                id,
                result,
                mut answer,
            } => {
                let result = result.and_then(|changed| self.adopt_snapshots(id, *changed));
                self.end_doom(id);
                self.end_change(id, &result);
                answer.give(result);
            }
            Change::TakenOver {
                name,
                stamped_through,
                result,
                mut answer,
            } => match result {
                Ok(regained) => self.taken_over(name, stamped_through, regained, answer),
                Err(error) => answer.give(Err(error)),
            },
            Change::FlattenNoted { id, result, answer } => self.flatten_noted(id, result, answer),
            Change::PointKept(change) => self.point_kept(*change),
            Change::LetGo { id, result } => self.clone_let_go(id, result),
            Change::RolledBack { id, result, answer } => self.rolled_back(id, result, answer),
            Change::Deleted {
                id,
                result,
                mut answer,
            } => {
                match &result {
                    Ok(()) => {
                        self.forget_deleted(id);
                        self.space.free(id);
                    }
                    Err(_) => {
                        if let Some(upload) = self.volumes.get(&id) {
                            upload.volume.closing.store(false, Ordering::SeqCst);
                        }
                        self.end_change(id, &result);
                    }
                }
                answer.give(result);
            }
        }
    }

    pub(super) fn end_change(&mut self, id: VolumeId, result: &Result<()>) {
        if let Some(upload) = self.volumes.get_mut(&id) {
            upload.changing = false;
        }
        if let Err(error) = result
            && error.kind() == ErrorKind::Fenced
        {
            self.fenced(id, &error.to_string());
        }
        self.unhold_if_free(id);
    }

    /// Ends once no local head record is being saved: the last word on each is this one's.
    pub(super) fn stop_when_saved(&mut self) {
        if self.means.saves.get() > 0 {
            return;
        }
        self.means.stopped.set(true);
        if let Some(Request::Stop { clean, reply }) = self.stopping.take() {
            let _ = reply.send(self.close_volumes(clean));
            self.stopped = true;
        }
    }

    /// Records that the volumes were closed in order: no answered write is anywhere but in the WAL
    /// and the image.
    fn close_volumes(&mut self, clean: bool) -> Result<()> {
        if !clean {
            return Ok(());
        }
        for upload in self.volumes.values_mut() {
            upload.local.close();
            self.means.heads.save(&upload.local)?;
        }
        // Those that are refused: what was known of them is durable in the log.
        for (id, local) in self.means.heads.load_all()? {
            if let Ok(mut local) = local
                && !self.volumes.contains_key(&id)
                && !local.clean
            {
                local.close();
                self.means.heads.save(&local)?;
            }
        }
        Ok(())
    }
}

impl Creations {
    /// The seed under which the volume is created.
    fn begin(&mut self, name: &VolumeName) -> Result<VolumeSeed> {
        if self.running.contains(name) {
            let text = format!("volume {:?} is being created", name.as_str());
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let seed = match self.unknown.get(name) {
            Some(seed) => *seed,
            None => VolumeSeed::random()?,
        };
        self.running.insert(name.clone());
        self.unknown.insert(name.clone(), seed);
        Ok(seed)
    }

    fn end<T>(&mut self, name: &VolumeName, result: &Result<T>) {
        self.running.remove(name);
        let known = match result {
            Ok(_) => true,
            Err(error) => super::patience::is_final(error.kind()),
        };
        if known {
            self.unknown.remove(name);
        }
    }
}

fn fenced() -> Error {
    Error::new(
        ErrorKind::Fenced,
        "another appliance has taken the volume over",
    )
}

fn deleted() -> Error {
    Error::new(ErrorKind::NotFound, "the volume was deleted meanwhile")
}

fn not_settled() -> Error {
    let text = "a commit of the volume does not end, see the backend's state; try again later";
    Error::new(ErrorKind::Transient, text)
}

pub(super) fn answer(request: Request, error: Error) {
    if let Request::Judge { reply, .. } = request {
        let _ = reply.send(Err(error));
        return;
    }
    if let Request::Configure { reply, .. }
    | Request::Delete { reply, .. }
    | Request::DeleteSnapshot { reply, .. }
    | Request::Flatten { reply, .. }
    | Request::Clone { reply, .. }
    | Request::RollBack { reply, .. } = request
    {
        let _ = reply.send(Err(error));
    }
}

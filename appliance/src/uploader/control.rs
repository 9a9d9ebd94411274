//! What operators ask of volumes: creation, growth, settings, deletion, drain. Done here because
//! the uploader is the one writer of a volume's manifests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Sender, bounded};
use taipan_engine::api::VolumeState;
use taipan_engine::block::ShardId;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::index::Overlay;
use taipan_engine::registry::{self, VolumeSeed};
use taipan_engine::volume::{OnLostCache, VolumeName, VolumeSettings};

use super::{Drain, UploadVolume, Uploader};
use crate::directory::Volume;
use crate::inbox::{AddVolume, CoreMessage};
use crate::opening::open_volume;

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
        /// Tells how it ended.
        reply: Sender<Result<()>>,
    },
    /// Change settings of a volume; growing is one of them.
    Configure {
        /// Its name.
        name: VolumeName,
        /// Makes the new settings from the old.
        change: SettingsChange,
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
    /// Commit everything answered before.
    Drain {
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

/// How long a request waits for the commit under way. No cut is taken meanwhile, so a commit that
/// cannot end must not hold it for ever.
const WAIT_MS_MAX: u64 = 60_000;

/// A request that waits until its volume has no commit under way.
pub(super) struct Waiting {
    request: Request,
    until_ms: u64,
}

impl Uploader {
    pub(super) async fn request(&mut self, request: Request) {
        match request {
            Request::Create {
                name,
                settings,
                reply,
            } => {
                let _ = reply.send(self.create(name, settings).await);
            }
            Request::Drain { reply } => {
                self.coordinator.demand_cut();
                self.drains.push(Drain {
                    through: None,
                    reply,
                });
            }
            Request::Stop { .. } => self.stopping = Some(request),
            Request::Configure { .. } | Request::Delete { .. } => self.waiting.push(Waiting {
                request,
                until_ms: self.now_ms() + WAIT_MS_MAX,
            }),
        }
    }

    /// Handles requests that need a volume without a commit under way.
    pub(super) async fn run_waiting(&mut self, now_ms: u64) {
        for waiting in std::mem::take(&mut self.waiting) {
            let (Request::Configure { name, .. } | Request::Delete { name, .. }) = &waiting.request
            else {
                continue;
            };
            let volume = self.directory.get(name);
            let settled = volume.as_ref().is_none_or(|volume| {
                self.volumes
                    .get(&volume.id)
                    .is_none_or(UploadVolume::is_settled)
            });
            let fenced = volume.is_some_and(|v| v.state().0 == VolumeState::Fenced);
            if !settled && !fenced && now_ms < waiting.until_ms {
                self.waiting.push(waiting);
                continue;
            }
            if !settled {
                refuse(waiting.request, fenced);
                continue;
            }
            match waiting.request {
                Request::Configure {
                    name,
                    change,
                    reply,
                } => {
                    let _ = reply.send(self.configure(&name, change).await);
                }
                Request::Delete { name, reply } => {
                    let _ = reply.send(self.delete(&name).await);
                }
                Request::Create { .. } | Request::Drain { .. } | Request::Stop { .. } => {}
            }
        }
    }

    fn find(&self, name: &VolumeName) -> Result<(Arc<Volume>, VolumeId)> {
        let volume = self.directory.get(name).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no volume {:?}", name.as_str()),
            )
        })?;
        let id = volume.id;
        if !self.volumes.contains_key(&id) {
            let (_, cause) = volume.state();
            let why = cause.unwrap_or_else(|| "it is not open".to_owned());
            let text = format!("volume {:?} cannot be changed: {why}", name.as_str());
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok((volume, id))
    }

    async fn create(&mut self, name: VolumeName, settings: VolumeSettings) -> Result<()> {
        if self.directory.get(&name).is_some() {
            let text = format!("a volume {:?} exists already", name.as_str());
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let backend = &*self.means.backend;
        let seed = VolumeSeed::random()?;
        registry::create_volume(backend, seed, &name, &settings).await?;
        let opened = open_volume(backend, &self.means.heads, seed.id, self.clock.now()).await?;
        let slot = self.directory.free_slot();
        let volume = Arc::new(Volume::serving(slot, &opened.local, opened.was_clean));
        let (ack, done) = bounded(0);
        for (index, core) in self.cores.iter().enumerate() {
            let own = ShardId::all().filter(|shard| shard.core(self.cores.len()) == index);
            let parts = own.map(|shard| {
                (
                    shard,
                    Overlay::new(),
                    opened.commit.base().shard(shard).clone(),
                )
            });
            core.send(CoreMessage::AddVolume(Box::new(AddVolume {
                slot,
                id: seed.id,
                settings: settings.clone(),
                read_only: false,
                committed: opened.commit.head().epoch,
                parts: parts.collect(),
                ack: ack.clone(),
            })));
        }
        drop(ack);
        // Cores answer within a turn; the channel closes when all have.
        let _ = done.recv();
        let upload = UploadVolume::new(opened.commit, opened.local, Arc::clone(&volume));
        upload.fill_tables(&self.tables);
        self.volumes.insert(seed.id, upload);
        self.directory.insert(volume);
        tracing::info!(volume = %name, id = %seed.id, size = settings.size_bytes, "volume created");
        Ok(())
    }

    async fn configure(&mut self, name: &VolumeName, change: SettingsChange) -> Result<()> {
        let (volume, id) = self.find(name)?;
        let upload = self.volumes.get_mut(&id).expect("looked at by find");
        let settings = change(&upload.head().settings)?;
        settings.validate()?;
        let head = registry::configure(&*self.means.backend, upload.head(), &settings).await?;
        let mut local = upload.local.clone();
        local.advance(&head);
        let decided = settings.on_lost_cache != OnLostCache::Refuse
            && settings.on_lost_cache != upload.head().settings.on_lost_cache;
        let state = match settings.on_lost_cache {
            OnLostCache::ReadOnly => VolumeState::ReadOnly,
            OnLostCache::Continue | OnLostCache::Refuse => VolumeState::Online,
        };
        let serve = decided && std::mem::take(&mut local.lost_cache);
        // Stored is stored: the next commit must follow it, whether or not it is noted locally.
        let noted = self.means.heads.save(&local);
        upload.adopt(head, local);
        noted?;
        // Durable before anybody can see it.
        let mut current = volume
            .settings
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *current = settings.clone();
        drop(current);
        if serve {
            volume
                .read_only
                .store(state == VolumeState::ReadOnly, Ordering::Release);
            volume.set_state(state, None);
        }
        let read_only = volume.read_only.load(Ordering::Acquire);
        for core in &self.cores {
            let (slot, ack_mode) = (volume.slot, settings.ack);
            core.send(CoreMessage::Configure {
                slot,
                ack_mode,
                read_only,
            });
        }
        tracing::info!(volume = %name, size = settings.size_bytes, "volume settings changed");
        Ok(())
    }

    async fn delete(&mut self, name: &VolumeName) -> Result<()> {
        let (volume, id) = self.find(name)?;
        volume.closing.store(true, Ordering::SeqCst);
        let clients = volume.connections.load(Ordering::SeqCst);
        if clients > 0 {
            volume.closing.store(false, Ordering::SeqCst);
            let text = format!(
                "volume {:?} has {clients} connected clients; disconnect them first",
                name.as_str()
            );
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let head = self.volumes[&id].head().clone();
        if let Err(error) = registry::delete_volume(&*self.means.backend, &head).await {
            volume.closing.store(false, Ordering::SeqCst);
            return Err(error);
        }
        let (ack, done) = bounded(0);
        for core in &self.cores {
            core.send(CoreMessage::RemoveVolume {
                slot: volume.slot,
                ack: ack.clone(),
            });
        }
        drop(ack);
        let _ = done.recv();
        self.coordinator.forget_volume(id);
        self.volumes.remove(&id);
        self.directory.remove(name);
        self.tables.forget(id);
        self.metrics.forget(name);
        self.means.heads.remove(id)?;
        tracing::info!(volume = %name, %id, "volume deleted");
        Ok(())
    }

    /// Ends once no local head record is being saved: the last word on each is this one's.
    pub(super) fn stop_when_saved(&mut self) {
        if self.volumes.values().any(|volume| volume.saving) {
            return;
        }
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
            upload.local.clean = true;
            let undecided = upload.local.settings.on_lost_cache == OnLostCache::Refuse;
            upload.local.lost_cache &= undecided;
            self.means.heads.save(&upload.local)?;
        }
        // Those that are refused: what was known of them is durable in the log.
        for (id, local) in self.means.heads.load_all()? {
            if let Ok(mut local) = local
                && !self.volumes.contains_key(&id)
                && !local.clean
            {
                local.clean = true;
                self.means.heads.save(&local)?;
            }
        }
        Ok(())
    }
}

fn refuse(request: Request, fenced: bool) {
    let error = if fenced {
        Error::new(
            ErrorKind::Fenced,
            "another appliance has taken the volume over",
        )
    } else {
        let text = "a commit of the volume does not end, see the backend's state; try again later";
        Error::new(ErrorKind::Transient, text)
    };
    if let Request::Configure { reply, .. } | Request::Delete { reply, .. } = request {
        let _ = reply.send(Err(error));
    }
}

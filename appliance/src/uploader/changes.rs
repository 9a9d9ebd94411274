//! Tasks that change volumes in the backend for an operator, and what becomes of their results.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::bounded;
use taipan_engine::api::VolumeState;
use taipan_engine::block::ShardId;
use taipan_engine::commit::VolumePace;
use taipan_engine::error::{Error, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::{IndexedImage, Overlay, VolumeBase};
use taipan_engine::manifest::Manifest;
use taipan_engine::registry::{self, CloneLayout, GroupVerdict, LocalHead, VolumeSeed};
use taipan_engine::shard::VolumeSlot;
use taipan_engine::snapshot::{Snapshot, SnapshotId};
use taipan_engine::volume::{OnLostCache, VolumeName, VolumeSettings};

use super::bitmaps::BitmapChange;
use super::clones::PointChange;
use super::effects::Means;
use super::patience::{Answer, Zeal, until_known, while_answering, with_zeal};
use super::points::wall_clock;
use super::takeover::Regained;
use super::views::ViewChange;
use super::{UploadVolume, Uploader};
use crate::directory::Volume;
use crate::inbox::{AddVolume, CoreMessage};
use crate::opening::{Opened, open_created, open_volume};
use crate::tail::Tail;

/// A volume to be created.
pub(crate) struct Creation {
    pub(super) seed: VolumeSeed,
    pub(super) name: VolumeName,
    pub(super) image: Image,
    pub(super) stamped_through: Epoch,
    pub(super) zeal: Zeal,
}

/// What a volume to be created begins as.
pub(super) enum Image {
    /// Zeros, with these settings.
    Zeros(VolumeSettings),
    /// A snapshot, with its volume's settings.
    Snapshot(Box<CloneOf>),
}

/// What a clone is made of.
pub(super) struct CloneOf {
    pub(super) parent: VolumeId,
    pub(super) snapshot: Snapshot,
    /// The snapshot's image, if it is in memory, or once it was read.
    pub(super) image: Option<IndexedImage>,
}

/// Creations under way, and those whose outcome is not known.
#[derive(Default)]
pub(super) struct Creations {
    pub(super) running: HashSet<VolumeName>,
    pub(super) unknown: HashMap<VolumeName, VolumeSeed>,
}

/// How a task ended.
pub(crate) enum Change {
    Created {
        creation: Creation,
        result: Result<Box<Opened>>,
        answer: Answer,
    },
    Configured {
        id: VolumeId,
        result: Result<Box<Configured>>,
        answer: Answer,
    },
    GroupSettled {
        lead: SnapshotId,
        result: Result<GroupVerdict>,
    },
    SnapshotDeleted {
        id: VolumeId,
        result: Result<Box<Configured>>,
        answer: Answer,
    },
    TakenOver {
        name: VolumeName,
        stamped_through: Epoch,
        result: Result<Regained>,
        answer: Answer,
    },
    RolledBack {
        id: VolumeId,
        result: Result<Regained>,
        answer: Answer,
    },
    FlattenNoted {
        id: VolumeId,
        result: Result<Box<LocalHead>>,
        answer: Answer,
    },
    PointKept(Box<PointChange>),
    /// Snapshots that still need the origin of their volume; if none do, it was let go of.
    LetGo {
        id: VolumeId,
        result: Result<Vec<Snapshot>>,
    },
    Deleted {
        id: VolumeId,
        result: Result<()>,
        answer: Answer,
    },
    ViewOpened(Box<ViewChange>),
    BitmapLoaded(Box<BitmapChange>),
}

/// What the cores are told of a volume, or of a snapshot that is served like one.
pub(super) struct AddedToCores<'a> {
    pub(super) slot: VolumeSlot,
    pub(super) id: VolumeId,
    pub(super) settings: &'a VolumeSettings,
    pub(super) read_only: bool,
    pub(super) committed: Epoch,
    pub(super) base: &'a VolumeBase,
}

/// A manifest with new settings that is stored.
pub(crate) struct Configured {
    pub(super) head: Manifest,
    pub(super) local: LocalHead,
    /// The state in which the volume is served from now on, if the operator decided that.
    pub(super) decided: Option<VolumeState>,
    /// Whether the record was saved.
    pub(super) noted: Result<()>,
}

/// Creates the volume and opens it.
async fn try_create(means: &Means, creation: &mut Creation) -> Result<Opened> {
    let (backend, heads) = (&*means.backend, &means.heads);
    let Creation {
        seed,
        name,
        image,
        stamped_through,
        ..
    } = creation;
    match image {
        Image::Zeros(settings) => {
            registry::create_volume(backend, *seed, name, settings).await?;
        }
        Image::Snapshot(of) => {
            let (from, layout) = ((of.parent, &of.snapshot), CloneLayout::default());
            let image = of.image.clone();
            let made = registry::create_clone_from(backend, *seed, name, from, layout, image);
            let made = made.await?;
            if let Some((index, image)) = made.index {
                of.image = Some(image);
                return open_created(backend, heads, (&made.first, index), *stamped_through).await;
            }
        }
    }
    open_volume(backend, heads, seed.id, *stamped_through).await
}

/// Creates the volume and opens it. One that is given up goes on when it is repeated.
pub(super) async fn create(means: Rc<Means>, mut creation: Creation, mut answer: Answer) -> Change {
    let what = format!("create volume {:?}", creation.name.as_str());
    let (backend, zeal) = (&*means.backend, creation.zeal);
    let created = with_zeal(backend, &what, zeal, &mut answer, async || {
        try_create(&means, &mut creation).await.map(Box::new)
    });
    let result = created.await;
    Change::Created {
        creation,
        result,
        answer,
    }
}

/// Stores a manifest with new settings. Refuses, with nothing changed, if the backend does not
/// answer beforehand. Once it was asked to store it, it is repeated however long that takes: while
/// its outcome is open no other manifest may follow. With the settings: whether they say expressly
/// what a lost cache means.
pub(super) async fn configure(
    means: Rc<Means>,
    old: Manifest,
    mut local: LocalHead,
    (settings, decides): (VolumeSettings, bool),
    mut answer: Answer,
) -> Change {
    let id = old.volume;
    let (backend, now) = (&*means.backend, wall_clock());
    let asked = registry::read_manifest(backend, id, old.number);
    if let Err(error) = while_answering(backend, "ask the backend", asked).await {
        let text = "nothing was changed: the backend does not answer; try again when it does";
        let result = Err(Error::new(error.kind(), text).with_source(error));
        return Change::Configured { id, result, answer };
    }
    let stored = until_known(backend, "change settings", &mut answer, async || {
        failpoint::hit("configure.put").map_err(|e| Error::io("failpoint", e))?;
        registry::configure(backend, &old, &settings, now).await
    });
    let result = match stored.await {
        Ok(head) => {
            local.advance(&head);
            let decision = if decides { local.decide() } else { None };
            let decided = decision.and_then(|decision| match decision {
                OnLostCache::Continue => Some(VolumeState::Online),
                OnLostCache::ReadOnly => Some(VolumeState::ReadOnly),
                // Whoever is connected stays; the next start refuses it.
                OnLostCache::Refuse => None,
            });
            // Stored is stored: the next commit must follow it, whether or not it is noted locally.
            let noted = means.save(local.clone()).await;
            Ok(Box::new(Configured {
                head,
                local,
                decided,
                noted,
            }))
        }
        Err(error) => Err(error),
    };
    Change::Configured { id, result, answer }
}

/// Deletes the volume in the backend and its local record, however long that takes.
pub(super) async fn delete(means: Rc<Means>, head: Manifest, mut answer: Answer) -> Change {
    let id = head.volume;
    let backend = &*means.backend;
    let deleted = until_known(backend, "delete a volume", &mut answer, async || {
        failpoint::hit("delete.put").map_err(|e| Error::io("failpoint", e))?;
        registry::delete_volume(backend, &head).await
    });
    let result = match deleted.await {
        Ok(_) => means.change_records(move |heads| heads.remove(id)).await,
        Err(error) => Err(error),
    };
    Change::Deleted { id, result, answer }
}

impl Uploader {
    /// A volume was created, or is opened anew with what `tail` holds of it: the cores serve it
    /// from now on.
    pub(super) fn serve_opened(&mut self, opened: Opened, mut tail: Tail) {
        let slot = self.directory.free_slot();
        let (id, settings) = (opened.local.id, opened.local.settings.clone());
        let opened_generation = opened.local.generation;
        let mut volume = Volume::serving(slot, &opened.local, opened.was_clean);
        if !opened.was_clean {
            volume.note_lost_cache();
        }
        let read_only = *volume.read_only.get_mut();
        let volume = Arc::new(volume);
        self.add_to_cores(
            &AddedToCores {
                slot,
                id,
                settings: &settings,
                read_only,
                committed: opened.local.released_through(),
                base: opened.commit.base(),
            },
            |shard| tail.take(shard),
        );
        let upload = UploadVolume::new(opened.commit, opened.local, Arc::clone(&volume));
        upload.fill_tables(&self.tables);
        self.coordinator.set_pace(id, VolumePace::of(&settings));
        self.volumes.insert(id, upload);
        self.directory.insert(Arc::clone(&volume));
        let (name, bytes) = (&volume.name, settings.size_bytes);
        let generation = opened_generation.0;
        tracing::info!(volume = %name, %id, bytes, generation, "volume opened for writing");
    }

    /// Has every core serve a volume, and waits until they do. `overlay` gives what each shard has
    /// of it that is not committed.
    pub(super) fn add_to_cores(
        &self,
        added: &AddedToCores<'_>,
        mut overlay: impl FnMut(ShardId) -> Overlay,
    ) {
        let (ack, done) = bounded(0);
        for (index, core) in self.cores.iter().enumerate() {
            let own = ShardId::all().filter(|shard| shard.core(self.cores.len()) == index);
            let parts = own.map(|shard| (shard, overlay(shard), added.base.shard(shard).clone()));
            core.send(CoreMessage::AddVolume(Box::new(AddVolume {
                slot: added.slot,
                id: added.id,
                settings: added.settings.clone(),
                read_only: added.read_only,
                committed: added.committed,
                parts: parts.collect(),
                ack: ack.clone(),
            })));
        }
        drop(ack);
        // Cores answer within a turn; the channel closes when all have.
        let _ = done.recv();
    }

    /// New settings are stored: they hold from now on.
    pub(super) fn adopt_settings(&mut self, id: VolumeId, changed: Configured) -> Result<()> {
        let Some(upload) = self.volumes.get_mut(&id) else {
            return Ok(());
        };
        let settings = changed.head.settings.clone();
        upload.adopt(changed.head, changed.local);
        let volume = Arc::clone(&upload.volume);
        let mut current = volume
            .settings
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *current = settings.clone();
        drop(current);
        volume.throttle.set(&settings);
        if let Some(state) = changed.decided {
            let read_only = state == VolumeState::ReadOnly;
            volume.read_only.store(read_only, Ordering::Release);
            let cause = volume.state().1.filter(|_| read_only);
            volume.set_state(state, cause);
            if state == VolumeState::Online {
                volume.accept_loss();
            }
        }
        volume.verified();
        self.coordinator.set_pace(id, VolumePace::of(&settings));
        let read_only = volume.read_only.load(Ordering::Acquire);
        for core in &self.cores {
            core.send(CoreMessage::Configure {
                slot: volume.slot,
                settings: settings.clone(),
                read_only,
            });
        }
        let bytes = settings.size_bytes;
        tracing::info!(volume = %volume.name, bytes, "volume settings changed");
        changed.noted
    }

    /// Has every core stop serving the volume of that slot, and waits until they have.
    pub(super) fn remove_from_cores(&mut self, slot: VolumeSlot, is_deleted: bool) {
        self.forget_bitmaps_of(slot);
        let (ack, done) = bounded(0);
        for core in &self.cores {
            let ack = ack.clone();
            core.send(CoreMessage::RemoveVolume {
                slot,
                is_deleted,
                ack,
            });
        }
        drop(ack);
        // Each core drops its end when it is done; nothing is ever sent.
        let _ = done.recv();
    }

    /// A volume was deleted: nothing of it is served or committed any more.
    pub(super) fn forget_deleted(&mut self, id: VolumeId) {
        let Some(upload) = self.volumes.remove(&id) else {
            return;
        };
        let volume = upload.volume;
        self.drop_views_of(id);
        self.remove_from_cores(volume.slot, true);
        self.coordinator.forget_volume(id);
        self.fail_drains(id, "the volume was deleted");
        self.clock.exposures().forget(id);
        self.directory.remove(&volume.name);
        self.tables.forget(id);
        self.metrics.forget(&volume.name);
        tracing::info!(volume = %volume.name, %id, "volume deleted");
    }
}

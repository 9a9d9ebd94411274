//! Snapshots and points in time that clients read over NBD: opened when one is named, shared by all
//! who read it, closed some time after the last one has left. See `docs/internals/snapshots.md`.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::{ManifestNum, VolumeId};
use taipan_engine::index::{Overlay, VolumeBase};
use taipan_engine::registry::{self, LocalHead, random_u64};
use taipan_engine::snapshot::{ImageName, KeptImage, QualifiedImage, SnapshotName};
use taipan_engine::volume::{Ack, Durability, VolumeSettings};
use taipan_nbd::LookupError;

use super::Uploader;
use super::changes::{AddedToCores, Change};
use super::effects::Means;
use super::patience::while_answering;
use crate::directory::{View, Volume};
use crate::inbox::{CoreAddress, CoreMessage};

/// Snapshots that are open at a time: each has its index in memory.
const VIEWS_MAX: usize = 64;
/// A snapshot that nobody reads stays open for so long: whoever comes back finds it.
pub(super) const IDLE_MS: u64 = 30_000;
/// Readers that a refusal spells out.
const READERS_TOLD: usize = 5;

/// A client whose handshake waits. Answered by [`CoreMessage::ViewOpened`].
pub struct Asker {
    /// The client's core.
    pub core: CoreAddress,
    /// Its connection there.
    pub connection: u64,
}

impl Asker {
    pub(super) fn answer(self, result: std::result::Result<(), LookupError>) {
        let connection = self.connection;
        self.core
            .send(CoreMessage::ViewOpened { connection, result });
    }
}

/// A client's wish to read a snapshot.
pub struct ViewWish {
    /// The snapshot or point.
    pub name: QualifiedImage,
    /// The client.
    pub asker: Asker,
}

/// The snapshots that are open, or about to be.
#[derive(Default)]
pub(super) struct Views {
    open: HashMap<QualifiedImage, OpenView>,
    opening: HashMap<QualifiedImage, Opening>,
    /// The snapshot of a volume that is being deleted: not opened any more.
    doomed: HashMap<VolumeId, SnapshotName>,
}

/// A snapshot that is being opened.
struct Opening {
    of: VolumeId,
    image: KeptImage,
    /// Who waits for it.
    waiting: Vec<Asker>,
}

struct OpenView {
    volume: Arc<Volume>,
    /// Its image. The leaves are those of the cores.
    base: Rc<VolumeBase>,
    /// Whose snapshot it is.
    of: VolumeId,
    image: KeptImage,
    /// Since when nobody wants it.
    idle_since_ms: Option<u64>,
}

impl Views {
    /// The oldest manifest of the volume that is read as a point in time.
    pub(super) fn oldest_point(&self, volume: VolumeId) -> Option<ManifestNum> {
        let open = self.open.values().map(|open| (open.of, &open.image));
        let opening = self.opening.values().map(|view| (view.of, &view.image));
        let points = open.chain(opening).filter_map(|(of, image)| match image {
            KeptImage::Point(point) if of == volume => Some(point.manifest),
            KeptImage::Point(_) | KeptImage::Snapshot(_) => None,
        });
        points.min()
    }
}

/// What is served of a snapshot.
pub(crate) struct Image {
    /// As a volume, because its chunks have other ordinals than the volume's.
    id: VolumeId,
    settings: VolumeSettings,
    base: VolumeBase,
}

/// How the opening of a snapshot ended.
pub(crate) struct ViewChange {
    name: QualifiedImage,
    of: VolumeId,
    image: KeptImage,
    result: Result<Image>,
}

/// Reads what is needed to serve a snapshot.
async fn open(means: Rc<Means>, name: QualifiedImage, of: VolumeId, image: KeptImage) -> Change {
    let attempt = async {
        failpoint::hit("snapshot.open").map_err(|e| Error::io("failpoint", e))?;
        let (manifest, rebuilt) = registry::read_kept(&*means.backend, of, &image).await?;
        let id = match &image {
            KeptImage::Snapshot(snapshot) => snapshot.id.0,
            KeptImage::Point(_) => random_u64()?,
        };
        Ok(Image {
            id: VolumeId(id),
            settings: manifest.settings,
            base: rebuilt.base,
        })
    };
    let result = while_answering(&*means.backend, "open a snapshot", attempt).await;
    Change::ViewOpened(Box::new(ViewChange {
        name,
        of,
        image,
        result,
    }))
}

/// A snapshot as an export: nothing of it is ever written, so no promise about writes concerns it.
fn served(name: &QualifiedImage, image: &KeptImage, read: &Image) -> (LocalHead, View) {
    let settings = VolumeSettings {
        ack: Ack::default(),
        durability: Durability::default(),
        rpo_seconds: 0,
        rpo_bytes: 0,
        iops: 0,
        bandwidth_bytes: 0,
        ..read.settings.clone()
    };
    let local = LocalHead::named(read.id, name.volume.clone(), settings);
    (local, View::new(name.image.clone(), image.manifest()))
}

impl Uploader {
    /// A client named a snapshot that its core did not find open.
    pub(super) fn open_view(&mut self, wish: ViewWish) {
        if self.views.open.contains_key(&wish.name) {
            return wish.asker.answer(Ok(()));
        }
        if let Some(opening) = self.views.opening.get_mut(&wish.name) {
            return opening.waiting.push(wish.asker);
        }
        match self.may_open(&wish.name) {
            Ok((of, image)) => {
                let (name, means) = (wish.name, Rc::clone(&self.means));
                let opening = Opening {
                    of,
                    image: image.clone(),
                    waiting: vec![wish.asker],
                };
                self.views.opening.insert(name.clone(), opening);
                self.spawn_change(open(means, name, of, image));
            }
            Err(error) => wish.asker.answer(Err(refusal(&error))),
        }
    }

    fn may_open(&mut self, name: &QualifiedImage) -> Result<(VolumeId, KeptImage)> {
        let (of, image) = self.find_image(&name.volume, &name.image)?;
        if let KeptImage::Snapshot(snapshot) = &image
            && self.is_doomed(of, &snapshot.name)
        {
            return Err(Error::new(ErrorKind::NotFound, "it is being deleted"));
        }
        if self.views.open.len() + self.views.opening.len() >= VIEWS_MAX && !self.close_idle() {
            let text = format!("{VIEWS_MAX} snapshots are open already; disconnect from one");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok((of, image))
    }

    /// The image of a snapshot was read, or could not be.
    pub(super) fn view_opened(&mut self, change: ViewChange) {
        let name = change.name.clone();
        let result = self.serve_view(change);
        if let Err(error) = &result {
            tracing::warn!(snapshot = %name, %error, "a snapshot cannot be opened for reading");
        }
        let opening = self.views.opening.remove(&name);
        for asker in opening.into_iter().flat_map(|opening| opening.waiting) {
            asker.answer(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(refusal(error)),
            });
        }
    }

    fn serve_view(&mut self, change: ViewChange) -> Result<()> {
        let ViewChange {
            name, of, image, ..
        } = change;
        let read = change.result?;
        // The volume may have been lost, and the name be another's by now.
        let (_, now) = self.find(&name.volume)?;
        if now != of || !self.still_keeps(of, &image) {
            let text = "it was deleted meanwhile";
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        let (local, view) = served(&name, &image, &read);
        if self.volumes.contains_key(&local.id) {
            return Err(Error::corrupt("the snapshot has the id of a volume"));
        }
        let slot = self.directory.free_slot();
        let mut volume = Volume::serving(slot, &local, true);
        *volume.read_only.get_mut() = true;
        *volume.index_bytes.get_mut() = read.base.heap_bytes() as u64;
        volume.view = Some(view);
        for (ordinal, entry) in read.base.chunks() {
            self.tables.set(local.id, ordinal, Some(entry.reference));
        }
        self.add_to_cores(
            &AddedToCores {
                slot,
                id: local.id,
                settings: &local.settings,
                read_only: true,
                committed: image.epoch(),
                base: &read.base,
            },
            |_| Overlay::default(),
        );
        let volume = Arc::new(volume);
        self.directory
            .insert_view(name.clone(), Arc::clone(&volume));
        tracing::info!(snapshot = %name, %image, id = %local.id, "snapshot opened for reading");
        let open = OpenView {
            volume,
            base: Rc::new(read.base),
            of,
            image,
            idle_since_ms: None,
        };
        self.views.open.insert(name, open);
        Ok(())
    }

    fn still_keeps(&self, of: VolumeId, image: &KeptImage) -> bool {
        let commit = &self.volumes[&of].commit;
        match image {
            KeptImage::Snapshot(snapshot) => commit.snapshots().by_id(snapshot.id).is_some(),
            KeptImage::Point(point) => {
                let since = commit.points().since();
                since.is_some_and(|since| since <= point.manifest)
            }
        }
    }

    /// Closes the snapshots that nobody wanted for a while.
    pub(super) fn expire_views(&mut self, now_ms: u64) {
        let mut expired = Vec::new();
        for (name, open) in &mut self.views.open {
            if open.volume.take_wanted() {
                open.idle_since_ms = None;
            } else {
                let since_ms = *open.idle_since_ms.get_or_insert(now_ms);
                if now_ms >= since_ms + IDLE_MS && open.volume.close_unless_wanted() {
                    expired.push(name.clone());
                }
            }
        }
        for name in expired {
            self.drop_view(&name);
        }
    }

    /// Closes a snapshot that nobody reads to make room for another; false if there is none.
    fn close_idle(&mut self) -> bool {
        let mut open = self.views.open.iter();
        let idle = open.find(|(_, open)| open.volume.close_unless_read());
        let idle = idle.map(|(name, _)| name.clone());
        idle.inspect(|name| self.drop_view(name)).is_some()
    }

    /// Takes a closed snapshot away; whoever reads it is cut off.
    fn drop_view(&mut self, name: &QualifiedImage) {
        let Some(open) = self.views.open.remove(name) else {
            return;
        };
        self.directory.remove_view(name);
        self.remove_from_cores(open.volume.slot, false);
        self.clock.exposures().forget(open.volume.id);
        self.tables.forget(open.volume.id);
        tracing::info!(snapshot = %name, "snapshot closed");
    }

    /// The image of an open snapshot, if it is still that one that is open.
    pub(super) fn image_of_view(&self, view: &Arc<Volume>) -> Option<Rc<VolumeBase>> {
        let mut open = self.views.open.values();
        let open = open.find(|open| Arc::ptr_eq(&open.volume, view))?;
        Some(Rc::clone(&open.base))
    }

    /// Whether the snapshot is about to be deleted.
    pub(super) fn is_doomed(&self, of: VolumeId, snapshot: &SnapshotName) -> bool {
        self.views.doomed.get(&of) == Some(snapshot)
    }

    /// The volume is another writer's from now on: its snapshots are no longer read here.
    pub(super) fn drop_views_of(&mut self, id: VolumeId) {
        let of = |(name, open): (&QualifiedImage, &OpenView)| (open.of == id).then(|| name.clone());
        let names: Vec<_> = self.views.open.iter().filter_map(of).collect();
        for name in names {
            self.views.open[&name]
                .volume
                .closing
                .store(true, Ordering::SeqCst);
            self.drop_view(&name);
        }
    }

    /// A snapshot is about to be deleted: refused, and said by whom, while it is read. From now on
    /// it is not opened.
    pub(super) fn doom_view(&mut self, of: VolumeId, snapshot: &SnapshotName) -> Result<()> {
        let volume = self.volumes[&of].volume.name.clone();
        let name = QualifiedImage {
            volume,
            image: ImageName::Snapshot(snapshot.clone()),
        };
        let busy = |text: String| Err(Error::new(ErrorKind::Busy, text));
        self.free_of_bitmaps(of, snapshot)?;
        if self.views.opening.contains_key(&name) {
            return busy(format!("{name} is being opened by a client"));
        }
        if let Some(open) = self.views.open.get(&name) {
            if !open.volume.close_unless_read() {
                return busy(used_by(&format!("{name} is read"), &open.volume.readers()));
            }
            self.drop_view(&name);
        }
        self.views.doomed.insert(of, snapshot.clone());
        Ok(())
    }

    /// The deletion of a volume's snapshot has ended.
    pub(super) fn end_doom(&mut self, of: VolumeId) {
        self.views.doomed.remove(&of);
    }
}

/// Who is in the way.
pub(super) fn used_by(what: &str, clients: &[String]) -> String {
    let told = &clients[..clients.len().min(READERS_TOLD)];
    let count = clients.len();
    format!("{what} by {count} clients: {told:?}; disconnect them first")
}

/// What a client is told.
pub(super) fn refusal(error: &Error) -> LookupError {
    match error.kind() {
        ErrorKind::NotFound => LookupError::Unknown,
        _ => LookupError::Policy(error.to_string()),
    }
}

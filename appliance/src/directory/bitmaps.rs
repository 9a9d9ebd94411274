//! What has changed since a snapshot, as clients name it: the context
//! `qemu:dirty-bitmap:since-SNAPSHOT` of a volume, and of later snapshots of it. The uploader loads
//! what it is told from and gives it up again ([`crate::uploader`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use taipan_engine::extents::Seat;
use taipan_engine::identity::ManifestNum;
use taipan_engine::snapshot::{Snapshot, SnapshotId, SnapshotName};
use taipan_nbd::LookupError;
use taipan_nbd::protocol::context;

use super::{Directory, Volume};

/// What the name of a bitmap begins with, before the name of its snapshot.
const SINCE: &str = "since-";

/// The context that tells what has changed since a snapshot. Characters of its name beyond
/// `A-Za-z0-9._-` are percent-encoded.
fn context_since(snapshot: &SnapshotName) -> String {
    let name = snapshot.encoded();
    format!("{}{SINCE}{name}", context::QEMU_DIRTY_BITMAP)
}

/// Whether a context is one of these, by its name.
pub fn is_since(context: &str) -> bool {
    let bitmap = context.strip_prefix(context::QEMU_DIRTY_BITMAP);
    bitmap.is_some_and(|name| name.starts_with(SINCE))
}

/// A committed snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// Its name.
    pub name: SnapshotName,
    /// Its identity.
    pub id: SnapshotId,
    /// The manifest whose image it is.
    pub manifest: ManifestNum,
}

impl Bookmark {
    /// That of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            name: snapshot.name.clone(),
            id: snapshot.id,
            manifest: snapshot.manifest,
        }
    }
}

/// The bitmaps of a volume: since which snapshots there may be one, and which are loaded.
#[derive(Debug, Default)]
pub struct Bitmaps {
    bookmarks: RwLock<Arc<[Bookmark]>>,
    loaded: RwLock<Vec<Arc<Bitmap>>>,
}

impl Bitmaps {
    /// The committed snapshots of the volume, oldest first.
    pub fn set_bookmarks<'a>(&self, snapshots: impl Iterator<Item = &'a Snapshot>) {
        let new: Vec<Bookmark> = snapshots.map(Bookmark::of).collect();
        let mut bookmarks = self
            .bookmarks
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *bookmarks = new.into();
    }

    /// Adds one that is loaded.
    pub fn add(&self, bitmap: Arc<Bitmap>) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.push(bitmap);
    }

    /// Removes one that is closed.
    pub fn remove(&self, snapshot: SnapshotId) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|bitmap| bitmap.bookmark.id != snapshot);
    }

    /// Uses the bitmap of that context for the client `peer`, if it is loaded.
    pub fn hold(&self, context: &str, peer: &str) -> Option<HeldBitmap> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let of_name = |bitmap: &&Arc<Bitmap>| context_since(&bitmap.bookmark.name) == context;
        loaded.iter().filter(of_name).find_map(|b| b.hold(peer))
    }

    /// Whether the bitmap is loaded, and stays so for a while because a client wants it.
    fn want(&self, snapshot: SnapshotId) -> bool {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let mut of_id = loaded
            .iter()
            .filter(|bitmap| bitmap.bookmark.id == snapshot);
        of_id.any(|bitmap| bitmap.want())
    }

    fn bookmarks(&self) -> Arc<[Bookmark]> {
        let bookmarks = self
            .bookmarks
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&bookmarks)
    }
}

/// A bitmap that is loaded: every core has the baseline of its seat.
#[derive(Debug)]
pub struct Bitmap {
    /// Since which snapshot.
    pub bookmark: Bookmark,
    /// What the cores call it.
    pub seat: Seat,
    use_of: Mutex<Use>,
}

/// Who uses a bitmap.
#[derive(Debug)]
struct Use {
    /// A client has named it: it stays for a while.
    wanted: bool,
    closed: bool,
    peers: Vec<String>,
}

impl Bitmap {
    /// A bitmap that nobody uses yet.
    pub fn new(bookmark: Bookmark, seat: Seat) -> Self {
        let use_of = Mutex::new(Use {
            wanted: true,
            closed: false,
            peers: Vec::new(),
        });
        Self {
            bookmark,
            seat,
            use_of,
        }
    }

    /// Who uses it.
    pub fn peers(&self) -> Vec<String> {
        self.locked().peers.clone()
    }

    /// Whether somebody uses it, or has named it since this was asked last.
    pub fn take_wanted(&self) -> bool {
        let mut used = self.locked();
        std::mem::take(&mut used.wanted) || !used.peers.is_empty()
    }

    /// Closes it unless somebody uses it, or has named it; false if so.
    pub fn close_unless_wanted(&self) -> bool {
        let mut used = self.locked();
        used.closed |= !used.wanted && used.peers.is_empty();
        used.closed
    }

    /// Closes it unless somebody uses it; false if so.
    pub fn close_unless_used(&self) -> bool {
        let mut used = self.locked();
        used.closed |= used.peers.is_empty();
        used.closed
    }

    /// Closes it whoever uses it: they are cut off.
    pub fn close(&self) {
        self.locked().closed = true;
    }

    fn want(&self) -> bool {
        let mut used = self.locked();
        used.wanted |= !used.closed;
        !used.closed
    }

    fn hold(self: &Arc<Self>, peer: &str) -> Option<HeldBitmap> {
        let mut used = self.locked();
        if used.closed {
            return None;
        }
        used.peers.push(peer.to_owned());
        Some(HeldBitmap {
            bitmap: Arc::clone(self),
            peer: peer.to_owned(),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Use> {
        self.use_of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's use of a bitmap: as long as there is one, the cores keep its baseline.
#[derive(Debug)]
pub struct HeldBitmap {
    bitmap: Arc<Bitmap>,
    peer: String,
}

impl HeldBitmap {
    /// What the cores call it.
    pub fn seat(&self) -> Seat {
        self.bitmap.seat
    }
}

impl Drop for HeldBitmap {
    fn drop(&mut self) {
        let mut used = self.bitmap.locked();
        if let Some(at) = used.peers.iter().position(|peer| *peer == self.peer) {
            used.peers.swap_remove(at);
        }
    }
}

impl Directory {
    /// Since which snapshots the changes of a volume can be told, oldest first; of a snapshot:
    /// since earlier ones.
    pub(super) fn bookmarks(&self, volume: &Volume) -> Vec<Bookmark> {
        match &volume.view {
            None => volume.bitmaps.bookmarks().to_vec(),
            Some(view) => {
                let live = self.get(&volume.name);
                let all = live.map(|live| live.bitmaps.bookmarks());
                let all = all.iter().flat_map(|all| all.iter());
                let earlier = all.filter(|bookmark| bookmark.manifest < view.manifest);
                earlier.cloned().collect()
            }
        }
    }

    /// The volume, or open snapshot, and the snapshot since which the context of that name tells
    /// its changes.
    pub fn bitmap_named(&self, name: &str, context: &str) -> Option<(Arc<Volume>, Bookmark)> {
        if !is_since(context) {
            return None;
        }
        let volume = self.resolve(name).ok()?;
        volume.export().ok()?;
        let mut bookmarks = self.bookmarks(&volume).into_iter();
        let bookmark = bookmarks.find(|bookmark| context_since(&bookmark.name) == context)?;
        Some((volume, bookmark))
    }

    /// Whether a client's context is a bitmap that can be had and is not loaded. One that is loaded
    /// stays so until the client has come.
    pub(super) fn lacks_bitmap(&self, name: &str, context: &str) -> bool {
        let named = self.bitmap_named(name, context);
        named.is_some_and(|(volume, bookmark)| !volume.bitmaps.want(bookmark.id))
    }

    /// Calls `visit` with the contexts of all bitmaps of that export.
    pub(super) fn visit_bitmaps(
        &self,
        name: &str,
        visit: &mut dyn FnMut(&str),
    ) -> Result<(), LookupError> {
        let volume = self.resolve(name)?;
        for bookmark in self.bookmarks(&volume) {
            visit(&context_since(&bookmark.name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

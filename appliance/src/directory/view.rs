//! Snapshots that are open for reading, by name. The uploader opens and closes them
//! ([`crate::uploader`]); connections find them here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use taipan_engine::identity::ManifestNum;
use taipan_engine::snapshot::{ImageName, QualifiedImage};
use taipan_nbd::LookupError;

use super::{Directory, Volume};

/// What a snapshot that is open for reading has, and a volume has not.
#[derive(Debug)]
pub struct View {
    /// The snapshot or point in time.
    pub image: ImageName,
    /// The manifest whose image it is.
    pub manifest: ManifestNum,
    /// A client has looked it up: it stays open for a while.
    wanted: AtomicBool,
    /// Clients that are connected.
    readers: Mutex<Vec<String>>,
}

impl View {
    /// A snapshot that nobody reads yet.
    pub fn new(image: ImageName, manifest: ManifestNum) -> Self {
        Self {
            image,
            manifest,
            wanted: AtomicBool::new(true),
            readers: Mutex::default(),
        }
    }

    fn readers_locked(&self) -> MutexGuard<'_, Vec<String>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume {
    /// What people call it: `volume`, or `volume@snapshot`.
    pub fn label(&self) -> String {
        match &self.view {
            None => self.name.to_string(),
            Some(view) => format!("{}@{}", self.name, view.image),
        }
    }

    /// Counts a client that connects; false if it may not.
    pub fn enter(&self, peer: &str) -> bool {
        self.connections.fetch_add(1, Ordering::SeqCst);
        if self.closing.load(Ordering::SeqCst) {
            // Its deletion may have counted before us.
            self.connections.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        if let Some(view) = &self.view {
            view.readers_locked().push(peer.to_owned());
        }
        true
    }

    /// A client that was counted has gone.
    pub fn leave(&self, peer: &str) {
        if let Some(view) = &self.view {
            let mut readers = view.readers_locked();
            if let Some(at) = readers.iter().position(|reader| reader == peer) {
                readers.swap_remove(at);
            }
        }
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }

    /// Who reads the snapshot.
    pub fn readers(&self) -> Vec<String> {
        let readers = self.view.as_ref().map(|view| view.readers_locked().clone());
        readers.unwrap_or_default()
    }

    /// Whether somebody reads the snapshot, or has looked it up since this was asked last.
    pub fn take_wanted(&self) -> bool {
        let wanted = self.view.as_ref();
        let wanted = wanted.is_some_and(|view| view.wanted.swap(false, Ordering::SeqCst));
        wanted || self.connections.load(Ordering::SeqCst) > 0
    }

    /// Closes a snapshot that nobody reads; false if somebody does, or has looked it up.
    pub fn close_unless_wanted(&self) -> bool {
        self.close_unless(Self::take_wanted)
    }

    /// Closes a snapshot that nobody reads, be it that somebody has looked it up.
    pub fn close_unless_read(&self) -> bool {
        self.close_unless(|view| view.connections.load(Ordering::SeqCst) > 0)
    }

    fn close_unless(&self, in_use: impl FnOnce(&Self) -> bool) -> bool {
        // A client says that it comes, then looks whether it may; so one of both sees the other.
        self.closing.store(true, Ordering::SeqCst);
        let closes = !in_use(self);
        if !closes {
            self.closing.store(false, Ordering::SeqCst);
        }
        closes
    }
}

impl Directory {
    /// The open snapshots.
    pub fn views(&self) -> Vec<Arc<Volume>> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views.values().cloned().collect()
    }

    fn view(&self, name: &QualifiedImage) -> Option<Arc<Volume>> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        views.get(name).cloned()
    }

    /// Adds an open snapshot; there must be none of that name.
    pub fn insert_view(&self, name: QualifiedImage, view: Arc<Volume>) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let earlier = views.insert(name, view);
        assert!(earlier.is_none(), "a snapshot is opened once");
    }

    /// Removes an open snapshot.
    pub fn remove_view(&self, name: &QualifiedImage) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        views.remove(name);
    }

    /// The open snapshot of that name, as a client wrote it.
    pub(super) fn resolve_view(&self, name: &str) -> Result<Arc<Volume>, LookupError> {
        let name: QualifiedImage = name.parse().map_err(|_| LookupError::Unknown)?;
        if let Some(view) = self.view(&name) {
            return Ok(view);
        }
        // A volume that is not served says why.
        let volume = self.get(&name.volume).ok_or(LookupError::Unknown)?;
        volume.export()?;
        Err(LookupError::Unknown)
    }

    /// Whether a client's name is one of a snapshot that may be there and is not open. One that is
    /// open stays so until the client has come.
    pub(super) fn lacks_view(&self, name: &str) -> bool {
        if !name.contains('@') || self.stopping.load(Ordering::Acquire) {
            return false;
        }
        let Ok(name) = name.parse::<QualifiedImage>() else {
            return false;
        };
        match self.view(&name) {
            Some(open) => {
                let wanted = open.view.as_ref().map(|view| &view.wanted);
                wanted.inspect(|wanted| wanted.store(true, Ordering::SeqCst));
                open.closing.load(Ordering::SeqCst)
            }
            None => {
                let volume = self.get(&name.volume);
                volume.is_some_and(|volume| volume.export().is_ok())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use taipan_engine::identity::VolumeId;
    use taipan_engine::registry::LocalHead;
    use taipan_engine::shard::VolumeSlot;
    use taipan_engine::volume::{VolumeName, VolumeSettings};
    use taipan_nbd::ExportDirectory;

    use super::*;

    fn volume(slot: u16) -> Volume {
        let name = VolumeName::parse("v").unwrap();
        let local = LocalHead::named(VolumeId(1), name, VolumeSettings::with_size(4096));
        Volume::serving(VolumeSlot(slot.into()), &local, true)
    }

    fn view() -> Arc<Volume> {
        let mut view = volume(1);
        *view.read_only.get_mut() = true;
        view.view = Some(View::new("s".parse().unwrap(), ManifestNum(5)));
        Arc::new(view)
    }

    /// A directory with a volume and an open snapshot of it.
    fn directory() -> (Directory, Arc<Volume>) {
        let (directory, view) = (Directory::default(), view());
        directory.insert(Arc::new(volume(0)));
        directory.insert_view("v@s".parse().unwrap(), Arc::clone(&view));
        (directory, view)
    }

    #[test]
    fn only_snapshots_of_served_volumes_that_are_not_open_are_awaited() {
        let (directory, _) = directory();
        for (name, awaited) in [
            ("v@other", true),
            ("v@s", false),
            ("v", false),
            ("", false),
            ("@", false),
            ("v@", false),
            ("v@a@b", false),
            ("v@@12", true),
            ("v@@2026-11-21T20:00:00Z", true),
            ("v@@never", false),
            ("v@a/b", false),
            ("v@..", false),
            ("none@s", false),
        ] {
            assert_eq!(directory.awaits(name), awaited, "{name}");
        }
        let info = directory.find("v@s").unwrap();
        assert_eq!(info.canonical_name, "v@s");
        assert!(info.read_only);
        assert_eq!(directory.find("v@a@b"), Err(LookupError::Unknown));
        let mut names = Vec::new();
        let listed = directory.list(&mut |name, _| names.push(name.to_owned()));
        assert_eq!((listed, names), (Ok(()), vec!["v".to_owned()]));
        assert_eq!(directory.free_slot(), VolumeSlot(2));
        directory.stop();
        assert!(!directory.awaits("v@other"));
    }

    #[test]
    fn a_snapshot_is_not_closed_while_somebody_reads_it_or_comes() {
        let (directory, view) = directory();
        assert!(!view.close_unless_wanted(), "just opened, for somebody");
        assert!(!directory.awaits("v@s"), "it stays");
        assert!(!view.close_unless_wanted(), "looked up");
        assert!(view.enter("a") && view.enter("b"));
        assert!(!view.close_unless_wanted(), "read");
        view.leave("a");
        assert_eq!(view.readers(), ["b"]);
        assert!(!view.close_unless_read());
        view.leave("b");
        assert!(view.close_unless_wanted());
        assert!(!view.enter("c"), "too late: its slot may be another's");
        assert!(directory.awaits("v@s"), "to be opened again");
        directory.remove_view(&"v@s".parse().unwrap());
        assert!(directory.awaits("v@s"));
    }
}

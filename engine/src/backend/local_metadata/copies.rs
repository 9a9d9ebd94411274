//! The files of the copies. What fails here is reported once and harms nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::identity::{ManifestNum, VolumeId};
use crate::object::{ObjectKey, number_of};

/// Copies not synced yet, above which a write syncs them.
const UNSYNCED_MAX: usize = 4096;

/// A directory of copies, by key.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    dir: PathBuf,
    /// Written since the last sync.
    unsynced: Arc<Mutex<Unsynced>>,
    failed: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Unsynced {
    files: Vec<PathBuf>,
    /// Folders of these files, and of such as are synced already.
    dirs: BTreeSet<PathBuf>,
}

impl Copies {
    pub(super) fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            unsynced: Arc::default(),
            failed: Arc::default(),
        }
    }

    /// The copy of an object, if there is one.
    pub(super) fn read(&self, key: &ObjectKey) -> Option<Bytes> {
        fs::read(self.path(key)).ok().map(Bytes::from)
    }

    /// The copy of an object, to be relied on: durable after [`Copies::sync`], too. A process that
    /// was killed may have left it in the page cache only.
    pub(super) fn read_kept(&self, key: &ObjectKey) -> Option<Bytes> {
        let bytes = self.read(key)?;
        self.note_unsynced(self.path(key));
        Some(bytes)
    }

    /// Writes a copy; durable after [`Copies::sync`].
    pub(super) fn write(&self, key: &ObjectKey, bytes: &[u8]) {
        let path = self.path(key);
        let written = write_whole(&path, bytes);
        self.note(&path, written);
        if self.note_unsynced(path) >= UNSYNCED_MAX {
            self.sync();
        }
    }

    /// Writes a copy unless the same bytes are there; durable after [`Copies::sync`].
    pub(super) fn write_once(&self, key: &ObjectKey, bytes: &[u8]) {
        if self.read_kept(key).as_deref() != Some(bytes) {
            self.write(key, bytes);
        }
    }

    /// Notes that a file waits for a sync; how many do.
    fn note_unsynced(&self, path: PathBuf) -> usize {
        let mut unsynced = self.unsynced();
        unsynced.dirs.extend(path.parent().map(Path::to_owned));
        unsynced.files.push(path);
        unsynced.files.len()
    }

    /// Whether a power cut leaves the copy of an object, as far as is known.
    #[cfg(test)]
    pub(super) fn is_durable(&self, key: &ObjectKey) -> bool {
        let path = self.path(key);
        let unsynced = self.unsynced();
        let waits =
            unsynced.files.contains(&path) || unsynced.dirs.iter().any(|d| path.starts_with(d));
        path.exists() && !waits
    }

    /// Makes all copies durable.
    pub(super) fn sync(&self) {
        let Unsynced { files, dirs } = std::mem::take(&mut *self.unsynced());
        // Their parents too: folders may be new.
        let parents: BTreeSet<&Path> = dirs
            .iter()
            .flat_map(|dir| dir.ancestors().skip(1))
            .filter(|dir| dir.starts_with(&self.dir))
            .collect();
        let written = files.iter().chain(&dirs).map(PathBuf::as_path);
        written.chain(parents).for_each(|path| self.sync_path(path));
    }

    /// Makes one copy durable that an earlier process may have left in the page cache only.
    pub(super) fn sync_one(&self, key: &ObjectKey) {
        let path = self.path(key);
        let folders = path.ancestors().skip(1);
        let folders = folders.take_while(|dir| dir.starts_with(&self.dir));
        std::iter::once(&*path)
            .chain(folders)
            .for_each(|path| self.sync_path(path));
    }

    /// Makes one copy durable ahead of [`Copies::sync`], which has the less to do. Whether there
    /// was one.
    pub(super) fn sync_ahead(&self) -> bool {
        let file = self.unsynced().files.pop();
        file.inspect(|path| self.sync_path(path)).is_some()
    }

    fn sync_path(&self, path: &Path) {
        let synced = match File::open(path) {
            Ok(file) => file.sync_all(),
            // Removed meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        self.note(path, synced);
    }

    /// A manifest with a checkpoint is stored: nothing before it is needed, no chunk's head, and no
    /// index part but these.
    pub(super) fn begin_at(&self, volume: VolumeId, first: ManifestNum, parts: &[ObjectKey]) {
        let of_volume = self.dir.join("v1").join(volume.to_string());
        let kept: Vec<PathBuf> = parts.iter().map(|key| self.path(key)).collect();
        remove_if(&of_volume.join("manifests"), |path| {
            let name = path.to_string_lossy();
            number_of(&name).is_none_or(|number| number < first.0)
        });
        remove_if(&of_volume.join("chunks"), |_| true);
        remove_if(&of_volume.join("index"), |path| {
            !kept.iter().any(|kept| kept == path)
        });
    }

    /// Forgets the copies of a volume.
    pub(super) fn forget(&self, volume: VolumeId) {
        let _ = fs::remove_dir_all(self.dir.join("v1").join(volume.to_string()));
    }

    /// Forgets the copies of every volume but these.
    pub(super) fn retain(&self, volumes: &[VolumeId]) {
        let Ok(entries) = fs::read_dir(self.dir.join("v1")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let volume = name.to_str().and_then(VolumeId::parse);
            if let Some(volume) = volume.filter(|volume| !volumes.contains(volume)) {
                self.forget(volume);
            }
        }
    }

    pub(super) fn remove(&self, key: &ObjectKey) {
        // An absent one is fine, and one too many costs only its bytes.
        let _ = fs::remove_file(self.path(key));
    }

    /// Names and lengths of the copies in the folder `prefix`.
    pub(super) fn names(&self, prefix: &str) -> Vec<(String, u64)> {
        let Ok(entries) = fs::read_dir(self.dir.join(prefix)) else {
            return Vec::new();
        };
        let mut names: Vec<(String, u64)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let key = format!("{prefix}{name}");
                let len = entry.metadata().ok()?.len();
                ObjectKey::is_valid(&key).then_some((key, len))
            })
            .filter(|(key, _)| !key.ends_with(".tmp"))
            .collect();
        names.sort_unstable();
        names
    }

    /// A key is a safe relative path.
    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join(key.as_str())
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, path: &Path, result: io::Result<()>) {
        let Err(error) = result else { return };
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                path = %path.display(), %error,
                "a local copy of metadata could not be written: a start without the backend may \
                 not be possible"
            );
        }
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::create(&temp)?;
    file.write_all(bytes)?;
    fs::rename(&temp, path)
}

fn remove_if(dir: &Path, unneeded: impl Fn(&Path) -> bool) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if unneeded(&path) {
            let _ = fs::remove_file(path);
        }
    }
}

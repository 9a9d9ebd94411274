//! Temporary files of puts: private to one opener of the directory, gone after success, failure,
//! or, after a crash, at the next opening.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::failed;
use crate::error::{Error, ErrorKind, Result};

/// Below the root; no key starts with a dot.
const TEMP_DIR: &str = ".tmp";
const LOCK_FILE: &str = "lock";

/// The opener's own directory `.tmp/<random>/`, marked alive by a lock on its `lock` file. Other
/// appliances may share the root, so only files of openers without a lock are removed. Were a
/// live one's removed all the same (no locks on that file system), its put fails and is repeated.
pub(super) struct TempDir {
    dir: PathBuf,
    next: AtomicU64,
    _alive: File,
}

impl TempDir {
    pub(super) fn open(root: &Path) -> Result<Self> {
        let all = root.join(TEMP_DIR);
        make_dir(&all)?;
        let opening = lock_file(&all)?;
        // Without working locks nobody can tell who is alive, and nothing is removed.
        let opening_locked = flock(&opening, FlockOperation::LockExclusive).is_ok();
        if opening_locked {
            remove_leftovers(&all);
        }
        let random = getrandom::u64()
            .map_err(|e| Error::new(ErrorKind::Io, "reading random bytes").with_source(e))?;
        let dir = all.join(format!("{random:016x}"));
        make_dir(&dir)?;
        let alive = lock_file(&dir)?;
        if opening_locked {
            flock(&alive, FlockOperation::NonBlockingLockExclusive)
                .map_err(|e| failed("locking", &dir, e.into()))?;
        }
        Ok(Self {
            dir,
            next: AtomicU64::new(0),
            _alive: alive,
        })
    }

    /// A new empty file.
    pub(super) fn create(&self) -> Result<TempFile> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number:x}"));
        let created = match File::create_new(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_dir(&self.dir)?;
                File::create_new(&path)
            }
            other => other,
        };
        match created {
            Ok(file) => Ok(TempFile { path, file }),
            Err(e) => Err(failed("creating", &path, e)),
        }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What fails here is removed at the next opening.
        let _ = fs::remove_file(self.dir.join(LOCK_FILE));
        let _ = fs::remove_dir(&self.dir);
    }
}

/// A file under construction; removed when dropped (its hard link, the object, stays).
pub(super) struct TempFile {
    path: PathBuf,
    file: File,
}

impl TempFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After a rename it is gone already; what fails here is removed at the next opening.
        let _ = fs::remove_file(&self.path);
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("creating directory", dir, e))
        }
        _ => Ok(()),
    }
}

fn lock_file(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_FILE);
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| failed("opening", &path, e))
}

/// Removes the directories of openers that are gone. Best effort: leftovers harm nobody.
fn remove_leftovers(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else {
        return;
    };
    for entry in entries.flatten().filter(|e| e.path().is_dir()) {
        let dir = entry.path();
        let alive = File::options().write(true).open(dir.join(LOCK_FILE));
        let abandoned = match alive {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if abandoned && let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "a crashed put's files stay");
        }
    }
}

//! The files of a directory backend: where keys live, and how an object becomes durable at once or
//! not at all. Blocking; called on the backend's threads.

mod direct;
mod list;
mod room;
mod temp;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::backend::{ConditionalWrites, OBJECT_BYTES_MAX, Probe, Put, too_short};
use crate::error::{Error, ErrorKind, Result};
use crate::object::{ChunkKey, ObjectKey};

use super::open_files::{LocalFile, OpenFiles, is_local_disk};
use direct::DirectWriter;
use temp::{TempDir, TempFile};

/// Longest file name used; a longer part of a key is cut into directories that end with `~`,
/// a character that no key has.
const NAME_BYTES: usize = 200;

/// The steps of a put, at which tests make it fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    MakeDir,
    Write,
    SyncFile,
    Link,
    SyncDir,
}

/// A directory of objects.
pub(super) struct Tree {
    root: PathBuf,
    temp: TempDir,
    /// Chunks that were read lately.
    pub(super) open_files: OpenFiles,
    /// How large objects are written where that goes past the page cache.
    direct: Option<DirectWriter>,
    /// Directories whose own entry in their parent is known to be durable.
    durable_dirs: Mutex<HashSet<PathBuf>>,
    /// Makes a step fail; asked before the step, or after it for [`Step::SyncDir`].
    #[cfg(test)]
    pub(super) fault: Mutex<Option<(Step, rustix::io::Errno)>>,
    /// Keeps a mount busy, so that it is not unmounted under the objects.
    _held: File,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self> {
        match fs::create_dir(root) {
            Ok(()) => sync_dir(root.parent().filter(|p| !p.as_os_str().is_empty()))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("creating the objects' directory", root, e)),
        }
        let held = File::open(root).map_err(|e| failed("opening", root, e))?;
        let is_dir = held.metadata().is_ok_and(|m| m.is_dir());
        if !is_dir {
            let message = "the backend's path is no directory";
            return Err(Error::invalid(message).with_path(root));
        }
        Ok(Self {
            root: root.to_owned(),
            temp: TempDir::open(root)?,
            open_files: OpenFiles::below(root),
            direct: None,
            durable_dirs: Mutex::default(),
            #[cfg(test)]
            fault: Mutex::default(),
            _held: held,
        })
    }

    /// Large objects are written past the page cache if they are on a local disk.
    pub(super) fn past_page_cache(mut self) -> Self {
        self.direct = is_local_disk(&self.root).then(DirectWriter::default);
        self
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn put_if_absent(&self, key: &ObjectKey, body: &[u8]) -> Result<Put> {
        let path = self.path(key);
        let parent = self.make_parent(&path)?;
        let put = if path.symlink_metadata().is_ok() {
            Put::Exists
        } else {
            let temp = self.write_temp(body)?;
            self.step(Step::Link)
                .and_then(|()| link_new(&temp, &path))
                .map_err(|e| self.put_failed("creating", &path, e))?
        };
        // Also for `Exists`: its creator may have died between link and this.
        self.sync_parent(&parent)?;
        Ok(put)
    }

    pub(super) fn put(&self, key: &ObjectKey, body: &[u8]) -> Result<()> {
        let path = self.path(key);
        let parent = self.make_parent(&path)?;
        let temp = self.write_temp(body)?;
        self.step(Step::Link)
            .and_then(|()| fs::rename(temp.path(), &path))
            .map_err(|e| self.put_failed("replacing", &path, e))?;
        self.sync_parent(&parent)
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Result<Bytes> {
        let object = self.open_object(key)?;
        let len = object.bytes;
        if len > OBJECT_BYTES_MAX {
            return Err(Error::corrupt(format!("object {key} has {len} bytes")));
        }
        self.read(&object.file, key, 0, len)
    }

    pub(super) fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes> {
        let chunk = ChunkKey::parse(key.as_str());
        let open = chunk.and_then(|chunk| self.open_files.get(&chunk));
        let to_keep = chunk.filter(|_| open.is_none());
        let object = open.map_or_else(|| self.open_object(key), Ok)?;
        let object_bytes = object.bytes;
        if offset.checked_add(len).is_none_or(|end| end > object_bytes) {
            return Err(too_short(key.as_str(), offset, len, object_bytes));
        }
        let read = self.read(&object.file, key, offset, len)?;
        if let Some(chunk) = to_keep {
            self.open_files.keep(chunk, &object);
        }
        Ok(read)
    }

    pub(super) fn head(&self, key: &ObjectKey) -> Result<Option<u64>> {
        let path = self.path(key);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("looking up", &path, e)),
        }
    }

    pub(super) fn delete(&self, key: &ObjectKey) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {
                if let Some(chunk) = ChunkKey::parse(key.as_str()) {
                    self.open_files.forget(&chunk);
                }
                sync_dir(path.parent())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("deleting", &path, e)),
        }
    }

    /// Tries within the directory of temporary files whether creation is exclusive.
    pub(super) fn probe(&self) -> Result<Probe> {
        let (first, second) = (self.write_temp(b"first")?, self.write_temp(b"second")?);
        let target = first.path().with_extension("probe");
        let error = |e| failed("probing", &target, e);
        let created = link_new(&first, &target).map_err(error)?;
        let again = link_new(&second, &target);
        fs::remove_file(&target).map_err(error)?;
        let exclusive = (created, again.map_err(error)?) == (Put::Created, Put::Exists);
        Ok(Probe {
            conditional_writes: match exclusive {
                true => ConditionalWrites::CreateOnly,
                false => ConditionalWrites::None,
            },
            notes: Vec::new(),
        })
    }

    /// The path of an object. Keys have no `..`, no empty part and no leading `.` or `/`.
    fn path(&self, key: &ObjectKey) -> PathBuf {
        let mut path = self.root.clone();
        for part in key.as_str().split('/') {
            push_part(&mut path, part);
        }
        debug_assert!(path.starts_with(&self.root));
        path
    }

    fn open_object(&self, key: &ObjectKey) -> Result<LocalFile> {
        let path = self.path(key);
        let file = File::open(&path).map_err(|e| failed("opening", &path, e))?;
        let metadata = file.metadata().map_err(|e| failed("opening", &path, e))?;
        if !metadata.is_file() {
            let message = format!("no object {key}");
            return Err(Error::new(ErrorKind::NotFound, message).with_path(path));
        }
        Ok(LocalFile {
            file: Arc::new(file),
            bytes: metadata.len(),
        })
    }

    fn read(&self, file: &File, key: &ObjectKey, offset: u64, len: u64) -> Result<Bytes> {
        let mut body = vec![0; len as usize];
        match file.read_exact_at(&mut body, offset) {
            Ok(()) => Ok(Bytes::from(body)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(too_short(key.as_str(), offset, len, 0))
            }
            Err(e) => Err(failed("reading", &self.path(key), e)),
        }
    }

    fn write_temp(&self, body: &[u8]) -> Result<TempFile> {
        let temp = self.temp.create()?;
        let written = self
            .step(Step::Write)
            .and_then(|()| match &self.direct {
                Some(direct) => direct.write(temp.file(), body),
                None => io::Write::write_all(&mut temp.file(), body),
            })
            .and_then(|()| self.step(Step::SyncFile))
            .and_then(|()| temp.file().sync_all());
        // The temporary file goes away with `temp`: a full disk keeps no partial object.
        written.map_err(|e| failed("writing", temp.path(), e))?;
        Ok(temp)
    }

    /// Makes the directories above `path`, each durable in its parent before it is used.
    fn make_parent(&self, path: &Path) -> Result<PathBuf> {
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        let mut missing = Vec::new();
        let mut dir = parent.as_path();
        while dir != self.root && !self.durable_dirs().contains(dir) {
            missing.push(dir.to_owned());
            dir = dir.parent().unwrap_or(&self.root);
        }
        for dir in missing.into_iter().rev() {
            match self.step(Step::MakeDir).and_then(|()| fs::create_dir(&dir)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(self.put_failed("creating directory", &dir, e)),
            }
            sync_dir(dir.parent())?;
            self.durable_dirs().insert(dir);
        }
        Ok(parent)
    }

    fn sync_parent(&self, parent: &Path) -> Result<()> {
        sync_dir(Some(parent))?;
        self.step(Step::SyncDir)
            .map_err(|e| failed("syncing directory", parent, e))
    }

    /// A put never ends as `NotFound`: what is missing then is a directory that somebody removed.
    fn put_failed(&self, operation: &str, path: &Path, error: io::Error) -> Error {
        if error.kind() != io::ErrorKind::NotFound {
            return failed(operation, path, error);
        }
        self.durable_dirs().clear();
        let message = format!("{operation}: a directory vanished; try again");
        Error::new(ErrorKind::Transient, message)
            .with_path(path)
            .with_source(error)
    }

    fn durable_dirs(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable_dirs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Where tests let a put fail.
    fn step(&self, step: Step) -> io::Result<()> {
        #[cfg(test)]
        if let Some((at, errno)) = *self.fault.lock().unwrap()
            && at == step
        {
            return Err(errno.into());
        }
        let _ = step;
        Ok(())
    }
}

/// Appends a part of a key to a path, cut where it is too long for a file name.
fn push_part(path: &mut PathBuf, part: &str) {
    let mut rest = part;
    while rest.len() > NAME_BYTES {
        // Keys are ASCII, so every byte is a boundary.
        let (head, tail) = rest.split_at(NAME_BYTES);
        path.push(format!("{head}~"));
        rest = tail;
    }
    path.push(rest);
}

/// Gives a finished temporary file its name unless that exists.
fn link_new(temp: &TempFile, path: &Path) -> io::Result<Put> {
    use rustix::io::Errno;
    let error = match fs::hard_link(temp.path(), path) {
        Ok(()) => return Ok(Put::Created),
        Err(error) => error,
    };
    match Errno::from_io_error(&error) {
        // NFS answers a repeated request so, although the first one made the link.
        Some(Errno::EXIST) if is_same_file(temp.path(), path) => Ok(Put::Created),
        Some(Errno::EXIST) => Ok(Put::Exists),
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
            match renameat_with(CWD, temp.path(), CWD, path, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(Put::Created),
                Err(Errno::EXIST) => Ok(Put::Exists),
                Err(errno) => Err(errno.into()),
            }
        }
        _ => Err(error),
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Makes the entries of a directory durable.
fn sync_dir(dir: Option<&Path>) -> Result<()> {
    let dir = dir.unwrap_or_else(|| Path::new("."));
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        Ok(()) => Ok(()),
        // Some FUSE file systems cannot sync directories at all.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        Err(e) => Err(failed("syncing directory", dir, e)),
    }
}

/// The error of a file operation; what a network file system may get over is `Transient`.
fn failed(operation: &str, path: &Path, error: io::Error) -> Error {
    use rustix::io::Errno;
    let passing = matches!(
        Errno::from_io_error(&error),
        Some(Errno::STALE | Errno::TIMEDOUT | Errno::INTR | Errno::AGAIN | Errno::HOSTDOWN)
    );
    if passing {
        return Error::new(ErrorKind::Transient, operation)
            .with_path(path)
            .with_source(error);
    }
    Error::io(operation, error).with_path(path)
}

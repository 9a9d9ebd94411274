//! The data directory: created if need be, held by one daemon at a time, and the private memory
//! directory that belongs to it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use taipan_engine::error::{Error, ErrorKind, Result};

const LOCK_NAME: &str = "lock";
/// How long another holder may take to end.
const LOCK_WAIT: Duration = Duration::from_millis(1500);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Parent of the private memory directories.
const SHARED_MEMORY_DIR: &str = "/dev/shm";
/// `f_type` of a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `f_type` of a ramfs.
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// A data directory that this process holds until the value is dropped or the process ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

impl DataDir {
    /// Creates the directory if only it is missing and locks it. `Busy` names the process that
    /// holds it.
    pub fn open(path: &Path) -> Result<Self> {
        create_private(path)?;
        let lock_path = path.join(LOCK_NAME);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| Error::io("opening the lock file", e).with_path(&lock_path))?;
        match lock_patiently(&lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(held_by_another(path, &mut lock)),
            Err(error) => {
                let error = Error::io("locking the data directory", error.into());
                return Err(error.with_path(&lock_path));
            }
        }
        write_pid(&mut lock)
            .map_err(|e| Error::io("writing the lock file", e).with_path(&lock_path))?;
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// The directory that a running daemon holds and hands over with its lock: both hold it until
    /// that one ends.
    pub fn share(path: &Path, lock: OwnedFd) -> Result<Self> {
        let lock = File::from(lock);
        let lock_path = path.join(LOCK_NAME);
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let (held, there) = (lock.metadata(), fs::metadata(&lock_path));
        let same = held
            .ok()
            .map(identity)
            .is_some_and(|held| Some(held) == there.ok().map(identity));
        if !same {
            let text = "the running daemon holds another lock file than this one";
            return Err(Error::invalid(text).with_path(lock_path));
        }
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// The lock once more, for a successor.
    pub fn lock_again(&self) -> Result<OwnedFd> {
        let again = self.lock.try_clone();
        let again = again.map_err(|e| Error::io("opening the lock file again", e))?;
        Ok(again.into())
    }

    /// Notes this process as the one that holds the directory.
    pub fn sign(&mut self) -> Result<()> {
        write_pid(&mut self.lock)
            .map_err(|e| Error::io("writing the lock file", e).with_path(self.path.join(LOCK_NAME)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the memory that outlives the process, created and checked: `configured`, or
    /// systemd's RuntimeDirectory, or a private directory under `/dev/shm` that belongs to this
    /// data directory (and is found again when that is moved within its file system).
    pub fn runtime_dir(&self, configured: Option<&Path>) -> Result<PathBuf> {
        let from_systemd = std::env::var_os("RUNTIME_DIRECTORY").filter(|dir| !dir.is_empty());
        let path = match (configured, from_systemd) {
            (Some(path), _) => path.to_owned(),
            // Several directories are separated by colons; the first is ours.
            (None, Some(dirs)) => std::env::split_paths(&dirs).next().unwrap_or_default(),
            (None, None) => Path::new(SHARED_MEMORY_DIR).join(self.private_name()?),
        };
        create_private(&path)?;
        check_owner(&path)?;
        if !is_memory(&path)? {
            tracing::warn!(
                path = %path.display(),
                "the runtime directory is not on a tmpfs: writes will be slower and wear the disk"
            );
        }
        Ok(path)
    }

    fn private_name(&self) -> Result<String> {
        let found = fs::metadata(&self.path)
            .map_err(|e| Error::io("looking at the data directory", e).with_path(&self.path))?;
        let user = rustix::process::geteuid().as_raw();
        Ok(format!("taipan-{user}-{:x}-{:x}", found.dev(), found.ino()))
    }
}

/// Free bytes of the file system of `path`, as this process may use them.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(path)
        .map_err(|e| Error::io("asking for the free space", e.into()).with_path(path))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Creates a directory for its owner alone, if only it is missing.
fn create_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            if path.is_dir() {
                return Ok(());
            }
            let text = "exists and is not a directory";
            Err(Error::invalid(text).with_path(path))
        }
        Err(error) => Err(Error::io("creating the directory", error).with_path(path)),
    }
}

/// Refuses a directory in which others could plant files.
fn check_owner(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path)
        .map_err(|e| Error::io("looking at the runtime directory", e).with_path(path))?;
    let mine = found.uid() == rustix::process::geteuid().as_raw();
    let writable_by_others = found.permissions().mode() & 0o022 != 0;
    if found.is_dir() && mine && !writable_by_others {
        return Ok(());
    }
    Err(Error::invalid(
        "the runtime directory must be a directory that belongs to the daemon's user and that \
         nobody else can write to; remove it, or name another with --runtime-dir",
    )
    .with_path(path))
}

fn is_memory(path: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(path)
        .map_err(|e| Error::io("looking at the runtime directory", e.into()).with_path(path))?;
    // The field's type differs between platforms; the magic numbers have 32 bits.
    let kind = found.f_type as u64 & 0xffff_ffff;
    Ok(kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

fn held_by_another(path: &Path, lock: &mut File) -> Error {
    let mut text = String::new();
    // Best effort: the other may be about to write it.
    let _ = lock.take(32).read_to_string(&mut text);
    let holder = match text.trim().parse::<u32>() {
        Ok(pid) => format!("by process {pid}"),
        Err(_) => "by another process".to_owned(),
    };
    Error::new(
        ErrorKind::Busy,
        format!(
            "the data directory is in use {holder}; stop that taipand, or give this one its own \
             --data"
        ),
    )
    .with_path(path)
}

fn write_pid(lock: &mut File) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

/// Locks the file; a daemon that was just killed gets a moment to let go (it unmaps its memory).
fn lock_patiently(lock: &File) -> rustix::io::Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_RETRY);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_by_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let pid = format!("by process {}", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_refused_second_holder_leaves_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DataDir::open(dir.path()).unwrap();
        DataDir::open(dir.path()).unwrap_err();
        let text = fs::read_to_string(dir.path().join(LOCK_NAME)).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
    }

    #[test]
    fn a_successor_holds_the_lock_on_when_the_first_holder_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let mut second = DataDir::share(dir.path(), first.lock_again().unwrap()).unwrap();
        drop(first);
        second.sign().unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let elsewhere = tempfile::tempdir().unwrap();
        let _other = DataDir::open(elsewhere.path()).unwrap();
        DataDir::share(elsewhere.path(), second.lock_again().unwrap()).unwrap_err();
        drop(second);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn only_the_last_part_of_the_path_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let data = DataDir::open(&path).unwrap();
        assert_eq!(data.path(), path);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let error = DataDir::open(&dir.path().join("a/b")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "x").unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
    }

    #[test]
    fn the_runtime_directory_is_found_again_and_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let configured = dir.path().join("run");
        let found = data.runtime_dir(Some(&configured)).unwrap();
        assert_eq!(found, configured);
        fs::set_permissions(&configured, fs::Permissions::from_mode(0o777)).unwrap();
        let error = data.runtime_dir(Some(&configured)).unwrap_err();
        assert!(error.to_string().contains("nobody else"), "{error}");

        let name = data.private_name().unwrap();
        assert_eq!(name, data.private_name().unwrap());
        let other = tempfile::tempdir().unwrap();
        let other = DataDir::open(other.path()).unwrap();
        assert_ne!(name, other.private_name().unwrap());
    }

    #[test]
    fn free_space_is_known() {
        assert!(free_bytes(Path::new("/")).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/place")).is_err());
    }
}

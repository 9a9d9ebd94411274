//! What can be known of the device under the WAL: input for choosing the sync mode.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The device and file system that hold a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device number of the file system.
    pub device: u64,
    /// `f_type` of the file system, see statfs(2).
    pub filesystem: u64,
    /// Whether writes may sit in a volatile cache; `None` when the kernel does not tell.
    pub volatile_cache: Option<bool>,
    /// Whether the device takes forced-unit-access writes; `None` when the kernel does not tell.
    pub fua: Option<bool>,
}

/// `f_type` of ext2/3/4.
pub const EXT4_MAGIC: u64 = 0xEF53;
/// `f_type` of XFS.
pub const XFS_MAGIC: u64 = 0x5846_5342;

impl DeviceInfo {
    /// Looks at the device under `dir`.
    ///
    /// # Errors
    /// `Io` when the directory or its file system cannot be examined.
    pub fn of(dir: &Path) -> Result<Self> {
        let context = |e| Error::io("examining the WAL's device", e).with_path(dir);
        let device = fs::metadata(dir).map_err(context)?.dev();
        let stat = rustix::fs::statfs(dir).map_err(|e| context(e.into()))?;
        let queue = queue_dir(device);
        let attribute = |name: &str| fs::read_to_string(queue.as_ref()?.join(name)).ok();
        Ok(Self {
            device,
            filesystem: stat.f_type as u64,
            volatile_cache: attribute("write_cache").map(|text| text.trim() == "write back"),
            fua: attribute("fua").map(|text| text.trim() == "1"),
        })
    }

    /// Whether one fdatasync flushes the device's cache for all fully written files of the file
    /// system: each is one device flush there (ADR on the WAL sync mode).
    pub fn one_flush_serves_all(&self) -> bool {
        matches!(self.filesystem, EXT4_MAGIC | XFS_MAGIC) && self.volatile_cache.is_some()
    }
}

/// The request queue's directory in sysfs; that of the whole disk for a partition.
fn queue_dir(device: u64) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let own = block.join("queue");
    if own.is_dir() {
        return Some(own);
    }
    Some(block.parent()?.join("queue")).filter(|queue| queue.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let info = DeviceInfo::of(dir.path()).unwrap();
        assert_ne!(info.filesystem, 0);
        assert!(DeviceInfo::of(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn memory_has_no_queue() {
        let info = DeviceInfo::of(Path::new("/dev/shm")).unwrap();
        assert_eq!((info.volatile_cache, info.fua), (None, None));
        assert!(!info.one_flush_serves_all());
    }
}

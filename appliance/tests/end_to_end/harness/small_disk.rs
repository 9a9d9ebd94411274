//! A small file system (tmpfs) that can be full, and then grow.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::program::Program;

const LIMIT: Duration = Duration::from_secs(60);

/// A file system of a few MiB.
pub(crate) struct SmallDisk {
    mount: TempDir,
}

impl SmallDisk {
    /// Mounts it.
    pub(crate) fn new(mib: u64) -> Self {
        let mount = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Self { mount };
        disk.mount_with(&format!("size={mib}m"));
        disk
    }

    /// Makes it larger, with what it holds.
    pub(crate) fn grow(&self, mib: u64) {
        self.mount_with(&format!("remount,size={mib}m"));
    }

    fn mount_with(&self, options: &str) {
        Program::new("mount", LIMIT)
            .args("-t tmpfs -o")
            .arg(options)
            .arg("small-disk")
            .arg(self.mount.path())
            .succeed();
    }

    /// A path on it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }

    /// Takes all the room there is, more of it if it did already.
    pub(crate) fn fill(&self) {
        let mut ballast = File::options();
        let ballast = ballast.create(true).append(true);
        let mut ballast = ballast.open(self.path("ballast")).unwrap();
        let block = [0x55; 1 << 16];
        while ballast.write_all(&block).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that the failing test left may still be ending.
        Program::new("umount", LIMIT)
            .arg("-l")
            .arg(self.mount.path())
            .run();
    }
}

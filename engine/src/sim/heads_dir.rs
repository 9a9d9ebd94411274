//! A directory in memory for local head records, gone with its run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static DIRECTORIES: AtomicU64 = AtomicU64::new(0);

/// The directory; nothing is there until its records are opened.
#[derive(Debug)]
pub(super) struct HeadsDir(PathBuf);

impl HeadsDir {
    /// A name of its own; `label` says to people whose it is.
    pub(super) fn new(label: &str) -> Self {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        Self(parent.join(format!("taipan-{label}-{process}-{number}")))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HeadsDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

//! A directory in memory for local head records or copies of metadata, gone with its run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static DIRECTORIES: AtomicU64 = AtomicU64::new(0);

/// The directory; nothing is there until something is written to it.
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

    /// Removes everything in it.
    pub(super) fn clear(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }

    /// Everything in it.
    pub(super) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut files, mut folders) = (Vec::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                match fs::read(&path) {
                    Ok(bytes) => files.push((path, bytes)),
                    Err(_) => folders.push(path),
                }
            }
        }
        files
    }

    /// Makes everything in it what it was.
    pub(super) fn restore(&self, files: &[(PathBuf, Vec<u8>)]) {
        self.clear();
        for (path, bytes) in files {
            let folder = path.parent().expect("a file is in a folder");
            fs::create_dir_all(folder).expect("memory has room");
            fs::write(path, bytes).expect("memory has room");
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HeadsDir {
    fn drop(&mut self) {
        self.clear();
    }
}

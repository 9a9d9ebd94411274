//! Chunk files that were read lately, kept open: opening one costs more than reading a block of it,
//! and what is open can be read without this backend's threads.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};

use crate::object::ChunkKey;
use crate::wal::device::{EXT4_MAGIC, XFS_MAGIC};

/// Files kept open where the process may have as many.
const OPEN_MAX: u64 = 16_384;
/// Of the descriptors that the process may have, one in so many.
const SHARE_OF_DESCRIPTORS: u64 = 4;

/// A chunk's file. It never changes and keeps its bytes for as long as it is open.
#[derive(Clone, Debug)]
pub struct LocalFile {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// Its length.
    pub bytes: u64,
}

/// Files by chunk: those used since the last change of generations, and those used before that.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<ChunkKey, LocalFile>,
    old: HashMap<ChunkKey, LocalFile>,
}

/// A bounded number of open files.
#[derive(Debug)]
pub(super) struct OpenFiles {
    generations: Mutex<Generations>,
    /// Files of a generation, at most; 0 keeps none.
    most: usize,
}

impl OpenFiles {
    /// For objects below `root`. None are kept open where a read may hang for long: on anything but
    /// a file system of a local disk.
    pub(super) fn below(root: &Path) -> Self {
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = if is_local_disk(root) {
            OPEN_MAX.min(allowed / SHARE_OF_DESCRIPTORS)
        } else {
            0
        };
        Self::with_most(most as usize / 2)
    }

    fn with_most(most: usize) -> Self {
        Self {
            generations: Mutex::default(),
            most,
        }
    }

    /// The chunk's file, if it is open.
    pub(super) fn get(&self, key: &ChunkKey) -> Option<LocalFile> {
        let mut generations = self.lock();
        if let Some(found) = generations.young.get(key) {
            return Some(found.clone());
        }
        let found = generations.old.remove(key)?;
        self.insert(&mut generations, *key, found.clone());
        Some(found)
    }

    /// Keeps a file open, unless it was deleted meanwhile.
    pub(super) fn keep(&self, key: ChunkKey, file: &LocalFile) {
        if self.most == 0 {
            return;
        }
        self.insert(&mut self.lock(), key, file.clone());
        // Whoever deletes unlinks first and forgets then: one of the two sees what the other did.
        if file.file.metadata().is_ok_and(|now| now.nlink() == 0) {
            self.forget(&key);
        }
    }

    /// Closes a file, so that its space is free once nobody reads it.
    pub(super) fn forget(&self, key: &ChunkKey) {
        let mut generations = self.lock();
        generations.young.remove(key);
        generations.old.remove(key);
    }

    fn insert(&self, generations: &mut Generations, key: ChunkKey, file: LocalFile) {
        if generations.young.len() >= self.most {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key, file);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the directory is on a file system of a local disk.
pub(super) fn is_local_disk(root: &Path) -> bool {
    let magic = rustix::fs::statfs(root).map(|stat| stat.f_type as u64);
    magic.is_ok_and(|magic| matches!(magic, EXT4_MAGIC | XFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Generation, VolumeId};

    fn key(sequence: u64) -> ChunkKey {
        ChunkKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: 7,
        }
    }

    fn file() -> LocalFile {
        LocalFile {
            // One that has a name: others count as deleted.
            file: Arc::new(File::open("/proc/self/exe").unwrap()),
            bytes: 1,
        }
    }

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let files = OpenFiles::with_most(4);
        for sequence in 0..40 {
            files.keep(key(sequence), &file());
            assert!(files.get(&key(sequence)).is_some());
            assert!(
                files.get(&key(0)).is_some(),
                "{sequence}: in use all the time"
            );
            let generations = files.lock();
            assert!(generations.young.len() + generations.old.len() <= 8);
        }
        assert!(files.get(&key(20)).is_none());
        files.forget(&key(0));
        assert!(files.get(&key(0)).is_none());
    }

    #[test]
    fn a_deleted_file_is_not_kept() {
        let files = OpenFiles::with_most(4);
        let deleted = LocalFile {
            file: Arc::new(tempfile::tempfile().unwrap()),
            bytes: 0,
        };
        files.keep(key(1), &deleted);
        assert!(files.get(&key(1)).is_none());
    }

    #[test]
    fn nothing_is_kept_where_a_read_may_hang() {
        let files = OpenFiles::below(Path::new("/proc"));
        files.keep(key(1), &file());
        assert!(files.get(&key(1)).is_none());
    }
}

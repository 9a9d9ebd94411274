//! Regions whose memory is reserved before it is known which writer uses them: the kernel takes its
//! time to find it, and a hand-off has none to lose.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{region_name, reserve};
use crate::block::ShardId;
use crate::error::{Error, Result};
use crate::identity::Incarnation;

/// How their names begin. A start ignores them, and removes those that nobody will use.
const PREFIX: &str = "prepared-";

/// A zeroed region file for every shard; those that are not used are removed with the value.
#[derive(Debug)]
pub struct PreparedRegions {
    dir: PathBuf,
    bytes: usize,
    /// By shard.
    files: Vec<(PathBuf, File)>,
}

impl PreparedRegions {
    /// Reserves `bytes` for every shard in `dir`.
    ///
    /// # Errors
    /// `Full` or `Io`; nothing is left behind.
    pub fn reserve(dir: &Path, bytes: usize) -> Result<Self> {
        let mut regions = Self {
            dir: dir.to_owned(),
            bytes,
            files: Vec::new(),
        };
        for shard in ShardId::all() {
            let path = dir.join(format!("{PREFIX}{}-{shard}", std::process::id()));
            let file = reserve(&path, bytes)?;
            regions.files.push((path, file));
        }
        Ok(regions)
    }

    /// Bytes of each.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives them the names of a writer's regions, and hands them out by shard.
    ///
    /// # Errors
    /// `AlreadyExists` when the writer has regions already; `Io`.
    pub fn claim(mut self, incarnation: Incarnation) -> Result<Vec<File>> {
        let mut claimed = Vec::new();
        for shard in ShardId::all() {
            let to = self.dir.join(region_name(incarnation, shard));
            renameat_with(CWD, &self.files[0].0, CWD, &to, RenameFlags::NOREPLACE)
                .map_err(|e| Error::io("naming a memory region", e.into()).with_path(&to))?;
            claimed.push(self.files.remove(0).1);
        }
        Ok(claimed)
    }
}

impl Drop for PreparedRegions {
    fn drop(&mut self) {
        for (path, _) in &self.files {
            // What stays is removed by the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes prepared regions whose makers never came to use them. To be called by the one that holds
/// the data directory, when no regions of its own are prepared.
///
/// # Errors
/// `Io`.
pub fn remove_prepared(dir: &Path) -> Result<()> {
    let failed = |e| Error::io("removing memory that nobody uses", e).with_path(dir);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::list_regions;
    use super::*;

    #[test]
    fn they_become_the_regions_of_the_writer_that_comes_and_others_go() {
        let dir = tempfile::tempdir().unwrap();
        let used = PreparedRegions::reserve(dir.path(), 8192).unwrap();
        assert_eq!(list_regions(dir.path()).unwrap(), []);
        let files = used.claim(Incarnation(7)).unwrap();
        assert_eq!(files.len(), ShardId::all().count());
        let found = list_regions(dir.path()).unwrap();
        assert!(found.iter().all(|region| region.incarnation.0 == 7));
        assert_eq!(found.len(), files.len());

        let late = PreparedRegions::reserve(dir.path(), 8192).unwrap();
        assert!(late.claim(Incarnation(7)).is_err(), "they have an owner");
        let unused = PreparedRegions::reserve(dir.path(), 4096).unwrap();
        std::mem::forget(unused);
        remove_prepared(dir.path()).unwrap();
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, found.len());
    }
}

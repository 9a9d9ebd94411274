//! Regions whose memory is reserved before it is known which writer uses them: the kernel takes its
//! time to find it, about a second for every 2 GiB, and neither a hand-off nor a restart has that.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{list_regions, region_name, reserve};
use crate::block::ShardId;
use crate::error::{Error, Result};
use crate::identity::Incarnation;

/// How their names begin. A start ignores them, and removes those that nobody will use.
const PREFIX: &str = "prepared-";

/// A region file for every shard, zeroed as far as a log needs it; those that are not used are
/// removed with the value.
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
            let path = dir.join(prepared_name(std::process::id(), shard));
            let file = reserve(&path, bytes)?;
            regions.files.push((path, file));
        }
        Ok(regions)
    }

    /// Takes what [`keep_for_later`] left, if that is `bytes` for every shard, and clears the first
    /// `control_bytes` of each. Whatever else is prepared is removed. To be called by the one that
    /// holds the data directory.
    ///
    /// # Errors
    /// `Io`.
    pub fn left(dir: &Path, bytes: usize, control_bytes: usize) -> Result<Option<Self>> {
        let mut whole = None;
        for (pid, shards) in found(dir)? {
            let is_whole = shards.len() == ShardId::all().count()
                && shards
                    .iter()
                    .all(|shard| is_reserved(&path_of(dir, pid, *shard), bytes));
            if is_whole && whole.is_none() {
                whole = Some(pid);
                continue;
            }
            for shard in shards {
                let path = path_of(dir, pid, shard);
                fs::remove_file(&path).map_err(|e| {
                    Error::io("removing memory that nobody uses", e).with_path(path)
                })?;
            }
        }
        let Some(pid) = whole else { return Ok(None) };
        let mut regions = Self {
            dir: dir.to_owned(),
            bytes,
            files: Vec::new(),
        };
        for shard in ShardId::all() {
            let path = path_of(dir, pid, shard);
            let file = clear(&path, control_bytes).map_err(|e| {
                Error::io("clearing memory of the process before", e).with_path(&path)
            })?;
            regions.files.push((path, file));
        }
        Ok(Some(regions))
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

/// Keeps the memory of a writer that ended in order for the next one: everything that its regions,
/// and those of writers before it, hold is durable elsewhere.
///
/// # Errors
/// `Io`; what was not kept is still there as regions.
pub fn keep_for_later(dir: &Path, writer: Incarnation) -> Result<()> {
    let pid = std::process::id();
    for region in list_regions(dir)? {
        let done = match region.incarnation.cmp(&writer) {
            std::cmp::Ordering::Less => fs::remove_file(&region.path),
            std::cmp::Ordering::Equal => fs::rename(&region.path, path_of(dir, pid, region.shard)),
            std::cmp::Ordering::Greater => Ok(()),
        };
        done.map_err(|e| Error::io("keeping a memory region", e).with_path(&region.path))?;
    }
    Ok(())
}

fn prepared_name(pid: u32, shard: ShardId) -> String {
    format!("{PREFIX}{pid}-{shard}")
}

fn path_of(dir: &Path, pid: u32, shard: ShardId) -> PathBuf {
    dir.join(prepared_name(pid, shard))
}

/// Prepared regions by the process that made or kept them.
fn found(dir: &Path) -> Result<BTreeMap<u32, Vec<ShardId>>> {
    let failed = |e| Error::io("listing the runtime directory", e).with_path(dir);
    let mut found: BTreeMap<u32, Vec<ShardId>> = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some((pid, shard)) = name.to_str().and_then(parse_name) {
            found.entry(pid).or_default().push(shard);
        }
    }
    Ok(found)
}

fn parse_name(name: &str) -> Option<(u32, ShardId)> {
    let (pid, shard) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let (pid, shard) = (pid.parse().ok()?, ShardId::new(shard.parse().ok()?)?);
    (name == prepared_name(pid, shard)).then_some((pid, shard))
}

/// Whether the file has so many bytes, and memory for all of them: else a write could be a SIGBUS.
fn is_reserved(path: &Path, bytes: usize) -> bool {
    let bytes = bytes as u64;
    fs::metadata(path).is_ok_and(|found| found.len() == bytes && found.blocks() * 512 >= bytes)
}

fn clear(path: &Path, bytes: usize) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.write_all_at(&vec![0; bytes], 0)?;
    Ok(file)
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
        assert!(
            PreparedRegions::left(dir.path(), 8192, 4096)
                .unwrap()
                .is_none()
        );
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, found.len());
    }

    #[test]
    fn those_of_a_writer_that_ended_in_order_are_used_again() {
        let dir = tempfile::tempdir().unwrap();
        for incarnation in [3, 4, 9] {
            let made = PreparedRegions::reserve(dir.path(), 8192).unwrap();
            for file in made.claim(Incarnation(incarnation)).unwrap() {
                file.write_all_at(&[7; 8192], 0).unwrap();
            }
        }
        keep_for_later(dir.path(), Incarnation(4)).unwrap();
        let found = list_regions(dir.path()).unwrap();
        assert!(found.iter().all(|region| region.incarnation.0 == 9));

        let kept = PreparedRegions::left(dir.path(), 8192, 4096).unwrap();
        let files = kept.expect("whole").claim(Incarnation(10)).unwrap();
        for file in &files {
            let mut bytes = [1; 8192];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(
                bytes[..4096].iter().all(|&byte| byte == 0),
                "a control area"
            );
            assert!(bytes[4096..].iter().all(|&byte| byte == 7), "never read");
        }
        assert_eq!(list_regions(dir.path()).unwrap().len(), 2 * files.len());
    }

    #[test]
    fn memory_of_another_size_or_not_all_there_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let keep = |bytes| {
            let made = PreparedRegions::reserve(dir.path(), bytes).unwrap();
            made.claim(Incarnation(4)).unwrap();
            keep_for_later(dir.path(), Incarnation(4)).unwrap();
        };
        let is_refused = || {
            let left = PreparedRegions::left(dir.path(), 8192, 4096).unwrap();
            left.is_none() && fs::read_dir(dir.path()).unwrap().count() == 0
        };
        let one = path_of(dir.path(), std::process::id(), ShardId::new(5).unwrap());
        keep(12288);
        assert!(is_refused(), "larger");
        keep(8192);
        fs::remove_file(&one).unwrap();
        assert!(is_refused(), "one is gone");
        keep(8192);
        let sparse = File::create(&one).unwrap();
        sparse.set_len(8192).unwrap();
        assert!(is_refused(), "one has no memory");
    }
}

//! Region files in the runtime directory: one per shard and writer, on tmpfs so that they outlive
//! the process but not the host.

mod prepared;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::block::ShardId;
use crate::error::{Error, Result};
use crate::identity::Incarnation;

use super::config::BootId;

pub use prepared::{PreparedRegions, keep_for_later};

/// `f_type` of tmpfs, see statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A region file found in the runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionFile {
    /// Who wrote it, as its name says.
    pub incarnation: Incarnation,
    /// The shard, as its name says.
    pub shard: ShardId,
    /// Where it is.
    pub path: PathBuf,
}

/// Name of a region file.
pub fn region_name(incarnation: Incarnation, shard: ShardId) -> String {
    format!("region-{:016x}-{shard}", incarnation.0)
}

/// Whether `dir` is on tmpfs: memory that a host crash takes with it.
///
/// # Errors
/// `Io`.
pub fn is_memory(dir: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(dir)
        .map_err(|e| Error::io("examining the runtime directory", e.into()).with_path(dir))?;
    Ok(stat.f_type as u64 == TMPFS_MAGIC)
}

/// The identity of this boot of the host.
///
/// # Errors
/// `Io`, or `Corrupt` when the kernel gives something else than a UUID.
pub fn boot_id() -> Result<BootId> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path)
        .map_err(|e| Error::io("reading the boot's identity", e).with_path(path))?;
    parse_boot_id(&text).ok_or_else(|| Error::corrupt("not a boot identity").with_path(path))
}

fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| BootId(number.to_be_bytes()))
}

/// Creates a zeroed region file of `bytes`, with its memory reserved: a full tmpfs is an error here
/// and not a SIGBUS later.
///
/// # Errors
/// `Full`, `AlreadyExists` or `Io`; nothing is left behind.
pub fn create_region(
    dir: &Path,
    incarnation: Incarnation,
    shard: ShardId,
    bytes: usize,
) -> Result<File> {
    reserve(&dir.join(region_name(incarnation, shard)), bytes)
}

fn reserve(path: &Path, bytes: usize) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("creating a memory region", e).with_path(path))?;
    let reserved = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64);
    if let Err(errno) = reserved {
        // The error that matters is the first.
        let _ = fs::remove_file(path);
        let what = format!("reserving {bytes} bytes for a memory region (see --cache-size)");
        return Err(Error::io(what, errno.into()).with_path(path));
    }
    Ok(file)
}

/// The region files in `dir`, the oldest writer first; other files are ignored.
///
/// # Errors
/// `Io`.
pub fn list_regions(dir: &Path) -> Result<Vec<RegionFile>> {
    let context = |e| Error::io("listing the runtime directory", e).with_path(dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(context)? {
        let entry = entry.map_err(context)?;
        let name = entry.file_name();
        if let Some((incarnation, shard)) = name.to_str().and_then(parse_name) {
            found.push(RegionFile {
                incarnation,
                shard,
                path: entry.path(),
            });
        }
    }
    found.sort_by_key(|region| (region.incarnation, region.shard));
    Ok(found)
}

fn parse_name(name: &str) -> Option<(Incarnation, ShardId)> {
    let (incarnation, shard) = name.strip_prefix("region-")?.split_once('-')?;
    let incarnation = Incarnation(u64::from_str_radix(incarnation, 16).ok()?);
    let shard = ShardId::new(shard.parse().ok()?)?;
    (name == region_name(incarnation, shard)).then_some((incarnation, shard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_created_reserved_and_listed_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let shard = |n| ShardId::new(n).unwrap();
        for (incarnation, n) in [(18, 0), (3, 15), (3, 2)] {
            let file = create_region(dir.path(), Incarnation(incarnation), shard(n), 8192).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 8192);
        }
        assert!(create_region(dir.path(), Incarnation(3), shard(2), 8192).is_err());
        for other in [
            "region-3-02",
            "region-0000000000000003-16",
            "region-x-00",
            "lock",
        ] {
            fs::write(dir.path().join(other), b"").unwrap();
        }
        let found = list_regions(dir.path()).unwrap();
        let ids: Vec<_> = found
            .iter()
            .map(|r| (r.incarnation.0, r.shard.index()))
            .collect();
        assert_eq!(ids, [(3, 2), (3, 15), (18, 0)]);
    }

    #[test]
    fn the_boot_has_an_identity() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        let id = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(id.0[..3], [0x00, 0x11, 0x22]);
        assert_eq!(parse_boot_id("0011"), None);
    }

    #[test]
    fn memory_file_systems_are_recognised() {
        assert!(is_memory(Path::new("/dev/shm")).unwrap());
        assert!(!is_memory(Path::new("/proc")).unwrap());
    }
}

//! How reads behave on this machine: what the configuration leaves open is decided here.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::CacheFileSpec;
use crate::config::{CacheSize, Config};

/// The default cache file is at most so large.
const FILE_BYTES_MAX: u64 = 64 << 30;
/// A cache file smaller than this is not worth it.
const FILE_BYTES_MIN: u64 = 64 << 20;
/// By default the directory of the file takes at most this share of memory.
const DIRECTORY_SHARE: u64 = 64;
/// Bytes of the directory for each page of the file.
const DIRECTORY_BYTES: u64 = 36;
const PAGE_BYTES: u64 = taipan_engine::block::PAGE_BYTES as u64;

/// How reads behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSettings {
    /// Bytes of the memory cache.
    pub ram_bytes: u64,
    /// The cache file; `None`: there is none.
    pub file: Option<CacheFileSpec>,
    /// A read waits at most so long for the backend, then it fails.
    pub deadline: Duration,
    /// CPU of the thread.
    pub cpu: Option<usize>,
}

impl ReadSettings {
    /// Decides for a machine with so much memory; `ram_bytes` is what the memory budget grants.
    pub fn plan(config: &Config, ram_bytes: u64, memory_bytes: u64) -> Self {
        Self {
            ram_bytes,
            file: plan_file(config, memory_bytes),
            deadline: config.reads.deadline,
            cpu: config.cores.pin.then_some(config.cores.uploader),
        }
    }
}

fn plan_file(config: &Config, memory_bytes: u64) -> Option<CacheFileSpec> {
    let dir = config.data_dir.join("cache");
    let free = free_bytes(&config.data_dir, &dir);
    let bytes = match config.reads.chunk_cache {
        CacheSize::Off => None,
        CacheSize::Bytes(bytes) => Some(bytes),
        CacheSize::Percent(percent) => Some(free / 100 * percent),
        // Caching a disk on itself helps nobody.
        CacheSize::Auto if is_near(&config.backend, &config.data_dir) => None,
        CacheSize::Auto => {
            let by_memory = memory_bytes / DIRECTORY_SHARE / DIRECTORY_BYTES * PAGE_BYTES;
            Some((free / 10).min(FILE_BYTES_MAX).min(by_memory))
                .filter(|bytes| *bytes >= FILE_BYTES_MIN)
        }
    }?;
    Some(CacheFileSpec { dir, bytes })
}

/// Whether the backend is in memory or on the disk of the data directory.
fn is_near(backend: &str, data_dir: &Path) -> bool {
    let Some(dir) = backend.strip_prefix("dir:") else {
        return backend == "mem:";
    };
    let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
    // A directory that is not there yet is made beneath one that is.
    let dir = Path::new(dir);
    let theirs = dir.ancestors().find_map(device);
    theirs == device(data_dir)
}

/// Free bytes of the data directory's disk; the cache file of the last start counts as free.
fn free_bytes(data_dir: &Path, cache_dir: &Path) -> u64 {
    let free = rustix::fs::statvfs(data_dir)
        .map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    let old = cache_dir.join(super::cache_file::FILE_NAME).metadata();
    free + old.map_or(0, |old| old.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Machine, load};

    fn config(backend: Option<String>, cache: Option<&str>) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags {
            data: Some(dir.path().display().to_string()),
            backend,
            set: cache
                .map(|size| format!("chunk_cache={size}"))
                .into_iter()
                .collect(),
            ..Flags::default()
        };
        let machine = Machine {
            cpus: vec![0, 1],
            memory_bytes: 8 << 30,
        };
        let config = load(&flags, &machine).unwrap();
        (dir, config)
    }

    #[test]
    fn a_backend_on_the_same_disk_has_a_cache_file_only_when_asked() {
        let (_dir, near) = config(None, None);
        assert_eq!(ReadSettings::plan(&near, 1, 8 << 30).file, None);
        let (dir, asked) = config(None, Some("\"128MiB\""));
        let file = ReadSettings::plan(&asked, 1, 8 << 30).file.unwrap();
        assert_eq!(file.bytes, 128 << 20);
        assert_eq!(file.dir, dir.path().join("cache"));
        let (_dir, mem) = config(Some("mem:".to_owned()), None);
        assert_eq!(ReadSettings::plan(&mem, 1, 8 << 30).file, None);
    }
}

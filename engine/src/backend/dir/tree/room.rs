//! The ballast of a directory: room that chunks of cuts leave free, so that index parts, manifests
//! and compaction, which give room back, still fit when everything else does not.

use rustix::fs::statvfs;

use super::Tree;
use crate::error::{Error, ErrorKind, Result};

/// One compaction writes 16 MiB, a checkpoint after it an index part or a few of 8 MiB.
const RESERVE_BYTES: u64 = 64 << 20;
/// Of a small file system no more than this part is reserved.
const RESERVE_SHARE: u64 = 16;

impl Tree {
    /// `Full` if so many bytes more would take what is reserved.
    pub(in crate::backend::dir) fn room_for_data(&self, bytes: u64) -> Result<()> {
        let found = statvfs(self.root()).map_err(|e| {
            Error::io("asking how much room there is", e.into()).with_path(self.root())
        })?;
        let (free, all) = (
            found.f_bavail.saturating_mul(found.f_frsize),
            found.f_blocks.saturating_mul(found.f_frsize),
        );
        check(bytes, free, all).map_err(|error| error.with_path(self.root()))
    }
}

fn check(bytes: u64, free: u64, all: u64) -> Result<()> {
    let reserve = RESERVE_BYTES.min(all / RESERVE_SHARE);
    if free >= bytes.saturating_add(reserve) {
        return Ok(());
    }
    let text = format!(
        "{free} bytes are free, of which {reserve} are reserved for freeing space; make room"
    );
    Err(Error::new(ErrorKind::Full, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_leaves_room_for_what_frees_space() {
        let (mib, gib) = (1 << 20, 1 << 30);
        check(4 * mib, 68 * mib, gib * 100).unwrap();
        let refused = check(4 * mib, 68 * mib - 1, gib * 100).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Full);
        // Of a small disk a sixteenth.
        check(4 * mib, 5 * mib, 16 * mib).unwrap();
        assert!(check(4 * mib, 5 * mib - 1, 16 * mib).is_err());
        assert!(check(u64::MAX, gib, gib).is_err());
    }

    #[test]
    fn a_directory_with_room_takes_data() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.room_for_data(1).unwrap();
        let refused = tree.room_for_data(u64::MAX).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Full);
    }
}

//! What the scenarios share: a daemon on its own directories, programs with time limits, a client
//! whose every message the test decides, and a guest.

pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod guest;
pub(crate) mod http;
pub(crate) mod program;
pub(crate) mod small_disk;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of 1 KiB.
pub(crate) const KIB: u64 = 1 << 10;
/// Bytes of 1 MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// A file beside these tests: a script or a program of the guest.
pub(crate) fn beside(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/end_to_end")
        .join(relative)
}

/// One of our own programs as built for release; `TAIPAN_BIN_DIR` names another folder.
pub(crate) fn built(name: &str) -> PathBuf {
    let folder = std::env::var_os("TAIPAN_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{path:?} is missing: cargo build --release --workspace"
    );
    path
}

/// Waits until `done`, looking every few milliseconds; fails with `what` after `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Content that tells its place and version: eight bytes of each, repeated.
pub(crate) fn pattern(place: u64, version: u64, bytes: usize) -> Vec<u8> {
    let mut unit = place.to_le_bytes().to_vec();
    unit.extend_from_slice(&version.to_le_bytes());
    unit.iter().copied().cycle().take(bytes).collect()
}

//! What the scenarios share: a daemon on its own directories, programs with time limits, a client
//! whose every message the test decides, and a guest.

pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod guest;
pub(crate) mod http;
pub(crate) mod probe;
pub(crate) mod program;
pub(crate) mod s3;
pub(crate) mod small_disk;
pub(crate) mod stamps;

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

/// How often a scenario that depends on chance is played: `TAIPAN_ROUNDS`, as `tools/check --full`
/// sets it, or else `usual`; a `share`th of the former where a round takes long.
pub(crate) fn rounds(usual: u64, share: u64) -> u64 {
    match std::env::var("TAIPAN_ROUNDS") {
        Ok(text) => text.parse::<u64>().expect("TAIPAN_ROUNDS is a number") / share,
        Err(_) => usual,
    }
}

/// Numbers by chance (SplitMix64). The seed is printed, so that a failure names it; `TAIPAN_SEED`
/// plays it again.
pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by the time, or by `TAIPAN_SEED`.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("TAIPAN_SEED").map_or_else(
            |_| {
                let since = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
                since.as_nanos() as u64
            },
            |text| text.parse().expect("TAIPAN_SEED is a number"),
        );
        eprintln!("TAIPAN_SEED={seed}");
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Dice of its own for a thread.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }
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

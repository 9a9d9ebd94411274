//! 4 GiB from a self-checking source, copied in and out again around a kill, a drain and the loss
//! of the whole WAL: the source refuses any write that differs from its own content.

use std::fs;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(600);

/// Runs `copy` with `$SOURCE` and `$VOLUME` as the URIs of the plugin and of the volume.
fn with_source(daemon: &Daemon, copy: &str) {
    Program::new("nbdkit", LIMIT)
        .args("-U - sparse-random size=4G seed=2718 percent=20 --run")
        .arg(format!("SOURCE=\"$uri\"; {copy}"))
        .env("VOLUME", daemon.uri("vol0"))
        .succeed();
}

fn copy_in(daemon: &Daemon) {
    with_source(daemon, "nbdcopy -T4 -C4 --flush \"$SOURCE\" \"$VOLUME\"");
}

fn copy_back(daemon: &Daemon) {
    with_source(daemon, "nbdcopy -T4 -C4 \"$VOLUME\" \"$SOURCE\"");
}

#[test]
fn a_copy_comes_back_after_a_kill_and_from_chunks_alone() {
    let rig = Rig::new(&["vol0:4GiB"]);
    let daemon = rig.start();
    copy_in(&daemon);
    daemon.kill();

    let daemon = rig.start();
    copy_back(&daemon);
    daemon.stop();

    // A drained stop leaves everything in the chunks.
    rig.start_with(&["--drain"], "").stop();
    let wal = rig.data().join("wal");
    fs::remove_dir_all(&wal).unwrap();
    fs::create_dir(&wal).unwrap();
    rig.lose_memory();

    let daemon = rig.start();
    copy_back(&daemon);
    daemon.stop();
}

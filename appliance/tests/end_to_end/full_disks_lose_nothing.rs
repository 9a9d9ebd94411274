//! Full disks, on small file systems made for the test: clear errors, nothing half-made, nothing
//! lost, and all goes on when there is room again.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::small_disk::SmallDisk;
use crate::harness::{MIB, pattern, wait_until};

const WRITE: u64 = MIB;
const LIMIT: Duration = Duration::from_secs(180);

fn write_flushed(daemon: &Daemon, places: std::ops::Range<u64>) {
    write_version(daemon, "vol0", places, 5);
}

fn write_version(daemon: &Daemon, volume: &str, places: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client(volume);
    for place in places {
        let data = pattern(place, version, WRITE as usize);
        assert_eq!(
            client.write(place * WRITE, &data).unwrap(),
            None,
            "place {place}"
        );
    }
    assert_eq!(client.flush().unwrap(), None);
}

fn check(daemon: &Daemon, places: std::ops::Range<u64>) {
    check_version(daemon, places, 5);
}

fn check_version(daemon: &Daemon, places: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client("vol0");
    for place in places {
        let found = client.read(place * WRITE, WRITE as u32).unwrap().unwrap();
        let expected = pattern(place, version, WRITE as usize);
        assert!(found == expected, "place {place}");
    }
}

fn backend_state(daemon: &Daemon) -> String {
    match &daemon.status()["backend"]["state"] {
        Value::String(state) => state.clone(),
        other => panic!("backend state: {other}"),
    }
}

#[test]
fn a_full_disk_at_wal_creation_is_an_error_and_leaves_nothing() {
    let disk = SmallDisk::new(64);
    let rig = Rig::new(&["vol0:1GiB"]).with_data(disk.path("data"));
    let printed = rig.refused(&[], "");
    assert!(printed.to_lowercase().contains("space"), "{printed}");
    let wal = disk.path("data/wal");
    let half_made = fs::read_dir(&wal).map_or(0, |entries| {
        entries
            .flatten()
            .map(|entry| entry.metadata().map_or(0, |found| found.len()))
            .sum()
    });
    assert!(half_made < MIB, "{half_made} bytes were left in {wal:?}");

    disk.grow(1024);
    let daemon = rig.start();
    write_flushed(&daemon, 0..4);
    check(&daemon, 0..4);
    daemon.stop();
}

#[test]
fn a_full_backend_is_waited_out() {
    let disk = SmallDisk::new(16);
    let backend = format!("--backend=dir:{}", disk.path("objects").display());
    let rig =
        Rig::new(&["vol0:1GiB"]).with_flags(&[&backend, "--set", "commit.interval_seconds=1"]);
    let daemon = rig.start();
    write_flushed(&daemon, 0..64);
    wait_until("the backend to be reported full", LIMIT, || {
        backend_state(&daemon) == "full"
    });
    check(&daemon, 0..64);
    write_flushed(&daemon, 64..80);
    daemon.kill();

    // Still full: a restart serves what was flushed.
    let daemon = rig.start();
    check(&daemon, 0..80);
    disk.grow(512);
    wait_until("the backend to recover", LIMIT, || {
        backend_state(&daemon) == "healthy"
    });
    daemon.stop();
    rig.start_with(&["--drain"], "").stop();
    fs::remove_dir_all(rig.data().join("wal")).unwrap();
    fs::create_dir(rig.data().join("wal")).unwrap();
    rig.lose_memory();
    let daemon = rig.start();
    check(&daemon, 0..80);
    daemon.stop();
}

/// What an operator does about a full backend works on a full backend: the cut that waits for room
/// steps aside for it.
#[test]
fn a_full_backend_has_room_again_once_snapshots_and_volumes_are_deleted() {
    let disk = SmallDisk::new(48);
    let backend = format!("--backend=dir:{}", disk.path("objects").display());
    let rig = Rig::new(&["vol0:1GiB", "vol1:1GiB"]).with_flags(&[
        &backend,
        "--set=commit.interval_seconds=1",
        // Only what is deleted gives room.
        "--set=compaction.threshold_percent=0",
    ]);
    let daemon = rig.start();
    write_version(&daemon, "vol1", 0..8, 1);
    write_version(&daemon, "vol0", 0..16, 1);
    daemon.taipan().args("snapshot create vol0 held").succeed();
    write_version(&daemon, "vol0", 0..16, 2);
    daemon.taipan().arg("drain").succeed();
    // Of 45 MiB beside the ballast 40 are taken; what the next cut replaces goes only after it.
    write_version(&daemon, "vol0", 0..16, 3);
    let limit = Duration::from_secs(60);
    let is = |state: &str| backend_state(&daemon) == state;
    wait_until("the backend to be full", limit, || is("full"));
    daemon.taipan().args("volume resize vol0 2GiB").succeed();
    daemon.taipan().args("volume delete vol1 --yes").succeed();
    daemon.taipan().args("snapshot delete vol0@held").succeed();
    wait_until("the backend to recover", limit, || is("healthy"));
    daemon.taipan().arg("drain").succeed();
    check_version(&daemon, 0..16, 3);
    let verify = format!("verify dir:{} --deep", disk.path("objects").display());
    daemon.taipan().args(&verify).succeed();
    daemon.stop();
}

#[test]
fn a_disk_that_fills_up_while_running_loses_nothing() {
    let disk = SmallDisk::new(640);
    let rig = Rig::new(&["vol0:1GiB"])
        .with_data(disk.path("data"))
        .with_flags(&["--set", "commit.interval_seconds=1"]);
    let daemon = rig.start();
    write_flushed(&daemon, 0..8);
    disk.fill();
    // The WAL has its room already; only packing has to wait.
    write_flushed(&daemon, 8..40);
    wait_until("the full disk to be reported", LIMIT, || {
        backend_state(&daemon) == "full"
    });
    check(&daemon, 0..40);
    daemon.kill();
    // What it gave up when it found the disk full is taken as well: not a byte is left for the
    // records of a start, which says so and changes nothing.
    disk.fill();
    let printed = rig.refused(&[], "");
    assert!(printed.contains("No space left"), "{printed}");
    fs::remove_file(disk.path("ballast")).unwrap();
    let daemon = rig.start();
    check(&daemon, 0..40);
    daemon.taipan().arg("drain").succeed();
    write_flushed(&daemon, 40..48);
    check(&daemon, 0..48);
    daemon.stop();
    let daemon = rig.start();
    check(&daemon, 0..48);
    daemon.stop();
}

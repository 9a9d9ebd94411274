//! The host loses power while S3 is away: the volume serves every flushed write, unverified, and
//! commits go on when S3 is back. A data directory from an old copy never brings old writes back.

use std::path::Path;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::s3::SeaweedFs;
use crate::harness::{MIB, pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(180);

fn write(daemon: &Daemon, places: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client("vol0");
    for place in places {
        let data = pattern(place, version, MIB as usize);
        assert_eq!(client.write(place * MIB, &data).unwrap(), None);
    }
    assert_eq!(client.flush().unwrap(), None);
}

fn check(daemon: &Daemon, places: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client("vol0");
    for place in places {
        let found = client.read(place * MIB, MIB as u32).unwrap().unwrap();
        assert!(
            found == pattern(place, version, MIB as usize),
            "MiB {place}"
        );
    }
}

#[test]
fn it_serves_unverified_and_goes_on() {
    let mut server = SeaweedFs::start();
    let mut rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    write(&daemon, 0..8, 1);
    daemon.taipan().arg("drain").succeed();
    server.stop();
    write(&daemon, 4..24, 2);
    daemon.kill();
    rig.lose_memory();
    rig.forget_volumes();

    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["state"], "unverified");
    check(&daemon, 4..24, 2);
    write(&daemon, 24..32, 3);
    check(&daemon, 24..32, 3);
    // Once more, on top of what was written while unverified.
    daemon.kill();
    rig.lose_memory();
    let daemon = rig.start();
    check(&daemon, 4..24, 2);
    check(&daemon, 24..32, 3);

    server.start_again();
    wait_until("the volume to be verified", LIMIT, || {
        daemon.volume("vol0")["state"] == "online"
    });
    write(&daemon, 32..34, 4);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    let daemon = rig.start();
    check(&daemon, 0..4, 1);
    check(&daemon, 4..24, 2);
    check(&daemon, 24..32, 3);
    check(&daemon, 32..34, 4);
    daemon.stop();
}

fn copy(from: &Path, to: &Path) {
    Program::new("cp", LIMIT)
        .args("-a --sparse=always")
        .arg(from)
        .arg(to)
        .succeed();
}

#[test]
fn an_old_copy_of_the_data_directory_brings_nothing_back() {
    let server = SeaweedFs::start();
    let mut rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--wal-size=128MiB", "--set=commit.interval_seconds=3600"]);
    let daemon = rig.start();
    rig.forget_volumes();
    write(&daemon, 0..8, 1);
    daemon.kill();
    let old = rig.path("old-copy");
    copy(rig.data(), &old);

    let daemon = rig.start();
    check(&daemon, 0..8, 1);
    write(&daemon, 0..8, 2);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    copy(&old, rig.data());

    let daemon = rig.start_or_refuse(&[]).expect("it serves what it can");
    let state = daemon.volume("vol0")["state"].clone();
    if state != "online" {
        daemon.taipan().args("volume takeover vol0").succeed();
        wait_until("the takeover", LIMIT, || {
            daemon.volume("vol0")["state"] == "online"
        });
    }
    check(&daemon, 0..8, 2);
    let shown = daemon.taipan().args("volume show vol0 --json").succeed();
    assert!(shown.contains("quarantine"), "{shown}");
    // The stale records stay out over restarts and commits.
    write(&daemon, 8..9, 3);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_memory();
    let daemon = rig.start();
    check(&daemon, 0..8, 2);
    check(&daemon, 8..9, 3);
    daemon.stop();
}

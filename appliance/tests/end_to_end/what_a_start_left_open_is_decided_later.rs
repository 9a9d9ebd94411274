//! The bucket is away or fails while a daemon starts: what the start could not decide is decided
//! when it is back, without a restart, and with all that the log holds. And what a full log and
//! changed settings mean meanwhile.

use std::ops::Range;
use std::time::Duration;

use serde_json::json;
use taipan_nbd::Errno;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::{MIB, pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(180);

fn write(daemon: &Daemon, place: u64) -> Option<Errno> {
    let data = pattern(place, 1, MIB as usize);
    let mut client = daemon.client("vol0");
    client.set_write_limit(LIMIT);
    client.write(place * MIB, &data).unwrap()
}

fn check(daemon: &Daemon, place: u64) {
    let found = daemon.client("vol0").read(place * MIB, MIB as u32);
    let found = found.unwrap().unwrap();
    assert!(found == pattern(place, 1, MIB as usize), "MiB {place}");
}

fn await_state(daemon: &Daemon, state: &str) {
    wait_until(&format!("the volume to be {state}"), LIMIT, || {
        daemon.volume("vol0")["state"] == state
    });
}

/// What was drained is on the next machine, which knows only the bucket.
fn goes_on_elsewhere(mut rig: Rig, daemon: Daemon, places: Range<u64>) {
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    rig.forget_volumes();
    let daemon = rig.start();
    for place in places {
        check(&daemon, place);
    }
    daemon.stop();
}

#[test]
fn an_idle_volume_is_verified_when_the_bucket_is_back() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:64MiB"]).with_bucket(&server.bucket());
    let daemon = rig.start();
    assert_eq!(write(&daemon, 3), None);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    server.go_down();
    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["state"], "unverified");
    let backend = || daemon.status()["backend"]["state"].clone();
    assert_eq!(backend(), "retrying", "no commit has failed yet");
    server.heal();
    await_state(&daemon, "online");
    wait_until("the backend to be listed", LIMIT, || backend() == "healthy");
    check(&daemon, 3);
    daemon.stop();
}

#[test]
fn a_volume_without_copies_comes_back_with_what_the_log_holds() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:64MiB"]).with_bucket(&server.bucket());
    let daemon = rig.start();
    assert_eq!(write(&daemon, 3), None);
    daemon.taipan().arg("drain").succeed();
    server.go_down();
    assert_eq!(write(&daemon, 3), None, "the same again");
    assert_eq!(write(&daemon, 4), None);
    assert_eq!(daemon.client("vol0").flush().unwrap(), None);
    daemon.kill();
    std::fs::remove_dir_all(rig.data().join("metadata")).unwrap();
    let daemon = rig.start_or_refuse(&[]).expect("it serves what it can");
    assert_eq!(daemon.volume("vol0")["state"], "refused");
    server.heal();
    await_state(&daemon, "online");
    (3..5).for_each(|place| check(&daemon, place));
    assert_eq!(write(&daemon, 5), None);
    goes_on_elsewhere(rig, daemon, 3..6);
}

#[test]
fn a_commit_whose_answer_a_crash_took_is_gone_on_from() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    assert_eq!(write(&daemon, 2), None);
    daemon.taipan().arg("drain").succeed();
    // From now on the manifest is stored, and nobody learns of it.
    let lost =
        json!({ "verbs": ["put"], "contains": "/manifests/", "action": { "kind": "cut_after" } });
    let mute =
        json!({ "verbs": ["get"], "contains": "/manifests/", "action": { "kind": "slow_down" } });
    server.faults(&json!([lost, mute]));
    assert_eq!(write(&daemon, 3), None);
    wait_until("the commit to fail", LIMIT, || {
        daemon.volume("vol0")["upload"]["failures"].as_u64() > Some(0)
    });
    assert_eq!(write(&daemon, 4), None);
    assert_eq!(daemon.client("vol0").flush().unwrap(), None);
    daemon.kill();
    server.go_down();
    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["state"], "unverified");
    (3..5).for_each(|place| check(&daemon, place));
    assert_eq!(write(&daemon, 5), None);
    server.heal();
    daemon.await_log("opened again from there", LIMIT);
    await_state(&daemon, "online");
    (2..6).for_each(|place| check(&daemon, place));
    assert_eq!(write(&daemon, 6), None);
    goes_on_elsewhere(rig, daemon, 2..7);
}

#[test]
fn a_first_start_that_the_bucket_failed_opens_the_volumes_later() {
    let server = FakeS3::start();
    let mut rig = Rig::new(&["vol0:64MiB"]).with_bucket(&server.bucket());
    let daemon = rig.start();
    assert_eq!(write(&daemon, 5), None);
    daemon.taipan().arg("drain").succeed();
    daemon.stop();
    rig.lose_machine();
    rig.forget_volumes();
    let manifests = json!({
        "verbs": ["get"], "contains": "/manifests/", "action": { "kind": "slow_down" }
    });
    server.faults(&json!([manifests]));
    let daemon = rig.start_or_refuse(&[]).expect("it serves what it can");
    assert_eq!(daemon.volume("vol0")["state"], "refused");
    server.heal();
    await_state(&daemon, "online");
    check(&daemon, 5);
    assert_eq!(write(&daemon, 6), None);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    let daemon = rig.start();
    check(&daemon, 5);
    check(&daemon, 6);
    daemon.stop();
}

#[test]
fn settings_are_not_changed_while_the_bucket_is_away() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:64MiB"]).with_bucket(&server.bucket());
    let daemon = rig.start();
    let run = |line: &str| daemon.taipan().args(line);
    let rpo = || daemon.volume("vol0")["rpo_seconds"].clone();
    run("volume set vol0 --rpo-seconds 70").succeed();
    server.go_down();
    let said = run("volume set vol0 --rpo-seconds 77").fail();
    assert!(said.contains("nothing was changed"), "{said}");
    let said = run("volume resize vol0 128MiB").fail();
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(write(&daemon, 1), None, "it is not held up");
    server.heal();
    assert_eq!(rpo(), 70);
    run("volume set vol0 --rpo-seconds 78").succeed();
    assert_eq!(rpo(), 78);
    daemon.kill();
    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["rpo_seconds"], 78);
    assert_eq!(daemon.volume("vol0")["size_bytes"], 64 * MIB);
    daemon.stop();
}

#[test]
fn a_full_log_refuses_writes_if_the_operator_chose_that() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:1GiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--wal-size=128MiB", "--set=wal.on_full=enospc"])
        .with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    server.go_down();
    let refused = (0..512).find_map(|place| write(&daemon, place).map(|errno| (place, errno)));
    let (place, errno) = refused.expect("the log is smaller than that");
    assert_eq!(errno, Errno::NoSpc);
    assert_eq!(daemon.client("vol0").flush().unwrap(), None);
    check(&daemon, 0);
    check(&daemon, place - 1);
    server.heal();
    wait_until("the log to have room again", LIMIT, || {
        write(&daemon, place).is_none()
    });
    check(&daemon, place);
    daemon.stop();
}

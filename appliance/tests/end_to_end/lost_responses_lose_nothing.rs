//! Requests that took effect although the client heard otherwise, conflicts, and requests that take
//! effect late: nothing is lost, and no daemon takes itself for fenced because of its own object.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::daemon::Rig;
use crate::harness::s3::FakeS3;
use crate::harness::stamps::Ledger;
use crate::harness::{Dice, wait_until};

const BLOCKS: u64 = 4096;

/// Writers against a bucket with these faults, until each was met at least once.
fn survives(rules: &Value) {
    let mut dice = Dice::new();
    let server = FakeS3::start();
    let mut rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&[
            "--wal-size=128MiB",
            "--set=commit.interval_seconds=1",
            "--set=commit.pending_size=1MiB",
        ]);
    let mut daemon = rig.start();
    rig.forget_volumes();
    let mut ledger = Ledger::new(BLOCKS);
    server.faults(rules);
    let writers = ledger.start_writers(&daemon.socket(), &mut dice);
    std::thread::sleep(Duration::from_secs(3));
    wait_until("each fault", Duration::from_secs(240), || {
        server.fired().iter().all(|&count| count > 0)
    });
    let mut client = daemon.client("vol0");
    assert_eq!(client.flush().unwrap(), None);
    assert_eq!(daemon.volume("vol0")["state"], "online");
    daemon.terminate();
    daemon.ended(Duration::from_secs(120));
    ledger.join(writers);

    // A start with the same faults opens the volume, as opening is a conditional write too.
    let daemon = rig.start();
    let found = ledger.read(&mut daemon.client("vol0"));
    ledger.check_answered(&found);
    daemon.taipan().arg("drain").succeed();
    assert_eq!(daemon.volume("vol0")["state"], "online");
    daemon.kill();
    rig.lose_machine();
    server.heal();
    let daemon = rig.start();
    let found = ledger.read(&mut daemon.client("vol0"));
    ledger.check_answered(&found);
    daemon.stop();
}

#[test]
fn errors_after_the_effect() {
    survives(&json!([
        { "action": { "kind": "error_after" }, "verbs": ["put"], "contains": "/manifests/",
          "probability": 0.4 },
        { "action": { "kind": "error_after" }, "verbs": ["put"], "contains": "/chunks/",
          "probability": 0.3 },
    ]));
}

#[test]
fn connections_cut_after_the_effect() {
    survives(&json!([
        { "action": { "kind": "cut_after" }, "verbs": ["put"], "contains": "/manifests/",
          "probability": 0.4 },
        { "action": { "kind": "cut_after" }, "verbs": ["put"], "contains": "/chunks/",
          "probability": 0.3 },
    ]));
}

#[test]
fn conflicts_and_false_refusals() {
    survives(&json!([
        { "action": { "kind": "conflict" }, "verbs": ["put"], "probability": 0.4 },
        { "action": { "kind": "false_precondition_failed" }, "verbs": ["put"],
          "contains": "/manifests/", "skip": 2, "count": 2 },
    ]));
}

#[test]
fn a_manifest_that_hangs_and_then_takes_effect() {
    survives(&json!([
        { "action": { "kind": "hang", "ms": 8000 }, "verbs": ["put"], "contains": "/manifests/",
          "skip": 2, "count": 1 },
        { "action": { "kind": "hang", "ms": 8000 }, "verbs": ["put"], "contains": "/chunks/",
          "skip": 3, "count": 1 },
    ]));
}

#[test]
fn a_race_of_the_probe_without_a_winner_is_run_again() {
    let server = FakeS3::start();
    // As many as race: each is told that another one was there, and none was.
    server.faults(&json!([
        { "action": { "kind": "conflict" }, "verbs": ["put"], "contains": "/race", "count": 3 },
    ]));
    let rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--wal-size=128MiB"]);
    let daemon = rig.start();
    assert_eq!(daemon.volume("vol0")["state"], "online");
    assert!(server.fired().iter().all(|&count| count == 3));
    daemon.stop();
}

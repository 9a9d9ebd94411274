//! Snapshots of several volumes that are taken together are one cut: what was written to one after
//! another was answered is never there without it. What a crash leaves of a group is no group.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::wait_until;

const LIMIT: Duration = Duration::from_secs(120);
const PAGE: usize = 4096;

fn number(daemon: &Daemon, export: &str) -> u64 {
    let mut client = daemon.client(export);
    let found = client.read(0, PAGE as u32).unwrap().unwrap();
    u64::from_le_bytes(found[..8].try_into().unwrap())
}

fn page(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(PAGE / 8)
}

/// Writes 1, 2, 3 … to `a` and then to `b`, each after the other was answered, until told to end.
fn count(daemon: &Daemon, ends: &AtomicBool) {
    let (mut first, mut second) = (daemon.client("a"), daemon.client("b"));
    for number in 1.. {
        assert_eq!(first.write(0, &page(number)).expect("an answer"), None);
        assert_eq!(second.write(0, &page(number)).expect("an answer"), None);
        if ends.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn of_all_its_volumes() {
    let rig = Rig::new(&["a:1MiB", "b:1MiB"]).with_flags(&["--set=commit.interval_seconds=3600"]);
    let daemon = rig.start();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| count(&daemon, &ends));
        wait_until("both are written", LIMIT, || number(&daemon, "b") > 0);
        for group in ["one", "two", "three"] {
            let line = format!("snapshot create --group a b {group}");
            daemon.taipan().args(&line).succeed();
        }
        ends.store(true, Ordering::Relaxed);
    });
    let mut before = 0;
    for group in ["one", "two", "three"] {
        let first = number(&daemon, &format!("a@{group}"));
        let second = number(&daemon, &format!("b@{group}"));
        let is_cut = second == first || second + 1 == first;
        assert!(is_cut && first >= before, "{group}: {first}, {second}");
        before = first;
        let shown = daemon
            .taipan()
            .args(&format!("snapshot show b@{group}"))
            .succeed();
        assert!(shown.contains("a, b"), "{shown}");
    }
    for (line, why) in [
        ("snapshot create --group a b one", "exists already"),
        ("snapshot create --group a c four", "no volume"),
        ("snapshot create --group a four", "two or more"),
        ("snapshot create a b four", "--group"),
        ("snapshot create --group a a four", "each once"),
    ] {
        let said = daemon.taipan().args(line).fail();
        assert!(said.contains(why), "{line}: {said}");
    }
    daemon.stop();
}

/// The snapshots of a volume, and how many of them are committed.
fn snapshots(daemon: &Daemon, volume: &str) -> (usize, usize) {
    let line = format!("--json snapshot list {volume}");
    let told = daemon.taipan().args(&line).succeed();
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let all = told["snapshots"].as_array().expect("a list");
    let committed = all.iter().filter(|one| one["state"] == "committed");
    (all.len(), committed.count())
}

/// Has one of the two manifests of a group stored, then ends the daemon.
fn half_of_a_group(rig: &Rig, server: &FakeS3) {
    let daemon = rig.start();
    let mut client = daemon.client("b");
    assert_eq!(client.write(0, &page(7)).expect("an answer"), None);
    server.faults(&json!([{
        "action": { "kind": "error_before" }, "verbs": ["put"], "contains": "/manifests/", "skip": 1
    }]));
    let command = daemon.taipan().args("snapshot create --group a b both");
    let creation = std::thread::spawn(move || command.fail());
    wait_until("one of the two", LIMIT, || {
        let committed = snapshots(&daemon, "a").1 + snapshots(&daemon, "b").1;
        server.fired()[0] > 0 && committed == 1
    });
    daemon.kill();
    creation.join().expect("it was not answered");
    server.heal();
}

/// One of the two manifests is stored, then the daemon dies: the snapshot in it is deleted by the
/// next, and the name is free.
#[test]
fn or_of_none() {
    let server = FakeS3::start();
    let rig = Rig::new(&["a:1MiB", "b:1MiB"]).with_flags(&["--set=commit.interval_seconds=3600"]);
    let rig = rig.with_bucket(&server.bucket());
    half_of_a_group(&rig, &server);
    let daemon = rig.start();
    daemon.await_log("a snapshot of a broken group is deleted", LIMIT);
    wait_until("nothing is left of the group", LIMIT, || {
        snapshots(&daemon, "a").0 + snapshots(&daemon, "b").0 == 0
    });
    daemon
        .taipan()
        .args("snapshot create --group a b both")
        .succeed();
    daemon.kill();
    // All its manifests are stored, and what says so is not: the next start says it. (The first
    // that this one looks at is the one before.)
    let mut daemon = rig.start_with(&[], "group.put=+1*crash");
    daemon
        .taipan()
        .args("snapshot create --group a b more")
        .fail();
    assert_eq!(daemon.ended(LIMIT).signal(), Some(9));
    let daemon = rig.start();
    for group in ["both", "more"] {
        wait_until("the group is complete", LIMIT, || {
            let line = format!("snapshot show a@{group}");
            daemon.taipan().args(&line).succeed().contains("a, b")
        });
    }
    daemon.stop();
}

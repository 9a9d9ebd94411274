//! Snapshots of a running volume: committed by the command, refused where they must be, the same
//! after overwrites, kills and the loss of the machine, taken while the backend is away, deleted.

use std::time::Duration;

use serde_json::Value;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::{pattern, wait_until};

const BLOCKS: u64 = 256;
const BLOCK_BYTES: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(60);

fn fill(daemon: &Daemon, version: u64) {
    let mut client = daemon.client("vol0");
    for block in 0..BLOCKS {
        let bytes = pattern(block, version, BLOCK_BYTES as usize);
        let answer = client.write(block * BLOCK_BYTES, &bytes);
        assert_eq!(answer.expect("an answer"), None);
    }
}

fn json(daemon: &Daemon, line: &str) -> Value {
    let text = daemon.taipan().args(line).arg("--json").succeed();
    serde_json::from_str(&text).expect("JSON")
}

/// States of the volume's snapshots by name.
fn states(daemon: &Daemon) -> Vec<(String, String)> {
    let list = json(daemon, "snapshot list vol0");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let snapshots = list["snapshots"].as_array().expect("a list");
    let pair = |s: &Value| (text(&s["name"]), text(&s["state"]));
    snapshots.iter().map(pair).collect()
}

fn committed(names: &[&str]) -> Vec<(String, String)> {
    let pair = |name: &&str| ((*name).to_owned(), "committed".to_owned());
    names.iter().map(pair).collect()
}

/// The content of a snapshot, as the command copies it from the bucket.
fn check_content(rig: &Rig, daemon: &Daemon, name: &str, version: u64) {
    let path = rig.path(&format!("{name}-{version}.img"));
    let line = format!("export vol0@{name} {} --force", path.display());
    daemon.taipan().args(&line).succeed();
    let bytes = std::fs::read(&path).expect("the copy");
    assert_eq!(bytes.len() as u64, BLOCKS * BLOCK_BYTES);
    for (block, bytes) in (0..).zip(bytes.chunks_exact(BLOCK_BYTES as usize)) {
        let same = bytes == pattern(block, version, bytes.len());
        assert!(same, "block {block} of {name}");
    }
}

#[test]
fn snapshots_outlive_overwrites_kills_and_the_machine() {
    let rig = Rig::new(&["vol0:1MiB"]).with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    fill(&daemon, 1);
    let taken = json(&daemon, "snapshot create vol0 one");
    assert_eq!(taken["state"], "committed", "{taken}");
    fill(&daemon, 2);
    json(&daemon, "snapshot create vol0 two");
    for (line, why) in [
        ("snapshot create vol0 one", "exists already"),
        ("snapshot create vol0 a/b", "'/'"),
        ("snapshot create other one", "no volume"),
        ("snapshot show vol0@three", "no snapshot"),
        ("snapshot delete vol0@three", "no snapshot"),
        ("volume delete vol0 --yes", "delete them first"),
    ] {
        let said = daemon.taipan().args(line).fail();
        assert!(said.contains(why), "{line}: {said}");
    }
    for version in 3..9 {
        fill(&daemon, version);
        daemon.taipan().args("volume commit vol0").succeed();
    }
    daemon.kill();
    let daemon = rig.start();
    assert_eq!(states(&daemon), committed(&["one", "two"]));
    let shown = json(&daemon, "snapshot show vol0@one");
    assert_eq!(shown["id"], taken["id"]);
    check_content(&rig, &daemon, "one", 1);
    check_content(&rig, &daemon, "two", 2);
    json(&daemon, "snapshot delete vol0@one");
    assert_eq!(states(&daemon), committed(&["two"]));
    fill(&daemon, 9);
    daemon.taipan().args("volume commit vol0").succeed();
    daemon.stop();
    let daemon = rig.start();
    assert_eq!(states(&daemon), committed(&["two"]));
    check_content(&rig, &daemon, "two", 2);
    daemon.stop();
}

#[test]
fn taken_and_committed_are_told_apart_while_the_bucket_is_away() {
    let s3 = FakeS3::start();
    let rig = Rig::new(&["vol0:1MiB"]).with_bucket(&s3.bucket());
    let daemon = rig.start();
    fill(&daemon, 1);
    json(&daemon, "snapshot create vol0 before");
    s3.go_down();
    fill(&daemon, 2);
    let taken = json(&daemon, "snapshot create vol0 during --no-wait");
    assert_eq!(taken["state"], "taken", "{taken}");
    fill(&daemon, 3);
    let said = daemon.taipan().args("snapshot delete vol0@during").fail();
    assert!(said.contains("not committed yet"), "{said}");
    s3.heal();
    wait_until("the snapshot to be committed", LIMIT, || {
        states(&daemon) == committed(&["before", "during"])
    });
    daemon.stop();
}

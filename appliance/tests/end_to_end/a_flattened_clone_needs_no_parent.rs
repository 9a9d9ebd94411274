//! A clone in use becomes independent of its parent, through crashes; and a parent is deleted whose
//! clones take over what they need. Nobody's bytes change.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::{pattern, wait_until};

const BLOCKS: u64 = 96;
const BLOCK_BYTES: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(180);

fn fill(daemon: &Daemon, volume: &str, blocks: std::ops::Range<u64>, version: u64) {
    let mut client = daemon.client(volume);
    for block in blocks {
        let bytes = pattern(block, version, BLOCK_BYTES as usize);
        let answer = client.write(block * BLOCK_BYTES, &bytes);
        assert_eq!(answer.expect("an answer"), None);
    }
    assert_eq!(client.flush().expect("an answer"), None);
}

/// The first `own` blocks are of version 2, the others as in the snapshot.
fn check(daemon: &Daemon, volume: &str, own: u64) {
    let mut client = daemon.client(volume);
    for block in 0..BLOCKS {
        let found = client.read(block * BLOCK_BYTES, BLOCK_BYTES as u32);
        let version = if block < own { 2 } else { 1 };
        let expected = pattern(block, version, BLOCK_BYTES as usize);
        let found = found.unwrap().unwrap();
        assert!(found == expected, "block {block} of {volume}");
    }
}

/// What `volume flatten --status` says.
fn status(daemon: &Daemon, volume: &str) -> serde_json::Value {
    let line = format!("--json volume flatten {volume} --status");
    let said = daemon.taipan().args(&line).succeed();
    serde_json::from_str(&said).unwrap()
}

#[test]
fn in_use_through_crashes_and_when_the_parent_goes() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:1MiB"]).with_bucket(&server.bucket());
    let mut rig = rig.with_flags(&["--set=commit.interval_seconds=1"]);
    let daemon = rig.start();
    let taipan = |line: &str| daemon.taipan().args(line).succeed();
    fill(&daemon, "vol0", 0..BLOCKS, 1);
    taipan("snapshot create vol0 golden");
    let said = daemon.taipan().args("volume flatten vol0").fail();
    assert!(said.contains("no clone"), "{said}");
    for clone in ["one", "two"] {
        taipan(&format!("clone vol0@golden {clone}"));
    }
    fill(&daemon, "one", 0..10, 2);
    let before = status(&daemon, "one");
    assert_eq!(before["state"], "none");
    assert!(before["foreign_bytes"].as_u64() > Some(0), "{before}");
    daemon.kill();
    // What was asked for goes on after a crash, without being asked for again.
    let mut daemon = rig.start_with(&[], "compact.manifest=crash");
    // It may be dead before it has answered.
    daemon.taipan().args("volume flatten one --no-wait").run();
    assert_eq!(daemon.ended(LIMIT).signal(), Some(9));
    let daemon = rig.start_with(&[], "flatten.release=error(EIO)");
    wait_until("it cannot let go", LIMIT, || {
        status(&daemon, "one")["last_failure"].is_string()
    });
    daemon.kill();
    let daemon = rig.start();
    fill(&daemon, "one", 10..20, 2);
    wait_until("it is flattened", LIMIT, || {
        status(&daemon, "one")["state"] == "done"
    });
    assert_eq!(status(&daemon, "one")["foreign_bytes"], 0);
    check(&daemon, "one", 20);
    // The other one still holds its parent.
    wait_until("refused for its clone", LIMIT, || {
        let said = daemon.taipan().args("volume delete vol0 --yes").fail();
        assert!(!said.contains("\"one\""), "{said}");
        said.contains("two")
    });
    daemon.succeed_soon("volume delete vol0 --yes --promote");
    daemon.taipan().args("volume show vol0").fail();
    check(&daemon, "two", 0);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    // Only the bucket is left, and nothing in it is of the parent.
    rig.lose_machine();
    rig.forget_volumes();
    let daemon = rig.start();
    check(&daemon, "one", 20);
    check(&daemon, "two", 0);
    daemon.stop();
}

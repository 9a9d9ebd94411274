//! A bucket that takes most of a second for each request: a start creates its volume, and
//! snapshots, clones and deletions come to their end, however many requests they take.

use std::time::Duration;

use serde_json::json;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::{MIB, pattern, wait_until};

/// What a request takes. The probe of a start makes fifteen.
const DELAY_MS: u64 = 800;
const LIMIT: Duration = Duration::from_secs(240);

fn content(version: u64) -> Vec<u8> {
    pattern(1, version, MIB as usize)
}

fn holds(daemon: &Daemon, volume: &str, version: u64) -> bool {
    let found = daemon.client(volume).read(0, MIB as u32).unwrap();
    found.unwrap() == content(version)
}

#[test]
fn a_volume_is_created_cloned_and_deleted() {
    let server = FakeS3::start();
    let delay = json!({ "action": { "kind": "delay", "ms": DELAY_MS } });
    server.faults(&json!([delay]));
    let rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=3600"]);
    let daemon = rig.start();
    wait_until("the volume to be created", LIMIT, || {
        daemon.volume("vol0")["state"] == "online"
    });
    let write = |version| {
        let mut client = daemon.client("vol0");
        assert_eq!(client.write(0, &content(version)).unwrap(), None);
    };
    write(1);
    daemon.taipan().args("snapshot create vol0 one").succeed();
    write(2);
    daemon.taipan().args("clone vol0@one copy").succeed();
    assert!(holds(&daemon, "copy", 1));
    assert!(holds(&daemon, "vol0", 2));
    daemon.succeed_soon("volume delete copy --yes");
    daemon.taipan().args("snapshot delete vol0@one").succeed();
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    server.heal();
    let daemon = rig.start();
    assert!(holds(&daemon, "vol0", 2));
    assert!(daemon.volume("copy").is_null());
    daemon.stop();
}

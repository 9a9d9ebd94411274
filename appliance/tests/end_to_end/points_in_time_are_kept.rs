//! A mistake is undone without a snapshot: within its window every committed cut of a volume can be
//! listed, read and gone back to, also after a restart, and they are given up with the window.

use serde_json::Value;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::pattern;

const BLOCKS: u64 = 32;
const BLOCK_BYTES: usize = 4096;

/// Writes everything and commits it.
fn fill(daemon: &Daemon, version: u64) {
    let mut client = daemon.client("vol0");
    for block in 0..BLOCKS {
        let bytes = pattern(block, version, BLOCK_BYTES);
        let answer = client.write(block * BLOCK_BYTES as u64, &bytes);
        assert_eq!(answer.expect("an answer"), None);
    }
    drop(client);
    daemon.taipan().args("volume commit vol0 -q").succeed();
}

/// Writes everything and commits it; the newest point.
fn commit(daemon: &Daemon, version: u64) -> Value {
    fill(daemon, version);
    points(daemon).pop().expect("a point")
}

fn points(daemon: &Daemon) -> Vec<Value> {
    let told = daemon.taipan().args("volume history vol0 --json").succeed();
    let history: Value = serde_json::from_str(&told).expect("JSON");
    history["points"].as_array().expect("points").clone()
}

fn check(daemon: &Daemon, export: &str, version: u64) {
    let mut client = daemon.client(export);
    for block in 0..BLOCKS {
        let found = client.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32);
        let same = found.unwrap().unwrap() == pattern(block, version, BLOCK_BYTES);
        assert!(same, "block {block} of {export} is not of {version}");
    }
}

#[test]
fn for_the_window_of_their_volume() {
    let rig = Rig::new(&["vol0:1MiB"]).with_flags(&["--set=commit.interval_seconds=3600"]);
    let daemon = rig.start();
    let taipan = |line: &str| daemon.taipan().args(line).succeed();
    assert!(taipan("volume history vol0").contains("keeps no points"));
    taipan("volume set vol0 --pitr-window-seconds 3600");
    let first = commit(&daemon, 1);
    let second = commit(&daemon, 2);
    commit(&daemon, 3);
    let number = |point: &Value| point["manifest"].as_u64().expect("a number");
    let listed = taipan("volume history vol0");
    assert!(
        listed.contains(&format!("@{} ", number(&second))),
        "{listed}"
    );
    check(&daemon, &format!("vol0@@{}", number(&first)), 1);
    check(&daemon, &format!("vol0@@{}", number(&second)), 2);
    taipan(&format!("clone vol0@@{} past", number(&second)));
    check(&daemon, "past", 2);
    let told = taipan("verify vol0 --deep --json");
    let verified: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(verified["volumes"][0]["points"], points(&daemon).len());
    // While clients read one, it is not given up.
    let reader = daemon.client(&format!("vol0@@{}", number(&first)));
    let said = daemon
        .taipan()
        .args("volume set vol0 --pitr-window-seconds 0")
        .fail();
    assert!(said.contains("points in time"), "{said}");
    drop(reader);
    daemon
        .taipan()
        .args("rollback vol0 1999-01-01T00:00:00Z -y")
        .fail();
    daemon.kill();
    let daemon = rig.start();
    check(&daemon, "vol0", 3);
    let time = taipan_engine::timestamp::UnixMs(second["committed_at_ms"].as_u64().unwrap());
    let said = daemon.succeed_soon(&format!("rollback vol0 {time}"));
    assert!(
        said.contains(&format!("\"@{} (", number(&second))),
        "{said}"
    );
    check(&daemon, "vol0", 2);
    // The way back stays open, too.
    commit(&daemon, 4);
    let kept = points(&daemon);
    assert!(kept.len() >= 5, "{kept:?}");
    check(&daemon, &format!("vol0@@{}", number(&first)), 1);
    daemon.succeed_soon(&format!("rollback vol0 @{}", number(&first)));
    check(&daemon, "vol0", 1);
    daemon.succeed_soon("volume set vol0 --pitr-window-seconds 0");
    assert_eq!(points(&daemon).len(), 0);
    // The volume goes on as any other.
    fill(&daemon, 5);
    check(&daemon, "vol0", 5);
    let told = daemon.taipan().args("snapshot list vol0").succeed();
    assert!(
        told.contains(&format!("point-{}", number(&second))),
        "{told}"
    );
    check(&daemon, "past", 2);
    daemon.stop();
}

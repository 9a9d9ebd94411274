//! A volume is taken back to a snapshot: the old bytes are served, also after kills and the loss of
//! the memory, nothing written since comes back, and clones keep their own.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::pattern;

const BLOCKS: u64 = 64;
const BLOCK_BYTES: usize = 4096;
const LIMIT: Duration = Duration::from_secs(180);

fn fill(daemon: &Daemon, volume: &str, version: u64) {
    let mut client = daemon.client(volume);
    for block in 0..BLOCKS {
        let bytes = pattern(block, version, BLOCK_BYTES);
        let answer = client.write(block * BLOCK_BYTES as u64, &bytes);
        assert_eq!(answer.expect("an answer"), None);
    }
    assert_eq!(client.flush().expect("an answer"), None);
}

fn check(daemon: &Daemon, volume: &str, version: u64) {
    let mut client = daemon.client(volume);
    for block in 0..BLOCKS {
        let found = client.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32);
        let same = found.unwrap().unwrap() == pattern(block, version, BLOCK_BYTES);
        assert!(
            same,
            "block {block} of {volume} is not of version {version}"
        );
    }
}

#[test]
fn under_kills_and_without_the_memory() {
    let rig = Rig::new(&["vol0:1MiB"]).with_flags(&["--set=commit.interval_seconds=3600"]);
    let daemon = rig.start();
    let taipan = |line: &str| daemon.taipan().args(line).succeed();
    fill(&daemon, "vol0", 1);
    taipan("snapshot create vol0 one");
    taipan("clone vol0@one clone");
    fill(&daemon, "clone", 9);
    fill(&daemon, "vol0", 2);
    taipan("snapshot create vol0 two");
    // Only the log has the third.
    fill(&daemon, "vol0", 3);
    let client = daemon.client("vol0");
    let said = daemon.taipan().args("rollback vol0 one").fail();
    assert!(said.contains("connected clients: 1"), "{said}");
    drop(client);
    let said = daemon.taipan().args("rollback vol0 none").fail();
    assert!(said.contains("no snapshot"), "{said}");
    daemon.succeed_soon("rollback vol0 one");
    check(&daemon, "vol0", 1);
    daemon.kill();
    rig.lose_memory();
    let daemon = rig.start();
    check(&daemon, "vol0", 1);
    daemon.succeed_soon("rollback vol0 two");
    check(&daemon, "vol0", 2);
    fill(&daemon, "vol0", 4);
    check(&daemon, "clone", 9);
    daemon.kill();
    // Just before each step nothing has changed, and what is in the log alone is replayed.
    for step in ["rollback.index", "rollback.put"] {
        let mut daemon = rig.start_with(&[], &format!("{step}=crash"));
        daemon.taipan().args("rollback vol0 one").fail();
        assert_eq!(daemon.ended(LIMIT).signal(), Some(9), "{step}");
        let daemon = rig.start();
        check(&daemon, "vol0", 4);
        daemon.kill();
    }
    // After it all has, before the local record knows.
    let mut daemon = rig.start_with(&[], "head.save=crash");
    daemon.taipan().args("rollback vol0 one").fail();
    assert_eq!(daemon.ended(LIMIT).signal(), Some(9));
    let daemon = rig.start();
    check(&daemon, "vol0", 1);
    fill(&daemon, "vol0", 5);
    daemon.taipan().args("volume commit vol0").succeed();
    daemon.taipan().args("snapshot delete vol0@two").succeed();
    daemon.stop();
    let daemon = rig.start();
    check(&daemon, "vol0", 5);
    check(&daemon, "clone", 9);
    daemon.stop();
}

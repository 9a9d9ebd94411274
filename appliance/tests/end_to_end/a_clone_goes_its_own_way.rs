//! Clones of a running volume under writes: at once, the same to the byte as their snapshot, each
//! side independent of the other, there after crashes and on a machine that knows only the bucket;
//! what they need is not deleted.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::pattern;
use crate::harness::s3::FakeS3;

const BLOCKS: u64 = 128;
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

fn check(daemon: &Daemon, volume: &str, version: impl Fn(u64) -> u64) {
    let mut client = daemon.client(volume);
    for block in 0..BLOCKS {
        let found = client.read(block * BLOCK_BYTES, BLOCK_BYTES as u32);
        let expected = pattern(block, version(block), BLOCK_BYTES as usize);
        assert!(
            found.unwrap().unwrap() == expected,
            "block {block} of {volume}"
        );
    }
}

/// Clones `vol0@golden` as `t/one` while its volume is written, and writes some of it.
fn clone_under_writes(daemon: &Daemon) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // At least once, and not for ever if the clone fails.
            for _ in 0..500 {
                fill(daemon, "vol0", 0..BLOCKS, 2);
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let said = daemon.taipan().args("clone vol0@golden t/one").succeed();
        assert!(said.contains("is a clone of"), "{said}");
        check(daemon, "t/one", |_| 1);
        fill(daemon, "t/one", 0..10, 3);
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn under_writes_through_crashes_and_without_the_machine() {
    let server = FakeS3::start();
    let flags = ["--set=commit.interval_seconds=1"];
    let rig = Rig::new(&["vol0:1MiB"]).with_bucket(&server.bucket());
    let mut rig = rig.with_flags(&flags);
    let daemon = rig.start();
    let taipan = |line: &str| daemon.taipan().args(line).succeed();
    fill(&daemon, "vol0", 0..BLOCKS, 1);
    taipan("snapshot create vol0 golden");
    clone_under_writes(&daemon);
    for (line, why) in [
        ("clone vol0@golden t/one", "exists already"),
        ("clone vol0@none two", "no snapshot"),
        ("snapshot delete vol0@golden", "t/one"),
        ("volume delete vol0 --yes", "t/one"),
    ] {
        daemon.refused_for(line, why);
    }
    let of_one = |block| if block < 10 { 3 } else { 1 };
    check(&daemon, "vol0", |_| 2);
    check(&daemon, "t/one", of_one);
    // A clone of a clone, after a crash in each step of making it.
    taipan("snapshot create t/one again");
    daemon.kill();
    for step in ["clone.pin", "clone.index", "clone.manifest", "clone.name"] {
        let mut daemon = rig.start_with(&[], &format!("{step}=crash"));
        daemon.taipan().args("clone t/one@again two").fail();
        assert_eq!(daemon.ended(LIMIT).signal(), Some(9), "{step}");
    }
    let daemon = rig.start();
    daemon.taipan().args("clone t/one@again two").succeed();
    check(&daemon, "two", of_one);
    fill(&daemon, "two", 20..30, 4);
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    // Only the bucket is left.
    rig.lose_machine();
    rig.forget_volumes();
    let daemon = rig.start();
    check(&daemon, "vol0", |_| 2);
    check(&daemon, "t/one", of_one);
    check(&daemon, "two", |block| match block {
        20..30 => 4,
        _ => of_one(block),
    });
    // What nobody needs any more can be deleted, also where creations were interrupted.
    for line in [
        "volume delete two --yes",
        "snapshot delete t/one@again",
        "volume delete t/one --yes",
        "snapshot delete vol0@golden",
        "volume delete vol0 --yes",
    ] {
        daemon.succeed_soon(line);
    }
    daemon.stop();
}

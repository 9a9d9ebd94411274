//! A deleted volume leaves nothing but its manifests, wherever the daemon dies on the way; what a
//! crash left under a volume is swept on demand, and nothing else is.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::{pattern, wait_until};

const LIMIT: Duration = Duration::from_secs(180);
/// Commits are those that the test asks for, so that it knows what they store.
const NEVER: [&str; 1] = ["--set=commit.interval_seconds=3600"];
const BLOCKS: u64 = 64;
const BLOCK_BYTES: u64 = 4096;

/// Some steps of a deletion before which the daemon dies (the simulator knows all), and whether the
/// volume is still there then.
const STEPS: [(&str, bool); 3] = [
    ("delete.put=crash", true),
    ("delete.mark=crash", false),
    ("delete.free=crash", false),
];

fn fill(daemon: &Daemon, volume: &str) {
    let mut client = daemon.client(volume);
    for block in 0..BLOCKS {
        let bytes = pattern(block, 1, BLOCK_BYTES as usize);
        assert_eq!(client.write(block * BLOCK_BYTES, &bytes).unwrap(), None);
    }
    assert_eq!(client.flush().unwrap(), None);
}

fn check(daemon: &Daemon, volume: &str) {
    let mut client = daemon.client(volume);
    for block in 0..BLOCKS {
        let found = client.read(block * BLOCK_BYTES, BLOCK_BYTES as u32);
        let expected = pattern(block, 1, BLOCK_BYTES as usize);
        assert!(found.unwrap().unwrap() == expected, "block {block}");
    }
}

/// Files under a folder of the backend's directory.
fn files(rig: &Rig, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(rig.data().join("objects/v1").join(folder));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn sealed(rig: &Rig, id: &str) -> usize {
    let folders = ["chunks", "index"];
    let count = |folder| files(rig, &format!("{id}/{folder}")).len();
    folders.into_iter().map(count).sum()
}

fn id_of(daemon: &Daemon, volume: &str) -> String {
    let shown = daemon
        .taipan()
        .args("--json volume show")
        .arg(volume)
        .succeed();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown["id"].as_str().unwrap().to_owned()
}

#[test]
fn whatever_step_it_dies_before() {
    let rig = Rig::new(&["kept:1MiB"]).with_flags(&NEVER);
    let daemon = rig.start();
    fill(&daemon, "kept");
    daemon.taipan().args("volume commit kept").succeed();
    let kept = sealed(&rig, &id_of(&daemon, "kept"));
    daemon.stop();
    for (step, is_there) in STEPS {
        let mut daemon = rig.start_with(&[], step);
        daemon
            .taipan()
            .args("volume create gone --size 1MiB")
            .succeed();
        fill(&daemon, "gone");
        daemon.taipan().args("volume commit gone").succeed();
        let id = id_of(&daemon, "gone");
        assert!(sealed(&rig, &id) > 0);
        // A deletion is refused while a client that just left is still known. The daemon may answer
        // before it dies, or not.
        let list = "volume delete gone";
        wait_until("the deletion to begin", LIMIT, || {
            let run = daemon.taipan().args(list).run();
            run.status.success() || !run.stderr.contains("connected")
        });
        let status = daemon.ended(LIMIT);
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "{step}: {status}"
        );
        let daemon = rig.start();
        if is_there {
            check(&daemon, "gone");
            daemon.succeed_soon(list);
        }
        wait_until(step, LIMIT, || {
            sealed(&rig, &id) == 0 && files(&rig, "deleted").is_empty()
        });
        assert!(!files(&rig, &format!("{id}/manifests")).is_empty());
        check(&daemon, "kept");
        assert_eq!(sealed(&rig, &id_of(&daemon, "kept")), kept);
        daemon.stop();
    }
}

#[test]
fn leftovers_of_a_crash_are_swept_and_nothing_else() {
    let rig = Rig::new(&["vol0:1MiB"]).with_flags(&NEVER);
    // It dies with its second commit's chunk stored, and no manifest that names it.
    let mut daemon = rig.start_with(&[], "manifest.put=+1*crash");
    fill(&daemon, "vol0");
    let commit = "volume commit vol0";
    daemon.taipan().args(commit).succeed();
    let id = id_of(&daemon, "vol0");
    let named = sealed(&rig, &id);
    fill(&daemon, "vol0");
    assert!(!daemon.taipan().args(commit).run().status.success());
    daemon.ended(LIMIT);
    assert_eq!(sealed(&rig, &id), named + 1);
    let daemon = rig.start();
    let sweep = |dry: &str| {
        let line = format!("--json volume sweep vol0 {dry}");
        let said = daemon.taipan().args(&line).succeed();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        said["orphans"].as_u64().unwrap()
    };
    assert_eq!(sweep("--dry-run"), 1);
    let before = sealed(&rig, &id);
    assert_eq!((sweep(""), sweep("")), (1, 0));
    assert_eq!(sealed(&rig, &id), before - 1);
    check(&daemon, "vol0");
    daemon.kill();
    let daemon = rig.start();
    check(&daemon, "vol0");
    daemon.stop();
}

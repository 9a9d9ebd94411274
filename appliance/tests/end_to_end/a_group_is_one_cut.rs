//! Snapshots of several volumes that are taken together are one cut: what was written to one after
//! another was answered is never there without it. What a crash leaves of a group is no group.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::wait_until;

const LIMIT: Duration = Duration::from_secs(60);
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

/// One of the two manifests is stored, then the daemon dies: the snapshot in it is deleted by the
/// next, and the name is free.
#[test]
fn or_of_none() {
    let rig = Rig::new(&["a:1MiB", "b:1MiB"]).with_flags(&["--set=commit.interval_seconds=3600"]);
    let listed = |daemon: &Daemon, volume: &str| {
        let line = format!("snapshot list {volume}");
        daemon.taipan().args(&line).succeed().contains("both")
    };
    // The second one has a chunk to store first.
    let late = "chunk.put=delay(300);manifest.put=+1*crash";
    let mut daemon = rig.start_with(&[], late);
    let mut client = daemon.client("b");
    assert_eq!(client.write(0, &page(7)).expect("an answer"), None);
    drop(client);
    daemon
        .taipan()
        .args("snapshot create --group a b both")
        .fail();
    assert_eq!(daemon.ended(LIMIT).signal(), Some(9));
    let daemon = rig.start();
    daemon.await_log("a snapshot of a broken group is deleted", LIMIT);
    wait_until("nothing is left of the group", LIMIT, || {
        !listed(&daemon, "a") && !listed(&daemon, "b")
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

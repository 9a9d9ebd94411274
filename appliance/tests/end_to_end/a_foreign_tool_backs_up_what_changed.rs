//! Incremental backup by tools that nobody here wrote: libnbd reads what has changed between two
//! snapshots, QEMU copies just that into a full copy of the first, and has the second.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use taipan_nbd::protocol::command;

use crate::harness::client::NbdClient;
use crate::harness::daemon::{Daemon, Rig};
use crate::harness::pattern;
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(180);
const SIZE: u64 = 64 << 20;
const KIB: u64 = 1 << 10;
const SINCE_MON: &str = "qemu:dirty-bitmap:since-mon";

/// Start and length of what has changed.
type Ranges = Vec<(u64, u64)>;

fn write(client: &mut NbdClient, offset: u64, len: u64, version: u64) {
    let data = pattern(offset, version, len as usize);
    assert_eq!(client.write(offset, &data).expect("an answer"), None);
}

fn trim(client: &mut NbdClient, offset: u64, len: u64) {
    let sent = client.send(command::TRIM, 0, offset, len as u32, &[]);
    sent.expect("sent");
    assert_eq!(client.receive().expect("an answer").errno, None);
}

fn number(extent: &Value, name: &str) -> u64 {
    extent[name].as_u64().expect("a number")
}

/// What libnbd says has changed in an export.
fn changed(daemon: &Daemon, export: &str, context: &str) -> Ranges {
    let printed = Program::new("nbdinfo", LIMIT)
        .arg("--json")
        .arg(format!("--map={context}"))
        .arg(daemon.uri(export))
        .succeed();
    let map: Vec<Value> = serde_json::from_str(&printed).expect("a map in JSON");
    let all: u64 = map.iter().map(|extent| number(extent, "length")).sum();
    assert_eq!(all, SIZE, "{printed}");
    assert!(map.iter().all(|e| number(e, "type") <= 1), "{printed}");
    let dirty = map.iter().filter(|extent| number(extent, "type") == 1);
    dirty
        .map(|e| (number(e, "offset"), number(e, "length")))
        .collect()
}

/// The export as QEMU's options name it.
fn qemu_file(daemon: &Daemon, export: &str) -> String {
    let socket = daemon.socket();
    let socket = socket.display();
    format!("driver=nbd,server.type=unix,server.path={socket},export={export}")
}

/// What QEMU says has changed: it shows dirty ranges as holes.
fn qemu_changed(daemon: &Daemon, export: &str, context: &str) -> Ranges {
    let file = qemu_file(daemon, export);
    let printed = Program::new("qemu-img", LIMIT)
        .args("map --output=json --image-opts")
        .arg(format!("{file},x-dirty-bitmap={context}"))
        .succeed();
    let map: Vec<Value> = serde_json::from_str(&printed).expect("a map in JSON");
    let dirty = map.iter().filter(|extent| extent["data"] == false);
    dirty
        .map(|e| (number(e, "start"), number(e, "length")))
        .collect()
}

/// Has QEMU copy one range of an export to the same place of a file.
fn copy_range(daemon: &Daemon, export: &str, (offset, size): (u64, u64), to: &Path) {
    let part = format!("driver=raw,offset={offset},size={size}");
    let source = qemu_file(daemon, export).replace("driver=", "file.driver=");
    let source = source.replace(",server", ",file.server");
    let source = source.replace(",export", ",file.export");
    let target = format!("file.driver=file,file.filename={}", to.display());
    Program::new("qemu-img", LIMIT)
        .args("convert -n --image-opts --target-image-opts")
        .arg(format!("{part},{source}"))
        .arg(format!("{part},{target}"))
        .succeed();
}

fn compare(daemon: &Daemon, export: &str, copy: &Path) {
    Program::new("qemu-img", LIMIT)
        .args("compare -f raw -F raw")
        .arg(daemon.uri(export))
        .arg(copy)
        .succeed();
}

fn snapshot(daemon: &Daemon, line: &str) {
    daemon.taipan().arg("snapshot").args(line).succeed();
}

/// Everything that has changed is seen, and nothing else; before it is committed, and after.
fn check(daemon: &Daemon, expected: &Ranges) {
    assert_eq!(changed(daemon, "vol0", SINCE_MON), *expected, "in the log");
    daemon.taipan().args("volume commit vol0").succeed();
    assert_eq!(changed(daemon, "vol0", SINCE_MON), *expected, "committed");
}

#[test]
fn a_full_copy_and_what_changed_since_are_the_later_snapshot() {
    let rig = Rig::new(&["vol0:64MiB"]).with_flags(&["--set=commit.interval_seconds=600"]);
    let daemon = rig.start();
    let mut client = daemon.client("vol0");
    write(&mut client, 0, 512 * KIB, 1);
    write(&mut client, SIZE - 64 * KIB, 64 * KIB, 1);
    snapshot(&daemon, "create vol0 mon");
    let full = rig.path("full.img");
    Program::new("qemu-img", LIMIT)
        .args("convert -f raw -O raw")
        .arg(daemon.uri("vol0@mon"))
        .arg(&full)
        .succeed();
    check(&daemon, &vec![]);

    write(&mut client, 8 * KIB, 4 * KIB, 2);
    write(&mut client, 30 << 20, 300 * KIB, 2);
    trim(&mut client, 100 * KIB, 20 * KIB);
    // Zeros then, and zeros now.
    trim(&mut client, 50 << 20, 1 << 20);
    let mut expected = vec![
        (8 * KIB, 4 * KIB),
        (100 * KIB, 20 * KIB),
        (30 << 20, 300 * KIB),
    ];
    check(&daemon, &expected);
    snapshot(&daemon, "create vol0 tue");
    write(&mut client, 40 << 20, 4 * KIB, 3);
    assert_eq!(changed(&daemon, "vol0@tue", SINCE_MON), expected);
    assert_eq!(qemu_changed(&daemon, "vol0@tue", SINCE_MON), expected);
    for range in &expected {
        copy_range(&daemon, "vol0@tue", *range, &full);
    }
    compare(&daemon, "vol0@tue", &full);
    expected.push((40 << 20, 4 * KIB));
    check(&daemon, &expected);

    drop(client);
    daemon.kill();
    let daemon = rig.start();
    check(&daemon, &expected);
    daemon.stop();
}

#[test]
fn bitmaps_are_listed_and_gone_with_their_snapshots() {
    let rig = Rig::new(&["vol0:64MiB"]);
    let daemon = rig.start();
    snapshot(&daemon, "create vol0 mon");
    write(&mut daemon.client("vol0"), 0, 4 * KIB, 1);
    snapshot(&daemon, "create vol0 a:b");
    let listed = Program::new("qemu-nbd", LIMIT)
        .args("-L -k")
        .arg(daemon.socket())
        .succeed();
    for context in [SINCE_MON, "qemu:dirty-bitmap:since-a%3Ab"] {
        assert!(listed.contains(context), "{listed}");
    }
    let dirty = [(0, 4 * KIB)];
    assert_eq!(changed(&daemon, "vol0", SINCE_MON), dirty);
    assert_eq!(
        changed(&daemon, "vol0", "qemu:dirty-bitmap:since-a%3Ab"),
        []
    );
    assert_eq!(changed(&daemon, "vol0@a:b", SINCE_MON), dirty);
    // Loaded still, and used by nobody once the client that read it is gone.
    daemon.succeed_soon("snapshot delete vol0@mon");
    let map = Program::new("nbdinfo", LIMIT)
        .arg(format!("--map={SINCE_MON}"))
        .arg(daemon.uri("vol0"));
    map.fail();
    assert_eq!(
        changed(&daemon, "vol0", "qemu:dirty-bitmap:since-a%3Ab"),
        []
    );
    daemon.stop();
}

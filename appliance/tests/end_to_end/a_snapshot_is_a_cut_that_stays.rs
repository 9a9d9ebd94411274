//! Snapshots of a running volume: committed by the command, refused where they must be, the same
//! after overwrites, kills and the loss of the machine, taken while the backend is away, deleted.
//! Clients read them by name.

use std::time::Duration;

use serde_json::Value;
use taipan_nbd::Errno;
use taipan_nbd::protocol::command;

use crate::harness::client::NbdClient;
use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::s3::FakeS3;
use crate::harness::{pattern, wait_until};

const BLOCKS: u64 = 256;
const BLOCK_BYTES: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(120);

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
    daemon.succeed_soon("snapshot delete vol0@one");
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
    // Where the bucket is, the daemon tells; the keys, nobody.
    let mut verify = daemon.taipan().args("verify vol0 --deep");
    for (name, value) in s3.bucket().credentials() {
        verify = verify.env(name, value);
    }
    let told = verify.succeed();
    assert!(
        told.contains("every block read"),
        "the daemon's bucket: {told}"
    );
    daemon.stop();
}

/// All of a volume or snapshot is of this version.
fn check_read(client: &mut NbdClient, version: u64) {
    let read = client.read(0, (BLOCKS * BLOCK_BYTES) as u32);
    let bytes = read.expect("an answer").expect("the data");
    for (block, bytes) in (0..).zip(bytes.chunks_exact(BLOCK_BYTES as usize)) {
        let same = bytes == pattern(block, version, bytes.len());
        assert!(same, "block {block} is not of version {version}");
    }
}

/// What other clients see of a snapshot: an export that may only be read, with the old bytes.
fn check_foreign(rig: &Rig, daemon: &Daemon, version: u64) {
    let uri = daemon.uri("vol0@one");
    let printed = Program::new("nbdinfo", LIMIT).arg("--json").arg(&uri);
    let described: Value = serde_json::from_str(&printed.succeed()).expect("JSON");
    let export = &described["exports"][0];
    assert_eq!(export["is_read_only"], true, "{described}");
    assert_eq!(export["can_multi_conn"], true, "{described}");
    assert_eq!(export["export-size"], BLOCKS * BLOCK_BYTES, "{described}");
    let copy = rig.path("copy.img");
    let nbdcopy = Program::new("nbdcopy", LIMIT).arg(&uri).arg(&copy);
    nbdcopy.succeed();
    let bytes = std::fs::read(&copy).expect("the copy");
    for (block, bytes) in (0..).zip(bytes.chunks_exact(BLOCK_BYTES as usize)) {
        assert!(
            bytes == pattern(block, version, bytes.len()),
            "block {block}"
        );
    }
}

#[test]
fn clients_read_a_snapshot_by_name_while_the_volume_moves_on() {
    let rig = Rig::new(&["vol0:1MiB"]).with_flags(&["--set=commit.interval_seconds=600"]);
    let daemon = rig.start();
    fill(&daemon, 1);
    json(&daemon, "snapshot create vol0 one");
    fill(&daemon, 2);
    let mut view = daemon.client("vol0@one");
    check_read(&mut view, 1);
    check_read(&mut daemon.client("vol0"), 2);
    let refused = view.write(0, &[1; 4096]).expect("an answer");
    assert_eq!(refused, Some(Errno::Perm));
    assert_eq!(view.flush().expect("an answer"), None);
    let shown = daemon.succeed_soon("connection list");
    assert!(shown.contains(" vol0@one "), "{shown}");
    daemon.taipan().args("volume commit vol0").succeed();
    check_foreign(&rig, &daemon, 1);
    // Those that have copied it leave.
    let why = "vol0@one is read by 1 clients: [\"";
    daemon.refused_for("snapshot delete vol0@one", why);
    for name in ["vol0@two", "vol0@", "vol0@a@b", "other@one"] {
        assert!(daemon.try_client(name).is_err(), "{name}");
    }
    daemon.kill();
    drop(view);
    let daemon = rig.start();
    check_read(&mut daemon.client("vol0@one"), 1);
    check_read(&mut daemon.client("vol0"), 2);
    daemon.succeed_soon("snapshot delete vol0@one");
    assert!(daemon.try_client("vol0@one").is_err());
    check_read(&mut daemon.client("vol0"), 2);
    daemon.stop();
}

/// What `diff` says: offset, length and kind of each range.
fn ranges(diff: &Value) -> Vec<(u64, u64, String)> {
    let ranges = diff["ranges"].as_array().expect("a list");
    let number = |range: &Value, name: &str| range[name].as_u64().expect("a number");
    let text = |range: &Value| range["now"].as_str().expect("text").to_owned();
    let range = |r: &Value| (number(r, "offset"), number(r, "length"), text(r));
    ranges.iter().map(range).collect()
}

#[test]
fn what_changed_is_known_without_reading_and_brings_a_copy_up_to_date() {
    let rig = Rig::new(&["vol0:1MiB", "small:512KiB"]);
    let daemon = rig.start();
    fill(&daemon, 1);
    json(&daemon, "snapshot create vol0 one");
    let (base, increment) = (rig.path("base.img"), rig.path("one-two.inc"));
    let line = format!("export vol0@one {} --backend dir:", base.display());
    daemon.taipan().args(&line).succeed();
    let mut client = daemon.client("vol0");
    let changed = pattern(7, 2, 3 * BLOCK_BYTES as usize);
    let answer = client.write(5 * BLOCK_BYTES, &changed).expect("an answer");
    assert_eq!(answer, None);
    let (trim, len) = (command::TRIM, 16 * BLOCK_BYTES);
    client
        .send(trim, 0, 64 * BLOCK_BYTES, len as u32, &[])
        .expect("sent");
    assert_eq!(client.receive().expect("an answer").errno, None);
    json(&daemon, "snapshot create vol0 two");
    let expected = [
        (5 * BLOCK_BYTES, 3 * BLOCK_BYTES, "data".to_owned()),
        (64 * BLOCK_BYTES, len, "zeros".to_owned()),
    ];
    let diff = json(&daemon, "diff vol0 one two");
    assert_eq!(ranges(&diff), expected, "{diff}");
    assert_eq!(json(&daemon, "diff vol0 one two --backend dir:"), diff);
    fill(&daemon, 3);
    daemon.taipan().args("volume commit vol0").succeed();
    let since = json(&daemon, "diff vol0 one");
    assert_eq!(
        ranges(&since),
        [(0, BLOCKS * BLOCK_BYTES, "data".to_owned())]
    );
    assert_eq!(since["to"]["snapshot"], Value::Null);

    let line = format!("export --since one vol0@two {}", increment.display());
    let told = json(&daemon, &line);
    assert_eq!(told["data_bytes"], 3 * BLOCK_BYTES, "{told}");
    let again = rig.path("again.inc");
    let line = format!(
        "export --since one vol0@two {} --backend dir:",
        again.display()
    );
    daemon.taipan().args(&line).succeed();
    let read = |path| std::fs::read(path).expect("the increment");
    assert!(
        read(&again) == read(&increment),
        "read otherwise, written otherwise"
    );
    let line = format!("import --create {} copy", base.display());
    daemon.taipan().args(&line).succeed();
    let apply = |volume: &str| format!("import --apply {} {volume}", increment.display());
    let said = daemon.taipan().args(&apply("small")).fail();
    assert!(said.contains("it is no copy of that"), "{said}");
    daemon.taipan().args(&apply("copy")).succeed();
    let image = |client: &mut NbdClient| {
        let read = client.read(0, (BLOCKS * BLOCK_BYTES) as u32);
        read.expect("an answer").expect("the data")
    };
    let copy = image(&mut daemon.client("copy"));
    assert!(
        copy == image(&mut daemon.client("vol0@two")),
        "the copy differs"
    );
    assert_eq!(&copy[5 * BLOCK_BYTES as usize..][..changed.len()], changed);
    let whole = std::fs::read(&increment).expect("the increment");
    std::fs::write(&increment, &whole[..whole.len() - 1]).expect("cut off");
    let said = daemon.taipan().args(&apply("copy")).fail();
    assert!(said.contains("cut off"), "{said}");
    daemon.stop();
}

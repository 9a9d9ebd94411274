//! Wrong bytes from S3 or from the cache file are found by their checksum, fetched again, counted,
//! and never returned.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::{Bucket, FakeS3};
use crate::harness::{MIB, pattern, wait_until};

const PLACES: u64 = 16;

fn content(place: u64) -> Vec<u8> {
    pattern(place, 12, MIB as usize)
}

fn check(daemon: &Daemon) {
    let mut client = daemon.client("vol0");
    for place in 0..PLACES {
        let found = client.read(place * MIB, MIB as u32).unwrap();
        let found = found.unwrap_or_else(|errno| panic!("MiB {place}: {errno:?}"));
        assert!(found == content(place), "MiB {place}");
    }
}

/// A volume with content whose blocks are in the bucket alone.
fn in_the_bucket(bucket: &Bucket) -> Rig {
    let mut rig = Rig::new(&["vol0:1GiB"]).with_bucket(bucket);
    let daemon = rig.start();
    rig.forget_volumes();
    let mut client = daemon.client("vol0");
    for place in 0..PLACES {
        assert_eq!(client.write(place * MIB, &content(place)).unwrap(), None);
    }
    daemon.taipan().arg("drain").succeed();
    daemon.kill();
    rig.lose_machine();
    rig
}

fn mismatches(daemon: &Daemon) -> f64 {
    daemon.metric("taipan_cold_read_mismatches_total")
}

fn refetches(daemon: &Daemon) -> f64 {
    daemon.metric("taipan_cold_read_refetches_total")
}

#[test]
fn flipped_bits_of_a_reply_are_fetched_again() {
    let server = FakeS3::start();
    let rig = in_the_bucket(&server.bucket());
    let daemon = rig.start();
    // One reply, as the same wrong bytes twice are an error.
    server.faults(&json!([
        { "action": { "kind": "flip" }, "contains": "/chunks/", "verbs": ["get"], "count": 1 },
    ]));
    check(&daemon);
    assert_eq!(server.fired(), [1], "no reply was altered");
    assert!(
        mismatches(&daemon) > 0.0 && refetches(&daemon) > 0.0,
        "wrong bytes were not counted"
    );
    daemon.stop();
}

#[test]
fn flipped_bits_of_what_a_start_reads_are_fetched_again() {
    let server = FakeS3::start();
    let rig = in_the_bucket(&server.bucket());
    // One reply of each kind: entries of names, manifests, heads of chunks.
    let flip = |part| {
        json!({ "action": { "kind": "flip" }, "contains": part, "verbs": ["get"],
            "count": 1 })
    };
    let kinds = ["/names/", "/manifests/", "/chunks/"];
    server.faults(&kinds.map(flip).into());
    let daemon = rig.start();
    assert_eq!(server.fired(), [1; 3], "no reply was altered");
    assert_eq!(daemon.volume("vol0")["state"], "online");
    assert!(
        daemon.metric("taipan_backend_mismatches_total") >= 3.0,
        "wrong bytes were not counted"
    );
    check(&daemon);
    daemon.stop();
}

#[test]
fn flipped_bits_of_a_manifest_that_a_commit_reads_back_are_counted() {
    let server = FakeS3::start();
    let rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--wal-size=128MiB"]);
    let daemon = rig.start();
    // The commit's answer is lost, so it looks whose manifest is there.
    server.faults(&json!([
        { "action": { "kind": "error_after" }, "contains": "/manifests/", "verbs": ["put"],
          "count": 1 },
        { "action": { "kind": "flip" }, "contains": "/manifests/", "verbs": ["get"],
          "count": 1 },
    ]));
    let mut client = daemon.client("vol0");
    assert_eq!(client.write(0, &content(0)).unwrap(), None);
    daemon.taipan().arg("drain").succeed();
    assert_eq!(server.fired(), [1; 2], "no manifest was read back wrong");
    assert_eq!(daemon.volume("vol0")["state"], "online");
    assert_eq!(daemon.metric("taipan_backend_mismatches_total"), 1.0);
    daemon.stop();
}

#[test]
fn replies_that_end_early_are_fetched_again() {
    let server = FakeS3::start();
    let rig = in_the_bucket(&server.bucket());
    let daemon = rig.start();
    server.faults(&json!([
        { "action": { "kind": "truncate" }, "contains": "/chunks/", "verbs": ["get"],
          "probability": 0.5 },
    ]));
    check(&daemon);
    assert!(server.fired()[0] > 0, "no reply was cut short");
    daemon.stop();
}

#[test]
fn an_altered_object_is_an_error_and_no_other_block_suffers() {
    let server = FakeS3::start();
    let rig = in_the_bucket(&server.bucket());
    let daemon = rig.start();
    // Every reply alters the same bit, as a bit that rotted in the store would.
    server.faults(&json!([
        { "action": { "kind": "flip" }, "contains": "/chunks/", "verbs": ["get"] },
    ]));
    let mut client = daemon.client("vol0");
    let mut failed = 0;
    for place in 0..PLACES {
        match client.read(place * MIB, MIB as u32).unwrap() {
            Ok(found) => assert!(found == content(place), "MiB {place} came back wrong"),
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 0, "wrong bytes in every reply, and no read failed");
    server.heal();
    check(&daemon);
    daemon.stop();
}

/// Files below `folder` that are no part of the WAL or the records.
fn cache_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_file()).collect()
}

/// Flips a bit in every 4 KiB of the file.
fn spoil(path: &Path) {
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let bytes = file.metadata().unwrap().len();
    let mut byte = [0];
    for at in (100..bytes).step_by(4096) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut byte).unwrap();
        byte[0] ^= 0x10;
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&byte).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn wrong_bytes_of_the_cache_file_are_fetched_again() {
    let server = FakeS3::start();
    // Without a cache in memory a second pass has to read the file.
    let rig = in_the_bucket(&server.bucket()).with_flags(&["--set=ram_cache=off"]);
    let daemon = rig.start();
    check(&daemon);
    wait_until(
        "the cache file to hold them",
        Duration::from_secs(120),
        || daemon.metric("taipan_cache_file_blocks") >= (PLACES * MIB / 4096) as f64,
    );
    let files = cache_files(&rig.data().join("cache"));
    assert!(!files.is_empty(), "there is no cache file");
    for path in files {
        spoil(&path);
    }
    let before = mismatches(&daemon);
    check(&daemon);
    assert!(mismatches(&daemon) > before, "wrong bytes were not counted");
    daemon.stop();
}

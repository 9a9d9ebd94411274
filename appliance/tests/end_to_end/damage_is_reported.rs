//! Damaged files: wrong bytes are never returned, what is damaged is named, and nothing is thrown
//! away on doubt: with the bytes put right, everything is there again.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use taipan_nbd::Errno;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::{KIB, pattern, wait_until};

const PAGE: usize = 4096;
const BLOCK: u64 = 4 * KIB;
/// Blocks of shard 0 lie so far apart.
const SHARDS: u64 = 16;

const LIMIT: Duration = Duration::from_secs(60);

/// Nothing is committed before the end, and so nothing of the log released: the tests say what is
/// where.
fn rig() -> Rig {
    Rig::new(&["vol0:1GiB"]).with_flags(&["--set=commit.interval_seconds=3600"])
}

/// One page of a file, overwritten until it is put right.
struct Damage {
    file: PathBuf,
    offset: u64,
    original: Vec<u8>,
}

impl Damage {
    fn new(file: &Path, offset: u64, bytes: usize) -> Self {
        let handle = OpenOptions::new()
            .read(true)
            .write(true)
            .open(file)
            .unwrap();
        let mut original = vec![0; bytes];
        handle.read_exact_at(&mut original, offset).unwrap();
        let damaged: Vec<u8> = original.iter().map(|byte| byte ^ 0x5a).collect();
        handle.write_all_at(&damaged, offset).unwrap();
        handle.sync_all().unwrap();
        Self {
            file: file.to_owned(),
            offset,
            original,
        }
    }

    fn put_right(&self) {
        let handle = OpenOptions::new().write(true).open(&self.file).unwrap();
        handle.write_all_at(&self.original, self.offset).unwrap();
        handle.sync_all().unwrap();
    }
}

/// A batch in a WAL file; the places of the fields are those of docs/internals/wal.md.
#[derive(Debug)]
struct Batch {
    number: u64,
    durable_through: u64,
    offset: u64,
    payload_pages: u32,
}

fn batches(file: &Path) -> Vec<Batch> {
    let bytes = fs::read(file).unwrap();
    let number = |page: &[u8], at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    let mut found: Vec<Batch> = bytes
        .chunks_exact(PAGE)
        .enumerate()
        .filter(|(_, page)| page.starts_with(b"TAIPWALB"))
        .map(|(index, page)| Batch {
            number: number(page, 40),
            durable_through: number(page, 64),
            offset: (index * PAGE) as u64,
            payload_pages: u32::from_le_bytes(page[12..16].try_into().unwrap()),
        })
        .collect();
    found.sort_by_key(|batch| batch.number);
    found
}

fn wal_file(rig: &Rig) -> PathBuf {
    rig.data().join("wal/shard-00.wal")
}

/// The only object below `v1/<volume>/<kind>/`, or the last by name.
fn last_object(rig: &Rig, kind: &str) -> PathBuf {
    let root = rig.data().join("objects/v1");
    let mut found: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .flatten()
        .filter_map(|volume| fs::read_dir(volume.path().join(kind)).ok())
        .flat_map(|objects| objects.flatten().map(|object| object.path()))
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("no {kind} in the backend"))
}

/// Writes one block of shard 0 and flushes, so that it is the only data of its batch.
fn write_one(daemon: &Daemon, index: u64, version: u64) {
    let mut client = daemon.client("vol0");
    let data = pattern(index, version, BLOCK as usize);
    assert_eq!(client.write(index * SHARDS * BLOCK, &data).unwrap(), None);
    assert_eq!(client.flush().unwrap(), None);
}

fn read_one(daemon: &Daemon, index: u64) -> Result<Vec<u8>, Errno> {
    daemon
        .client("vol0")
        .read(index * SHARDS * BLOCK, BLOCK as u32)
        .unwrap()
}

fn assert_one(daemon: &Daemon, index: u64, version: u64) {
    let found = read_one(daemon, index).unwrap();
    assert!(
        found == pattern(index, version, BLOCK as usize),
        "block {index}"
    );
}

/// Starts on the damage. The daemon may refuse to serve at all, or serve all but this volume; in
/// both cases it names what is damaged.
fn assert_refused_naming(rig: &Rig, name: &str) {
    let flags = ["--log=info"];
    match rig.start_or_refuse(&flags) {
        Err(said) => assert!(said.contains(name), "{name:?} is not named in\n{said}"),
        Ok(daemon) => {
            assert!(
                daemon.try_client("vol0").is_err(),
                "a damaged volume is served"
            );
            let status = format!("{:#}", daemon.status());
            let said = daemon.said();
            assert!(
                said.contains(name) || status.contains(name),
                "{said}\n{status}"
            );
            assert!(status.contains("refused"), "{status}");
            daemon.stop();
        }
    }
}

#[test]
fn a_torn_tail_is_void_and_what_was_flushed_stays() {
    let rig = rig();
    let daemon = rig.start();
    write_one(&daemon, 0, 1);
    write_one(&daemon, 1, 1);
    let file = wal_file(&rig);
    // Counted before the write: the timer is quick, and reading the file is not.
    let flushed = batches(&file).last().map_or(0, |batch| batch.number);
    // Answered, then written by the timer, but never flushed.
    let mut client = daemon.client("vol0");
    assert_eq!(
        client.write(0, &pattern(0, 2, BLOCK as usize)).unwrap(),
        None
    );
    let newer = || batches(&file).pop().filter(|last| last.number > flushed);
    wait_until("the timer's batch", LIMIT, || newer().is_some());
    let torn = newer().unwrap();
    daemon.kill();
    rig.lose_memory();
    let seen = batches(&file);
    assert!(
        seen.iter().all(|batch| batch.durable_through < torn.number),
        "{seen:?}"
    );
    // Half of its payload never reached the disk.
    Damage::new(
        &file,
        torn.offset + PAGE as u64 * u64::from(torn.payload_pages),
        PAGE / 2,
    );

    let daemon = rig.start();
    assert_one(&daemon, 1, 1);
    assert_one(&daemon, 0, 1);
    daemon.stop();
}

#[test]
fn damage_before_valid_batches_is_refused_and_repairable() {
    let rig = rig();
    let daemon = rig.start();
    for index in 0..8 {
        write_one(&daemon, index, 1);
    }
    daemon.kill();
    rig.lose_memory();
    let file = wal_file(&rig);
    let found = batches(&file);
    assert!(found.len() >= 8, "{found:?}");
    let damaged = Damage::new(&file, found[found.len() / 2].offset, PAGE);
    assert_refused_naming(&rig, "shard 00");

    damaged.put_right();
    let daemon = rig.start();
    for index in 0..8 {
        assert_one(&daemon, index, 1);
    }
    daemon.stop();
}

#[test]
fn a_damaged_log_head_is_refused_and_repairable() {
    let rig = rig();
    let daemon = rig.start();
    write_one(&daemon, 0, 1);
    daemon.kill();
    rig.lose_memory();
    let file = wal_file(&rig);
    // Both of its slots.
    let damages = [0, 32 * KIB].map(|slot| Damage::new(&file, slot, PAGE));
    assert_refused_naming(&rig, "shard 00");

    damages.iter().for_each(Damage::put_right);
    let daemon = rig.start();
    assert_one(&daemon, 0, 1);
    daemon.stop();
}

#[test]
fn a_damaged_chunk_gives_an_error_and_never_wrong_bytes() {
    let rig = rig();
    let daemon = rig.start();
    for index in 0..64 {
        write_one(&daemon, index, 1);
    }
    daemon.stop();
    rig.start_with(&["--drain"], "").stop();
    let chunk = last_object(&rig, "chunks");
    let bytes = fs::metadata(&chunk).unwrap().len();
    // In the payload: each slot holds a block and its checksum.
    let damaged = Damage::new(&chunk, bytes - 3 * (BLOCK + 8) + 100, 1);

    let daemon = rig.start();
    let mut failed = 0;
    // Backwards, so that nobody reads ahead: data cores read most of it from the files themselves.
    for index in (0..64).rev() {
        match read_one(&daemon, index) {
            Ok(found) => assert!(found == pattern(index, 1, BLOCK as usize), "block {index}"),
            Err(errno) => {
                assert_eq!(errno, Errno::Io);
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 1, "exactly one block is damaged");
    assert!(daemon.metric("taipan_read_nearby_blocks_total") > 30.0);
    let name = chunk.file_name().unwrap().to_str().unwrap();
    daemon.await_log(name, LIMIT);
    daemon.stop();

    damaged.put_right();
    let daemon = rig.start();
    for index in 0..64 {
        assert_one(&daemon, index, 1);
    }
    daemon.stop();
}

#[test]
fn a_damaged_manifest_is_refused_and_repairable() {
    let rig = rig();
    let daemon = rig.start();
    write_one(&daemon, 0, 1);
    daemon.stop();
    rig.start_with(&["--drain"], "").stop();
    let manifest = last_object(&rig, "manifests");
    let middle = fs::metadata(&manifest).unwrap().len() / 2;
    let damaged = Damage::new(&manifest, middle, 1);
    assert_refused_naming(&rig, manifest.file_name().unwrap().to_str().unwrap());

    damaged.put_right();
    let daemon = rig.start();
    assert_one(&daemon, 0, 1);
    daemon.stop();
}

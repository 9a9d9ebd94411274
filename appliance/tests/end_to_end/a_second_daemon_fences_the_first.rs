//! Two daemons on one bucket and volume: the second takes the volume over, the first finds out at
//! its next commit and acknowledges nothing any more; its tail is in quarantine, not in the image,
//! and nothing that the second one has is lost.

use std::time::{Duration, Instant};

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::{Bucket, FakeS3, SeaweedFs};
use crate::harness::stamps::Ledger;
use crate::harness::{Dice, rounds, wait_until};

const BLOCKS: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// After so many an object without live blocks is gone: one makes a checkpoint
/// (`CommitConfig::checkpoint_commits`), one condemns, one deletes.
const COMMITS_UNTIL_DELETED: u64 = 38;
const SETTINGS: [&str; 2] = ["--wal-size=128MiB", "--set=commit.interval_seconds=1"];

fn first(bucket: &Bucket) -> Rig {
    Rig::new(&["vol0:64MiB"])
        .with_bucket(bucket)
        .with_flags(&SETTINGS)
}

fn second(bucket: &Bucket) -> Rig {
    Rig::on(bucket).with_flags(&SETTINGS)
}

fn state(daemon: &Daemon) -> String {
    daemon.volume("vol0")["state"].to_string()
}

/// The first one is not served any more, and a new writer gets nothing acknowledged.
fn is_out(old: &Daemon) {
    wait_until("the first daemon to find that it lost", LIMIT, || {
        state(old).contains("fenced")
    });
    if let Ok(mut client) = old.try_client("vol0") {
        let answer = client.write(0, &[0xEE; 4096]);
        assert!(
            !matches!(answer, Ok(None)),
            "a write was acknowledged after the loss of the volume"
        );
    }
}

/// Bytes that the operator's command says are in quarantine.
fn quarantined(daemon: &Daemon) -> u64 {
    let shown = daemon.taipan().args("volume show vol0 --json").succeed();
    let volume: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let quarantine = &volume["quarantine"];
    assert!(
        quarantine["seconds"].is_number() || quarantine.is_null(),
        "{shown}"
    );
    quarantine["bytes"].as_u64().unwrap_or(0)
}

fn race(bucket: &Bucket, dice: &mut Dice, pauses: bool) {
    let mut ledger = Ledger::new(BLOCKS);
    let (rig, other) = (first(bucket), second(bucket));
    let old = rig.start();
    let writers = ledger.start_writers(&old.socket(), dice);
    std::thread::sleep(Duration::from_millis(500 + dice.below(1500)));
    if pauses {
        old.pause();
    }
    let new = other.start();
    let taken = ledger.read(&mut new.client("vol0"));
    if pauses {
        // The zombie comes back to a bucket in which the new owner has committed more.
        new.taipan().arg("drain").succeed();
        old.resume();
    }
    is_out(&old);
    wait_until("the tail to be in quarantine", LIMIT, || {
        quarantined(&old) > 0
    });
    // The bucket will never have it, so it is not told any more as what the bucket lacks.
    wait_until("nothing to be at risk", LIMIT, || {
        let volume = old.volume("vol0");
        volume["dirty_bytes"] == 0 && volume["upload"]["risk_bytes"] == 0
    });
    // What is sent from now on; answers to what was sent before may still be on their way.
    let moment = ledger.now();
    std::thread::sleep(Duration::from_millis(300));
    old.kill();
    ledger.join(writers);
    assert!(
        !ledger.answered_later(moment),
        "the first daemon acknowledged writes after it had lost the volume"
    );
    ledger.check_cut(&taken);
    let lost = ledger.missing(&taken);
    assert!(lost > 0, "there was no tail to lose");

    // Nothing of it reaches the image, now or when the old one starts again.
    ledger.settle(&taken);
    let writers = ledger.start_writers(&new.socket(), dice);
    let old = rig.start_or_refuse(&[]);
    std::thread::sleep(Duration::from_millis(300));
    if let Ok(old) = &old {
        assert!(!state(old).contains("online"), "{}", state(old));
        assert!(quarantined(old) > 0, "the quarantine is forgotten");
    }
    drop(old);
    new.terminate();
    let mut new = new;
    new.ended(STOP_LIMIT);
    ledger.join(writers);
    let again = other.start();
    let found = ledger.read(&mut again.client("vol0"));
    ledger.check_answered(&found);
    again.taipan().arg("drain").succeed();
    again.kill();

    // No object is lost: a third machine has every one of them.
    other.lose_machine();
    let third = other.start();
    let from_bucket = ledger.read(&mut third.client("vol0"));
    ledger.check_answered(&from_bucket);
    third.succeed_soon("volume delete vol0 --yes");
    third.stop();
}

#[test]
fn a_reader_that_misses_an_object_learns_of_the_takeover() {
    let server = FakeS3::start();
    let bucket = server.bucket();
    let (rig, other) = (first(&bucket), second(&bucket));
    let old = rig.start();
    let data = |byte: u8| vec![byte; 1 << 20];
    assert_eq!(old.client("vol0").write(0, &data(1)).unwrap(), None);
    old.taipan().arg("drain").succeed();
    old.kill();
    // It knows where the blocks are, and has them nowhere else.
    let old = rig.start_with(&["--set=ram_cache=off", "--set=chunk_cache=off"], "");
    let new = other.start();
    let mut writer = new.client("vol0");
    assert_eq!(writer.write(0, &data(2)).unwrap(), None);
    for commit in 0..COMMITS_UNTIL_DELETED {
        new.taipan().arg("drain").succeed();
        let at = (2 << 20) + commit * 4096;
        assert_eq!(writer.write(at, &[3; 4096]).unwrap(), None);
    }
    assert!(state(&old).contains("online"), "nobody writes");
    // Of a point in the past, but whole; then nothing.
    wait_until("a read to miss its object", LIMIT, || {
        let read = old.try_client("vol0").map(|mut c| c.read(0, 1 << 20));
        let Ok(Ok(Ok(found))) = read else { return true };
        assert!(found == data(1), "neither the old image nor an error");
        false
    });
    is_out(&old);
    let found = writer.read(0, 1 << 20).unwrap().unwrap();
    assert!(found == data(2));
    old.kill();
    new.stop();
}

fn play(bucket: &Bucket, rounds: u64) {
    let mut dice = Dice::new();
    for round in 0..rounds {
        let pauses = round % 2 == 1;
        eprintln!("round {round}, paused: {pauses}");
        race(bucket, &mut dice, pauses);
    }
}

#[test]
fn on_the_fake() {
    let server = FakeS3::start();
    play(&server.bucket(), rounds(2, 20));
}

#[test]
fn on_seaweedfs() {
    let server = SeaweedFs::start();
    play(&server.bucket(), rounds(1, 40));
}

#[test]
fn a_tail_that_a_start_had_no_room_for_is_copied_out_by_itself() {
    let server = FakeS3::start();
    let bucket = server.bucket();
    let all = ["--set=volumes_open=all"];
    let (rig, other) = (first(&bucket).with_flags(&all), second(&bucket));
    let data = |byte: u8| vec![byte; 1 << 20];
    let old = rig.start();
    assert_eq!(old.client("vol0").write(0, &data(1)).unwrap(), None);
    old.taipan().arg("drain").succeed();
    server.go_down();
    assert_eq!(old.client("vol0").write(1 << 20, &data(2)).unwrap(), None);
    old.kill();
    server.heal();
    let new = other.start();
    assert_eq!(new.client("vol0").write(2 << 20, &data(3)).unwrap(), None);
    new.taipan().arg("drain").succeed();
    new.stop();

    // It takes the volume back; the disk is full when it tries to copy its tail out.
    let old = rig.start_with(&[], "quarantine.write=1*error(ENOSPC)");
    old.await_log("cannot be copied out", LIMIT);
    wait_until("the volume to be served", LIMIT, || {
        state(&old).contains("online")
    });
    assert_eq!(quarantined(&old), 1 << 20);
    let mut client = old.client("vol0");
    for (place, byte) in [(0, 1), (1, 0), (2, 3)] {
        let found = client.read(place << 20, 1 << 20).unwrap().unwrap();
        assert!(found == data(byte), "MiB {place}");
    }
    assert_eq!(client.write(1 << 20, &data(4)).unwrap(), None);
    old.taipan().arg("drain").succeed();
    old.stop();
}

#[test]
fn a_tail_is_as_old_as_its_writes_however_late_it_is_copied_out() {
    let server = FakeS3::start();
    let bucket = server.bucket();
    let (rig, other) = (first(&bucket), second(&bucket));
    // Twice there is no room; it is tried again after 5 s.
    let old = rig.start_with(&[], "quarantine.write=2*error(ENOSPC)");
    let mut client = old.client("vol0");
    assert_eq!(client.write(0, &[1; 4096]).unwrap(), None);
    old.taipan().arg("drain").succeed();
    let committed = Instant::now();
    let new = other.start();
    assert_eq!(client.write(4096, &[2; 4096]).unwrap(), None);
    is_out(&old);
    wait_until("the tail to be in quarantine", LIMIT, || {
        quarantined(&old) > 0
    });
    let since_commit = committed.elapsed().as_secs_f64();
    let seconds = old.volume("vol0")["quarantine"]["seconds"].as_f64();
    let seconds = seconds.expect("a number");
    assert!(seconds + 9.0 < since_commit, "{seconds} of {since_commit}");
    old.kill();
    new.stop();
}

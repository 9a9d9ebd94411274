//! The daemon ends as by `kill -9` just before each of its durable steps in turn: what was answered
//! is there after the next start, and what was flushed if the memory went too.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::s3::FakeS3;
use crate::harness::stamps::Ledger;
use crate::harness::{Dice, pattern};

const LIMIT: Duration = Duration::from_secs(240);
/// Blocks that are written: so few that chunks are soon overwritten and deleted.
const BLOCKS: u64 = 1024;

/// Bytes of one block in each shard.
const BYTES: usize = 16 * 4096;

/// Steps that writes alone lead to, and whether the memory is lost with the process.
const STEPS: [(&str, bool); 7] = [
    ("wal.write=+300*crash", true),
    ("wal.barrier=+30*crash", true),
    ("chunk.put=+1*crash", true),
    ("manifest.put=+1*crash", false),
    ("head.save=+1*crash", true),
    ("wal.release=crash", false),
    ("object.delete=crash", false),
];

/// Waits until the armed failpoint has ended it.
fn crashed(daemon: &mut Daemon, step: &str) {
    let status = daemon.ended(LIMIT);
    let killed = Signal::KILL.as_raw();
    assert_eq!(status.signal(), Some(killed), "{step}: {status}");
}

/// One step; false if it came before anybody had an answer.
fn is_survived(rig: &Rig, ledger: &mut Ledger, dice: &mut Dice, step: (&str, bool)) -> bool {
    let (step, memory_is_lost) = step;
    let Some(mut daemon) = rig.start_unless_crashed(step) else {
        return false;
    };
    let writers = ledger.start_writers(&daemon.socket(), dice);
    crashed(&mut daemon, step);
    let answers = ledger.join(writers);
    if memory_is_lost {
        rig.lose_memory();
    }
    let daemon = rig.start();
    let found = ledger.read(&mut daemon.client("vol0"));
    match memory_is_lost {
        true => ledger.check_flushed(&found),
        false => ledger.check_answered(&found),
    }
    ledger.settle_locally(&found);
    daemon.kill();
    answers > 0
}

#[test]
fn under_writes() {
    let rig = Rig::new(&["vol0:64MiB"]).with_flags(&[
        "--wal-size=128MiB",
        "--set=commit.interval_seconds=1",
        "--set=commit.pending_size=1MiB",
    ]);
    let mut dice = Dice::new();
    let mut ledger = Ledger::new(BLOCKS);
    for step in STEPS {
        eprintln!("{step:?}");
        // What an earlier one left to commit may bring a start to the step before the writers.
        let survived = (0..20).any(|_| is_survived(&rig, &mut ledger, &mut dice, step));
        assert!(survived, "{step:?}: never an answer before it");
    }
    rig.start().stop();
}

#[test]
fn while_the_memory_of_a_killed_one_is_taken_over() {
    let rig = Rig::new(&["vol0:64MiB"]);
    // One block in each shard, answered and still in memory alone.
    let daemon = rig.start_with(&[], "wal.write=delay(5000)");
    let data = pattern(0, 1, BYTES);
    assert_eq!(daemon.client("vol0").write(0, &data).unwrap(), None);
    daemon.kill();
    // Twice in a row, at different records.
    for step in ["region.append=+1*crash", "region.append=+2*crash"] {
        crashed(&mut rig.start_to_crash(step), step);
    }
    let daemon = rig.start();
    let found = daemon
        .client("vol0")
        .read(0, BYTES as u32)
        .unwrap()
        .unwrap();
    assert!(found == data, "an answered write is lost");
    daemon.stop();
}

#[test]
fn while_settings_change_and_a_volume_is_deleted() {
    let rig = Rig::new(&["vol0:64MiB", "old:64MiB"]);
    for (step, line) in [
        ("configure.put=crash", "volume set vol0 --rpo-seconds 60"),
        ("delete.put=crash", "volume delete old --yes"),
    ] {
        let mut daemon = rig.start_with(&[], step);
        daemon.taipan().args(line).fail();
        crashed(&mut daemon, step);
        let daemon = rig.start();
        // The step had not been taken, and can be now.
        assert_eq!(daemon.volume("vol0")["state"], "online", "{step}");
        daemon.taipan().args(line).succeed();
        daemon.kill();
    }
    let daemon = rig.start_or_refuse(&[]).expect("it serves");
    assert_eq!(daemon.volume("vol0")["rpo_seconds"], 60);
    daemon.stop();
}

#[test]
fn while_a_tail_is_copied_to_quarantine() {
    let server = FakeS3::start();
    let mut rig = Rig::new(&["vol0:64MiB"])
        .with_bucket(&server.bucket())
        .with_flags(&["--set=commit.interval_seconds=3600"]);
    let daemon = rig.start();
    let data = pattern(0, 1, 1 << 20);
    assert_eq!(daemon.client("vol0").write_durably(0, &data).unwrap(), None);
    daemon.kill();
    rig.forget_volumes();
    Rig::on(&server.bucket()).start().stop();

    let step = "quarantine.write=+1*crash";
    crashed(&mut rig.start_to_crash(step), step);
    let daemon = rig
        .start_or_refuse(&[])
        .expect("it lists what it does not own");
    let volume = daemon.volume("vol0");
    assert_eq!(volume["state"], "elsewhere", "{volume}");
    assert_eq!(volume["quarantine"]["bytes"], 1 << 20, "{volume}");
    daemon.stop();
}

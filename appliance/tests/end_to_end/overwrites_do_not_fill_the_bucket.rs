//! A volume is overwritten ten times at random while a snapshot is held: compaction keeps the
//! bucket within its bound, lets go of the rest when there is time, and no image notices.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::{Dice, pattern, wait_until};

const PIECES: u64 = 512;
const PIECE_BYTES: u64 = 64 << 10;
/// A cut is committed after so many: much less than the volume.
const PIECES_PER_CUT: usize = 64;
const VOLUME_BYTES: u64 = PIECES * PIECE_BYTES;
const CHUNK_BYTES: u64 = 1 << 20;
const OVERWRITES: u64 = 10;
const LIMIT: Duration = Duration::from_secs(180);

/// Bytes of all chunks below the folder of a `dir:` backend.
fn chunk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => chunk_bytes(&entry.path()),
        Ok(meta) if entry.path().parent().is_some_and(|p| p.ends_with("chunks")) => meta.len(),
        // Another kind of object, or deleted meanwhile.
        _ => 0,
    };
    entries.flatten().map(of).sum()
}

/// Writes every piece once, in random order.
fn overwrite(daemon: &Daemon, version: u64, dice: &mut Dice) {
    let mut order: Vec<u64> = (0..PIECES).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, dice.below(last as u64 + 1) as usize);
    }
    let mut client = daemon.client("vol0");
    for cut in order.chunks(PIECES_PER_CUT) {
        for piece in cut {
            let data = pattern(*piece, version, PIECE_BYTES as usize);
            let answer = client.write(piece * PIECE_BYTES, &data);
            assert_eq!(answer.expect("an answer"), None);
        }
        // The volume's FLUSH waits for the bucket.
        assert_eq!(client.flush().expect("an answer"), None);
    }
}

fn check_content(daemon: &Daemon, version: u64) {
    let mut client = daemon.client("vol0");
    for piece in 0..PIECES {
        let read = client.read(piece * PIECE_BYTES, PIECE_BYTES as u32);
        let found = read.expect("an answer").expect("a read");
        assert!(
            found == pattern(piece, version, found.len()),
            "piece {piece}"
        );
    }
}

#[test]
fn with_a_snapshot_held() {
    let rig = Rig::new(&[]).with_flags(&[
        "--set=commit.interval_seconds=1",
        "--set=commit.pending_size=1MiB",
        "--set=compaction.bytes_per_second=1GiB",
    ]);
    let daemon = rig.start();
    let line =
        format!("volume create vol0 --size {VOLUME_BYTES} --chunk-size 1MiB --durability remote");
    daemon.taipan().args(&line).succeed();
    let mut dice = Dice::new();
    overwrite(&daemon, 0, &mut dice);
    daemon.taipan().args("snapshot create vol0 held").succeed();
    let held = 2 * VOLUME_BYTES;
    let bucket = || chunk_bytes(&rig.data().join("objects"));
    let share = |of: u64| bucket() as f64 / of as f64;
    for version in 1..=OVERWRITES {
        overwrite(&daemon, version, &mut dice);
        let (now, written) = (
            share(held),
            daemon.metric("taipan_compaction_written_bytes_total"),
        );
        let amplified = 1.0 + written / (version * VOLUME_BYTES) as f64;
        eprintln!("overwrite {version}: {now:.2} x (live + snapshot), written {amplified:.2} x");
        assert!(now <= 1.6, "the bucket holds {now:.2} x live + snapshot");
        assert!(amplified <= 1.8, "{amplified:.2} x is written");
    }
    wait_until("room after a rest", LIMIT, || share(held) <= 1.35);
    eprintln!("at rest: {:.2} x (live + snapshot)", share(held));
    check_content(&daemon, OVERWRITES);
    daemon.taipan().args("verify vol0 --deep").succeed();
    daemon.taipan().args("snapshot delete vol0@held").succeed();
    // Less than a chunk is not worth a commit in a volume at rest.
    let bound = VOLUME_BYTES / 100 * 135 + 2 * CHUNK_BYTES;
    wait_until("the snapshot's room", LIMIT, || bucket() <= bound);
    eprintln!("without the snapshot: {:.2} x live", share(VOLUME_BYTES));
    daemon.taipan().args("verify vol0 --deep").succeed();
    daemon.kill();
    let daemon = rig.start();
    check_content(&daemon, OVERWRITES);
    daemon.stop();
}

/// Sparse chunks are left by a daemon that does not compact; those after it end just before each
/// step of their first compaction.
#[test]
fn a_crash_at_any_step_of_a_compaction_loses_nothing() {
    let rig = Rig::new(&[]).with_flags(&[
        "--set=commit.interval_seconds=1",
        "--set=commit.pending_size=1MiB",
    ]);
    let daemon = rig.start_with(&["--set=compaction.threshold_percent=0"], "");
    let line = "volume create vol0 --size 8MiB --chunk-size 1MiB";
    daemon.taipan().args(line).succeed();
    let mut client = daemon.client("vol0");
    let version = |piece: u64| u64::from(!piece.is_multiple_of(4));
    for round in 0..2 {
        for piece in (0..128).filter(|piece| round == 0 || version(*piece) == 1) {
            let data = pattern(piece, round, PIECE_BYTES as usize);
            assert_eq!(client.write(piece * PIECE_BYTES, &data).unwrap(), None);
        }
        daemon.taipan().args("volume commit vol0").succeed();
    }
    daemon.stop();
    for step in ["compact.read", "compact.put", "compact.manifest"] {
        let mut daemon = rig.start_to_crash(&format!("{step}=crash"));
        let signal = daemon.ended(LIMIT).signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()), "{step}");
    }
    let daemon = rig.start();
    let rewritten = || daemon.metric("taipan_compaction_written_bytes_total") > 0.0;
    wait_until("a compaction", LIMIT, rewritten);
    daemon.taipan().args("verify vol0 --deep").succeed();
    let mut client = daemon.client("vol0");
    for piece in 0..128 {
        let read = client.read(piece * PIECE_BYTES, PIECE_BYTES as u32);
        let found = read.expect("an answer").expect("a read");
        let expected = pattern(piece, version(piece), found.len());
        assert!(found == expected, "piece {piece}");
    }
    daemon.stop();
}

//! Tests of creating, opening and locking WAL files.

use super::super::{Recovered, recover_shard};
use super::*;

fn config() -> LogConfig {
    LogConfig::for_wal(4 << 20, 2 << 20).unwrap()
}

fn shard(index: u8) -> ShardId {
    ShardId::new(index).unwrap()
}

fn replay(files: &WalFiles, index: u8) -> Recovered {
    let identity = files.identity(shard(index), BootId([1; 16]));
    recover_shard(&identity, &files.media(shard(index)).unwrap(), &[]).unwrap()
}

#[test]
fn new_files_replay_to_nothing_and_every_start_counts() {
    let dir = tempfile::tempdir().unwrap();
    let wal = dir.path().join("data/wal");
    let files = WalFiles::open(&wal, &config()).unwrap();
    assert!(files.is_created());
    assert_eq!(files.state().incarnation, Incarnation(1));
    for index in [0, 15] {
        let recovered = replay(&files, index);
        assert!(recovered.batches().is_empty() && recovered.torn.is_none());
        assert_eq!(recovered.next_batch.0, 1);
    }
    let identity = files.state().wal;
    drop(files);
    let files = WalFiles::open(&wal, &config()).unwrap();
    assert!(!files.is_created());
    assert_eq!(
        (files.state().incarnation, files.state().wal),
        (Incarnation(2), identity)
    );
}

#[test]
fn a_torn_creation_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    // Some files, one short, no state: as after a crash while creating.
    fs::write(shard_path(dir.path(), shard(0)), vec![7; 5000]).unwrap();
    fs::write(dir.path().join("state.new"), b"half").unwrap();
    let files = WalFiles::open(dir.path(), &config()).unwrap();
    assert!(files.is_created());
    assert!(replay(&files, 0).batches().is_empty());
    // All files complete, but no state.
    drop(files);
    let fresh = tempfile::tempdir().unwrap();
    create(fresh.path(), &config()).unwrap();
    fs::remove_file(fresh.path().join(super::super::state::STATE_NAME)).unwrap();
    assert!(
        WalFiles::open(fresh.path(), &config())
            .unwrap()
            .is_created()
    );
}

#[test]
fn used_files_without_their_state_are_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let files = WalFiles::open(dir.path(), &config()).unwrap();
    let head = LogHead {
        incarnation: Incarnation(1),
        sequence: 2,
        ..blank_head(&files.identity(shard(3), BootId([0; 16])), &config())
    };
    let mut page = PageBuf::new(PAGE_BYTES);
    head.encode(page.bytes());
    files
        .file(shard(3))
        .write_all_at(page.bytes(), head.file_offset())
        .unwrap();
    drop(files);
    fs::remove_file(dir.path().join(super::super::state::STATE_NAME)).unwrap();
    let error = WalFiles::open(dir.path(), &config()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("shard-03.wal"), "{error}");
}

#[test]
fn a_missing_file_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(WalFiles::open(dir.path(), &config()).unwrap());
    fs::remove_file(shard_path(dir.path(), shard(9))).unwrap();
    let error = WalFiles::open(dir.path(), &config()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("shard-09.wal"), "{error}");
}

#[test]
fn existing_files_keep_their_size() {
    let dir = tempfile::tempdir().unwrap();
    drop(WalFiles::open(dir.path(), &config()).unwrap());
    let larger = LogConfig::for_wal(64 << 20, 16 << 20).unwrap();
    let files = WalFiles::open(dir.path(), &larger).unwrap();
    let fitted = files.fit(&larger).unwrap();
    assert_eq!(fitted.segments, config().segments);
    assert_eq!(fitted.segment_bytes, config().segment_bytes);
    assert_eq!(fitted.arena_bytes, larger.arena_bytes);
    assert_eq!(files.fit(&fitted).unwrap(), fitted);
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // No disk has this much.
    let huge = LogConfig {
        segments: u32::MAX,
        ..config()
    };
    let error = WalFiles::open(dir.path(), &huge).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn unaligned_reads_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let files = WalFiles::open(dir.path(), &config()).unwrap();
    let media = files.media(shard(0)).unwrap();
    let mut out = [1; 13];
    media.read_at(HEAD_SLOTS[1] + 3, &mut out).unwrap();
    assert_eq!(&out[..5], b"PWALH");
    assert!(media.read_at(media.len() - 1, &mut [0; 2]).is_err());
}

#[test]
fn a_replacement_takes_the_place_of_a_file_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let files = WalFiles::open(dir.path(), &config()).unwrap();
    for number in 1..=2 {
        let damaged = fs::read(shard_path(dir.path(), shard(4))).unwrap();
        drop(
            files
                .create_replacement(dir.path(), shard(4), &config())
                .unwrap(),
        );
        assert_eq!(fs::read(shard_path(dir.path(), shard(4))).unwrap(), damaged);
        let aside = files.replace(dir.path(), shard(4)).unwrap();
        assert!(
            aside.ends_with(format!("shard-04.wal.damaged-{number}")),
            "{aside:?}"
        );
        assert_eq!(fs::read(aside).unwrap(), damaged);
    }
    drop(files);
    let files = WalFiles::open(dir.path(), &config()).unwrap();
    assert_eq!(replay(&files, 4).next_batch.0, 1, "an empty log");
}

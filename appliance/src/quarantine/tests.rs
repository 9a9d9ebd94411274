//! Tests of copying out: what is held afterwards, and what a failure leaves.

use taipan_engine::error::ErrorKind;
use taipan_engine::identity::{Epoch, Generation, Lsn, ManifestNum};
use taipan_engine::registry::quarantine::QuarantineKind;
use taipan_engine::volume::VolumeName;

use super::*;

const ID: VolumeId = VolumeId(0xAB);

fn header(through: u64, since_ms: u64, until_ms: u64) -> QuarantineHeader {
    QuarantineHeader {
        volume: ID,
        name: VolumeName::parse("v").unwrap(),
        block_size_bytes: 4096,
        generation: Generation(1),
        head: ManifestNum(5),
        after: Epoch(1),
        through: Epoch(through),
        since_ms,
        until_ms,
    }
}

fn record(lsn: u64) -> QuarantineRecord {
    QuarantineRecord {
        kind: QuarantineKind::Data,
        shard: 1,
        damaged: false,
        epoch: Epoch(2),
        lsn: Lsn(lsn),
        start: 0,
        count: 1,
        payload: vec![7; 4096],
    }
}

#[test]
fn what_was_copied_is_held_and_summed_over_all_files() {
    let data = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::of(data.path());
    assert_eq!(quarantine.held(ID), None);
    let none = quarantine.copy(&header(9, 0, 0), std::iter::empty());
    assert_eq!(none.unwrap(), None);
    assert!(!data.path().join("quarantine").exists());

    let first = [Ok(record(1)), Ok(record(2))].into_iter();
    quarantine.copy(&header(9, 1000, 4000), first).unwrap();
    let second = [Ok(record(8))].into_iter();
    let later = QuarantineHeader {
        after: Epoch(9),
        ..header(19, 6000, 8500)
    };
    quarantine.copy(&later, second).unwrap();
    let held = quarantine.held(ID).unwrap();
    assert_eq!((held.files, held.records, held.bytes), (2, 3, 3 * 4096));
    assert!((held.seconds - 7.5).abs() < 1e-9);
    assert_eq!(quarantine.held(VolumeId(1)), None);
    // When the oldest of these was written nobody knows: they say nothing about the time.
    let undated = QuarantineHeader {
        after: Epoch(19),
        ..header(29, 0, 9500)
    };
    let third = [Ok(record(9))].into_iter();
    quarantine.copy(&undated, third).unwrap();
    let held = quarantine.held(ID).unwrap();
    assert_eq!((held.files, held.records), (3, 4));
    assert!((held.seconds - 7.5).abs() < 1e-9);
}

#[test]
fn a_copy_that_fails_leaves_no_file() {
    let data = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::of(data.path());
    let full = || Err(Error::new(ErrorKind::Full, "no space"));
    let failed = quarantine.copy(&header(9, 0, 1), [Ok(record(1)), full()].into_iter());
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(quarantine.held(ID), None);
    let left = fs::read_dir(data.path().join("quarantine"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
    // Once there is room it works, under the same name.
    let again = quarantine.copy(&header(9, 0, 1), [Ok(record(1))].into_iter());
    assert_eq!(again.unwrap().unwrap().records, 1);
}

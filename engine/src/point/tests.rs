//! Names, bytes, the table of points, and which of them leave.

use super::*;
use crate::error::ErrorKind;
use crate::identity::{VolumeId, WriterToken};
use crate::manifest::{Manifest, ManifestKind};
use crate::object::fields::Fields;
use crate::volume::{VolumeName, VolumeSettings};

const WINDOW_SECONDS: u64 = 1000;

fn point(manifest: u64, epoch: u64, committed: u64, age_ms: u64) -> Point {
    Point {
        manifest: ManifestNum(manifest),
        epoch: Epoch(epoch),
        committed: UnixMs(committed),
        age_ms,
        added_bytes: 7,
    }
}

fn first() -> Manifest {
    let settings = VolumeSettings {
        pitr_window_seconds: WINDOW_SECONDS,
        ..VolumeSettings::with_size(1 << 20)
    };
    let name = VolumeName::parse("v").unwrap();
    Manifest::first(VolumeId(1), name, settings, WriterToken(1))
}

/// The commit after `last`, so many milliseconds later.
fn commit(table: &PointTable, last: &Manifest, passed_ms: u64) -> Manifest {
    let mut next = last.successor(ManifestKind::Commit);
    next.epoch = last.epoch.next();
    let before = last.moment.unwrap();
    let now = (UnixMs(before.committed.0 + passed_ms), passed_ms);
    next.moment = Some(table.next_moment(before, now, WINDOW_SECONDS * 1000, None));
    next
}

#[test]
fn golden_bytes() {
    let moment = Moment {
        committed: UnixMs(0x0102),
        age_ms: 3,
        since: ManifestNum(4),
    };
    let mut out = Vec::new();
    moment.encode_into(&mut out);
    let hex = |out: &[u8]| out.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let expected = concat!("0201000000000000", "0300000000000000", "0400000000000000");
    assert_eq!(hex(&out), expected);
    assert_eq!(Moment::decode(&mut Fields::new(&out)).unwrap(), moment);
    let table = PointTable::new(vec![point(3, 9, 0x0102, 5)]).unwrap();
    let mut out = Vec::new();
    table.encode_into(&mut out);
    let expected = concat!(
        "01000000",         // points
        "00000000",         // reserved
        "0300000000000000", // manifest
        "0900000000000000", // epoch
        "0201000000000000", // committed at
        "0500000000000000", // age
        "0700000000000000", // bytes added
    );
    assert_eq!(hex(&out), expected);
    assert_eq!(PointTable::decode(&mut Fields::new(&out)).unwrap(), table);
    for (at, byte) in [(0, 0), (0, 2), (2, 1), (4, 1), (8, 0)] {
        let mut bad = out.clone();
        bad[at] = byte;
        let decoded = PointTable::decode(&mut Fields::new(&bad));
        assert_eq!(decoded.unwrap_err().kind(), ErrorKind::Corrupt, "{at}");
    }
}

#[test]
fn a_table_ascends() {
    let bad = [
        vec![point(2, 2, 0, 0), point(2, 3, 0, 0)],
        vec![point(2, 2, 0, 0), point(3, 2, 0, 0)],
        vec![point(2, 2, 0, 5), point(3, 3, 0, 4)],
    ];
    for points in bad {
        assert!(PointTable::new(points).is_err());
    }
    let backwards = vec![point(2, 2, 900, 0), point(3, 3, 800, 0)];
    PointTable::new(backwards).expect("a clock may be set back");
}

#[test]
fn the_last_point_at_or_before_a_time_is_found() {
    let points = vec![
        point(1, 0, 0, 0),
        point(3, 2, 1000, 0),
        point(5, 4, 9000, 10),
        point(6, 5, 1500, 20),
        point(8, 7, 2000, 30),
    ];
    let table = PointTable::new(points).unwrap();
    for (time, manifest) in [(1000, 3), (1499, 3), (1500, 6), (8999, 8), (u64::MAX, 8)] {
        let found = table.find(PointName::Time(UnixMs(time))).unwrap();
        assert_eq!(found.manifest, ManifestNum(manifest), "{time}");
    }
    let error = table.find(PointName::Time(UnixMs(999))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("1970-01-01T00:00:01Z"),
        "{error}"
    );
    let empty = table.find(PointName::Manifest(ManifestNum(1))).unwrap();
    assert_eq!(empty.epoch, Epoch(0));
    assert!(table.find(PointName::Manifest(ManifestNum(4))).is_err());
}

#[test]
fn points_leave_when_the_one_after_them_is_as_old_as_the_window() {
    let mut table = PointTable::default();
    let mut head = first();
    table.follow(&head).unwrap();
    for _ in 0..20 {
        head = commit(&table, &head, 100_000);
        table.follow(&head).unwrap();
    }
    // The one ten steps back is the image at the window's beginning.
    assert_eq!(table.since(), Some(ManifestNum(11)));
    assert_eq!(table.iter().count(), 11);
    let window_ms = WINDOW_SECONDS * 1000;
    let since = |age_ms, held| table.since_at(age_ms, window_ms, held).unwrap().0;
    assert_eq!(since(2_000_000, None), 11);
    assert_eq!(since(2_099_999, None), 11);
    assert_eq!(since(2_100_000, None), 12);
    assert_eq!(since(9_100_000, None), 21, "the head itself stays");
    assert_eq!(since(9_100_000, Some(ManifestNum(14))), 14, "in use");
    assert_eq!(since(9_100_000, Some(ManifestNum(3))), 11);
    // Time that nobody is sure of does not count: a clock is set forward.
    let mut jumped = commit(&table, &head, 0);
    let moment = jumped.moment.as_mut().unwrap();
    moment.committed = UnixMs(u64::MAX / 2);
    table.follow(&jumped).unwrap();
    assert_eq!(table.since(), Some(ManifestNum(11)));
}

#[test]
fn commits_of_the_same_content_are_no_points() {
    let mut table = PointTable::default();
    let head = first();
    table.follow(&head).unwrap();
    let mut same = commit(&table, &head, 5);
    same.epoch = head.epoch;
    table.follow(&same).unwrap();
    let opened = same.opened_by(WriterToken(2));
    table.follow(&opened).unwrap();
    assert_eq!(table.iter().count(), 1);
    let mut off = opened.successor(ManifestKind::Configured);
    off.configure(VolumeSettings::with_size(1 << 20), UnixMs(1));
    off.check_follows(&opened).unwrap();
    table.follow(&off).unwrap();
    assert!(table.is_empty());
    let mut on = off.successor(ManifestKind::Configured);
    on.configure(first().settings, UnixMs(77));
    on.check_follows(&off).unwrap();
    table.follow(&on).unwrap();
    let only: Vec<_> = table.iter().map(|p| (p.manifest, p.committed)).collect();
    assert_eq!(only, [(on.number, UnixMs(77))]);
}

#[test]
fn what_was_given_up_is_not_kept_again() {
    let mut table = PointTable::default();
    let mut head = first();
    table.follow(&head).unwrap();
    for _ in 0..12 {
        head = commit(&table, &head, 100_000);
        table.follow(&head).unwrap();
    }
    let good = commit(&table, &head, 1);
    for (since, age_ms) in [(1, 1_300_000), (3, 0), (99, 1_300_000)] {
        let mut bad = good.clone();
        let moment = bad.moment.as_mut().unwrap();
        (moment.since, moment.age_ms) = (ManifestNum(since), age_ms);
        let followed = table.clone().follow(&bad).is_ok();
        let may = bad.check_follows(&head).is_ok();
        assert!(!followed || !may, "since {since}, age {age_ms}");
        assert!(since != 99 || Manifest::decode(&bad.encode()).is_err());
    }
    good.check_follows(&head).unwrap();
    assert_eq!(Manifest::decode(&good.encode()).unwrap(), good);
}

/// However many commits there are, the list is bounded, begins where the moment says, and has a
/// point close to every moment of the window.
#[test]
fn the_list_is_bounded_and_has_no_gaps() {
    let (mut table, mut head) = (PointTable::default(), first());
    let window_ms = WINDOW_SECONDS * 1000;
    let grain_ms = window_ms.div_ceil(POINTS_MAX as u64 / 2);
    let mut dice = crate::lcg::Lcg(7);
    table.follow(&head).unwrap();
    let mut ages = vec![0];
    for round in 0..2 * POINTS_MAX {
        let passed_ms = dice.below(70);
        head = commit(&table, &head, passed_ms);
        table.follow(&head).unwrap();
        assert_eq!(table.since(), Some(head.moment.unwrap().since));
        ages.push(head.moment.unwrap().age_ms);
        if round % 5000 == 0 {
            assert!(PointTable::new(table.iter().copied().collect()).is_ok());
            let listed: Vec<u64> = table.iter().map(|p| p.age_ms).collect();
            let now = head.moment.unwrap().age_ms;
            for age in ages.iter().filter(|age| *age + window_ms > now) {
                let near = listed[listed.partition_point(|l| l <= age) - 1];
                assert!(age - near <= grain_ms, "{age} {near}");
            }
        }
    }
    // Nothing is ever sure of the time: the list is bounded all the same.
    for _ in 0..POINTS_MAX {
        head = commit(&table, &head, 0);
        table.follow(&head).unwrap();
    }
    assert!(table.iter().count() <= POINTS_MAX);
}

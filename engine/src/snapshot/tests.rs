//! Names, the table of snapshots, and what it keeps.

use super::*;
use crate::error::ErrorKind;
use crate::identity::{VolumeId, WriterToken};
use crate::manifest::{Manifest, ManifestKind};
use crate::object::fields::Fields;
use crate::object::{ChunkKey, IndexKey, SealedRef};
use crate::volume::{VolumeName, VolumeSettings};

fn snapshot(name: &str, manifest: u64, generation: u64, sequence: u64) -> Snapshot {
    Snapshot {
        id: SnapshotId(manifest * 100 + name.len() as u64),
        name: SnapshotName::parse(name).unwrap(),
        manifest: ManifestNum(manifest),
        generation: Generation(generation),
        sequence,
        epoch: Epoch(manifest * 10),
        taken_ms: 0x0102_0304_0506,
        group: None,
    }
}

fn chunk(generation: u64, sequence: u64) -> SealedRef {
    SealedRef::Chunk(ChunkKey {
        volume: VolumeId(1),
        generation: Generation(generation),
        sequence,
        random: 9,
    })
}

fn part(generation: u64, sequence: u64) -> SealedRef {
    SealedRef::Index(IndexKey {
        volume: VolumeId(1),
        generation: Generation(generation),
        sequence,
        random: 9,
    })
}

#[test]
fn bad_names_are_refused_with_the_reason() {
    let long = "x".repeat(256);
    for (name, why) in [
        ("", "empty"),
        ("a@b", "'@'"),
        ("a/b", "'/'"),
        ("a\tb", "control"),
        (".", "'.'"),
        ("..", "'.'"),
        (long.as_str(), "255 bytes"),
    ] {
        let error = SnapshotName::parse(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{name:?}: {error}");
    }
    for name in [
        "daily",
        "vor dem Update",
        ".hidden",
        "2026-11-21T13:00",
        "ü",
    ] {
        assert_eq!(SnapshotName::parse(name).unwrap().as_str(), name);
    }
}

#[test]
fn golden_bytes() {
    let mut out = Vec::new();
    SnapshotChange::Deleted(snapshot("ab", 3, 2, 7)).encode_into(&mut out);
    let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
    let expected = concat!(
        "2e01000000000000", // id
        "0300000000000000", // manifest
        "0200000000000000", // generation
        "0700000000000000", // sequence
        "1e00000000000000", // epoch
        "0605040302010000", // asked for at
        "0200",             // deleted
        "0200",             // name bytes
        "00000000",         // reserved
        "6162",             // name
    );
    assert_eq!(hex, expected);
    let decoded = SnapshotChange::decode(&mut Fields::new(&out)).unwrap();
    assert_eq!(decoded, SnapshotChange::Deleted(snapshot("ab", 3, 2, 7)));
    for (at, byte) in [(48, 3), (52, 1), (56, b'/')] {
        let mut bad = out.clone();
        bad[at] = byte;
        assert!(
            SnapshotChange::decode(&mut Fields::new(&bad)).is_err(),
            "{at}"
        );
    }
}

#[test]
fn a_point_that_is_kept_is_entered_where_its_manifest_is() {
    let kept = SnapshotChange::Kept(snapshot("kept", 4, 1, 6));
    let mut out = Vec::new();
    kept.encode_into(&mut out);
    assert_eq!(out[48..50], [5, 0]);
    assert_eq!(
        SnapshotChange::decode(&mut Fields::new(&out)).unwrap(),
        kept
    );
    out[52] = 2;
    let grouped = SnapshotChange::decode(&mut Fields::new(&out));
    assert!(grouped.is_err(), "a point is of one volume");
    let name = VolumeName::parse("v").unwrap();
    let settings = VolumeSettings::with_size(1 << 20);
    let first = Manifest::first(VolumeId(1), name, settings, WriterToken(1));
    let keeping = |change| Manifest {
        snapshots: vec![change],
        ..first.successor(ManifestKind::Configured)
    };
    let others = vec![snapshot("a", 2, 1, 5), snapshot("b", 9, 2, 1)];
    let mut table = SnapshotTable::new(others).unwrap();
    for sequence in [4, 6] {
        let other = SnapshotChange::Kept(snapshot("new", 4, 1, sequence));
        let fits = table.clone().follow(&keeping(other)).is_ok();
        assert_eq!(fits, sequence == 6, "names ascend with manifests");
    }
    table.follow(&keeping(kept)).unwrap();
    let order: Vec<_> = table.iter().map(|s| s.manifest.0).collect();
    assert_eq!(order, [2, 4, 9]);
    // What was named after the point, and idle before the later snapshot, is needed by none.
    assert!(table.needs(&chunk(1, 6), ManifestNum(5)));
    assert!(!table.needs(&chunk(1, 7), ManifestNum(5)));
}

#[test]
fn a_snapshot_needs_what_was_named_before_it_and_became_idle_after_it() {
    let snapshots = vec![snapshot("a", 5, 1, 10), snapshot("b", 9, 2, 4)];
    let table = SnapshotTable::new(snapshots).unwrap();
    let cases = [
        // (generation, sequence), idle since, needed
        ((1, 1), 5, false),
        ((1, 10), 5, false),
        ((1, 1), 6, true),
        ((1, 10), 6, true),
        ((1, 11), 6, false),
        ((1, 11), 9, false),
        ((1, 11), 10, true),
        ((1, 3), 9, true),
        ((2, 4), 10, true),
        ((2, 5), 10, false),
        ((3, 1), 99, false),
    ];
    for ((generation, sequence), idle_since, needed) in cases {
        for object in [chunk(generation, sequence), part(generation, sequence)] {
            let found = table.needs(&object, ManifestNum(idle_since));
            assert_eq!(
                found, needed,
                "{generation}-{sequence} idle since {idle_since}"
            );
        }
    }
    assert!(!SnapshotTable::default().needs(&chunk(1, 1), ManifestNum(9)));
}

#[test]
fn the_table_follows_manifests_and_refuses_what_cannot_be() {
    let name = VolumeName::parse("v").unwrap();
    let settings = VolumeSettings::with_size(1 << 20);
    let first = Manifest::first(VolumeId(1), name, settings, WriterToken(1));
    let mut manifest = first.successor(ManifestKind::Commit);
    let (a, b) = (snapshot("a", 2, 0, 3), snapshot("bb", 2, 0, 3));
    manifest.snapshots = vec![
        SnapshotChange::Taken(a.clone()),
        SnapshotChange::Taken(b.clone()),
    ];
    let mut table = SnapshotTable::default();
    table.follow(&manifest).unwrap();
    assert_eq!(table.by_name(&a.name), Some(&a));
    assert_eq!(table.by_id(b.id), Some(&b));
    // The same again: both names are taken; nothing is changed.
    assert!(table.follow(&manifest).is_err());
    let earlier = SnapshotTable::new(vec![snapshot("x", 3, 1, 1), snapshot("y", 2, 1, 1)]);
    assert!(earlier.is_err(), "manifests ascend");
    let back = SnapshotTable::new(vec![snapshot("x", 3, 1, 2), snapshot("y", 4, 1, 1)]);
    assert!(back.is_err(), "names ascend with them");
    let deletion = manifest.successor(ManifestKind::Configured);
    let deletion = Manifest {
        snapshots: vec![SnapshotChange::Deleted(a)],
        ..deletion
    };
    table.follow(&deletion).unwrap();
    assert_eq!(table.iter().collect::<Vec<_>>(), [&b]);
    assert!(table.follow(&deletion).is_err(), "there is no such one");
    assert_eq!(table.len(), 1);
}

//! What a check of the bucket says of a volume: nothing while all is well, and of each missing or
//! damaged object exactly which blocks are lost with it.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::executor::block_on;

use super::compaction::begin;
use super::rig::{Rig, VOLUME, World, eager};
use super::snapshots::take;
use crate::backend::{Backend, Fault, FaultRule, Operation};
use crate::block::{BlockNum, BlockSize};
use crate::chunk::ChunkRef;
use crate::error::ErrorKind;
use crate::index::VolumeBase;
use crate::index::rebuild::rebuild;
use crate::object::ObjectKey;
use crate::registry::{NamedVolume, read_blocks, read_history, read_kept};
use crate::snapshot::KeptImage;
use crate::verify::{Options, Severity, VolumeReport, verify_volume};
use crate::volume::{VolumeName, VolumeSettings};

fn check(world: &World, deep: bool) -> crate::error::Result<VolumeReport> {
    let volume = NamedVolume {
        name: VolumeName::parse("vol0").unwrap(),
        id: VOLUME,
    };
    let options = Options {
        deep,
        progress: &|_| {},
    };
    block_on(verify_volume(&world.backend, &volume, &options))
}

/// A volume with a snapshot and some overwrites after it; every index state is in checkpoints.
fn volume() -> (World, Rig) {
    let mut world = World::new();
    let mut rig = world.open(eager());
    world.write(0..64);
    rig.commit_and_verify(&mut world);
    take(&mut world, &mut rig, "snap");
    for round in 0..6 {
        world.write((0..16).map(|block| block * 2 + round));
        rig.commit_and_verify(&mut world);
    }
    (world, rig)
}

/// The chunk in which the head has `block`, and its slot there.
fn chunk_of(rig: &Rig, block: u64) -> (ChunkRef, u32) {
    let base = rig.commit.base();
    let place = base.lookup(BlockNum(block)).expect("it is mapped");
    let chunk = base.chunk(place.chunk).expect("it is in the table");
    (chunk.reference, place.slot)
}

/// (image, blocks) that a finding affects.
fn affected(report: &VolumeReport, object: &ObjectKey) -> Vec<(String, Vec<u64>)> {
    let found = report.findings.iter().find(|f| f.object == object.as_str());
    let images = &found.expect("it is found").affected;
    let blocks = |image: &crate::verify::Affected| {
        let ranges = image.ranges.iter();
        ranges
            .flat_map(|r| r.offset_bytes / 4096..(r.offset_bytes + r.length_bytes) / 4096)
            .collect()
    };
    images
        .iter()
        .map(|i| (i.image.clone(), blocks(i)))
        .collect()
}

#[test]
fn a_whole_volume_is_clean() {
    let (world, rig) = volume();
    for deep in [false, true] {
        let report = check(&world, deep).unwrap();
        assert_eq!(report.findings, [], "deep: {deep}");
        assert_eq!((report.snapshots, report.mapped_bytes), (1, 64 * 4096));
        assert_eq!(report.manifest, rig.commit.head().number.0);
        assert_eq!(report.live_bytes, 64 * 4104);
        assert_eq!(report.read_bytes > 0, deep);
    }
}

#[test]
fn a_missing_chunk_is_told_with_the_ranges_of_each_image() {
    let (world, rig) = volume();
    let (chunk, _) = chunk_of(&rig, 63);
    let key = chunk.key.object();
    block_on(world.backend.delete(&key)).unwrap();
    let report = check(&world, false).unwrap();
    assert_eq!(report.severity(), Some(Severity::Lost));
    let images = affected(&report, &key);
    let expected: Vec<u64> = (48..64).collect();
    let named = |image: &str| (image.to_owned(), expected.clone());
    assert_eq!(images, [named("vol0"), named("vol0@snap")]);
}

#[test]
fn a_flipped_byte_is_found_by_a_deep_check_in_its_block_only() {
    let (world, rig) = volume();
    let (chunk, slot) = chunk_of(&rig, 50);
    let key = chunk.key.object();
    let mut body = block_on(world.backend.get(&key)).unwrap().to_vec();
    body[chunk.head_bytes as usize + slot as usize * 4104 + 7] ^= 1;
    block_on(world.backend.put(&key, Bytes::from(body))).unwrap();
    assert_eq!(check(&world, false).unwrap().findings, []);
    let report = check(&world, true).unwrap();
    assert_eq!(report.severity(), Some(Severity::Corrupt));
    let both = ["vol0", "vol0@snap"].map(|image| (image.to_owned(), vec![50]));
    assert_eq!(affected(&report, &key), both);
}

#[test]
fn a_shortened_chunk_is_found_without_reading_it() {
    let (world, rig) = volume();
    let (chunk, _) = chunk_of(&rig, 63);
    let key = chunk.key.object();
    let body = block_on(world.backend.get(&key)).unwrap();
    block_on(world.backend.put(&key, body.slice(..body.len() - 1))).unwrap();
    assert_eq!(
        check(&world, false).unwrap().severity(),
        Some(Severity::Corrupt)
    );
}

/// Without a manifest, an index part, or the extents of a chunk that no checkpoint covers, the
/// image cannot be read at all.
#[test]
fn what_the_index_needs_takes_all_of_the_image_with_it() {
    let whole: Vec<u64> = (0..(1 << 30) / 4096).collect();
    let parts = |rig: &Rig| rig.commit.parts.last().map(|part| part.key.object());
    let (world, rig) = volume();
    let key = parts(&rig).expect("there is a checkpoint");
    block_on(world.backend.delete(&key)).unwrap();
    let report = check(&world, false).unwrap();
    assert_eq!(report.severity(), Some(Severity::Lost));
    assert_eq!(affected(&report, &key), [("vol0".to_owned(), whole)]);

    let (world, rig) = volume();
    let key = rig.commit.head().object();
    block_on(world.backend.put(&key, Bytes::from_static(b"TaipanMf?"))).unwrap();
    assert_eq!(
        check(&world, false).unwrap().severity(),
        Some(Severity::Corrupt)
    );
}

#[test]
fn a_backend_that_does_not_answer_is_no_finding() {
    let (world, _) = volume();
    let away = Fault::FailBefore(ErrorKind::Transient);
    world
        .backend
        .script(FaultRule::once(Operation::Head, "chunks/", away));
    assert_eq!(
        check(&world, false).unwrap_err().kind(),
        ErrorKind::Transient
    );
}

/// A volume that keeps points in time, with a snapshot and compactions among them.
fn remembered() -> (World, Rig) {
    let mut world = World::with_settings(VolumeSettings {
        pitr_window_seconds: 3600,
        ..VolumeSettings::with_size(1 << 20)
    });
    let mut rig = world.open(eager());
    for round in 0..8 {
        world.write((0..40).map(|block| (block * 3 + round) % 64));
        rig.commit_and_verify(&mut world);
        if round == 3 {
            world.zero(10..20);
            take(&mut world, &mut rig, "snap");
        }
        if begin(&world, &mut rig) {
            rig.run(&mut world);
        }
    }
    (world, rig)
}

/// Blocks that cannot be read of an index; all of them if there is none.
fn unreadable(world: &World, base: Option<&VolumeBase>) -> BTreeSet<u64> {
    let is_bad = |block: &u64| {
        base.is_none_or(|base| {
            let at = (BlockNum(*block), 1);
            block_on(read_blocks(&world.backend, base, BlockSize::MIN, at)).is_err()
        })
    };
    (0..256).filter(is_bad).collect()
}

/// What readers find: blocks that cannot be read of the head, the snapshot, any of the points.
fn found(world: &World, rig: &Rig) -> [BTreeSet<u64>; 3] {
    let head = block_on(async {
        let history = read_history(&world.backend, VOLUME, None).await?;
        rebuild(&world.backend, &history.manifests).await
    });
    let head = unreadable(world, head.ok().as_ref().map(|rebuilt| &rebuilt.base));
    let kept = |image: KeptImage| {
        let read = block_on(read_kept(&world.backend, VOLUME, &image)).ok();
        unreadable(world, read.as_ref().map(|(_, rebuilt)| &rebuilt.base))
    };
    let snapshots = rig.commit.snapshots().iter().cloned();
    let points = rig.commit.points().iter().copied();
    [
        head,
        snapshots
            .flat_map(|s| kept(KeptImage::Snapshot(s)))
            .collect(),
        points.flat_map(|p| kept(KeptImage::Point(p))).collect(),
    ]
}

/// The same as the report says.
fn told(report: &VolumeReport) -> [BTreeSet<u64>; 3] {
    let mut told = [const { BTreeSet::new() }; 3];
    for affected in report.findings.iter().flat_map(|f| &f.affected) {
        let which = match affected.image.as_str() {
            "vol0" => 0,
            "vol0@snap" => 1,
            point => {
                assert!(point.starts_with("vol0@@"), "{point}");
                2
            }
        };
        if affected.ranges.is_empty() {
            // Not even the size is known.
            told[which].extend(0..256);
        }
        for range in &affected.ranges {
            let blocks =
                range.offset_bytes / 4096..(range.offset_bytes + range.length_bytes) / 4096;
            told[which].extend(blocks);
        }
    }
    told
}

/// Whatever object is gone: the check says of which blocks of head, snapshot and points that is the
/// end, no more and no less.
#[test]
fn a_missing_object_is_told_with_what_readers_of_every_image_cannot_read() {
    let (world, rig) = remembered();
    let whole = check(&world, true).unwrap();
    assert_eq!(whole.findings, []);
    assert_eq!(whole.points, rig.commit.points().iter().count() as u64);
    assert!(whole.points >= 9, "{}", whole.points);
    let needed_by_points_alone =
        |of: &[BTreeSet<u64>; 3]| of[0].is_empty() && of[1].is_empty() && !of[2].is_empty();
    let mut only_points = 0;
    let prefix = format!("v1/{VOLUME}/");
    for object in block_on(world.backend.list(&prefix, None, 10_000)).unwrap() {
        let key = ObjectKey::parse(&object.key).unwrap();
        let head = rig.commit.head().object();
        if key == head {
            // Without it its predecessor is the head.
            continue;
        }
        let body = block_on(world.backend.get(&key)).unwrap();
        block_on(world.backend.delete(&key)).unwrap();
        let report = check(&world, false).unwrap();
        let (expected, mut told) = (found(&world, &rig), told(&report));
        if expected[0].len() == 256 {
            // Which other images there are is told by the index of the head.
            told[1..].clone_from_slice(&expected[1..]);
        }
        assert_eq!(told, expected, "without {key:?}");
        only_points += u32::from(needed_by_points_alone(&expected));
        let is_hurt = expected.iter().any(|blocks| !blocks.is_empty());
        assert_eq!(report.severity().is_some(), is_hurt, "without {key:?}");
        block_on(world.backend.put_if_absent(&key, body)).unwrap();
    }
    assert!(only_points >= 5, "{only_points}");
    assert_eq!(check(&world, true).unwrap().findings, []);
}

#[test]
fn a_chunk_that_only_points_need_is_told_with_them() {
    let (mut world, mut rig) = remembered();
    world.write(0..64);
    rig.commit_and_verify(&mut world);
    let (chunk, slot) = chunk_of(&rig, 50);
    let first = rig.commit.head().number;
    world.write(0..10);
    rig.commit_and_verify(&mut world);
    let last = rig.commit.head().number;
    world.write(0..64);
    rig.commit_and_verify(&mut world);
    let key = chunk.key.object();
    let mut body = block_on(world.backend.get(&key)).unwrap().to_vec();
    body[chunk.head_bytes as usize + slot as usize * 4104 + 7] ^= 1;
    block_on(world.backend.put(&key, Bytes::from(body))).unwrap();
    let report = check(&world, true).unwrap();
    assert_eq!(report.severity(), Some(Severity::Corrupt));
    let image = format!("vol0@@{first} to @@{last}");
    assert_eq!(affected(&report, &key), [(image, vec![50])]);
}

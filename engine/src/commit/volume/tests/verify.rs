//! What a check of the bucket says of a volume: nothing while all is well, and of each missing or
//! damaged object exactly which blocks are lost with it.

use bytes::Bytes;
use futures::executor::block_on;

use super::rig::{Rig, VOLUME, World, eager};
use super::snapshots::take;
use crate::backend::{Backend, Fault, FaultRule, Operation};
use crate::block::BlockNum;
use crate::chunk::ChunkRef;
use crate::error::ErrorKind;
use crate::object::ObjectKey;
use crate::registry::NamedVolume;
use crate::verify::{Options, Severity, VolumeReport, verify_volume};
use crate::volume::VolumeName;

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

//! Commits against a backend in memory: every failure, and a crash after every effect.

mod clones;
mod compaction;
mod crashes;
mod damage;
mod flatten;
mod mutants;
mod points;
mod races;
mod rig;
mod rollbacks;
mod room;
mod snapshots;
mod space;
mod verify;

use futures::executor::block_on;

use crate::backend::{Backend, Fault, FaultRule, Operation};
use crate::commit::{CommitConfig, Effect, Event};
use crate::error::ErrorKind;
use crate::identity::{Epoch, ManifestNum};
use crate::object::ObjectKey;

use rig::{Rig, VOLUME, World, eager, put_raw, take_over};

/// A volume with one committed cut, and a second one begun.
fn begun() -> (World, Rig) {
    let mut world = World::new();
    let mut rig = world.open(CommitConfig::default());
    world.write(0..40);
    rig.commit_and_verify(&mut world);
    world.write((0..60).step_by(3));
    world.zero(30..35);
    rig.trace.clear();
    rig.start(&mut world);
    (world, rig)
}

fn finish(world: &mut World, rig: &mut Rig) {
    rig.run(world);
    assert!(rig.commit.is_idle());
    assert_eq!(world.verify(), Epoch(2));
    rig.check_shards();
    assert_eq!(rig.commit.status().failures, 0);
}

#[test]
fn a_cut_becomes_chunks_then_a_manifest_then_a_head_record_then_leaves() {
    let (mut world, mut rig) = begun();
    finish(&mut world, &mut rig);
    assert_eq!(rig.trace, ["chunk", "chunk", "manifest", "head", "publish"]);
    let head = rig.commit.head();
    assert_eq!((head.epoch, head.number), (Epoch(2), ManifestNum(4)));
    assert_eq!(world.head_record.unwrap().head, ManifestNum(4));
}

#[test]
fn chunks_are_put_a_few_at_a_time() {
    let mut world = World::new();
    let mut rig = world.open(CommitConfig {
        chunks_in_flight: 3,
        ..CommitConfig::default()
    });
    world.write(0..160);
    rig.start(&mut world);
    let mut out = Vec::new();
    while let Some(effect) = rig.commit.next_effect(0) {
        out.push(effect);
    }
    assert_eq!(out.len(), 3);
    // Answers may come in any order; each frees one place.
    for effect in out.drain(..).rev() {
        let event = rig.perform(&mut world, effect).unwrap();
        rig.commit.handle(event, 0);
    }
    assert_eq!(rig.commit.status().chunks_stored, 3);
    rig.run(&mut world);
    assert_eq!(world.verify(), Epoch(1));
}

/// Each fault alone, and several times in a row, delays the commit and breaks nothing.
#[test]
fn every_failure_is_tried_again_until_it_passes() {
    let put = Operation::PutIfAbsent;
    let (transient, full) = (ErrorKind::Transient, ErrorKind::Full);
    let faults = [
        (put, "chunks/", Fault::FailBefore(transient)),
        (put, "chunks/", Fault::FailAfter(transient)),
        (put, "chunks/", Fault::FailBefore(full)),
        (put, "manifests/", Fault::FailBefore(transient)),
        (put, "manifests/", Fault::FailBefore(full)),
        (put, "manifests/", Fault::FailAfter(transient)),
    ];
    for (operation, key, fault) in faults {
        for times in [1, 7] {
            let (mut world, mut rig) = begun();
            let mut rule = FaultRule::once(operation, key, fault);
            rule.times = times;
            world.backend.script(rule);
            rig.run(&mut world);
            let waited = rig.now_ms;
            assert!(waited >= 50, "no backoff after {fault:?} of {key}");
            finish(&mut world, &mut rig);
        }
    }
}

#[test]
fn a_lost_response_of_a_manifest_adopts_what_is_stored() {
    let (mut world, mut rig) = begun();
    let lost = Fault::FailAfter(ErrorKind::Transient);
    world
        .backend
        .script(FaultRule::once(Operation::PutIfAbsent, "manifests/", lost));
    // Reading it back fails too, and comes back damaged once.
    let failed = Fault::FailBefore(ErrorKind::Transient);
    world
        .backend
        .script(FaultRule::once(Operation::Get, "manifests/", failed));
    world.backend.script(FaultRule::once(
        Operation::Get,
        "manifests/",
        Fault::CorruptByte(50),
    ));
    finish(&mut world, &mut rig);
    let expected = "chunk chunk manifest manifest get get get head publish";
    assert_eq!(rig.trace.join(" "), expected);
    assert_eq!(rig.commit.head().number, ManifestNum(4));
}

#[test]
fn a_manifest_that_vanishes_again_is_put_again() {
    let (mut world, mut rig) = begun();
    put_raw(&world, ManifestNum(4), b"gone before it is read");
    while rig.trace.last() != Some(&"manifest") {
        rig.step(&mut world);
    }
    block_on(
        world
            .backend
            .delete(&ObjectKey::manifest(VOLUME, ManifestNum(4))),
    )
    .unwrap();
    finish(&mut world, &mut rig);
    assert_eq!(
        rig.trace[2..],
        ["manifest", "get", "manifest", "head", "publish"]
    );
}

#[test]
fn a_full_backend_is_reported_until_there_is_room() {
    let (mut world, mut rig) = begun();
    world.backend.set_capacity(Some(0));
    for _ in 0..20 {
        rig.step(&mut world);
    }
    let status = rig.commit.status();
    assert_eq!(status.phase, "chunks");
    assert_eq!(status.last_failure.unwrap().0, ErrorKind::Full);
    assert!(status.failures >= 18);
    world.backend.set_capacity(None);
    finish(&mut world, &mut rig);
}

#[test]
fn backoff_doubles_with_jitter_and_stays_bounded() {
    let (mut world, mut rig) = begun();
    world.backend.set_capacity(Some(0));
    let mut waits = Vec::new();
    for _ in 0..16 {
        let before = rig.now_ms;
        rig.step(&mut world);
        waits.push(rig.now_ms - before);
    }
    let config = CommitConfig::default();
    for (i, wait) in waits.iter().enumerate().skip(1) {
        let whole = (config.backoff_min_ms << (i - 1)).min(config.backoff_max_ms);
        assert!((whole / 2..=whole).contains(wait), "{waits:?}");
    }
}

#[test]
fn another_writer_fences() {
    let (mut world, mut rig) = begun();
    let other = take_over(&world, rig.commit.head(), 777);
    rig.run(&mut world);
    assert_eq!(rig.trace, ["chunk", "chunk", "manifest", "get", "fenced"]);
    assert_eq!(rig.commit.fenced_by(), Some(other.generation));
    assert_eq!(rig.commit.status().phase, "fenced");
    assert_eq!(
        world.head_record.unwrap().committed_epoch,
        Epoch(1),
        "its head is not ours"
    );
    // A later cut is ignored, whatever races with the fence.
    rig.start(&mut world);
    assert!(rig.next_effect().is_none() && !rig.commit.is_idle());
    assert_eq!(world.verify(), Epoch(1));
}

/// A copy of our data directory carries our token; it is another writer all the same.
#[test]
fn our_token_with_other_content_fences() {
    let (mut world, mut rig) = begun();
    let mut twin = rig
        .commit
        .head()
        .successor(crate::manifest::ManifestKind::Commit);
    twin.epoch = Epoch(9);
    block_on(world.backend.put_if_absent(&twin.object(), twin.encode())).unwrap();
    rig.run(&mut world);
    assert_eq!(rig.commit.fenced_by(), Some(twin.generation));
}

#[test]
fn rubbish_under_our_number_blocks_and_is_reported() {
    let (mut world, mut rig) = begun();
    put_raw(&world, ManifestNum(4), b"rubbish");
    for _ in 0..12 {
        rig.step(&mut world);
    }
    let status = rig.commit.status();
    assert_eq!(
        (status.phase, status.last_failure.unwrap().0),
        ("manifest", ErrorKind::Corrupt)
    );
    assert_eq!(world.head_record.unwrap().committed_epoch, Epoch(1));
}

#[test]
fn a_damaged_source_block_never_reaches_a_chunk() {
    let (mut world, mut rig) = begun();
    rig.rotten_reads = 5;
    rig.step(&mut world);
    let (kind, text) = rig.commit.status().last_failure.unwrap();
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.contains("CRC"), "{text}");
    finish(&mut world, &mut rig);
}

#[test]
fn wal_space_waits_for_the_head_record() {
    let (mut world, mut rig) = begun();
    rig.head_failures = 4;
    finish(&mut world, &mut rig);
    let expected = "chunk chunk manifest head head head head head publish";
    assert_eq!(rig.trace.join(" "), expected);
}

#[test]
fn trimming_what_was_never_written_stores_no_chunk() {
    let mut world = World::new();
    let mut rig = world.open(CommitConfig::default());
    world.zero(0..500);
    rig.commit_and_verify(&mut world);
    assert_eq!(rig.trace, ["manifest", "head", "publish"]);
}

/// Overwriting the same blocks for ever takes bounded space, and nothing needed is deleted.
#[test]
fn overwritten_chunks_are_condemned_deleted_and_dropped() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    let (mut chunks, mut parts) = (0, 0);
    for round in 0..40 {
        world.write(0..100);
        if round % 5 == 0 {
            world.zero(90..100);
        }
        rig.commit_and_verify(&mut world);
        let keys = world.backend.keys();
        let count = |folder| keys.iter().filter(|key| key.contains(folder)).count();
        (chunks, parts) = (chunks.max(count("chunks/")), parts.max(count("index/")));
    }
    assert!(rig.trace.contains(&"delete") && rig.trace.contains(&"index"));
    assert!(chunks < 50, "{chunks} chunks for 7 chunks of data");
    assert!(parts < 90, "{parts} index parts");
    // The ordinals are recycled too.
    let ordinals = rig
        .commit
        .base()
        .chunks()
        .map(|(ordinal, _)| ordinal.0)
        .max();
    assert!(ordinals.unwrap() < 60, "{ordinals:?}");
    // A writer that takes over later goes on deleting what this one condemned.
    let mut next = world.open(eager());
    for _ in 0..6 {
        world.write(0..1);
        next.commit_and_verify(&mut world);
    }
}

#[test]
fn failed_deletes_are_tried_again_and_hold_up_no_commit() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    let denied = Fault::FailBefore(ErrorKind::Io);
    let mut rule = FaultRule::once(Operation::Delete, "", denied);
    rule.times = u32::MAX;
    world.backend.script(rule);
    for _ in 0..12 {
        world.write(0..50);
        rig.start(&mut world);
        // The clock stands still: a commit waits for no delete.
        while let Some(effect) = rig.commit.next_effect(rig.now_ms) {
            let event = rig.perform(&mut world, effect).unwrap();
            rig.commit.handle(event, rig.now_ms);
        }
        assert!(rig.commit.is_idle());
        world.note_committed();
    }
    let status = rig.commit.status();
    assert_eq!((status.failures, status.retry_at_ms), (0, None));
    assert_eq!(status.delete_failure.unwrap().0, ErrorKind::Io);
    let chunks = |world: &World| {
        let keys = world.backend.keys();
        keys.iter().filter(|key| key.contains("chunks/")).count()
    };
    assert_eq!(chunks(&world), 12 * 4);
    world.backend.clear_script();
    world.write(0..50);
    rig.commit_and_verify(&mut world);
    assert!(chunks(&world) < 25 && rig.commit.status().delete_failure.is_none());
}

#[test]
fn the_same_seed_gives_the_same_objects() {
    let objects = || {
        let (mut world, mut rig) = begun();
        finish(&mut world, &mut rig);
        world.backend.keys()
    };
    assert_eq!(objects(), objects());
}

#[test]
fn settings_changed_otherwise_are_adopted_between_commits() {
    let (mut world, mut rig) = begun();
    finish(&mut world, &mut rig);
    world.note_committed();
    let mut grown = rig
        .commit
        .head()
        .successor(crate::manifest::ManifestKind::Configured);
    grown.settings.size_bytes *= 2;
    block_on(world.backend.put_if_absent(&grown.object(), grown.encode())).unwrap();
    rig.commit.adopt_head(grown.clone());
    world.write(70..80);
    rig.commit_and_verify(&mut world);
    assert_eq!(rig.commit.head().settings, grown.settings);
}

#[test]
#[should_panic(expected = "an answer to nothing")]
fn an_answer_to_nothing_is_a_bug_of_the_driver() {
    let (mut world, mut rig) = begun();
    while !matches!(rig.commit.status().phase, "manifest") {
        rig.step(&mut world);
    }
    let put = rig.next_effect().unwrap();
    assert!(matches!(put, Effect::PutManifest { .. }));
    let event = rig.perform(&mut world, put).unwrap();
    rig.commit.handle(event, 0);
    rig.commit.handle(Event::HeadSaved(Ok(())), 0);
}

/// A volume that is written a little makes a chunk, a manifest and at most one request more with
/// each commit, checkpoints and deletes included.
#[test]
fn a_trickle_makes_at_most_three_requests_a_commit() {
    let mut world = World::new();
    let mut rig = world.open(CommitConfig::default());
    let (mut indexes, mut deletes) = (0, 0);
    for round in 0..200u64 {
        world.write((0..10).map(|i| (round * 7 + i * 31) % 120));
        rig.trace.clear();
        rig.commit_and_verify(&mut world);
        let requests = |name: &&&str| !["head", "publish"].contains(*name);
        let made = rig.trace.iter().filter(requests).count();
        assert!(made <= 3, "commit {round}: {:?}", rig.trace);
        indexes += usize::from(rig.trace.contains(&"index"));
        deletes += usize::from(rig.trace.contains(&"delete"));
    }
    assert!(
        indexes > 2 && deletes > 2,
        "{indexes} checkpoints, {deletes} deletes"
    );
}

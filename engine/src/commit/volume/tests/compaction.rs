//! Compaction changes no byte of the volume or of a snapshot, frees what nothing needs, and leaves
//! the image whole wherever it ends.

use futures::executor::block_on;
use proptest::prelude::*;

use super::rig::{Rig, VOLUME, World, eager, take_over};
use super::snapshots::{delete, objects, take, verify_all};
use crate::backend::{Backend, Fault, FaultRule, Operation};
use crate::commit::{CommitConfig, CompactionPolicy, CompactionRead, Effect};
use crate::error::ErrorKind;

pub(super) const POLICY: CompactionPolicy = CompactionPolicy {
    threshold_percent: 60,
    freed_percent: 12,
    chunks_max: 4,
};

/// Chooses and reads.
fn read(world: &World, rig: &Rig) -> Option<CompactionRead> {
    let job = rig.commit.choose_compaction(&POLICY)?;
    Some(block_on(job.read(&world.backend)).unwrap())
}

/// Begins one compaction; whether there was anything to be done.
pub(super) fn begin(world: &World, rig: &mut Rig) -> bool {
    read(world, rig).is_some_and(|read| rig.commit.start_compaction(read))
}

/// The whole image is the same, and so are the shards'.
pub(super) fn check(world: &World, rig: &Rig) {
    assert_eq!(world.verify(), rig.commit.head().epoch);
    rig.check_shards();
    verify_all(world, rig);
}

/// Compacts and sweeps until there is nothing to be done.
pub(super) fn compact_all(world: &mut World, rig: &mut Rig) {
    for _ in 0..100 {
        if !begin(world, rig) {
            if !rig.commit.wants_sweep() {
                return;
            }
            rig.commit.start_sweep();
        }
        rig.run(world);
        check(world, rig);
    }
    panic!("compaction does not end: {:?}", rig.commit.usage(&POLICY));
}

/// Six chunks of which a third is live and a checkpoint holds the effect, and the newest chunks.
pub(super) fn sparse() -> (World, Rig) {
    let mut world = World::new();
    let mut rig = world.open(eager());
    world.write(0..96);
    rig.commit_and_verify(&mut world);
    world.write((0..96).filter(|block| block % 3 > 0));
    rig.commit_and_verify(&mut world);
    (world, rig)
}

#[test]
fn sparse_chunks_become_full_ones_and_are_deleted() {
    let (mut world, mut rig) = sparse();
    assert_eq!(objects(&world.backend, "chunks"), 10);
    assert_eq!(rig.commit.usage(&POLICY).sparse_chunks, 6);
    rig.trace.clear();
    assert!(begin(&world, &mut rig));
    rig.run(&mut world);
    check(&world, &rig);
    let head = rig.commit.head();
    // 32 blocks of 6 chunks are 2 full ones; their sources are condemned by the same manifest.
    assert_eq!((head.added.len(), head.condemned.len()), (2, 6));
    assert_eq!(rig.trace[..2], ["chunk", "chunk"]);
    compact_all(&mut world, &mut rig);
    assert_eq!(objects(&world.backend, "chunks"), 6);
    let usage = rig.commit.usage(&POLICY);
    assert_eq!((usage.sparse_chunks, usage.live_bytes), (0, 96 * 4104));
}

#[test]
fn a_chunk_that_cannot_be_read_is_set_aside_and_the_others_are_compacted() {
    let (mut world, mut rig) = sparse();
    let job = rig.commit.choose_compaction(&POLICY).unwrap();
    assert_eq!(job.sources().len(), 6);
    let lost = job.sources()[2].reference.key;
    let body = block_on(world.backend.get(&lost.object())).unwrap();
    block_on(world.backend.delete(&lost.object())).unwrap();
    let found = read(&world, &rig).unwrap();
    assert_eq!(found.unreadable.len(), 1);
    assert_eq!(found.unreadable[0].0, lost);
    assert!(rig.commit.start_compaction(found));
    rig.run(&mut world);
    assert_eq!(rig.commit.head().condemned.len(), 5);
    assert_eq!(rig.commit.usage(&POLICY).unreadable_chunks, 1);
    // It is not tried again, and is what it was.
    if let Some(again) = rig.commit.choose_compaction(&POLICY) {
        assert!(again.sources().iter().all(|s| s.reference.key != lost));
    }
    block_on(world.backend.put_if_absent(&lost.object(), body)).unwrap();
    check(&world, &rig);
    // The next writer compacts it, if it is there again by then.
    let mut rig = world.open(eager());
    compact_all(&mut world, &mut rig);
    assert_eq!(rig.commit.usage(&POLICY).sparse_chunks, 0);
}

/// A backend that does not answer says nothing about the chunk.
#[test]
fn a_compaction_whose_reads_fail_is_tried_again() {
    let (mut world, mut rig) = sparse();
    let job = rig.commit.choose_compaction(&POLICY).unwrap();
    let fault = Fault::FailBefore(ErrorKind::Transient);
    world.backend.script(FaultRule::nth(3, fault));
    assert!(block_on(job.read(&world.backend)).is_err());
    world.backend.clear_script();
    assert!(begin(&world, &mut rig));
    rig.run(&mut world);
    assert_eq!(rig.commit.head().condemned.len(), 6);
    check(&world, &rig);
}

#[test]
fn small_chunks_are_merged() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    for block in 0..12 {
        world.write([block * 7]);
        rig.commit_and_verify(&mut world);
    }
    compact_all(&mut world, &mut rig);
    // Less than a full chunk is let go by the cuts that come anyway.
    for _ in 0..3 {
        world.write([0]);
        rig.commit_and_verify(&mut world);
    }
    let chunks = objects(&world.backend, "chunks");
    assert!(chunks <= 6, "{chunks} chunks hold 12 blocks");
}

#[test]
fn zeroed_ranges_free_their_space() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    world.write(0..160);
    rig.commit_and_verify(&mut world);
    world.zero((0..160).filter(|block| block % 4 > 0));
    rig.commit_and_verify(&mut world);
    assert_eq!(objects(&world.backend, "chunks"), 11);
    compact_all(&mut world, &mut rig);
    let chunks = objects(&world.backend, "chunks");
    assert!(chunks <= 4, "{chunks} chunks hold 40 blocks");
}

/// Rewriting what a snapshot needs would free nothing; when it is deleted, it does.
#[test]
fn chunks_that_a_snapshot_needs_stay_until_it_is_deleted() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    world.write(0..96);
    rig.commit_and_verify(&mut world);
    let snapshot = take(&mut world, &mut rig, "kept");
    world.write((0..96).filter(|block| block % 3 > 0));
    rig.commit_and_verify(&mut world);
    assert!(!begin(&world, &mut rig));
    // What came after it is compacted nevertheless.
    world.write((0..96).filter(|block| block % 9 > 0));
    rig.commit_and_verify(&mut world);
    world.write((0..96).filter(|block| block % 9 > 2));
    rig.commit_and_verify(&mut world);
    compact_all(&mut world, &mut rig);
    let held = objects(&world.backend, "chunks");
    assert!(
        (12..=14).contains(&held),
        "{held} chunks for twice 96 blocks"
    );
    delete(&world, &mut rig, &snapshot);
    world.write([0]);
    rig.commit_and_verify(&mut world);
    compact_all(&mut world, &mut rig);
    assert!(objects(&world.backend, "chunks") <= 8);
}

/// Cuts between reading and committing win, whatever they did to the blocks that were read.
#[test]
fn what_was_written_meanwhile_is_not_undone() {
    let (mut world, mut rig) = sparse();
    let read = read(&world, &rig).expect("there is something to be rewritten");
    world.write((0..48).step_by(6));
    world.zero((3..48).step_by(6));
    rig.commit_and_verify(&mut world);
    assert!(rig.commit.start_compaction(read));
    rig.run(&mut world);
    check(&world, &rig);
    assert_eq!(rig.commit.head().added.len(), 1, "16 of 32 blocks are left");
}

#[test]
fn ordinals_that_name_other_chunks_meanwhile_are_recognised() {
    let (mut world, mut rig) = sparse();
    let read = read(&world, &rig).expect("there is something to be rewritten");
    for _ in 0..6 {
        world.write(0..96);
        rig.commit_and_verify(&mut world);
    }
    assert!(!rig.commit.start_compaction(read));
    check(&world, &rig);
}

/// The bucket is full or stumbles: the cut that may wait behind it goes first, and nothing is left.
#[test]
fn a_compaction_that_cannot_store_a_chunk_is_given_up() {
    for fault in [
        Fault::FailBefore(ErrorKind::Full),
        Fault::FailAfter(ErrorKind::Transient),
    ] {
        let (mut world, mut rig) = sparse();
        let (before, head) = (objects(&world.backend, "chunks"), rig.commit.head().clone());
        world
            .backend
            .script(FaultRule::once(Operation::PutIfAbsent, "chunks/", fault));
        assert!(begin(&world, &mut rig));
        rig.run(&mut world);
        assert!(rig.commit.is_idle());
        assert_eq!(
            (rig.commit.head(), rig.commit.status().failures),
            (&head, 0)
        );
        assert_eq!(objects(&world.backend, "chunks"), before);
        check(&world, &rig);
        assert!(begin(&world, &mut rig), "it is tried again");
        rig.run(&mut world);
        check(&world, &rig);
    }
}

#[test]
fn a_crash_at_any_step_of_a_compaction_leaves_the_image() {
    for steps in 0..40 {
        let (mut world, mut rig) = sparse();
        assert!(begin(&world, &mut rig));
        let ended = (0..steps).any(|_| !rig.step(&mut world));
        rig = world.open(eager());
        check(&world, &rig);
        world.write((0..96).step_by(5));
        rig.commit_and_verify(&mut world);
        compact_all(&mut world, &mut rig);
        if ended {
            return;
        }
    }
    panic!("a compaction has fewer steps");
}

/// The manifest of a compactor that paused while another appliance took the volume over comes too
/// late, and so do its deletes: what it wrote is named by nothing.
#[test]
fn a_paused_compactor_loses_the_race() {
    let (mut world, mut rig) = sparse();
    assert!(begin(&world, &mut rig));
    let mut late = None;
    while late.is_none() {
        let effect = rig.next_effect().expect("its manifest comes");
        match &effect {
            Effect::PutManifest { .. } => late = Some(effect),
            _ => {
                let event = rig.perform(&mut world, effect).expect("it is answered");
                rig.commit.handle(event, rig.now_ms);
            }
        }
    }
    let mut other = world.open(eager());
    compact_all(&mut world, &mut other);
    let event = rig.perform(&mut world, late.expect("it is late"));
    rig.commit
        .handle(event.expect("it is answered"), rig.now_ms);
    while rig.step(&mut world) {}
    assert!(rig.commit.fenced_by().is_some());
    check(&world, &other);
}

/// Deletes of a compaction come after a later commit; a writer that pauses before one and lives on
/// as a zombie deletes only what its own manifests had condemned, which no later writer can name.
#[test]
fn a_paused_compactors_late_delete_is_harmless() {
    let (mut world, mut rig) = sparse();
    assert!(begin(&world, &mut rig));
    rig.run(&mut world);
    rig.commit.start_sweep();
    let delete = loop {
        let effect = rig.next_effect().expect("its delete comes");
        if matches!(effect, Effect::Delete { .. }) {
            break effect;
        }
        let event = rig.perform(&mut world, effect).expect("it is answered");
        rig.commit.handle(event, rig.now_ms);
    };
    let head = rig.commit.head().clone();
    take_over(&world, &head, 77);
    let mut other = world.open(eager());
    world.write((0..96).step_by(2));
    other.commit_and_verify(&mut world);
    compact_all(&mut world, &mut other);
    let _ = rig.perform(&mut world, delete);
    check(&world, &other);
    let reopened = world.open(CommitConfig::default());
    check(&world, &reopened);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u64),
    Zero(u64, u64),
    Commit,
    /// A compaction that ends after so many effects, and then the writer with it if it did not end.
    Compact(usize),
    Snapshot,
    DeleteSnapshot(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0u64..120, 1u64..60, 1u64..4).prop_map(|(a, n, s)| Step::Write(a, n, s)),
        2 => (0u64..120, 1u64..60).prop_map(|(a, n)| Step::Zero(a, n)),
        4 => Just(Step::Commit),
        4 => prop_oneof![1 => 0usize..9, 3 => Just(usize::MAX)].prop_map(Step::Compact),
        1 => Just(Step::Snapshot),
        1 => (0usize..4).prop_map(Step::DeleteSnapshot),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn play(world: &mut World, rig: &mut Rig, step: &Step, number: usize) {
    match *step {
        Step::Write(from, count, stride) => {
            world.write((from..from + count).step_by(stride as usize));
        }
        Step::Zero(from, count) => world.zero(from..from + count),
        Step::Commit => rig.commit_and_verify(world),
        Step::Compact(effects) => {
            if begin(world, rig) {
                let crashes = (0..effects).all(|_| rig.step(world));
                if crashes {
                    *rig = world.open(eager());
                }
            } else if rig.commit.wants_sweep() {
                rig.commit.start_sweep();
                rig.run(world);
            }
        }
        Step::Snapshot => _ = take(world, rig, &format!("s{number}")),
        Step::DeleteSnapshot(at) => {
            let snapshot = rig.commit.snapshots().iter().nth(at).cloned();
            snapshot.iter().for_each(|s| delete(world, rig, s));
        }
        Step::Reopen => *rig = world.open(eager()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Writes, zeroes, cuts, compactions, snapshots, crashes within compactions, openings: after
    /// every step the bucket holds the last cut and every snapshot to the byte, and live blocks are
    /// counted exactly; in the end what nothing needs is gone.
    #[test]
    fn random_histories_keep_every_image(steps in steps()) {
        let mut world = World::new();
        let mut rig = world.open(eager());
        for (number, step) in steps.iter().enumerate() {
            play(&mut world, &mut rig, step, number);
            check(&world, &rig);
        }
        let snapshots: Vec<_> = rig.commit.snapshots().iter().cloned().collect();
        snapshots.iter().for_each(|snapshot| delete(&world, &mut rig, snapshot));
        rig.commit_and_verify(&mut world);
        compact_all(&mut world, &mut rig);
        let prefix = format!("v1/{VOLUME}/chunks/");
        let listed = block_on(world.backend.list(&prefix, None, 100_000)).unwrap();
        for (_, entry) in rig.commit.base().chunks() {
            let key = entry.reference.key.to_string();
            prop_assert!(listed.iter().any(|object| object.key == key), "{key} is gone");
        }
    }
}

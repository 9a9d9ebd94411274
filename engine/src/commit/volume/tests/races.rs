//! The races of deletes, one test each: whoever pauses, and whatever lands late, nothing that
//! anything names is lost. The simulator meets the same ones at random (`sim/race.rs`).

use futures::executor::block_on;
use futures::future::FutureExt;

use super::clones::clone_of;
use super::rig::{Rig, World};
use super::rollbacks::roll_back;
use super::snapshots::{churn, fine, take, verify_all};
use super::space::{free_all, sealed, sweep};
use crate::backend::{Fault, FaultRule, Operation};
use crate::commit::Effect;
use crate::error::ErrorKind;
use crate::failpoint;
use crate::identity::WriterToken;
use crate::manifest::ManifestKind;
use crate::registry::{
    CloneLayout, Freeing, VolumeSeed, create_clone, delete_snapshot, delete_volume,
    deleted_volumes, mark_again, read_head, resolve_name,
};
use crate::snapshot::Snapshot;
use crate::volume::VolumeName;

/// Performs effects until one of this kind is due, which is held back.
fn until(world: &mut World, rig: &mut Rig, wanted: impl Fn(&Effect) -> bool) -> Effect {
    for _ in 0..10_000 {
        match rig.next_effect() {
            Some(effect) if wanted(&effect) => return effect,
            Some(effect) => {
                let event = rig.perform(world, effect).expect("it is answered");
                rig.commit.handle(event, rig.now_ms);
            }
            None => {
                world.note_committed();
                world.write(0..64);
                rig.start(world);
            }
        }
    }
    panic!("the effect does not come");
}

/// The paused writer goes on with the effect, and with all that follows.
fn go_on(world: &mut World, rig: &mut Rig, late: Effect) {
    if let Some(event) = rig.perform(world, late) {
        rig.commit.handle(event, rig.now_ms);
    }
    while rig.step(world) {}
}

/// A volume with a snapshot, whose writer pauses with a delete that is due.
fn paused_before_a_delete() -> (World, Rig, Snapshot, Effect) {
    let mut world = World::new();
    let mut rig = world.open(fine());
    churn(&mut world, &mut rig, 4);
    world.write(5..40);
    let snapshot = take(&mut world, &mut rig, "kept");
    churn(&mut world, &mut rig, 4);
    let delete = until(&mut world, &mut rig, |e| matches!(e, Effect::Delete { .. }));
    (world, rig, snapshot, delete)
}

#[test]
pub(super) fn a_paused_writers_late_delete_after_a_rollback_elsewhere_is_harmless() {
    let (mut world, mut paused, snapshot, delete) = paused_before_a_delete();
    let mut other = world.open(fine());
    roll_back(&mut world, &mut other, &snapshot, 7);
    go_on(&mut world, &mut paused, delete);
    world.verify();
    verify_all(&world, &other);
    other = world.open(fine());
    churn(&mut world, &mut other, 3);
    sweep(&world, &other, true).unwrap();
    verify_all(&world, &other);
}

#[test]
pub(super) fn a_paused_writers_late_delete_after_a_clone_elsewhere_is_harmless() {
    let (mut world, mut paused, snapshot, delete) = paused_before_a_delete();
    let mut other = world.open(fine());
    let mut clone = clone_of(&world, &snapshot, 7);
    go_on(&mut world, &mut paused, delete);
    clone.verify();
    let mut rig = clone.open(fine());
    clone.write(1..9);
    rig.commit_and_verify(&mut clone);
    churn(&mut world, &mut other, 5);
    sweep(&world, &other, true).unwrap();
    clone.verify();
    verify_all(&world, &other);
}

/// The pin of a clone and the entry that closes the log want the same number; one of them wins,
/// and only then may the snapshot's objects be condemned.
#[test]
pub(super) fn a_clones_pin_and_a_condemnation_exclude_each_other() {
    for pin_first in [true, false] {
        let mut world = World::new();
        let mut rig = world.open(fine());
        churn(&mut world, &mut rig, 4);
        let snapshot = take(&mut world, &mut rig, "s");
        let head = rig.commit.head().clone();
        let name = VolumeName::parse("clone7").unwrap();
        let seed = VolumeSeed {
            id: crate::identity::VolumeId(7),
            token: WriterToken(1007),
        };
        let backend = world.backend.clone();
        let of = (world.volume, &snapshot);
        let cloning = create_clone(&backend, seed, &name, of, CloneLayout::default());
        let mut cloning = Box::pin(cloning);
        let mut deleting = Box::pin(delete_snapshot(&backend, &head, &snapshot));
        // Both have looked at the log; the put of the one waits while the other is done.
        backend.script(FaultRule::once(
            Operation::PutIfAbsent,
            "snapshots/",
            Fault::Hold,
        ));
        let (cloned, deleted) = match pin_first {
            true => {
                assert!((&mut deleting).now_or_never().is_none());
                let cloned = block_on(&mut cloning);
                backend.release_next();
                (cloned.is_ok(), block_on(deleting))
            }
            false => {
                assert!((&mut cloning).now_or_never().is_none());
                let deleted = block_on(&mut deleting);
                backend.release_next();
                (block_on(cloning).is_ok(), deleted)
            }
        };
        assert_eq!((cloned, deleted.is_ok()), (pin_first, !pin_first));
        if let Ok(next) = deleted {
            rig.commit.adopt_head(next);
        }
        churn(&mut world, &mut rig, 6);
        if cloned {
            let clone = world.cloned(seed.id, snapshot.epoch);
            clone.verify();
            verify_all(&world, &rig);
        }
    }
}

/// A creation that paused before its clone had a name: whoever wanted the snapshot deleted has made
/// the clone impossible, and was refused because of another one. The late creator is not told that
/// its clone exists.
#[test]
pub(super) fn a_clone_that_was_given_up_before_it_had_its_name_does_not_come_to_be() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    churn(&mut world, &mut rig, 4);
    let snapshot = take(&mut world, &mut rig, "s");
    let other = clone_of(&world, &snapshot, 8);
    let name = VolumeName::parse("late").unwrap();
    let seed = VolumeSeed {
        id: crate::identity::VolumeId(7),
        token: WriterToken(1007),
    };
    let create = || {
        let of = (world.volume, &snapshot);
        let creation = create_clone(&world.backend, seed, &name, of, CloneLayout::default());
        block_on(creation)
    };
    failpoint::fail_next("clone.name");
    assert!(create().is_err());
    failpoint::fail_none();
    let refused = block_on(delete_snapshot(
        &world.backend,
        rig.commit.head(),
        &snapshot,
    ));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(create().unwrap_err().kind(), ErrorKind::Busy);
    let bound = block_on(resolve_name(&world.backend, &name)).unwrap();
    assert_eq!(bound, None);
    free_all(&world).unwrap();
    assert_eq!(sealed(&world, seed.id), []);
    other.verify();
}

/// The commit of a paused writer against the deletion of its volume elsewhere: it is fenced by the
/// tombstone at the latest, and what it stores meanwhile is freed by a mark of its own.
#[test]
pub(super) fn a_volume_deleted_elsewhere_fences_a_paused_commit_and_is_freed_again() {
    let mut world = World::new();
    let mut paused = world.open(fine());
    churn(&mut world, &mut paused, 4);
    world.write(0..64);
    paused.start(&mut world);
    let chunk = until(&mut world, &mut paused, |e| {
        matches!(e, Effect::PutChunk(_))
    });
    let other = world.open(fine());
    block_on(delete_volume(&world.backend, other.commit.head())).unwrap();
    free_all(&world).unwrap();
    go_on(&mut world, &mut paused, chunk);
    assert!(paused.commit.fenced_by().is_some());
    let head = block_on(read_head(&world.backend, world.volume, None)).unwrap();
    assert_eq!(head.kind, ManifestKind::Tombstone);
    assert!(!sealed(&world, world.volume).is_empty());
    // As the appliance does when it learns why it is fenced.
    block_on(mark_again(&world.backend, &head)).unwrap();
    free_all(&world).unwrap();
    assert_eq!(sealed(&world, world.volume), []);
}

/// What a paused writer stores while its volume is being freed elsewhere, at whatever moment of
/// that: the look may have missed it, and the writer's own mark outlives the look.
#[test]
pub(super) fn what_is_stored_beside_the_last_look_is_freed_by_a_mark_of_its_own() {
    for steps in 0.. {
        let mut world = World::new();
        let mut paused = world.open(fine());
        churn(&mut world, &mut paused, 4);
        world.write(0..64);
        paused.start(&mut world);
        let chunk = until(&mut world, &mut paused, |e| {
            matches!(e, Effect::PutChunk(_))
        });
        let other = world.open(fine());
        block_on(delete_volume(&world.backend, other.commit.head())).unwrap();
        let mut freeing = block_on(Freeing::begin(&world.backend, world.volume)).unwrap();
        for _ in 0..steps {
            if !freeing.is_over() {
                block_on(freeing.step(&world.backend, 7)).unwrap();
            }
        }
        let was_over = freeing.is_over();
        go_on(&mut world, &mut paused, chunk);
        let head = block_on(read_head(&world.backend, world.volume, None)).unwrap();
        block_on(mark_again(&world.backend, &head)).unwrap();
        while !freeing.is_over() {
            block_on(freeing.step(&world.backend, 7)).unwrap();
        }
        free_all(&world).unwrap();
        assert_eq!(sealed(&world, world.volume), [], "after {steps} steps");
        assert_eq!(block_on(deleted_volumes(&world.backend)).unwrap(), []);
        if was_over {
            break;
        }
    }
}

/// The other order: the paused writer owns the volume still, its commit comes first, and the
/// deletion by a stale head is refused. Nothing is freed.
#[test]
pub(super) fn a_commit_that_comes_before_the_tombstone_fences_the_deletion() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    churn(&mut world, &mut rig, 4);
    let stale = rig.commit.head().clone();
    let mut other = world.open(fine());
    world.write(3..50);
    other.commit_and_verify(&mut world);
    let refused = block_on(delete_volume(&world.backend, &stale)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    let refused = block_on(Freeing::begin(&world.backend, world.volume)).err();
    assert_eq!(refused.unwrap().kind(), ErrorKind::Busy);
    world.verify();
}

/// Deletes and the manifest that condemns lose their responses: they are repeated, and nothing else
/// is deleted by that.
#[test]
pub(super) fn lost_responses_of_condemnations_and_deletes_are_repeated_without_harm() {
    for lost in ["manifests/", "chunks/", "index/"] {
        for nth in 0..6 {
            let mut world = World::new();
            let mut rig = world.open(fine());
            churn(&mut world, &mut rig, 3);
            world.write(5..40);
            take(&mut world, &mut rig, "kept");
            world.backend.script(FaultRule {
                operation: None,
                key_contains: lost.to_owned(),
                skip: nth,
                times: 3,
                fault: Fault::FailAfter(ErrorKind::Transient),
            });
            for _ in 0..4 {
                world.write(0..64);
                rig.start(&mut world);
                rig.run(&mut world);
                world.note_committed();
            }
            world.backend.clear_script();
            rig.commit_and_verify(&mut world);
            verify_all(&world, &rig);
            let mut next = world.open(fine());
            churn(&mut world, &mut next, 3);
            verify_all(&world, &next);
            let left = sweep(&world, &next, false).unwrap();
            assert_eq!(left.orphans.objects, 0);
        }
    }
}

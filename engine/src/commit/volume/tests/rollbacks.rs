//! A volume that was rolled back reads as its snapshot, keeps all its snapshots and clones, and
//! what became idle is freed.

use futures::executor::block_on;

use super::clones::clone_of;
use super::rig::{Rig, World, take_over};
use super::snapshots::{churn, fine, objects, take, verify_all};
use crate::backend::{Fault, FaultRule};
use crate::error::{Error, ErrorKind};
use crate::identity::Epoch;
use crate::manifest::{Manifest, ManifestKind};
use crate::registry::{RollbackWish, prepare_rollback, put_rollback, read_history};
use crate::snapshot::{KeptImage, Snapshot};
use crate::timestamp::UnixMs;

fn try_roll_back(world: &World, rig: &Rig, to: &Snapshot, seed: u64) -> Result<Manifest, Error> {
    try_roll_back_to(world, rig, KeptImage::Snapshot(to.clone()), seed)
}

pub(super) fn try_roll_back_to(
    world: &World,
    rig: &Rig,
    to: KeptImage,
    seed: u64,
) -> Result<Manifest, Error> {
    let (backend, head) = (&world.backend, rig.commit.head());
    let wish = RollbackWish {
        to,
        epoch: world.beyond(),
        now: UnixMs(5),
        seed,
    };
    let next = block_on(prepare_rollback(backend, head, &wish))?;
    block_on(put_rollback(backend, &next))
}

/// Rolls the volume back; what was written and not committed is gone. Opens it anew.
pub(super) fn roll_back(world: &mut World, rig: &mut Rig, to: &Snapshot, seed: u64) {
    let stored = try_roll_back(world, rig, to, seed).unwrap();
    world.rolled_back(to.epoch, stored.epoch);
    *rig = world.open(fine());
}

#[test]
fn a_volume_goes_back_and_forth_between_its_snapshots() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    world.write(0..64);
    churn(&mut world, &mut rig, 5);
    let first = take(&mut world, &mut rig, "first");
    let mut clone = clone_of(&world, &first, 7);
    let mut clone_rig = clone.open(fine());
    world.zero(0..32);
    churn(&mut world, &mut rig, 5);
    let second = take(&mut world, &mut rig, "second");
    churn(&mut world, &mut rig, 5);
    for (round, to) in (0..).zip([&first, &second, &first, &first, &second]) {
        world.write(3..7);
        roll_back(&mut world, &mut rig, to, round);
        assert_eq!(world.verify(), rig.commit.head().epoch);
        verify_all(&world, &rig);
        churn(&mut world, &mut rig, 4);
        world.write([round]);
        rig.commit_and_verify(&mut world);
        verify_all(&world, &rig);
        churn(&mut clone, &mut clone_rig, 1);
    }
    assert_eq!(rig.commit.snapshots().len(), 2);
    let history = block_on(read_history(&world.backend, world.volume, None)).unwrap();
    assert!(history.head().generation > second.generation);
}

/// What the volume has written since is freed, but for what snapshots need.
#[test]
fn a_rollback_gives_space_back() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    world.write(0..64);
    churn(&mut world, &mut rig, 5);
    let first = take(&mut world, &mut rig, "first");
    let chunks = objects(&world.backend, "chunks");
    for block in 0..30 {
        world.write([block, 1000 + block]);
        rig.commit_and_verify(&mut world);
    }
    let grown = objects(&world.backend, "chunks");
    roll_back(&mut world, &mut rig, &first, 1);
    for _ in 0..4 {
        world.write([0]);
        rig.commit_and_verify(&mut world);
    }
    let left = objects(&world.backend, "chunks");
    assert!(
        left <= chunks + 4 && left < grown,
        "{chunks} {grown} {left}"
    );
    verify_all(&world, &rig);
}

/// Every request of a rollback fails once: nothing has changed, or all, and it can be repeated.
#[test]
fn a_rollback_is_all_or_nothing() {
    for fault in [
        Fault::FailBefore(ErrorKind::Transient),
        Fault::FailAfter(ErrorKind::Transient),
    ] {
        for nth in 0.. {
            let mut world = World::new();
            let mut rig = world.open(fine());
            world.write(0..40);
            churn(&mut world, &mut rig, 3);
            let snapshot = take(&mut world, &mut rig, "s");
            churn(&mut world, &mut rig, 3);
            world.backend.script(FaultRule::nth(nth, fault));
            let failed = try_roll_back(&world, &rig, &snapshot, 1).is_err();
            world.backend.clear_script();
            if !failed && nth > 30 {
                break;
            }
            let history = block_on(read_history(&world.backend, world.volume, None)).unwrap();
            let head = history.head();
            if head.kind == ManifestKind::RolledBack {
                world.rolled_back(snapshot.epoch, head.epoch);
                rig = world.open(fine());
            } else {
                // The writer goes on as if nothing had happened, or tries again.
                world.verify();
                match nth % 2 {
                    0 => roll_back(&mut world, &mut rig, &snapshot, 2),
                    _ => churn(&mut world, &mut rig, 1),
                }
            }
            world.verify();
            churn(&mut world, &mut rig, 2);
            verify_all(&world, &rig);
        }
    }
}

#[test]
fn a_writer_that_lost_the_volume_rolls_nothing_back() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    world.write(0..40);
    let snapshot = take(&mut world, &mut rig, "s");
    churn(&mut world, &mut rig, 2);
    let (backend, head) = (&world.backend, rig.commit.head().clone());
    let wish = RollbackWish {
        to: KeptImage::Snapshot(snapshot.clone()),
        epoch: Epoch(99),
        now: UnixMs(5),
        seed: 1,
    };
    let prepared = block_on(prepare_rollback(backend, &head, &wish)).unwrap();
    take_over(&world, &head, 77);
    let error = block_on(put_rollback(backend, &prepared)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let error = try_roll_back(&world, &rig, &snapshot, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    world.verify();
}

/// A clone goes back to a snapshot of its own that names its parent's chunks, which it has
/// forgotten since.
#[test]
fn a_clone_goes_back_to_what_it_shared() {
    let mut parent = World::new();
    let mut parent_rig = parent.open(fine());
    parent.write(0..64);
    churn(&mut parent, &mut parent_rig, 4);
    let golden = take(&mut parent, &mut parent_rig, "golden");
    let mut clone = clone_of(&parent, &golden, 7);
    let mut rig = clone.open(fine());
    clone.write(0..5);
    let mixed = take(&mut clone, &mut rig, "mixed");
    churn(&mut parent, &mut parent_rig, 6);
    churn(&mut clone, &mut rig, 12);
    roll_back(&mut clone, &mut rig, &mixed, 1);
    clone.verify();
    churn(&mut parent, &mut parent_rig, 6);
    clone.write(60..64);
    rig.commit_and_verify(&mut clone);
    verify_all(&clone, &rig);
}

//! Clones read as their snapshots and stay independent of their parents, to any depth, through
//! checkpoints, garbage collection, crashes, other writers and deletions.

use std::collections::BTreeSet;

use futures::executor::block_on;
use proptest::prelude::*;

use super::flatten;
use super::rig::{Rig, VOLUME, World};
use super::rollbacks::roll_back;
use super::snapshots::{churn, fine, name, objects, take, verify_all};
use super::space::{free_all, sealed, sweep};
use crate::backend::{Fault, FaultRule};
use crate::error::{Error, ErrorKind};
use crate::identity::{VolumeId, WriterToken};
use crate::manifest::Manifest;
use crate::registry::{
    CloneLayout, VolumeSeed, clones_of, create_clone, delete_snapshot, delete_volume, read_history,
    read_pins, resolve_name,
};
use crate::snapshot::Snapshot;
use crate::volume::VolumeName;

/// Indices are shared however small they are.
pub(super) const SHARING: CloneLayout = CloneLayout {
    part_bytes: 40,
    share_above_bytes: 0,
};

pub(super) fn volume_name(id: u64) -> VolumeName {
    VolumeName::parse(&format!("clone{id}")).unwrap()
}

pub(super) fn seed(id: u64) -> VolumeSeed {
    VolumeSeed {
        id: VolumeId(id),
        token: WriterToken(id + 1000),
    }
}

fn try_clone(
    world: &World,
    snapshot: &Snapshot,
    id: u64,
    layout: CloneLayout,
) -> Result<Manifest, Error> {
    let (name, of) = (volume_name(id), (world.volume, snapshot));
    let creation = create_clone(&world.backend, seed(id), &name, of, layout);
    block_on(creation)
}

pub(super) fn clone_of(world: &World, snapshot: &Snapshot, id: u64) -> World {
    let layout = match id.is_multiple_of(3) {
        true => CloneLayout::default(),
        false => SHARING,
    };
    let first = try_clone(world, snapshot, id, layout).unwrap();
    let origin = first.origin.unwrap();
    assert_eq!(
        (origin.volume, origin.snapshot),
        (world.volume, snapshot.id)
    );
    world.cloned(VolumeId(id), snapshot.epoch)
}

fn delete_of(world: &World, rig: &Rig, snapshot: &Snapshot) -> Result<Manifest, Error> {
    block_on(delete_snapshot(&world.backend, rig.commit.head(), snapshot))
}

#[test]
fn both_sides_of_a_clone_go_their_own_ways() {
    let mut parent = World::new();
    let mut rig = parent.open(fine());
    parent.write(0..64);
    churn(&mut parent, &mut rig, 7);
    let snapshot = take(&mut parent, &mut rig, "golden");
    let mut clone = clone_of(&parent, &snapshot, 7);
    let mut clone_rig = clone.open(fine());
    // The index of the parent is shared, and so is every chunk.
    assert!(
        clone_rig
            .commit
            .parts
            .iter()
            .any(|p| p.key.volume == VOLUME)
    );
    let is_foreign = |rig: &Rig| {
        let chunks = rig.commit.base().chunks();
        chunks
            .filter(|(_, c)| c.reference.key.volume == VOLUME)
            .count()
    };
    assert!(is_foreign(&clone_rig) > 0);
    // The parent overwrites all, the clone some: nothing of the other is to be seen.
    churn(&mut parent, &mut rig, 8);
    clone.write(3..9);
    clone_rig.commit_and_verify(&mut clone);
    let error = delete_of(&parent, &rig, &snapshot).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("clone7"), "{error}");
    clone.verify();
    // A clone that has overwritten all names nothing of its parent, and never condemned it.
    let before = objects(&parent.backend, "chunks");
    churn(&mut clone, &mut clone_rig, 12);
    assert_eq!(is_foreign(&clone_rig), 0);
    assert!(
        clone_rig
            .commit
            .parts
            .iter()
            .all(|p| p.key.volume == clone.volume)
    );
    assert_eq!(objects(&parent.backend, "chunks"), before);
    verify_all(&parent, &rig);
    // Only a deleted clone lets go of the snapshot.
    block_on(delete_volume(&clone.backend, clone_rig.commit.head())).unwrap();
    let next = delete_of(&parent, &rig, &snapshot).unwrap();
    rig.commit.adopt_head(next);
    churn(&mut parent, &mut rig, 8);
    assert!(objects(&parent.backend, "chunks") < before);
}

#[test]
fn a_chain_of_clones_reads_without_walking_it() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    world.write(0..64);
    churn(&mut world, &mut rig, 3);
    for depth in 1..=12 {
        let snapshot = take(&mut world, &mut rig, &format!("s{depth}"));
        churn(&mut world, &mut rig, 2);
        let mut clone = clone_of(&world, &snapshot, depth);
        rig = clone.open(fine());
        clone.write([depth * 4]);
        rig.commit_and_verify(&mut clone);
        world = clone;
    }
    // The last one's history is its own, and begins at its first manifest at the latest.
    let history = block_on(read_history(&world.backend, world.volume, None)).unwrap();
    assert!(history.manifests.iter().all(|m| m.volume == world.volume));
    world.verify();
}

/// Every operation of a creation fails once, before or after its effect, and it is repeated, or it
/// is given up and the snapshot deleted.
#[test]
fn a_clone_can_be_repeated_and_given_up_at_every_step() {
    for fault in [
        Fault::FailBefore(ErrorKind::Transient),
        Fault::FailAfter(ErrorKind::Transient),
    ] {
        for nth in 0.. {
            let mut parent = World::new();
            let mut rig = parent.open(fine());
            parent.write(0..40);
            churn(&mut parent, &mut rig, 4);
            let snapshot = take(&mut parent, &mut rig, "s");
            parent.backend.script(FaultRule::nth(nth, fault));
            let failed = try_clone(&parent, &snapshot, 7, SHARING).is_err();
            parent.backend.clear_script();
            if !failed && nth > 20 {
                break;
            }
            // Given up: the snapshot can be deleted unless the clone came to be, and the creation
            // cannot go on.
            if nth % 2 == 0 {
                let exists = block_on(resolve_name(&parent.backend, &volume_name(7))).unwrap();
                let deleted = delete_of(&parent, &rig, &snapshot);
                assert_eq!(deleted.is_ok(), exists.is_none(), "step {nth}");
                if let Ok(next) = deleted {
                    rig.commit.adopt_head(next);
                    assert!(try_clone(&parent, &snapshot, 7, SHARING).is_err());
                    churn(&mut parent, &mut rig, 3);
                    continue;
                }
            }
            let mut clone = clone_of(&parent, &snapshot, 7);
            clone.verify();
            let mut clone_rig = clone.open(fine());
            churn(&mut parent, &mut rig, 4);
            clone.write(5..8);
            clone_rig.commit_and_verify(&mut clone);
            let pins = read_pins(&parent.backend, parent.volume, snapshot.id);
            assert!(block_on(pins).unwrap().pinned.contains(&clone.volume));
        }
    }
}

/// A paused creation goes on after the snapshot was deleted: it fails, whatever it had done.
#[test]
fn a_paused_creation_does_not_become_a_clone_of_a_deleted_snapshot() {
    for held in ["snapshots/", "manifests/", "names/"] {
        let mut parent = World::new();
        let mut rig = parent.open(fine());
        parent.write(0..40);
        let snapshot = take(&mut parent, &mut rig, "s");
        let hold = FaultRule::once(crate::backend::Operation::PutIfAbsent, held, Fault::Hold);
        parent.backend.script(hold);
        let (name, of) = (volume_name(7), (parent.volume, &snapshot));
        let creation = create_clone(&parent.backend, seed(7), &name, of, SHARING);
        let mut creation = Box::pin(creation);
        let waits = futures::FutureExt::now_or_never(&mut creation).is_none();
        assert!(waits, "{held}");
        let next = delete_of(&parent, &rig, &snapshot).unwrap();
        rig.commit.adopt_head(next);
        parent.backend.release_next();
        // The name may be bound to what is deleted; it is nobody's.
        let created = block_on(creation);
        if let Ok(first) = created {
            let head = block_on(read_history(&parent.backend, first.volume, None)).unwrap();
            let head = head.head().clone();
            assert_eq!(head.kind, crate::manifest::ManifestKind::Tombstone);
        }
        churn(&mut parent, &mut rig, 4);
        let pins = read_pins(&parent.backend, parent.volume, snapshot.id);
        assert!(block_on(pins).unwrap().is_closed);
    }
}

#[test]
fn a_name_in_use_is_refused_and_leaves_no_pin() {
    let mut parent = World::new();
    let mut rig = parent.open(fine());
    let snapshot = take(&mut parent, &mut rig, "s");
    let clone = clone_of(&parent, &snapshot, 7);
    let (name, of) = (volume_name(7), (parent.volume, &snapshot));
    let other = create_clone(&parent.backend, seed(8), &name, of, SHARING);
    let error = block_on(other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let clones = block_on(clones_of(&parent.backend, parent.volume, snapshot.id)).unwrap();
    let ids: Vec<_> = clones.iter().map(|clone| clone.id).collect();
    assert_eq!(ids, [clone.volume]);
    clone.verify();
    drop(rig);
}

/// So many steps of a flatten, the last one not to its end; or all, then it may let go.
fn flatten_some(world: &mut World, rig: &mut Rig, steps: u64, effects: u64) {
    if !steps.is_multiple_of(3) {
        flatten::take_all(world, rig);
        let fault = Fault::FailAfter(ErrorKind::Io);
        world.backend.script(FaultRule::nth(effects as u32, fault));
        let _ = flatten::let_go(world, rig);
        world.backend.clear_script();
        flatten::let_go(world, rig).unwrap();
    } else if flatten::begin(world, rig) {
        for _ in 0..effects % 6 {
            rig.step(world);
        }
        *rig = world.open(fine());
    }
}

struct Family {
    members: Vec<(World, Rig)>,
    born: u64,
    deleted: Vec<VolumeId>,
}

impl Family {
    fn step(&mut self, (who, what, at, count): (usize, u8, u64, u64)) {
        let number = self.born * 1000 + at * 40 + count;
        let who = who % self.members.len();
        let (world, rig) = &mut self.members[who];
        match what {
            0..=3 => {
                world.write(at..at + count);
                rig.commit_and_verify(world);
            }
            4 => {
                world.zero(at..at + count);
                rig.commit_and_verify(world);
            }
            5 => {
                let text = format!("s{number}");
                if rig.commit.may_take(&name(&text), 0).is_ok() {
                    take(world, rig, &text);
                }
            }
            6 | 7 => self.clone_one(who, at as usize),
            11 => {
                let snapshot = rig.commit.snapshots().iter().nth(at as usize % 3).cloned();
                if let Some(snapshot) = snapshot {
                    world.write(at..at + 3);
                    roll_back(world, rig, &snapshot, number);
                }
            }
            8 => {
                // The writer dies somewhere in a commit.
                world.write(at..at + count);
                rig.start(world);
                for _ in 0..count % 6 {
                    rig.step(world);
                }
                let committed = rig.commit.head().epoch;
                if world.verify() >= committed && !rig.commit.is_idle() {
                    *rig = world.open(fine());
                    rig.commit_and_verify(world);
                } else {
                    rig.run(world);
                    world.note_committed();
                }
            }
            12 => {
                let fault = Fault::FailAfter(ErrorKind::Io);
                world.backend.script(FaultRule::nth(at as u32 % 12, fault));
                let (sum, freed) = (sweep(world, rig, at % 4 > 0), free_all(world));
                world.backend.clear_script();
                // Interrupted or not, the next one goes on.
                drop((sum, freed));
            }
            13 => flatten_some(world, rig, at, count),
            _ => self.delete_one(who, at as usize),
        }
    }

    fn clone_one(&mut self, who: usize, which: usize) {
        let (world, rig) = &self.members[who];
        let Some(snapshot) = rig.commit.snapshots().iter().nth(which % 3).cloned() else {
            return;
        };
        if self.members.len() < 6 {
            self.born += 1;
            let fault = Fault::FailAfter(ErrorKind::Io);
            world
                .backend
                .script(FaultRule::nth(which as u32 % 12, fault));
            let _ = try_clone(world, &snapshot, self.born, SHARING);
            world.backend.clear_script();
            let mut clone = clone_of(world, &snapshot, self.born);
            let rig = clone.open(fine());
            self.members.push((clone, rig));
        }
    }

    /// Deletes a snapshot if it has no clones, or else the clone itself if it has no snapshots:
    /// with some it may have clones, and is not deleted.
    fn delete_one(&mut self, who: usize, which: usize) {
        let (world, rig) = &mut self.members[who];
        let snapshot = rig.commit.snapshots().iter().nth(which % 3).cloned();
        if let Some(snapshot) = snapshot {
            let clones = block_on(clones_of(&world.backend, world.volume, snapshot.id)).unwrap();
            let deleted = delete_of(world, rig, &snapshot);
            assert_eq!(deleted.is_ok(), clones.is_empty(), "{deleted:?}");
            if let Ok(next) = deleted {
                rig.commit.adopt_head(next);
            }
        } else if who > 0 && rig.commit.snapshots().is_empty() {
            let (world, rig) = self.members.remove(who);
            block_on(delete_volume(&world.backend, rig.commit.head())).unwrap();
            self.deleted.push(world.volume);
        }
    }

    /// Nothing is left of those that are deleted, and nothing in those that live that they do not
    /// name.
    fn tidy_up(&mut self) {
        let (world, _) = &self.members[0];
        free_all(world).unwrap();
        for volume in &self.deleted {
            assert_eq!(sealed(world, *volume), []);
        }
        for (world, rig) in &self.members {
            sweep(world, rig, true).unwrap();
            let named: BTreeSet<_> = rig.commit.named().collect();
            let stored = sealed(world, world.volume);
            assert!(stored.iter().all(|object| named.contains(object)));
        }
    }

    fn verify(&mut self) {
        for (world, rig) in &mut self.members {
            world.verify();
            verify_all(world, rig);
            rig.check_changes(world);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Writes, zeroes, snapshots, clones of anything, interrupted and repeated creations, flattens,
    /// crashes, openings, deletions, freeing and sweeps: every volume and every snapshot reads as
    /// it should at every moment, and what has changed since each snapshot is told.
    #[test]
    fn a_family_of_clones_reads_as_its_cuts_whatever_happens(
        steps in prop::collection::vec((0..6usize, 0..14u8, 0..64u64, 1..40u64), 1..40)
    ) {
        let mut world = World::new();
        let mut rig = world.open(fine());
        world.write(0..64);
        take(&mut world, &mut rig, "first");
        let members = vec![(world, rig)];
        let mut family = Family { members, born: 0, deleted: Vec::new() };
        for step in steps {
            family.step(step);
            family.verify();
        }
        family.tidy_up();
        family.verify();
    }
}

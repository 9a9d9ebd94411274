//! A full backend: a cut that waits for room steps aside for what makes some, and is committed
//! when there is some.

use proptest::prelude::*;

use super::compaction::{begin, check, sparse};
use super::rig::{Rig, World, eager, take_over};
use super::snapshots::{churn, delete, fine, objects, take, wish};
use crate::identity::Generation;

/// Effects after which a cut that finds no room has noticed it.
const TRIES: usize = 40;

/// So many blocks are written anew and a cut of them begun, for which there is no room.
fn stuck(world: &mut World, rig: &mut Rig, (blocks, room_bytes): (u64, u64)) {
    world.room_bytes = Some(room_bytes);
    world.write(0..blocks);
    rig.start(world);
    assert!(!rig.commit.waits_for_room(), "nothing was tried yet");
    attempt(world, rig);
    assert!(rig.commit.waits_for_room(), "{:?}", rig.commit.status());
}

/// Lets the commit try for a while.
fn attempt(world: &mut World, rig: &mut Rig) {
    for _ in 0..TRIES {
        if !rig.step(world) {
            break;
        }
    }
}

/// What the uploader does while room is needed and nobody asks for anything.
fn make_room(world: &mut World, rig: &mut Rig) {
    for _ in 0..100 {
        if rig.commit.wants_room() {
            assert!(rig.commit.is_idle() || rig.commit.step_aside());
            rig.commit.start_sweep();
        } else if rig
            .commit
            .choose_compaction(&super::compaction::POLICY)
            .is_some()
        {
            assert!(rig.commit.is_idle() || rig.commit.step_aside());
            assert!(begin(world, rig));
        } else {
            return;
        }
        rig.run(world);
        assert!(rig.commit.is_idle());
    }
    panic!("room is made without end");
}

/// The cut goes on and is committed.
fn finish(world: &mut World, rig: &mut Rig) {
    rig.commit.go_on();
    rig.run(world);
    assert!(rig.commit.is_idle() && !rig.commit.waits_for_room());
    world.note_committed();
    check(world, rig);
}

#[test]
fn deleting_a_snapshot_makes_room_for_a_cut_that_waits_for_it() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    churn(&mut world, &mut rig, 3);
    let held = take(&mut world, &mut rig, "held");
    churn(&mut world, &mut rig, 3);
    let full = world.stored_bytes();
    stuck(&mut world, &mut rig, (64, 0));
    assert!(rig.commit.step_aside());
    assert!(rig.commit.is_idle() && rig.commit.is_aside() && rig.commit.waits_for_room());
    assert!(rig.commit.status().failures > 0, "it still fails");
    delete(&world, &mut rig, &held);
    make_room(&mut world, &mut rig);
    world.room_bytes = Some(full);
    finish(&mut world, &mut rig);
    assert_eq!(rig.commit.status().failures, 0);
}

#[test]
fn compaction_makes_room_for_a_cut_that_waits_for_it() {
    let (mut world, mut rig) = sparse();
    let before = objects(&world.backend, "chunks");
    let full = world.stored_bytes();
    stuck(&mut world, &mut rig, (16, 0));
    make_room(&mut world, &mut rig);
    assert!(objects(&world.backend, "chunks") < before);
    world.room_bytes = Some(full);
    finish(&mut world, &mut rig);
}

/// What of it was stored is deleted, and it draws new names: those in manifests ascend.
#[test]
fn a_cut_that_steps_aside_leaves_nothing_and_goes_on_under_new_names() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    churn(&mut world, &mut rig, 2);
    make_room(&mut world, &mut rig);
    let before = objects(&world.backend, "chunks");
    // Room for two chunks of four, and a bit.
    let room_bytes = world.stored_bytes() + 150_000;
    stuck(&mut world, &mut rig, (64, room_bytes));
    assert_eq!(objects(&world.backend, "chunks"), before + 2);
    assert!(rig.commit.step_aside());
    assert!(!rig.commit.step_aside(), "there is no second one");
    rig.run(&mut world);
    assert_eq!(objects(&world.backend, "chunks"), before);
    rig.commit.start_full_checkpoint();
    rig.run(&mut world);
    let named = rig.commit.sequence_used();
    world.room_bytes = None;
    finish(&mut world, &mut rig);
    let head = rig.commit.head();
    assert!(head.added.iter().all(|chunk| chunk.key.sequence > named));
}

#[test]
fn only_a_cut_that_waits_for_room_steps_aside_and_not_while_a_chunk_is_out() {
    let (mut world, mut rig) = sparse();
    assert!(!rig.commit.step_aside(), "there is none");
    world.room_bytes = Some(0);
    world.write(0..64);
    rig.start(&mut world);
    assert!(!rig.commit.step_aside(), "nothing is known of room yet");
    attempt(&mut world, &mut rig);
    let effect = rig.next_effect().expect("it tries again");
    assert!(!rig.commit.step_aside(), "a chunk is out");
    let event = rig.perform(&mut world, effect).expect("it is answered");
    rig.commit.handle(event, rig.now_ms);
    assert!(rig.commit.step_aside());
    // A compaction does not.
    assert!(begin(&world, &mut rig));
    assert!(!rig.commit.step_aside());
    rig.run(&mut world);
    world.room_bytes = None;
    finish(&mut world, &mut rig);
}

#[test]
fn a_cut_that_stepped_aside_is_lost_with_its_volume() {
    let (mut world, mut rig) = sparse();
    stuck(&mut world, &mut rig, (64, 0));
    assert!(rig.commit.step_aside());
    let other = take_over(&world, rig.commit.head(), 9);
    rig.commit.start_sweep();
    rig.run(&mut world);
    assert_eq!(rig.commit.fenced_by(), Some(other.generation));
    assert!(other.generation > Generation(0));
    rig.commit.go_on();
    assert!(rig.commit.fenced_by().is_some(), "it stays so");
}

/// A volume whose backend has room or not.
struct Squeezed {
    world: World,
    rig: Rig,
    /// A cut was begun and is not committed: its blocks are in the log.
    pending: bool,
}

impl Squeezed {
    /// Commits what was written if there is room, as a snapshot if one is wanted.
    fn commit(&mut self, snapshot: Option<&str>) {
        if !self.pending && (self.world.is_dirty() || snapshot.is_some()) {
            let wishes = snapshot.map(wish).into_iter().collect();
            let plan = self.world.cut();
            self.rig.commit.start_with(plan, wishes);
            self.pending = true;
        }
        if self.rig.commit.is_aside() {
            self.rig.commit.go_on();
        }
        attempt(&mut self.world, &mut self.rig);
        if self.pending && self.rig.commit.is_idle() && !self.rig.commit.is_aside() {
            self.world.note_committed();
            self.pending = false;
        }
        if self.rig.commit.is_idle() || self.rig.commit.waits_for_room() {
            check(&self.world, &self.rig);
        }
    }

    /// Whether the head may be changed otherwise.
    fn settle(&mut self) -> bool {
        self.rig.commit.is_idle() || self.rig.commit.step_aside()
    }

    fn step(&mut self, number: usize, (what, at, count): (u8, u64, u64)) {
        match what {
            0..=3 if !self.pending => self.world.write(at..at + count),
            4 if !self.pending => self.world.zero(at..at + count),
            5 if !self.pending => self.commit(Some(&format!("s{number}"))),
            6 | 7 if self.settle() => {
                let first = self.rig.commit.snapshots().iter().next().cloned();
                if let Some(snapshot) = first {
                    delete(&self.world, &mut self.rig, &snapshot);
                }
            }
            8 => make_room(&mut self.world, &mut self.rig),
            9 => {
                self.rig = self.world.open(fine());
                self.pending = false;
            }
            10 | 11 => self.world.room_bytes = Some(self.world.stored_bytes() + at * 4096),
            12 => self.world.room_bytes = None,
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    #[test]
    fn no_image_notices_that_there_was_no_room(
        steps in prop::collection::vec((0..13u8, 0..64u64, 1..40u64), 1..40)
    ) {
        let mut world = World::new();
        let rig = world.open(fine());
        let mut squeezed = Squeezed { world, rig, pending: false };
        for (number, step) in steps.into_iter().enumerate() {
            squeezed.step(number, step);
            squeezed.commit(None);
        }
        squeezed.world.room_bytes = None;
        squeezed.commit(None);
        prop_assert!(!squeezed.pending);
        prop_assert_eq!(squeezed.world.verify(), squeezed.rig.commit.head().epoch);
    }
}

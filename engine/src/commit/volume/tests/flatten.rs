//! A flattened clone reads as before, needs nothing of other volumes, and lets go of its parent's
//! snapshot exactly then.

use futures::executor::block_on;

use super::clones::clone_of;
use super::rig::{Rig, World, take_over};
use super::rollbacks::roll_back;
use super::snapshots::{churn, delete, fine, take, verify_all};
use crate::backend::{Fault, FaultRule};
use crate::commit::Foreign;
use crate::error::{ErrorKind, Result};
use crate::identity::VolumeId;
use crate::registry::{
    create_clone_from, delete_volume, read_pins, release_clone, resolve_name, snapshots_in_need,
};
use crate::snapshot::Snapshot;

/// Begins the next step of a flatten; whether there is one.
pub(super) fn begin(world: &mut World, rig: &mut Rig) -> bool {
    if let Some(job) = rig.commit.choose_foreign(2) {
        let read = block_on(job.read(&world.backend)).unwrap();
        world.is_flattened = true;
        assert!(rig.commit.start_compaction(read), "nothing came between");
        return true;
    }
    let is_done = rig.commit.independent_since().is_some();
    if !is_done {
        rig.commit.start_full_checkpoint();
    }
    !is_done
}

/// Takes over everything that the present image has of other volumes.
pub(super) fn take_all(world: &mut World, rig: &mut Rig) {
    for _ in 0..100 {
        if !begin(world, rig) {
            assert_eq!(rig.commit.foreign(), Foreign::default());
            return;
        }
        rig.run(world);
        assert_eq!(world.verify(), rig.commit.head().epoch);
        rig.check_shards();
    }
    panic!("a flatten does not end");
}

/// Lets go of the origin if nothing that the volume keeps needs it; whether it did.
pub(super) fn let_go(world: &World, rig: &Rig) -> Result<bool> {
    let older = rig.commit.dependent_snapshots();
    let in_need = block_on(snapshots_in_need(&world.backend, world.volume, &older))?;
    let is_bound = !in_need.is_empty() || rig.commit.dependent_point().is_some();
    if is_bound || rig.commit.independent_since().is_none() {
        return Ok(false);
    }
    block_on(release_clone(&world.backend, world.volume)).map(|()| true)
}

fn is_pinned(parent: &World, snapshot: &Snapshot, clone: VolumeId) -> bool {
    let pins = read_pins(&parent.backend, parent.volume, snapshot.id);
    block_on(pins).unwrap().pinned.contains(&clone)
}

/// A parent with a snapshot, and a clone of that.
fn parent_and_clone() -> (World, Rig, Snapshot, World, Rig) {
    let mut parent = World::new();
    let mut rig = parent.open(fine());
    parent.write(0..64);
    churn(&mut parent, &mut rig, 5);
    let snapshot = take(&mut parent, &mut rig, "golden");
    let mut clone = clone_of(&parent, &snapshot, 7);
    let clone_rig = clone.open(fine());
    (parent, rig, snapshot, clone, clone_rig)
}

#[test]
fn the_parent_of_a_flattened_clone_can_be_deleted() {
    let (mut parent, mut rig, snapshot, mut clone, mut clone_rig) = parent_and_clone();
    clone.write(3..9);
    clone_rig.commit_and_verify(&mut clone);
    let foreign = clone_rig.commit.foreign();
    assert_eq!(foreign.bytes, (64 - 6) * 4096);
    assert!(foreign.chunks > 0 && foreign.parts > 0);
    assert!(!let_go(&clone, &clone_rig).unwrap(), "it needs the parent");
    take_all(&mut clone, &mut clone_rig);
    assert!(let_go(&clone, &clone_rig).unwrap() && let_go(&clone, &clone_rig).unwrap());
    assert!(!is_pinned(&parent, &snapshot, clone.volume));
    delete(&parent, &mut rig, &snapshot);
    churn(&mut parent, &mut rig, 8);
    clone.verify();
    block_on(delete_volume(&parent.backend, rig.commit.head())).unwrap();
    super::space::free_all(&parent).unwrap();
    clone.verify();
    // Whoever opens it next, and whatever it does, misses nothing.
    clone_rig = clone.open(fine());
    assert!(clone_rig.commit.independent_since().is_some());
    churn(&mut clone, &mut clone_rig, 6);
    block_on(delete_volume(&clone.backend, clone_rig.commit.head())).unwrap();
}

#[test]
fn writes_go_on_meanwhile_and_win() {
    let (_parent, _rig, _, mut clone, mut clone_rig) = parent_and_clone();
    let job = clone_rig.commit.choose_foreign(2).unwrap();
    let read = block_on(job.read(&clone.backend)).unwrap();
    clone.write(0..40);
    clone_rig.commit_and_verify(&mut clone);
    clone_rig.commit.start_compaction(read);
    clone_rig.run(&mut clone);
    clone.verify();
    clone_rig.check_shards();
    take_all(&mut clone, &mut clone_rig);
    clone.write(1..5);
    clone_rig.commit_and_verify(&mut clone);
}

#[test]
fn snapshots_of_the_clone_hold_the_parents_as_long_as_they_need_it() {
    let (parent, _rig, snapshot, mut clone, mut clone_rig) = parent_and_clone();
    let old = take(&mut clone, &mut clone_rig, "old");
    take_all(&mut clone, &mut clone_rig);
    let new = take(&mut clone, &mut clone_rig, "new");
    assert!(!let_go(&clone, &clone_rig).unwrap());
    // A writer that begins anew does not know since when, and looks.
    clone_rig = clone.open(fine());
    assert_eq!(clone_rig.commit.dependent_snapshots(), [old.clone(), new]);
    assert!(!let_go(&clone, &clone_rig).unwrap());
    verify_all(&clone, &clone_rig);
    // Back to what needs the parent, it needs it again.
    roll_back(&mut clone, &mut clone_rig, &old, 3);
    assert!(clone_rig.commit.independent_since().is_none());
    delete(&clone, &mut clone_rig, &old);
    assert!(!let_go(&clone, &clone_rig).unwrap());
    take_all(&mut clone, &mut clone_rig);
    assert!(is_pinned(&parent, &snapshot, clone.volume));
    assert!(let_go(&clone, &clone_rig).unwrap());
    assert!(!is_pinned(&parent, &snapshot, clone.volume));
    verify_all(&clone, &clone_rig);
}

/// The writer dies after each effect of a flatten; the next one goes on.
#[test]
fn a_flatten_goes_on_wherever_it_was_interrupted() {
    for died_after in 0..40 {
        let (mut parent, mut rig, snapshot, mut clone, mut clone_rig) = parent_and_clone();
        let mut steps = 0;
        while steps < died_after && begin(&mut clone, &mut clone_rig) {
            while steps < died_after && clone_rig.step(&mut clone) {
                steps += 1;
            }
        }
        clone_rig = clone.open(fine());
        clone.verify();
        take_all(&mut clone, &mut clone_rig);
        let fault = Fault::FailAfter(ErrorKind::Transient);
        clone.backend.script(FaultRule::nth(died_after % 4, fault));
        let _ = let_go(&clone, &clone_rig);
        clone.backend.clear_script();
        assert!(let_go(&clone, &clone_rig).unwrap());
        delete(&parent, &mut rig, &snapshot);
        churn(&mut parent, &mut rig, 6);
        clone.verify();
    }
}

/// A writer that lost the volume does not flatten it, and its late chunks harm nobody.
#[test]
fn a_writer_that_lost_the_clone_does_not_let_go() {
    let (parent, _rig, snapshot, mut clone, mut clone_rig) = parent_and_clone();
    take_over(&clone, clone_rig.commit.head(), 55);
    assert!(begin(&mut clone, &mut clone_rig));
    clone_rig.run(&mut clone);
    assert!(clone_rig.commit.fenced_by().is_some());
    assert!(clone_rig.commit.independent_since().is_none());
    assert!(!let_go(&clone, &clone_rig).unwrap());
    assert!(is_pinned(&parent, &snapshot, clone.volume));
    clone.verify();
}

/// The index that a creation hands over is the one that an opening would read; attempts with and
/// without the image in memory do not mix.
#[test]
fn a_clone_of_an_image_in_memory_is_the_same_as_one_that_was_read() {
    for (id, layout) in [(7, super::clones::SHARING), (9, Default::default())] {
        for nth in 0..24 {
            let mut parent = World::new();
            let mut rig = parent.open(fine());
            parent.write(0..64);
            churn(&mut parent, &mut rig, 4);
            parent.write(3..20);
            let snapshot = take(&mut parent, &mut rig, "s");
            let image = rig.commit.indexed_image();
            churn(&mut parent, &mut rig, 3);
            let (name, of) = (super::clones::volume_name(id), (parent.volume, &snapshot));
            let seed = super::clones::seed(id);
            let create = |image| create_clone_from(&parent.backend, seed, &name, of, layout, image);
            let fault = Fault::FailAfter(ErrorKind::Transient);
            parent.backend.script(FaultRule::nth(nth, fault));
            let tried = block_on(create(image.clone().filter(|_| nth % 2 == 0)));
            parent.backend.clear_script();
            drop(tried);
            let made = block_on(create(image.filter(|_| nth % 2 == 1))).unwrap();
            let exists = block_on(resolve_name(&parent.backend, &name)).unwrap();
            assert_eq!(exists, Some(VolumeId(id)));
            let mut clone = parent.cloned(VolumeId(id), snapshot.epoch);
            clone.verify();
            if let Some((index, _)) = made.index {
                assert_eq!(index.base.recount(), []);
                parent.verify_image(&index.base, snapshot.epoch);
            }
            let mut rig = clone.open(fine());
            rig.check_shards();
            churn(&mut clone, &mut rig, 3);
        }
    }
}

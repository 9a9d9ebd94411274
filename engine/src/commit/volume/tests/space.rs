//! Space that comes back: deleted volumes are freed whatever interrupts that, and orphans of
//! writers that died are swept; nothing that anything names is ever touched.

use futures::executor::block_on;

use super::clones::clone_of;
use super::compaction::{begin, check, compact_all, sparse};
use super::rig::{Rig, World, eager};
use super::snapshots::{churn, fine, take, verify_all};
use crate::backend::{Backend, Fault, FaultRule, Listed, Operation};
use crate::commit::Effect;
use crate::error::{ErrorKind, Result};
use crate::identity::{Generation, VolumeId};
use crate::object::{ChunkKey, IndexKey, ObjectKey, SealedRef};
use crate::registry::{
    Freeing, Sweep, SweepSum, delete_volume, deleted_volumes, finish_deletion, read_head,
};

/// Objects of a step; few, so that there are many steps.
const STEP: usize = 5;

/// What the bucket holds of a volume in one folder.
pub(super) fn stored(world: &World, volume: VolumeId, folder: &str) -> Vec<Listed> {
    let prefix = format!("v1/{volume}/{folder}/");
    block_on(world.backend.list(&prefix, None, 100_000)).unwrap()
}

/// Chunks and index parts of a volume.
pub(super) fn sealed(world: &World, volume: VolumeId) -> Vec<SealedRef> {
    let folders = ["chunks", "index"].into_iter();
    let listed = folders.flat_map(|folder| stored(world, volume, folder));
    listed.filter_map(|o| SealedRef::parse(&o.key)).collect()
}

/// Frees every deleted volume that is marked, as a start does.
pub(super) fn free_all(world: &World) -> Result<()> {
    block_on(async {
        for volume in deleted_volumes(&world.backend).await? {
            let mut freeing = Freeing::begin(&world.backend, volume).await?;
            while !freeing.is_over() {
                freeing.step(&world.backend, STEP).await?;
            }
        }
        Ok(())
    })
}

/// Sweeps the volume; nothing of it is under way.
pub(super) fn sweep(world: &World, rig: &Rig, deletes: bool) -> Result<SweepSum> {
    let mut sweep = Sweep::of(world.volume, deletes);
    while let Some(listed) = block_on(sweep.look(&world.backend, STEP))? {
        let orphans = rig.commit.orphans_among(&listed).expect("it is idle");
        block_on(sweep.judged(&world.backend, &orphans))?;
    }
    Ok(sweep.sum().clone())
}

/// A volume with checkpoints and garbage, and chunks and parts of commits that died.
fn lived() -> (World, Rig) {
    let mut world = World::new();
    let mut rig = world.open(fine());
    churn(&mut world, &mut rig, 5);
    world.write(0..64);
    rig.start(&mut world);
    (0..3).for_each(|_| _ = rig.step(&mut world));
    let mut rig = world.open(fine());
    rig.commit_and_verify(&mut world);
    (world, rig)
}

#[test]
fn a_deleted_volume_is_freed_whatever_fails_and_its_manifests_stay() {
    for fault in [
        Fault::FailBefore(ErrorKind::Transient),
        Fault::FailAfter(ErrorKind::Transient),
    ] {
        for nth in 0.. {
            let (world, rig) = lived();
            let manifests = stored(&world, world.volume, "manifests").len();
            assert!(sealed(&world, world.volume).len() > 3 * STEP);
            world.backend.script(FaultRule::nth(nth, fault));
            let head = rig.commit.head().clone();
            let mut failed = block_on(delete_volume(&world.backend, &head)).is_err();
            if failed {
                // Another appliance, or the next start, finds the tombstone under the name, if it
                // is there.
                world.backend.clear_script();
                let now = block_on(read_head(&world.backend, world.volume, None)).unwrap();
                let again = async {
                    match now == head {
                        true => delete_volume(&world.backend, &head).await.map(drop),
                        false => finish_deletion(&world.backend, &now).await,
                    }
                };
                block_on(again).unwrap();
            }
            if free_all(&world).is_err() {
                failed = true;
                world.backend.clear_script();
                free_all(&world).unwrap();
            }
            world.backend.clear_script();
            assert_eq!(
                sealed(&world, world.volume),
                [],
                "{fault:?} of request {nth}"
            );
            assert_eq!(block_on(deleted_volumes(&world.backend)).unwrap(), []);
            let left = stored(&world, world.volume, "manifests").len();
            assert_eq!(left, manifests + 1, "all of them and the tombstone");
            if !failed {
                break;
            }
        }
    }
}

#[test]
fn nothing_of_a_volume_is_freed_that_is_not_deleted_or_has_clones() {
    let (mut world, mut rig) = lived();
    let refused = block_on(Freeing::begin(&world.backend, world.volume)).err();
    assert_eq!(refused.unwrap().kind(), ErrorKind::Busy);
    let snapshot = take(&mut world, &mut rig, "golden");
    let clone = clone_of(&world, &snapshot, 7);
    let before = sealed(&world, world.volume);
    // Nobody deletes a volume with snapshots. If it were done all the same, nothing is lost.
    block_on(delete_volume(&world.backend, rig.commit.head())).unwrap();
    let refused = free_all(&world).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("clone7"), "{refused}");
    assert_eq!(sealed(&world, world.volume), before);
    clone.verify();
    // The clone goes, and then all of it.
    let head = block_on(read_head(&world.backend, clone.volume, None)).unwrap();
    block_on(delete_volume(&world.backend, &head)).unwrap();
    free_all(&world).unwrap();
    for volume in [world.volume, clone.volume] {
        assert_eq!(sealed(&world, volume), []);
    }
}

#[test]
fn a_clone_that_is_freed_takes_nothing_of_its_parent() {
    let (mut world, mut rig) = lived();
    let snapshot = take(&mut world, &mut rig, "golden");
    let mut clone = clone_of(&world, &snapshot, 7);
    let mut clone_rig = clone.open(fine());
    clone.write(3..30);
    clone_rig.commit_and_verify(&mut clone);
    let before = sealed(&world, world.volume);
    block_on(delete_volume(&world.backend, clone_rig.commit.head())).unwrap();
    free_all(&world).unwrap();
    assert_eq!(sealed(&world, clone.volume), []);
    assert_eq!(sealed(&world, world.volume), before);
    world.verify();
    verify_all(&world, &rig);
}

/// A compaction dies with its chunks stored and no manifest that names them.
#[test]
fn a_sweep_finds_what_a_dead_compaction_left_and_nothing_else() {
    let (mut world, mut rig) = sparse();
    let snapshot = take(&mut world, &mut rig, "kept");
    rig.commit_and_verify(&mut world);
    world.write((0..96).filter(|block| block % 3 > 0));
    rig.commit_and_verify(&mut world);
    super::snapshots::delete(&world, &mut rig, &snapshot);
    assert!(begin(&world, &mut rig));
    assert!(rig.commit.orphans_among(&[]).is_none(), "it is not at rest");
    let mut put = 0;
    while let Some(Effect::PutChunk(job)) = rig.next_effect() {
        let effect = Effect::PutChunk(job);
        let event = rig.perform(&mut world, effect).expect("it is answered");
        rig.commit.handle(event, rig.now_ms);
        put += 1;
    }
    assert!(put > 0);
    let rig = world.open(eager());
    let all = sealed(&world, world.volume);
    let dry = sweep(&world, &rig, false).unwrap();
    assert_eq!(dry.orphans.objects, put);
    assert_eq!(dry.listed.objects, all.len() as u64);
    assert_eq!(sealed(&world, world.volume), all, "it only looked");
    // Fails anywhere, and is repeated.
    world.backend.script(FaultRule::once(
        Operation::Delete,
        "",
        Fault::FailBefore(ErrorKind::Io),
    ));
    assert!(sweep(&world, &rig, true).is_err());
    let swept = sweep(&world, &rig, true).unwrap();
    assert!(swept.orphans.objects <= put && swept.orphans.bytes > 0);
    assert_eq!(
        sealed(&world, world.volume).len() as u64,
        all.len() as u64 - put
    );
    assert_eq!(sweep(&world, &rig, true).unwrap().orphans.objects, 0);
    check(&world, &rig);
    let mut again = world.open(eager());
    compact_all(&mut world, &mut again);
}

/// A writer of a newer generation has taken the volume over: what it stored is not for the old one
/// to judge. Nor is what other volumes have, or what has a name of another form.
#[test]
fn a_sweep_leaves_alone_what_is_not_its_own() {
    let (mut world, old) = lived();
    sweep(&world, &old, true).unwrap();
    let mut new = world.open(fine());
    world.write(0..64);
    new.start(&mut world);
    (0..4).for_each(|_| _ = new.step(&mut world));
    let foreign = ObjectKey::parse(&format!("{}notes.txt", ChunkKey::prefix(world.volume)));
    let foreign = foreign.unwrap();
    block_on(world.backend.put(&foreign, bytes::Bytes::from_static(b"x"))).unwrap();
    let before = sealed(&world, world.volume);
    let swept = sweep(&world, &old, true).unwrap();
    assert_eq!((swept.orphans.objects, swept.strange), (0, 1));
    assert_eq!(sealed(&world, world.volume), before);
    let other = SealedRef::Index(IndexKey {
        volume: VolumeId(9),
        generation: Generation(1),
        sequence: 1,
        random: 1,
    });
    assert_eq!(old.commit.orphans_among(&[other]), Some(Vec::new()));
    new.run(&mut world);
    world.note_committed();
    world.verify();
}

/// A cut that finds the backend full waits, and what earlier manifests condemned is deleted
/// meanwhile: that makes the room that it waits for.
#[test]
fn garbage_is_deleted_while_a_cut_waits_for_room() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    churn(&mut world, &mut rig, 4);
    // The last commits' garbage waits for one commit more.
    world.write(0..64);
    rig.start(&mut world);
    while rig.commit.status().phase != "idle" {
        rig.step(&mut world);
    }
    world.note_committed();
    let stored: u64 = {
        let all = block_on(world.backend.list("v1/", None, 100_000)).unwrap();
        all.iter().map(|object| object.bytes).sum()
    };
    let before = sealed(&world, world.volume).len();
    world.backend.set_capacity(Some(stored + 1000));
    world.write(0..64);
    rig.start(&mut world);
    rig.trace.clear();
    for _ in 0..200 {
        rig.step(&mut world);
    }
    assert!(rig.trace.contains(&"delete"), "{:?}", rig.trace);
    assert!(rig.commit.is_idle(), "{before}: {:?}", rig.commit.status());
    world.note_committed();
    world.backend.set_capacity(None);
    world.verify();
}

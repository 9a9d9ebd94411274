//! Snapshots keep what they need, and nothing else is kept, through checkpoints, garbage
//! collection, crashes and other writers.

use futures::executor::block_on;
use proptest::prelude::*;

use super::rig::{Rig, VOLUME, World, eager};
use crate::backend::{Backend, MemBackend};
use crate::block::{BlockNum, BlockSize};
use crate::commit::CommitConfig;
use crate::error::ErrorKind;
use crate::identity::Epoch;
use crate::manifest::{Manifest, ManifestKind};
use crate::registry::{delete_snapshot, read_blocks, read_snapshot};
use crate::snapshot::{Snapshot, SnapshotChange, SnapshotId, SnapshotName, SnapshotWish};

pub(super) fn name(text: &str) -> SnapshotName {
    SnapshotName::parse(text).unwrap()
}

pub(super) fn wish(text: &str) -> SnapshotWish {
    SnapshotWish {
        id: SnapshotId(u64::from(crc32c::crc32c(text.as_bytes()))),
        name: name(text),
        taken_ms: 1,
        group: None,
    }
}

/// Commits what was written; the cut is a snapshot.
pub(super) fn take(world: &mut World, rig: &mut Rig, text: &str) -> Snapshot {
    rig.commit.may_take(&name(text), 0).unwrap();
    let plan = world.cut();
    rig.commit.start_with(plan, vec![wish(text)]);
    rig.run(world);
    assert!(rig.commit.is_idle());
    world.note_committed();
    world.verify();
    let taken = rig.commit.snapshots().by_name(&name(text));
    taken.expect("it is committed").clone()
}

pub(super) fn delete(world: &World, rig: &mut Rig, snapshot: &Snapshot) {
    let head = rig.commit.head().clone();
    let next = block_on(delete_snapshot(&world.backend, &head, snapshot)).unwrap();
    // A repeat after a lost response has no other effect.
    let again = block_on(delete_snapshot(&world.backend, &head, snapshot)).unwrap();
    assert_eq!(next, again);
    rig.commit.adopt_head(next);
}

/// Reads every snapshot that the chain names from the bucket alone.
pub(super) fn verify_all(world: &World, rig: &Rig) {
    for snapshot in rig.commit.snapshots().iter() {
        let read = block_on(read_snapshot(&world.backend, world.volume, snapshot));
        let (manifest, rebuilt) = read.unwrap();
        assert_eq!(manifest.epoch, snapshot.epoch);
        world.verify_image(&rebuilt.base, snapshot.epoch);
        let blocks = (BlockNum(3), 70);
        let read = read_blocks(&world.backend, &rebuilt.base, BlockSize::MIN, blocks);
        let expected = world.content_of(snapshot.epoch, 3, 70);
        assert!(block_on(read).unwrap() == expected);
    }
}

pub(super) fn objects(backend: &MemBackend, folder: &str) -> usize {
    let prefix = format!("v1/{VOLUME}/{folder}/");
    block_on(backend.list(&prefix, None, 100_000))
        .unwrap()
        .len()
}

/// Overwrites everything a few times, so that checkpoints and deletes happen.
pub(super) fn churn(world: &mut World, rig: &mut Rig, rounds: u64) {
    for _ in 0..rounds {
        world.write(0..64);
        rig.commit_and_verify(world);
    }
}

/// A config under which full checkpoints replace all parts every few commits.
pub(super) fn fine() -> CommitConfig {
    CommitConfig {
        checkpoint_commits: 1,
        part_bytes: 40,
        ..eager()
    }
}

#[test]
fn a_snapshot_outlives_overwrites_and_its_space_is_freed_when_it_is_deleted() {
    let mut world = World::new();
    let mut rig = world.open(fine());
    world.write(0..64);
    churn(&mut world, &mut rig, 12);
    let chunks = objects(&world.backend, "chunks");
    world.write(5..9);
    let first = take(&mut world, &mut rig, "first");
    churn(&mut world, &mut rig, 12);
    world.zero(0..64);
    let second = take(&mut world, &mut rig, "second");
    churn(&mut world, &mut rig, 12);
    verify_all(&world, &rig);
    assert!(objects(&world.backend, "chunks") > chunks);
    assert!(!rig.commit.garbage.retained_parts().is_empty());
    // The next writer finds in the bucket what is kept, and why.
    let retained = rig.commit.garbage.retained_parts();
    rig = world.open(fine());
    assert_eq!(rig.commit.garbage.retained_parts(), retained);
    delete(&world, &mut rig, &first);
    churn(&mut world, &mut rig, 12);
    verify_all(&world, &rig);
    let gone = block_on(read_snapshot(&world.backend, VOLUME, &first)).is_err();
    assert!(gone, "parts of its index, at least, were deleted");
    delete(&world, &mut rig, &second);
    churn(&mut world, &mut rig, 12);
    assert!(objects(&world.backend, "chunks") <= chunks + 4);
    assert!(rig.commit.garbage.retained_parts().is_empty());
    let in_force = rig.commit.parts.len();
    let pending = rig.commit.garbage.objects().count();
    assert!(objects(&world.backend, "index") <= in_force + pending);
}

#[test]
fn an_unchanged_volume_is_taken_without_a_chunk_and_two_snapshots_share_a_cut() {
    let mut world = World::new();
    let mut rig = world.open(CommitConfig::default());
    world.write(0..20);
    rig.commit_and_verify(&mut world);
    let before = objects(&world.backend, "chunks");
    let plan = world.cut();
    rig.commit.start_with(plan, vec![wish("one"), wish("two")]);
    rig.run(&mut world);
    assert_eq!(objects(&world.backend, "chunks"), before);
    assert_eq!(rig.commit.snapshots().len(), 2);
    verify_all(&world, &rig);
    let error = rig.commit.may_take(&name("two"), 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = rig.commit.may_take(&name("three"), 1022).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
}

/// A writer that goes on under its old generation names objects behind those of its snapshots.
#[test]
fn sequences_go_on_under_the_same_generation() {
    let mut world = World::new();
    let mut rig = world.open(eager());
    churn(&mut world, &mut rig, 5);
    let taken = take(&mut world, &mut rig, "s");
    let head = rig.commit.head().clone();
    let history = crate::registry::read_history(&world.backend, VOLUME, None);
    let history = block_on(history).unwrap();
    let rebuilt = crate::index::rebuild::rebuild(&world.backend, &history.manifests);
    let rebuilt = block_on(rebuilt).unwrap();
    let random = crate::commit::Random::new([9, 9, 9, 9]);
    rig.commit = crate::commit::VolumeCommit::new(head, rebuilt, eager(), random);
    world.write(0..3);
    rig.commit_and_verify(&mut world);
    let added = &rig.commit.head().added[0];
    assert_eq!(added.key.generation, taken.generation);
    assert!(added.key.sequence > taken.sequence);
}

/// A chain that takes a snapshot that it has already cannot be believed.
#[test]
fn a_chain_with_an_impossible_snapshot_is_refused() {
    let mut world = World::new();
    let mut rig = world.open(CommitConfig::default());
    world.write(0..3);
    let taken = take(&mut world, &mut rig, "s");
    let head = rig.commit.head().clone();
    let next = head.successor(ManifestKind::Commit);
    let twice = Snapshot {
        manifest: next.number,
        ..taken
    };
    let next = Manifest {
        snapshots: vec![SnapshotChange::Taken(twice)],
        ..next
    };
    let chain = [head, next];
    let mut table = rig.commit.snapshots().clone();
    assert_eq!(
        table.follow(&chain[1]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Writes, zeroes, snapshots, deletions, crashes in the midst of a commit, and openings by the
    /// next writer: every snapshot reads as its cut at every moment.
    #[test]
    fn snapshots_read_as_their_cuts_whatever_happens(
        steps in prop::collection::vec((0..10u8, 0..64u64, 1..40u64), 1..40)
    ) {
        let mut world = World::new();
        let mut rig = world.open(fine());
        let mut committed = Epoch(0);
        for (number, (what, at, count)) in steps.into_iter().enumerate() {
            match what {
                0..=3 => {
                    world.write(at..at + count);
                    rig.commit_and_verify(&mut world);
                }
                4 => {
                    world.zero(at..at + count);
                    rig.commit_and_verify(&mut world);
                }
                5 | 6 => {
                    world.write(at..at + count / 8);
                    take(&mut world, &mut rig, &format!("s{number}"));
                }
                7 => {
                    let oldest = rig.commit.snapshots().iter().nth(at as usize % 3).cloned();
                    if let Some(snapshot) = oldest {
                        delete(&world, &mut rig, &snapshot);
                    }
                }
                8 => {
                    // The writer dies somewhere in a commit that takes a snapshot.
                    world.write(at..at + count);
                    let plan = world.cut();
                    let wishes = vec![wish(&format!("c{number}"))];
                    rig.commit.start_with(plan, wishes);
                    for _ in 0..count % 6 {
                        rig.step(&mut world);
                    }
                    if world.verify() > committed {
                        world.note_committed();
                    }
                    rig = world.open(fine());
                    rig.commit_and_verify(&mut world);
                }
                _ => {
                    rig.commit_and_verify(&mut world);
                    rig = world.open(fine());
                }
            }
            committed = rig.commit.head().epoch;
            verify_all(&world, &rig);
        }
    }
}

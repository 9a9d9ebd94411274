//! Points in time are read as their cuts until they leave the window, through checkpoints, garbage
//! collection, compaction, crashes, other writers and rollbacks; then their space is freed.

use std::collections::BTreeMap;

use futures::executor::block_on;
use proptest::prelude::*;

use super::clones::clone_of;
use super::compaction::compact_all;
use super::rig::{Rig, World};
use super::rollbacks::try_roll_back_to;
use super::snapshots::{churn, delete, fine, name, objects, take, verify_all};
use crate::commit::Reading;
use crate::identity::{Epoch, ManifestNum};
use crate::point::Point;
use crate::registry::{configure, delete_snapshot, prepare_kept_point, put_kept_point, read_kept};
use crate::snapshot::{KeptImage, Snapshot, SnapshotId, SnapshotWish};
use crate::timestamp::UnixMs;
use crate::volume::VolumeSettings;

const WINDOW_MS: u64 = 10_000;

/// A volume that keeps points, and a clock.
struct Keeping {
    world: World,
    rig: Rig,
    now_ms: u64,
    /// When each cut was replaced by a later one.
    replaced: BTreeMap<Epoch, u64>,
    head: Epoch,
    held: Option<ManifestNum>,
}

impl Keeping {
    fn new() -> Self {
        let settings = VolumeSettings {
            pitr_window_seconds: WINDOW_MS / 1000,
            ..VolumeSettings::with_size(1 << 30)
        };
        let mut world = World::with_settings(settings);
        let rig = world.open(fine());
        let mut this = Self {
            world,
            rig,
            now_ms: 1_000_000,
            replaced: BTreeMap::new(),
            head: Epoch(0),
            held: None,
        };
        this.note();
        this
    }

    fn note(&mut self) {
        let wall = UnixMs(self.now_ms);
        let steady_ms = self.now_ms - 999_000;
        self.rig
            .commit
            .note_time(Reading { wall, steady_ms }, self.held);
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.note();
    }

    /// What is committed now is the image from here on.
    fn committed(&mut self) {
        let head = self.rig.commit.head().epoch;
        if head > self.head {
            self.replaced.insert(self.head, self.now_ms);
            self.head = head;
        }
    }

    fn reopen(&mut self) {
        self.rig = self.world.open(fine());
        self.note();
        self.committed();
    }

    fn points(&self) -> Vec<Point> {
        self.rig.commit.points().iter().copied().collect()
    }

    fn read(&self, point: Point) {
        let image = KeptImage::Point(point);
        let read = block_on(read_kept(&self.world.backend, self.world.volume, &image));
        let (manifest, rebuilt) = read.unwrap();
        assert_eq!(manifest.number, point.manifest);
        self.world.verify_image(&rebuilt.base, point.epoch);
    }

    /// Every listed point is read as its cut, and none has left that was the image within the
    /// window.
    fn verify(&self) {
        let points = self.points();
        points.iter().for_each(|point| self.read(*point));
        for (epoch, replaced_ms) in &self.replaced {
            if replaced_ms + WINDOW_MS > self.now_ms {
                assert!(
                    points.iter().any(|p| p.epoch == *epoch),
                    "cut {epoch}, replaced at {replaced_ms}, is gone at {}",
                    self.now_ms
                );
            }
        }
        verify_all(&self.world, &self.rig);
    }

    /// Has a point be a snapshot from now on.
    fn keep_one(&mut self, which: usize, number: u64) -> Snapshot {
        let points = self.points();
        let point = points[which % points.len()];
        let (backend, commit) = (&self.world.backend, &mut self.rig.commit);
        let wish = SnapshotWish {
            id: SnapshotId(number + 1),
            name: name(&format!("kept{number}")),
            taken_ms: 7,
            group: None,
        };
        let (head, table) = (commit.head().clone(), commit.snapshots().clone());
        let prepared = prepare_kept_point(backend, &head, &table, (&point, wish));
        let (next, image) = block_on(prepared).unwrap();
        self.world.verify_image(&image.base, point.epoch);
        let stored = block_on(put_kept_point(backend, &next)).unwrap();
        assert_eq!(block_on(put_kept_point(backend, &next)).unwrap(), stored);
        commit.adopt_head(stored);
        let kept = commit.snapshots().by_id(SnapshotId(number + 1));
        kept.expect("it is committed").clone()
    }

    fn commit(&mut self) {
        self.rig.commit_and_verify(&mut self.world);
        self.committed();
    }
}

#[test]
fn points_are_kept_for_the_window_and_their_space_is_freed_after_it() {
    let mut keeping = Keeping::new();
    for round in 0..60 {
        keeping.world.write(0..64);
        keeping.pass(500);
        keeping.commit();
        keeping.verify();
        let chunks = objects(&keeping.world.backend, "chunks");
        // Twenty cuts of four chunks, the head, and what waits to be deleted.
        assert!(chunks <= 4 * 26, "{round}: {chunks}");
    }
    let kept = objects(&keeping.world.backend, "chunks");
    assert!(kept >= 4 * 20, "{kept}");
    // Nothing is written any more: sweeps free what leaves.
    keeping.pass(2 * WINDOW_MS);
    compact_all(&mut keeping.world, &mut keeping.rig);
    let left = objects(&keeping.world.backend, "chunks");
    assert!(left <= 8, "{left}");
    keeping.verify();
    keeping.replaced.clear();
}

#[test]
fn a_point_in_use_stays() {
    let mut keeping = Keeping::new();
    keeping.world.write(0..64);
    keeping.commit();
    let point = *keeping.points().last().unwrap();
    keeping.held = Some(point.manifest);
    for _ in 0..10 {
        keeping.pass(WINDOW_MS);
        churn(&mut keeping.world, &mut keeping.rig, 2);
        keeping.read(point);
    }
    keeping.held = None;
    for _ in 0..4 {
        keeping.pass(WINDOW_MS);
        churn(&mut keeping.world, &mut keeping.rig, 1);
    }
    assert!(keeping.points().len() <= 3);
}

#[test]
fn a_point_that_is_kept_as_a_snapshot_outlives_the_window_and_can_be_cloned() {
    let mut keeping = Keeping::new();
    keeping.world.write(0..64);
    keeping.commit();
    take(&mut keeping.world, &mut keeping.rig, "earlier");
    keeping.world.write(0..20);
    keeping.commit();
    let at = keeping.points().len() - 1;
    keeping.world.write(0..64);
    keeping.commit();
    take(&mut keeping.world, &mut keeping.rig, "later");
    let kept = keeping.keep_one(at, 5);
    let names = keeping.rig.commit.snapshots().iter();
    let names: Vec<_> = names.map(|s| s.name.as_str().to_owned()).collect();
    assert_eq!(names, ["earlier", "kept5", "later"]);
    let clone = clone_of(&keeping.world, &kept, 9);
    for _ in 0..6 {
        keeping.pass(WINDOW_MS);
        churn(&mut keeping.world, &mut keeping.rig, 2);
        clone.verify();
    }
    assert!(keeping.points().iter().all(|p| p.manifest > kept.manifest));
    verify_all(&keeping.world, &keeping.rig);
    let head = keeping.rig.commit.head().clone();
    let refused = block_on(delete_snapshot(&keeping.world.backend, &head, &kept));
    assert!(refused.unwrap_err().to_string().contains("clone9"));
    keeping.replaced.clear();
    keeping.reopen();
    verify_all(&keeping.world, &keeping.rig);
}

/// Without its clocks' agreement nothing leaves; and a restart forgets what passed before it.
#[test]
fn a_clock_that_is_set_forward_gives_nothing_up() {
    let mut keeping = Keeping::new();
    for _ in 0..8 {
        keeping.world.write(0..64);
        keeping.now_ms += 10 * WINDOW_MS;
        let wall = UnixMs(keeping.now_ms);
        let steady_ms = 1000;
        let reading = Reading { wall, steady_ms };
        keeping.rig.commit.note_time(reading, None);
        keeping.rig.commit_and_verify(&mut keeping.world);
        keeping.reopen();
    }
    assert_eq!(keeping.points().len(), 9, "all since the beginning");
    keeping.points().into_iter().for_each(|p| keeping.read(p));
}

/// The bucket is away between a cut's making and its manifest, for longer than the window. The cut
/// is as old as its making, so that what was before it leaves with the next one.
#[test]
fn a_cut_that_is_stored_late_is_as_old_as_its_making() {
    let mut keeping = Keeping::new();
    keeping.world.write(0..8);
    keeping.commit();
    let before = keeping.points()[1];
    keeping.pass(1000);
    keeping.world.write(8..16);
    keeping.rig.start(&mut keeping.world);
    let made_ms = keeping.now_ms;
    keeping.now_ms += 2 * WINDOW_MS;
    keeping.rig.run(&mut keeping.world);
    keeping.world.note_committed();
    let late = *keeping.points().last().unwrap();
    assert_eq!(late.committed, UnixMs(made_ms));
    assert_eq!(keeping.points()[1], before, "its manifest gives nothing up");
    keeping.note();
    keeping.world.write(16..24);
    keeping.rig.commit_and_verify(&mut keeping.world);
    let points = keeping.points();
    assert_eq!(
        points[0], late,
        "it is what was there at the window's beginning"
    );
    points.into_iter().for_each(|point| keeping.read(point));
}

#[test]
fn without_a_window_from_now_on_everything_is_freed() {
    let mut keeping = Keeping::new();
    churn(&mut keeping.world, &mut keeping.rig, 10);
    let kept = objects(&keeping.world.backend, "chunks");
    let head = keeping.rig.commit.head().clone();
    let settings = VolumeSettings::with_size(1 << 30);
    let off = configure(&keeping.world.backend, &head, &settings, UnixMs(1));
    keeping.rig.commit.adopt_head(block_on(off).unwrap());
    churn(&mut keeping.world, &mut keeping.rig, 4);
    let left = objects(&keeping.world.backend, "chunks");
    assert!(left * 3 < kept, "{left} of {kept}");
    // And kept again from then on, not before.
    let head = keeping.rig.commit.head().clone();
    let window = VolumeSettings {
        pitr_window_seconds: 60,
        ..settings
    };
    let on = configure(&keeping.world.backend, &head, &window, UnixMs(7));
    keeping.rig.commit.adopt_head(block_on(on).unwrap());
    assert_eq!(keeping.points().len(), 1);
    churn(&mut keeping.world, &mut keeping.rig, 5);
    keeping.points().into_iter().for_each(|p| keeping.read(p));
    assert_eq!(keeping.points().len(), 6);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    #[test]
    fn points_read_as_their_cuts_whatever_happens(
        steps in prop::collection::vec((0..13u8, 0..64u64, 1..40u64, 0..4000u64), 1..40)
    ) {
        let mut keeping = Keeping::new();
        for (number, (what, at, count, ms)) in (0u64..).zip(steps) {
            keeping.pass(ms);
            match what {
                0..=3 => keeping.world.write(at..at + count),
                4 => keeping.world.zero(at..at + count),
                5 => {
                    let name = format!("s{number}");
                    take(&mut keeping.world, &mut keeping.rig, &name);
                }
                6 => {
                    let first = keeping.rig.commit.snapshots().iter().next().cloned();
                    if let Some(snapshot) = first {
                        delete(&keeping.world, &mut keeping.rig, &snapshot);
                    }
                }
                7 | 8 => {
                    // Nothing is left uncommitted: the image is what it was.
                    compact_all(&mut keeping.world, &mut keeping.rig);
                }
                9 => {
                    let points = keeping.points();
                    let to = KeptImage::Point(points[at as usize % points.len()]);
                    let (world, rig) = (&keeping.world, &keeping.rig);
                    let stored = try_roll_back_to(world, rig, to.clone(), number).unwrap();
                    keeping.world.rolled_back(to.epoch(), stored.epoch);
                    keeping.reopen();
                }
                10 => {
                    // The writer dies somewhere in a commit.
                    keeping.world.write(at..at + count);
                    keeping.rig.start(&mut keeping.world);
                    for _ in 0..count % 8 {
                        keeping.rig.step(&mut keeping.world);
                    }
                    if keeping.world.verify() > keeping.head {
                        keeping.world.note_committed();
                    }
                    keeping.reopen();
                }
                11 => _ = keeping.keep_one(at as usize, number),
                _ => keeping.reopen(),
            }
            keeping.commit();
            keeping.verify();
        }
    }
}

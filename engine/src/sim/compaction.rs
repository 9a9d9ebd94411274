//! Compactions at random moments: chosen, read some time before they are committed, given up,
//! fenced, and cut short by crashes. The oracle sees to it that no image notices.

use std::rc::Rc;

use futures::executor::block_on;

use super::dice::Dice;
use super::plan::MS;
use super::world::World;
use crate::commit::{CompactionPolicy, CompactionRead};
use crate::identity::VolumeId;

/// Only odd seeds compact, with and without snapshots, so that the others stay the runs that they
/// were.
const SEEDS_WITH: u64 = 2;

/// Volumes are small here, so little is worth it.
const POLICY: CompactionPolicy = CompactionPolicy {
    threshold_percent: 95,
    freed_percent: 1,
    chunks_max: 2,
};

/// When this appliance compacts.
pub(super) struct Compactions {
    is_on: bool,
    dice: Dice,
}

/// The compaction of one life.
#[derive(Default)]
pub(super) struct Compacting {
    /// What was read and is not yet committed.
    read: Option<CompactionRead>,
    /// Whose compaction is being committed.
    pub(super) active: Option<VolumeId>,
}

impl Compactions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            is_on: seed % SEEDS_WITH == 1,
            dice: Dice::new(seed ^ 0x636F_6D70),
        }
    }
}

impl World {
    /// At a turn of the uploader: reads sources, or commits what was read.
    pub(super) fn may_compact(&mut self) {
        let is_due = self.compactions.is_on && self.compactions.dice.chance(250);
        if !is_due || self.now_us >= self.life_ends_us {
            return;
        }
        let compacting = &mut self.node.as_mut().expect("it runs").uploader.compacting;
        if compacting.active.is_some() {
            return;
        }
        match compacting.read.take() {
            None => self.read_sources(),
            Some(read) => self.commit_compaction(read),
        }
    }

    fn read_sources(&mut self) {
        let id = self.compactions.dice.pick(&self.ids);
        let is_away = self.is_away();
        let fails = is_away || self.compactions.dice.chance(self.faults.get_fails);
        let uploader = &self.node_ref().uploader;
        let job = uploader.volumes.get(&id);
        let Some(job) = job.and_then(|volume| volume.commit.choose_compaction(&POLICY)) else {
            return self.may_let_go(id);
        };
        if fails {
            return;
        }
        match block_on(job.read(&self.objects)) {
            Ok(read) if self.racing.is_none() && !read.unreadable.is_empty() => {
                let (chunk, error) = &read.unreadable[0];
                self.violate(format!("source {chunk} of a compaction: {error}"));
            }
            Ok(read) => {
                let uploader = &mut self.node.as_mut().expect("it runs").uploader;
                uploader.compacting.read = Some(read);
            }
            // Of a volume that another appliance has taken over.
            Err(_) if self.racing.is_some() => {}
            Err(error) => self.violate(format!("a source of a compaction: {error}")),
        }
    }

    fn commit_compaction(&mut self, read: CompactionRead) {
        let (points, now) = (
            Rc::clone(&self.snapshots),
            (self.now_us, self.life_began_us),
        );
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let id = read.volume;
        let Some(volume) = uploader.volumes.get_mut(&id) else {
            return;
        };
        if volume.unverified || volume.commit.fenced_by().is_some() {
            return;
        }
        if !self.settle(id) {
            let uploader = &mut self.node.as_mut().expect("it runs").uploader;
            uploader.compacting.read = Some(read);
            return;
        }
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let volume = uploader.volumes.get_mut(&id).expect("looked at above");
        points.points.tell_time(&mut volume.commit, now);
        if volume.commit.start_compaction(read) {
            uploader.compacting.active = Some(id);
            uploader.coordinator.occupy(id);
            self.coverage.hit("a compaction was begun");
            self.note(format_args!("compaction of {id}"));
        } else {
            self.coverage.hit("a compaction had nothing left to do");
        }
    }

    /// A publication is applied everywhere; whether it was a compaction's.
    pub(super) fn compaction_applied(&mut self, id: VolumeId) -> bool {
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let is_ours = uploader.compacting.active == Some(id);
        if is_ours {
            uploader.compacting.active = None;
            uploader.coordinator.vacate(id);
            self.coverage.hit("a compaction was committed");
            self.wake_uploader(MS);
        }
        is_ours
    }

    /// An answer came: the compaction may have been given up.
    pub(super) fn compaction_heard(&mut self, id: VolumeId) {
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let Some(volume) = uploader.volumes.get(&id) else {
            return;
        };
        let is_over = volume.commit.is_idle() && volume.publishing.is_none();
        if uploader.compacting.active == Some(id) && is_over {
            uploader.compacting.active = None;
            uploader.coordinator.vacate(id);
            self.coverage.hit("a compaction was given up");
        }
    }
}

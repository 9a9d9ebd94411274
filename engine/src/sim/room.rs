//! A backend that is full but for its ballast: chunks of cuts find no room, everything else does.
//! Cuts step aside for what makes room, and go on.

use super::bucket::Late;
use super::dice::Dice;
use super::plan::Faults;
use super::uploader::{UpVolume, What};
use super::world::World;
use crate::identity::VolumeId;

/// Only these seeds, which also compact (some with snapshots), so that the others stay the runs
/// that they were.
const SEEDS_WITH: (u64, [u64; 2]) = (8, [5, 7]);

/// Whether this appliance's backend has a ballast, and how long it is full.
pub(super) struct Room {
    has_ballast: bool,
    dice: Dice,
}

impl Room {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            has_ballast: SEEDS_WITH.1.contains(&(seed % SEEDS_WITH.0)),
            dice: Dice::new(seed ^ 0x726F_6F6D),
        }
    }

    /// In many lives the backend is full for a while.
    pub(super) fn begin_life(&mut self, faults: &mut Faults, life_us: u64) {
        if self.has_ballast && self.dice.chance(500) {
            let from = self.dice.below(life_us / 2);
            faults.away_us = (from, from + self.dice.range(life_us / 4..=life_us));
            faults.full = true;
        }
    }
}

impl World {
    /// Whether only chunks of cuts find no room now.
    fn is_short_of_room(&self) -> bool {
        self.room.has_ballast && self.faults.full && self.within(self.faults.away_us)
    }

    /// Whether the backend does not answer, or takes nothing whatever it is.
    pub(super) fn is_away(&self) -> bool {
        self.within(self.faults.away_us) && !self.is_short_of_room()
    }

    /// Whether the backend has no room for this.
    pub(super) fn has_no_room_for(&self, late: &Late, what: What) -> bool {
        let of_cut = matches!(
            what,
            What::Chunk {
                is_copied: false,
                ..
            }
        );
        let is_full = self.faults.full && self.within(self.faults.away_us);
        is_full && matches!(late, Late::Put(..)) && (of_cut || !self.room.has_ballast)
    }

    /// Has a cut of the volume step aside that waits for room. Whether nothing of it is under way.
    pub(super) fn settle(&mut self, id: VolumeId) -> bool {
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let Some(volume) = uploader.volumes.get_mut(&id) else {
            return false;
        };
        if volume.commit.step_aside() {
            self.coverage
                .hit("a cut that waited for room stepped aside");
            self.note(format_args!("the cut of {id} steps aside"));
        }
        let volume = &self.node_ref().uploader.volumes[&id];
        volume.commit.is_idle() && volume.publishing.is_none()
    }

    /// Where room is needed, a commit of nothing lets go of what is needed no more.
    pub(super) fn may_let_go(&mut self, id: VolumeId) {
        let wants = |volume: &UpVolume| !volume.unverified && volume.commit.wants_room();
        let volume = self.node_ref().uploader.volumes.get(&id);
        if !self.is_short_of_room() || !volume.is_some_and(wants) || !self.settle(id) {
            return;
        }
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let volume = uploader.volumes.get_mut(&id).expect("looked at above");
        volume.commit.start_sweep();
        uploader.compacting.active = Some(id);
        uploader.coordinator.occupy(id);
        self.coverage.hit("a commit of nothing made room");
    }

    /// Has cuts go on that stepped aside, sooner or later.
    pub(super) fn resume_cuts(&mut self) {
        for id in self.ids.clone() {
            let uploader = &mut self.node.as_mut().expect("it runs").uploader;
            let is_compacted = uploader.compacting.active == Some(id);
            let Some(volume) = uploader.volumes.get_mut(&id) else {
                continue;
            };
            let may = volume.commit.is_aside() && volume.commit.is_idle() && !is_compacted;
            if may && volume.publishing.is_none() && self.room.dice.chance(500) {
                volume.commit.go_on();
            }
        }
    }
}

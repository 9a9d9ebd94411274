//! Orphan sweeps of served volumes at random moments: listed at one moment, judged at another, and
//! deleted at a third, perhaps in another life, beside everything else. No image notices.

use futures::executor::block_on;

use super::bucket::Late;
use super::dice::Dice;
use super::plan::MS;
use super::world::{Event, World};
use crate::identity::VolumeId;
use crate::object::SealedRef;
use crate::registry::Sweep;

/// Only odd seeds sweep, so that the others stay the runs that they were.
const SEEDS_WITH: u64 = 2;
/// A delete that was sent lands so much later, at most.
const LATE_US: u64 = 300 * MS;

/// When this appliance sweeps.
pub(super) struct Sweeps {
    is_on: bool,
    dice: Dice,
}

/// The sweep of one life.
pub(super) struct Sweeping {
    volume: VolumeId,
    sweep: Sweep,
    /// What was listed and is not judged.
    listed: Vec<SealedRef>,
}

impl Sweeps {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            is_on: seed % SEEDS_WITH == 1,
            dice: Dice::new(seed ^ 0x7377_6565),
        }
    }
}

impl World {
    /// At a turn of the uploader: lists a page, or judges one.
    pub(super) fn may_sweep(&mut self) {
        let is_due = self.sweeps.is_on && self.sweeps.dice.chance(150);
        if !is_due || self.now_us >= self.life_ends_us {
            return;
        }
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        match uploader.sweeping.take() {
            None => {
                let volume = self.sweeps.dice.pick(&self.ids);
                let sweep = Sweep::of(volume, true);
                self.list_some(volume, sweep);
            }
            Some(sweeping) => self.judge(sweeping),
        }
    }

    fn list_some(&mut self, volume: VolumeId, mut sweep: Sweep) {
        let is_away = self.is_away();
        if is_away || self.sweeps.dice.chance(self.faults.get_fails) {
            return;
        }
        let max = self.sweeps.dice.range(1..=12) as usize;
        let listed = block_on(sweep.look(&self.objects, max)).expect("nothing is scripted");
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        match listed {
            Some(listed) => {
                uploader.sweeping = Some(Sweeping {
                    volume,
                    sweep,
                    listed,
                });
            }
            None => self.coverage.hit("a sweep came to its end"),
        }
    }

    fn judge(&mut self, sweeping: Sweeping) {
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let Sweeping {
            volume,
            mut sweep,
            listed,
        } = sweeping;
        let Some(served) = uploader.volumes.get(&volume) else {
            return;
        };
        if served.unverified || served.commit.fenced_by().is_some() {
            return;
        }
        let Some(orphans) = served.commit.orphans_among(&listed) else {
            // Something of it is under way: later.
            let again = Sweeping {
                volume,
                sweep,
                listed,
            };
            uploader.sweeping = Some(again);
            return;
        };
        if !orphans.is_empty() {
            self.coverage.hit("an orphan was swept");
            self.note(format_args!("{} orphans of {volume}", orphans.len()));
        }
        if self.sweeps.dice.chance(500) {
            // The request is sent and lands whenever.
            for object in orphans {
                let late = Late::Delete(object.object());
                let delay = self.sweeps.dice.range(1..=LATE_US);
                self.schedule(delay, Event::Land { late, then: None });
            }
            return;
        }
        let deleted = block_on(sweep.judged(&self.objects, &orphans));
        deleted.expect("nothing is scripted");
        self.list_some(volume, sweep);
    }
}

//! Writers that pause in the middle of a commit, often right before a delete, and go on once
//! another one has the volume: what they still delete is nothing that the other one has gone back
//! to, or that was cloned meanwhile.

use super::{Coverage, Dice, Haunting, MemBackend, Writer, Written, haunt};
use crate::error::Result;

/// Of one volume at a time.
const PAUSED_MAX: usize = 2;

/// A writer that pauses, and what was done to its volume since then.
pub(super) struct Paused {
    writer: Writer,
    went_back: bool,
    was_cloned: bool,
}

impl Paused {
    fn is_overtaken(&self) -> bool {
        self.went_back || self.was_cloned
    }
}

impl Written {
    /// A writer pauses, and another one takes the volume over; or one that paused goes on a little.
    /// Nothing fails meanwhile.
    pub(super) fn pause_or_go_on(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> Result<()> {
        if !self.pauses {
            return Ok(());
        }
        if self.paused.len() < PAUSED_MAX && dice.chance(300) {
            return self.pause(objects, dice, coverage);
        }
        let waits = |paused: &Paused| paused.writer.held.is_some() && !paused.is_overtaken();
        let first_waits = self.paused.first().is_none_or(waits);
        if !self.paused.is_empty() && dice.chance(if first_waits { 50 } else { 300 }) {
            let effects = dice.range(1..=3) as usize;
            self.go_on(objects, effects, coverage);
        }
        Ok(())
    }

    fn pause(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> Result<()> {
        let stops = dice.chance(700);
        self.writer(objects, dice)?.stops_at_deletes = stops;
        let effects = match stops {
            true => usize::MAX,
            false => dice.range(1..=12) as usize,
        };
        self.write(objects, dice, effects, None)?;
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        writer.stops_at_deletes = false;
        if stops && writer.held.is_none() {
            // It had nothing to delete, and has done all that it began.
            self.writer = Some(writer);
            return Ok(());
        }
        self.paused.push(Paused {
            writer,
            went_back: false,
            was_cloned: false,
        });
        // Without this its next manifest could still come first.
        self.writer(objects, dice)?;
        match dice.chance(400) {
            true => self.roll_back(objects, dice, coverage),
            false => Ok(()),
        }
    }

    fn go_on(&mut self, objects: &MemBackend, effects: usize, coverage: &mut Coverage) {
        let mut paused = self.paused.remove(0);
        let deletes = paused.writer.deletes;
        let haunting = haunt(&mut paused.writer, objects, effects);
        if paused.writer.deletes > deletes {
            if paused.went_back {
                coverage.hit("a paused writer's delete landed after a rollback elsewhere");
            }
            if paused.was_cloned {
                coverage.hit("a paused writer's delete landed after a clone elsewhere");
            }
        }
        if haunting == Haunting::GoesOn {
            self.paused.push(paused);
        }
    }

    /// Another writer took the volume back to something older.
    pub(super) fn paused_see_rollback(&mut self) {
        self.paused.iter_mut().for_each(|p| p.went_back = true);
    }

    /// One of its snapshots was cloned.
    pub(in crate::sim) fn paused_see_clone(&mut self) {
        self.paused.iter_mut().for_each(|p| p.was_cloned = true);
    }

    /// Those that pause; the volume is about to be deleted.
    pub(in crate::sim) fn take_paused(&mut self) -> impl Iterator<Item = Writer> {
        std::mem::take(&mut self.paused)
            .into_iter()
            .map(|p| p.writer)
    }
}

//! Points in time in the commits of a volume: how long they have been kept, and which leave.

use super::VolumeCommit;
use crate::identity::ManifestNum;
use crate::object::SealedRef;
use crate::point::{Moment, PointTable};
use crate::timestamp::UnixMs;

/// What two clocks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The clock on the wall, which may be set.
    pub wall: UnixMs,
    /// A clock of this process that is never set.
    pub steady_ms: u64,
}

/// Counts time that has passed for sure: as much as both clocks say, so that neither alone, set
/// forward or back, makes a point leave before its time.
#[derive(Default)]
pub(super) struct Ageing {
    last: Option<Reading>,
    /// Since the last moment.
    passed_ms: u64,
}

impl Ageing {
    fn note(&mut self, now: Reading) {
        if let Some(last) = self.last {
            let by_wall = now.wall.0.saturating_sub(last.wall.0);
            let by_steady = now.steady_ms.saturating_sub(last.steady_ms);
            self.passed_ms += by_wall.min(by_steady);
        }
        self.last = Some(now);
    }
}

impl VolumeCommit {
    /// The committed points in time.
    pub fn points(&self) -> &PointTable {
        &self.points
    }

    /// Tells the time, before a commit is begun or chosen, and from which manifest on images are in
    /// use: those are kept, however old.
    pub fn note_time(&mut self, now: Reading, held: Option<ManifestNum>) {
        self.ageing.note(now);
        self.held = held;
    }

    /// When the manifest being drafted is made, and what it keeps.
    pub(super) fn next_moment(&mut self) -> Option<Moment> {
        let moment = self.moment_now();
        self.ageing.passed_ms = 0;
        moment
    }

    /// The moment of a manifest that was drafted now.
    pub fn moment_now(&self) -> Option<Moment> {
        let now = self.ageing.last.unwrap_or_default().wall;
        let window_ms = self.head.settings.pitr_window_ms();
        let passed = (now, self.ageing.passed_ms);
        let next = |last| self.points.next_moment(last, passed, window_ms, self.held);
        self.head.moment.map(next)
    }

    /// Whether points in time need an own object without live blocks, as of now.
    pub(super) fn is_kept_by_points(&self, object: &SealedRef) -> bool {
        let next = self.head.number.next();
        let idle_since = self.garbage.idle_since(object).unwrap_or(next);
        let now = self.moment_now();
        now.is_some_and(|moment| moment.since < idle_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_clock_alone_makes_time_pass() {
        let mut ageing = Ageing::default();
        let mut note = |wall: u64, steady_ms| {
            let wall = UnixMs(wall);
            ageing.note(Reading { wall, steady_ms });
            ageing.passed_ms
        };
        assert_eq!(note(1000, 0), 0, "nothing to compare with");
        assert_eq!(note(1500, 500), 500);
        assert_eq!(note(9_000_000, 600), 600, "set forward");
        assert_eq!(note(2000, 700), 600, "set back");
        assert_eq!(note(2100, 800), 700);
        assert_eq!(note(2200, 90_000_000), 800, "the other one is wrong");
    }
}

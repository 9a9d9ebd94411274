//! Whether a flush barrier is a plain system call of the core or goes through the ring.

use std::time::{Duration, Instant};

/// A barrier is issued as a plain system call while it takes less than this on average: the core
/// waits for it, but a kernel worker's wake-ups cost more.
const DIRECT_MAX: Duration = Duration::from_micros(250);
/// A barrier that took so long held up every client of the core: no more of these for a while.
const SLOW: Duration = Duration::from_millis(5);
/// The first time; each one that is slow again right after doubles it.
const WARY_FIRST: Duration = Duration::from_secs(10);
const WARY_MAX: Duration = Duration::from_secs(600);
/// What a barrier weighs in the average.
const WEIGHT: u32 = 8;

/// How long barriers take here.
#[derive(Debug)]
pub(super) struct BarrierPace {
    average: Duration,
    /// No barrier holds the core up before.
    wary_until: Option<Instant>,
    wary_for: Duration,
}

impl BarrierPace {
    /// Nothing is known: the first is tried directly, as the probe at start was.
    pub(super) fn new() -> Self {
        Self {
            average: Duration::ZERO,
            wary_until: None,
            wary_for: WARY_FIRST,
        }
    }

    /// Whether the core may wait for a barrier itself.
    pub(super) fn is_direct(&self, now: Instant) -> bool {
        self.average < DIRECT_MAX && self.wary_until.is_none_or(|until| now >= until)
    }

    /// A barrier that was issued directly took so long.
    pub(super) fn note_direct(&mut self, took: Duration, now: Instant) {
        self.note(took);
        if took >= SLOW {
            if self.wary_until.is_some() {
                self.wary_for = (self.wary_for * 2).min(WARY_MAX);
            }
            self.wary_until = Some(now + self.wary_for);
        }
    }

    /// A barrier that went through the ring took so long, the kernel worker's part included. So a
    /// device that became fast gets its short way back.
    pub(super) fn note_ring(&mut self, took: Duration) {
        self.note(took);
    }

    fn note(&mut self, took: Duration) {
        // One that hangs for a minute must not count for hours.
        let took = took.min(SLOW);
        self.average = (self.average * (WEIGHT - 1) + took) / WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_micros(60);

    fn after(pace: &mut BarrierPace, count: u32) {
        for _ in 0..count {
            pace.note_ring(FAST);
        }
    }

    #[test]
    fn a_fast_device_is_asked_directly_and_a_slow_one_never_again_and_again() {
        let (mut pace, now) = (BarrierPace::new(), Instant::now());
        assert!(pace.is_direct(now));
        pace.note_direct(FAST, now);
        assert!(pace.is_direct(now));
        for _ in 0..20 {
            pace.note_ring(Duration::from_millis(1));
        }
        assert!(!pace.is_direct(now), "slow on average");
        after(&mut pace, 30);
        assert!(pace.is_direct(now), "and fast again");
    }

    #[test]
    fn one_that_hung_keeps_the_core_from_waiting_for_a_good_while() {
        let (mut pace, now) = (BarrierPace::new(), Instant::now());
        pace.note_direct(Duration::from_secs(50), now);
        after(&mut pace, 40);
        assert!(!pace.is_direct(now + WARY_FIRST / 2));
        let later = now + WARY_FIRST;
        assert!(pace.is_direct(later));
        pace.note_direct(SLOW, later);
        after(&mut pace, 40);
        assert!(!pace.is_direct(later + WARY_FIRST), "twice as long now");
        assert!(pace.is_direct(later + WARY_FIRST * 2));
    }
}

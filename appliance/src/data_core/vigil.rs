//! Whether an idle core stays awake for its next event: only while events come so soon that
//! sleeping and being woken would take longer than the wait itself, and nobody else wants the CPU.

use std::time::Duration;

/// Waits in a row that must be short before the core stays awake in the next.
const SHORT_BEFORE: u32 = 8;
/// As many at most, after the core was found to be in others' way again and again.
const SHORT_BEFORE_MAX: u32 = 16;
/// Waits that were worth staying awake for, to trust the CPU's being free again.
const TRUSTED_AFTER: u32 = 256;
/// What a vain wait costs: so many must be short again.
const IN_VAIN: u32 = 4;
/// A disk takes longer than a client between two requests, with a durable write or from one bunch
/// of many reads to the next: so many times as long is it waited for.
const DISK_FACTOR: u32 = 4;
/// Between two looks of a core that stays awake. More is an interrupt, or that the CPU was taken
/// from it for another thread: the kernel is asked which.
const LOOK_MAX: Duration = Duration::from_micros(8);

/// How soon events have come lately.
#[derive(Debug)]
pub(super) struct Vigil {
    longest: Duration,
    /// Short waits in a row, at most `short_before`; vain ones subtract.
    short: u32,
    short_before: u32,
    rewarded: u32,
    /// How often the kernel had given the CPU to others when it was asked last.
    switches: u64,
    ask: fn() -> u64,
}

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Clients and other cores.
    Clients,
    /// This machine's disk, and perhaps clients and other cores.
    Disk,
}

/// What became of staying awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Nothing yet: look again.
    On,
    /// Nothing came in time, or others need the CPU: sleep.
    Over,
}

impl Vigil {
    /// Stays awake for at most `longest` for clients, a few times as long for a disk; zero: never.
    /// `ask` says how often this thread lost its CPU to another one.
    pub(super) fn new(longest: Duration, ask: fn() -> u64) -> Self {
        Self {
            longest,
            short: 0,
            short_before: SHORT_BEFORE,
            rewarded: 0,
            switches: ask(),
            ask,
        }
    }

    /// Whether to stay awake now, looking again and again.
    pub(super) fn is_due(&self) -> bool {
        self.short >= self.short_before && !self.longest.is_zero()
    }

    /// A look in vain, `since_look` after the one before and `waited` after the first.
    pub(super) fn looked(
        &mut self,
        awaited: Awaited,
        since_look: Duration,
        waited: Duration,
    ) -> Watch {
        if since_look > LOOK_MAX && self.was_in_the_way() {
            return Watch::Over;
        }
        if waited >= self.longest_for(awaited) {
            self.short = self.short.saturating_sub(IN_VAIN);
            return Watch::Over;
        }
        Watch::On
    }

    /// An event was seen, `since_look` after the look before.
    pub(super) fn seen(&mut self, since_look: Duration) {
        if since_look > LOOK_MAX && self.was_in_the_way() {
            return;
        }
        self.rewarded += 1;
        if self.rewarded >= TRUSTED_AFTER {
            self.short_before = SHORT_BEFORE;
        }
    }

    /// Whether the CPU was taken away: the very client that is waited for may need it. Each time,
    /// twice as many short waits go by before the next try.
    fn was_in_the_way(&mut self) -> bool {
        let switches = (self.ask)();
        if switches == std::mem::replace(&mut self.switches, switches) {
            return false;
        }
        self.short = 0;
        self.rewarded = 0;
        self.short_before = (self.short_before * 2).min(SHORT_BEFORE_MAX);
        true
    }

    /// The core slept and something came after `slept`. For a client, half of that may have been
    /// the two wake-ups, the client's and the core's own, of which being awake spares one.
    pub(super) fn slept(&mut self, awaited: Awaited, slept: Duration) {
        let short = match awaited {
            Awaited::Clients => self.longest * 2,
            Awaited::Disk => self.longest_for(awaited),
        };
        if slept <= short {
            self.short = (self.short + 1).min(self.short_before);
        } else {
            self.short = 0;
        }
    }

    fn longest_for(&self, awaited: Awaited) -> Duration {
        match awaited {
            Awaited::Clients => self.longest,
            Awaited::Disk => self.longest * DISK_FACTOR,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LONGEST: Duration = Duration::from_micros(100);
    const SHORT: Duration = Duration::from_micros(1);

    fn alone() -> u64 {
        0
    }

    /// Another number each time.
    fn crowded() -> u64 {
        static SWITCHES: AtomicU64 = AtomicU64::new(1);
        SWITCHES.fetch_add(1, Ordering::Relaxed)
    }

    fn sleeps_until_due(vigil: &mut Vigil) -> u32 {
        let mut waits = 0;
        while !vigil.is_due() {
            vigil.slept(Awaited::Clients, LONGEST * 2);
            waits += 1;
        }
        waits
    }

    #[test]
    fn a_client_that_asks_again_at_once_is_awaited_until_it_pauses() {
        let mut vigil = Vigil::new(LONGEST, alone);
        assert_eq!(sleeps_until_due(&mut vigil), SHORT_BEFORE);
        for _ in 0..1000 {
            assert_eq!(
                vigil.looked(Awaited::Clients, SHORT, LONGEST / 2),
                Watch::On
            );
            vigil.seen(SHORT);
            assert!(vigil.is_due());
        }
        vigil.slept(Awaited::Clients, LONGEST * 3);
        assert!(!vigil.is_due(), "it paused");
    }

    #[test]
    fn a_client_just_too_slow_costs_one_vain_wait_in_several_requests() {
        let mut vigil = Vigil::new(LONGEST, alone);
        sleeps_until_due(&mut vigil);
        assert_eq!(vigil.looked(Awaited::Clients, SHORT, LONGEST), Watch::Over);
        assert!(!vigil.is_due());
        assert_eq!(sleeps_until_due(&mut vigil), IN_VAIN);
    }

    #[test]
    fn where_others_need_the_cpu_the_core_stays_awake_ever_more_rarely() {
        let mut vigil = Vigil::new(LONGEST, crowded);
        let mut before = 0;
        for _ in 0..20 {
            let waits = sleeps_until_due(&mut vigil);
            assert!(waits > before || waits == SHORT_BEFORE_MAX, "{waits}");
            before = waits;
            vigil.seen(LOOK_MAX + SHORT);
        }
        assert_eq!(sleeps_until_due(&mut vigil), SHORT_BEFORE_MAX);
        for _ in 0..TRUSTED_AFTER {
            vigil.seen(SHORT);
        }
        vigil.slept(Awaited::Clients, LONGEST * 3);
        assert_eq!(sleeps_until_due(&mut vigil), SHORT_BEFORE, "free again");
    }

    #[test]
    fn an_interrupt_is_not_taken_for_somebody_else() {
        let mut vigil = Vigil::new(LONGEST, alone);
        sleeps_until_due(&mut vigil);
        assert_eq!(
            vigil.looked(Awaited::Clients, LOOK_MAX * 2, LOOK_MAX * 2),
            Watch::On
        );
        vigil.seen(LOOK_MAX * 2);
        assert!(vigil.is_due());
    }

    #[test]
    fn a_disk_is_awaited_longer_than_a_client() {
        let mut vigil = Vigil::new(LONGEST, alone);
        let between = LONGEST * DISK_FACTOR;
        for _ in 0..SHORT_BEFORE {
            vigil.slept(Awaited::Disk, between);
        }
        assert!(vigil.is_due());
        assert_eq!(
            vigil.looked(Awaited::Disk, SHORT, between - SHORT),
            Watch::On
        );
        assert_eq!(vigil.looked(Awaited::Disk, SHORT, between), Watch::Over);
        for _ in 0..IN_VAIN {
            vigil.slept(Awaited::Disk, between);
        }
        assert_eq!(vigil.looked(Awaited::Clients, SHORT, LONGEST), Watch::Over);
        vigil.slept(Awaited::Disk, between + SHORT);
        assert!(!vigil.is_due(), "a slow disk is not");
    }

    #[test]
    fn zero_never_stays_awake() {
        let mut vigil = Vigil::new(Duration::ZERO, alone);
        for _ in 0..100 {
            vigil.slept(Awaited::Clients, Duration::ZERO);
        }
        assert!(!vigil.is_due());
    }
}

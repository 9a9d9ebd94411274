//! How fast a volume may be used: its limits on requests and bytes a second, shared by all its
//! connections on all cores. Token buckets without a clock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use taipan_engine::volume::VolumeSettings;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A bucket as the time at which everything taken from it is paid for. Before that it is in use;
/// what is taken `burst` ahead of it waits.
#[derive(Debug, Default)]
struct Bucket {
    paid_ns: AtomicU64,
}

impl Bucket {
    /// Takes what costs so much time. Gives when it may be used: whoever comes first is first, and
    /// nobody comes behind more than what was taken before.
    fn take(&self, cost_ns: u64, burst_ns: u64, now_ns: u64) -> u64 {
        let add = |paid_ns: u64| Some(paid_ns.max(now_ns).saturating_add(cost_ns));
        let taken = self
            .paid_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let (Ok(before_ns) | Err(before_ns)) = taken;
        before_ns.saturating_sub(burst_ns).max(now_ns)
    }
}

/// When a request may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// On the daemon's clock.
    pub at_ns: u64,
    /// Under which limits it was given.
    generation: u64,
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Requests that waited.
    pub requests: u64,
    /// How long, all together.
    pub waited_ns: u64,
}

/// The limits of one volume.
#[derive(Debug, Default)]
pub struct Throttle {
    is_on: AtomicBool,
    /// Counts changes of the limits.
    generation: AtomicU64,
    /// 0: no limit.
    iops: AtomicU64,
    /// 0: no limit.
    bytes_per_second: AtomicU64,
    burst_ns: AtomicU64,
    requests: Bucket,
    bytes: Bucket,
    delayed: AtomicU64,
    waited_ns: AtomicU64,
}

impl Throttle {
    /// The limits of these settings.
    pub fn of(settings: &VolumeSettings) -> Self {
        let throttle = Self::default();
        throttle.set(settings);
        throttle
    }

    /// Other limits from now on. Those that wait get another turn, and the buckets are full.
    pub fn set(&self, settings: &VolumeSettings) {
        let burst_ns = settings.burst().saturating_mul(NANOS_PER_SECOND);
        let wanted = [
            (&self.iops, settings.iops),
            (&self.bytes_per_second, settings.bandwidth_bytes),
            (&self.burst_ns, burst_ns),
        ];
        let changed = |(now, wanted): &(&AtomicU64, u64)| now.load(Ordering::Relaxed) != *wanted;
        if !wanted.iter().any(changed) {
            return;
        }
        for (limit, wanted) in wanted {
            limit.store(wanted, Ordering::Relaxed);
        }
        for bucket in [&self.requests, &self.bytes] {
            bucket.paid_ns.store(0, Ordering::Relaxed);
        }
        let is_on = settings.iops > 0 || settings.bandwidth_bytes > 0;
        self.is_on.store(is_on, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether there are limits.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Takes a request with so many bytes. It is paid for whether it begins or not.
    pub fn take(&self, bytes: u64, now_ns: u64) -> Turn {
        let generation = self.generation.load(Ordering::Acquire);
        let burst_ns = self.burst_ns.load(Ordering::Relaxed);
        let buckets = [
            (&self.requests, 1, &self.iops),
            (&self.bytes, bytes, &self.bytes_per_second),
        ];
        let mut at_ns = now_ns;
        for (bucket, amount, limit) in buckets {
            if let Some(cost_ns) = cost_ns(amount, limit.load(Ordering::Relaxed)) {
                at_ns = at_ns.max(bucket.take(cost_ns, burst_ns, now_ns));
            }
        }
        Turn { at_ns, generation }
    }

    /// Whether the limits are those under which the turn was given; else it is worth nothing.
    pub fn stands(&self, turn: &Turn) -> bool {
        self.generation.load(Ordering::Acquire) == turn.generation
    }

    /// A request had to wait so long.
    pub fn delayed(&self, waited_ns: u64) {
        self.delayed.fetch_add(1, Ordering::Relaxed);
        self.waited_ns.fetch_add(waited_ns, Ordering::Relaxed);
    }

    /// How many waited so far, and how long.
    pub fn delays(&self) -> Delays {
        Delays {
            requests: self.delayed.load(Ordering::Relaxed),
            waited_ns: self.waited_ns.load(Ordering::Relaxed),
        }
    }
}

/// What an amount costs at a rate; `None`: nothing.
fn cost_ns(amount: u64, per_second: u64) -> Option<u64> {
    let ns = (u128::from(amount) * u128::from(NANOS_PER_SECOND)).checked_div(per_second.into())?;
    (amount > 0).then(|| u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn throttle(iops: u64, bandwidth_bytes: u64, burst_seconds: u64) -> Throttle {
        Throttle::of(&VolumeSettings {
            iops,
            bandwidth_bytes,
            burst_seconds,
            ..VolumeSettings::with_size(1 << 30)
        })
    }

    #[test]
    fn without_limits_nothing_waits() {
        let throttle = throttle(0, 0, 5);
        assert!(!throttle.is_on());
        assert_eq!(throttle.take(1 << 40, 7).at_ns, 7);
        assert_eq!(throttle.take(1 << 40, 7).at_ns, 7);
    }

    #[test]
    fn an_idle_volume_may_burst_and_then_has_its_rate() {
        let throttle = throttle(100, 0, 2);
        let now_ns = 50 * SECOND;
        let burst = (0..=200).filter(|_| throttle.take(9, now_ns).at_ns == now_ns);
        assert_eq!(
            burst.count(),
            201,
            "2 seconds' worth, and one to begin with"
        );
        assert_eq!(throttle.take(9, now_ns).at_ns, now_ns + SECOND / 100);
        assert_eq!(throttle.take(9, now_ns).at_ns, now_ns + SECOND / 50);
        let later_ns = now_ns + 100 * SECOND;
        assert_eq!(throttle.take(9, later_ns).at_ns, later_ns, "it has rested");
    }

    #[test]
    fn a_request_larger_than_the_burst_begins_and_is_paid_for_later() {
        let throttle = throttle(0, 1 << 20, 0);
        assert_eq!(throttle.take(64 << 20, 0).at_ns, 0);
        assert_eq!(
            throttle.take(1, 0).at_ns,
            63 * SECOND,
            "the default burst is one second"
        );
    }

    #[test]
    fn the_stricter_of_both_limits_decides() {
        let throttle = throttle(10, 1 << 20, 1);
        for _ in 0..11 {
            assert_eq!(throttle.take(512, 0).at_ns, 0);
        }
        assert_eq!(throttle.take(8 << 20, 0).at_ns, SECOND / 10, "requests");
        let at_ns = throttle.take(512, 0).at_ns;
        assert!((6 * SECOND..8 * SECOND).contains(&at_ns), "bytes: {at_ns}");
    }

    #[test]
    fn other_limits_void_the_turns_that_were_given_and_equal_ones_do_not() {
        let throttle = throttle(1, 0, 1);
        let turn = (0..5).map(|_| throttle.take(0, 0)).last().unwrap();
        let mut settings = VolumeSettings {
            iops: 1,
            burst_seconds: 1,
            ..VolumeSettings::with_size(1 << 30)
        };
        throttle.set(&settings);
        assert!(throttle.stands(&turn) && turn.at_ns == 3 * SECOND);
        settings.iops = 0;
        throttle.set(&settings);
        assert!(!throttle.stands(&turn) && !throttle.is_on());
        assert_eq!(throttle.take(0, 5).at_ns, 5);
    }

    #[test]
    fn connections_that_always_want_more_get_the_same() {
        let throttle = throttle(1000, 0, 1);
        // Each takes its next turn when the one before has come; one of them in a hurry.
        let mut begun = [0_u32; 5];
        let mut turns = [0_u64; 5];
        let mut now_ns = 0;
        while now_ns < 30 * SECOND {
            let first = (0..5).min_by_key(|connection| turns[*connection]).unwrap();
            now_ns = now_ns.max(turns[first]);
            begun[first] += 1;
            turns[first] = throttle.take(0, now_ns).at_ns;
        }
        let (least, most) = (begun.iter().min().unwrap(), begun.iter().max().unwrap());
        assert!(
            most - least <= 1100,
            "{begun:?}: the burst may be one's own"
        );
        let all: u32 = begun.iter().sum();
        assert!((30_000..=31_010).contains(&all), "{all}");
    }

    proptest! {
        /// Whatever comes when: never more than the rate and one burst, in the order of coming, and
        /// nobody waits while the bucket is full.
        #[test]
        fn what_begins_in_any_time_is_bounded(
            rate in 1..10_000_u64,
            burst_seconds in 1..5_u64,
            arrivals in prop::collection::vec((0..SECOND, 0..2000_u64), 1..200),
        ) {
            let throttle = throttle(0, rate, burst_seconds);
            let (mut now_ns, mut begun) = (0, Vec::<(u64, u64)>::new());
            for (pause_ns, bytes) in arrivals {
                now_ns += pause_ns;
                let turn = throttle.take(bytes, now_ns);
                prop_assert!(turn.at_ns >= now_ns);
                if let Some((last_ns, _)) = begun.last() {
                    // A request without bytes costs nothing, and so waits for nothing.
                    prop_assert!(bytes == 0 || turn.at_ns >= *last_ns);
                }
                if bytes > 0 {
                    begun.push((turn.at_ns, bytes));
                }
            }
            for from in 0..begun.len() {
                let mut bytes = 0;
                for to in from..begun.len() {
                    // The last one may be larger than what is left.
                    let ns = begun[to].0 - begun[from].0;
                    let most = u128::from(rate) * u128::from(ns + burst_seconds * SECOND);
                    let rounded = u128::from(SECOND) * (to as u128 + 1);
                    prop_assert!(u128::from(bytes) * u128::from(SECOND) <= most + rounded);
                    bytes += begun[to].1;
                }
            }
        }
    }
}

//! A latency histogram of fixed buckets, two to the octave, that costs one store to update.

use std::time::Duration;

use super::counters::LocalCount;

/// Buckets with an upper bound: 1 µs, 1.5 µs, 2 µs, 3 µs … 33.6 s. One more takes the rest.
const BOUNDED_BUCKETS: usize = 51;
const HALF_MICRO_NANOS: u64 = 500;

/// Upper bound of bucket `index` in nanoseconds, inclusive; `None` for the last, unbounded one.
pub fn bound_nanos(index: usize) -> Option<u64> {
    (index < BOUNDED_BUCKETS).then(|| {
        let steps = if index.is_multiple_of(2) { 2 } else { 3 };
        (HALF_MICRO_NANOS * steps) << (index / 2)
    })
}

/// The bucket of a duration of `nanos`.
fn bucket(nanos: u64) -> usize {
    let half_micros = nanos.div_ceil(HALF_MICRO_NANOS);
    if half_micros <= 2 {
        return 0;
    }
    // Bounds are inclusive: count from the value below.
    let below = half_micros - 1;
    let octave = below.ilog2();
    let upper_half = usize::from(below & (1 << (octave - 1)) != 0);
    (2 * (octave as usize - 1) + 1 + upper_half).min(BOUNDED_BUCKETS)
}

/// A histogram with one writer.
#[derive(Debug)]
pub struct Latency {
    buckets: [LocalCount; BOUNDED_BUCKETS + 1],
    sum_nanos: LocalCount,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| LocalCount::default()),
            sum_nanos: LocalCount::default(),
        }
    }
}

impl Latency {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].add(1);
        self.sum_nanos.add(nanos);
    }

    /// The counts now.
    pub fn totals(&self) -> LatencyTotals {
        LatencyTotals {
            buckets: std::array::from_fn(|i| self.buckets[i].get()),
            sum_nanos: self.sum_nanos.get(),
        }
    }
}

/// Counts of a [`Latency`], addable over cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyTotals {
    /// Durations per bucket (not cumulative).
    pub buckets: [u64; BOUNDED_BUCKETS + 1],
    /// Sum of all durations.
    pub sum_nanos: u64,
}

impl Default for LatencyTotals {
    fn default() -> Self {
        Self {
            buckets: [0; BOUNDED_BUCKETS + 1],
            sum_nanos: 0,
        }
    }
}

impl LatencyTotals {
    /// Adds the counts of another histogram.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(other.sum_nanos);
    }

    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_in_the_bucket_whose_bounds_hold_it() {
        let mut values: Vec<u64> = (0..BOUNDED_BUCKETS)
            .filter_map(bound_nanos)
            .flat_map(|bound| [bound - 1, bound, bound + 1])
            .collect();
        values.extend([0, 1, 499, 500, 501, 40_000_000_000, u64::MAX]);
        for nanos in values {
            let index = bucket(nanos);
            if let Some(bound) = bound_nanos(index) {
                assert!(nanos <= bound, "{nanos} above bucket {index}");
            }
            if let Some(below) = index.checked_sub(1).and_then(bound_nanos) {
                assert!(nanos > below, "{nanos} not above bucket {}", index - 1);
            }
        }
    }

    #[test]
    fn bounds_grow_from_one_microsecond_past_thirty_seconds() {
        assert_eq!(bound_nanos(0), Some(1_000));
        assert_eq!(bound_nanos(1), Some(1_500));
        assert_eq!(bound_nanos(2), Some(2_000));
        assert_eq!(bound_nanos(BOUNDED_BUCKETS - 1), Some(33_554_432_000));
        assert_eq!(bound_nanos(BOUNDED_BUCKETS), None);
        assert!((1..BOUNDED_BUCKETS).all(|i| bound_nanos(i) > bound_nanos(i - 1)));
    }

    #[test]
    fn totals_add_up_over_cores() {
        let (a, b) = (Latency::default(), Latency::default());
        a.record(Duration::from_micros(3));
        b.record(Duration::from_micros(3));
        b.record(Duration::from_secs(100));
        let mut sum = a.totals();
        sum.add(&b.totals());
        assert_eq!(sum.count(), 3);
        assert_eq!(sum.buckets[3], 2);
        assert_eq!(sum.buckets[BOUNDED_BUCKETS], 1);
        assert_eq!(sum.sum_nanos, 100_000_006_000);
    }
}

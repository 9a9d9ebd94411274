//! Counts and latencies of answered requests, and the processor time they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use crate::workload::Kind;

/// Longest latency that is told apart, one hour in nanoseconds.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Answered requests of one kind.
#[derive(Clone)]
pub(crate) struct KindTally {
    /// Requests answered with success.
    pub(crate) requests: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Their latencies in nanoseconds, at three digits.
    pub(crate) latency_ns: Histogram<u64>,
}

impl KindTally {
    fn new() -> Self {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Self {
            requests: 0,
            bytes: 0,
            latency_ns: latency_ns.expect("the bounds are valid"),
        }
    }
}

/// Answered requests of all kinds.
#[derive(Clone)]
pub(crate) struct Tally {
    kinds: [KindTally; Kind::ALL.len()],
}

impl Tally {
    /// Nothing answered.
    pub(crate) fn new() -> Self {
        Self {
            kinds: std::array::from_fn(|_| KindTally::new()),
        }
    }

    /// A request was answered with success.
    #[inline]
    pub(crate) fn record(&mut self, kind: Kind, bytes: u32, latency: Duration) {
        let tally = &mut self.kinds[kind as usize];
        tally.requests += 1;
        tally.bytes += u64::from(bytes);
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        tally.latency_ns.saturating_record(ns);
    }

    /// Adds the requests of another job.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.kinds.iter_mut().zip(&other.kinds) {
            if theirs.requests == 0 {
                continue;
            }
            mine.requests += theirs.requests;
            mine.bytes += theirs.bytes;
            mine.latency_ns
                .add(&theirs.latency_ns)
                .expect("all histograms have the same bounds");
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        for kind in self.kinds.iter_mut().filter(|kind| kind.requests > 0) {
            (kind.requests, kind.bytes) = (0, 0);
            kind.latency_ns.reset();
        }
    }

    /// The kinds that were answered.
    pub(crate) fn answered(&self) -> impl Iterator<Item = (Kind, &KindTally)> {
        let kinds = Kind::ALL.into_iter().zip(&self.kinds);
        kinds.filter(|(_, tally)| tally.requests > 0)
    }

    /// Requests of all kinds.
    pub(crate) fn requests(&self) -> u64 {
        self.kinds.iter().map(|k| k.requests).sum()
    }

    /// Bytes of all kinds.
    pub(crate) fn bytes(&self) -> u64 {
        self.kinds.iter().map(|k| k.bytes).sum()
    }
}

/// Counts that the live view reads while a job runs.
#[derive(Default)]
pub(crate) struct Live {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Live {
    /// Shows the totals of a job.
    pub(crate) fn show(&self, requests: u64, bytes: u64) {
        self.requests.store(requests, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Requests and bytes so far.
    pub(crate) fn read(&self) -> (u64, u64) {
        (
            self.requests.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// Processor time the calling thread has used, user and system.
pub(crate) fn thread_cpu() -> Duration {
    spent(ClockId::ThreadCPUTime)
}

/// Processor time this process has used, user and system.
pub(crate) fn process_cpu() -> Duration {
    spent(ClockId::ProcessCPUTime)
}

fn spent(clock: ClockId) -> Duration {
    let spent = clock_gettime(clock);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_tallies_count_every_request_once() {
        let (mut a, mut b) = (Tally::new(), Tally::new());
        a.record(Kind::Read, 4096, Duration::from_micros(10));
        b.record(Kind::Read, 512, Duration::from_micros(1000));
        b.record(Kind::Flush, 0, Duration::from_secs(7200));
        a.merge(&b);
        assert_eq!((a.requests(), a.bytes()), (3, 4608));
        let reads = &a.kinds[Kind::Read as usize].latency_ns;
        assert_eq!(reads.len(), 2);
        assert!(reads.value_at_quantile(1.0).abs_diff(1_000_000) <= 1000);
        assert_eq!(
            a.kinds[Kind::Flush as usize].latency_ns.len(),
            1,
            "beyond the bounds still counts"
        );
        assert_eq!(a.kinds[Kind::Write as usize].requests, 0);
        a.clear();
        assert_eq!((a.requests(), a.answered().count()), (0, 0));
        assert!(a.kinds[Kind::Read as usize].latency_ns.is_empty());
    }
}

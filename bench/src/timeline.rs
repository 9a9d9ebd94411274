//! Rates and latencies over time: each thread keeps the current interval's histograms to itself and
//! hands them over when the interval ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::outcome::{Interval, KindInterval};
use crate::tally::{KindTally, Live, Tally, thread_cpu};
use crate::workload::Kind;

/// Histograms of intervals, one JSON object a line.
pub(crate) type HistogramLog = Mutex<BufWriter<File>>;

/// Opens a log of histograms.
pub(crate) fn histogram_log(path: &Path) -> Result<HistogramLog> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(Mutex::new(BufWriter::new(file)))
}

/// The intervals of one job, merged over its threads.
pub(crate) struct Timeline<'a> {
    name: String,
    interval: Duration,
    log: Option<&'a HistogramLog>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Intervals that some threads have not yet left, by number.
    open: BTreeMap<u64, Tally>,
    closed: Vec<Interval>,
    log_error: Option<String>,
}

impl<'a> Timeline<'a> {
    /// No interval yet.
    pub(crate) fn new(name: &str, interval: Duration, log: Option<&'a HistogramLog>) -> Self {
        Self {
            name: name.to_owned(),
            interval,
            log,
            state: Mutex::default(),
        }
    }

    /// A thread has left interval `number`. What comes for one that was closed before, as from a
    /// thread that did not get the processor for long, is added to the oldest that is open.
    fn put(&self, number: u64, tally: &Tally) {
        let mut state = self.state.lock().expect("no thread panics with the lock");
        let first_open = state.closed.len() as u64;
        let number = number.max(first_open);
        let open = &mut state.open;
        open.entry(number).or_insert_with(Tally::new).merge(tally);
        let newest = *open.last_key_value().expect("one was put").0;
        while state.closed.len() as u64 + 2 <= newest {
            self.close_next(&mut state);
        }
    }

    fn close_next(&self, state: &mut State) {
        let number = state.closed.len() as u64;
        let at = self.interval.as_secs_f64() * (number + 1) as f64;
        let tally = state.open.remove(&number);
        if let (Some(log), Some(tally)) = (self.log, &tally) {
            let written = self.write_log(log, at, tally);
            if let Err(error) = written {
                state.log_error.get_or_insert_with(|| error.to_string());
            }
        }
        let kinds = tally.iter().flat_map(Tally::answered);
        let interval = Interval {
            at_seconds: at,
            kinds: kinds.map(|(kind, tally)| summary(kind, tally)).collect(),
        };
        state.closed.push(interval);
    }

    fn write_log(&self, log: &HistogramLog, at: f64, tally: &Tally) -> std::io::Result<()> {
        let mut log = log.lock().expect("no thread panics with the lock");
        for (kind, tally) in tally.answered() {
            let bins = tally.latency_ns.iter_recorded();
            let bins = bins.map(|bin| (bin.value_iterated_to(), bin.count_at_value()));
            let line = serde_json::json!({
                "job": self.name,
                "at_seconds": at,
                "kind": kind.name(),
                "latency_ns": bins.collect::<Vec<_>>(),
            });
            writeln!(log, "{line}")?;
        }
        log.flush()
    }

    /// Median and 99th percentile in µs of what was asked for most, of the newest interval.
    pub(crate) fn latest(&self) -> Option<(Kind, f64, f64)> {
        let state = self.state.lock().expect("no thread panics with the lock");
        let tally = state.open.last_key_value()?.1;
        let (kind, tally) = tally.answered().max_by_key(|(_, tally)| tally.requests)?;
        let at = |quantile| tally.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
        Some((kind, at(0.5), at(0.99)))
    }

    /// All intervals, after the last thread has ended, `elapsed` after the begin; and what went
    /// wrong with the log.
    pub(crate) fn finish(self, elapsed: Duration) -> (Vec<Interval>, Option<String>) {
        let mut state = self.state.lock().expect("no thread panics with the lock");
        while !state.open.is_empty() {
            self.close_next(&mut state);
        }
        let log_error = state.log_error.take();
        let log_error = log_error.map(|error| format!("writing the log of histograms: {error}"));
        // A job that came to nothing says no end.
        if !elapsed.is_zero()
            && let Some(last) = state.closed.last_mut()
        {
            last.at_seconds = elapsed.as_secs_f64();
        }
        (std::mem::take(&mut state.closed), log_error)
    }
}

fn summary(kind: Kind, tally: &KindTally) -> KindInterval {
    let at = |quantile| tally.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
    KindInterval {
        kind: kind.name().to_owned(),
        requests: tally.requests,
        bytes: tally.bytes,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: tally.latency_ns.max() as f64 / 1e3,
    }
}

/// What one thread counts.
pub(crate) struct Recorder<'a> {
    timeline: &'a Timeline<'a>,
    live: &'a Live,
    current: Tally,
    total: Tally,
    requests: u64,
    bytes: u64,
    measured_from: Instant,
    /// When the current interval ends; before the measurement begins, its begin.
    until: Instant,
    measuring: bool,
    number: u64,
    /// Number of the last interval: answers that come behind the deadline count there.
    last: u64,
    cpu_before: Duration,
}

/// What a thread brings home.
pub(crate) struct Recorded {
    /// Everything that was answered in the measured time.
    pub(crate) tally: Tally,
    /// Processor time of the thread meanwhile.
    pub(crate) cpu: Duration,
    /// From the begin of the measurement to the thread's end.
    pub(crate) elapsed: Duration,
}

impl<'a> Recorder<'a> {
    /// Counts from `measured_from` on. After `deadline` only answers are waited for.
    pub(crate) fn new(
        timeline: &'a Timeline<'a>,
        live: &'a Live,
        measured_from: Instant,
        deadline: Option<Instant>,
    ) -> Self {
        let interval = timeline.interval.as_nanos();
        let last = deadline.map_or(u64::MAX, |deadline| {
            let measured = deadline.saturating_duration_since(measured_from);
            (measured.as_nanos().div_ceil(interval) as u64).saturating_sub(1)
        });
        Self {
            timeline,
            live,
            current: Tally::new(),
            total: Tally::new(),
            requests: 0,
            bytes: 0,
            measured_from,
            until: measured_from,
            measuring: false,
            number: 0,
            last,
            cpu_before: thread_cpu(),
        }
    }

    /// A request was answered with success.
    #[inline]
    pub(crate) fn record(&mut self, kind: Kind, bytes: u32, latency: Duration) {
        self.requests += 1;
        self.bytes += u64::from(bytes);
        self.current.record(kind, bytes, latency);
    }

    /// The thread looked at its clock; what is recorded next was answered at `now`.
    #[inline]
    pub(crate) fn tick(&mut self, now: Instant) {
        self.live.show(self.requests, self.bytes);
        if now >= self.until {
            self.turn_over(now);
        }
    }

    #[cold]
    fn turn_over(&mut self, now: Instant) {
        if self.measuring {
            self.hand_over();
        } else {
            self.current.clear();
            self.measuring = true;
            self.cpu_before = thread_cpu();
        }
        let interval = self.timeline.interval;
        let since = now - self.measured_from;
        let number = (since.as_nanos() / interval.as_nanos()) as u64;
        self.number = number.min(self.last);
        self.until = self.measured_from + interval.mul_f64((number + 1) as f64);
    }

    fn hand_over(&mut self) {
        self.timeline.put(self.number, &self.current);
        self.total.merge(&self.current);
        self.current.clear();
    }

    /// The thread has ended.
    pub(crate) fn finish(mut self, now: Instant) -> Recorded {
        if self.measuring {
            self.hand_over();
        }
        Recorded {
            cpu: thread_cpu().saturating_sub(self.cpu_before),
            elapsed: now.saturating_duration_since(self.measured_from),
            tally: self.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn requests(intervals: &[Interval]) -> Vec<u64> {
        let of = |interval: &Interval| interval.kinds.iter().map(|kind| kind.requests).sum();
        intervals.iter().map(of).collect()
    }

    #[test]
    fn threads_meet_in_their_intervals_and_a_silent_one_counts_zero() {
        let timeline = Timeline::new("a", SECOND, None);
        let (start, live) = (Instant::now(), Live::default());
        for steps in [[0.1, 0.2, 5.5], [0.3, 1.5, 5.6]] {
            let mut recorder = Recorder::new(&timeline, &live, start, None);
            recorder.tick(start);
            for at in steps {
                recorder.tick(start + SECOND.mul_f64(at));
                recorder.record(Kind::Read, 4096, US * 100);
            }
            let recorded = recorder.finish(start + SECOND * 6);
            assert_eq!(
                (recorded.tally.requests(), recorded.elapsed),
                (3, SECOND * 6)
            );
        }
        let intervals = timeline.finish(SECOND * 6).0;
        // The second thread is late for the first intervals: its requests are counted behind.
        assert_eq!(requests(&intervals).iter().sum::<u64>(), 6);
        assert_eq!(intervals.len(), 6);
        assert_eq!(intervals[5].at_seconds, 6.0);
        assert!(requests(&intervals)[2..4].iter().all(|&n| n == 0));
    }

    #[test]
    fn what_is_answered_while_ramping_up_is_not_counted() {
        let timeline = Timeline::new("a", SECOND, None);
        let (start, live) = (Instant::now(), Live::default());
        let mut recorder =
            Recorder::new(&timeline, &live, start + SECOND, Some(start + SECOND * 3));
        for tenth in 0..30 {
            recorder.tick(start + SECOND.mul_f64(f64::from(tenth) / 10.0));
            recorder.record(Kind::Write, 512, US * (tenth + 1));
        }
        assert_eq!(live.read().0, 29, "the live view shows all");
        recorder.tick(start + SECOND.mul_f64(3.001));
        recorder.record(Kind::Write, 512, US * 31);
        let recorded = recorder.finish(start + SECOND * 3);
        assert_eq!(
            recorded.tally.requests(),
            21,
            "the late answer belongs to the last interval"
        );
        assert_eq!(recorded.elapsed, SECOND * 2);
        let intervals = timeline.finish(SECOND * 2).0;
        assert_eq!(requests(&intervals), [10, 11]);
        let first = &intervals[0].kinds[0];
        assert_eq!((first.kind.as_str(), first.bytes), ("write", 5120));
        assert!((first.p50_us - 15.0).abs() < 0.1 && (first.max_us - 20.0).abs() < 0.1);
    }

    #[test]
    fn the_last_interval_of_a_job_that_came_to_nothing_has_an_end() {
        let timeline = Timeline::new("a", SECOND, None);
        let (start, live) = (Instant::now(), Live::default());
        let mut recorder = Recorder::new(&timeline, &live, start, None);
        recorder.tick(start);
        recorder.record(Kind::Write, 512, US);
        recorder.finish(start + SECOND);
        let intervals = timeline.finish(Duration::ZERO).0;
        assert_eq!(intervals[0].at_seconds, 1.0);
    }

    #[test]
    fn histograms_are_logged_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = histogram_log(&path).unwrap();
        let timeline = Timeline::new("a", SECOND, Some(&log));
        let (start, live) = (Instant::now(), Live::default());
        let mut recorder = Recorder::new(&timeline, &live, start, None);
        recorder.tick(start);
        for us in [10, 10, 20] {
            recorder.record(Kind::Flush, 0, US * us);
        }
        recorder.finish(start + SECOND);
        assert_eq!(timeline.finish(SECOND).1, None);
        let text = std::fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(
            (line["job"].as_str(), line["kind"].as_str()),
            (Some("a"), Some("flush"))
        );
        assert_eq!(line["latency_ns"][0][1], 2);
        assert_eq!(line["latency_ns"].as_array().unwrap().len(), 2);
    }
}

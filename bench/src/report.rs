//! What a run found: a table for people, JSON for programs, a verdict for the exit code.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::machine::{Machine, disk_of};
use crate::options::Percentiles;
use crate::outcome::{Cpu, JobOutcome, KindOutcome, Latency, Outcome, SCHEMA, Sums, Verified};
use crate::section::{Measured, Section};
use crate::tally::{KindTally, Tally};
use crate::uri::Address;
use crate::workload::Kind;

/// Result of one run.
pub(crate) struct Report {
    interval: Duration,
    started: SystemTime,
    elapsed: Duration,
    cpu: Duration,
    tally: Tally,
    percentiles: Percentiles,
    jobs: Vec<JobOutcome>,
    /// Why later jobs did not begin.
    errors: Vec<String>,
    interrupted: bool,
}

/// How a run ended, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything was answered and holds what it must.
    Good,
    /// A request was refused or not answered.
    Failed,
    /// A block holds something else than was written.
    Corrupt,
    /// A signal ended it.
    Interrupted,
}

impl Report {
    /// The report of a run that has not begun.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            started: SystemTime::now(),
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            tally: Tally::new(),
            percentiles: Percentiles(Vec::new()),
            jobs: Vec::new(),
            errors: Vec::new(),
            interrupted: false,
        }
    }

    /// Whether a job was added.
    pub(crate) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// The other jobs did not begin.
    pub(crate) fn broken_off(&mut self, error: String) {
        self.errors.push(error);
    }

    /// A signal ended the run.
    pub(crate) fn interrupted(&mut self) {
        self.interrupted = true;
    }

    /// Adds a job.
    pub(crate) fn add(&mut self, section: &Section, measured: Measured) -> Result<()> {
        let Section {
            name,
            options,
            spec,
            ..
        } = section;
        let tally = measured.tally.unwrap_or_else(Tally::new);
        self.tally.merge(&tally);
        for &percentile in &options.percentile_list.0 {
            if !self.percentiles.0.contains(&percentile) {
                self.percentiles.0.push(percentile);
            }
        }
        let target = match options.target()? {
            Address::File(path) => format!("{} ({})", path.display(), disk_of(path)),
            address => address.to_string(),
        };
        let verified = measured.verified.map(|found| Verified {
            blocks_checked: found.blocks_checked,
            blocks_bad: found.blocks_bad,
            samples: found.samples,
            cut_short: found.cut_short,
        });
        self.jobs.push(JobOutcome {
            name: name.clone(),
            target,
            engine: format!("{:?}", options.engine()).to_lowercase(),
            workload: spec.clone(),
            iodepth: options.iodepth,
            fua: options.fua,
            sums: sums(
                &tally,
                (measured.elapsed, measured.cpu),
                &options.percentile_list,
                measured.errors,
                verified,
            ),
            interval_seconds: self.interval.as_secs_f64(),
            intervals: measured.intervals,
        });
        Ok(())
    }

    /// Jobs that ran beside each other have ended after `elapsed`; the process used `cpu` for them.
    pub(crate) fn group_ended(&mut self, elapsed: Duration, cpu: Duration) {
        self.elapsed += elapsed;
        self.cpu += cpu;
    }

    fn outcome(&self) -> Outcome {
        let jobs = || self.jobs.iter().map(|job| &job.sums);
        let errors = jobs().flat_map(|sums| sums.errors.clone());
        let errors = errors.chain(self.errors.iter().cloned()).collect();
        let verified = jobs().filter_map(|sums| sums.verify.clone());
        let verified = verified.reduce(|mut all, job| {
            all.blocks_checked += job.blocks_checked;
            all.blocks_bad += job.blocks_bad;
            all.samples.extend(job.samples);
            all.cut_short |= job.cut_short;
            all
        });
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH);
        let times = (self.elapsed, self.cpu);
        Outcome {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix: started.map_or(0, |since| since.as_secs()),
            machine: Machine::here(),
            interrupted: self.interrupted,
            sums: sums(&self.tally, times, &self.percentiles, errors, verified),
            jobs: self.jobs.clone(),
        }
    }

    /// How the run ended.
    pub(crate) fn verdict(&self) -> Verdict {
        let sums = || self.jobs.iter().map(|job| &job.sums);
        let corrupt = |sums: &Sums| {
            sums.verify
                .as_ref()
                .is_some_and(|found| found.blocks_bad > 0)
        };
        if sums().any(corrupt) {
            Verdict::Corrupt
        } else if !self.errors.is_empty() || sums().any(|sums| !sums.errors.is_empty()) {
            Verdict::Failed
        } else if self.interrupted {
            Verdict::Interrupted
        } else {
            Verdict::Good
        }
    }

    /// The errors and bad blocks, one a line, for standard error.
    pub(crate) fn complaints(&self) -> impl Iterator<Item = &str> {
        let of_jobs = self.jobs.iter().flat_map(|job| {
            let samples = job.sums.verify.iter().flat_map(|found| &found.samples);
            job.sums.errors.iter().chain(samples).map(String::as_str)
        });
        of_jobs.chain(self.errors.iter().map(String::as_str))
    }

    /// The report as one JSON object.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.outcome())
    }

    /// Writes the JSON.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = self.json()? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The report as a table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let several = self.jobs.len() > 1;
        for job in &self.jobs {
            if several {
                push(&mut out, format_args!("[{}]", job.name));
            }
            head(&mut out, job);
            rows(&mut out, &job.sums);
            if several {
                push(&mut out, format_args!(""));
            }
        }
        if several {
            let sums = self.outcome().sums;
            push(
                &mut out,
                format_args!("all jobs, {:.2} s", sums.elapsed_seconds),
            );
            rows(&mut out, &sums);
        }
        if self.interrupted {
            push(&mut out, format_args!("interrupted: it ended early"));
        }
        out
    }
}

fn sums(
    tally: &Tally,
    (elapsed, cpu): (Duration, Duration),
    percentiles: &Percentiles,
    errors: Vec<String>,
    verify: Option<Verified>,
) -> Sums {
    let (seconds, requests) = (elapsed.as_secs_f64(), tally.requests());
    let per_second = |count: u64| {
        if seconds > 0.0 {
            count as f64 / seconds
        } else {
            0.0
        }
    };
    let kind = |(kind, tally): (Kind, &KindTally)| KindOutcome {
        kind: kind.name().to_owned(),
        requests: tally.requests,
        bytes: tally.bytes,
        iops: per_second(tally.requests),
        megabytes_per_second: per_second(tally.bytes) / 1e6,
        latency_us: latency(tally, percentiles),
    };
    let cpu_seconds = cpu.as_secs_f64();
    Sums {
        elapsed_seconds: seconds,
        requests,
        iops: per_second(requests),
        megabytes_per_second: per_second(tally.bytes()) / 1e6,
        kinds: tally.answered().map(kind).collect(),
        client_cpu: Cpu {
            seconds: cpu_seconds,
            percent_of_one_core: if seconds > 0.0 {
                cpu_seconds / seconds * 100.0
            } else {
                0.0
            },
            us_per_request: cpu_seconds * 1e6 / requests.max(1) as f64,
        },
        ok: errors.is_empty() && verify.as_ref().is_none_or(|found| found.blocks_bad == 0),
        verify,
        errors,
    }
}

fn latency(tally: &KindTally, percentiles: &Percentiles) -> Latency {
    let histogram = &tally.latency_ns;
    let at = |percent: f64| histogram.value_at_quantile(percent / 100.0) as f64 / 1e3;
    let listed = percentiles.0.iter();
    Latency {
        mean: histogram.mean() / 1e3,
        p50: at(50.0),
        p99: at(99.0),
        p999: at(99.9),
        max: histogram.max() as f64 / 1e3,
        percentiles: listed
            .map(|&percent| (percent.to_string(), at(percent)))
            .collect(),
    }
}

fn head(out: &mut String, job: &JobOutcome) {
    let spec = &job.workload;
    let fsync = match spec.fsync {
        0 => String::new(),
        count => format!(", flush every {count}"),
    };
    let fua = if job.fua { ", FUA" } else { "" };
    push(
        out,
        format_args!(
            "{} {}, depth {}, {} job(s){fsync}{fua}, {:.2} s on {}",
            spec.rw,
            spec.request_bytes,
            job.iodepth,
            spec.jobs,
            job.sums.elapsed_seconds,
            job.target
        ),
    );
}

fn rows(out: &mut String, sums: &Sums) {
    if sums.requests > 0 {
        push(
            out,
            format_args!(
                "{:>6} {:>11} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "", "requests", "IOPS", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "max µs"
            ),
        );
        for kind in &sums.kinds {
            let latency = &kind.latency_us;
            push(
                out,
                format_args!(
                    "{:>6} {:>11} {:>10.0} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
                    kind.kind,
                    kind.requests,
                    kind.iops,
                    kind.megabytes_per_second,
                    latency.p50,
                    latency.p99,
                    latency.p999,
                    latency.max,
                ),
            );
        }
        for kind in &sums.kinds {
            let asked = kind.latency_us.asked_for();
            if !asked.is_empty() {
                push(out, format_args!("{:>6} {asked}", kind.kind));
            }
        }
        push(
            out,
            format_args!(
                "client CPU {:.0} % of one core, {:.2} µs per request",
                sums.client_cpu.percent_of_one_core, sums.client_cpu.us_per_request
            ),
        );
    }
    if let Some(found) = &sums.verify {
        let verdict = match (found.blocks_checked, found.blocks_bad) {
            (0, _) => "nothing was read".to_owned(),
            (_, 0) if found.cut_short => "as written, but not all was read back".to_owned(),
            (_, 0) => "all as written".to_owned(),
            (_, bad) => format!("{bad} BAD"),
        };
        push(
            out,
            format_args!("verified {} blocks: {verdict}", found.blocks_checked),
        );
    }
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("a String takes every text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_a_known_distribution() {
        let mut tally = Tally::new();
        for us in 1..=10_000 {
            tally.record(Kind::Read, 512, Duration::from_micros(us));
        }
        let list = Percentiles(vec![25.0, 99.9]);
        let times = (Duration::from_secs(2), Duration::from_secs(1));
        let sums = sums(&tally, times, &list, Vec::new(), None);
        let latency = &sums.kinds[0].latency_us;
        let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.002;
        assert!(near(latency.p50, 5000.0) && near(latency.p99, 9900.0));
        assert!(near(latency.p999, 9990.0) && near(latency.max, 10_000.0));
        assert!(near(latency.percentiles["25"], 2500.0));
        assert!(near(latency.percentiles["99.9"], 9990.0));
        assert!(near(latency.mean, 5000.5));
        assert_eq!((sums.iops, sums.megabytes_per_second), (5000.0, 2.56));
        assert_eq!(sums.client_cpu.us_per_request, 100.0);
        assert_eq!(sums.client_cpu.percent_of_one_core, 50.0);
    }
}

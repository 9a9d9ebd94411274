//! What a run found, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::cli::RunArgs;
use crate::ledger::Findings;
use crate::tally::Tally;
use crate::workload::{Kind, Spec};

/// Version of the JSON report.
const SCHEMA: u32 = 1;

/// Result of one run.
pub(crate) struct Report {
    spec: Spec,
    target: String,
    depth: u32,
    fua: bool,
    elapsed: Duration,
    cpu: Duration,
    tally: Tally,
    errors: Vec<String>,
    verified: Option<Findings>,
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
}

#[derive(Serialize)]
struct Json<'a> {
    schema: u32,
    target: &'a str,
    workload: &'a Spec,
    iodepth: u32,
    fua: bool,
    elapsed_seconds: f64,
    requests: u64,
    iops: f64,
    megabytes_per_second: f64,
    kinds: Vec<JsonKind>,
    client_cpu: JsonCpu,
    verify: Option<JsonVerify<'a>>,
    errors: &'a [String],
    ok: bool,
}

#[derive(Serialize)]
struct JsonKind {
    kind: &'static str,
    requests: u64,
    bytes: u64,
    iops: f64,
    megabytes_per_second: f64,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Serialize)]
struct JsonCpu {
    seconds: f64,
    percent_of_one_core: f64,
    us_per_request: f64,
}

#[derive(Serialize)]
struct JsonVerify<'a> {
    blocks_checked: u64,
    blocks_bad: u64,
    samples: &'a [String],
}

impl Report {
    /// The report of a run that has not begun.
    pub(crate) fn new(args: &RunArgs, spec: &Spec) -> Self {
        Self {
            spec: spec.clone(),
            target: args.target.to_string(),
            depth: args.iodepth,
            fua: args.fua,
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            tally: Tally::new(),
            errors: Vec::new(),
            verified: None,
        }
    }

    /// How long the jobs ran, and the processor time of this process meanwhile.
    pub(crate) fn measured(&mut self, elapsed: Duration, cpu: Duration) {
        (self.elapsed, self.cpu) = (elapsed, cpu);
    }

    /// Adds a job.
    pub(crate) fn add(&mut self, tally: &Tally, error: Option<String>) {
        self.tally.merge(tally);
        self.errors.extend(error);
    }

    /// Adds what went wrong while blocks were read back.
    pub(crate) fn read_back(&mut self, error: Option<String>) {
        self.errors
            .extend(error.map(|error| format!("reading back: {error}")));
    }

    /// Adds what checking found.
    pub(crate) fn verified(&mut self, findings: Findings) {
        self.verified = Some(findings);
    }

    /// Whether a request was refused or not answered.
    pub(crate) fn failed(&self) -> bool {
        !self.errors.is_empty()
    }

    /// How the run ended.
    pub(crate) fn verdict(&self) -> Verdict {
        if self
            .verified
            .as_ref()
            .is_some_and(|found| found.blocks_bad > 0)
        {
            Verdict::Corrupt
        } else if self.failed() {
            Verdict::Failed
        } else {
            Verdict::Good
        }
    }

    /// The errors and bad blocks, one a line, for standard error.
    pub(crate) fn complaints(&self) -> impl Iterator<Item = &str> {
        let samples = self.verified.iter().flat_map(|found| &found.samples);
        self.errors.iter().chain(samples).map(String::as_str)
    }

    fn per_second(&self, count: u64) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            count as f64 / seconds
        } else {
            0.0
        }
    }

    fn latency(&self, kind: Kind) -> Latency {
        let histogram = &self.tally.kind(kind).latency_ns;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e3,
        }
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL
            .into_iter()
            .filter(|&kind| self.tally.kind(kind).requests > 0)
    }

    fn cpu_percent(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.cpu.as_secs_f64() / seconds * 100.0
        } else {
            0.0
        }
    }

    fn cpu_us_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.tally.requests().max(1) as f64
    }

    /// The report as one JSON object.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let kind = |kind: Kind| {
            let tally = self.tally.kind(kind);
            JsonKind {
                kind: kind.name(),
                requests: tally.requests,
                bytes: tally.bytes,
                iops: self.per_second(tally.requests),
                megabytes_per_second: self.per_second(tally.bytes) / 1e6,
                latency_us: self.latency(kind),
            }
        };
        serde_json::to_string_pretty(&Json {
            schema: SCHEMA,
            target: &self.target,
            workload: &self.spec,
            iodepth: self.depth,
            fua: self.fua,
            elapsed_seconds: self.elapsed.as_secs_f64(),
            requests: self.tally.requests(),
            iops: self.per_second(self.tally.requests()),
            megabytes_per_second: self.per_second(self.tally.bytes()) / 1e6,
            kinds: self.kinds().map(kind).collect(),
            client_cpu: JsonCpu {
                seconds: self.cpu.as_secs_f64(),
                percent_of_one_core: self.cpu_percent(),
                us_per_request: self.cpu_us_per_request(),
            },
            verify: self.verified.as_ref().map(|found| JsonVerify {
                blocks_checked: found.blocks_checked,
                blocks_bad: found.blocks_bad,
                samples: &found.samples,
            }),
            errors: &self.errors,
            ok: self.verdict() == Verdict::Good,
        })
    }

    /// The report as a table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let spec = &self.spec;
        let fsync = if spec.fsync > 0 {
            format!(", flush every {}", spec.fsync)
        } else {
            String::new()
        };
        let fua = if self.fua { ", FUA" } else { "" };
        push(
            &mut out,
            format_args!(
                "{} {}, depth {}, {} job(s){fsync}{fua}, {:.2} s on {}",
                spec.rw,
                spec.request_bytes,
                self.depth,
                spec.jobs,
                self.elapsed.as_secs_f64(),
                self.target
            ),
        );
        if self.tally.requests() > 0 {
            self.rows(&mut out);
        }
        if let Some(found) = &self.verified {
            push(
                &mut out,
                format_args!(
                    "verified {} blocks: {}",
                    found.blocks_checked,
                    if found.blocks_bad == 0 {
                        "all as written".into()
                    } else {
                        format!("{} BAD", found.blocks_bad)
                    }
                ),
            );
        }
        out
    }

    fn rows(&self, out: &mut String) {
        push(
            out,
            format_args!(
                "{:>6} {:>11} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "", "requests", "IOPS", "MB/s", "p50 µs", "p99 µs", "p99.9 µs", "max µs"
            ),
        );
        for kind in self.kinds() {
            let tally = self.tally.kind(kind);
            let Latency {
                p50,
                p99,
                p999,
                max,
                ..
            } = self.latency(kind);
            push(
                out,
                format_args!(
                    "{:>6} {:>11} {:>10.0} {:>10.1} {p50:>10.1} {p99:>10.1} {p999:>10.1} \
                     {max:>10.1}",
                    kind.name(),
                    tally.requests,
                    self.per_second(tally.requests),
                    self.per_second(tally.bytes) / 1e6,
                ),
            );
        }
        push(
            out,
            format_args!(
                "client CPU {:.0} % of one core, {:.2} µs per request",
                self.cpu_percent(),
                self.cpu_us_per_request()
            ),
        );
    }
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("a String takes every text");
}

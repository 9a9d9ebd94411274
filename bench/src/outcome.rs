//! What a run found, in the stable shape of `--json`; docs/operations/bench.md describes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::workload::Spec;

/// Version of the shape; new fields do not change it.
pub(crate) const SCHEMA: u32 = 2;

/// The whole of a run: sums over its jobs, and every job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) schema: u32,
    /// Version of taipan-bench.
    pub(crate) version: String,
    /// Seconds since 1970 when the run began.
    pub(crate) started_unix: u64,
    pub(crate) machine: Machine,
    /// Whether a signal ended the run before its time.
    #[serde(default)]
    pub(crate) interrupted: bool,
    #[serde(flatten)]
    pub(crate) sums: Sums,
    pub(crate) jobs: Vec<JobOutcome>,
}

/// One job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JobOutcome {
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) engine: String,
    pub(crate) workload: Spec,
    pub(crate) iodepth: u32,
    pub(crate) fua: bool,
    #[serde(flatten)]
    pub(crate) sums: Sums,
    pub(crate) interval_seconds: f64,
    pub(crate) intervals: Vec<Interval>,
}

/// What was answered, of one job or of all together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) elapsed_seconds: f64,
    pub(crate) requests: u64,
    pub(crate) iops: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) kinds: Vec<KindOutcome>,
    pub(crate) client_cpu: Cpu,
    pub(crate) verify: Option<Verified>,
    pub(crate) errors: Vec<String>,
    pub(crate) ok: bool,
}

/// Requests of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KindOutcome {
    pub(crate) kind: String,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) iops: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) latency_us: Latency,
}

/// Latencies in µs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// As `--percentile-list` asks: percentile to µs.
    #[serde(default)]
    pub(crate) percentiles: BTreeMap<String, f64>,
}

impl Latency {
    /// The percentiles that were asked for beyond those that are always listed, in words.
    pub(crate) fn asked_for(&self) -> String {
        let usual = ["50", "90", "99", "99.9", "99.99"];
        if self.percentiles.keys().all(|name| usual.contains(&&**name)) {
            return String::new();
        }
        let mut list: Vec<(f64, f64)> = self.percentiles.iter().filter_map(number).collect();
        list.sort_by(|one, other| one.0.total_cmp(&other.0));
        let words = list.iter().map(|(name, us)| format!("p{name} {us:.1} µs"));
        words.collect::<Vec<_>>().join(", ")
    }
}

fn number((name, us): (&String, &f64)) -> Option<(f64, f64)> {
    Some((name.parse().ok()?, *us))
}

/// Processor time of this program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) seconds: f64,
    pub(crate) percent_of_one_core: f64,
    pub(crate) us_per_request: f64,
}

/// What checking found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verified {
    pub(crate) blocks_checked: u64,
    pub(crate) blocks_bad: u64,
    pub(crate) samples: Vec<String>,
    /// Whether some of what was to be read back was not.
    #[serde(default)]
    pub(crate) cut_short: bool,
}

/// One interval of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    /// Its end, from the begin of the measurement.
    pub(crate) at_seconds: f64,
    pub(crate) kinds: Vec<KindInterval>,
}

/// Requests of one kind in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KindInterval {
    pub(crate) kind: String,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

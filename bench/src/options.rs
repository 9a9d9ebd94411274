//! What one job of `taipan-bench run` can be told, in fio's words: flags and keys of job
//! files alike.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use taipan_engine::size::ByteSize;

use crate::pattern::{Distribution, RequestBytes, Rw};
use crate::uri::Address;
use crate::workload::Spec;

/// The options of one job.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobOptions {
    /// The target; the same as TARGET
    #[arg(long, alias = "uri")]
    pub(crate) filename: Option<Address>,

    /// What to negotiate with an NBD server
    #[arg(long, value_enum, default_value_t = Replies::Simple)]
    pub(crate) replies: Replies,

    /// How to reach the target; the default follows from it
    #[arg(long, value_enum)]
    pub(crate) ioengine: Option<IoEngine>,

    /// Files are opened with O_DIRECT: always, so only 1 is taken
    #[arg(long, value_parser = certainty,
          num_args = 0..=1, require_equals = true,
          default_value = "1", default_missing_value = "1")]
    pub(crate) direct: bool,

    /// The threads of a job are told together: always, so only 1 is taken
    #[arg(long, alias = "group_reporting", value_parser = certainty,
          num_args = 0..=1, require_equals = true,
          default_value = "1", default_missing_value = "1")]
    pub(crate) group_reporting: bool,

    /// Kind of workload
    #[arg(long, alias = "readwrite", value_enum, default_value_t = Rw::RandRead)]
    pub(crate) rw: Rw,

    /// Share of reads in rw and randrw, in percent
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) rwmixread: u8,

    /// Bytes of a request, or a range such as 512-256KiB (multiples of the smaller end)
    #[arg(long, aliases = ["blocksize", "bsrange"], default_value = "4KiB")]
    pub(crate) bs: RequestBytes,

    /// Sizes with their shares in percent, such as 4k/60:64k/40, instead of --bs
    #[arg(long, value_parser = RequestBytes::from_split)]
    pub(crate) bssplit: Option<RequestBytes>,

    /// Requests in flight on every connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) iodepth: u32,

    /// Threads, each with a connection and its own equal part of the area
    #[arg(long, alias = "connections", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) numjobs: u32,

    /// Time to go on (seconds, or with ms, s, m, h); without it every thread moves as many bytes
    /// as its part has
    #[arg(long, value_parser = duration)]
    pub(crate) runtime: Option<Duration>,

    /// With --runtime: begin again when the part's bytes are moved (1), or end then (0)
    #[arg(long, alias = "time_based", value_parser = truth,
          num_args = 0..=1, require_equals = true,
          default_value = "1", default_missing_value = "1")]
    pub(crate) time_based: bool,

    /// Time before the measurement begins; what is answered until then is not counted
    #[arg(long, alias = "ramp_time", value_parser = duration)]
    pub(crate) ramp_time: Option<Duration>,

    /// Bytes of the area that is loaded; the default is all behind --offset
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,

    /// First byte of the area
    #[arg(long, default_value = "0", value_parser = bytes)]
    pub(crate) offset: u64,

    /// Places that random requests prefer: random, zipf:THETA, or zones with hot and cold ones
    /// first such as zoned:90/10:10/90 (percent of requests / percent of the area)
    #[arg(long, alias = "random_distribution", default_value = "random")]
    pub(crate) random_distribution: Distribution,

    /// A FLUSH (fdatasync on files) after so many writes of a thread; 0 for none
    #[arg(long, alias = "fdatasync", default_value_t = 0)]
    pub(crate) fsync: u32,

    /// One FLUSH (fdatasync on files) of every thread after its last answer, within the measured
    /// time
    #[arg(long, alias = "end_fsync", value_parser = truth,
          num_args = 0..=1, require_equals = true,
          default_value = "0", default_missing_value = "1")]
    pub(crate) end_fsync: bool,

    /// Writes carry FUA (on files RWF_DSYNC, or fdatasync behind each with glommio)
    #[arg(long, value_parser = truth,
          num_args = 0..=1, require_equals = true,
          default_value = "0", default_missing_value = "1")]
    pub(crate) fua: bool,

    /// Stamp written blocks, check every read of them, and read them back at the end
    #[arg(long, value_enum)]
    pub(crate) verify: Option<Verify>,

    /// Only read back what an earlier run with the same options and seed wrote
    #[arg(long, alias = "verify_only", value_parser = truth,
          num_args = 0..=1, require_equals = true,
          default_value = "0", default_missing_value = "1")]
    pub(crate) verify_only: bool,

    /// With --verify: how far the run came is written here, also when the server goes away. With
    /// --verify-only: read from here, the workload's options included
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,

    /// Seed of order, offsets and sizes
    #[arg(long, alias = "randseed", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Most bytes per second of each thread; latencies then count from when a request was due
    #[arg(long, value_parser = rate_bytes)]
    pub(crate) rate: Option<f64>,

    /// Most requests per second of each thread; latencies then count from when a request was due
    #[arg(long, alias = "rate_iops", value_parser = rate)]
    pub(crate) rate_iops: Option<f64>,

    /// Percentiles to report, such as 50:99:99.9
    #[arg(long, alias = "percentile_list", default_value = "50:90:99:99.9:99.99")]
    pub(crate) percentile_list: Percentiles,

    /// Seconds after which a request without an answer ends the run
    #[arg(long, default_value = "60", value_parser = duration)]
    pub(crate) timeout: Duration,

    /// In a job file: begin only when all jobs before have ended
    #[arg(long, alias = "wait_for_previous", value_parser = truth,
          num_args = 0..=1, require_equals = true,
          default_value = "0", default_missing_value = "1")]
    pub(crate) stonewall: bool,
}

/// Ways to reach a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoEngine {
    /// NBD over TCP or a unix socket, with direct system calls
    Nbd,
    /// O_DIRECT with io_uring on a file or block device
    #[value(alias = "io_uring")]
    File,
    /// The same requests to either, on a glommio executor
    Glommio,
}

/// Headers of an NBD session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Replies {
    /// Nothing is negotiated
    Simple,
    /// Replies in chunks
    Structured,
    /// Headers with 64-bit lengths, replies in chunks
    Extended,
}

/// Ways to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verify {
    /// Blocks carry their place, the number of their write, the seed and a CRC32C
    Crc32c,
}

/// Percentiles of latencies, from above 0 to 100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles(pub(crate) Vec<f64>);

/// Most percentiles, as in fio.
const PERCENTILES_MAX: usize = 20;

impl std::str::FromStr for Percentiles {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let one = |part: &str| -> Result<f64> {
            let number: f64 = part
                .parse()
                .with_context(|| format!("{part:?} is no percentile"))?;
            ensure!(
                number > 0.0 && number <= 100.0,
                "percentiles are above 0 and at most 100"
            );
            Ok(number)
        };
        let list = text.split(':').map(one).collect::<Result<Vec<_>>>()?;
        ensure!(
            list.len() <= PERCENTILES_MAX,
            "at most {PERCENTILES_MAX} percentiles"
        );
        Ok(Self(list))
    }
}

impl JobOptions {
    /// Refuses options that contradict each other.
    pub(crate) fn validate(&self) -> Result<()> {
        let target = self.target()?;
        let file = matches!(target, Address::File(_));
        match self.ioengine {
            Some(IoEngine::Nbd) => ensure!(!file, "--ioengine nbd needs an nbd:// address"),
            Some(IoEngine::File) => ensure!(file, "--ioengine file needs a path"),
            Some(IoEngine::Glommio) => {
                let sealed = matches!(target, Address::Sealed { .. });
                ensure!(!sealed, "--ioengine glommio knows no TLS");
            }
            None => {}
        }
        ensure!(
            !self.fua || self.rw.writes(),
            "--fua needs a workload that writes"
        );
        ensure!(
            self.size.is_none_or(|size| size.0 > 0),
            "--size is at least one byte"
        );
        crate::section::checking(self)?;
        Ok(())
    }

    /// The target.
    pub(crate) fn target(&self) -> Result<&Address> {
        self.filename
            .as_ref()
            .context("no target: name one as TARGET, or as filename= in the job file")
    }

    /// The way to reach the target.
    pub(crate) fn engine(&self) -> IoEngine {
        self.ioengine.unwrap_or(match self.filename {
            Some(Address::File(_)) => IoEngine::File,
            _ => IoEngine::Nbd,
        })
    }

    /// Whether the workload goes on until the time is over.
    pub(crate) fn endless(&self) -> bool {
        self.runtime.is_some() && self.time_based
    }

    /// The workload over an area of `size` bytes.
    pub(crate) fn spec(&self, size: u64) -> Spec {
        Spec {
            rw: self.rw,
            read_percent: self.rwmixread,
            request_bytes: self.bssplit.as_ref().unwrap_or(&self.bs).clone(),
            offset: self.offset,
            size,
            jobs: self.numjobs,
            fsync: self.fsync,
            distribution: self.random_distribution.clone(),
            seed: self.seed,
        }
    }
}

/// Longest duration.
const SECONDS_MAX: f64 = 1e7;

/// Reads a number of seconds, or one with the unit `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        unit => bail!("{unit:?} is no unit of time; use ms, s, m or h"),
    };
    let seconds = digits.parse::<f64>()? * unit;
    ensure!(
        (0.001..=SECONDS_MAX).contains(&seconds),
        "from 0.001 to {SECONDS_MAX} seconds"
    );
    Ok(Duration::from_secs_f64(seconds))
}

fn truth(text: &str) -> Result<bool> {
    match text {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => bail!("1 or 0, not {text:?}"),
    }
}

/// What holds whether or not it is asked for.
fn certainty(text: &str) -> Result<bool> {
    ensure!(truth(text)?, "there is no other way");
    Ok(true)
}

fn bytes(text: &str) -> Result<u64> {
    Ok(taipan_engine::size::parse(text)?)
}

fn rate_bytes(text: &str) -> Result<f64> {
    let rate = bytes(text)?;
    ensure!(rate > 0, "at least one byte per second");
    Ok(rate as f64)
}

fn rate(text: &str) -> Result<f64> {
    let number: f64 = text.parse()?;
    ensure!(
        (0.001..=1e9).contains(&number),
        "from 0.001 to 1e9 requests per second"
    );
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, ms) in [
            ("2", 2000),
            ("0.5s", 500),
            ("20ms", 20),
            ("1m", 60_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), ms, "{text}");
        }
        for bad in ["", "s", "1d", "0", "-1", "1e9"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentiles_are_a_list() {
        let list: Percentiles = "50:99.9:100".parse().unwrap();
        assert_eq!(list.0, [50.0, 99.9, 100.0]);
        for bad in ["", "0", "101", "50:", "a"] {
            assert!(bad.parse::<Percentiles>().is_err(), "{bad}");
        }
    }
}

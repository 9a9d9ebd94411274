//! The command line of `taipan-bench`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use taipan_engine::size::ByteSize;

use crate::fake_s3_command::FakeS3Args;
#[cfg(feature = "s3-loop")]
use crate::s3_loop::S3LoopArgs;
use crate::uri::Address;
use crate::workload::{RequestBytes, Rw, Spec};

/// Loads NBD exports and files, measures and verifies.
#[derive(Debug, Parser)]
#[command(name = "taipan-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one workload against one target and report
    Run(Box<RunArgs>),
    /// Serve S3 from memory, with conditional writes and scripted faults
    #[command(name = "fake-s3")]
    FakeS3(FakeS3Args),
    /// Load an S3 server with a plain loop of aws-sdk-s3
    #[cfg(feature = "s3-loop")]
    #[command(name = "s3-loop")]
    S3Loop(S3LoopArgs),
}

/// Options of `taipan-bench run`.
///
/// Exit codes: 0 all requests were answered and verified; 1 an error, or a request was refused;
/// 2 the command line is wrong; 3 a block does not hold what was written.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or a file or block device
    #[arg(value_name = "TARGET")]
    pub(crate) target: Address,

    /// What to negotiate with an NBD server
    #[arg(long, value_enum, default_value_t = Replies::Simple)]
    pub(crate) replies: Replies,

    /// How to reach the target; the default follows from TARGET
    #[arg(long, value_enum)]
    pub(crate) ioengine: Option<IoEngine>,

    /// Kind of workload
    #[arg(long, value_enum, default_value_t = Rw::RandRead)]
    pub(crate) rw: Rw,

    /// Share of reads in randrw, in percent
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) rwmixread: u8,

    /// Bytes of a request, or a range such as 512-256KiB (multiples of the smaller end)
    #[arg(long, default_value = "4KiB")]
    pub(crate) bs: RequestBytes,

    /// Requests in flight on every connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) iodepth: u32,

    /// Jobs, each a thread with a connection and its own equal part of the area
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) numjobs: u32,

    /// Seconds to go on; without it every job moves as many bytes as its part has
    #[arg(long, value_parser = crate::cli::seconds)]
    pub(crate) runtime: Option<Duration>,

    /// Bytes of the area that is loaded; the default is all behind --offset
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,

    /// First byte of the area
    #[arg(long, default_value = "0", value_parser = crate::cli::bytes)]
    pub(crate) offset: u64,

    /// A FLUSH (fdatasync on files) after so many writes of a job; 0 for none
    #[arg(long, default_value_t = 0)]
    pub(crate) fsync: u32,

    /// One FLUSH (fdatasync on files) of every job after its last answer, within the measured time
    #[arg(long)]
    pub(crate) end_fsync: bool,

    /// Writes carry FUA (RWF_DSYNC on files)
    #[arg(long)]
    pub(crate) fua: bool,

    /// Stamp written blocks, check every read of them, and read them back at the end
    #[arg(long, value_enum)]
    pub(crate) verify: Option<Verify>,

    /// Only read back what an earlier run with the same options and seed wrote
    #[arg(long)]
    pub(crate) verify_only: bool,

    /// With --verify: how far the run came is written here, also when the server goes away. With
    /// --verify-only: read from here, the workload's options included
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,

    /// Seed of order, offsets and sizes
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Requests per second of all jobs together; latencies count from when a request was due
    #[arg(long, value_parser = crate::cli::rate)]
    pub(crate) rate: Option<f64>,

    /// Seconds after which a request without an answer ends the run
    #[arg(long, default_value = "60", value_parser = crate::cli::seconds)]
    pub(crate) timeout: Duration,

    /// Progress line on standard error
    #[arg(long, value_enum, default_value_t = When::Auto)]
    pub(crate) progress: When,

    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Ways to reach a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoEngine {
    /// NBD over TCP or a unix socket
    Nbd,
    /// O_DIRECT with io_uring on a file or block device
    File,
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

/// When to show the progress line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// If standard error is a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl RunArgs {
    /// Refuses options that contradict each other.
    pub(crate) fn validate(&self) -> Result<()> {
        let file = matches!(self.target, Address::File(_));
        match self.ioengine {
            Some(IoEngine::Nbd) => ensure!(!file, "--ioengine nbd needs an nbd:// address"),
            Some(IoEngine::File) => ensure!(file, "--ioengine file needs a path"),
            None => {}
        }
        ensure!(
            !self.fua || self.rw.writes(),
            "--fua needs a workload that writes"
        );
        Ok(())
    }

    /// The workload over an area of `size` bytes.
    pub(crate) fn spec(&self, size: u64) -> Spec {
        Spec {
            rw: self.rw,
            read_percent: self.rwmixread,
            request_bytes: self.bs,
            offset: self.offset,
            size,
            jobs: self.numjobs,
            fsync: self.fsync,
            seed: self.seed,
        }
    }
}

/// Longest `--runtime` and `--timeout`.
const SECONDS_MAX: f64 = 1e7;

fn seconds(text: &str) -> Result<Duration> {
    let number: f64 = text.strip_suffix('s').unwrap_or(text).parse()?;
    ensure!(
        (0.001..=SECONDS_MAX).contains(&number),
        "from 0.001 to {SECONDS_MAX} seconds"
    );
    Ok(Duration::from_secs_f64(number))
}

fn bytes(text: &str) -> Result<u64> {
    Ok(taipan_engine::size::parse(text)?)
}

fn rate(text: &str) -> Result<f64> {
    let number: f64 = text.parse()?;
    ensure!(
        (0.001..=1e9).contains(&number),
        "from 0.001 to 1e9 requests per second"
    );
    Ok(number)
}

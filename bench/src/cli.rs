//! The command line of `taipan-bench`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::compare::CompareArgs;
use crate::fake_s3_command::FakeS3Args;
#[cfg(feature = "hot-path")]
use crate::hot_path::HotPathArgs;
use crate::index_lookup::IndexLookupArgs;
use crate::job_file::{self, NamedJob, Settings};
use crate::null_server::NullServerArgs;
use crate::options::{JobOptions, duration};
use crate::run_page::ReportArgs;
#[cfg(feature = "s3-loop")]
use crate::s3_loop::S3LoopArgs;
use crate::uri::Address;

/// Loads NBD exports and files, measures and verifies.
#[derive(Debug, Parser)]
#[command(name = "taipan-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one workload, or the jobs of a file, and report
    Run(Box<RunArgs>),
    /// Make one HTML page of results, with plots over time
    Report(ReportArgs),
    /// Compare servers: the same jobs on all of them in turn
    Compare(Box<CompareArgs>),
    /// Clean up behind a comparison, told what by its standard input
    #[command(hide = true)]
    Warden,
    /// Serve an export that stores nothing and answers at once
    #[command(name = "null-server")]
    NullServer(NullServerArgs),
    /// Run one hot path of the product so many times, for counting its instructions
    #[cfg(feature = "hot-path")]
    #[command(name = "hot-path")]
    HotPath(HotPathArgs),
    /// Measure lookups in the index of a volume of which much is mapped
    #[command(name = "index-lookup")]
    IndexLookup(IndexLookupArgs),
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
/// 2 the command line is wrong; 3 a block does not hold what was written; 130 interrupted, and what
/// was measured until then is reported.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or a file or block device
    #[arg(value_name = "TARGET", conflicts_with = "filename")]
    pub(crate) target: Option<Address>,

    /// Name of the job in reports; the default is its kind of workload
    #[arg(long, conflicts_with = "job_file")]
    pub(crate) name: Option<String>,

    /// The options of the job, or what goes before the job file
    #[command(flatten)]
    pub(crate) job: JobOptions,

    /// Jobs in fio's form; options on the command line go before what it says
    #[arg(long, alias = "job_file", value_name = "FILE")]
    pub(crate) job_file: Option<PathBuf>,

    /// Time between the points of rates and latencies over time
    #[arg(long, default_value = "1", value_parser = duration)]
    pub(crate) interval: Duration,

    /// Write the latency histogram of every interval there, one JSON object a line
    #[arg(long, alias = "hist_log", value_name = "FILE")]
    pub(crate) hist_log: Option<PathBuf>,

    /// Progress on standard error: a live view on a terminal, else a line now and then
    #[arg(long, value_enum, default_value_t = When::Auto)]
    pub(crate) progress: When,

    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Also write the JSON report there, for `taipan-bench report`
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// What the command line says of jobs; filled in from it.
    #[arg(skip)]
    pub(crate) given: Settings,
}

/// Shortest `--interval`: a thread looks at its clock at least this often.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// When to show progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// A live view if standard error is a terminal, else a line every ten seconds
    Auto,
    /// A live view on a terminal, else a line for every interval
    Always,
    /// Never
    Never,
}

impl RunArgs {
    /// The jobs that are asked for; refuses options that contradict each other.
    pub(crate) fn jobs(&self) -> Result<Vec<NamedJob>> {
        ensure!(
            self.interval >= INTERVAL_MIN,
            "--interval is at least {} ms",
            INTERVAL_MIN.as_millis()
        );
        let Some(path) = &self.job_file else {
            let mut options = self.job.clone();
            options.filename = options.filename.or_else(|| self.target.clone());
            options.validate()?;
            let name = match &self.name {
                Some(name) => name.clone(),
                None if options.verify_only && options.state.is_some() => "verify".to_owned(),
                None => options.rw.to_string(),
            };
            return Ok(vec![NamedJob { name, options }]);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the job file {}", path.display()))?;
        job_file::parse(&text, &self.given).with_context(|| format!("job file {}", path.display()))
    }
}

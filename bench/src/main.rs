//! `taipan-bench`: loads NBD exports and files, measures latency and throughput, verifies content.

mod cli;
mod compare;
mod connection;
mod fake_s3_command;
mod file_target;
mod glommio_file;
mod glommio_nbd;
#[cfg(feature = "hot-path")]
mod hot_path;
mod index_lookup;
mod inspect;
mod interruption;
mod job;
mod job_file;
mod ledger;
mod machine;
mod nbd_session;
mod nbd_target;
mod null_server;
mod options;
mod outcome;
mod page;
mod pattern;
mod places;
mod plot;
mod progress;
mod random;
mod replies;
mod report;
mod report_files;
mod run;
mod run_page;
#[cfg(feature = "s3-loop")]
mod s3_loop;
mod section;
mod stamp;
mod tally;
mod target;
mod timeline;
mod uri;
mod wire;
mod workload;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Cli, Command, RunArgs};
use crate::compare::Ended;
use crate::job_file::NamedJob;
use crate::report::Verdict;

/// Exit code for a wrong command line, as clap uses it.
const USAGE: u8 = 2;
const FAILED: u8 = 1;
const CORRUPT: u8 = 3;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Run(mut args) => {
            if let Some(("run", matches)) = matches.subcommand() {
                args.given = job_file::given(matches);
            }
            load(&args)
        }
        Command::Report(args) => exit_code(run_page::write(&args)),
        Command::Warden => exit_code(compare::warden()),
        Command::Compare(args) => match compare::compare(&args) {
            Ok(_) if interruption::asked() => ExitCode::from(interruption::EXIT),
            Ok(Ended::Good) => ExitCode::SUCCESS,
            Ok(Ended::Failed) => ExitCode::from(FAILED),
            Ok(Ended::Misused(error)) => {
                failed(&error);
                ExitCode::from(USAGE)
            }
            Err(error) => failed(&error),
        },
        Command::NullServer(args) => exit_code(null_server::serve(&args)),
        Command::IndexLookup(args) => exit_code(index_lookup::run(&args)),
        #[cfg(feature = "hot-path")]
        Command::HotPath(args) => exit_code(hot_path::run(&args)),
        Command::FakeS3(args) => exit_code(fake_s3_command::serve(&args)),
        #[cfg(feature = "s3-loop")]
        Command::S3Loop(args) => exit_code(s3_loop::run(&args)),
    }
}

fn load(args: &RunArgs) -> ExitCode {
    let jobs = match args.jobs() {
        Ok(jobs) => jobs,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(USAGE);
        }
    };
    match run(args, jobs) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::from(FAILED),
        Ok(Verdict::Corrupt) => ExitCode::from(CORRUPT),
        Ok(Verdict::Interrupted) => ExitCode::from(interruption::EXIT),
        Err(error) => failed(&error),
    }
}

fn exit_code(result: Result<()>) -> ExitCode {
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(FAILED)
}

fn run(args: &RunArgs, jobs: Vec<NamedJob>) -> Result<Verdict> {
    let report = run::run(args, jobs)?;
    // What one place does not take is still told in the other.
    let saved = args
        .output
        .as_ref()
        .map_or(Ok(()), |path| report.save(path));
    let told = if args.json {
        tell(&(report.json()? + "\n"))
    } else {
        tell(&report.table())
    };
    for complaint in report.complaints() {
        eprintln!("error: {complaint}");
    }
    saved.and(told)?;
    Ok(report.verdict())
}

/// Writes to standard output.
pub(crate) fn tell(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context("writing to standard output")
}

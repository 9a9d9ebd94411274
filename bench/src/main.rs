//! `taipan-bench`: loads NBD exports and files, measures latency and throughput, verifies content.

mod cli;
mod connection;
mod fake_s3_command;
mod file_target;
mod job;
mod ledger;
mod nbd_target;
mod progress;
mod random;
mod replies;
mod report;
mod run;
#[cfg(feature = "s3-loop")]
mod s3_loop;
mod stamp;
mod tally;
mod target;
mod uri;
mod workload;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::cli::{Cli, Command, RunArgs};
use crate::report::Verdict;

/// Exit code for a wrong command line, as clap uses it.
const USAGE: u8 = 2;
const FAILED: u8 = 1;
const CORRUPT: u8 = 3;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => load(&args),
        Command::FakeS3(args) => exit_code(fake_s3_command::serve(&args)),
        #[cfg(feature = "s3-loop")]
        Command::S3Loop(args) => exit_code(s3_loop::run(&args)),
    }
}

fn load(args: &RunArgs) -> ExitCode {
    if let Err(error) = args.validate() {
        eprintln!("error: {error:#}");
        return ExitCode::from(USAGE);
    }
    match run(args) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::from(FAILED),
        Ok(Verdict::Corrupt) => ExitCode::from(CORRUPT),
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

fn run(args: &RunArgs) -> Result<Verdict> {
    let report = run::run(args)?;
    if args.json {
        println!("{}", report.json()?);
    } else {
        print!("{}", report.table());
    }
    for complaint in report.complaints() {
        eprintln!("error: {complaint}");
    }
    Ok(report.verdict())
}

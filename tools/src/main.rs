//! `taipan`, the operator's command: volumes, snapshots, copies in and out, decoding of files.

mod backend;
mod cli;
mod connection;
mod control;
mod diff;
mod failure;
mod flatten;
mod history;
mod inspect;
mod nbd_server;
mod output;
mod promote;
mod snapshot;
mod status;
mod table;
mod transfer;
mod verify;
mod volume;
mod waiting;
mod warm;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, Target};
use crate::failure::{Failure, Outcome};
use crate::output::{Form, note};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let verifies = std::env::args().any(|arg| arg == "verify");
            return match error.use_stderr() && verifies {
                true => ExitCode::from(verify::UNCHECKED),
                false => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1)),
            };
        }
    };
    if let Command::Verify(args) = &cli.command {
        return verify::run(&cli.target, args);
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&cli.target, &failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Why a command failed, on standard error.
fn tell(target: &Target, failure: &Failure) {
    match target.form() {
        Form::Human => note(&format!("taipan: {failure}")),
        Form::Json => note(&failure.to_json()),
    }
}

fn run(cli: &Cli) -> Outcome<()> {
    let target = &cli.target;
    match &cli.command {
        Command::Volume(command) => volume::run(target, command),
        Command::Snapshot(command) => snapshot::run(target, command),
        Command::Connection(command) => connection::run(target, command),
        Command::Clone { of, name } => snapshot::clone(target, of, name),
        Command::Rollback { volume, to, yes } => snapshot::roll_back(target, volume, to, *yes),
        Command::Import(import) => transfer::import(target, import),
        Command::Export(export) => transfer::export(target, export),
        Command::Diff(args) => diff::run(target, args),
        Command::Inspect(inspect) => inspect::run(target, inspect),
        Command::Backend(command) => backend::run(target, command),
        Command::Verify(_) => Ok(()),
        Command::Status => status::run(target),
        Command::Drain => status::drain(target),
    }
}

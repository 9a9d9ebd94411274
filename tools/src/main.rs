//! `taipan`, the operator's command: volumes, snapshots, copies in and out, decoding of files.

mod backend;
mod cli;
mod control;
mod failure;
mod inspect;
mod output;
mod snapshot;
mod status;
mod table;
mod transfer;
mod volume;
mod warm;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Outcome;
use crate::output::{Form, note};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match cli.target.form() {
                Form::Human => note(&format!("taipan: {failure}")),
                Form::Json => note(&failure.to_json()),
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(cli: &Cli) -> Outcome<()> {
    let target = &cli.target;
    match &cli.command {
        Command::Volume(command) => volume::run(target, command),
        Command::Snapshot(command) => snapshot::run(target, command),
        Command::Import(import) => transfer::import(target, import),
        Command::Export(export) => transfer::export(target, export),
        Command::Inspect(inspect) => inspect::run(target, inspect),
        Command::Backend(command) => backend::run(target, command),
        Command::Status => status::run(target),
        Command::Drain => status::drain(target),
    }
}

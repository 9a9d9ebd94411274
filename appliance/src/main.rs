//! `taipand`: reads the configuration, takes the data directory, serves until told to stop.

use std::process::ExitCode;

use clap::Parser;
use taipan_appliance::config::{Cli, Command, Config, Flags, Machine, load};
use taipan_appliance::{boot, daemon, logging};

/// Exit code for a wrong command line or configuration, as clap uses it.
const USAGE_EXIT: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::CheckConfig { flags }) => check_config(&flags),
        None => serve(&cli.flags),
    }
}

fn load_or_explain(flags: &Flags) -> Result<Config, ExitCode> {
    load(flags, &Machine::detect()).map_err(|problems| {
        eprintln!("taipand: {problems}");
        ExitCode::from(USAGE_EXIT)
    })
}

fn check_config(flags: &Flags) -> ExitCode {
    match load_or_explain(flags) {
        Ok(config) => {
            print!("{}", config.to_toml());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn serve(flags: &Flags) -> ExitCode {
    let config = match load_or_explain(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    logging::start(&config.log);
    match daemon::run(&config, boot::start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

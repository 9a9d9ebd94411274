//! `taipand`: reads the configuration, takes the data directory, serves until told to stop.

use std::process::ExitCode;

use clap::Parser;
use taipan_appliance::config::{Cli, Command, Config, Flags, Machine, load};
use taipan_appliance::daemon::Arrival;
use taipan_appliance::{boot, daemon, logging, wal_damage};

/// Exit code for a wrong command line or configuration, as clap uses it.
const USAGE_EXIT: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::CheckConfig { flags }) => check_config(&flags),
        Some(Command::AcceptWalDamage { shards, yes, flags }) => {
            accept_wal_damage(&flags, &shards, yes)
        }
        None => serve(&cli.flags, cli.takeover),
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

fn accept_wal_damage(flags: &Flags, shards: &str, yes: bool) -> ExitCode {
    let config = match load_or_explain(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let done =
        wal_damage::parse_shards(shards).and_then(|shards| wal_damage::run(&config, &shards, yes));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("taipand: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: &Flags, takeover: bool) -> ExitCode {
    let config = match load_or_explain(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    logging::start(&config.log);
    let arrival = match takeover {
        true => Arrival::Takeover,
        false => Arrival::Start,
    };
    match daemon::run(&config, arrival, boot::start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

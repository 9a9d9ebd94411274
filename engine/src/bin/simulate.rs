//! Runs seeds of the simulator and reports the first that breaks a promise; see `tools/simulate`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use taipan_engine::sim::{Coverage, EVENTS, run, run_aloud};

const USAGE: &str = "usage: tools/simulate [--seeds N] [--start S] | --seed X [--trace]";

/// The seed under way, for the panic message.
static SEED: AtomicU64 = AtomicU64::new(0);

struct Wanted {
    start: u64,
    seeds: u64,
    trace: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        start: 0,
        seeds: 1000,
        trace: false,
    };
    let mut arguments = arguments;
    while let Some(flag) = arguments.next() {
        if flag == "--trace" {
            wanted.trace = true;
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{flag} needs a number"))?;
        let value: u64 = value
            .parse()
            .map_err(|_| format!("{value:?} is no number"))?;
        match flag.as_str() {
            "--seeds" => wanted.seeds = value,
            "--start" => wanted.start = value,
            "--seed" => (wanted.start, wanted.seeds) = (value, 1),
            _ => return Err(format!("{flag:?} is not known")),
        }
    }
    Ok(wanted)
}

fn report(seed: u64) {
    eprintln!("seed {seed} fails; again: tools/simulate --seed {seed}");
}

fn main() -> ExitCode {
    let wanted = match parse(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(4);
        }
    };
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        report(SEED.load(Ordering::Relaxed));
    }));
    let (began, mut told_at) = (Instant::now(), Instant::now());
    let mut reached = Coverage::default();
    let mut events = 0;
    for done in 0..wanted.seeds {
        let seed = wanted.start + done;
        SEED.store(seed, Ordering::Relaxed);
        match if wanted.trace {
            run_aloud(seed)
        } else {
            run(seed)
        } {
            Ok(outcome) => {
                reached.merge(&outcome.coverage);
                events += outcome.events;
                if wanted.seeds == 1 {
                    println!(
                        "seed {seed}: trace {:016x}, {events} events",
                        outcome.trace_hash
                    );
                }
            }
            Err(violation) => {
                eprintln!("{violation}");
                report(seed);
                return ExitCode::FAILURE;
            }
        }
        if told_at.elapsed() > Duration::from_secs(5) {
            told_at = Instant::now();
            let rate = (done + 1) as f64 / began.elapsed().as_secs_f64();
            eprintln!("{} of {} seeds, {rate:.0} a second", done + 1, wanted.seeds);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} seeds from {}, {events} events, {seconds:.1} s",
        wanted.seeds, wanted.start
    );
    for event in EVENTS {
        println!("{:>10}  {event}", reached.count(event));
    }
    ExitCode::SUCCESS
}

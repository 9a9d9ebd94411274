//! Runs seeds of the simulator on all CPUs and reports the first that breaks a promise; see
//! `tools/simulate`.

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use taipan_engine::sim::model::{Scenario, explore};
use taipan_engine::sim::throughput::{Costs, Load, simulate};
use taipan_engine::sim::{
    Coverage, EVENTS, FAMILY_EVENTS, Outcome, RACE_EVENTS, Violation, run, run_aloud, run_family,
    run_family_aloud, run_race, run_race_aloud,
};

const USAGE: &str = "usage: tools/simulate [--seeds N] [--start S] [--jobs J] [--races|--families]
       tools/simulate --seed X [--trace] [--races|--families]
       tools/simulate --model [--deep]
       tools/simulate --throughput CONNECTION SHARD MESSAGE
       tools/simulate --help";
/// What each kind of run covers.
const HELP: &str = "
A seed is one appliance over 2 to 4 lives: kills, power losses, lost data directories, a backend
that fails, is away, or away already at the start; FLUSH that waits for the bucket; limits on what
the bucket may lack. 10000 seeds take about 5 minutes on 2 CPUs.
--races: two appliances on one bucket: takeovers, restarts of the former owner with and without the
backend, lost disks, old copies of data directories. 1000 take about a minute on 2 CPUs.
--families: volumes that are written, cloned to any depth, rolled back, compacted, swept, deleted
and freed in random order, by writers that die before any step.
--throughput: what 1 to 16 data cores serve if a request costs CONNECTION nanoseconds of CPU on the
core of its connection, SHARD on the core of its shard, and a message between two MESSAGE on both
together: by a formula, and by production's cores on a clock that charges this. Seconds.
--model: every order of the requests of two writers of one volume, with a lost answer, a crash, a
lost or restored disk; seconds. --deep: the same with two more cuts or crashes each; at most 10
minutes on one CPU.";
/// More states than any scenario has.
const STATES_MAX: usize = 20_000_000;
/// A millisecond: no request costs as much.
const COST_NS_MAX: u64 = 1_000_000;
/// How often the progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

thread_local! {
    /// The seed that this thread runs, for the panic message.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Wanted {
    start: u64,
    seeds: u64,
    jobs: u64,
    trace: bool,
    kind: Kind,
}

/// What a seed is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One appliance.
    Lives,
    /// Two appliances on one bucket.
    Races,
    /// Volumes that nobody serves.
    Families,
}

impl Kind {
    fn flag(self) -> &'static str {
        match self {
            Self::Lives => "",
            Self::Races => " --races",
            Self::Families => " --families",
        }
    }

    fn run(self, seed: u64, aloud: bool) -> Result<Outcome, Box<Violation>> {
        match (self, aloud) {
            (Self::Lives, false) => run(seed),
            (Self::Lives, true) => run_aloud(seed),
            (Self::Races, false) => run_race(seed),
            (Self::Races, true) => run_race_aloud(seed),
            (Self::Families, false) => run_family(seed),
            (Self::Families, true) => run_family_aloud(seed),
        }
    }

    /// Everything that a range of seeds should reach.
    fn events(self) -> Vec<&'static str> {
        match self {
            Self::Lives => EVENTS.to_vec(),
            Self::Races => [EVENTS, RACE_EVENTS].concat(),
            Self::Families => FAMILY_EVENTS.to_vec(),
        }
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        start: 0,
        seeds: 1000,
        jobs: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
        trace: false,
        kind: Kind::Lives,
    };
    let mut arguments = arguments;
    while let Some(flag) = arguments.next() {
        if flag == "--trace" {
            wanted.trace = true;
            continue;
        }
        if flag == "--races" {
            wanted.kind = Kind::Races;
            continue;
        }
        if flag == "--families" {
            wanted.kind = Kind::Families;
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
            "--jobs" if value > 0 => wanted.jobs = value,
            "--seed" => (wanted.start, wanted.seeds) = (value, 1),
            _ => return Err(format!("{flag} {value} is not known")),
        }
    }
    if wanted.trace {
        wanted.jobs = 1;
    }
    Ok(wanted)
}

fn report(seed: u64, kind: Kind) {
    let flag = kind.flag();
    eprintln!("seed {seed} fails; again: tools/simulate --seed {seed}{flag}");
}

/// What all threads share. Seeds are handed out in order, so that of several that fail the
/// least that was run is reported.
struct Range {
    wanted: Wanted,
    began: Instant,
    next: AtomicU64,
    failed: AtomicBool,
    found: Mutex<Found>,
}

struct Found {
    done: u64,
    events: u64,
    reached: Coverage,
    told: Instant,
    violation: Option<Box<Violation>>,
}

impl Range {
    fn new(wanted: Wanted) -> Self {
        let began = Instant::now();
        let found = Found {
            done: 0,
            events: 0,
            reached: Coverage::default(),
            told: began,
            violation: None,
        };
        Self {
            wanted,
            began,
            next: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            found: Mutex::new(found),
        }
    }

    /// Runs seeds until none is left or one has failed.
    fn work(&self) {
        while !self.failed.load(Ordering::Relaxed) {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            if at >= self.wanted.seeds {
                break;
            }
            let seed = self.wanted.start + at;
            SEED.set(Some(seed));
            let result = self.wanted.kind.run(seed, self.wanted.trace);
            SEED.set(None);
            self.note(seed, result);
        }
    }

    fn note(&self, seed: u64, result: Result<Outcome, Box<Violation>>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.done += 1;
        match result {
            Ok(outcome) => {
                found.reached.merge(&outcome.coverage);
                found.events += outcome.events;
                if self.wanted.seeds == 1 {
                    let (hash, events) = (outcome.trace_hash, outcome.events);
                    println!("seed {seed}: trace {hash:016x}, {events} events");
                }
            }
            Err(violation) => {
                self.failed.store(true, Ordering::Relaxed);
                if found
                    .violation
                    .as_ref()
                    .is_none_or(|known| seed < known.seed)
                {
                    found.violation = Some(violation);
                }
            }
        }
        if found.told.elapsed() > TELL_EVERY {
            found.told = Instant::now();
            let rate = found.done as f64 / self.began.elapsed().as_secs_f64();
            let (done, seeds, jobs) = (found.done, self.wanted.seeds, self.wanted.jobs);
            eprintln!("{done} of {seeds} seeds, {rate:.0} a second on {jobs} threads");
        }
    }

    fn conclude(self) -> ExitCode {
        let seconds = self.began.elapsed().as_secs_f64();
        let found = self
            .found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let Wanted {
            start, seeds, jobs, ..
        } = self.wanted;
        if let Some(violation) = found.violation {
            eprintln!("{violation}");
            eprintln!("{} of {seeds} seeds were run, {seconds:.1} s", found.done);
            report(violation.seed, self.wanted.kind);
            return ExitCode::FAILURE;
        }
        let events = found.events;
        println!("{seeds} seeds from {start}, {events} events, {seconds:.1} s, {jobs} threads");
        for event in self.wanted.kind.events() {
            println!("{:>10}  {event}", found.reached.count(event));
        }
        ExitCode::SUCCESS
    }
}

/// Explores the scenarios of two writers.
fn explore_model(deep: bool) -> ExitCode {
    for scenario in Scenario::all(deep) {
        let began = Instant::now();
        let found = explore(&scenario, None, STATES_MAX);
        let seconds = began.elapsed().as_secs_f64();
        let (states, steps, depth) = (found.states, found.steps, found.depth);
        let name = scenario.name;
        println!("{states:>9} states, {steps:>9} steps, {depth:>3} deep, {seconds:>6.1} s: {name}");
        if let Some((broken, path)) = found.broken {
            eprintln!("{name}: {}: {}\nafter {path:#?}", broken.rule, broken.what);
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Prints what 1 to 16 cores serve.
fn tell_throughput(costs: &[String]) -> Result<(), String> {
    let number = |text: &String| match text.parse() {
        Ok(ns @ 0..=COST_NS_MAX) => Ok(ns),
        _ => Err(format!(
            "{text:?} is no cost in nanoseconds, of at most {COST_NS_MAX}"
        )),
    };
    let [connection, shard, message] = costs else {
        return Err("--throughput needs three costs".to_owned());
    };
    let costs = Costs {
        connection_ns: number(connection)?,
        shard_ns: number(shard)?,
        message_ns: number(message)?,
    };
    if costs.connection_ns == 0 || costs.shard_ns == 0 {
        return Err("a request takes time on both cores".to_owned());
    }
    println!("thousand requests a second of 4 KiB, 32 under way on a connection");
    println!("       4 connections for each core           one connection");
    println!("cores  formula     read    write  messages   formula     read    write");
    for cores in [1, 2, 4, 8, 16] {
        let found = |connections, writes| {
            let load = Load {
                cores,
                connections,
                depth: 32,
                writes,
            };
            simulate(costs, load)
        };
        let (reads, writes) = (found(4 * cores, false), found(4 * cores, true));
        println!(
            "{cores:>5} {:>8.0} {:>8.0} {:>8.0}  {:>8.2}  {:>8.0} {:>8.0} {:>8.0}",
            costs.of_all(cores) / 1e3,
            reads.rate / 1e3,
            writes.rate / 1e3,
            reads.messages,
            costs.of_one_connection(cores) / 1e3,
            found(1, false).rate / 1e3,
            found(1, true).rate / 1e3,
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--help") {
        println!("{USAGE}\n{HELP}");
        return ExitCode::SUCCESS;
    }
    if arguments.first().is_some_and(|first| first == "--model") {
        return explore_model(arguments.iter().any(|flag| flag == "--deep"));
    }
    let misused = |why: String| {
        eprintln!("{why}\n{USAGE}");
        ExitCode::from(4)
    };
    if arguments
        .first()
        .is_some_and(|first| first == "--throughput")
    {
        return match tell_throughput(&arguments[1..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => misused(why),
        };
    }
    let wanted = match parse(arguments.into_iter()) {
        Ok(wanted) => wanted,
        Err(why) => return misused(why),
    };
    let kind = wanted.kind;
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        if let Some(seed) = SEED.get() {
            report(seed, kind);
        }
    }));
    let range = Range::new(wanted);
    std::thread::scope(|threads| {
        for _ in 0..range.wanted.jobs.min(range.wanted.seeds.max(1)) {
            threads.spawn(|| range.work());
        }
    });
    range.conclude()
}

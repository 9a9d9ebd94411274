//! `taipan-bench core-model`: how the throughput of data cores grows with their number, from what a
//! request and a message cost, by a formula and by an event-driven simulation that checks it.
//!
//! A request arrives at the core of its connection, is passed to the owner of its shard if that is
//! another core, and comes back for its reply: two messages. See `docs/internals/performance.md`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::random::SplitMix64;

/// Shards of a volume, dealt to the cores in turn (DESIGN §2).
const SHARDS: u64 = 16;
/// Requests that are simulated; the first tenth is not counted.
const REQUESTS: u64 = 100_000;
const SEED: u64 = 1;

/// Options of `taipan-bench core-model`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoreModelArgs {
    /// CPU time of a request on the core of its connection: receiving, parsing, replying
    #[arg(long, value_name = "NS")]
    connection_ns: u64,

    /// CPU time of a request on the core that owns its shard: index, memory, batch
    #[arg(long, value_name = "NS")]
    shard_ns: u64,

    /// CPU time of one message between cores, both sides together
    #[arg(long, value_name = "NS")]
    message_ns: u64,

    /// Connections for each core, when all cores have some
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    connections: u64,

    /// Requests of a connection that are under way
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=1024))]
    iodepth: u64,

    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What is said of one number of cores; rates in requests per second.
#[derive(Clone, Debug, Serialize)]
struct Row {
    cores: u64,
    /// Part of the requests whose shard another core owns.
    crossing: f64,
    /// All cores have connections.
    formula: f64,
    simulated: f64,
    /// Only one connection, on the first core.
    one_connection_formula: f64,
    one_connection_simulated: f64,
}

/// Prints what the model says of 1 to 16 cores.
pub(crate) fn run(args: &CoreModelArgs) -> Result<()> {
    ensure!(
        args.connection_ns > 0 && args.shard_ns > 0,
        "a request takes time on both cores: --connection-ns and --shard-ns are above zero"
    );
    let rows: Vec<Row> = [1, 2, 4, 8, 16].map(|cores| row(args, cores)).into();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("cores  crossing  k/s by formula  simulated    one connection  simulated");
    for row in rows {
        println!(
            "{:5}  {:7.0}%  {:14.0}  {:9.0}  {:16.0}  {:9.0}",
            row.cores,
            row.crossing * 100.0,
            row.formula / 1e3,
            row.simulated / 1e3,
            row.one_connection_formula / 1e3,
            row.one_connection_simulated / 1e3,
        );
    }
    Ok(())
}

fn row(args: &CoreModelArgs, cores: u64) -> Row {
    let crossing = 1.0 - 1.0 / cores as f64;
    let (connection, shard) = (args.connection_ns as f64, args.shard_ns as f64);
    let message = args.message_ns as f64;
    let each = connection + shard + crossing * 2.0 * message;
    // Half of both messages is the connection's core's; what is left over is the busiest owner's.
    let home = connection + shard / cores as f64 + crossing * message;
    let busiest = if cores == 1 {
        home
    } else {
        home.max((shard + message) / cores as f64)
    };
    let simulate = |connections| Machine::new(args, cores, connections).throughput();
    Row {
        cores,
        crossing,
        formula: cores as f64 * 1e9 / each,
        simulated: simulate(cores * args.connections),
        one_connection_formula: 1e9 / busiest,
        one_connection_simulated: simulate(1),
    }
}

/// What a core has to do next for a request of a connection.
#[derive(Clone, Copy, Debug)]
enum Task {
    /// It has arrived.
    Arrive { connection: u64 },
    /// Its owner serves it and sends it back.
    Serve { connection: u64 },
    /// It is back at its connection.
    Reply { connection: u64 },
}

/// Cores with their queues; a client sends the next request as soon as a reply is there.
struct Machine<'a> {
    costs: &'a CoreModelArgs,
    queues: Vec<VecDeque<Task>>,
    busy: Vec<bool>,
    /// When which core is done with which task, in nanoseconds.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    running: Vec<Option<Task>>,
    /// The owner of the request whose arrival a core works on.
    owners: Vec<usize>,
    random: SplitMix64,
    now_ns: u64,
    replies: u64,
}

impl<'a> Machine<'a> {
    fn new(costs: &'a CoreModelArgs, cores: u64, connections: u64) -> Self {
        let cores = cores as usize;
        let mut machine = Self {
            costs,
            queues: vec![VecDeque::new(); cores],
            busy: vec![false; cores],
            ends: BinaryHeap::new(),
            running: vec![None; cores],
            owners: vec![0; cores],
            random: SplitMix64::of(&[SEED, cores as u64, connections]),
            now_ns: 0,
            replies: 0,
        };
        for connection in 0..connections {
            for _ in 0..costs.iodepth {
                let home = machine.home(connection);
                machine.queues[home].push_back(Task::Arrive { connection });
            }
        }
        machine
    }

    /// Requests per second once all is under way.
    fn throughput(mut self) -> f64 {
        let (warm, mut begun_ns) = (REQUESTS / 10, 0);
        (0..self.queues.len()).for_each(|core| self.begin(core));
        while self.replies < REQUESTS {
            let Some(Reverse((at_ns, core))) = self.ends.pop() else {
                break;
            };
            self.now_ns = at_ns;
            self.end(core);
            self.begin(core);
            if self.replies <= warm {
                begun_ns = at_ns;
            }
        }
        (self.replies - warm) as f64 * 1e9 / (self.now_ns - begun_ns) as f64
    }

    fn home(&self, connection: u64) -> usize {
        (connection % self.queues.len() as u64) as usize
    }

    /// Has an idle core take its next task.
    fn begin(&mut self, core: usize) {
        if self.busy[core] {
            return;
        }
        let Some(task) = self.queues[core].pop_front() else {
            return;
        };
        let message_side_ns = self.costs.message_ns / 2;
        // A reply's share of what the connection costs is in its arrival.
        let cost_ns = match task {
            Task::Arrive { .. } => {
                let owner = (self.random.below(SHARDS) % self.queues.len() as u64) as usize;
                self.owners[core] = owner;
                let rest = if owner == core {
                    self.costs.shard_ns
                } else {
                    message_side_ns
                };
                self.costs.connection_ns + rest
            }
            Task::Serve { .. } => self.costs.shard_ns + 2 * message_side_ns,
            Task::Reply { .. } => message_side_ns,
        };
        self.busy[core] = true;
        self.running[core] = Some(task);
        self.ends.push(Reverse((self.now_ns + cost_ns, core)));
    }

    /// A core is done with its task: what follows is queued where it belongs.
    fn end(&mut self, core: usize) {
        self.busy[core] = false;
        let Some(task) = self.running[core].take() else {
            return;
        };
        match task {
            Task::Arrive { connection } if self.owners[core] == core => self.replied(connection),
            Task::Arrive { connection } => {
                self.queue(self.owners[core], Task::Serve { connection });
            }
            Task::Serve { connection } => {
                self.queue(self.home(connection), Task::Reply { connection });
            }
            Task::Reply { connection } => self.replied(connection),
        }
    }

    fn replied(&mut self, connection: u64) {
        self.replies += 1;
        self.queue(self.home(connection), Task::Arrive { connection });
    }

    fn queue(&mut self, core: usize, task: Task) {
        self.queues[core].push_back(task);
        self.begin(core);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(connection_ns: u64, shard_ns: u64, message_ns: u64) -> CoreModelArgs {
        CoreModelArgs {
            connection_ns,
            shard_ns,
            message_ns,
            connections: 4,
            iodepth: 32,
            json: false,
        }
    }

    fn near(found: f64, expected: f64) -> bool {
        (found / expected - 1.0).abs() < 0.03
    }

    #[test]
    fn the_simulation_agrees_with_the_formula() {
        for args in [
            costs(1500, 800, 300),
            costs(1000, 3000, 100),
            costs(500, 400, 900),
        ] {
            for cores in [1, 2, 4, 8, 16] {
                let row = row(&args, cores);
                assert!(near(row.simulated, row.formula), "{args:?} {row:?}");
                let (one, by_formula) = (row.one_connection_simulated, row.one_connection_formula);
                assert!(near(one, by_formula), "{args:?} {row:?}");
            }
        }
    }

    #[test]
    fn one_core_sends_no_messages() {
        let (cheap, dear) = (
            row(&costs(1000, 500, 1), 1),
            row(&costs(1000, 500, 5000), 1),
        );
        assert!(near(cheap.simulated, 1e9 / 1500.0));
        assert!(near(dear.simulated, cheap.simulated));
    }

    #[test]
    fn a_request_without_cost_is_refused() {
        assert!(run(&costs(0, 1, 1)).is_err());
    }
}

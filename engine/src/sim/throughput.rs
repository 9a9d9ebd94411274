//! How the throughput of data cores grows with their number: a formula, and production's cores on a
//! clock that charges what a request and a message cost. See `docs/internals/performance.md`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use super::dice::Dice;
use crate::arena::Arena;
use crate::block::{SHARD_COUNT, ShardId};
use crate::core::{
    Core, EpochClock, Io, OpKey, Origin, PeerMessage, Progress, Ticket, WritePolicy,
};
use crate::identity::{Epoch, Incarnation, Lsn, VolumeId};
use crate::index::{Overlay, ShardBase};
use crate::shard::{Shard, VolumeSlot};
use crate::volume::VolumeSettings;
use crate::wal::{BootId, LogConfig, LogIdentity, Recovered, ShardLog, WalId};

const BLOCK: u64 = 4096;
/// Blocks of the volume, all of them in memory.
const BLOCKS: u64 = 1024;
const SLOT: VolumeSlot = VolumeSlot(0);
/// Requests that are simulated, at least, and for each that is under way; the first quarter is not
/// counted.
const REQUESTS: u64 = 12_000;
const REQUESTS_EACH: u64 = 24;
/// Requests and messages that a core takes in one turn.
const TURN_MAX: usize = 8;

/// CPU time of a core in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Of a request on the core of its connection: receiving, parsing, replying.
    pub connection_ns: u64,
    /// Of a block on the core that owns its shard: index, memory, batch.
    pub shard_ns: u64,
    /// Of one message between cores, both sides together; each pays half.
    pub message_ns: u64,
}

impl Costs {
    /// Requests per second of `cores` cores that all have connections.
    pub fn of_all(&self, cores: usize) -> f64 {
        let local = (self.connection_ns + self.shard_ns) as f64;
        cores as f64 * 1e9 / (local + crossing(cores) * 2.0 * self.message_ns as f64)
    }

    /// Requests per second of one connection: its own core is the busiest, or the owners are.
    pub fn of_one_connection(&self, cores: usize) -> f64 {
        let (shard, message) = (self.shard_ns as f64, self.message_ns as f64);
        let share = 1.0 / cores as f64;
        let home = self.connection_ns as f64 + shard * share + crossing(cores) * message;
        let owner = if cores == 1 {
            home
        } else {
            (shard + message) * share
        };
        1e9 / home.max(owner)
    }
}

/// Part of the requests whose shard another core owns.
fn crossing(cores: usize) -> f64 {
    1.0 - 1.0 / cores as f64
}

/// What clients do, each with some requests of one block under way at random places.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Data cores.
    pub cores: usize,
    /// Connections, dealt to the cores in turn.
    pub connections: usize,
    /// Requests of a connection that are under way.
    pub depth: usize,
    /// They write.
    pub writes: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Requests per second of the simulated clock.
    pub rate: f64,
    /// Messages between cores for a request.
    pub messages: f64,
}

/// Lets production's cores serve `load`.
pub fn simulate(costs: Costs, load: Load) -> Found {
    let mut machine = Machine::new(costs, load);
    machine.fill();
    machine.run()
}

/// What waits for a core.
enum Item {
    Request {
        connection: usize,
    },
    Message {
        from: usize,
        message: Box<PeerMessage>,
    },
}

/// What leaves a core when its turn ends.
#[derive(Default)]
struct Leaving {
    replies: Vec<usize>,
    messages: Vec<(usize, PeerMessage)>,
}

struct Machine {
    costs: Costs,
    load: Load,
    cores: Vec<Core>,
    waiting: Vec<VecDeque<Item>>,
    /// What a core that works now will send.
    turns: Vec<Option<Leaving>>,
    /// When which core's turn ends, in nanoseconds.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    dice: Dice,
    now_ns: u64,
    replies: u64,
    messages: u64,
}

impl Machine {
    fn new(costs: Costs, load: Load) -> Self {
        let clock = Arc::new(EpochClock::new(Epoch(1)));
        let core = |index| {
            let own = ShardId::all().filter(|id| id.core(load.cores) == index);
            let shards = own.map(shard).collect();
            // Far below what a log's memory holds: nothing waits for a timer.
            let policy = WritePolicy {
                undurable_bytes: 256 << 10,
                ..WritePolicy::default()
            };
            let mut core = Core::new(index, load.cores, Arc::clone(&clock), shards, policy);
            let own = ShardId::all().filter(|id| id.core(load.cores) == index);
            let parts = own.map(|id| (id, Overlay::new(), ShardBase::default()));
            let settings = VolumeSettings::with_size(BLOCKS * BLOCK);
            core.add_volume(
                SLOT,
                VolumeId(1),
                &settings,
                false,
                Epoch(0),
                parts.collect(),
            );
            core.make_durable();
            core
        };
        Self {
            costs,
            load,
            cores: (0..load.cores).map(core).collect(),
            waiting: (0..load.cores).map(|_| VecDeque::new()).collect(),
            turns: (0..load.cores).map(|_| None).collect(),
            ends: BinaryHeap::new(),
            dice: Dice::new(load.cores as u64),
            now_ns: 0,
            replies: 0,
            messages: 0,
        }
    }

    /// Writes every block where it belongs, free of charge.
    fn fill(&mut self) {
        for block in 0..BLOCKS {
            let core = (block % SHARD_COUNT as u64) as usize % self.load.cores;
            let data = [1; BLOCK as usize];
            let origin = Origin::Client(Ticket(0));
            let progress = self.cores[core].write(origin, SLOT, block * BLOCK, &data, false);
            assert!(matches!(progress, Progress::Done), "its own shard has room");
            self.carry_on(core);
        }
    }

    fn run(mut self) -> Found {
        for connection in 0..self.load.connections {
            for _ in 0..self.load.depth {
                let home = self.home(connection);
                self.waiting[home].push_back(Item::Request { connection });
            }
        }
        (0..self.load.cores).for_each(|core| self.begin(core));
        let under_way = (self.load.connections * self.load.depth) as u64;
        let requests = REQUESTS.max(under_way * REQUESTS_EACH);
        let (warm, mut begun) = (requests / 4, (0, 0, 0));
        while self.replies < requests {
            let Reverse((at_ns, core)) = self.ends.pop().expect("requests are under way");
            self.now_ns = at_ns;
            self.end(core);
            if self.replies <= warm {
                begun = (self.now_ns, self.replies, self.messages);
            }
        }
        let replies = (self.replies - begun.1) as f64;
        Found {
            rate: replies * 1e9 / (self.now_ns - begun.0) as f64,
            messages: (self.messages - begun.2) as f64 / replies,
        }
    }

    fn home(&self, connection: usize) -> usize {
        connection % self.load.cores
    }

    /// Has an idle core take what waits for it; what it costs passes until the turn's end.
    fn begin(&mut self, core: usize) {
        if self.turns[core].is_some() || self.waiting[core].is_empty() {
            return;
        }
        let (mut leaving, mut cost_ns) = (Leaving::default(), 0);
        let served_before = served(&self.cores[core]);
        for _ in 0..TURN_MAX {
            let Some(item) = self.waiting[core].pop_front() else {
                break;
            };
            match item {
                Item::Request { connection } => {
                    cost_ns += self.costs.connection_ns;
                    if self.ask(core, connection) {
                        leaving.replies.push(connection);
                    }
                }
                Item::Message { from, message } => {
                    cost_ns += self.costs.message_ns / 2;
                    self.cores[core].peer(from, *message);
                }
            }
        }
        self.carry_on(core);
        let effects = &mut self.cores[core].effects;
        let done = effects.done.drain(..);
        leaving.replies.extend(done.map(|done| {
            assert_eq!(done.result, Ok(()));
            done.ticket.0 as usize
        }));
        leaving.messages.append(&mut effects.peers);
        cost_ns += leaving.messages.len() as u64 * self.costs.message_ns / 2;
        cost_ns += (served(&self.cores[core]) - served_before) * self.costs.shard_ns;
        self.turns[core] = Some(leaving);
        self.ends.push(Reverse((self.now_ns + cost_ns, core)));
    }

    /// Hands a request to the core of its connection; true if it is answered at once.
    fn ask(&mut self, core: usize, connection: usize) -> bool {
        let offset = self.dice.below(BLOCKS) * BLOCK;
        let origin = Origin::Client(Ticket(connection as u64));
        let core = &mut self.cores[core];
        let progress = if self.load.writes {
            core.write(origin, SLOT, offset, &[2; BLOCK as usize], false)
        } else {
            core.read(origin, SLOT, offset, BLOCK, &mut Vec::new())
        };
        match progress {
            Progress::Done => true,
            Progress::Pending(_) => false,
            Progress::Failed(failure) => panic!("a request of the model fails: {failure:?}"),
        }
    }

    /// Lets a core carry on on a disk that takes no time.
    fn carry_on(&mut self, core: usize) {
        let core = &mut self.cores[core];
        core.tick(self.now_ns / 1_000_000);
        loop {
            core.pump();
            let started: Vec<OpKey> = core.effects.io.drain(..).map(|io| name(&io)).collect();
            if started.is_empty() {
                return;
            }
            started
                .into_iter()
                .for_each(|op| core.io_done(op, Ok(()), &[]));
        }
    }

    /// A turn ends: replies bring the next requests, messages arrive.
    fn end(&mut self, core: usize) {
        let leaving = self.turns[core].take().expect("it worked");
        for connection in leaving.replies {
            self.replies += 1;
            self.waiting[core].push_back(Item::Request { connection });
        }
        for (to, message) in leaving.messages {
            self.messages += 1;
            let message = Box::new(message);
            self.waiting[to].push_back(Item::Message {
                from: core,
                message,
            });
            self.begin(to);
        }
        self.begin(core);
    }
}

/// Blocks that a core has read from memory or written so far.
fn served(core: &Core) -> u64 {
    core.counters().memory_blocks + core.load().pending_bytes / BLOCK
}

fn name(io: &Io) -> OpKey {
    match io {
        Io::WalWrite { op, .. } | Io::Barrier { op, .. } => *op,
        Io::WalRead { .. } => panic!("all blocks are in memory"),
    }
}

/// A shard whose log has room for all that is written.
fn shard(id: ShardId) -> Shard {
    let config = LogConfig {
        arena_bytes: 2 << 20,
        undurable_bytes_max: 1 << 20,
        batch_payload_max: 64 << 10,
        segment_bytes: 1 << 20,
        segments: 128,
        reserve_segments: 8,
    };
    config.validate().expect("sizes that fit each other");
    let identity = LogIdentity {
        wal: WalId(1),
        shard: id,
        incarnation: Incarnation(1),
        boot: BootId([1; 16]),
    };
    let arena = Arena::anonymous(config.arena_bytes).expect("memory for the model");
    let blank = Recovered::blank(&identity, &config);
    let log = ShardLog::resume(identity, config, arena, &blank).expect("a new log");
    Shard::new(id, log, Lsn(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: [Costs; 3] = [
        Costs {
            connection_ns: 1500,
            shard_ns: 800,
            message_ns: 300,
        },
        Costs {
            connection_ns: 1000,
            shard_ns: 3000,
            message_ns: 100,
        },
        Costs {
            connection_ns: 500,
            shard_ns: 400,
            message_ns: 900,
        },
    ];

    fn found(costs: Costs, cores: usize, connections: usize, writes: bool) -> Found {
        let load = Load {
            cores,
            connections,
            depth: 16,
            writes,
        };
        simulate(costs, load)
    }

    fn assert_near(found: f64, expected: f64, what: &str) {
        let ratio = found / expected;
        assert!((ratio - 1.0).abs() < 0.05, "{what}: {found} of {expected}");
    }

    #[test]
    fn cores_that_all_have_connections_serve_what_the_formula_says() {
        for costs in COSTS {
            for (cores, writes) in [1, 2, 4, 8, 16].map(|n| [(n, false), (n, true)]).concat() {
                let found = found(costs, cores, 4 * cores, writes);
                let what = format!("{costs:?}, {cores} cores, writes: {writes}");
                assert_near(found.rate, costs.of_all(cores), &what);
                let messages = 2.0 * crossing(cores);
                assert!((found.messages - messages).abs() < 0.05, "{what} {found:?}");
            }
        }
    }

    #[test]
    fn one_connection_is_bounded_by_its_core_or_by_the_owners() {
        for costs in COSTS {
            for (cores, writes) in [1, 2, 4, 16].map(|n| [(n, false), (n, true)]).concat() {
                let found = found(costs, cores, 1, writes);
                let what = format!("{costs:?}, {cores} cores, writes: {writes}");
                assert_near(found.rate, costs.of_one_connection(cores), &what);
            }
        }
    }

    #[test]
    fn what_a_message_costs_counts_only_between_cores() {
        let dear = Costs {
            message_ns: 50_000,
            ..COSTS[0]
        };
        let alone = found(dear, 1, 4, false).rate;
        assert_near(alone, found(COSTS[0], 1, 4, false).rate, "one core");
        assert!(found(dear, 2, 8, false).rate < alone / 2.0);
    }
}

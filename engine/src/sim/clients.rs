//! Clients and their connections: they stay alive over the appliance's lives, reconnect, and hold
//! it to what it answered. Mirrors `appliance::connection` on the server's side.

mod audit;
mod judge;
mod maps;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::dice::Dice;
use super::oracle::{Kept, Oracle};
use super::pattern::{Lattice, WriteId};
use super::plan::{MS, Plan, VolumePlan};
use super::risk::Begun;
use super::serve::Message;
use super::workload::{Taste, Wish};
use super::world::{Event, World};
use crate::core::{Done, Failure, Origin, Progress, RequestKey, Ticket};
use crate::shard::VolumeSlot;
use crate::volume::{Ack, Durability};

/// A request on its way to the server.
pub(super) struct Request {
    ticket: u64,
    wish: Wish,
    data: Vec<u8>,
}

/// What a client waits for.
#[derive(Clone, Debug)]
enum Asked {
    Read { cells: Range<u32>, began: u64 },
    Write { id: WriteId, place: Kept },
    Flush { began: u64 },
}

struct Operation {
    asked: Asked,
    sent_us: u64,
}

/// A request in the hands of a core.
struct Running {
    key: RequestKey,
    /// What it adds to what the bucket lacks; `None`: nothing is written.
    adds: Option<Begun>,
}

/// Both ends of a connection.
struct Connection {
    client: usize,
    volume: usize,
    core: usize,
    /// The client has gone.
    dead: bool,
    /// The server has closed it.
    closed: bool,
    /// The server serves it: dead predecessors are closed.
    joined: bool,
    joins_left: usize,
    /// Arrived and not yet looked at.
    input: VecDeque<Request>,
    /// What the core works on, by ticket.
    running: BTreeMap<u64, Running>,
    /// Asked and not yet answered, as the client sees it.
    waiting: BTreeMap<u64, Operation>,
    maps: maps::AskedMaps,
    /// Answers arrive in order.
    reply_at_us: u64,
    arrive_at_us: u64,
    settled: bool,
}

struct Client {
    volume: usize,
    taste: Taste,
    connection: Option<u32>,
    /// Writes of dead connections of which it is not known whether they landed.
    undecided: Vec<WriteId>,
    flush_first: bool,
    /// Cells of such writes: looked at again and again, whether they change their mind.
    suspect: Vec<Range<u32>>,
    /// Does nothing else but that for a while.
    watches: bool,
}

/// Where a write is once it is answered, and what was answered before once a FLUSH is.
fn kept(volume: &VolumePlan, fua: bool) -> Kept {
    match (volume.ack, volume.durability) {
        (_, Durability::Remote) if fua => Kept::Bucket,
        (Ack::Memory, _) if !fua => Kept::Memory,
        _ => Kept::Disk,
    }
}

/// Suspect ranges that a client keeps in mind.
const SUSPECT_MAX: usize = 4;
/// Longest thought of a client in a long life.
const LONG_THINK_US: u64 = 30 * MS;

/// All clients and connections, dead ones included.
pub(super) struct Clients {
    clients: Vec<Client>,
    connections: Vec<Connection>,
    /// Connections that the server has not closed.
    open: Vec<u32>,
    next_ticket: u64,
    stopped: bool,
    hot_shard: Option<u32>,
}

impl Clients {
    pub(super) fn new(plan: &Plan, dice: &mut Dice) -> Self {
        let client = |index| Client {
            volume: index % plan.volumes.len(),
            taste: Taste::new(dice, plan.hot_shard),
            connection: None,
            undecided: Vec::new(),
            flush_first: false,
            suspect: Vec::new(),
            watches: false,
        };
        Self {
            clients: (0..plan.clients).map(client).collect(),
            connections: Vec::new(),
            open: Vec::new(),
            next_ticket: 1,
            stopped: false,
            hot_shard: plan.hot_shard,
        }
    }

    /// Clients come back with another taste; in a long life they think for longer.
    pub(super) fn begin_life(&mut self, dice: &mut Dice, is_long: bool) {
        self.stopped = false;
        for client in &mut self.clients {
            client.taste = Taste::new(dice, self.hot_shard);
            if is_long {
                client.taste.think_us = LONG_THINK_US;
            }
            client.flush_first = dice.chance(500);
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// The server is gone, and with it all connections. What was on its way is decided.
    pub(super) fn server_gone(&mut self, oracle: &mut Oracle) {
        for number in std::mem::take(&mut self.open) {
            let connection = &mut self.connections[number as usize];
            (connection.dead, connection.closed) = (true, true);
            connection.input.clear();
            connection.running.clear();
            for operation in std::mem::take(&mut connection.waiting).into_values() {
                if let Asked::Write { id, .. } = operation.asked {
                    oracle.decided(id);
                }
            }
        }
        for client in &mut self.clients {
            client.connection = None;
            client.undecided.drain(..).for_each(|id| oracle.decided(id));
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.connections
            .iter()
            .map(|connection| connection.waiting.len())
            .sum()
    }

    fn at(&mut self, connection: u32) -> &mut Connection {
        &mut self.connections[connection as usize]
    }
}

/// Bytes that the bucket lacks after a write; zeros take none. `None`: it writes nothing.
fn bytes_added(wish: &Wish, lattice: Lattice) -> Option<u64> {
    match wish {
        Wish::Read(_) | Wish::Flush => None,
        Wish::Mark { cells, .. } => (!lattice.whole_blocks(cells).is_empty()).then_some(0),
        Wish::Write { cells, .. } => {
            let blocks = lattice.block(cells.end - 1) - lattice.block(cells.start) + 1;
            Some(u64::from(blocks) * lattice.block_size.bytes() as u64)
        }
    }
}

impl World {
    pub(super) fn schedule_clients(&mut self) {
        for client in 0..self.clients.clients.len() {
            let delay = self.dice.range(1..=5 * MS);
            self.schedule(delay, Event::Client { client });
        }
    }

    /// A client does one thing and thinks again later.
    pub(super) fn client_turn(&mut self, index: usize) {
        if self.clients.stopped || self.node.is_none() {
            return;
        }
        let think_us = self.clients.clients[index].taste.think_us;
        let delay = self.dice.range(1..=think_us);
        self.schedule(delay, Event::Client { client: index });
        let volume = self.clients.clients[index].volume;
        if self.fenced.volumes.contains(&volume) {
            // Connections to it are refused.
            return;
        }
        let client = &mut self.clients.clients[index];
        let Some(connection) = client.connection else {
            let volume = client.volume;
            let connection = self.connect(index, volume);
            self.clients.clients[index].connection = Some(connection);
            if std::mem::take(&mut self.clients.clients[index].flush_first) {
                self.ask(connection, Wish::Flush);
            }
            return;
        };
        client.watches &= !client.suspect.is_empty() && !self.dice.chance(15);
        let (volume, depth, watches) = (client.volume, client.taste.depth, client.watches);
        if !watches && self.dice.chance(self.faults.disconnect) {
            return self.disconnect(connection);
        }
        if self.clients.at(connection).waiting.len() < depth {
            let lattice = self.oracle.lattices[volume];
            let client = &self.clients.clients[index];
            let (taste, suspects) = (client.taste, client.suspect.len() as u64);
            let wish = if watches || suspects > 0 && self.dice.chance(100) {
                Wish::Read(client.suspect[self.dice.below(suspects) as usize].clone())
            } else {
                taste.wish(&mut self.dice, lattice)
            };
            self.ask(connection, wish);
        }
    }

    /// Opens a connection on some core; it is served once dead ones of its volume are closed.
    fn connect(&mut self, client: usize, volume: usize) -> u32 {
        let core = self.dice.below(self.plan.cores as u64) as usize;
        let number = self.clients.connections.len() as u32;
        self.clients.connections.push(Connection {
            client,
            volume,
            core,
            dead: false,
            closed: false,
            joined: false,
            joins_left: self.plan.cores - 1,
            input: VecDeque::new(),
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            maps: maps::AskedMaps::new(),
            reply_at_us: 0,
            arrive_at_us: 0,
            settled: false,
        });
        self.clients.open.push(number);
        let slot = VolumeSlot(volume as u32);
        self.close_dead(core, slot);
        for other in (0..self.plan.cores).filter(|other| *other != core) {
            let message = Message::CloseDead {
                from: core,
                slot,
                connection: number,
            };
            self.post(other, message);
        }
        if self.plan.cores == 1 {
            self.join(number);
        }
        number
    }

    pub(super) fn dead_closed(&mut self, connection: u32) {
        let joining = self.clients.at(connection);
        joining.joins_left -= 1;
        if joining.joins_left == 0 && !joining.closed {
            self.join(connection);
        }
    }

    /// The server begins to serve: nothing of the client's dead connections can land any more.
    fn join(&mut self, number: u32) {
        let connection = self.clients.at(number);
        connection.joined = true;
        let (client, core) = (connection.client, connection.core);
        if let Some(client) = self.clients.clients.get_mut(client) {
            let undecided = std::mem::take(&mut client.undecided);
            if !undecided.is_empty() {
                self.coverage.hit("a connection took over from a dead one");
            }
            undecided.into_iter().for_each(|id| self.oracle.decided(id));
        }
        self.wake(core);
    }

    /// The client goes away without a word.
    fn disconnect(&mut self, number: u32) {
        let connection = self.clients.at(number);
        connection.dead = true;
        let client = connection.client;
        let waiting = std::mem::take(&mut connection.waiting);
        self.note(format_args!(
            "connection {number} dies with {} requests",
            waiting.len()
        ));
        let Some(client) = self.clients.clients.get_mut(client) else {
            // It reads everything back, and stops.
            return;
        };
        client.connection = None;
        client.flush_first = self.dice.chance(500);
        client.watches = self.dice.chance(400);
        for operation in waiting.into_values() {
            if let Asked::Write { id, .. } = operation.asked {
                client.undecided.push(id);
                let cells = self.oracle.cells_of(id);
                if !cells.is_empty() {
                    client.suspect.insert(0, cells);
                }
                client.suspect.truncate(SUSPECT_MAX);
            }
        }
        let delay = self.dice.range(1..=50 * MS);
        self.schedule(delay, Event::Hangup { connection: number });
    }

    pub(super) fn hangup_noticed(&mut self, connection: u32) {
        let core = self.clients.at(connection).core;
        self.post(core, Message::Hangup { connection });
    }

    /// Closes dead connections of a volume on one core.
    pub(super) fn close_dead(&mut self, core: usize, slot: VolumeSlot) {
        for number in self.clients.open.clone() {
            let connection = self.clients.at(number);
            if connection.core == core && connection.volume == slot.0 as usize && connection.dead {
                self.close_connection(number);
            }
        }
    }

    /// The server closes all connections of a volume on one core.
    pub(super) fn close_volume(&mut self, core: usize, slot: VolumeSlot) {
        for number in self.clients.open.clone() {
            let connection = self.clients.at(number);
            if connection.core == core && connection.volume == slot.0 as usize {
                if !connection.dead {
                    self.disconnect(number);
                }
                self.close_connection(number);
            }
        }
    }

    /// The server closes a dead connection: what is not appended yet never will be.
    pub(super) fn close_connection(&mut self, number: u32) {
        let connection = self.clients.at(number);
        if connection.closed {
            return;
        }
        connection.closed = true;
        connection.input.clear();
        let core = connection.core;
        self.clients.open.retain(|open| *open != number);
        let connection = self.clients.at(number);
        let running = std::mem::take(&mut connection.running);
        let core = &mut self.node.as_mut().expect("it runs").cores[core];
        let dropped = |core: &crate::core::Core| -> usize {
            (0..core.shards().len())
                .map(|position| core.parked(position))
                .sum()
        };
        let parked = dropped(core);
        for running in running.into_values() {
            core.cancel(running.key);
        }
        let left = dropped(core);
        if left < parked {
            self.note(format_args!(
                "connection {number} closed, {parked} parked, {left} left"
            ));
            self.coverage
                .hit("a cancelled write was dropped before it was appended");
        }
    }

    /// A client asks for something.
    fn ask(&mut self, number: u32, wish: Wish) {
        let volume = self.clients.at(number).volume;
        let place = |fua| kept(&self.plan.volumes[volume], fua);
        let lattice = self.oracle.lattices[volume];
        let (mut data, ticket) = (Vec::new(), self.clients.next_ticket);
        self.clients.next_ticket += 1;
        let asked = match &wish {
            Wish::Read(cells) => Asked::Read {
                cells: cells.clone(),
                began: self.oracle.tick(),
            },
            Wish::Flush => Asked::Flush {
                began: self.oracle.tick(),
            },
            Wish::Write { cells, fua } => {
                let id = self.oracle.begin(volume, cells.clone(), false);
                data = lattice.fill(cells, id);
                Asked::Write {
                    id,
                    place: place(*fua),
                }
            }
            Wish::Mark { cells, kind, fua } => {
                let changed = match kind {
                    crate::wal::MarkKind::Zero => cells.clone(),
                    crate::wal::MarkKind::Trim => lattice.of_blocks(lattice.whole_blocks(cells)),
                };
                let id = self.oracle.begin(volume, changed, true);
                Asked::Write {
                    id,
                    place: place(*fua),
                }
            }
        };
        self.note(format_args!(
            "#{ticket} on {number} v{volume} {wish:?} {asked:?}"
        ));
        let operation = Operation {
            asked,
            sent_us: self.now_us,
        };
        let now_us = self.now_us;
        let delay = self.dice.range(5..=100);
        let connection = self.clients.at(number);
        connection.waiting.insert(ticket, operation);
        connection.arrive_at_us = connection.arrive_at_us.max(now_us + delay);
        let delay = connection.arrive_at_us - now_us;
        let request = Request { ticket, wish, data };
        self.schedule(
            delay,
            Event::Arrive {
                connection: number,
                request,
            },
        );
    }

    pub(super) fn arrive(&mut self, number: u32, request: Request) {
        let connection = self.clients.at(number);
        if connection.closed {
            return;
        }
        connection.input.push_back(request);
        let core = connection.core;
        self.wake(core);
    }

    /// Serves the connections of a core; true if some input is left.
    pub(super) fn serve_connections(&mut self, core: usize) -> bool {
        let mut left = false;
        for number in self.clients.open.clone() {
            let connection = self.clients.at(number);
            if connection.core != core || connection.closed || !connection.joined {
                continue;
            }
            let mut budget = self.dice.range(1..=8);
            while budget > 0
                && let Some(request) = self.clients.at(number).input.pop_front()
            {
                budget -= 1;
                self.submit(core, number, request);
                self.may_cut();
            }
            left |= !self.clients.at(number).input.is_empty();
        }
        left
    }

    fn submit(&mut self, core: usize, number: u32, request: Request) {
        let volume = self.clients.at(number).volume;
        let lattice = self.oracle.lattices[volume];
        let slot = VolumeSlot(volume as u32);
        let adds = bytes_added(&request.wish, lattice);
        let adds = adds.map(|bytes| self.risk.begins(volume, bytes));
        if let Wish::Read(cells) = &request.wish {
            self.ask_map(number, request.ticket, cells);
        }
        let origin = Origin::Client(Ticket(u64::from(number) << 32 | request.ticket));
        let core = &mut self.node.as_mut().expect("it runs").cores[core];
        let patches = core.counters().wal_reads + core.counters().fetches;
        let mut data = Vec::new();
        let is_write = !matches!(request.wish, Wish::Read(_));
        let progress = match request.wish {
            Wish::Read(cells) => {
                let bytes = lattice.bytes(&cells);
                core.read(
                    origin,
                    slot,
                    bytes.start,
                    bytes.end - bytes.start,
                    &mut data,
                )
            }
            Wish::Write { cells, fua } => {
                core.write(origin, slot, lattice.start(cells.start), &request.data, fua)
            }
            Wish::Mark { cells, kind, fua } => {
                let bytes = lattice.bytes(&cells);
                core.mark(
                    origin,
                    slot,
                    bytes.start,
                    bytes.end - bytes.start,
                    kind,
                    fua,
                )
            }
            Wish::Flush => core.flush(origin, slot),
        };
        if is_write && core.counters().wal_reads + core.counters().fetches > patches {
            self.coverage
                .hit("a partial write waited for the old block");
        }
        match progress {
            Progress::Done => {
                self.note_risk(volume, adds, true);
                self.reply(number, request.ticket, Ok(()), data);
            }
            Progress::Failed(failure) => self.reply(number, request.ticket, Err(failure), data),
            Progress::Pending(key) => {
                let running = Running { key, adds };
                let connection = self.clients.at(number);
                connection.running.insert(request.ticket, running);
            }
        }
    }

    /// The core has finished a request.
    pub(super) fn request_done(&mut self, done: Done) {
        let (number, ticket) = ((done.ticket.0 >> 32) as u32, done.ticket.0 & 0xFFFF_FFFF);
        if self.map_done(number, &done) {
            return;
        }
        let connection = self.clients.at(number);
        if connection.closed {
            return self.note(format_args!("#{ticket} ends unheard {:?}", done.result));
        }
        let volume = connection.volume;
        let known = connection.running.remove(&ticket);
        let known = known.expect("an answer belongs to a request");
        assert_eq!(known.key, done.key);
        if done.result.is_ok() {
            self.note_risk(volume, known.adds, false);
        }
        self.reply(number, ticket, done.result, done.data);
    }

    fn reply(&mut self, number: u32, ticket: u64, result: Result<(), Failure>, data: Vec<u8>) {
        let delay = self.dice.range(5..=100);
        let now_us = self.now_us;
        if result.is_ok() {
            self.check_right_to_answer(number, ticket);
        }
        let connection = self.clients.at(number);
        connection.reply_at_us = connection.reply_at_us.max(now_us + delay);
        let delay = connection.reply_at_us - now_us;
        self.schedule(
            delay,
            Event::Reply {
                connection: number,
                ticket,
                result,
                data,
            },
        );
    }

    /// At the end of a life some answers still get through, of each connection the first ones.
    pub(super) fn deliver_last_replies(&mut self) {
        let is_reply = |event: &Event| matches!(event, Event::Reply { .. });
        let keys: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, e)| is_reply(e))
            .map(|(at, _)| *at)
            .collect();
        let mut cut_off = Vec::new();
        for at in keys {
            let Some(Event::Reply {
                connection,
                ticket,
                result,
                data,
            }) = self.queue.remove(&at)
            else {
                continue;
            };
            if cut_off.contains(&connection) || self.dice.chance(300) {
                cut_off.push(connection);
            } else {
                self.reply_arrives(connection, ticket, result, &data);
            }
        }
    }

    /// A client gets an answer: the oracle judges it.
    pub(super) fn reply_arrives(
        &mut self,
        number: u32,
        ticket: u64,
        result: Result<(), Failure>,
        data: &[u8],
    ) {
        let connection = self.clients.at(number);
        if connection.dead {
            return;
        }
        let (volume, settled) = (connection.volume, connection.settled);
        let operation = connection
            .waiting
            .remove(&ticket)
            .expect("a client asked for it");
        self.note(format_args!("#{ticket} answered {result:?}"));
        if let Err(failure) = result {
            if let Asked::Write { id, .. } = operation.asked {
                self.oracle.decided(id);
            }
            return self.judge_failure(volume, &operation, failure, ticket);
        }
        let verdict = match &operation.asked {
            Asked::Read { cells, began } => {
                self.oracle.read((volume, cells), *began, data, settled)
            }
            Asked::Write { id, place } => {
                self.oracle.answered(*id, *place);
                self.look_into_the_bucket(volume, *place)
            }
            Asked::Flush { began } => {
                let place = kept(&self.plan.volumes[volume], true);
                self.oracle.flushed(volume, *began, place);
                self.look_into_the_bucket(volume, place)
            }
        };
        if let Err(what) = verdict {
            self.violate(format!("#{ticket}: {what}"));
        }
    }
}

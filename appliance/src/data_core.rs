//! The loop of one data core: sockets with direct recv and send, the engine's core, one ring for
//! WAL files, polls and wake-ups. One submission a turn.

mod accepting;
mod barrier_pace;
mod effects;
mod ending;
mod joining;
mod nearby;
mod outbox;
mod parking;
mod publish;
mod roster;
mod throttled;
mod vigil;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::PollFlags;
use taipan_engine::api::ShardStatus;
use taipan_engine::arena::ArenaSlice;
use taipan_engine::core::{Core, OpKey};
use taipan_engine::ring::{Completed, FileSlot, Ring, involuntary_switches};
use taipan_engine::shard::VolumeSlot;

use crate::connection::{
    Allowance, Buffers, Connection, ConnectionId, ConnectionLimits, Flushed, HandshakePace,
    Outcome, Surroundings,
};
use crate::directory::Directory;
use crate::doorbell::Doorbell;
use crate::fetcher::Fetcher;
use crate::inbox::{AddVolume, CoreAddress, CoreMessage, CoreReport};
use crate::metrics::{CoreCounters, Metrics};
use crate::tls::TlsService;
use crate::uploader::UploaderAddress;

use effects::Carrier;
use joining::Inquiry;
use outbox::Outbox;
use parking::Parking;
use publish::Published;
use vigil::{Awaited, Vigil, Watch};

/// Submission entries of the ring.
const RING_ENTRIES: u32 = 512;
/// Messages taken from the inbox in one turn.
const MESSAGES_PER_TURN: usize = 256;
/// A core turns at least so often, so that the watchdog sees it alive.
const TURN_MS_MAX: u64 = 1000;
/// How long a stop waits for requests in flight.
const QUIESCE_MS_MAX: u64 = 15_000;
/// How long it waits for clients to take the replies: one that reads nothing holds up nobody.
const UNREAD_MS_MAX: u64 = 2000;
/// Rounds of operations that end at once in one turn.
const DELIVERIES_PER_TURN: usize = 4;
/// BLOCK_STATUS requests of all connections in one turn; each may take milliseconds.
const MAPS_PER_TURN: u32 = 2;

/// Kinds of ring tokens, in bits 56..63.
mod token {
    pub(super) const OP: u64 = 1 << 56;
    pub(super) const READABLE: u64 = 2 << 56;
    pub(super) const WRITABLE: u64 = 3 << 56;
    pub(super) const BELL: u64 = 4 << 56;
    pub(super) const RUNG: u64 = 5 << 56;
    pub(super) const MESSAGE: u64 = 6 << 56;
    pub(super) const CLOSED: u64 = 7 << 56;
    pub(super) const NEARBY: u64 = 8 << 56;
    pub(super) const KIND: u64 = 0x7F << 56;
}

/// How flush barriers reach the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierScope {
    /// One fdatasync covers all WAL files: same device, proven file system.
    Device,
    /// One fdatasync a file.
    File,
}

/// What a data core is made of. Built by `boot`, taken to the core's own thread.
pub struct DataCoreParts {
    /// Index among the data cores.
    pub index: usize,
    /// The engine.
    pub core: Core,
    /// WAL files of the own shards, in order.
    pub wal_files: Vec<Arc<File>>,
    /// How barriers work here.
    pub barrier: BarrierScope,
    /// The inbox.
    pub inbox: Receiver<CoreMessage>,
    /// All data cores, this one included.
    pub addresses: Vec<CoreAddress>,
    /// Backend reads.
    pub fetcher: Fetcher,
    /// The uploader.
    pub uploader: UploaderAddress,
    /// The volumes.
    pub directory: Arc<Directory>,
    /// Counters of the daemon.
    pub metrics: Arc<Metrics>,
    /// Bounds on connections.
    pub limits: ConnectionLimits,
    /// Bound on all connections of all cores together.
    pub allowance: Arc<Allowance>,
    /// TLS, if it is offered.
    pub tls: Option<Arc<TlsService>>,
    /// An idle core stays awake for its next event at most so long.
    pub spin: Duration,
    /// Where the logs note what the next start would read of them.
    pub wal_dir: PathBuf,
    /// Zero of the daemon's clock.
    pub started: Instant,
}

struct Slot {
    connection: Option<Connection>,
    id: ConnectionId,
    /// When its connection was accepted.
    since_ms: u64,
    queued: bool,
    /// A poll for room to send is armed.
    awaits_room: bool,
    /// Answers of other cores outstanding before the connection may join its volume.
    joins: usize,
}

/// A stop in progress.
struct Quiesce {
    ack: Sender<()>,
    begun_ms: u64,
}

/// The loop's state.
pub struct DataCore {
    index: usize,
    core: Core,
    ring: Ring,
    carrier: Carrier,
    outbox: Outbox,
    /// Clients that join when others of their address are known to be alive.
    inquiries: Vec<Inquiry>,
    inbox: Receiver<CoreMessage>,
    bell: Arc<Doorbell>,
    addresses: Vec<CoreAddress>,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    counters: Arc<CoreCounters>,
    limits: ConnectionLimits,
    allowance: Arc<Allowance>,
    tls: Option<Arc<TlsService>>,
    handshakes: HandshakePace,
    /// Spare buffers of connections.
    buffers: Buffers,
    /// Connections that wait for memory that others hold.
    starved: VecDeque<u32>,
    /// Connections whose next request has its turn later.
    throttled: Vec<u32>,
    looked_throttled_ns: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
    maps_left: u32,
    unsent: Vec<u32>,
    /// Closed connections whose polls are being cancelled: the ring finds those by descriptor, so
    /// it stays open until then.
    closing: HashMap<u64, Connection>,
    vigil: Vigil,
    heartbeat: Arc<AtomicU64>,
    started: Instant,
    now_ns: u64,
    quiesce: Option<Quiesce>,
    parking: Option<Parking>,
    /// Until when the end of the logs is waited for, once it was told to stop.
    ends_by_ms: Option<u64>,
    wal_dir: PathBuf,
    stopped: bool,
    looked_after_ms: u64,
    published: Published,
}

impl DataCore {
    /// Takes the parts over on the thread that will run them: the ring belongs to one thread.
    pub fn new(parts: DataCoreParts) -> std::io::Result<Self> {
        let mut ring = Ring::new(RING_ENTRIES)?;
        let files: Vec<FileSlot> = parts
            .wal_files
            .iter()
            .map(|file| ring.add_file(Arc::clone(file)))
            .collect();
        let bell = Arc::clone(parts.addresses[parts.index].bell());
        let heartbeat = Arc::clone(parts.addresses[parts.index].heartbeat());
        bell.set_ring(ring.raw_fd());
        ring.poll(
            bell.event(),
            u32::from(PollFlags::IN.bits()),
            true,
            token::BELL,
        );
        tracing::info!(core = parts.index, ring = ring.flags(), "data core runs");
        let counters = parts.metrics.core(parts.index);
        let carrier = Carrier::new(
            files,
            parts.wal_files,
            parts.barrier,
            parts.fetcher,
            parts.uploader,
            parts.addresses[parts.index].clone(),
            Arc::clone(&counters),
        );
        Ok(Self {
            index: parts.index,
            core: parts.core,
            ring,
            carrier,
            outbox: Outbox::default(),
            inquiries: Vec::new(),
            inbox: parts.inbox,
            bell,
            addresses: parts.addresses,
            directory: parts.directory,
            counters,
            metrics: parts.metrics,
            limits: parts.limits,
            allowance: parts.allowance,
            tls: parts.tls,
            handshakes: HandshakePace::default(),
            buffers: Buffers::default(),
            starved: VecDeque::new(),
            throttled: Vec::new(),
            looked_throttled_ns: 0,
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            maps_left: 0,
            unsent: Vec::new(),
            closing: HashMap::new(),
            vigil: Vigil::new(parts.spin, involuntary_switches),
            heartbeat,
            started: parts.started,
            now_ns: 0,
            quiesce: None,
            parking: None,
            ends_by_ms: None,
            wal_dir: parts.wal_dir,
            stopped: false,
            looked_after_ms: 0,
            published: Published::default(),
        })
    }

    /// Runs until a [`CoreMessage::Stop`]. An error means that the ring is unusable.
    pub fn run(mut self) -> std::io::Result<()> {
        while !self.stopped {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> std::io::Result<()> {
        self.now_ns = self.started.elapsed().as_nanos() as u64;
        let now_ms = self.now_ms();
        self.core.tick(now_ms);
        self.heartbeat.store(now_ms, Ordering::Relaxed);
        self.maps_left = MAPS_PER_TURN;
        self.take_messages();
        if !self.inquiries.is_empty() {
            self.check_inquiries(now_ms);
        }
        while let Some(completed) = self.ring.next_completed() {
            self.completed(completed);
        }
        // One a turn: most likely there is still nothing for it, and others are to be served.
        if let Some(index) = self.starved.pop_front() {
            self.queue(index);
        }
        if !self.throttled.is_empty() {
            self.wake_throttled();
        }
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else {
                break;
            };
            self.slots[index as usize].queued = false;
            self.serve(index, Connection::turn);
        }
        self.core.pump();
        self.carry_out();
        for _ in 0..DELIVERIES_PER_TURN {
            if !self.carrier.deliver(&mut self.core) {
                break;
            }
            self.core.pump();
            self.carry_out();
        }
        self.send_output();
        self.look_after_connections(now_ms);
        self.check_quiesce(now_ms);
        self.check_parking(now_ms);
        self.check_ending(now_ms);
        self.published.publish(now_ms, &self.core, &self.counters);
        self.sleep_or_submit()
    }

    fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    fn take_messages(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(message) = self.inbox.try_recv() else {
                break;
            };
            self.handle(message);
        }
    }

    fn handle(&mut self, message: CoreMessage) {
        match message {
            CoreMessage::Accepted { socket, peer } => self.accept(socket, peer),
            CoreMessage::Peers { from, messages } => {
                for message in messages {
                    self.core.peer(from, message);
                }
            }
            CoreMessage::CloseDead {
                from,
                slot,
                connection,
                address,
            } => self.inquire(from, slot, connection, address),
            CoreMessage::DeadClosed { connection } => self.joined(connection),
            CoreMessage::Fetched {
                op,
                blocks,
                mismatches,
            } => {
                self.counters.reads.crc_mismatches.add(mismatches);
                let blocks = blocks.as_deref().map_err(|failure| *failure);
                self.core.fetched(op, blocks);
            }
            CoreMessage::ViewOpened { connection, result } => self.looked_up(connection, result),
            // The pump that follows looks at the epoch.
            CoreMessage::Seal => {}
            CoreMessage::Committed(commit) => self.core.committed(commit),
            CoreMessage::BackendFull(full) => self.core.set_backend_full(full),
            CoreMessage::AddVolume(add) => self.add_volume(*add),
            CoreMessage::AddBaseline(add) => {
                let volume = (add.slot, add.id);
                self.core.add_baseline(volume, add.seat, add.parts);
            }
            CoreMessage::RemoveBaseline { slot, id, seat } => {
                self.core.remove_baseline((slot, id), seat);
            }
            CoreMessage::RemoveVolume {
                slot,
                is_deleted,
                ack,
            } => {
                self.remove_volume(slot, is_deleted);
                drop(ack);
            }
            CoreMessage::FenceVolume { slot } => {
                self.core.fence_volume(slot);
                self.close_volume(slot);
            }
            CoreMessage::Pin(slice) => self.pin(slice),
            CoreMessage::ForgetVolume { id } => self.core.forget_volume(id),
            CoreMessage::Configure {
                slot,
                settings,
                read_only,
            } => {
                self.core.configure_volume(slot, &settings, read_only);
            }
            CoreMessage::Covered { slot, id, through } => self.core.covered(slot, id, through),
            CoreMessage::Report(reply) => {
                let _ = reply.send(self.report());
            }
            CoreMessage::Roster(request) => self.answer_operator(request),
            CoreMessage::Quiesce(ack) => self.start_quiesce(ack),
            CoreMessage::HandOff(step) => self.hand_off(step),
            CoreMessage::Stop => self.start_ending(),
        }
    }

    fn add_volume(&mut self, add: AddVolume) {
        let (slot, id, committed) = (add.slot, add.id, add.committed);
        self.core
            .add_volume(slot, id, &add.settings, add.read_only, committed, add.parts);
    }

    fn remove_volume(&mut self, slot: VolumeSlot, is_deleted: bool) {
        self.close_volume(slot);
        match is_deleted {
            true => self.core.remove_volume(slot),
            false => _ = self.core.detach_volume(slot),
        }
    }

    fn pin(&mut self, slice: ArenaSlice) {
        if let Err(error) = self.ring.pin(slice) {
            tracing::info!(core = self.index, %error, "batch memory is not pinned");
        }
    }

    fn completed(&mut self, completed: Completed) {
        let low = completed.token & !token::KIND;
        match completed.token & token::KIND {
            token::OP => {
                self.carrier
                    .completed(OpKey(low as u32), &completed, &mut self.core);
                self.carrier.recycle(completed.buffer);
            }
            token::NEARBY => {
                self.carrier
                    .read_nearby(low as usize, &completed, &mut self.core);
                self.carrier.recycle(completed.buffer);
            }
            token::READABLE => {
                let id = ConnectionId::unpack(low);
                let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
                let hung_up = completed.result & i32::from(gone.bits()) != 0;
                if let Some(connection) = self.connection(id) {
                    connection.notice(hung_up);
                    self.queue(id.index);
                    if !completed.more {
                        self.arm(id);
                    }
                }
            }
            token::WRITABLE => {
                let id = ConnectionId::unpack(low);
                if self.connection(id).is_some() {
                    self.slots[id.index as usize].awaits_room = false;
                    self.unsent.push(id.index);
                }
            }
            token::CLOSED => {
                self.closing.remove(&low);
            }
            // The message is in the inbox, but nobody was woken.
            token::MESSAGE if completed.result < 0 => {
                self.addresses[low as usize].bell().knock();
            }
            token::BELL => {
                self.bell.drain();
                if !completed.more {
                    let events = u32::from(PollFlags::IN.bits());
                    self.ring.poll(self.bell.event(), events, true, token::BELL);
                }
            }
            _ => {}
        }
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.connection
            .as_mut()
            .filter(|connection| connection.id() == id)
    }

    fn queue(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.queued {
            slot.queued = true;
            self.ready.push_back(index);
        }
    }

    /// Lets a connection work and does what it asks for.
    fn serve(
        &mut self,
        index: u32,
        work: impl FnOnce(&mut Connection, &mut Surroundings<'_>) -> Outcome,
    ) {
        let Some(mut connection) = self.slots[index as usize].connection.take() else {
            return;
        };
        let metrics = &self.metrics;
        let core_index = self.index;
        let mut around = Surroundings {
            core: &mut self.core,
            directory: &self.directory,
            counters: &self.counters,
            now_ns: self.now_ns,
            volume_counters: &|volume| metrics.volume(core_index, &volume.name),
            limits: self.limits,
            maps_left: &mut self.maps_left,
            buffers: &mut self.buffers,
            handshakes: &mut self.handshakes,
        };
        connection.equip(around.buffers);
        let outcome = work(&mut connection, &mut around);
        connection.rest(around.buffers);
        let has_output = connection.has_output() && !connection.is_broken();
        if connection.is_starved() && !self.starved.contains(&index) {
            self.starved.push_back(index);
        }
        if connection.turn_ns().is_some() && !self.throttled.contains(&index) {
            self.throttled.push(index);
        }
        self.slots[index as usize].connection = Some(connection);
        if has_output && !self.slots[index as usize].awaits_room {
            self.unsent.push(index);
        }
        match outcome {
            Outcome::Waiting => {}
            Outcome::Ready => self.queue(index),
            Outcome::Looking => self.start_lookup(index),
            Outcome::Joining => self.start_join(index),
            Outcome::Closed if has_output => {}
            Outcome::Closed => self.close(index),
        }
    }

    fn close_volume(&mut self, slot: VolumeSlot) {
        for index in 0..self.slots.len() as u32 {
            let connection = self.slots[index as usize].connection.as_ref();
            if connection.is_some_and(|c| c.volume().is_some_and(|v| v.slot == slot)) {
                self.serve(index, Connection::gone);
                self.close(index);
            }
        }
    }

    fn close(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let Some(mut connection) = slot.connection.take() else {
            return;
        };
        connection.say_goodbye();
        // The poll holds the socket open until it is cancelled.
        let id = slot.id.packed();
        self.ring.cancel(connection.socket(), token::CLOSED | id);
        let _ = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Both);
        self.closing.insert(id, connection);
        slot.id = slot.id.next();
        slot.awaits_room = false;
        slot.joins = 0;
        self.free.push(index);
        self.counters.connections.closed.add(1);
    }

    /// Puts a message into another core's inbox and rings its bell with this core's ring.
    fn post(&mut self, core: usize, message: CoreMessage) {
        let address = &self.addresses[core];
        if address.post(message) {
            match address.bell().ring() {
                Some(ring) => {
                    let token = token::MESSAGE | core as u64;
                    self.ring.message(ring, token::RUNG, token);
                }
                None => address.bell().knock(),
            }
        }
    }

    fn carry_out(&mut self) {
        self.carrier.carry_out(&mut self.core, &mut self.ring);
        let mut done = std::mem::take(&mut self.core.effects.done);
        for done in done.drain(..) {
            let (id, request) = ConnectionId::of_ticket(done.ticket);
            if self.connection(id).is_none() {
                continue;
            }
            self.serve(id.index, |connection, around| {
                connection.done(request, &done, around);
                connection.after_done()
            });
        }
        self.core.effects.done = done;
        let mut peers = std::mem::take(&mut self.core.effects.peers);
        let cores = self.addresses.len();
        for (core, message) in self.outbox.take(self.index, cores, &mut peers) {
            self.post(core, message);
        }
        self.core.effects.peers = peers;
    }

    fn send_output(&mut self) {
        let mut unsent = std::mem::take(&mut self.unsent);
        for index in unsent.drain(..) {
            let slot = &mut self.slots[index as usize];
            let Some(connection) = &mut slot.connection else {
                continue;
            };
            if slot.awaits_room {
                continue;
            }
            let flushed = connection.flush_output();
            connection.rest(&mut self.buffers);
            match flushed {
                Flushed::All if connection.is_over() => self.close(index),
                // The client has gone; the event that says so is not looked at any more.
                Flushed::All if connection.is_broken() => self.serve(index, Connection::gone),
                Flushed::All if connection.wants_turn() => self.queue(index),
                Flushed::All => {}
                Flushed::Full => {
                    slot.awaits_room = true;
                    let token = token::WRITABLE | connection.id().packed();
                    let events = u32::from(PollFlags::OUT.bits());
                    self.ring.poll(connection.socket(), events, false, token);
                }
                Flushed::Later => self.unsent.push(index),
            }
        }
        unsent.append(&mut self.unsent);
        self.unsent = unsent;
    }

    fn look_after_connections(&mut self, now_ms: u64) {
        if now_ms < self.looked_after_ms + 200 {
            return;
        }
        self.looked_after_ms = now_ms;
        for index in 0..self.slots.len() as u32 {
            let Some(connection) = &mut self.slots[index as usize].connection else {
                continue;
            };
            if connection.is_overdue(now_ms) {
                tracing::info!(peer = connection.peer(), "handshake took too long: closed");
                self.counters.connections.handshake_failures.add(1);
                self.close(index);
            } else if !connection.is_handed() && connection.is_in_the_way(now_ms, &mut self.buffers)
            {
                let peer = connection.peer();
                tracing::warn!(peer, "takes no replies, and others need the memory: closed");
                self.serve(index, Connection::gone);
                self.close(index);
            }
        }
    }

    fn start_quiesce(&mut self, ack: Sender<()>) {
        for slot in &mut self.slots {
            if let Some(connection) = &mut slot.connection {
                connection.finish();
            }
        }
        self.quiesce = Some(Quiesce {
            ack,
            begun_ms: self.now_ms(),
        });
    }

    /// A stop: in-flight requests are answered and durable before the sockets are closed.
    fn check_quiesce(&mut self, now_ms: u64) {
        let Some(quiesce) = &self.quiesce else { return };
        let late = now_ms >= quiesce.begun_ms + QUIESCE_MS_MAX;
        let unread = now_ms >= quiesce.begun_ms + UNREAD_MS_MAX;
        let mut connections = self.slots.iter().filter_map(|s| s.connection.as_ref());
        let answered = connections.all(|c| c.is_idle() || unread && c.is_answered());
        if !answered && !late {
            return;
        }
        self.core.make_durable();
        if !self.core.is_quiet() && !late {
            return;
        }
        for index in 0..self.slots.len() as u32 {
            if self.slots[index as usize].connection.is_some() {
                self.serve(index, Connection::gone);
                self.close(index);
            }
        }
        if let Some(quiesce) = self.quiesce.take() {
            drop(quiesce.ack);
        }
    }

    fn sleep_or_submit(&mut self) -> std::io::Result<()> {
        let busy = !self.ready.is_empty()
            || !self.unsent.is_empty()
            || self.carrier.has_ended()
            || self.stopped;
        if busy || !self.inbox.is_empty() {
            return self.ring.submit();
        }
        let looks_again = self.quiesce.is_some()
            || self.ends_by_ms.is_some()
            || self.is_parking()
            || !self.starved.is_empty()
            || !self.inquiries.is_empty();
        let due_ms = if looks_again { 5 } else { TURN_MS_MAX };
        let timeout_ms = self.core.deadline_ms().unwrap_or(due_ms).clamp(1, due_ms);
        let awaited = self.awaited();
        if let Some(awaited) = awaited
            && self.await_event(awaited)?
        {
            return Ok(());
        }
        self.bell.flag().prepare();
        if self.inbox.is_empty() {
            let begin = Instant::now();
            let timeout = Duration::from_millis(timeout_ms);
            let timeout = self.nap().map_or(timeout, |nap| nap.min(timeout));
            self.ring.wait(timeout)?;
            if let Some(awaited) = awaited {
                self.vigil.slept(awaited, begin.elapsed());
            }
        }
        self.bell.flag().clear();
        Ok(())
    }

    /// Who may have something for the core so soon that staying awake is worth it: not a backend,
    /// nor the disk if several requests wait for what it writes: nothing was won by that.
    fn awaited(&self) -> Option<Awaited> {
        match self.core.unanswered() {
            _ if self.carrier.reads_disk() => Some(Awaited::Disk),
            0 | 1 if self.carrier.writes_wal() => Some(Awaited::Disk),
            0 => Some(Awaited::Clients),
            _ => None,
        }
    }

    /// Stays awake for a moment if an event is likely; true if one came.
    fn await_event(&mut self, awaited: Awaited) -> std::io::Result<bool> {
        if !self.vigil.is_due() {
            return Ok(false);
        }
        let begin = Instant::now();
        let mut looked = begin;
        loop {
            self.ring.submit()?;
            let now = Instant::now();
            let since_look = now - std::mem::replace(&mut looked, now);
            if self.ring.has_completions() || !self.inbox.is_empty() {
                self.vigil.seen(since_look);
                return Ok(true);
            }
            if self.vigil.looked(awaited, since_look, now - begin) == Watch::Over {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    fn report(&self) -> CoreReport {
        let mut report = CoreReport {
            core: self.index,
            ..CoreReport::default()
        };
        for (position, shard) in self.core.shards().iter().enumerate() {
            let index = shard.index_bytes();
            report.overlay_bytes += index.overlay as u64;
            report.warm_bytes += index.warm as u64;
            let log = shard.log();
            let stats = log.stats();
            report.shards.push(ShardStatus {
                shard: shard.id().index() as u8,
                core: self.index,
                wal_total_bytes: stats.wal_bytes,
                wal_reserve_bytes: u64::from(stats.reserve_segments) * log.config().segment_bytes,
                wal_used_bytes: stats.wal_used_bytes,
                undurable_bytes: stats.undurable_bytes as u64,
                resident_bytes: stats.resident_bytes as u64,
                durable_batch: log.durable_through().0,
                last_batch: log.last().0,
                parked: self.core.parked(position) as u32,
                failure: log.failed().map(|errno| {
                    let error = std::io::Error::from_raw_os_error(errno);
                    format!("the WAL cannot be written: {error}; reads go on, writes are refused")
                }),
                silent_seconds: None,
            });
        }
        for volume in self.directory.all() {
            let blocks = self
                .core
                .shards()
                .iter()
                .map(|s| s.uncommitted_blocks(volume.slot));
            report.uncommitted_blocks.push((volume.slot, blocks.sum()));
        }
        report
    }
}

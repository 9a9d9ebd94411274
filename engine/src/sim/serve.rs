//! The running process: data cores in turns, their devices, and what travels between them. Mirrors
//! the ring loop of the appliance.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::plan::{MS, Moment};
use super::uploader::{UpMessage, Uploader};
use super::world::{Crash, Event, Region, World};
use crate::arena::ArenaReader;
use crate::block::ShardId;
use crate::chunk::ChunkRef;
use crate::core::{Committed, Core, EpochClock, Failure, Fetch, Io, OpKey, PeerMessage};
use crate::identity::{BatchNum, Epoch, Incarnation, VolumeId};
use crate::shard::VolumeSlot;
use crate::wal::{Health, WalWrite};

/// A batch number that no eviction reaches: for reading an arena as devices and successors do.
const ANY_BATCH: BatchNum = BatchNum(u64::MAX - 1);
const EIO: i32 = 5;

/// What a core finds in its inbox.
pub(super) enum Message {
    Peers {
        from: usize,
        messages: Vec<PeerMessage>,
    },
    CloseDead {
        from: usize,
        slot: VolumeSlot,
        connection: u32,
    },
    DeadClosed {
        connection: u32,
    },
    Hangup {
        connection: u32,
    },
    Fetched {
        op: OpKey,
        blocks: Result<Vec<u8>, Failure>,
    },
    Seal,
    Committed(Committed),
    /// The bucket holds everything of the volume stamped up to here.
    Covered(VolumeSlot, VolumeId, Epoch),
    BackendFull(bool),
    /// Another writer owns the volume.
    Fence(VolumeSlot),
    Device {
        op: OpKey,
        result: Result<(), i32>,
        data: Vec<u8>,
    },
}

/// A device operation under way.
#[derive(Debug)]
pub(super) enum Device {
    Write {
        op: OpKey,
        shard: ShardId,
        id: u64,
        write: WalWrite,
    },
    Read {
        op: OpKey,
        shard: ShardId,
        offset: u64,
        len: usize,
    },
    Barrier {
        op: OpKey,
        covered: Vec<(ShardId, Vec<u64>)>,
    },
}

/// One life of the appliance's process.
pub(super) struct Node {
    pub(super) cores: Vec<Core>,
    pub(super) inbox: Vec<VecDeque<Message>>,
    turn_at: Vec<Option<u64>>,
    pub(super) clock: Arc<EpochClock>,
    pub(super) readers: Vec<ArenaReader>,
    pub(super) arena_bytes: usize,
    pub(super) incarnation: Incarnation,
    pub(super) uploader: Uploader,
    pub(super) uploader_turn_at: Option<u64>,
    /// The WAL was full while the backend was away, and writes waited.
    starved: bool,
    /// Parts of writes that ever waited because the bucket lacked too much.
    held: u64,
    /// Some still do, or others behind them.
    holds: bool,
}

impl Node {
    pub(super) fn new(
        cores: Vec<Core>,
        clock: Arc<EpochClock>,
        readers: Vec<ArenaReader>,
        arena_bytes: usize,
        incarnation: Incarnation,
        uploader: Uploader,
    ) -> Self {
        Self {
            inbox: cores.iter().map(|_| VecDeque::new()).collect(),
            turn_at: vec![None; cores.len()],
            cores,
            clock,
            readers,
            arena_bytes,
            incarnation,
            uploader,
            uploader_turn_at: None,
            starved: false,
            held: 0,
            holds: false,
        }
    }

    /// Whether a log fails closed.
    pub(super) fn has_failed_log(&self) -> bool {
        let shards = self.cores.iter().flat_map(|core| core.shards());
        shards
            .into_iter()
            .any(|shard| shard.log().failed().is_some())
    }

    /// The process ends: returns the memory that outlives it.
    pub(super) fn leave(&mut self, crash: Crash) -> Vec<Region> {
        self.abandon();
        if crash == Crash::Power {
            return Vec::new();
        }
        let shards = ShardId::all().zip(&self.readers);
        shards
            .map(|(shard, reader)| Region {
                shard,
                incarnation: self.incarnation,
                bytes: arena_bytes(reader, self.arena_bytes),
            })
            .collect()
    }

    pub(super) fn abandon(&mut self) {
        self.cores.iter_mut().for_each(Core::abandon);
    }
}

/// All bytes of an arena.
pub(super) fn arena_bytes(reader: &ArenaReader, len: usize) -> Vec<u8> {
    copy_out(reader, 0, len)
}

/// Some bytes of an arena, as a device reads them.
pub(super) fn copy_out(reader: &ArenaReader, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert!(reader.copy(ANY_BATCH, offset, &mut bytes));
    bytes
}

impl World {
    /// Carries out one event.
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { life, core } if life == self.life && self.node.is_some() => {
                self.core_turn(core);
            }
            Event::UploaderTurn { life } if life == self.life && self.node.is_some() => {
                self.uploader_turn();
            }
            Event::Device { life, core, device } if life == self.life => {
                self.device_ends(core, device);
            }
            Event::Land { late, then } => self.land(late, then),
            Event::Answer {
                life,
                volume,
                event,
            } if life == self.life => {
                self.tell_uploader(UpMessage::Event(volume, event));
            }
            Event::Work { life, volume, work } if life == self.life => self.work(volume, work),
            Event::Fetch {
                life,
                core,
                fetch,
                chunk,
                attempt,
            } if life == self.life => {
                self.fetch(core, fetch, chunk, attempt);
            }
            Event::Fetched {
                life,
                core,
                op,
                blocks,
            } if life == self.life => {
                self.post(core, Message::Fetched { op, blocks });
            }
            Event::Arrive {
                connection,
                request,
            } => self.arrive(connection, request),
            Event::Reply {
                connection,
                ticket,
                result,
                data,
            } => {
                self.reply_arrives(connection, ticket, result, &data);
            }
            Event::Client { client } => self.client_turn(client),
            Event::Hangup { connection } => self.hangup_noticed(connection),
            _ => {}
        }
    }

    /// Puts a message into a core's inbox and wakes it.
    pub(super) fn post(&mut self, core: usize, message: Message) {
        let Some(node) = &mut self.node else { return };
        node.inbox[core].push_back(message);
        self.wake(core);
    }

    pub(super) fn wake(&mut self, core: usize) {
        let delay = self.dice.range(1..=self.plan.turn_delay_us);
        self.wake_within(core, delay);
    }

    pub(super) fn wake_all(&mut self) {
        for core in 0..self.plan.cores {
            self.wake(core);
        }
        self.wake_uploader(1);
    }

    fn wake_within(&mut self, core: usize, delay_us: u64) {
        let at = self.now_us + delay_us;
        let life = self.life;
        let Some(node) = &mut self.node else { return };
        if node.turn_at[core].is_none_or(|planned| planned > at) {
            node.turn_at[core] = Some(at);
            self.schedule(delay_us, Event::Turn { life, core });
        }
    }

    fn core_turn(&mut self, core: usize) {
        let now_us = self.now_us;
        let node = self.node.as_mut().expect("it runs");
        if node.turn_at[core].is_none_or(|at| at > now_us) {
            return;
        }
        node.turn_at[core] = None;
        node.cores[core].tick(now_us / MS);
        let waiting = node.inbox[core].len() as u64;
        let count = if self.dice.chance(800) {
            waiting
        } else {
            self.dice.range(0..=waiting)
        };
        for _ in 0..count {
            let node = self.node.as_mut().expect("it runs");
            if let Some(message) = node.inbox[core].pop_front() {
                self.handle(core, message);
            }
            self.may_cut();
        }
        let more = self.serve_connections(core);
        let node = self.node.as_mut().expect("it runs");
        node.cores[core].pump();
        self.carry_out(core);
        self.watch_space();
        let node = self.node.as_ref().expect("it runs");
        if more || !node.inbox[core].is_empty() {
            self.wake(core);
        }
        let node = self.node.as_ref().expect("it runs");
        if let Some(deadline_ms) = node.cores[core].deadline_ms() {
            self.wake_within(core, (deadline_ms * MS).max(1));
        }
    }

    fn handle(&mut self, core: usize, message: Message) {
        match message {
            Message::CloseDead {
                from,
                slot,
                connection,
            } => {
                self.close_dead(core, slot);
                self.post(from, Message::DeadClosed { connection });
                return;
            }
            Message::DeadClosed { connection } => return self.dead_closed(connection),
            Message::Hangup { connection } => return self.close_connection(connection),
            Message::Fence(slot) => {
                self.fenced.told.insert((core, slot.0 as usize));
                let own = &mut self.node.as_mut().expect("it runs").cores[core];
                own.fence_volume(slot);
                return self.close_volume(core, slot);
            }
            _ => {}
        }
        let core = &mut self.node.as_mut().expect("it runs").cores[core];
        match message {
            Message::Peers { from, messages } => {
                for message in messages {
                    core.peer(from, message);
                }
                self.coverage.hit("two cores shared a request");
            }
            Message::Fetched { op, blocks } => match blocks {
                Ok(blocks) => core.fetched(op, Ok(&blocks)),
                Err(failure) => core.fetched(op, Err(failure)),
            },
            Message::Committed(commit) => core.committed(commit),
            Message::Covered(slot, id, through) => core.covered(slot, id, through),
            Message::BackendFull(full) => core.set_backend_full(full),
            Message::Device { op, result, data } => {
                core.io_done(op, result.map_err(io::Error::from_raw_os_error), &data);
            }
            _ => {}
        }
    }

    /// Starts what the core asked for.
    pub(super) fn carry_out(&mut self, core: usize) {
        let effects = &mut self.node.as_mut().expect("it runs").cores[core].effects;
        let (io, fetches) = (
            std::mem::take(&mut effects.io),
            std::mem::take(&mut effects.fetches),
        );
        let (sealed, load) = (effects.sealed.take(), effects.load.take());
        let applied = std::mem::take(&mut effects.applied);
        let wants = std::mem::take(&mut effects.wants);
        let done = std::mem::take(&mut effects.done);
        let peers = std::mem::take(&mut effects.peers);
        for io in io {
            self.start_io(core, &io);
        }
        for fetch in fetches {
            let node = self.node.as_ref().expect("it runs");
            let chunk = node
                .uploader
                .tables
                .get(&(fetch.volume, fetch.chunk))
                .copied();
            let Some(chunk) = chunk else {
                self.violate(format!("the index names an unknown chunk: {fetch:?}"));
                continue;
            };
            let delay = self.dice.range(50..=self.plan.get_us);
            self.schedule(
                delay,
                Event::Fetch {
                    life: self.life,
                    core,
                    fetch,
                    chunk,
                    attempt: 0,
                },
            );
        }
        if let Some(sealed) = sealed {
            self.tell_uploader(UpMessage::Sealed(sealed));
        }
        if let Some(load) = load {
            self.tell_uploader(UpMessage::Load(load));
        }
        for (volume, through) in wants {
            self.tell_uploader(UpMessage::Want(volume, through));
        }
        for (volume, epoch) in applied {
            self.tell_uploader(UpMessage::Applied(volume, epoch));
        }
        for done in done {
            self.request_done(done);
        }
        let mut by_core: Vec<Vec<PeerMessage>> = (0..self.plan.cores).map(|_| vec![]).collect();
        for (to, message) in peers {
            by_core[to].push(message);
        }
        for (to, messages) in by_core.into_iter().enumerate() {
            if !messages.is_empty() {
                self.post(
                    to,
                    Message::Peers {
                        from: core,
                        messages,
                    },
                );
            }
        }
    }

    fn start_io(&mut self, core: usize, io: &Io) {
        let device = match *io {
            Io::WalWrite {
                op, shard, write, ..
            } => {
                let node = self.node.as_ref().expect("it runs");
                let reader = &node.readers[shard.index()];
                let bytes = copy_out(reader, write.arena_offset, write.len);
                let file = &mut self.files[shard.index()];
                if write.batch.0 > 0 && !file.is_fresh(write.file_offset, write.len) {
                    self.coverage.hit("a segment was used again");
                }
                let id = file.issue(write.file_offset, bytes, write.dsync);
                if write.batch.0 == 0 {
                    self.moment(Moment::LogHead);
                }
                self.note(format_args!(
                    "c{core} write s{shard} batch {} at {} +{}{}",
                    write.batch,
                    write.file_offset,
                    write.len,
                    if write.dsync { " dsync" } else { "" }
                ));
                Device::Write {
                    op,
                    shard,
                    id,
                    write,
                }
            }
            Io::WalRead {
                op,
                shard,
                file_offset: offset,
                len,
            } => {
                self.coverage.hit("a block was read from the WAL file");
                Device::Read {
                    op,
                    shard,
                    offset,
                    len,
                }
            }
            Io::Barrier { op, shards } => self.start_barrier(core, op, shards),
        };
        let delay = match self.dice.below(10) {
            0 if self.dice.chance(100) => self.dice.range(1..=80 * MS),
            0 => self.dice.range(1..=8 * MS),
            _ => self.dice.range(20..=400),
        };
        self.schedule(
            delay,
            Event::Device {
                life: self.life,
                core,
                device,
            },
        );
    }

    /// A barrier covers what was written before it began.
    fn start_barrier(&mut self, core: usize, op: OpKey, shards: u16) -> Device {
        self.moment(Moment::Barrier);
        let covered = ShardId::all()
            .filter(|shard| shards & 1 << shard.index() != 0)
            .map(|shard| (shard, self.files[shard.index()].covered()))
            .collect();
        self.note(format_args!(
            "c{core} barrier {} begins, {shards:#018b}",
            op.0
        ));
        Device::Barrier { op, covered }
    }

    /// A device operation ends, well or not.
    fn device_ends(&mut self, core: usize, device: Device) {
        let (op, result, data) = match device {
            Device::Write {
                op,
                shard,
                id,
                write,
            } => {
                self.check_unchanged(shard, id, &write);
                let broken = self.is_broken(shard);
                let file = &mut self.files[shard.index()];
                if broken || self.dice.chance(self.faults.wal_write) {
                    file.fail(id, &mut self.dice);
                    self.note(format_args!("write s{shard} batch {} fails", write.batch));
                    (op, Err(EIO), Vec::new())
                } else {
                    if write.dsync && write.batch.0 > 0 && file.has_plain(8192) {
                        self.coverage.hit("a durable write overtook a plain one");
                    }
                    file.end(id);
                    (op, Ok(()), Vec::new())
                }
            }
            Device::Read {
                op,
                shard,
                offset,
                len,
            } => {
                let mut data = vec![0; len];
                let result = self.read_wal(shard, offset, &mut data);
                (op, result, data)
            }
            Device::Barrier { op, covered } => {
                let broken = covered.iter().any(|(shard, _)| self.is_broken(*shard));
                let fails = broken || self.dice.chance(self.faults.wal_barrier);
                for (shard, covered) in covered {
                    let file = &mut self.files[shard.index()];
                    if fails {
                        file.flush_failed(&covered, &mut self.dice);
                    } else {
                        file.flushed(&covered);
                    }
                }
                if fails {
                    self.coverage.hit("a flush barrier failed");
                }
                let how = if fails { "fails" } else { "ends" };
                self.note(format_args!("c{core} barrier {} {how}", op.0));
                (op, if fails { Err(EIO) } else { Ok(()) }, Vec::new())
            }
        };
        self.post(core, Message::Device { op, result, data });
    }

    /// Reads a WAL file with the device's faults.
    pub(super) fn read_wal(
        &mut self,
        shard: ShardId,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), i32> {
        self.files[shard.index()].read(offset, data);
        if self.dice.chance(self.faults.wal_read) {
            self.last_read_fault_us = Some(self.now_us);
            return Err(EIO);
        }
        if self.dice.chance(self.faults.rot) {
            self.last_read_fault_us = Some(self.now_us);
            let at = self.dice.below(data.len() as u64) as usize;
            data[at] ^= 1 << self.dice.below(8);
        }
        Ok(())
    }

    fn is_broken(&self, shard: ShardId) -> bool {
        self.faults
            .broken
            .is_some_and(|(broken, from, to)| broken == shard.index() && self.within((from, to)))
    }

    /// The memory of a write under way must not change.
    fn check_unchanged(&mut self, shard: ShardId, id: u64, write: &WalWrite) {
        let Some(node) = &self.node else { return };
        let now = copy_out(&node.readers[shard.index()], write.arena_offset, write.len);
        if now != self.files[shard.index()].bytes_of(id) {
            self.violate(format!(
                "memory of batch {} changed while it was written",
                write.batch
            ));
        }
    }

    /// Notes full logs while the backend is away, and errors.
    fn watch_space(&mut self) {
        let away = self.within(self.faults.away_us) && !self.faults.full;
        let node = self.node.as_mut().expect("it runs");
        let parked = node.cores.iter().any(|core| {
            (0..core.shards().len()).any(|position| {
                let log = core.shards()[position].log();
                let stats = log.stats();
                core.parked(position) > 0 && stats.free_segments <= stats.reserve_segments
            })
        });
        if parked && away {
            node.starved = true;
            self.coverage
                .hit("the WAL was full while the backend was away");
        }
        let node = self.node.as_mut().expect("it runs");
        let waiting = (0..16).any(|position| {
            let parked = |core: &Core| position < core.shards().len() && core.parked(position) > 0;
            node.cores.iter().any(parked)
        });
        if node.starved && !away && !waiting {
            node.starved = false;
            self.coverage.hit("writes resumed after the WAL was full");
        }
        let node = self.node.as_mut().expect("it runs");
        let held: u64 = node
            .cores
            .iter()
            .map(|c| c.counters().parked_for_bucket)
            .sum();
        if std::mem::replace(&mut node.held, held) < held {
            node.holds = true;
            self.coverage
                .hit("writes waited because the bucket lacked too much");
        }
        if node.holds && !waiting {
            node.holds = false;
            self.coverage
                .hit("writes went on when the bucket lacked less");
        }
        let node = self.node.as_ref().expect("it runs");
        let (mut survived, mut failed) = (0, 0);
        for shard in node.cores.iter().flat_map(Core::shards) {
            let log = shard.log();
            failed += u64::from(log.failed().is_some());
            survived += u64::from(log.errors() > 0 && log.health() == Health::Good);
        }
        self.coverage.add("a log failed closed", failed);
        self.coverage
            .add("a WAL write error was survived by rewriting", survived);
    }

    /// Reads from the backend for a core, as the fetcher does.
    fn fetch(&mut self, core: usize, fetch: Fetch, chunk: ChunkRef, attempt: u32) {
        let away = self.within(self.faults.away_us) && !self.faults.full;
        if away || self.dice.chance(self.faults.get_fails) {
            self.last_read_fault_us = Some(self.now_us);
            if attempt < 3 {
                let delay = self.dice.range(1..=20) * MS;
                let life = self.life;
                self.schedule(
                    delay,
                    Event::Fetch {
                        life,
                        core,
                        fetch,
                        chunk,
                        attempt: attempt + 1,
                    },
                );
                return;
            }
            let op = fetch.op;
            return self.post(
                core,
                Message::Fetched {
                    op,
                    blocks: Err(Failure::Io),
                },
            );
        }
        let blocks = self.fetch_blocks(&fetch, &chunk);
        if let Err(why) = &blocks {
            self.coverage.hit("a chunk was deleted under a read");
            if self.racing.is_some() {
                // By the one who owns the volume now.
                self.last_read_fault_us = Some(self.now_us);
            }
            self.note(format_args!("c{core} fetch fails: {why}"));
        }
        self.coverage.hit("a block was read from a chunk");
        let delay = self.dice.range(1..=self.plan.get_us);
        let life = self.life;
        let op = fetch.op;
        let blocks = blocks.map_err(|_| Failure::Io);
        self.schedule(
            delay,
            Event::Fetched {
                life,
                core,
                op,
                blocks,
            },
        );
    }
}

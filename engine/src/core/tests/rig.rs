//! Cores over anonymous memory, with WAL files in memory. Input and output wait in lists until a
//! test lets them end.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::arena::Arena;
use crate::block::{BlockNum, SHARD_COUNT, ShardId};
use crate::core::{
    Committed, Core, CoreLoad, Done, EpochClock, Failure, Fetch, Io, Origin, Progress, SealedCore,
    Ticket, WritePolicy,
};
use crate::extents::{Extent, MapQuery, Seat};
use crate::identity::{Epoch, Incarnation, Lsn, VolumeId};
use crate::index::{
    Baseline, ChunkLoc, ChunkOrdinal, Leaf, LeafChanges, LeafKey, Overlay, ShardBase,
};
use crate::shard::{Found, Shard, VolumeSlot};
use crate::volume::VolumeSettings;
use crate::wal::{BootId, LogConfig, LogIdentity, MarkKind, Recovered, ShardLog, WalId};

pub(super) const BLOCK: u64 = 4096;
pub(super) const SLOT: VolumeSlot = VolumeSlot(0);
pub(super) const VOLUME: VolumeId = VolumeId(7);

/// A policy under which nothing is written unless somebody waits or time passes.
pub(super) fn lazy() -> WritePolicy {
    WritePolicy {
        sync: crate::core::SyncMode::Fdatasync,
        batch_bytes: 64 << 10,
        run_bytes_max: 32 << 10,
        write_delay_ms: 1000,
        flush_interval_ms: 1000,
        undurable_bytes: 100 << 10,
        ..WritePolicy::default()
    }
}

fn config() -> LogConfig {
    let config = LogConfig {
        arena_bytes: 400 << 10,
        undurable_bytes_max: 160 << 10,
        batch_payload_max: 64 << 10,
        segment_bytes: 160 << 10,
        segments: 8,
        reserve_segments: 3,
    };
    config.validate().unwrap();
    config
}

fn shard(id: ShardId) -> Shard {
    let identity = LogIdentity {
        wal: WalId(1),
        shard: id,
        incarnation: Incarnation(1),
        boot: BootId([1; 16]),
    };
    let arena = Arena::anonymous(config().arena_bytes).unwrap();
    let blank = Recovered::blank(&identity, &config());
    let log = ShardLog::resume(identity, config(), arena, &blank).unwrap();
    Shard::new(id, log, Lsn(1))
}

/// A batch write, WAL read or barrier that a core asked for.
pub(super) type Asked = (usize, Io);

/// Cores and what they asked for.
pub(super) struct Rig {
    pub(super) cores: Vec<Core>,
    pub(super) clock: Arc<EpochClock>,
    files: Vec<Vec<u8>>,
    pub(super) io: Vec<Asked>,
    pub(super) fetches: Vec<(usize, Fetch)>,
    pub(super) done: HashMap<u64, Done>,
    pub(super) sealed: Vec<SealedCore>,
    pub(super) loads: Vec<CoreLoad>,
    pub(super) applied: usize,
    pub(super) wants: Vec<(VolumeId, Epoch)>,
    /// Messages between cores so far.
    pub(super) messages: usize,
    next_ticket: u64,
    pub(super) now_ms: u64,
}

impl Rig {
    /// `cores` cores with one volume of 4 KiB blocks.
    pub(super) fn new(cores: usize) -> Self {
        Self::with_policy(cores, lazy())
    }

    /// `cores` cores with one volume of blocks of so many bytes.
    pub(super) fn with_blocks(cores: usize, block_bytes: u32) -> Self {
        let policy = WritePolicy {
            run_bytes_max: lazy().run_bytes_max.max(u64::from(block_bytes)),
            ..lazy()
        };
        Self::with(cores, policy, block_bytes)
    }

    pub(super) fn with_policy(cores: usize, policy: WritePolicy) -> Self {
        Self::with(cores, policy, BLOCK as u32)
    }

    fn with(cores: usize, policy: WritePolicy, block_bytes: u32) -> Self {
        let clock = Arc::new(EpochClock::new(Epoch(1)));
        let core = |index| {
            let own = ShardId::all().filter(|id| id.core(cores) == index);
            let shards = own.map(shard).collect();
            Core::new(index, cores, Arc::clone(&clock), shards, policy)
        };
        let mut rig = Self {
            cores: (0..cores).map(core).collect(),
            clock: Arc::clone(&clock),
            files: vec![vec![0; config().file_bytes() as usize]; SHARD_COUNT],
            io: Vec::new(),
            fetches: Vec::new(),
            done: HashMap::new(),
            sealed: Vec::new(),
            loads: Vec::new(),
            applied: 0,
            wants: Vec::new(),
            messages: 0,
            next_ticket: 0,
            now_ms: 0,
        };
        rig.add_volume_of(SLOT, VOLUME, block_bytes);
        // The logs write their heads first.
        rig.cores.iter_mut().for_each(Core::make_durable);
        rig.settle();
        rig
    }

    pub(super) fn add_volume(&mut self, slot: VolumeSlot, id: VolumeId) {
        self.add_volume_of(slot, id, BLOCK as u32);
    }

    pub(super) fn add_volume_of(&mut self, slot: VolumeSlot, id: VolumeId, block_bytes: u32) {
        let settings = VolumeSettings {
            block_size_bytes: block_bytes,
            ..VolumeSettings::with_size(1 << 30)
        };
        let count = self.cores.len();
        for (index, core) in self.cores.iter_mut().enumerate() {
            let own = ShardId::all().filter(|shard| shard.core(count) == index);
            let parts = own.map(|shard| (shard, Overlay::new(), ShardBase::default()));
            core.add_volume(slot, id, &settings, false, Epoch(0), parts.collect());
        }
    }

    pub(super) fn origin(&mut self) -> (u64, Origin) {
        self.next_ticket += 1;
        (self.next_ticket, Origin::Client(Ticket(self.next_ticket)))
    }

    /// Lets every core carry on, and carries messages between them, until nothing moves. Input and
    /// output, fetches and time stand still.
    pub(super) fn turn(&mut self) {
        loop {
            let mut messages = Vec::new();
            for (index, core) in self.cores.iter_mut().enumerate() {
                core.tick(self.now_ms);
                core.pump();
                let effects = &mut core.effects;
                self.io.extend(effects.io.drain(..).map(|io| (index, io)));
                let fetches = effects.fetches.drain(..);
                self.fetches.extend(fetches.map(|fetch| (index, fetch)));
                for done in effects.done.drain(..) {
                    let earlier = self.done.insert(done.ticket.0, done);
                    assert!(earlier.is_none(), "answered twice");
                }
                self.sealed.extend(effects.sealed.take());
                self.loads.extend(effects.load.take());
                self.applied += effects.applied.drain(..).count();
                self.wants.append(&mut effects.wants);
                let peers = effects.peers.drain(..);
                messages.extend(peers.map(|(to, message)| (index, to, message)));
            }
            if messages.is_empty() {
                return;
            }
            self.messages += messages.len();
            for (from, to, message) in messages {
                self.cores[to].peer(from, message);
            }
        }
    }

    /// Ends one operation as the device would, or with `error`.
    pub(super) fn end(&mut self, (core, io): Asked, error: Option<i32>) {
        let result = error.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)));
        match io {
            Io::WalWrite {
                op, shard, write, ..
            } => {
                let position = shard.index() / self.cores.len();
                let log = self.cores[core].shards()[position].log();
                let at = write.file_offset as usize;
                if result.is_ok() {
                    self.files[shard.index()][at..at + write.len]
                        .copy_from_slice(log.write_bytes(&write));
                }
                self.cores[core].io_done(op, result, &[]);
            }
            Io::WalRead {
                op,
                shard,
                file_offset,
                len,
            } => {
                let at = file_offset as usize;
                let data = &self.files[shard.index()][at..at + len];
                self.cores[core].io_done(op, result, data);
            }
            Io::Barrier { op, .. } => self.cores[core].io_done(op, result, &[]),
        }
    }

    /// Ends everything that is asked for, until nothing is any more.
    pub(super) fn settle(&mut self) {
        loop {
            self.turn();
            if self.io.is_empty() {
                return;
            }
            for asked in std::mem::take(&mut self.io) {
                self.end(asked, None);
            }
        }
    }

    /// Ends what `which` picks of all that is asked for now, with `error`.
    pub(super) fn end_some(&mut self, which: impl Fn(&Io) -> bool, error: Option<i32>) -> usize {
        let (ended, kept) = std::mem::take(&mut self.io)
            .into_iter()
            .partition(|(_, io)| which(io));
        self.io = kept;
        let ended: Vec<Asked> = ended;
        let count = ended.len();
        for asked in ended {
            self.end(asked, error);
        }
        self.turn();
        count
    }

    /// Lets time pass.
    pub(super) fn pass_ms(&mut self, ms: u64) {
        self.now_ms += ms;
        self.turn();
    }

    /// A write on core `core`; its ticket, answered at once or not.
    pub(super) fn write_on(&mut self, core: usize, offset: u64, data: &[u8], fua: bool) -> u64 {
        let (ticket, origin) = self.origin();
        let progress = self.cores[core].write(origin, SLOT, offset, data, fua);
        self.book(ticket, progress, Vec::new());
        ticket
    }

    pub(super) fn write(&mut self, block: u64, byte: u8) -> u64 {
        self.write_on(0, block * BLOCK, &[byte; BLOCK as usize], false)
    }

    pub(super) fn flush_on(&mut self, core: usize) -> u64 {
        let (ticket, origin) = self.origin();
        let progress = self.cores[core].flush(origin, SLOT);
        self.book(ticket, progress, Vec::new());
        ticket
    }

    pub(super) fn mark(&mut self, offset: u64, len: u64, kind: MarkKind) -> u64 {
        let (ticket, origin) = self.origin();
        let progress = self.cores[0].mark(origin, SLOT, offset, len, kind, false);
        self.book(ticket, progress, Vec::new());
        ticket
    }

    pub(super) fn read_on(&mut self, core: usize, offset: u64, len: u64) -> u64 {
        let (ticket, origin) = self.origin();
        let mut out = Vec::new();
        let progress = self.cores[core].read(origin, SLOT, offset, len, &mut out);
        self.book(ticket, progress, out);
        ticket
    }

    /// The map of a range, as core `core` tells it.
    pub(super) fn map_on(&mut self, core: usize, query: MapQuery) -> Vec<Extent> {
        let (ticket, origin) = self.origin();
        let mut out = Vec::new();
        let progress = self.cores[core].map(origin, SLOT, query, &mut out);
        self.book(ticket, progress, Vec::new());
        let done = self.done.remove(&ticket).expect("peers answer at once");
        assert_eq!(done.result, Ok(()));
        if matches!(progress, Progress::Done) {
            return out;
        }
        assert!(out.is_empty());
        done.extents
    }

    fn book(&mut self, ticket: u64, progress: Progress, data: Vec<u8>) {
        let result = match progress {
            Progress::Done => Ok(()),
            Progress::Failed(failure) => Err(failure),
            Progress::Pending(_) => return self.turn(),
        };
        let done = Done {
            ticket: Ticket(ticket),
            key: crate::core::RequestKey(u32::MAX),
            result,
            data,
            extents: Vec::new(),
        };
        self.done.insert(ticket, done);
        self.turn();
    }

    /// How the request ended; `None` while it has not.
    pub(super) fn result(&self, ticket: u64) -> Option<Result<(), Failure>> {
        self.done.get(&ticket).map(|done| done.result)
    }

    /// What a read that ends without help brings.
    pub(super) fn data(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let ticket = self.read_on(0, offset, len);
        self.settle();
        let done = self.done.remove(&ticket).expect("the read has ended");
        assert_eq!(done.result, Ok(()));
        done.data
    }

    /// The byte of which a whole block consists.
    pub(super) fn byte(&mut self, block: u64) -> u8 {
        let data = self.data(block * BLOCK, BLOCK);
        assert!(data.iter().all(|byte| *byte == data[0]), "a torn block");
        data[0]
    }

    /// Ends the epoch, makes the batches of the cut written and gathers all shards.
    pub(super) fn cut(&mut self) -> Epoch {
        let cut = self.clock.advance();
        self.settle();
        cut
    }

    /// Publishes a commit of `cut` in which `blocks` went to chunk `chunk`, in this order of slots.
    pub(super) fn commit(&mut self, cut: Epoch, chunk: u32, blocks: &[u64]) {
        let count = self.cores.len();
        for index in 0..count {
            let own = ShardId::all().filter(|shard| shard.core(count) == index);
            let leaves = own.map(|shard| (shard, leaves_of(shard, chunk, blocks)));
            let commit = Committed {
                slot: SLOT,
                volume: VOLUME,
                epoch: cut,
                leaves: leaves.collect(),
            };
            self.cores[index].committed(commit);
        }
        self.settle();
    }

    /// Keeps an image in which `blocks` are in chunk `chunk`, in this order of slots.
    pub(super) fn keep_baseline(&mut self, seat: Seat, chunk: u32, blocks: &[u64]) {
        let count = self.cores.len();
        let part = |shard| {
            let mut base = ShardBase::new();
            base.install(leaves_of(shard, chunk, blocks));
            (shard, Baseline::of(base))
        };
        for (index, core) in self.cores.iter_mut().enumerate() {
            let own = ShardId::all().filter(|shard| shard.core(count) == index);
            core.add_baseline((SLOT, VOLUME), seat, own.map(part).collect());
        }
    }

    /// Where the block is.
    pub(super) fn found(&self, block: u64) -> Option<Found<'_>> {
        let block = BlockNum(block);
        let count = self.cores.len();
        let core = &self.cores[block.shard().core(count)];
        core.shards()[block.shard().index() / count].find(SLOT, block.local())
    }

    /// Whether the block is still in batch memory.
    pub(super) fn is_resident(&self, block: u64) -> bool {
        matches!(self.found(block), Some(Found::Memory(_)))
    }

    /// Writes others of the same shard until `block` is only in the WAL file.
    pub(super) fn evict(&mut self, block: u64) {
        for i in 0..60 {
            self.write((1000 + i) * 16 + block % 16, 0xEE);
            let flush = self.flush_on(0);
            self.settle();
            assert_eq!(self.result(flush), Some(Ok(())));
            if !self.is_resident(block) {
                return;
            }
        }
        panic!("block {block} stays in memory");
    }
}

fn leaves_of(shard: ShardId, chunk: u32, blocks: &[u64]) -> LeafChanges {
    let mut by_leaf: HashMap<LeafKey, Vec<(u16, ChunkLoc)>> = HashMap::new();
    for (slot, block) in blocks.iter().copied().enumerate() {
        if BlockNum(block).shard() == shard {
            let (key, index) = LeafKey::of(BlockNum(block).local());
            let chunk = ChunkOrdinal(chunk);
            let slot = slot as u32;
            let entries = by_leaf.entry(key).or_default();
            entries.push((index, ChunkLoc { chunk, slot }));
        }
    }
    let leaf = |mut entries: Vec<(u16, ChunkLoc)>| {
        entries.sort_by_key(|entry| entry.0);
        Leaf::build(&entries)
    };
    by_leaf.into_iter().map(|(k, v)| (k, leaf(v))).collect()
}

pub(super) fn is_write(io: &Io) -> bool {
    matches!(io, Io::WalWrite { write, .. } if write.batch.0 != 0)
}

pub(super) fn is_barrier(io: &Io) -> bool {
    matches!(io, Io::Barrier { .. })
}

pub(super) fn is_read(io: &Io) -> bool {
    matches!(io, Io::WalRead { .. })
}

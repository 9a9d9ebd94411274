//! The machine of one data core: its shards, the requests on them, durability and cuts. Sans-IO.
//!
//! The driver calls [`Core::read`], [`Core::write`] and so on, then [`Core::pump`] once a turn, and
//! carries out what it finds in [`Core::effects`]. Completions come back through [`Core::io_done`],
//! [`Core::fetched`] and [`Core::peer`].

mod bucket;
mod cut;
mod durability;
mod exposure;
mod gathering;
mod in_place;
mod map;
mod nearfull;
mod park;
mod peer;
mod read;
mod request;
mod write;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use crate::arena::ArenaSlice;
use crate::block::{BlockNum, BlockSize, SHARD_COUNT, ShardId, Span};
use crate::extents::Caches;
use crate::identity::{Epoch, VolumeId};
use crate::index::{ChunkOrdinal, Overlay, ShardBase};
use crate::shard::{Shard, VolumeSlot};
use crate::volume::{Ack, VolumeSettings};
use crate::wal::{Shortage, WalWrite};

pub use cut::{Committed, CutScope, SealedCore};
pub use durability::{SyncMode, WritePolicy};
pub use exposure::{Exposure, Exposures};
pub use peer::PeerMessage;
pub use request::{Done, Failure, Needs, Origin, Progress, RequestKey, Ticket};

use bucket::Bucket;
use durability::Durability;
use exposure::{Limits, Risk};
use nearfull::Nearfull;
use park::Parked;
use read::PendingRead;
use request::{Request, Requests};
use write::PendingPatch;

/// The load is told anew after so many more bytes of a volume.
const LOAD_STEP_BYTES: u64 = 4 << 20;
/// The least such step, for volumes of which the bucket may lack little.
const LOAD_STEP_BYTES_MIN: u64 = 64 << 10;

/// The global epoch: read by every shard at each append, advanced by the coordinator alone. With
/// it, what else all cores share.
#[derive(Debug)]
pub struct EpochClock {
    now: AtomicU64,
    /// Which volumes the cut that ended the last epoch is of.
    scope: Mutex<CutScope>,
    exposures: Exposures,
}

impl EpochClock {
    /// A clock that stands at `epoch`.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            now: AtomicU64::new(epoch.0),
            scope: Mutex::default(),
            exposures: Exposures::default(),
        }
    }

    /// The present epoch.
    #[inline]
    pub fn now(&self) -> Epoch {
        Epoch(self.now.load(Ordering::Acquire))
    }

    /// Ends the present epoch and returns it: the cut of all volumes that every shard now seals.
    pub fn advance(&self) -> Epoch {
        self.advance_of(CutScope::All)
    }

    /// Ends the present epoch and returns it: the cut of some volumes that every shard now seals.
    /// The next one only follows once every shard has, so that all of them see this scope.
    pub fn advance_of(&self, scope: CutScope) -> Epoch {
        *self.scope.lock().unwrap_or_else(PoisonError::into_inner) = scope;
        Epoch(self.now.fetch_add(1, Ordering::AcqRel))
    }

    /// Ends the present epoch with the cut `cut`, which is it or a later one (a volume was opened
    /// whose head is further).
    pub fn end(&self, cut: Epoch, scope: CutScope) {
        *self.scope.lock().unwrap_or_else(PoisonError::into_inner) = scope;
        self.now.fetch_max(cut.0 + 1, Ordering::AcqRel);
    }

    /// Which volumes the last cut is of.
    pub fn scope(&self) -> CutScope {
        let scope = self.scope.lock().unwrap_or_else(PoisonError::into_inner);
        scope.clone()
    }

    /// What the bucket lacks of each volume.
    pub fn exposures(&self) -> &Exposures {
        &self.exposures
    }

    /// Moves forward to at least `epoch` (a volume was opened whose head is further).
    pub fn raise(&self, epoch: Epoch) {
        self.now.fetch_max(epoch.0, Ordering::AcqRel);
    }
}

/// Name of an operation that the driver carries out for the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpKey(pub u32);

/// Input and output on the WAL files.
#[derive(Debug)]
pub enum Io {
    /// Write a batch from arena memory.
    WalWrite {
        /// Name for [`Core::io_done`].
        op: OpKey,
        /// Whose file.
        shard: ShardId,
        /// Where to, how long, and whether this write alone must be durable.
        write: WalWrite,
        /// The memory.
        slice: ArenaSlice,
    },
    /// Read from a WAL file.
    WalRead {
        /// Name for [`Core::io_done`].
        op: OpKey,
        /// Whose file.
        shard: ShardId,
        /// First byte, page-aligned.
        file_offset: u64,
        /// Bytes, whole pages.
        len: usize,
    },
    /// Make durable what was written to the files of `shards` before now.
    Barrier {
        /// Name for [`Core::io_done`].
        op: OpKey,
        /// Bit s set: shard s has undurable writes.
        shards: u16,
    },
}

/// A read of blocks from a chunk of the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Name for [`Core::fetched`].
    pub op: OpKey,
    /// The volume whose chunk table resolves `chunk`.
    pub volume: VolumeId,
    /// Its block size.
    pub block_size: BlockSize,
    /// Which chunk. To be resolved when the driver takes the fetch: later, once a commit has moved
    /// the blocks, the ordinal may name another object.
    pub chunk: ChunkOrdinal,
    /// First slot of the ranged read.
    pub first_slot: u32,
    /// Slots of the ranged read.
    pub slots: u32,
    /// Blocks wanted, as (slot relative to `first_slot`, block), ascending.
    pub wanted: Vec<(u32, BlockNum)>,
}

/// How much work waits for a cut on one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreLoad {
    /// The core.
    pub core: usize,
    /// Bytes written that no cut holds; a zeroed range counts as a block.
    pub pending_bytes: u64,
    /// The same by volume, those without any left out.
    pub volumes: Vec<(VolumeId, u64)>,
    /// Used share of the fullest own shard's WAL, in percent.
    pub wal_percent: u8,
}

/// What the driver has to carry out. It drains every queue after each [`Core::pump`].
#[derive(Default)]
pub struct Effects {
    /// WAL input and output.
    pub io: Vec<Io>,
    /// Requests that ended.
    pub done: Vec<Done>,
    /// Backend reads.
    pub fetches: Vec<Fetch>,
    /// Messages to other data cores, in order.
    pub peers: Vec<(usize, PeerMessage)>,
    /// A finished seal, for the coordinator.
    pub sealed: Option<SealedCore>,
    /// Told when something waits for a cut, and again whenever that became notably more.
    pub load: Option<CoreLoad>,
    /// Volumes whose commit this core has applied.
    pub applied: Vec<(VolumeId, Epoch)>,
    /// Volumes that the bucket must hold up to this epoch, because a client waits for that:
    /// answered by [`Core::covered`].
    pub wants: Vec<(VolumeId, Epoch)>,
}

/// Counts since the start, and gauges, of one core.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreCounters {
    /// WAL batches written.
    pub wal_writes: u64,
    /// Bytes of these, headers included.
    pub wal_bytes: u64,
    /// Flush barriers issued.
    pub barriers: u64,
    /// Write parts that had to wait.
    pub parked: u64,
    /// Those that waited for memory.
    pub parked_for_memory: u64,
    /// Those that waited for log space.
    pub parked_for_log: u64,
    /// Those that waited because the bucket lacked too much.
    pub parked_for_bucket: u64,
    /// Milliseconds that parked parts waited.
    pub parked_ms: u64,
    /// Blocks read from batch memory.
    pub memory_blocks: u64,
    /// Blocks read from the WAL files.
    pub wal_blocks: u64,
    /// Blocks read from the backend.
    pub chunk_blocks: u64,
    /// Blocks read that hold no data.
    pub hole_blocks: u64,
    /// Batches written once more to a fresh segment after an error.
    pub wal_rewrites: u64,
    /// Log segments released.
    pub wal_released: u64,
    /// Blocks whose checksum did not match.
    pub crc_mismatches: u64,
    /// Ranged reads asked of the backend.
    pub fetches: u64,
    /// Reads of the WAL files.
    pub wal_reads: u64,
    /// Partial blocks merged with their old content.
    pub patches: u64,
}

/// A volume as a core sees it.
struct CoreVolume {
    id: VolumeId,
    block_size: BlockSize,
    read_only: bool,
    fenced: bool,
    ack: Ack,
    writes_since_flush: u32,
    sync_streak: u32,
    durability: crate::volume::Durability,
    limits: Limits,
    risk: Risk,
    /// Everything stamped up to here is in the bucket.
    covered: Epoch,
    /// What was asked of the bucket.
    wanted: Epoch,
    /// Parts of writes that wait for the bucket.
    held: usize,
}

impl CoreVolume {
    /// A range of it, as blocks.
    fn span(&self, offset: u64, len: u64) -> Span {
        Span {
            offset,
            len,
            block_size: self.block_size,
        }
    }
}

/// What waits for the driver.
enum PendingOp {
    WalWrite { position: usize, write: WalWrite },
    Barrier(durability::BarrierMarks),
    Read(PendingRead),
    Patch(PendingPatch),
}

/// One data core. See the module's description.
pub struct Core {
    index: usize,
    cores: usize,
    clock: Arc<EpochClock>,
    epoch: Epoch,
    shards: Vec<Shard>,
    volumes: Vec<Option<CoreVolume>>,
    committed: HashMap<VolumeId, Epoch>,
    requests: Requests,
    ops: Ops,
    parked: [VecDeque<Parked>; SHARD_COUNT],
    locked: Vec<(VolumeSlot, BlockNum)>,
    retry: u16,
    /// What the last attempt to place a part lacked.
    shortage: Option<Shortage>,
    backend_full: bool,
    nearfull: Nearfull,
    durability: Durability,
    bucket: Bucket,
    sealing: Option<cut::Sealing>,
    /// Notably more waits for a cut than was told.
    load_due: bool,
    scratch: Vec<u8>,
    caches: Option<Arc<dyn Caches>>,
    now_ms: u64,
    counters: CoreCounters,
    /// Work for the driver.
    pub effects: Effects,
}

impl Core {
    /// Data core `index` of `cores`, with the shards that are its own, in order.
    pub fn new(
        index: usize,
        cores: usize,
        clock: Arc<EpochClock>,
        shards: Vec<Shard>,
        policy: WritePolicy,
    ) -> Self {
        assert!(
            shards.iter().all(|s| s.id().core(cores) == index),
            "foreign shard"
        );
        assert!(
            shards
                .iter()
                .enumerate()
                .all(|(i, s)| s.id().index() / cores == i)
        );
        let epoch = clock.now();
        Self {
            index,
            cores,
            clock,
            epoch,
            durability: Durability::new(policy),
            shards,
            volumes: Vec::new(),
            committed: HashMap::new(),
            requests: Requests::default(),
            ops: Ops::default(),
            parked: Default::default(),
            locked: Vec::new(),
            retry: 0,
            shortage: None,
            backend_full: false,
            nearfull: Nearfull::default(),
            bucket: Bucket::default(),
            sealing: None,
            load_due: false,
            scratch: vec![0; BlockSize::MAX.bytes()],
            caches: None,
            now_ms: 0,
            counters: CoreCounters::default(),
            effects: Effects::default(),
        }
    }

    /// Starts serving a volume; `parts` has the overlay and base of each own shard.
    pub fn add_volume(
        &mut self,
        slot: VolumeSlot,
        id: VolumeId,
        settings: &VolumeSettings,
        read_only: bool,
        committed: Epoch,
        parts: Vec<(ShardId, Overlay, ShardBase)>,
    ) {
        let index = slot.0 as usize;
        if self.volumes.len() <= index {
            self.volumes.resize_with(index + 1, || None);
        }
        assert!(
            self.volumes[index].is_none(),
            "volume slot {index} is taken"
        );
        self.observe_epoch();
        let block_size = settings.block_size();
        self.volumes[index] = Some(CoreVolume {
            id,
            block_size,
            read_only,
            fenced: false,
            ack: settings.ack,
            writes_since_flush: 0,
            sync_streak: 0,
            durability: settings.durability,
            limits: Limits::of(settings),
            risk: Risk::new(self.clock.exposures().of(id), self.index),
            covered: Epoch(0),
            wanted: Epoch(0),
            held: 0,
        });
        self.committed.insert(id, committed);
        if parts.iter().any(|(_, overlay, _)| !overlay.is_empty()) {
            // Recovered records wait for a cut like new ones.
            let points: usize = parts.iter().map(|(_, o, _)| o.points_len()).sum();
            self.note_unsealed(slot, (points.max(1) * block_size.bytes()) as u64);
        }
        for (shard, overlay, base) in parts {
            let position = self.position(shard).expect("a part of an own shard");
            self.shards[position].add_volume(slot, id, block_size, overlay, base);
        }
        // A log may be full of what was committed before a restart; maybe no commit will free it.
        self.release_logs();
    }

    /// Stops serving a deleted volume; its records in the WAL count as committed.
    pub fn remove_volume(&mut self, slot: VolumeSlot) {
        if let Some(id) = self.detach_volume(slot) {
            self.forget_volume(id);
        }
    }

    /// Stops serving a volume that is opened anew, with its records in the WAL. Which one it was.
    pub fn detach_volume(&mut self, slot: VolumeSlot) -> Option<VolumeId> {
        let volume = self.volumes.get_mut(slot.0 as usize)?.take()?;
        // The slot may be another volume's before their reads end.
        for op in self.ops.slots.iter().flatten() {
            let (of, request) = match op {
                PendingOp::Read(read) => (read.slot, read.request),
                PendingOp::Patch(patch) => (patch.slot, patch.request),
                PendingOp::WalWrite { .. } | PendingOp::Barrier(_) => continue,
            };
            if of == slot
                && let Some(request) = self.requests.live(request)
            {
                request.cancelled = true;
            }
        }
        for shard in &mut self.shards {
            shard.remove_volume(slot);
        }
        self.drop_parked_of(slot);
        self.answer_awaiting();
        Some(volume.id)
    }

    /// Records of this volume, which is not served, need not be kept (it was deleted).
    pub fn forget_volume(&mut self, id: VolumeId) {
        self.committed.insert(id, Epoch(u64::MAX));
        self.release_logs();
    }

    /// Changes when requests of the volume are answered and whether it may be written.
    pub fn configure_volume(
        &mut self,
        slot: VolumeSlot,
        settings: &VolumeSettings,
        read_only: bool,
    ) {
        if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) {
            volume.ack = settings.ack;
            volume.read_only = read_only;
            volume.durability = settings.durability;
            volume.limits = Limits::of(settings);
        }
        self.answer_awaiting();
    }

    /// Another writer owns the volume: nothing more of it is acknowledged.
    pub fn fence_volume(&mut self, slot: VolumeSlot) {
        if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) {
            volume.read_only = true;
            volume.fenced = true;
        }
        self.drop_parked_of(slot);
        self.answer_awaiting();
    }

    /// The backend has no room (or has again): decides between waiting and ENOSPC, to which writes
    /// then come ever more slowly.
    pub fn set_backend_full(&mut self, full: bool) {
        self.backend_full = full;
        self.retry = u16::MAX;
    }

    /// Tells the time: milliseconds on a monotonic clock.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Number of data cores.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// Parts of writes that wait for room in the shard at `position`.
    pub fn parked(&self, position: usize) -> usize {
        self.parked[position].len() + self.held(position)
    }

    /// Starts to make everything answered durable; [`Core::is_quiet`] tells when it is.
    pub fn make_durable(&mut self) {
        self.hurry_all();
        self.durability.sync_all();
    }

    /// The shards of this core.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Counts since the start.
    pub fn counters(&self) -> CoreCounters {
        let mut counters = self.counters;
        for log in self.shards.iter().map(Shard::log) {
            counters.wal_rewrites += log.rewritten_batches();
            counters.wal_released += log.released_segments();
        }
        counters
    }

    /// Requests not yet answered.
    pub fn unanswered(&self) -> usize {
        self.requests.len()
    }

    /// Whether nothing is in flight and everything answered is durable.
    pub fn is_quiet(&self) -> bool {
        self.ops.is_empty() && self.requests.len() == 0 && !self.durability.has_undurable(self)
    }

    /// Drops every unfinished request; for the end of the process or of a simulation only.
    pub fn abandon(&mut self) {
        self.requests.abandon();
    }

    /// Carries forward everything that became possible; called once a turn, after the inputs.
    pub fn pump(&mut self) {
        self.observe_epoch();
        self.release_held();
        if self.backend_full {
            self.end_pauses();
        }
        if self.retry != 0 {
            self.retry_parked();
        }
        self.pump_durability();
        self.finish_seal();
        if self.load_due {
            self.tell_load();
        }
    }

    #[cold]
    fn tell_load(&mut self) {
        self.load_due = false;
        self.effects.load = Some(self.load());
    }

    /// Notes that so much of the volume waits for a cut.
    #[inline]
    fn note_unsealed(&mut self, slot: VolumeSlot, bytes: u64) {
        let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) else {
            return;
        };
        let step = match volume.limits.bytes {
            0 => LOAD_STEP_BYTES,
            limit => (limit / (4 * self.cores as u64)).clamp(LOAD_STEP_BYTES_MIN, LOAD_STEP_BYTES),
        };
        let before = volume.risk.unsealed_bytes;
        volume.risk.add(bytes, self.now_ms);
        self.load_due |= before.div_ceil(step) != (before + bytes).div_ceil(step);
    }

    /// How much waits for a cut now.
    pub fn load(&self) -> CoreLoad {
        let percent = |shard: &Shard| {
            let stats = shard.log().stats();
            (stats.wal_used_bytes * 100 / stats.wal_bytes.max(1)) as u8
        };
        let served = self.volumes.iter().flatten();
        let volumes: Vec<_> = served
            .filter(|volume| volume.risk.unsealed_bytes > 0)
            .map(|volume| (volume.id, volume.risk.unsealed_bytes))
            .collect();
        CoreLoad {
            core: self.index,
            pending_bytes: volumes.iter().map(|(_, bytes)| bytes).sum(),
            volumes,
            wal_percent: self.shards.iter().map(percent).max().unwrap_or(0),
        }
    }

    /// Reports the end of a WAL operation; `data` has the bytes of a read.
    pub fn io_done(&mut self, op: OpKey, result: std::io::Result<()>, data: &[u8]) {
        self.observe_epoch();
        match self.ops.remove(op) {
            PendingOp::WalWrite { position, write } => self.wal_written(position, write, result),
            PendingOp::Barrier(marks) => self.barrier_done(&marks, &result),
            PendingOp::Read(read) => self.wal_read_done(read, &result, data),
            PendingOp::Patch(patch) => {
                let result = result.map(|()| data).map_err(|_| Failure::Io);
                self.patch_read_done(patch, result);
            }
        }
    }

    /// Reports the end of a [`Fetch`]: the wanted blocks one after the other, already verified.
    pub fn fetched(&mut self, op: OpKey, result: Result<&[u8], Failure>) {
        self.observe_epoch();
        match self.ops.remove(op) {
            PendingOp::Read(read) => self.fetch_done(read, result),
            PendingOp::Patch(patch) => self.patch_read_done(patch, result),
            PendingOp::WalWrite { .. } | PendingOp::Barrier(_) => {
                unreachable!("writes and barriers are not fetched")
            }
        }
    }

    /// The client of this request is gone: what is not yet appended never will be. Nothing happens
    /// if it has finished and only its [`Done`] is still on its way.
    pub fn cancel(&mut self, key: RequestKey) {
        let Some(request) = self.requests.live(key) else {
            return;
        };
        request.cancelled = true;
        for core in (0..self.cores).filter(|core| *core != self.index) {
            self.effects
                .peers
                .push((core, PeerMessage::Cancel { request: key }));
        }
        self.drop_cancelled();
        self.answer_awaiting();
    }

    fn position(&self, shard: ShardId) -> Option<usize> {
        (shard.core(self.cores) == self.index).then(|| shard.index() / self.cores)
    }

    fn served(&self, slot: VolumeSlot) -> Option<&CoreVolume> {
        self.volumes.get(slot.0 as usize)?.as_ref()
    }

    /// Whether nothing of the volume is acknowledged any more: it is deleted, or another writer's.
    fn is_given_up(&self, slot: VolumeSlot) -> bool {
        self.served(slot).is_none_or(|volume| volume.fenced)
    }

    /// One part of the request ended.
    fn part_done(&mut self, key: RequestKey, result: Result<(), Failure>) {
        let request = self.requests.get(key);
        request.parts -= 1;
        if let Err(failure) = result {
            request.failure.get_or_insert(failure);
        }
        self.finish_if_complete(key);
    }

    fn finish_if_complete(&mut self, key: RequestKey) {
        let request = self.requests.get(key);
        if request.parts > 0 {
            return;
        }
        if request.failure.is_none() && request.durable && !request.needs.is_empty() {
            let needs = request.needs;
            match self.durability.wait(key, needs, &self.shards) {
                None => return,
                Some(Ok(())) => {}
                Some(Err(failure)) => self.requests.get(key).failure = Some(failure),
            }
        }
        self.finish(key);
    }

    fn finish(&mut self, key: RequestKey) {
        let flush_of = self.requests.get(key).flush_of;
        if flush_of.is_some_and(|slot| self.is_given_up(slot)) {
            let failure = &mut self.requests.get(key).failure;
            failure.get_or_insert(Failure::Gone);
        }
        if self.awaits_bucket(key) {
            return;
        }
        let (origin, result, data, extents) = self.requests.remove(key).answer();
        match origin {
            Origin::Client(ticket) => {
                self.effects.done.push(Done {
                    ticket,
                    key,
                    result,
                    data,
                    extents,
                });
            }
            Origin::Peer(core, request) => {
                self.effects.peers.push((
                    core,
                    PeerMessage::Done {
                        request,
                        result,
                        data,
                    },
                ));
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.requests.abandon();
    }
}

/// Operations in the driver's hands, by key.
#[derive(Default)]
struct Ops {
    slots: Vec<Option<PendingOp>>,
    free: Vec<u32>,
}

impl Ops {
    fn insert(&mut self, op: PendingOp) -> OpKey {
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(op);
                OpKey(index)
            }
            None => {
                self.slots.push(Some(op));
                OpKey(self.slots.len() as u32 - 1)
            }
        }
    }

    fn remove(&mut self, key: OpKey) -> PendingOp {
        let op = self.slots[key.0 as usize]
            .take()
            .expect("an operation ends once");
        self.free.push(key.0);
        op
    }

    fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }
}

#[cfg(test)]
mod tests;

//! The thread of the reads: takes reads of the cores, starts what they lack, and tells them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use taipan_engine::backend::BoxFuture;
use taipan_engine::block::BlockSize;
use taipan_engine::cache::{Ahead, FlightId, Holdings, RamCache, ReadSeen, SlotKey, Streams};
use taipan_engine::chunk::{ChunkRef, ChunkView};
use taipan_engine::core::{Failure, Fetch};
use taipan_engine::error::Result;
use taipan_engine::identity::VolumeId;
use taipan_engine::ring::AlignedBuf;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::MissedTickBehavior;

use super::buffers::Buffers;
use super::cache_file::{CacheFile, Written};
use super::cached::Cached;
use super::gets::Gets;
use super::passing::Passing;
use super::queues::{AllFlights, Class, Queues, Source, Work};
use super::runs::{file_runs, runs};
use super::tables::ChunkTables;
use super::waiting::{Waiter, Waiting};
use super::warm::Warm;
use super::{FetcherParts, Job, Message};
use crate::inbox::CoreMessage;
use crate::metrics::ColdReadCounters;

/// How often deadlines are looked at while reads wait, and how long single blocks are gathered for
/// one write to the cache file.
const SWEEP: Duration = Duration::from_millis(100);
/// Messages taken before anything else gets its turn.
const MESSAGES_PER_TURN: usize = 64;
/// Slots between two wanted ones are read along if they are no more than this.
const GAP_BYTES: usize = 64 << 10;
/// One GET for somebody who waits is at most so long.
const GET_BYTES_MAX: usize = 1 << 20;
/// One read of the cache file is at most so long.
const FILE_READ_BYTES_MAX: usize = 1 << 20;
/// A reader in order is read ahead for by at most so much: four GETs of whole objects are under way
/// while it is in a fifth one.
const WINDOW_MAX: u64 = 20 << 20;

/// Something that ended.
pub(super) enum Landing {
    /// A GET, and how long it took.
    Got(FlightId, Duration, Result<Bytes>),
    /// A read of the cache file.
    FromFile(FlightId, std::io::Result<AlignedBuf>),
    /// A write to the cache file.
    Written(Written),
    /// Header and table of an object that a warm-up looks at.
    Head(VolumeId, ChunkRef, Result<ChunkView>),
}

/// State of the thread.
pub(super) struct Reads {
    pub(super) gets: Gets,
    pub(super) counters: Arc<ColdReadCounters>,
    pub(super) tables: Arc<ChunkTables>,
    pub(super) ram: RamCache,
    pub(super) file: Option<CacheFile>,
    pub(super) passing: Passing,
    pub(super) streams: Streams,
    pub(super) flights: AllFlights,
    pub(super) queues: Queues,
    pub(super) waiting: HashMap<u64, Waiting>,
    buffers: Buffers,
    next_read: u64,
    /// Bytes that are read ahead right now.
    pub(super) ahead_flying: u64,
    ahead_wasted: u64,
    ahead: Vec<Ahead>,
    pub(super) warms: Vec<Warm>,
    pub(super) flying: FuturesUnordered<BoxFuture<'static, Landing>>,
}

impl Reads {
    pub(super) fn new(parts: FetcherParts, files: Handle) -> Self {
        let FetcherParts {
            backend,
            tables,
            backend_counters,
            counters,
            settings,
        } = parts;
        let file = settings.file.as_ref().and_then(|spec| {
            CacheFile::create(spec, files)
                .inspect_err(|error| tracing::warn!(%error, "there is no chunk cache"))
                .ok()
        });
        let ram = RamCache::new(settings.ram_bytes);
        Self {
            gets: Gets {
                backend,
                counters: backend_counters,
                deadline: settings.deadline,
            },
            counters,
            tables,
            streams: Streams::new(WINDOW_MAX.min(ram.ahead_bytes_max() / 8 * 5)),
            ram,
            file,
            passing: Passing::default(),
            flights: AllFlights::default(),
            queues: Queues::default(),
            waiting: HashMap::new(),
            buffers: Buffers::default(),
            next_read: 0,
            ahead_flying: 0,
            ahead_wasted: 0,
            ahead: Vec::new(),
            warms: Vec::new(),
            flying: FuturesUnordered::new(),
        }
    }

    /// What the caches hold, now and later.
    pub(super) fn cached(&self) -> Cached {
        let file = self.file.as_ref();
        Cached {
            tables: Arc::clone(&self.tables),
            memory: self.ram.holdings(),
            file: file.map_or_else(Holdings::default, |file| file.map.holdings()),
        }
    }

    /// Serves until every handle is gone.
    pub(super) async fn serve(mut self, mut inbox: UnboundedReceiver<Message>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbox.recv() => {
                    let Some(message) = message else { return };
                    self.take(message);
                    for _ in 0..MESSAGES_PER_TURN {
                        let Ok(message) = inbox.try_recv() else { break };
                        self.take(message);
                    }
                }
                Some(landing) = self.flying.next(), if !self.flying.is_empty() => {
                    self.land(landing);
                }
                _ = sweep.tick(), if self.has_chores() => {
                    self.expire(Instant::now());
                    self.write_to_file();
                }
            }
            self.go_on_warming();
            self.launch_queued();
            self.publish();
        }
    }

    /// Whether something is to be done in a while.
    fn has_chores(&self) -> bool {
        let gathered = self.file.as_ref().is_some_and(CacheFile::has_gathered);
        gathered || !self.waiting.is_empty()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Read(job) => self.take_read(job),
            Message::Warm(job) => self.begin_warming(job),
        }
    }

    fn take_read(&mut self, job: Job) {
        let Job {
            fetch,
            chunk,
            reply,
        } = job;
        let fits = |chunk: &ChunkRef| fetch.first_slot + fetch.slots <= chunk.slots;
        let Some(chunk) = chunk.filter(fits) else {
            tracing::error!(
                volume = %fetch.volume, chunk = fetch.chunk.0, slot = fetch.first_slot,
                "the index names a slot that no known object has"
            );
            let (op, blocks) = (fetch.op, Err(Failure::Io));
            return reply.send(CoreMessage::Fetched {
                op,
                blocks,
                mismatches: 0,
            });
        };
        self.counters.blocks.add(fetch.wanted.len() as u64);
        let deadline = Instant::now() + self.gets.deadline;
        let mut waiting = Waiting::new(fetch, chunk, reply, deadline, &self.buffers);
        let missing = self.fill_from_memory(&mut waiting);
        self.follow_stream(&waiting.fetch, &chunk, !missing.is_empty());
        if missing.is_empty() {
            waiting.answer();
        } else {
            self.next_read += 1;
            let read = self.next_read;
            let fetch = (waiting.fetch.block_size, chunk);
            let missing = missing.iter().map(|&index| {
                let (slot, _) = waiting.wanted(index as usize);
                (slot, Waiter { read, index })
            });
            let missing = missing.collect();
            self.waiting.insert(read, waiting);
            self.start_missing(fetch.0, fetch.1, missing);
        }
        self.read_ahead();
    }

    /// Fills in what memory has and gives back which blocks are missing.
    fn fill_from_memory(&mut self, waiting: &mut Waiting) -> Vec<u32> {
        let mut missing = Vec::new();
        let block_bytes = waiting.fetch.block_size.bytes();
        let mut found = 0;
        for index in 0..waiting.fetch.wanted.len() {
            let (slot, block) = waiting.wanted(index);
            let chunk = waiting.chunk.key;
            match self.ram.get(&SlotKey { chunk, slot }) {
                Some(hit) if hit.stamp.is_of(block) && hit.block.len() == block_bytes => {
                    waiting.fill(index, hit.block);
                    found += 1;
                }
                _ => missing.push(index as u32),
            }
        }
        self.counters.ram_blocks.add(found);
        self.counters.ram_bytes.add(found * block_bytes as u64);
        missing
    }

    /// Lets each waiter wait for a read of its slot: one under way, of the file, or a GET.
    pub(super) fn start_missing(
        &mut self,
        block_size: BlockSize,
        chunk: ChunkRef,
        missing: Vec<(u32, Waiter)>,
    ) {
        let mut starting = Vec::new();
        for (slot, waiter) in missing {
            match self.flights.find(&chunk.key, slot) {
                Some(id) => {
                    self.counters.joined_blocks.add(1);
                    self.flights.wait(id, slot, waiter);
                    self.promote(id);
                }
                None => starting.push((slot, waiter)),
            }
        }
        if starting.is_empty() {
            return;
        }
        let in_file = self.find_in_file(&chunk, &starting);
        let block_bytes = block_size.bytes();
        let from_backend: Vec<u32> = starting
            .iter()
            .map(|(slot, _)| *slot)
            .filter(|slot| in_file.iter().all(|(there, _)| there != slot))
            .collect();
        for (first, places) in file_runs(in_file, block_bytes, FILE_READ_BYTES_MAX / block_bytes) {
            self.start_file_read(chunk, block_size, first, places);
        }
        let gap_max = (GAP_BYTES / block_bytes) as u32;
        for slots in runs(&from_backend, gap_max, (GET_BYTES_MAX / block_bytes) as u32) {
            let work = Work {
                chunk,
                block_size,
                class: Class::Foreground,
                source: Source::Backend,
                running: None,
                failures: 0,
                again: false,
                stream: None,
                warm: None,
            };
            self.start_get(slots, work);
        }
        for (slot, waiter) in starting {
            let id = self.flights.find(&chunk.key, slot);
            let id = id.expect("a read of every missing slot was started");
            self.flights.wait(id, slot, waiter);
        }
    }

    /// Where the cache file has blocks that are wanted, in order of their slots.
    fn find_in_file(
        &mut self,
        chunk: &ChunkRef,
        wanted: &[(u32, Waiter)],
    ) -> Vec<(u32, taipan_engine::cache::OnDisk)> {
        let mut found = Vec::new();
        let Some(file) = &mut self.file else {
            return found;
        };
        for (slot, waiter) in wanted {
            let key = SlotKey {
                chunk: chunk.key,
                slot: *slot,
            };
            let Some(at) = file.find(&key) else {
                continue;
            };
            let block = self
                .waiting
                .get(&waiter.read)
                .map(|waiting| waiting.wanted(waiter.index as usize).1);
            match block {
                Some(block) if at.stamp.is_of(block) => found.push((*slot, at)),
                Some(_) if file.map.remove(&key, &at) => self.counters.file_mismatches.add(1),
                _ => {}
            }
        }
        found.dedup_by_key(|(slot, _)| *slot);
        found
    }

    fn start_file_read(
        &mut self,
        chunk: ChunkRef,
        block_size: BlockSize,
        first: u32,
        places: Vec<taipan_engine::cache::OnDisk>,
    ) {
        let Some(file) = &self.file else {
            return;
        };
        let (offset, count) = (places[0].file_offset, places.len());
        let read = file.read(offset, count * block_size.bytes());
        let work = Work {
            chunk,
            block_size,
            class: Class::Foreground,
            source: Source::File(places),
            running: None,
            failures: 0,
            again: false,
            stream: None,
            warm: None,
        };
        let slots = first..first + count as u32;
        let id = self.flights.start(chunk.key, slots, work);
        self.flying
            .push(Box::pin(async move { Landing::FromFile(id, read.await) }));
    }

    /// Enters and queues a GET.
    pub(super) fn start_get(&mut self, slots: std::ops::Range<u32>, work: Work) -> FlightId {
        let class = work.class;
        if class == Class::Ahead {
            self.ahead_flying += (slots.len() * work.block_size.bytes()) as u64;
        }
        let id = self.flights.start(work.chunk.key, slots, work);
        self.queues.push(class, id);
        id
    }

    /// Somebody waits for this read now.
    fn promote(&mut self, id: FlightId) {
        if let Some(flight) = self.flights.get_mut(id)
            && flight.work.class != Class::Foreground
        {
            if flight.work.class == Class::Ahead {
                let bytes = flight.slots.len() * flight.work.block_size.bytes();
                self.ahead_flying -= bytes as u64;
            }
            flight.work.class = Class::Foreground;
            if flight.work.running.is_none() {
                self.queues.push(Class::Foreground, id);
            }
        }
    }

    fn launch_queued(&mut self) {
        while let Some(id) = self.queues.next(&mut self.flights) {
            self.launch(id, Duration::ZERO);
        }
    }

    /// Makes the GET of a read, after `delay`.
    pub(super) fn launch(&mut self, id: FlightId, delay: Duration) {
        let Some(flight) = self.flights.get(id) else {
            return;
        };
        let (chunk, slots) = (&flight.work.chunk, &flight.slots);
        let count = slots.end - slots.start;
        let range = chunk.slot_range(flight.work.block_size, slots.start, count);
        let get = self.gets.clone().get(chunk.key.object(), range, delay);
        self.flying.push(Box::pin(async move {
            let (took, result) = get.await;
            Landing::Got(id, took, result)
        }));
    }

    fn follow_stream(&mut self, fetch: &Fetch, chunk: &ChunkRef, missed: bool) {
        let Some(read) = seen(fetch, chunk, missed) else {
            return;
        };
        let most = self.ram.ahead_bytes_max();
        // What readers left behind unused leaves memory as new blocks come: it must not keep them
        // from coming.
        let unused = self.ram.counts().ahead_bytes.min(most / 2) + self.ahead_flying;
        let room = most.saturating_sub(unused);
        let (tables, volume) = (&self.tables, fetch.volume);
        let after = |key: &_| tables.after(volume, key);
        self.streams.note(&read, room, after, &mut self.ahead);
    }

    /// Starts what the streams asked for and nobody has yet.
    fn read_ahead(&mut self) {
        let mut ahead = std::mem::take(&mut self.ahead);
        for Ahead {
            stream,
            chunk,
            slots,
            block_size,
        } in ahead.drain(..)
        {
            let lacking: Vec<u32> = slots.filter(|slot| self.lacks(&chunk, *slot)).collect();
            let gap_max = (GAP_BYTES / block_size.bytes()) as u32;
            for slots in runs(&lacking, gap_max, u32::MAX) {
                self.counters.ahead_blocks.add(slots.len() as u64);
                let work = Work {
                    chunk,
                    block_size,
                    class: Class::Ahead,
                    source: Source::Backend,
                    running: None,
                    failures: 0,
                    again: false,
                    stream: Some(stream),
                    warm: None,
                };
                self.start_get(slots, work);
            }
        }
        self.ahead = ahead;
    }

    fn lacks(&self, chunk: &ChunkRef, slot: u32) -> bool {
        let key = SlotKey {
            chunk: chunk.key,
            slot,
        };
        !self.ram.contains(&key)
            && self.flights.find(&chunk.key, slot).is_none()
            && !self.file.as_ref().is_some_and(|file| file.contains(&key))
    }

    /// As for read-ahead, but what is in memory alone is lacking: the file keeps it longer.
    pub(super) fn lacks_warm(&self, chunk: &ChunkRef, slot: u32) -> bool {
        let Some(file) = self.file.as_ref().filter(|file| file.is_on()) else {
            return self.lacks(chunk, slot);
        };
        let key = SlotKey {
            chunk: chunk.key,
            slot,
        };
        self.flights.find(&chunk.key, slot).is_none() && !file.contains(&key)
    }

    /// Fails what waited for too long.
    fn expire(&mut self, now: Instant) {
        let late = self.waiting.extract_if(|_, read| read.deadline <= now);
        let mut expired = 0;
        for (_, read) in late {
            let volume: VolumeId = read.fetch.volume;
            let object = read.chunk.key;
            tracing::error!(%volume, %object, "read failed: the backend was waited for in vain");
            expired += 1;
            read.answer();
        }
        self.counters.expired.add(expired);
    }

    fn publish(&mut self) {
        let counts = self.ram.counts();
        ColdReadCounters::hold(&self.counters.ram_bytes_held, counts.bytes);
        ColdReadCounters::hold(&self.counters.ahead_used, counts.ahead_used);
        ColdReadCounters::hold(&self.counters.ahead_wasted, counts.ahead_wasted);
        if let Some(file) = &self.file {
            ColdReadCounters::hold(&self.counters.file_blocks_held, file.map.blocks());
        }
        if counts.ahead_wasted > self.ahead_wasted {
            self.ahead_wasted = counts.ahead_wasted;
            self.streams.wasted();
        }
    }
}

/// A read as the streams see it.
fn seen<'a>(fetch: &Fetch, chunk: &'a ChunkRef, missed: bool) -> Option<ReadSeen<'a>> {
    let (first, last) = (fetch.wanted.first()?, fetch.wanted.last()?);
    let blocks = fetch.wanted.iter().map(|(_, block)| block.0);
    let (low, high) = (blocks.clone().min()?, blocks.max()?);
    Some(ReadSeen {
        volume: fetch.volume,
        block_size: fetch.block_size,
        chunk,
        slots: fetch.first_slot + first.0..fetch.first_slot + last.0 + 1,
        blocks: low..high + 1,
        wanted: fetch.wanted.len() as u64,
        missed,
    })
}

//! Carries the core's effects out on the ring, the fetcher and the uploader, and brings back how
//! they ended.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use taipan_engine::core::{Core, Io, OpKey};
use taipan_engine::failpoint;
use taipan_engine::ring::{AlignedBuf, Completed, FileSlot, Ring};
use taipan_engine::snapshot::QualifiedImage;
use taipan_engine::wal::WalWrite;

use super::barrier_pace::BarrierPace;
use super::nearby::Nearby;
use super::{BarrierScope, token};
use crate::directory::{Bookmark, Volume};
use crate::fetcher::Fetcher;
use crate::inbox::CoreAddress;
use crate::metrics::CoreCounters;
use crate::uploader::{Asker, BitmapWish, UploaderAddress, ViewWish};

/// Read buffers kept for reuse.
const SPARE_BUFFERS: usize = 64;
/// Read buffers larger than this are not kept.
const SPARE_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
    Barrier,
}

/// One operation of the core on the ring.
#[derive(Debug)]
struct Running {
    kind: Kind,
    /// Bytes that must be transferred; 0 for barriers.
    expected: usize,
    /// Ring operations outstanding (a barrier may be several).
    parts: usize,
    failure: Option<io::Error>,
    started: Instant,
}

/// The driver's side of the core's effects.
pub(super) struct Carrier {
    files: Vec<FileSlot>,
    barrier: BarrierScope,
    nearby: Nearby,
    uploader: UploaderAddress,
    own: CoreAddress,
    counters: Arc<CoreCounters>,
    running: Vec<Option<Running>>,
    /// Operations that ended at once, to be delivered.
    ended: Vec<(OpKey, io::Result<()>)>,
    wal_files: Vec<Arc<File>>,
    pace: BarrierPace,
    spare: Vec<AlignedBuf>,
    /// Reads and writes of the WAL under way.
    wal_reads: usize,
    wal_writes: usize,
}

impl Carrier {
    pub(super) fn new(
        files: Vec<FileSlot>,
        wal_files: Vec<Arc<File>>,
        barrier: BarrierScope,
        fetcher: Fetcher,
        uploader: UploaderAddress,
        own: CoreAddress,
        counters: Arc<CoreCounters>,
    ) -> Self {
        Self {
            files,
            barrier,
            nearby: Nearby::new(fetcher, own.clone()),
            uploader,
            own,
            counters,
            running: Vec::new(),
            ended: Vec::new(),
            wal_files,
            pace: BarrierPace::new(),
            spare: Vec::new(),
            wal_reads: 0,
            wal_writes: 0,
        }
    }

    /// Whether reads of this machine's disk are under way.
    pub(super) fn reads_disk(&self) -> bool {
        self.wal_reads > 0 || self.nearby.is_reading()
    }

    /// Whether writes of the WAL are under way.
    pub(super) fn writes_wal(&self) -> bool {
        self.wal_writes > 0
    }

    /// Whether [`Carrier::deliver`] has something to do.
    pub(super) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Has a snapshot opened for a connection of this core.
    pub(super) fn open_view(&self, name: QualifiedImage, connection: u64) {
        let asker = self.asker(connection);
        self.uploader.open_view(ViewWish { name, asker });
    }

    /// Has a bitmap loaded for a connection of this core.
    pub(super) fn load_bitmap(&self, export: Arc<Volume>, since: Bookmark, connection: u64) {
        self.uploader.load_bitmap(BitmapWish {
            export,
            since,
            asker: self.asker(connection),
        });
    }

    fn asker(&self, connection: u64) -> Asker {
        Asker {
            core: self.own.clone(),
            connection,
        }
    }

    /// Starts everything that the core asked for, except replies and peer messages.
    pub(super) fn carry_out(&mut self, core: &mut Core, ring: &mut Ring) {
        let cores = core.cores();
        let mut queue = std::mem::take(&mut core.effects.io);
        for io in queue.drain(..) {
            self.start(io, cores, ring);
        }
        core.effects.io = queue;
        for fetch in core.effects.fetches.drain(..) {
            self.nearby.fetch(fetch, ring, &mut self.spare);
        }
        if let Some(sealed) = core.effects.sealed.take() {
            self.uploader.sealed(sealed);
        }
        if let Some(load) = core.effects.load.take() {
            self.uploader.load(load);
        }
        for (volume, epoch) in core.effects.applied.drain(..) {
            self.uploader.applied(volume, epoch);
        }
        for (volume, through) in core.effects.wants.drain(..) {
            self.uploader.want(volume, through);
        }
    }

    fn start(&mut self, io: Io, cores: usize, ring: &mut Ring) {
        match io {
            Io::WalWrite {
                op,
                shard,
                write,
                slice,
            } => {
                if let Err(error) = failpoint::hit(step_of(&write)) {
                    self.refuse(op, error);
                    return;
                }
                self.run(op, Kind::Write, slice.len(), 1);
                self.wal_writes += 1;
                let file = self.files[shard.index() / cores];
                let (offset, dsync) = (write.file_offset, write.dsync);
                ring.write_arena(file, slice, offset, dsync, token::OP | u64::from(op.0));
            }
            Io::WalRead {
                op,
                shard,
                file_offset,
                len,
            } => {
                if let Err(error) = failpoint::hit("wal.read") {
                    self.refuse(op, error);
                    return;
                }
                self.run(op, Kind::Read, len, 1);
                self.wal_reads += 1;
                let buffer = match self.spare.pop() {
                    Some(buffer) if buffer.len() >= len => buffer,
                    _ => AlignedBuf::zeroed(len),
                };
                let file = self.files[shard.index() / cores];
                ring.read(file, buffer, len, file_offset, token::OP | u64::from(op.0));
            }
            Io::Barrier { op, shards } => {
                if let Err(error) = failpoint::hit("wal.barrier") {
                    self.refuse(op, error);
                    return;
                }
                let mask = match self.barrier {
                    BarrierScope::Device => shards & shards.wrapping_neg(),
                    BarrierScope::File => shards,
                };
                self.run(op, Kind::Barrier, 0, mask.count_ones() as usize);
                if mask.count_ones() == 1 && self.pace.is_direct(Instant::now()) {
                    self.sync_now(op, mask.trailing_zeros() as usize / cores);
                    return;
                }
                for shard in (0..16usize).filter(|shard| mask & 1 << shard != 0) {
                    ring.fdatasync(self.files[shard / cores], token::OP | u64::from(op.0));
                }
            }
        }
    }

    fn run(&mut self, op: OpKey, kind: Kind, expected: usize, parts: usize) {
        let index = op.0 as usize;
        if self.running.len() <= index {
            self.running.resize_with(index + 1, || None);
        }
        let started = Instant::now();
        let running = Running {
            kind,
            expected,
            parts,
            failure: None,
            started,
        };
        assert!(
            self.running[index].replace(running).is_none(),
            "an operation runs once"
        );
    }

    /// A barrier on a fast device, without the detour over a kernel worker that every fsync on a
    /// ring takes: io_uring never tries it inline.
    fn sync_now(&mut self, op: OpKey, file: usize) {
        let started = Instant::now();
        let result = self.wal_files[file].sync_data();
        let took = started.elapsed();
        self.pace.note_direct(took, started + took);
        self.running[op.0 as usize] = None;
        self.count(Kind::Barrier, 0, took, result.is_err());
        if let Err(error) = &result {
            tracing::error!(%error, "WAL flush failed");
        }
        self.ended.push((op, result));
    }

    /// Books an operation that a failpoint refuses.
    fn refuse(&mut self, op: OpKey, error: io::Error) {
        self.counters.wal.errors.add(1);
        tracing::error!(%error, "WAL operation failed (failpoint)");
        self.ended.push((op, Err(error)));
    }

    /// Tells the core of operations that ended at once; false if there were none.
    pub(super) fn deliver(&mut self, core: &mut Core) -> bool {
        let ended = std::mem::take(&mut self.ended);
        let any = !ended.is_empty();
        for (op, result) in ended {
            core.io_done(op, result, &[]);
        }
        any
    }

    /// A ring operation of the core ended.
    pub(super) fn completed(&mut self, op: OpKey, completed: &Completed, core: &mut Core) {
        let slot = &mut self.running[op.0 as usize];
        let running = slot
            .as_mut()
            .expect("completions belong to running operations");
        if let Err(error) = completed.transferred(running.expected) {
            running.failure.get_or_insert(error);
        }
        running.parts -= 1;
        if running.parts > 0 {
            return;
        }
        let running = slot.take().expect("looked at above");
        let result = running.failure.map_or(Ok(()), Err);
        let took = running.started.elapsed();
        match running.kind {
            Kind::Barrier if result.is_ok() => self.pace.note_ring(took),
            Kind::Read => self.wal_reads -= 1,
            Kind::Write => self.wal_writes -= 1,
            Kind::Barrier => {}
        }
        self.count(running.kind, running.expected, took, result.is_err());
        if let Err(error) = &result {
            tracing::error!(operation = ?running.kind, %error, "WAL operation failed");
        }
        let data = completed
            .buffer
            .as_deref()
            .map_or(&[][..], |b| &b[..running.expected]);
        core.io_done(op, result, data);
    }

    /// A read of a chunk's file ended.
    pub(super) fn read_nearby(&mut self, index: usize, completed: &Completed, core: &mut Core) {
        let blocks = self.nearby.ended(index, completed, core);
        self.counters.reads.nearby_blocks.add(blocks);
    }

    /// Keeps a read buffer for the next read.
    pub(super) fn recycle(&mut self, buffer: Option<AlignedBuf>) {
        if let Some(buffer) = buffer
            && self.spare.len() < SPARE_BUFFERS
            && buffer.len() <= SPARE_BYTES_MAX
        {
            self.spare.push(buffer);
        }
    }

    fn count(&self, kind: Kind, bytes: usize, took: Duration, failed: bool) {
        if failed {
            self.counters.wal.errors.add(1);
            return;
        }
        match kind {
            Kind::Write => {
                self.counters.wal.writes.add(1);
                self.counters.wal.write_bytes.add(bytes as u64);
                self.counters.wal_write_latency.record(took);
            }
            Kind::Barrier => {
                self.counters.wal.barriers.add(1);
                self.counters.wal_barrier_latency.record(took);
            }
            Kind::Read => {}
        }
    }
}

/// The failpoint of a write: log heads let go of segments, all others are batches.
fn step_of(write: &WalWrite) -> &'static str {
    match write.batch.0 {
        0 => "wal.release",
        _ => "wal.write",
    }
}

//! Reads blocks from the backend for the data cores: a bounded pool of threads, apart from the
//! uploads, that verifies every block before it hands it on.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use futures::executor::block_on;
use taipan_engine::backend::Backend;
use taipan_engine::chunk::{ChunkRef, slot_stride, verify_slot};
use taipan_engine::core::{Failure, Fetch};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::VolumeId;
use taipan_engine::index::ChunkOrdinal;

use crate::inbox::{CoreAddress, CoreMessage};
use crate::metrics::{BackendCounters, BackendOp};

/// Reads under way at once.
const THREADS: usize = 6;
/// A read that keeps failing is given up after so long.
const DEADLINE: Duration = Duration::from_secs(15);
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Chunk objects of every volume by ordinal; written by the uploader before a location is
/// published, read by the fetcher.
#[derive(Debug, Default)]
pub struct ChunkTables {
    tables: RwLock<HashMap<VolumeId, Vec<Option<ChunkRef>>>>,
}

impl ChunkTables {
    /// Sets the object of one ordinal.
    pub fn set(&self, volume: VolumeId, ordinal: ChunkOrdinal, chunk: Option<ChunkRef>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let table = tables.entry(volume).or_default();
        let index = ordinal.0 as usize;
        if table.len() <= index {
            table.resize(index + 1, None);
        }
        table[index] = chunk;
    }

    /// Forgets a deleted volume.
    pub fn forget(&self, volume: VolumeId) {
        self.tables
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&volume);
    }

    /// The object of an ordinal.
    pub fn get(&self, volume: VolumeId, ordinal: ChunkOrdinal) -> Option<ChunkRef> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        *tables.get(&volume)?.get(ordinal.0 as usize)?
    }
}

struct Job {
    fetch: Fetch,
    /// Resolved when the core asked: by the time a worker is free the ordinal may name another
    /// object.
    chunk: Option<ChunkRef>,
    reply: CoreAddress,
}

/// Handle of the pool. The queue is bounded by the requests in flight of all connections.
#[derive(Clone)]
pub struct Fetcher {
    jobs: Sender<Job>,
    tables: Arc<ChunkTables>,
}

impl Fetcher {
    /// Starts the pool.
    pub fn start(
        backend: &Arc<dyn Backend>,
        tables: &Arc<ChunkTables>,
        counters: &Arc<BackendCounters>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = unbounded();
        for index in 0..THREADS {
            let worker = Worker {
                backend: Arc::clone(backend),
                counters: Arc::clone(counters),
                queue: queue.clone(),
            };
            std::thread::Builder::new()
                .name(format!("fetch-{index}"))
                .spawn(move || worker.run())?;
        }
        Ok(Self {
            jobs,
            tables: Arc::clone(tables),
        })
    }

    /// Queues a read; the answer goes to `reply`.
    pub fn submit(&self, fetch: Fetch, reply: CoreAddress) {
        let op = fetch.op;
        let chunk = self.tables.get(fetch.volume, fetch.chunk);
        if let Err(refused) = self.jobs.send(Job {
            fetch,
            chunk,
            reply,
        }) {
            let blocks = Err(Failure::Io);
            refused.into_inner().reply.send(CoreMessage::Fetched {
                op,
                blocks,
                mismatches: 0,
            });
        }
    }
}

struct Worker {
    backend: Arc<dyn Backend>,
    counters: Arc<BackendCounters>,
    queue: Receiver<Job>,
}

impl Worker {
    fn run(self) {
        while let Ok(Job {
            fetch,
            chunk,
            reply,
        }) = self.queue.recv()
        {
            let mut mismatches = 0;
            let blocks = self.fetch_until_deadline(&fetch, chunk.as_ref(), &mut mismatches);
            let blocks = blocks.map_err(|error| {
                tracing::error!(volume = %fetch.volume, %error, "read failed");
                Failure::Io
            });
            reply.send(CoreMessage::Fetched {
                op: fetch.op,
                blocks,
                mismatches,
            });
        }
    }

    fn fetch_until_deadline(
        &self,
        fetch: &Fetch,
        chunk: Option<&ChunkRef>,
        mismatches: &mut u64,
    ) -> Result<Vec<u8>> {
        let started = Instant::now();
        let mut backoff = BACKOFF_FIRST;
        loop {
            let error = match self.fetch(fetch, chunk) {
                Ok(blocks) => return Ok(blocks),
                Err(error) => error,
            };
            *mismatches += u64::from(error.kind() == ErrorKind::Corrupt);
            let hopeful = matches!(
                error.kind(),
                ErrorKind::Transient | ErrorKind::Io | ErrorKind::Corrupt
            );
            if !hopeful || started.elapsed() + backoff > DEADLINE {
                return Err(error);
            }
            if error.kind() == ErrorKind::Corrupt && backoff > BACKOFF_FIRST {
                // The same wrong bytes twice: another try would not help.
                return Err(error);
            }
            tracing::warn!(volume = %fetch.volume, %error, "backend read is tried again");
            std::thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn fetch(&self, fetch: &Fetch, chunk: Option<&ChunkRef>) -> Result<Vec<u8>> {
        let chunk = chunk.ok_or_else(|| {
            Error::corrupt(format!(
                "the index names chunk {} that is not known",
                fetch.chunk.0
            ))
            .with_volume(fetch.volume)
        })?;
        let bytes = self.get(fetch, chunk)?;
        let stride = slot_stride(fetch.block_size);
        let mut blocks = Vec::with_capacity(fetch.wanted.len() * fetch.block_size.bytes());
        for (slot, block) in &fetch.wanted {
            let start = *slot as usize * stride;
            let slot = bytes.get(start..start + stride).ok_or_else(|| {
                Error::corrupt("the backend returned fewer bytes than were asked for")
            })?;
            let bytes = verify_slot(slot, fetch.block_size, *block)
                .map_err(|error| error.with_path(chunk.key.object().as_str()))?;
            blocks.extend_from_slice(bytes);
        }
        Ok(blocks)
    }

    fn get(&self, fetch: &Fetch, chunk: &ChunkRef) -> Result<Bytes> {
        let range = chunk.slot_range(fetch.block_size, fetch.first_slot, fetch.slots);
        let object = chunk.key.object();
        let started = Instant::now();
        let result = match failpoint::hit("chunk.get") {
            Ok(()) => block_on(self.backend.get_range(
                &object,
                range.start,
                range.end - range.start,
            )),
            Err(error) => Err(Error::io("read a chunk (failpoint)", error)),
        };
        let bytes = result.as_ref().ok().map(|bytes| bytes.len() as u64);
        self.counters.done(BackendOp::Get, bytes, started.elapsed());
        result
    }
}

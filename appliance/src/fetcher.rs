//! Reads committed blocks for the data cores: caches, one GET for all who want the same slots,
//! read-ahead, and patience with a backend that is away. On the thread of the backend's reads or on
//! one of its own, so that a read never waits behind an upload. See `docs/internals/read-path.md`.

mod buffers;
mod cache_file;
mod cached;
mod gets;
mod landing;
mod passing;
mod queues;
mod reads;
mod runs;
mod settings;
mod tables;
mod waiting;
mod warm;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use taipan_engine::api::{WarmState, WarmStatus, WarmVolume};
use taipan_engine::backend::{Backend, BoxFuture, LocalFile};
use taipan_engine::block::BlockSize;
use taipan_engine::chunk::ChunkRef;
use taipan_engine::core::{Failure, Fetch};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::extents::Caches;
use taipan_engine::identity::VolumeId;
use taipan_engine::object::ChunkKey;
use taipan_engine::volume::VolumeSettings;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::inbox::{CoreAddress, CoreMessage};
use crate::metrics::{BackendCounters, ColdReadCounters};

pub use buffers::Blocks;
pub use cache_file::CacheFileSpec;
pub use settings::ReadSettings;
pub use tables::ChunkTables;

use cached::Cached;
use reads::Reads;
use warm::{Progress, WarmJob};

/// Threads for the cache file.
const FILE_THREADS: usize = 8;

/// What a fetcher is made of.
pub struct FetcherParts {
    /// Where the objects are.
    pub backend: Arc<dyn Backend>,
    /// Which objects.
    pub tables: Arc<ChunkTables>,
    /// Counts what is asked of the backend.
    pub backend_counters: Arc<BackendCounters>,
    /// Counts what becomes of reads.
    pub counters: Arc<ColdReadCounters>,
    /// How it behaves.
    pub settings: ReadSettings,
}

/// A read of a data core.
struct Job {
    fetch: Fetch,
    /// Resolved when the core asked: by the time the read is taken up the ordinal may name another
    /// object.
    chunk: Option<ChunkRef>,
    reply: CoreAddress,
}

/// What is asked of the thread of the reads.
enum Message {
    Read(Job),
    Warm(WarmJob),
}

/// Threads for the cache file, apart from whatever else blocks. A device that hangs does not hold
/// up the end of the process.
struct FileThreads(Option<Runtime>);

impl FileThreads {
    fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(FILE_THREADS)
            .thread_name("cache-file")
            .build()
            .map_err(|e| Error::io("making the threads of the cache file", e))?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> Handle {
        let runtime = self.0.as_ref();
        runtime.expect("taken only at the end").handle().clone()
    }
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a thread for the reads of a backend that has none.
fn start_thread(task: BoxFuture<'static, ()>, cpu: Option<usize>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("making the runtime of the reads", e))?;
    let run = move || {
        if let Some(id) = cpu {
            core_affinity::set_for_current(core_affinity::CoreId { id });
        }
        runtime.block_on(task);
        // A backend that hangs must not hold up the end of the process.
        runtime.shutdown_background();
    };
    std::thread::Builder::new()
        .name("reads".to_owned())
        .spawn(run)
        .map_err(|e| Error::io("starting the thread of the reads", e))?;
    Ok(())
}

/// Handle of the thread. Its queue is bounded by the requests in flight of all connections. It ends
/// when the last handle is dropped.
#[derive(Clone)]
pub struct Fetcher {
    messages: UnboundedSender<Message>,
    backend: Arc<dyn Backend>,
    tables: Arc<ChunkTables>,
    /// What the caches hold.
    cached: Arc<Cached>,
    /// How the last warm-up of each volume is getting on.
    warms: Arc<Mutex<HashMap<VolumeId, Progress>>>,
    /// Whether there is a cache to warm.
    caches: bool,
}

impl Fetcher {
    /// Starts the thread. A cache file that cannot be made is reported and done without.
    pub fn start(parts: FetcherParts) -> Result<Self> {
        let (messages, inbox) = unbounded_channel();
        let tables = Arc::clone(&parts.tables);
        let cpu = parts.settings.cpu;
        let caches = parts.settings.ram_bytes > 0 || parts.settings.file.is_some();
        let backend = Arc::clone(&parts.backend);
        let files = FileThreads::start()?;
        let objects = Arc::clone(&backend);
        let reads = Reads::new(parts, files.handle());
        let cached = Arc::new(reads.cached());
        let task = Box::pin(async move {
            reads.serve(inbox).await;
            drop(files);
        });
        // The thread that makes the requests also serves the reads: each change of threads costs a
        // cold read more than everything else that is done for it here.
        if let Some(task) = backend.run_beside_reads(task) {
            start_thread(task, cpu)?;
        }
        Ok(Self {
            messages,
            backend: objects,
            tables,
            cached,
            warms: Arc::default(),
            caches,
        })
    }

    /// What the caches hold, for maps.
    pub fn caches(&self) -> Arc<dyn Caches> {
        Arc::clone(&self.cached) as Arc<dyn Caches>
    }

    /// The object that a read is of, now.
    pub fn chunk_of(&self, fetch: &Fetch) -> Option<ChunkRef> {
        self.tables.get(fetch.volume, fetch.chunk)
    }

    /// The chunk's file, if it is on this machine and was read lately.
    pub fn local_file(&self, chunk: &ChunkKey) -> Option<LocalFile> {
        self.backend.local_file(chunk)
    }

    /// Queues a read of `chunk`; the answer goes to `reply`.
    pub fn submit(&self, fetch: Fetch, chunk: Option<ChunkRef>, reply: CoreAddress) {
        let job = Job {
            fetch,
            chunk,
            reply,
        };
        if let Err(refused) = self.messages.send(Message::Read(job))
            && let Message::Read(job) = refused.0
        {
            job.reply.send(CoreMessage::Fetched {
                op: job.fetch.op,
                blocks: Err(Failure::Io),
                mismatches: 0,
            });
        }
    }
}

impl Fetcher {
    /// Starts to read what `request` names of a volume into the caches, in the background.
    pub fn warm_volume(
        &self,
        volume: VolumeId,
        settings: &VolumeSettings,
        request: &WarmVolume,
    ) -> Result<WarmStatus> {
        let blocks = warm::blocks_of(request, settings)?;
        self.warm(volume, settings.block_size(), blocks)
    }

    /// Starts to read a volume's objects into the caches; `blocks` by number, `None` is all.
    /// `Busy` while an earlier warm-up of the volume is under way.
    pub fn warm(
        &self,
        volume: VolumeId,
        block_size: BlockSize,
        blocks: Option<Range<u64>>,
    ) -> Result<WarmStatus> {
        if !self.caches {
            let text = "there is no cache to warm: ram_cache and chunk_cache are off";
            return Err(Error::invalid(text));
        }
        let mut warms = self.warms.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = warms.entry(volume).or_default().clone();
        if progress.get().state == WarmState::Running {
            let text = "a warm-up of this volume is under way";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        progress.change(|status| {
            *status = WarmStatus {
                state: WarmState::Running,
                ..WarmStatus::default()
            };
        });
        let job = WarmJob {
            volume,
            block_size,
            blocks,
            progress: progress.clone(),
        };
        if self.messages.send(Message::Warm(job)).is_err() {
            return Err(Error::new(ErrorKind::Busy, "the daemon is stopping"));
        }
        Ok(progress.get())
    }

    /// How the last warm-up of a volume is getting on.
    pub fn warm_status(&self, volume: VolumeId) -> WarmStatus {
        let warms = self.warms.lock().unwrap_or_else(PoisonError::into_inner);
        warms
            .get(&volume)
            .map_or_else(WarmStatus::default, Progress::get)
    }
}

#[cfg(test)]
mod tests;

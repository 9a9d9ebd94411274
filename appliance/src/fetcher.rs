//! Reads committed blocks for the data cores: caches, one GET for all who want the same slots,
//! read-ahead, and patience with a backend that is away. On a thread of its own, so that a read
//! never waits behind an upload. See `docs/internals/read-path.md`.

mod cache_file;
mod gets;
mod landing;
mod queues;
mod reads;
mod runs;
mod settings;
mod tables;
mod waiting;

use std::sync::Arc;

use taipan_engine::backend::Backend;
use taipan_engine::chunk::ChunkRef;
use taipan_engine::core::{Failure, Fetch};
use taipan_engine::error::{Error, Result};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::inbox::{CoreAddress, CoreMessage};
use crate::metrics::{BackendCounters, ColdReadCounters};

pub use cache_file::CacheFileSpec;
pub use settings::ReadSettings;
pub use tables::ChunkTables;

use reads::Reads;

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
}

/// Handle of the thread. Its queue is bounded by the requests in flight of all connections. It ends
/// when the last handle is dropped.
#[derive(Clone)]
pub struct Fetcher {
    messages: UnboundedSender<Message>,
    tables: Arc<ChunkTables>,
}

impl Fetcher {
    /// Starts the thread. A cache file that cannot be made is reported and done without.
    pub fn start(parts: FetcherParts) -> Result<Self> {
        let (messages, inbox) = unbounded_channel();
        let tables = Arc::clone(&parts.tables);
        let cpu = parts.settings.cpu;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(FILE_THREADS)
            .thread_name("cache-file")
            .build()
            .map_err(|e| Error::io("making the runtime of the reads", e))?;
        let reads = Reads::new(parts);
        let run = move || {
            if let Some(id) = cpu {
                core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            runtime.block_on(reads.serve(inbox));
            // A backend or a cache device that hangs must not hold up the end of the process.
            runtime.shutdown_background();
        };
        std::thread::Builder::new()
            .name("reads".to_owned())
            .spawn(run)
            .map_err(|e| Error::io("starting the thread of the reads", e))?;
        Ok(Self { messages, tables })
    }

    /// Queues a read; the answer goes to `reply`.
    pub fn submit(&self, fetch: Fetch, reply: CoreAddress) {
        let chunk = self.tables.get(fetch.volume, fetch.chunk);
        let job = Job {
            fetch,
            chunk,
            reply,
        };
        if let Err(refused) = self.messages.send(Message::Read(job)) {
            let Message::Read(job) = refused.0;
            job.reply.send(CoreMessage::Fetched {
                op: job.fetch.op,
                blocks: Err(Failure::Io),
                mismatches: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests;

//! Carries out one effect of a volume's commit on the backend, the local head record or the log.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use glommio::sync::Semaphore;
use taipan_engine::backend::{Backend, Put};
use taipan_engine::chunk::ChunkRef;
use taipan_engine::commit::Event;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint::pass;
use taipan_engine::object::{ObjectKey, SealedRef};
use taipan_engine::pack::ChunkJob;
use taipan_engine::registry::{LocalHead, LocalHeads, read_manifest_bytes};

use super::chunks::{BlockSource, CutPlaces};
use super::patience::{deadline, within};
use crate::metrics::{BackendCounters, BackendOp};

/// How long the deletion of one object of many may take.
const DELETE_EACH: Duration = Duration::from_secs(1);

/// What effects are carried out on.
pub(super) struct Means {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) heads: LocalHeads,
    pub(super) blocks: BlockSource,
    /// Bytes that chunks being packed and stored may take, and what of them is free.
    pub(super) packing_bytes: u64,
    pub(super) packing: Semaphore,
    pub(super) counters: Arc<BackendCounters>,
    /// Local head records being saved or removed.
    pub(super) saves: Cell<usize>,
    /// The uploader has stopped: its last word on each local head record is not to be changed.
    pub(super) stopped: Cell<bool>,
}

impl Means {
    /// Builds a chunk and stores it. An object that exists already is this chunk, from an attempt
    /// whose response was lost: its name is random.
    pub(super) async fn put_chunk(self: Rc<Self>, job: ChunkJob, places: Arc<CutPlaces>) -> Event {
        let index = job.index;
        let result = self.build_and_put(&job, &places).await;
        Event::ChunkPut { index, result }
    }

    async fn build_and_put(&self, job: &ChunkJob, places: &CutPlaces) -> Result<ChunkRef> {
        // Of all volumes together no more than the budget that was printed at start.
        let needed = BlockSource::bytes_needed(job).min(self.packing_bytes);
        let closed = |_| Error::new(ErrorKind::Transient, "packing has ended");
        let _room = self.packing.acquire_permit(needed).await.map_err(closed)?;
        let (body, reference) = self.blocks.build(job, places).await?;
        if !job.is_copied() {
            // Compaction gives back more than it takes.
            let room = self.backend.room_for_data(body.len() as u64);
            within(deadline(0), "ask for room", room).await?;
        }
        pass(match job.is_copied() {
            true => "compact.put",
            false => "chunk.put",
        })?;
        self.put(&reference.key.object(), body).await?;
        Ok(reference)
    }

    /// Stores an index part.
    pub(super) async fn put_index(self: Rc<Self>, key: ObjectKey, body: Bytes) -> Event {
        Event::IndexPut(self.put(&key, body).await.map(|_| ()))
    }

    /// Tries to create a manifest, after that failpoint.
    pub(super) async fn put_manifest(
        self: Rc<Self>,
        key: ObjectKey,
        body: Bytes,
        failpoint_name: &'static str,
    ) -> Event {
        let result = match pass(failpoint_name) {
            Ok(()) => self.put(&key, body).await,
            Err(error) => Err(error),
        };
        Event::ManifestPut(result)
    }

    /// Reads the manifest that has our number.
    pub(super) async fn get_manifest(self: Rc<Self>, key: ObjectKey) -> Event {
        let started = Instant::now();
        let read = read_manifest_bytes(&*self.backend, &key);
        let result = within(deadline(0), "get a manifest", read).await;
        let bytes = result.as_ref().ok().map(|bytes| bytes.len() as u64);
        self.counters.done(BackendOp::Get, bytes, started.elapsed());
        Event::ManifestGot(result)
    }

    /// Makes the local head record durable, on a thread of its own: fsync blocks.
    pub(super) async fn save_head(self: Rc<Self>, head: LocalHead) -> Event {
        Event::HeadSaved(self.save(head).await)
    }

    pub(super) async fn save(&self, head: LocalHead) -> Result<()> {
        self.change_records(move |heads| {
            pass("head.save")?;
            heads.save(&head)
        })
        .await
    }

    /// Changes local head records, unless the uploader has stopped.
    pub(super) async fn change_records(
        &self,
        change: impl FnOnce(&LocalHeads) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        if self.stopped.get() {
            let text = "the daemon stops; the next start finds what is stored";
            return Err(Error::new(ErrorKind::Transient, text));
        }
        self.saves.set(self.saves.get() + 1);
        let heads = self.heads.clone();
        let changed = glommio::executor().spawn_blocking(move || change(&heads));
        let result = changed.await;
        self.saves.set(self.saves.get() - 1);
        result
    }

    /// Deletes condemned objects, in one request where the backend can; absent ones are fine.
    pub(super) async fn delete(self: Rc<Self>, objects: Vec<SealedRef>) -> Event {
        let keys: Vec<ObjectKey> = objects.iter().map(SealedRef::object).collect();
        let started = Instant::now();
        // Where it takes a request for each, they are made one after the other.
        let limit = deadline(0) + DELETE_EACH * keys.len() as u32;
        let result = match pass("object.delete") {
            Ok(()) => within(limit, "delete", self.backend.delete_many(&keys)).await,
            Err(error) => Err(error),
        };
        let bytes = result.is_ok().then_some(0);
        let took = started.elapsed();
        self.counters.done(BackendOp::Delete, bytes, took);
        Event::Deleted(result)
    }

    async fn put(&self, key: &ObjectKey, body: Bytes) -> Result<Put> {
        let started = Instant::now();
        let bytes = body.len() as u64;
        let put = self.backend.put_if_absent(key, body);
        let result = within(deadline(bytes), "put", put).await;
        self.counters.done(
            BackendOp::Put,
            result.is_ok().then_some(bytes),
            started.elapsed(),
        );
        result
    }
}

//! Carries out one effect of a volume's commit on the backend, the local head record or the log.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use taipan_engine::backend::{Backend, Put};
use taipan_engine::chunk::ChunkRef;
use taipan_engine::commit::Event;
use taipan_engine::error::{Error, Result};
use taipan_engine::failpoint;
use taipan_engine::object::{ObjectKey, SealedRef};
use taipan_engine::pack::ChunkJob;
use taipan_engine::registry::{LocalHead, LocalHeads};

use super::chunks::{BlockSource, CutPlaces};
use super::patience::{deadline, within};
use crate::metrics::{BackendCounters, BackendOp};

/// What effects are carried out on.
pub(super) struct Means {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) heads: LocalHeads,
    pub(super) blocks: BlockSource,
    pub(super) counters: Arc<BackendCounters>,
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
        let (body, reference) = self.blocks.build(job, places).await?;
        pass("chunk.put")?;
        self.put(&reference.key.object(), body).await?;
        Ok(reference)
    }

    /// Stores an index part.
    pub(super) async fn put_index(self: Rc<Self>, key: ObjectKey, body: Bytes) -> Event {
        Event::IndexPut(self.put(&key, body).await.map(|_| ()))
    }

    /// Tries to create a manifest.
    pub(super) async fn put_manifest(self: Rc<Self>, key: ObjectKey, body: Bytes) -> Event {
        let result = match pass("manifest.put") {
            Ok(()) => self.put(&key, body).await,
            Err(error) => Err(error),
        };
        Event::ManifestPut(result)
    }

    /// Reads the manifest that has our number.
    pub(super) async fn get_manifest(self: Rc<Self>, key: ObjectKey) -> Event {
        let started = Instant::now();
        let result = within(deadline(0), "get a manifest", self.backend.get(&key)).await;
        let bytes = result.as_ref().ok().map(|bytes| bytes.len() as u64);
        self.counters.done(BackendOp::Get, bytes, started.elapsed());
        Event::ManifestGot(result)
    }

    /// Makes the local head record durable, on a thread of its own: fsync blocks.
    pub(super) async fn save_head(self: Rc<Self>, head: LocalHead) -> Event {
        Event::HeadSaved(self.save(head).await)
    }

    pub(super) async fn save(&self, head: LocalHead) -> Result<()> {
        let heads = self.heads.clone();
        let save = move || {
            pass("head.save")?;
            heads.save(&head)
        };
        glommio::executor().spawn_blocking(save).await
    }

    /// Deletes condemned objects; absent ones are fine.
    pub(super) async fn delete(self: Rc<Self>, objects: Vec<SealedRef>) -> Event {
        for object in objects {
            let started = Instant::now();
            let key = object.object();
            let result = within(deadline(0), "delete", self.backend.delete(&key)).await;
            self.counters.done(
                BackendOp::Delete,
                result.is_ok().then_some(0),
                started.elapsed(),
            );
            if let Err(error) = result {
                return Event::Deleted(Err(error));
            }
        }
        Event::Deleted(Ok(()))
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

fn pass(failpoint_name: &'static str) -> Result<()> {
    failpoint::hit(failpoint_name).map_err(|e| Error::io("a failpoint refused the operation", e))
}

//! What a [`VolumeCommit`](super::VolumeCommit) asks of its driver, what it is told, and how it
//! fares.

use bytes::Bytes;

use crate::backend::Put;
use crate::chunk::ChunkRef;
use crate::error::{ErrorKind, Result};
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId};
use crate::index::VolumeChanges;
use crate::object::{IndexKey, ObjectKey, SealedRef};
use crate::pack::ChunkJob;

/// Something the driver has to do; each is answered by the [`Event`] named here, once.
#[derive(Debug)]
pub enum Effect {
    /// Build the chunk and `put_if_absent` it: [`Event::ChunkPut`].
    PutChunk(ChunkJob),
    /// `put_if_absent` an index part: [`Event::IndexPut`].
    PutIndex {
        /// Its name.
        key: IndexKey,
        /// Its bytes.
        body: Bytes,
    },
    /// `put_if_absent` a manifest: [`Event::ManifestPut`].
    PutManifest {
        /// Its name.
        key: ObjectKey,
        /// Its bytes.
        body: Bytes,
    },
    /// Read the manifest that is there under our number: [`Event::ManifestGot`].
    GetManifest {
        /// Its name.
        key: ObjectKey,
    },
    /// Save the local head record durably: [`Event::HeadSaved`].
    SaveHead(HeadUpdate),
    /// Give the shards their leaves, let them drop what they froze up to the epoch and release
    /// their logs: [`Event::Published`] when all 16 have.
    Publish(Publication),
    /// Delete objects that nothing names any more: [`Event::Deleted`].
    Delete {
        /// Them.
        objects: Vec<SealedRef>,
    },
    /// Another writer owns the volume: stop acknowledging it. Not answered; nothing follows.
    Fenced {
        /// The other writer's generation.
        by: Generation,
    },
}

impl Effect {
    /// Requests that it makes of the backend.
    pub fn requests(&self) -> u64 {
        match self {
            Self::PutChunk(_)
            | Self::PutIndex { .. }
            | Self::PutManifest { .. }
            | Self::GetManifest { .. }
            | Self::Delete { .. } => 1,
            Self::SaveHead(_) | Self::Publish(_) | Self::Fenced { .. } => 0,
        }
    }
}

/// What became of an [`Effect`].
#[derive(Debug)]
pub enum Event {
    /// A chunk is stored. An object that exists already under its random name is this chunk, from
    /// an attempt whose response was lost: report success.
    ChunkPut {
        /// [`ChunkJob::index`].
        index: usize,
        /// Its reference.
        result: Result<ChunkRef>,
    },
    /// An index part is stored; existing is success, as for chunks.
    IndexPut(Result<()>),
    /// What the conditional put of a manifest said.
    ManifestPut(Result<Put>),
    /// The manifest found under our number.
    ManifestGot(Result<Bytes>),
    /// The local head record is durable.
    HeadSaved(Result<()>),
    /// All shards have installed the publication.
    Published,
    /// The objects are gone.
    Deleted(Result<()>),
}

/// The new content of a volume's local head record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadUpdate {
    /// The volume.
    pub volume: VolumeId,
    /// Its head manifest.
    pub head: ManifestNum,
    /// Records of the volume stamped up to here are in the bucket.
    pub committed_epoch: Epoch,
}

/// A committed cut, for the shards.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The volume.
    pub volume: VolumeId,
    /// The cut.
    pub epoch: Epoch,
    /// Changed leaves by shard.
    pub leaves: VolumeChanges,
    /// The manifest that committed it.
    pub head: ManifestNum,
    /// Chunks that it added.
    pub chunks: usize,
    /// Bytes of these chunks.
    pub chunk_bytes: u64,
}

/// How a volume's commit fares, for metrics and `taipan status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitStatus {
    /// What it does now: `idle`, `chunks`, `index`, `manifest`, `head`, `publish` or `fenced`.
    pub phase: &'static str,
    /// The cut it works on.
    pub epoch: Option<Epoch>,
    /// Chunks of the cut.
    pub chunks: usize,
    /// Chunks of the cut that are stored.
    pub chunks_stored: usize,
    /// Failures in a row.
    pub failures: u32,
    /// The last failure in this row.
    pub last_failure: Option<(ErrorKind, String)>,
    /// When it tries again, in the driver's milliseconds.
    pub retry_at_ms: Option<u64>,
    /// Why objects that are no longer needed could not be deleted the last time; commits go on.
    pub delete_failure: Option<(ErrorKind, String)>,
    /// Generation of the writer that took the volume over.
    pub fenced_by: Option<Generation>,
}

//! The manifest: one numbered, immutable step in the life of a volume's image in the backend.
//!
//! Format and rules: `docs/internals/manifest.md`. A manifest is created only once under its
//! number, names its predecessor, and is written only when all chunks it adds are stored.

mod codec;

use serde::Serialize;

use crate::chunk::ChunkRef;
use crate::error::Result;
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId, WriterToken};
use crate::object::{IndexKey, ObjectKey, SealedRef};
use crate::point::Moment;
use crate::snapshot::{SnapshotChange, SnapshotId};
use crate::timestamp::UnixMs;
use crate::volume::{VolumeName, VolumeSettings};

pub use codec::{fuzz_manifest, stored_crc};

/// First bytes of every manifest.
pub const MAGIC: [u8; 8] = *b"TaipanMf";
/// Version of the format.
pub const VERSION: u16 = 1;
/// Bytes of the fixed header, before name and settings.
pub const HEADER_BYTES: usize = 96;
/// Most entries of each list of one manifest; a commit that needs more is several commits.
pub const LIST_MAX: usize = 1 << 18;
/// No manifest is larger.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// What a manifest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestKind {
    /// The first manifest of a volume.
    Created,
    /// A writer took the volume over: the generation is one above its predecessor's.
    Opened,
    /// A cut: chunks were added.
    Commit,
    /// Name or settings changed.
    Configured,
    /// The volume is deleted; nothing follows.
    Tombstone,
    /// Its checkpoint is the image of an earlier snapshot.
    RolledBack,
}

/// An index checkpoint: the base index after this manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointRef {
    /// The checkpoint's root object.
    pub key: IndexKey,
    /// Its length in bytes.
    pub bytes: u64,
    /// CRC32C of the whole object.
    pub crc32c: u32,
}

impl CheckpointRef {
    /// Bytes of a reference in a manifest.
    pub const ENCODED_BYTES: usize = IndexKey::ENCODED_BYTES + 16;
}

/// What a volume began as: the image of another one's snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The volume that was cloned.
    pub volume: VolumeId,
    /// Its snapshot, pinned for as long as this volume may name objects of the other.
    pub snapshot: SnapshotId,
    /// The manifest that took the snapshot.
    pub manifest: ManifestNum,
    /// The snapshot's cut.
    pub epoch: Epoch,
}

impl Origin {
    /// Bytes of an origin in a manifest.
    pub const ENCODED_BYTES: usize = 32;
}

/// One manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Its number, from 1.
    pub number: ManifestNum,
    /// What it does.
    pub kind: ManifestKind,
    /// [`Manifest::crc`] of its predecessor; 0 for the first.
    pub predecessor_crc: u32,
    /// Generation of its writer.
    pub generation: Generation,
    /// Token of its writer's generation.
    pub token: WriterToken,
    /// Greatest epoch whose records the image holds.
    pub epoch: Epoch,
    /// The volume.
    pub volume: VolumeId,
    /// Name of the volume.
    pub name: VolumeName,
    /// Settings of the volume from here on.
    pub settings: VolumeSettings,
    /// Chunks added by this manifest, in the order in which they apply.
    pub added: Vec<ChunkRef>,
    /// Objects that nothing may name any more, irrevocably.
    pub condemned: Vec<SealedRef>,
    /// Objects condemned earlier whose deletion is known to be done.
    pub dropped: Vec<SealedRef>,
    /// The index after this manifest, if it was checkpointed with it.
    pub checkpoint: Option<CheckpointRef>,
    /// What it does to the volume's snapshots, in this order. Absent from JSON if nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotChange>,
    /// Only in the first manifest of a clone, whose checkpoint is the image that it begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Exactly if points in time are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moment: Option<Moment>,
}

impl Manifest {
    /// The first manifest of a new volume, of generation 0: no writer has opened it yet.
    pub fn first(
        volume: VolumeId,
        name: VolumeName,
        settings: VolumeSettings,
        token: WriterToken,
    ) -> Self {
        let number = ManifestNum(1);
        let keeps_points = settings.pitr_window_seconds > 0;
        Self {
            number,
            kind: ManifestKind::Created,
            predecessor_crc: 0,
            generation: Generation(0),
            token,
            epoch: Epoch(0),
            volume,
            name,
            settings,
            added: Vec::new(),
            condemned: Vec::new(),
            dropped: Vec::new(),
            checkpoint: None,
            snapshots: Vec::new(),
            origin: None,
            moment: keeps_points.then(|| Moment::first(number, UnixMs(0))),
        }
    }

    /// The next manifest by the same writer, with empty lists; the caller fills in what changes.
    pub fn successor(&self, kind: ManifestKind) -> Self {
        Self {
            number: self.number.next(),
            kind,
            predecessor_crc: self.crc(),
            name: self.name.clone(),
            settings: self.settings.clone(),
            added: Vec::new(),
            condemned: Vec::new(),
            dropped: Vec::new(),
            checkpoint: None,
            snapshots: Vec::new(),
            origin: None,
            ..*self
        }
    }

    /// The manifest by which a new writer takes the volume over: generation + 1.
    pub fn opened_by(&self, token: WriterToken) -> Self {
        Self {
            generation: self.generation.next(),
            token,
            ..self.successor(ManifestKind::Opened)
        }
    }

    /// Where it is stored.
    pub fn object(&self) -> ObjectKey {
        ObjectKey::manifest(self.volume, self.number)
    }

    /// The CRC32C that ends its encoding; identifies its content towards its successor.
    pub fn crc(&self) -> u32 {
        stored_crc(&self.encode())
    }

    /// Whether the same writer made both (adopting a manifest whose response was lost).
    pub fn same_writer(&self, other: &Self) -> bool {
        (self.volume, self.generation, self.token) == (other.volume, other.generation, other.token)
    }

    /// Whether it adds the object, a chunk or the root of its checkpoint.
    pub fn adds(&self, object: &SealedRef) -> bool {
        match object {
            SealedRef::Chunk(key) => self.added.iter().any(|chunk| chunk.key == *key),
            SealedRef::Index(key) => self.checkpoint.is_some_and(|root| root.key == *key),
        }
    }

    /// From here on the volume has these settings; if it begins to keep points in time, at `now`.
    pub fn configure(&mut self, settings: VolumeSettings, now: UnixMs) {
        self.moment = match settings.pitr_window_seconds {
            0 => None,
            _ => {
                let first = Moment::first(self.number, now);
                self.moment.or(Some(first))
            }
        };
        self.settings = settings;
    }

    /// Checks that `self` may follow `predecessor`.
    pub fn check_follows(&self, predecessor: &Self) -> Result<()> {
        codec::check_follows(self, predecessor)
    }
}

#[cfg(test)]
mod tests;

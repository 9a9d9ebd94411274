//! JSON of clones: which there are, and how they become independent of their parents.

use serde::{Deserialize, Serialize};

use super::volume_path;
use crate::identity::VolumeId;
use crate::snapshot::SnapshotName;
use crate::volume::VolumeName;

/// Path of the clones of one volume: `GET` lists them.
pub fn clones_of_path(volume: &VolumeName) -> String {
    format!("{}/clones", volume_path(volume))
}

/// Path of the flatten of one volume: `POST` begins it, `GET` tells how it is getting on.
pub fn flatten_path(volume: &VolumeName) -> String {
    format!("{}/flatten", volume_path(volume))
}

/// A clone of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneInfo {
    /// The snapshot that it began with.
    pub snapshot: SnapshotName,
    /// Its name.
    pub name: VolumeName,
    /// Its identity.
    pub id: VolumeId,
}

/// Answer of `GET /v1/volumes/{name}/clones`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneList {
    /// All clones that need a snapshot of the volume, by snapshot, oldest first.
    pub clones: Vec<CloneInfo>,
}

/// What a flatten is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlattenState {
    /// None was asked for since the daemon started.
    #[default]
    None,
    /// Chunks of other volumes are copied.
    Copying,
    /// The volume is its own, but what it keeps is not: see what it waits for.
    Waiting,
    /// The volume and all that it keeps need nothing of other volumes; the parent's snapshot may
    /// be deleted.
    Done,
}

/// How a volume becomes independent of the one that it was cloned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlattenStatus {
    /// The volume.
    pub volume: VolumeName,
    /// What is being done.
    pub state: FlattenState,
    /// Bytes of blocks that the volume has of other volumes.
    pub foreign_bytes: u64,
    /// The same when it began, or when the daemon started.
    pub total_bytes: u64,
    /// Chunks of other volumes that it has.
    pub foreign_chunks: u64,
    /// What has to go before the parent's snapshot is let go of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
    /// Why the last attempt failed; it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

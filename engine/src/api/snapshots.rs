//! JSON of snapshots.

use serde::{Deserialize, Serialize};

use super::volume_path;
use crate::snapshot::{ImageName, Snapshot, SnapshotId, SnapshotName, SnapshotWish};
use crate::volume::VolumeName;

/// Path of the snapshots of one volume: `GET` lists them, `POST` takes one.
pub fn snapshots_path(volume: &VolumeName) -> String {
    format!("{}/snapshots", volume_path(volume))
}

/// Path of one snapshot; both names are percent-encoded.
pub fn snapshot_path(volume: &VolumeName, snapshot: &SnapshotName) -> String {
    format!("{}/{}", snapshots_path(volume), snapshot.encoded())
}

/// Path under which clones of a snapshot, or of a point in time, are made.
pub fn clones_path(volume: &VolumeName, of: &ImageName) -> String {
    format!("{}/{}/clones", snapshots_path(volume), of.encoded())
}

/// Body of `POST /v1/volumes/{name}/snapshots/{snapshot}/clones`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// Name of the new volume.
    pub name: VolumeName,
}

/// Path of the rollback action of one volume.
pub fn rollback_path(volume: &VolumeName) -> String {
    format!("{}/rollback", volume_path(volume))
}

/// Body of `POST /v1/volumes/{name}/rollback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// The image whose content the volume takes: a snapshot's name, or a point in time as in `@12`
    /// or `@2026-11-21T20:00:00Z`.
    pub snapshot: ImageName,
}

/// What the answer to a taken snapshot waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotWait {
    /// It is in the backend, and survives everything.
    #[default]
    Committed,
    /// Its content is fixed. It is gone if the daemon ends before it is committed.
    Taken,
}

/// Body of `POST /v1/volumes/{name}/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    /// Name of the new snapshot.
    pub name: SnapshotName,
    /// What the answer waits for.
    #[serde(default)]
    pub wait: SnapshotWait,
}

/// Path under which snapshots of several volumes are taken by one cut.
pub const SNAPSHOT_GROUPS_PATH: &str = "/v1/snapshot-groups";

/// Body of `POST /v1/snapshot-groups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshotGroup {
    /// The volumes, from 2 to 64.
    pub volumes: Vec<VolumeName>,
    /// Name of the new snapshot of each.
    pub name: SnapshotName,
    /// What the answer waits for.
    #[serde(default)]
    pub wait: SnapshotWait,
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Its cut is not made yet.
    #[default]
    Asked,
    /// Its content is fixed; it is gone if the daemon ends now.
    Taken,
    /// It is in the backend.
    Committed,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its volume.
    pub volume: VolumeName,
    /// Its name.
    pub name: SnapshotName,
    /// Its identity.
    pub id: SnapshotId,
    /// How far it is.
    pub state: SnapshotState,
    /// When it was asked for: milliseconds since 1970.
    pub asked_at_ms: u64,
    /// The manifest whose image it is; absent before it is committed, as the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<u64>,
    /// Generation of its writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Epoch of its cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The volumes of which snapshots were taken by the same cut, itself included, by name, once
    /// all of them are committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<String>,
}

impl SnapshotInfo {
    /// What is told of a committed one.
    pub fn committed(volume: &VolumeName, snapshot: &Snapshot) -> Self {
        Self {
            volume: volume.clone(),
            name: snapshot.name.clone(),
            id: snapshot.id,
            state: SnapshotState::Committed,
            asked_at_ms: snapshot.taken_ms,
            manifest: Some(snapshot.manifest.0),
            generation: Some(snapshot.generation.0),
            epoch: Some(snapshot.epoch.0),
            group: Vec::new(),
        }
    }

    /// What is told of one that no manifest holds yet.
    pub fn pending(volume: &VolumeName, wish: &SnapshotWish, is_taken: bool) -> Self {
        Self {
            volume: volume.clone(),
            name: wish.name.clone(),
            id: wish.id,
            state: match is_taken {
                true => SnapshotState::Taken,
                false => SnapshotState::Asked,
            },
            asked_at_ms: wish.taken_ms,
            manifest: None,
            generation: None,
            epoch: None,
            group: Vec::new(),
        }
    }
}

/// Answer of `GET /v1/volumes/{name}/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// All snapshots, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

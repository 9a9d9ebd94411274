//! JSON of freed space: what deleted volumes and orphans gave back.

use serde::{Deserialize, Serialize};

use super::volume_path;
use crate::volume::VolumeName;

/// Path of the orphan sweep of one volume.
pub fn sweep_path(volume: &VolumeName) -> String {
    format!("{}/sweep", volume_path(volume))
}

/// Body of `POST /v1/volumes/{name}/sweep`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepVolume {
    /// Only tell what would be deleted.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a sweep has found: objects that nothing names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The volume.
    pub volume: VolumeName,
    /// Nothing was deleted.
    pub dry_run: bool,
    /// Chunks and index parts that are stored.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Those of them that nothing names.
    pub orphans: u64,
    /// Bytes of them.
    pub orphan_bytes: u64,
    /// Names of orphans, the first [`SweepReport::NAMES_MAX`].
    pub names: Vec<String>,
    /// Objects with names that are not Taipan's, which are left alone.
    pub strange: u64,
}

impl SweepReport {
    /// Names of orphans that are told.
    pub const NAMES_MAX: usize = 20;
}

/// Space that came back since the start, beside what commits deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// Deleted volumes whose objects are still to be deleted.
    pub volumes_to_free: u64,
    /// Objects of deleted volumes that were deleted.
    pub freed_objects: u64,
    /// Bytes of them.
    pub freed_bytes: u64,
    /// Volumes whose orphans were swept.
    pub sweeps: u64,
    /// Orphans deleted.
    pub swept_objects: u64,
    /// Bytes of them.
    pub swept_bytes: u64,
}

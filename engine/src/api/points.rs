//! JSON of points in time.

use serde::{Deserialize, Serialize};

use super::volume_path;
use crate::point::Point;
use crate::volume::VolumeName;

/// Path of the points in time of one volume.
pub fn history_path(volume: &VolumeName) -> String {
    format!("{}/history", volume_path(volume))
}

/// Answer of `GET /v1/volumes/{name}/history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeHistory {
    /// The volume.
    pub volume: VolumeName,
    /// For how long points are kept; 0: not at all.
    pub window_seconds: u64,
    /// All that are kept, oldest first.
    pub points: Vec<Point>,
}

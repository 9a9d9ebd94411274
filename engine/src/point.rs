//! Points in time: the committed cuts of a volume's last `pitr_window`, whose images are kept.
//!
//! Which they are follows from the chain of manifests alone. Format and rules:
//! `docs/internals/points.md`.

mod codec;
mod name;
mod table;

use serde::{Deserialize, Serialize};

use crate::identity::{Epoch, ManifestNum};
use crate::timestamp::UnixMs;

pub use name::PointName;
pub use table::PointTable;

/// Most points of one volume that are listed.
pub const POINTS_MAX: usize = 1 << 15;

/// When a manifest was made, and since when points are kept; in every manifest of a volume with a
/// `pitr_window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// What its writer's clock said. Shown to people and asked for by them; nothing is kept or
    /// given up by it. 0 if it is not known.
    #[serde(rename = "committed_at_ms")]
    pub committed: UnixMs,
    /// Milliseconds that have passed since points are kept, as far as writers were sure of it.
    pub age_ms: u64,
    /// The oldest manifest whose image is kept.
    pub since: ManifestNum,
}

impl Moment {
    /// That of a manifest with which points begin to be kept.
    pub fn first(number: ManifestNum, committed: UnixMs) -> Self {
        Self {
            committed,
            age_ms: 0,
            since: number,
        }
    }
}

/// A committed cut that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The manifest whose image it is.
    pub manifest: ManifestNum,
    /// Its epoch.
    pub epoch: Epoch,
    /// When it was committed, by its writer's clock; 0 if that is not known.
    #[serde(rename = "committed_at_ms")]
    pub committed: UnixMs,
    /// Its [`Moment::age_ms`].
    pub age_ms: u64,
    /// Bytes of the chunks that its commit added.
    pub added_bytes: u64,
}

#[cfg(test)]
mod tests;

//! Snapshots: named, retained manifests of a volume, and which objects they keep.
//!
//! The chain of manifests itself says which snapshots there are, so that a snapshot exists exactly
//! if its cut is committed. Format and rules: `docs/internals/snapshots.md`.

mod codec;
mod group;
mod image;
mod keepers;
mod name;
mod qualified;
mod table;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::{Epoch, Generation, ManifestNum};

pub use codec::SnapshotChange;
pub use group::{GROUP_VOLUMES_MAX, Group};
pub use image::{ImageName, KeptImage};
pub use keepers::Keepers;
pub use name::SnapshotName;
pub use qualified::{QualifiedImage, QualifiedName};
pub use table::SnapshotTable;
pub(crate) use table::last_sequence;

/// Most snapshots of one volume at a time.
pub const SNAPSHOTS_MAX: usize = 1024;

/// Random, never reused identity of one snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(pub u64);

impl SnapshotId {
    /// Parses 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        crate::identity::VolumeId::parse(text).map(|id| Self(id.0))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({self})")
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a snapshot id is 16 hexadecimal digits")
    }
}

/// A snapshot that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotWish {
    /// Its identity.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// When it was asked for: milliseconds since 1970. Shown to people; nothing goes by it.
    pub taken_ms: u64,
    /// The snapshots of other volumes that are taken by the same cut.
    pub group: Option<Group>,
}

/// A committed snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its identity.
    pub id: SnapshotId,
    /// Its name, unique within the volume.
    pub name: SnapshotName,
    /// The manifest whose image it is.
    pub manifest: ManifestNum,
    /// Generation of that manifest's writer.
    pub generation: Generation,
    /// That writer has named objects up to this sequence; the image needs none with a greater one
    /// of this generation, and none of a later generation.
    pub sequence: u64,
    /// The cut.
    pub epoch: Epoch,
    /// When it was asked for: milliseconds since 1970.
    pub taken_ms: u64,
    /// The group that it is of, whether or not all of that is committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

#[cfg(test)]
mod tests;

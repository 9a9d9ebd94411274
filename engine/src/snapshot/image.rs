//! Images of a volume that are kept: its snapshots and its points in time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Snapshot, SnapshotName};
use crate::error::{Error, Result};
use crate::identity::{Epoch, ManifestNum};
use crate::point::{Point, PointName};
use crate::volume::encoded;

/// What an image is called within its volume: `daily`, `@12`, `@2026-11-21T20:00:00Z`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ImageName {
    /// A snapshot.
    Snapshot(SnapshotName),
    /// A point in time.
    Point(PointName),
}

impl ImageName {
    /// The name as one path component, percent-encoded.
    pub fn encoded(&self) -> String {
        encoded(&self.to_string())
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(name) => name.fmt(f),
            Self::Point(name) => name.fmt(f),
        }
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.starts_with('@') {
            true => text.parse().map(Self::Point),
            false => SnapshotName::parse(text).map(Self::Snapshot),
        }
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// An image that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptImage {
    /// A committed snapshot's.
    Snapshot(Snapshot),
    /// A point's.
    Point(Point),
}

impl KeptImage {
    /// The manifest whose image it is.
    pub fn manifest(&self) -> ManifestNum {
        match self {
            Self::Snapshot(snapshot) => snapshot.manifest,
            Self::Point(point) => point.manifest,
        }
    }

    /// The cut.
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Snapshot(snapshot) => snapshot.epoch,
            Self::Point(point) => point.epoch,
        }
    }
}

/// What people read of it.
impl fmt::Display for KeptImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(snapshot) => write!(f, "snapshot {:?}", snapshot.name.as_str()),
            Self::Point(point) => write!(f, "point @{} of {}", point.manifest, point.committed),
        }
    }
}

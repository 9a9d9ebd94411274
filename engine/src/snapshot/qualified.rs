//! A snapshot, or another image that is kept, named with its volume.

use std::fmt;
use std::str::FromStr;

use super::{ImageName, SnapshotName};
use crate::error::{Error, Result};
use crate::volume::VolumeName;

/// A snapshot with its volume: `volume@snapshot`, which can be read in one way only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedName {
    /// The volume.
    pub volume: VolumeName,
    /// Its snapshot.
    pub snapshot: SnapshotName,
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

impl FromStr for QualifiedName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (volume, snapshot) = parted(text)?;
        Ok(Self {
            volume: VolumeName::parse(volume)?,
            snapshot: SnapshotName::parse(snapshot)?,
        })
    }
}

fn parted(text: &str) -> Result<(&str, &str)> {
    text.split_once('@')
        .ok_or_else(|| Error::invalid("write VOLUME@SNAPSHOT, such as vol0@daily"))
}

/// An image with its volume: `volume@snapshot`, `volume@@12`, `volume@@2026-11-21T20:00:00Z`, which
/// can be read in one way only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedImage {
    /// The volume.
    pub volume: VolumeName,
    /// Its image.
    pub image: ImageName,
}

impl fmt::Display for QualifiedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.image)
    }
}

impl FromStr for QualifiedImage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (volume, image) = parted(text)?;
        Ok(Self {
            volume: VolumeName::parse(volume)?,
            image: image.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_with_its_volume() {
        let name = QualifiedName::from_str("tenant/v@daily").unwrap();
        assert_eq!(name.volume.as_str(), "tenant/v");
        assert_eq!(name.snapshot.as_str(), "daily");
        for (bad, why) in [
            ("v", "VOLUME@SNAPSHOT"),
            ("v@", "empty"),
            ("@s", "empty"),
            ("v@a@b", "'@'"),
            ("v@a/b", "'/'"),
        ] {
            let error = QualifiedName::from_str(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_point_is_named_with_two_signs() {
        for text in ["t/v@daily", "v@@12", "v@@2026-11-21T20:00:00.500Z"] {
            let image = QualifiedImage::from_str(text).unwrap();
            assert_eq!(image.to_string(), text);
        }
        for (bad, why) in [
            ("v@@", "is no time"),
            ("v@@0", "no manifest 0"),
            ("v@@99999999999999999999", "no manifest"),
            ("v@@@1", "is no time"),
            ("v@a@1", "'@'"),
            ("v@@yesterday", "is no time"),
        ] {
            let error = QualifiedImage::from_str(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}

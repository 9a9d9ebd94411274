//! A snapshot named with its volume.

use std::fmt;
use std::str::FromStr;

use super::SnapshotName;
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
        let (volume, snapshot) = text
            .split_once('@')
            .ok_or_else(|| Error::invalid("write VOLUME@SNAPSHOT, such as vol0@daily"))?;
        Ok(Self {
            volume: VolumeName::parse(volume)?,
            snapshot: SnapshotName::parse(snapshot)?,
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
}

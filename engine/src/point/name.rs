//! How a point is named: by the number of its manifest, or by a time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::identity::ManifestNum;
use crate::timestamp::UnixMs;

/// Which point is meant: `@12` or `@2026-11-21T20:00:00Z`. The `@` sets it apart from the names of
/// snapshots, which have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PointName {
    /// The one of that manifest.
    Manifest(ManifestNum),
    /// The last one at or before that time.
    Time(UnixMs),
}

impl fmt::Display for PointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest(number) => write!(f, "@{number}"),
            Self::Time(time) => write!(f, "@{time}"),
        }
    }
}

impl FromStr for PointName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = text.strip_prefix('@').ok_or_else(|| {
            Error::invalid("write a point in time as in @12 or @2026-11-21T20:00:00Z")
        })?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_digit()) {
            return name.parse().map(Self::Time);
        }
        match name.parse() {
            Ok(number) if number > 0 => Ok(Self::Manifest(ManifestNum(number))),
            _ => Err(Error::invalid(format!("there is no manifest {name:.24}"))),
        }
    }
}

impl From<PointName> for String {
    fn from(name: PointName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for PointName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

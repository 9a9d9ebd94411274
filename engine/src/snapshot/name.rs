//! What a snapshot is called.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::volume::{NAME_BYTES_MAX, encoded};

/// A valid snapshot name: UTF-8 of 1..=255 bytes without `/`, `@` and control characters, and
/// neither `.` nor `..`, so that `volume@snapshot` can be read in one way only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Checks `name`; the error says which rule it breaks.
    pub fn parse(name: &str) -> Result<Self> {
        let rules = [
            (!name.is_empty(), "it is empty"),
            (name.len() <= NAME_BYTES_MAX, "it is longer than 255 bytes"),
            (!name.contains('@'), "'@' separates it from its volume"),
            (!name.contains('/'), "'/' is for names of volumes only"),
            (
                !name.chars().any(char::is_control),
                "it has a control character",
            ),
            (!matches!(name, "." | ".."), "'.' and '..' are no names"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(Self(name.to_owned())),
            Some((_, why)) => {
                let start: String = name.chars().take(64).collect();
                let text = format!("snapshot name {start:?} is refused: {why}");
                Err(Error::invalid(text))
            }
        }
    }

    /// The name as one path component, percent-encoded.
    pub fn encoded(&self) -> String {
        encoded(&self.0)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

//! Numbers that must not be mixed up: volumes, epochs, log positions, batches, generations.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares a `u64` newtype with ordering, display and `next`.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize,
            Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// Global epoch with which owning shards stamp records; a cut is all records up to one epoch.
    Epoch
}
number! {
    /// Log sequence number of a record within its shard; never reused.
    Lsn
}
number! {
    /// Number of a WAL batch within its shard; consecutive.
    BatchNum
}
number! {
    /// Writer generation of a volume in its backend; grows by one at every opening for writing.
    Generation
}
number! {
    /// Number of a manifest of a volume; consecutive from 1.
    ManifestNum
}
number! {
    /// Incarnation of the WAL's writer: grows with every start of the daemon on a data directory.
    Incarnation
}

/// Random, never reused identity of one incarnation of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(pub u64);

impl VolumeId {
    /// Parses 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeId({self})")
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for VolumeId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a volume id is 16 hexadecimal digits")
    }
}

/// Random token of one writer generation: tells our own lost-response commit from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriterToken(pub u64);

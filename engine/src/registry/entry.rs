//! Create-only entries of the registry: JSON that holds a schema and the CRC32C of itself.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

const SCHEMA: u32 = 1;

/// What every entry begins with.
pub(super) struct Seal<'a> {
    pub(super) schema: &'a mut u32,
    /// Of the entry with this field zero.
    pub(super) crc32c: &'a mut u32,
}

/// An entry that is stored once.
pub(super) trait Entry: Serialize + DeserializeOwned + Clone + PartialEq {
    /// What it is, for errors.
    const WHAT: &'static str;

    /// Its seal.
    fn seal(&mut self) -> Seal<'_>;

    /// The entry, ready to be stored.
    fn sealed(mut self) -> Self {
        *self.seal().schema = SCHEMA;
        *self.seal().crc32c = 0;
        let crc = crc32c::crc32c(&self.to_bytes());
        *self.seal().crc32c = crc;
        self
    }

    /// The object's bytes.
    fn to_bytes(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("an entry is plain data"))
    }

    /// Undoes [`Entry::to_bytes`].
    fn of_bytes(bytes: &[u8]) -> Result<Self> {
        let what = Self::WHAT;
        let entry: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt(format!("{what} does not parse")).with_source(e))?;
        match entry == entry.clone().sealed() {
            true => Ok(entry),
            false => Err(Error::corrupt(format!("{what} fails its CRC or schema"))),
        }
    }
}

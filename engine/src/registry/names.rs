//! The log of each volume name: numbered, create-only entries, the last of which says whose it is.
//!
//! A name is freed by a further entry, never by removing one: a late delete of a paused process
//! could otherwise take away the name of a volume that was created meanwhile.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Seal};
use crate::backend::{Backend, Portion, Put, read_checked};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::VolumeId;
use crate::object::{NAMES_PREFIX, ObjectKey, number_of};
use crate::volume::VolumeName;

const PAGE: usize = 1000;
const PARALLEL_GETS: usize = 16;

/// One entry of the log of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameEntry {
    schema: u32,
    crc32c: u32,
    /// Its number, from 1.
    pub number: u64,
    /// The name.
    pub name: VolumeName,
    /// The volume of that name from here on; `None` frees the name.
    pub volume: Option<VolumeId>,
}

impl NameEntry {
    /// An entry ready to be stored.
    pub fn new(number: u64, name: VolumeName, volume: Option<VolumeId>) -> Self {
        let entry = Self {
            schema: 0,
            crc32c: 0,
            number,
            name,
            volume,
        };
        entry.sealed()
    }

    /// The object's bytes.
    pub fn encode(&self) -> Bytes {
        self.to_bytes()
    }

    /// Undoes [`NameEntry::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::of_bytes(bytes)
    }
}

impl Entry for NameEntry {
    const WHAT: &'static str = "an entry of a name";

    fn seal(&mut self) -> Seal<'_> {
        Seal {
            schema: &mut self.schema,
            crc32c: &mut self.crc32c,
        }
    }
}

/// A name and its volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedVolume {
    /// The name.
    pub name: VolumeName,
    /// Its volume.
    pub id: VolumeId,
}

/// All named volumes of a backend.
#[derive(Debug, Default)]
pub struct Listing {
    /// In the order of their encoded names.
    pub volumes: Vec<NamedVolume>,
    /// Entries that could not be read; they hide nothing but themselves.
    pub problems: Vec<Error>,
}

/// Lists all volumes by their names.
pub async fn list_volumes(backend: &dyn Backend) -> Result<Listing> {
    let mut latest: BTreeMap<String, u64> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = backend.list(NAMES_PREFIX, after.as_deref(), PAGE).await?;
        for object in &page {
            if let Some((log, number)) = split_entry(&object.key) {
                latest.insert(log.to_owned(), number);
            }
        }
        if page.len() < PAGE {
            break;
        }
        after = page.last().map(|object| object.key.clone());
    }
    let mut entries = stream::iter(latest)
        .map(|(encoded, number)| async move {
            let name = VolumeName::decode(&encoded)?;
            get(backend, &name, number).await
        })
        .buffered(PARALLEL_GETS);
    let mut listing = Listing::default();
    while let Some(entry) = entries.next().await {
        match entry {
            Ok(NameEntry {
                name,
                volume: Some(id),
                ..
            }) => listing.volumes.push(NamedVolume { name, id }),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => listing.problems.push(e),
            Err(e) if e.kind() == ErrorKind::Invalid => listing.problems.push(e),
            Err(e) => return Err(e),
        }
    }
    Ok(listing)
}

/// The volume of a name, if it has one.
pub async fn resolve_name(backend: &dyn Backend, name: &VolumeName) -> Result<Option<VolumeId>> {
    Ok(latest(backend, name).await?.and_then(|entry| entry.volume))
}

/// The last entry of a name. The list gives a start; reading on from there makes a stale list
/// harmless.
pub(super) async fn latest(backend: &dyn Backend, name: &VolumeName) -> Result<Option<NameEntry>> {
    let prefix = ObjectKey::name_prefix(name);
    let mut number = 0;
    let mut after: Option<String> = None;
    loop {
        let page = backend.list(&prefix, after.as_deref(), PAGE).await?;
        number = page
            .iter()
            .filter_map(|object| number_of(&object.key))
            .fold(number, u64::max);
        if page.len() < PAGE {
            break;
        }
        after = page.last().map(|object| object.key.clone());
    }
    let mut last = match number {
        0 => None,
        _ => Some(get(backend, name, number).await?),
    };
    loop {
        match get(backend, name, number + 1).await {
            Ok(entry) => last = Some(entry),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(last),
            Err(e) => return Err(e),
        }
        number += 1;
    }
}

/// Creates entry `number` of `name`, or returns the one that is there (which may be our own after a
/// lost response).
pub(super) async fn bind(
    backend: &dyn Backend,
    name: &VolumeName,
    number: u64,
    volume: Option<VolumeId>,
) -> Result<NameEntry> {
    let entry = NameEntry::new(number, name.clone(), volume);
    let key = ObjectKey::name_entry(name, number);
    match backend.put_if_absent(&key, entry.encode()).await {
        Ok(Put::Created) => Ok(entry),
        Ok(Put::Exists) => get(backend, name, number).await,
        // The response may be lost and the entry stored.
        Err(error) => get(backend, name, number).await.or(Err(error)),
    }
}

async fn get(backend: &dyn Backend, name: &VolumeName, number: u64) -> Result<NameEntry> {
    let key = ObjectKey::name_entry(name, number);
    let parse = |bytes: &Bytes| {
        let located = |e: Error| e.with_path(key.as_str());
        let entry = NameEntry::decode(bytes).map_err(located)?;
        match (entry.number, &entry.name) == (number, name) {
            true => Ok(entry),
            false => Err(located(Error::corrupt(
                "an entry of another name is stored",
            ))),
        }
    };
    read_checked(backend, &key, Portion::Whole, parse).await
}

/// `v1/names/<encoded>/<number>` as (encoded, number).
fn split_entry(key: &str) -> Option<(&str, u64)> {
    let (encoded, _) = key.strip_prefix(NAMES_PREFIX)?.split_once('/')?;
    Some((encoded, number_of(key)?))
}

//! The log of a snapshot's pins: numbered, create-only entries that say which clones need it, and
//! at last that it is closed. Whoever creates an entry first has won: a pin against a deletion.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Seal};
use crate::backend::{Backend, Portion, Put, read_checked};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::VolumeId;
use crate::mutation::{Mutation, is_in};
use crate::object::{ObjectKey, number_of};
use crate::snapshot::SnapshotId;

const PAGE: usize = 1000;
const PARALLEL_GETS: usize = 16;
/// Lost races after which an append gives up for now.
const RACES_MAX: usize = 64;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PinChange {
    /// This clone needs the snapshot from now on.
    Pinned(VolumeId),
    /// This clone does not need it any more.
    Released(VolumeId),
    /// It is being deleted: no pin can follow.
    Closed,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinEntry {
    schema: u32,
    crc32c: u32,
    /// Its number, from 1.
    pub number: u64,
    /// The volume of the snapshot.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What it says.
    pub change: PinChange,
}

impl PinEntry {
    /// An entry ready to be stored.
    pub fn new(number: u64, volume: VolumeId, snapshot: SnapshotId, change: PinChange) -> Self {
        let entry = Self {
            schema: 0,
            crc32c: 0,
            number,
            volume,
            snapshot,
            change,
        };
        entry.sealed()
    }

    /// The object's bytes.
    pub fn encode(&self) -> Bytes {
        self.to_bytes()
    }

    /// Undoes [`PinEntry::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::of_bytes(bytes)
    }
}

impl Entry for PinEntry {
    const WHAT: &'static str = "a pin of a snapshot";

    fn seal(&mut self) -> Seal<'_> {
        Seal {
            schema: &mut self.schema,
            crc32c: &mut self.crc32c,
        }
    }
}

/// What the log of a snapshot says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinLog {
    /// Clones that need the snapshot.
    pub pinned: BTreeSet<VolumeId>,
    /// It is being deleted, or is gone.
    pub is_closed: bool,
    entries: u64,
}

impl PinLog {
    /// Takes up the next entry; `Corrupt` behind the last one.
    fn follow(&mut self, change: PinChange) -> Result<()> {
        if self.is_closed {
            return Err(Error::corrupt("a closed log of pins goes on"));
        }
        match change {
            PinChange::Pinned(clone) => _ = self.pinned.insert(clone),
            PinChange::Released(clone) => _ = self.pinned.remove(&clone),
            PinChange::Closed => self.is_closed = true,
        }
        self.entries += 1;
        Ok(())
    }
}

/// Reads the whole log of a snapshot; one that nobody ever pinned has none.
pub async fn read_pins(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<PinLog> {
    let mut log = PinLog::default();
    let mut entries = stream::iter(1..)
        .map(|number| get(backend, volume, snapshot, number))
        .buffered(PARALLEL_GETS);
    loop {
        match entries.next().await.expect("numbers do not end") {
            Ok(entry) => log.follow(entry.change)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(log),
            Err(error) => return Err(error),
        }
    }
}

/// Enters that `clone` needs the snapshot from now on. `Busy` once the log is closed. To be
/// repeated after an error: a second entry of the same clone says nothing more.
pub async fn pin(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: SnapshotId,
    clone: VolumeId,
) -> Result<()> {
    // A log may be long, and only its last entry can close it.
    let (mut entries, mut last) = tail(backend, volume, snapshot).await?;
    for _ in 0..RACES_MAX {
        if last == Some(PinChange::Closed) {
            let text = "the snapshot is being deleted, no clone can be made of it";
            return Err(Error::new(ErrorKind::Busy, text).with_volume(volume));
        }
        entries += 1;
        let entry = PinEntry::new(entries, volume, snapshot, PinChange::Pinned(clone));
        if put(backend, entry).await? == Put::Created {
            return Ok(());
        }
        last = Some(get(backend, volume, snapshot, entries).await?.change);
    }
    Err(too_many_races(volume))
}

/// Enters that `clone` does not need the snapshot any more, if the log says that it does. To be
/// repeated after an error.
pub async fn release_pin(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: SnapshotId,
    clone: VolumeId,
) -> Result<()> {
    for _ in 0..RACES_MAX {
        let log = read_pins(backend, volume, snapshot).await?;
        if !log.pinned.contains(&clone) {
            return Ok(());
        }
        let change = PinChange::Released(clone);
        let entry = PinEntry::new(log.entries + 1, volume, snapshot, change);
        // If it exists it is another clone's, or our own after a lost response.
        if put(backend, entry).await? == Put::Created {
            return Ok(());
        }
    }
    Err(too_many_races(volume))
}

/// Closes the log, so that the snapshot can be deleted. `Busy` while clones pin it. To be repeated
/// after an error.
pub async fn close_pins(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<()> {
    for _ in 0..RACES_MAX {
        let log = read_pins(backend, volume, snapshot).await?;
        if log.is_closed {
            return Ok(());
        }
        if let Some(clone) = log.pinned.first() {
            let others = log.pinned.len() - 1;
            let text = format!("clone {clone} and {others} others need the snapshot");
            return Err(Error::new(ErrorKind::Busy, text).with_volume(volume));
        }
        let entry = PinEntry::new(log.entries + 1, volume, snapshot, PinChange::Closed);
        // If it exists it is a pin that came first, or our own after a lost response.
        if put(backend, entry).await? == Put::Created {
            return Ok(());
        }
    }
    Err(too_many_races(volume))
}

fn too_many_races(volume: VolumeId) -> Error {
    let text = format!("the snapshot was pinned {RACES_MAX} times meanwhile; try again");
    Error::new(ErrorKind::Transient, text).with_volume(volume)
}

async fn put(backend: &dyn Backend, entry: PinEntry) -> Result<Put> {
    let key = ObjectKey::pin_entry(entry.volume, entry.snapshot, entry.number);
    match backend.put_if_absent(&key, entry.encode()).await? {
        Put::Exists if is_in(Mutation::ExistsIsOurs) => Ok(Put::Created),
        put => Ok(put),
    }
}

/// How many entries there are at least, and what the last of them says. A list that is behind shows
/// fewer; whoever appends learns of the others.
async fn tail(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<(u64, Option<PinChange>)> {
    let prefix = ObjectKey::pin_prefix(volume, snapshot);
    let (mut number, mut after): (u64, Option<String>) = (0, None);
    loop {
        let page = backend.list(&prefix, after.as_deref(), PAGE).await?;
        let numbers = page.iter().filter_map(|object| number_of(&object.key));
        number = numbers.fold(number, u64::max);
        if page.len() < PAGE {
            break;
        }
        after = page.last().map(|object| object.key.clone());
    }
    match number {
        0 => Ok((0, None)),
        _ => Ok((
            number,
            Some(get(backend, volume, snapshot, number).await?.change),
        )),
    }
}

async fn get(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: SnapshotId,
    number: u64,
) -> Result<PinEntry> {
    let key = ObjectKey::pin_entry(volume, snapshot, number);
    let parse = |bytes: &Bytes| {
        let located = |e: Error| e.with_path(key.as_str());
        let entry = PinEntry::decode(bytes).map_err(located)?;
        match (entry.number, entry.volume, entry.snapshot) == (number, volume, snapshot) {
            true => Ok(entry),
            false => Err(located(Error::corrupt(
                "a pin of another snapshot is stored",
            ))),
        }
    };
    read_checked(backend, &key, Portion::Whole, parse).await
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::backend::{Fault, FaultRule, MemBackend, Operation};

    const VOLUME: VolumeId = VolumeId(0xAB);
    const SNAPSHOT: SnapshotId = SnapshotId(0xCD);

    fn enter(backend: &MemBackend, number: u64, change: PinChange) {
        let entry = PinEntry::new(number, VOLUME, SNAPSHOT, change);
        assert_eq!(block_on(put(backend, entry)).unwrap(), Put::Created);
    }

    fn pin_by(backend: &MemBackend, clone: u64) -> Result<()> {
        block_on(pin(backend, VOLUME, SNAPSHOT, VolumeId(clone)))
    }

    #[test]
    fn golden_bytes() {
        let entry = PinEntry::new(2, VOLUME, SNAPSHOT, PinChange::Pinned(VolumeId(7)));
        let text = concat!(
            r#"{"schema":1,"crc32c":687840863,"number":2,"volume":"00000000000000ab","#,
            r#""snapshot":"00000000000000cd","change":{"pinned":"0000000000000007"}}"#
        );
        assert_eq!(std::str::from_utf8(&entry.encode()).unwrap(), text);
        assert_eq!(PinEntry::decode(text.as_bytes()).unwrap(), entry);
        let key = ObjectKey::pin_entry(VOLUME, SNAPSHOT, 2);
        let place = "v1/00000000000000ab/snapshots/00000000000000cd/0000000000000002";
        assert_eq!(key.as_str(), place);
        for bad in [text.replace(":2,", ":3,"), text.replace("pinned", "pin")] {
            assert!(PinEntry::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_snapshot_is_closed_once_no_clone_needs_it() {
        let backend = MemBackend::new();
        let clone = VolumeId(7);
        pin_by(&backend, clone.0).unwrap();
        pin_by(&backend, clone.0).unwrap();
        let error = block_on(close_pins(&backend, VOLUME, SNAPSHOT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        block_on(release_pin(&backend, VOLUME, SNAPSHOT, clone)).unwrap();
        block_on(release_pin(&backend, VOLUME, SNAPSHOT, clone)).unwrap();
        let lost = Fault::FailAfter(ErrorKind::Transient);
        backend.script(FaultRule::once(Operation::PutIfAbsent, "snapshots/", lost));
        assert!(block_on(close_pins(&backend, VOLUME, SNAPSHOT)).is_err());
        // The response was lost, the entry is there.
        let log = block_on(read_pins(&backend, VOLUME, SNAPSHOT)).unwrap();
        assert!(log.is_closed && log.pinned.is_empty());
        block_on(close_pins(&backend, VOLUME, SNAPSHOT)).unwrap();
        assert_eq!(pin_by(&backend, 8).unwrap_err().kind(), ErrorKind::Busy);
        enter(&backend, 5, PinChange::Pinned(clone));
        let error = block_on(read_pins(&backend, VOLUME, SNAPSHOT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

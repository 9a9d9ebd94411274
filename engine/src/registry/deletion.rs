//! What follows a volume's tombstone: its pin and its name are let go, and what it stored is freed.
//!
//! A tombstone condemns every chunk and index part of its volume, for nothing can follow it. A mark
//! in the backend says that they are still to be freed; whoever finds it goes on. Manifests, pins
//! and entries of names stay for ever. Rules: `docs/internals/space.md`.

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::history::{read_head, read_history_at, read_manifest};
use super::sealed_list::SealedList;
use super::snapshots::close_to_clones;
use super::{clones, random_u64, release_name};
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::pass;
use crate::identity::{ManifestNum, VolumeId};
use crate::index::part::read_part;
use crate::manifest::{CheckpointRef, Manifest, ManifestKind};
use crate::mutation::{Mutation, is_in};
use crate::object::{DELETED_PREFIX, ObjectKey};
use crate::snapshot::SnapshotTable;

const PAGE: usize = 1000;
const PARALLEL_GETS: usize = 16;
/// A volume is looked through again as long as something was found, for late puts of its former
/// writers; so often at most.
const ROUNDS_MAX: u32 = 4;

/// Objects that were deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// How many.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// The deletion of what a deleted volume stored. Driven in steps, so that the caller sets the pace;
/// given up at any moment and begun anew by anybody, it ends all the same.
pub struct Freeing {
    volume: VolumeId,
    /// There before the look began: what their makers had stored is found by it.
    marks: Vec<ObjectKey>,
    list: SealedList,
    rounds: u32,
    /// Of this round.
    found: bool,
    freed: Freed,
    is_over: bool,
}

/// Lets go of everything that the volume of a tombstone has beside its objects, and marks these as
/// to be freed. To be repeated after an error.
pub async fn finish_deletion(backend: &dyn Backend, tombstone: &Manifest) -> Result<()> {
    let_go(backend, tombstone).await?;
    pass("delete.name")?;
    release_name(backend, &tombstone.name, tombstone.volume).await
}

/// As [`finish_deletion`], but for its name.
pub(super) async fn let_go(backend: &dyn Backend, tombstone: &Manifest) -> Result<()> {
    clones::release_origin(backend, tombstone).await?;
    mark_deleted(backend, tombstone).await
}

/// Notes in the backend that objects of a deleted volume may be there. To be repeated after an
/// error: all those who finish its deletion make the same mark.
async fn mark_deleted(backend: &dyn Backend, tombstone: &Manifest) -> Result<()> {
    put_mark(backend, tombstone, &ObjectKey::deleted(tombstone.volume)).await
}

/// As a writer that has stored something of a deleted volume, and will not again: makes a mark of
/// its own. A look that has missed what was stored removes only marks that were there before it.
pub async fn mark_again(backend: &dyn Backend, tombstone: &Manifest) -> Result<()> {
    let key = ObjectKey::deleted_again(tombstone.volume, random_u64()?);
    put_mark(backend, tombstone, &key).await
}

async fn put_mark(backend: &dyn Backend, tombstone: &Manifest, key: &ObjectKey) -> Result<()> {
    assert!(tombstone.kind == ManifestKind::Tombstone);
    pass("delete.mark")?;
    if is_in(Mutation::NoMark) {
        return Ok(());
    }
    // For people; what counts is the key.
    let body = Bytes::copy_from_slice(tombstone.name.as_str().as_bytes());
    backend.put_if_absent(key, body).await.map(|_| ())
}

/// The deleted volumes whose objects are not known to be freed.
pub async fn deleted_volumes(backend: &dyn Backend) -> Result<Vec<VolumeId>> {
    let mut volumes = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = backend.list(DELETED_PREFIX, after.as_deref(), PAGE).await?;
        volumes.extend(page.iter().filter_map(|object| marked(&object.key)));
        volumes.dedup();
        if page.len() < PAGE {
            return Ok(volumes);
        }
        after = page.last().map(|object| object.key.clone());
    }
}

/// The volume of which this is a mark.
fn marked(key: &str) -> Option<VolumeId> {
    let name = key.strip_prefix(DELETED_PREFIX)?;
    match name.split_once('-') {
        Some((volume, _)) => VolumeId::parse(volume),
        None => VolumeId::parse(name),
    }
}

/// The marks of a volume; if there are too many, some of them.
async fn marks_of(backend: &dyn Backend, volume: VolumeId) -> Result<Vec<ObjectKey>> {
    let first = ObjectKey::deleted(volume);
    let page = backend.list(first.as_str(), None, PAGE).await?;
    let of = page
        .iter()
        .filter(|object| marked(&object.key) == Some(volume));
    of.map(|object| ObjectKey::parse(&object.key)).collect()
}

impl Freeing {
    /// Proves that nothing needs an object of the volume: its head is a tombstone, and no clone can
    /// have any of the snapshots that it had until then. `Busy` if that is not so; nothing may be
    /// deleted then.
    pub async fn begin(backend: &dyn Backend, volume: VolumeId) -> Result<Self> {
        let head = read_head(backend, volume, None).await?;
        if head.kind != ManifestKind::Tombstone && !is_in(Mutation::FreesTheLiving) {
            let text = "the volume is not deleted, nothing of it may be freed";
            return Err(Error::new(ErrorKind::Busy, text).with_volume(volume));
        }
        for snapshot in snapshots_left(backend, &head).await?.iter() {
            close_to_clones(backend, volume, snapshot).await?;
        }
        Ok(Self {
            volume,
            marks: marks_of(backend, volume).await?,
            list: SealedList::of(volume),
            rounds: 1,
            found: false,
            freed: Freed::default(),
            is_over: false,
        })
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// What was freed so far.
    pub fn freed(&self) -> Freed {
        self.freed
    }

    /// Whether nothing is left, and the mark is gone.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Deletes up to `max` objects, in one request where the backend can; absent ones are fine. To
    /// be repeated after an error. Returns how many it deleted.
    pub async fn step(&mut self, backend: &dyn Backend, max: usize) -> Result<u64> {
        let Some(page) = self.list.page(backend, max).await? else {
            if std::mem::take(&mut self.found) && self.rounds < ROUNDS_MAX {
                self.rounds += 1;
                self.list = SealedList::of(self.volume);
                return Ok(0);
            }
            pass("delete.done")?;
            backend.delete_many(&self.marks).await?;
            self.is_over = true;
            return Ok(0);
        };
        let keys = page.objects.iter().map(|(object, _)| object.object());
        let keys: Vec<ObjectKey> = keys.collect();
        let count = keys.len() as u64;
        if count > 0 {
            pass("delete.free")?;
            backend.delete_many(&keys).await?;
            self.found = true;
            self.freed.objects += count;
            self.freed.bytes += page.objects.iter().map(|(_, bytes)| bytes).sum::<u64>();
        }
        self.list.pass(page);
        Ok(count)
    }
}

/// The snapshots that a volume had when it was deleted. Our tombstones follow only when there are
/// none.
async fn snapshots_left(backend: &dyn Backend, tombstone: &Manifest) -> Result<SnapshotTable> {
    if tombstone.number == ManifestNum(1) {
        return Ok(SnapshotTable::default());
    }
    let chain = read_history_at(backend, tombstone.volume, tombstone.number).await?;
    let (first, rest) = chain.manifests.split_first().expect("it has a head");
    let mut table = match &first.checkpoint {
        None => SnapshotTable::default(),
        Some(root) => match snapshots_of(backend, root).await {
            // A freeing before this one has deleted it. The manifests tell, too.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return snapshots_of_all(backend, tombstone).await;
            }
            table => table?,
        },
    };
    rest.iter().try_for_each(|next| table.follow(next))?;
    Ok(table)
}

async fn snapshots_of(backend: &dyn Backend, root: &CheckpointRef) -> Result<SnapshotTable> {
    let part = read_part(backend, root).await?;
    let root = part.root.ok_or_else(|| {
        let text = format!("index part {} is no root", root.key);
        Error::corrupt(text)
    })?;
    SnapshotTable::new(root.snapshots)
}

/// As all manifests of the volume tell it, for there are always all.
async fn snapshots_of_all(backend: &dyn Backend, tombstone: &Manifest) -> Result<SnapshotTable> {
    let volume = tombstone.volume;
    let mut manifests = stream::iter(1..=tombstone.number.0)
        .map(|number| read_manifest(backend, volume, ManifestNum(number)))
        .buffered(PARALLEL_GETS);
    let mut table = SnapshotTable::default();
    while let Some(manifest) = manifests.next().await {
        table.follow(&manifest?)?;
    }
    Ok(table)
}

//! Clones: volumes that begin as the image of another one's snapshot and share its chunks.
//!
//! Durable steps: the pin of the snapshot, index parts, the first manifest, the name. A pin whose
//! clone never came to be is released by whoever wants the snapshot deleted, after the clone was
//! made impossible. Rules: `docs/internals/snapshots.md`.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::history::{Appended, append, read_head, read_manifest};
use super::stored_index::IndexDraft;
use super::{
    Free, VolumeSeed, append_own, finish_deletion, free_entry, mark_again, name_taken, names, pins,
    read_snapshot, resolve_name,
};
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::pass;
use crate::identity::{Generation, ManifestNum, VolumeId};
use crate::index::IndexedImage;
use crate::index::part::RootPart;
use crate::index::rebuild::Rebuilt;
use crate::manifest::{Manifest, ManifestKind, Origin};
use crate::snapshot::{Snapshot, SnapshotId};
use crate::timestamp::UnixMs;
use crate::volume::{VolumeName, VolumeSettings};

/// Looks at a clone after which it is left as it is: others change it all the time.
const LOOKS_MAX: usize = 8;
/// Clones looked at at a time.
const PARALLEL_LOOKS: usize = 16;
/// The first manifest of every volume.
const FIRST: ManifestNum = ManifestNum(1);

/// How the index that a clone begins with is stored.
#[derive(Clone, Copy, Debug)]
pub struct CloneLayout {
    /// About how many bytes one index part takes.
    pub part_bytes: usize,
    /// An index above so many bytes is shared with the parent's as far as its last checkpoint
    /// goes, so that a clone costs what changed since. A smaller one is the clone's own.
    pub share_above_bytes: u64,
}

impl Default for CloneLayout {
    fn default() -> Self {
        Self {
            part_bytes: 8 << 20,
            share_above_bytes: 1 << 20,
        }
    }
}

/// A clone that pins a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneName {
    /// Its volume.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
}

/// A clone that was created.
pub struct NewClone {
    /// Its first manifest.
    pub first: Manifest,
    /// Its index as of that manifest, and the image that it was made of, as long as both are known:
    /// not of one that an earlier attempt created.
    pub index: Option<(Rebuilt, IndexedImage)>,
}

/// Creates the volume `name` as a clone of a snapshot of `parent`, whose index it reads. See
/// [`create_clone_from`].
pub async fn create_clone(
    backend: &dyn Backend,
    seed: VolumeSeed,
    name: &VolumeName,
    of: (VolumeId, &Snapshot),
    layout: CloneLayout,
) -> Result<Manifest> {
    let created = create_clone_from(backend, seed, name, of, layout, None).await?;
    Ok(created.first)
}

/// Creates the volume `name` as a clone of a snapshot of `parent`: with its settings and its image,
/// whose chunks stay the parent's. It exists once the name does. To be repeated with the same seed
/// after an error. `AlreadyExists` if the name is another volume's, `Busy` if the snapshot is being
/// deleted. `image`: that of the snapshot, if it is in memory; else it is read.
pub async fn create_clone_from(
    backend: &dyn Backend,
    seed: VolumeSeed,
    name: &VolumeName,
    (parent, snapshot): (VolumeId, &Snapshot),
    layout: CloneLayout,
    image: Option<IndexedImage>,
) -> Result<NewClone> {
    let entry = match free_entry(backend, name, seed.id).await? {
        Free::Bound => {
            let first = read_manifest(backend, seed.id, FIRST).await?;
            let is_it = |o: Origin| (o.volume, o.snapshot) == (parent, snapshot.id);
            return match first.origin.is_some_and(is_it) {
                true => {
                    let first = unless_given_up(backend, first, parent).await?;
                    Ok(NewClone { first, index: None })
                }
                false => Err(name_taken(name)),
            };
        }
        Free::At(number) => number,
    };
    pass("clone.pin")?;
    pins::pin(backend, parent, snapshot.id, seed.id).await?;
    let image = match image {
        Some(image) => image,
        None => read_image(backend, parent, snapshot).await?,
    };
    let of = (parent, snapshot, &image);
    let (mut first, index) = first_manifest(backend, seed, name, of, layout).await?;
    let mut index = Some(index);
    pass("clone.manifest")?;
    match append(backend, &first).await? {
        Appended::Ours(stored) if stored.origin == first.origin => {
            // An earlier attempt may have stored its own, which is as good.
            if *stored != first {
                index = None;
                first = *stored;
            }
        }
        Appended::Foreign(other) if other.kind == ManifestKind::Tombstone => {
            // Index parts of ours may have come after it was freed.
            mark_again(backend, &other).await?;
            return Err(given_up(parent));
        }
        _ => {
            let text = format!("volume id {} is in use; try again with another", seed.id);
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
    }
    pass("clone.name")?;
    match names::bind(backend, name, entry, Some(seed.id)).await? {
        bound if bound.volume == Some(seed.id) => {
            let first = unless_given_up(backend, first, parent).await?;
            let index = index.map(|index| (index, image));
            Ok(NewClone { first, index })
        }
        _ => {
            release_if_dead(backend, (parent, snapshot.id), seed.id).await?;
            Err(name_taken(name))
        }
    }
}

async fn read_image(
    backend: &dyn Backend,
    parent: VolumeId,
    snapshot: &Snapshot,
) -> Result<IndexedImage> {
    let (manifest, rebuilt) = read_snapshot(backend, parent, snapshot).await?;
    let Rebuilt { base, parts, .. } = rebuilt;
    Ok(IndexedImage {
        manifest,
        base,
        parts,
    })
}

/// The clone has its manifest and its name. Before it had both, somebody who wanted the snapshot
/// deleted may have made it impossible. If that comes later yet, opening the clone finds it.
async fn unless_given_up(
    backend: &dyn Backend,
    first: Manifest,
    parent: VolumeId,
) -> Result<Manifest> {
    match read_manifest(backend, first.volume, FIRST.next()).await {
        Ok(second) if second.kind == ManifestKind::Tombstone => {
            finish_deletion(backend, &second).await?;
            Err(given_up(parent))
        }
        Ok(_) => Ok(first),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(first),
        Err(error) => Err(error),
    }
}

fn given_up(parent: VolumeId) -> Error {
    let text = "the snapshot was to be deleted meanwhile, the clone was given up";
    Error::new(ErrorKind::Busy, text).with_volume(parent)
}

/// The manifest of a clone, with its index stored, and that index. The same arguments give the same
/// bytes.
async fn first_manifest(
    backend: &dyn Backend,
    seed: VolumeSeed,
    name: &VolumeName,
    (parent, snapshot, image): (VolumeId, &Snapshot, &IndexedImage),
    layout: CloneLayout,
) -> Result<(Manifest, Rebuilt)> {
    let mut base = image.base.clone();
    base.forget_idle();
    // How large an index is in memory is known without a look at its leaves.
    let kept = match base.heap_bytes() as u64 > layout.share_above_bytes {
        true => image.parts.clone(),
        false => Vec::new(),
    };
    let mut draft = IndexDraft {
        volume: seed.id,
        generation: Generation(0),
        after: 0,
        seed: [seed.id.0, seed.token.0],
        manifest: FIRST,
        root: RootPart {
            parts: kept,
            ..RootPart::default()
        },
        part_bytes: layout.part_bytes,
    };
    let settings = image.manifest.settings.clone();
    let mut first = Manifest::first(seed.id, name.clone(), settings, seed.token);
    if let Some(moment) = &mut first.moment {
        // As old as its content, and the same in every attempt.
        moment.committed = UnixMs(snapshot.taken_ms);
    }
    draft.root.points.follow(&first)?;
    let points = draft.root.points.clone();
    let parts = draft.store(backend, &base, "clone.index").await?;
    base.checkpoint_committed();
    let first = Manifest {
        checkpoint: parts.last().copied(),
        origin: Some(Origin {
            volume: parent,
            snapshot: snapshot.id,
            manifest: snapshot.manifest,
            epoch: snapshot.epoch,
        }),
        ..first
    };
    let index = Rebuilt {
        base,
        parts,
        points,
        ..Rebuilt::default()
    };
    Ok((first, index))
}

/// The clones that pin a snapshot. Those that never came to be, and those that were deleted, are
/// released first: the former are made impossible by a tombstone, so that no creation that was
/// paused can go on.
pub async fn release_dead_pins(
    backend: &dyn Backend,
    parent: VolumeId,
    snapshot: SnapshotId,
) -> Result<Vec<CloneName>> {
    let log = pins::read_pins(backend, parent, snapshot).await?;
    let looks = log.pinned.into_iter();
    let looks = looks.map(|id| release_if_dead(backend, (parent, snapshot), id));
    those_found(looks).await
}

/// Releases the pin of a clone unless it exists; then it is told.
async fn release_if_dead(
    backend: &dyn Backend,
    (parent, snapshot): (VolumeId, SnapshotId),
    id: VolumeId,
) -> Result<Option<CloneName>> {
    if let Some(name) = living_name(backend, id).await? {
        return Ok(Some(CloneName { id, name }));
    }
    pass("clone.release")?;
    pins::release_pin(backend, parent, snapshot, id).await?;
    Ok(None)
}

/// The clones that looking at each pin, several at once, finds.
async fn those_found<F>(looks: impl Iterator<Item = F>) -> Result<Vec<CloneName>>
where
    F: Future<Output = Result<Option<CloneName>>>,
{
    let looks = stream::iter(looks).buffered(PARALLEL_LOOKS);
    looks
        .try_filter_map(|clone| async move { Ok(clone) })
        .try_collect()
        .await
}

/// The clones that pin a snapshot and have a first manifest. Changes nothing.
pub async fn clones_of(
    backend: &dyn Backend,
    parent: VolumeId,
    snapshot: SnapshotId,
) -> Result<Vec<CloneName>> {
    let log = pins::read_pins(backend, parent, snapshot).await?;
    let looks = log.pinned.into_iter().map(|id| async move {
        match read_manifest(backend, id, FIRST).await {
            Ok(Manifest { name, .. }) => Ok(Some(CloneName { id, name })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    });
    those_found(looks).await
}

/// Releases the pin that a deleted volume has of its origin, if it has one.
pub(super) async fn release_origin(backend: &dyn Backend, deleted: &Manifest) -> Result<()> {
    assert!(deleted.kind == ManifestKind::Tombstone);
    if deleted.number == FIRST {
        return Ok(());
    }
    let first = read_manifest(backend, deleted.volume, FIRST).await?;
    let Some(origin) = first.origin else {
        return Ok(());
    };
    pass("clone.release")?;
    pins::release_pin(backend, origin.volume, origin.snapshot, deleted.volume).await
}

/// The name of a clone; `None` if it is deleted, or never was and from now on cannot be.
async fn living_name(backend: &dyn Backend, clone: VolumeId) -> Result<Option<VolumeName>> {
    for _ in 0..LOOKS_MAX {
        match read_head(backend, clone, None).await {
            Ok(head) if head.kind == ManifestKind::Tombstone => {
                mark_again(backend, &head).await?;
                return Ok(None);
            }
            Ok(head) => {
                let is_named = resolve_name(backend, &head.name).await? == Some(clone);
                if is_named || head.generation > Generation(0) {
                    return Ok(Some(head.name));
                }
                // Without a name nobody has opened it; whoever creates it meets the tombstone.
                let tombstone = head.successor(ManifestKind::Tombstone);
                match append_own(backend, &tombstone).await {
                    Err(e) if e.kind() != ErrorKind::Fenced => return Err(e),
                    _ => {}
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Somebody's if it exists: then it is looked at again.
                let tombstone = stillborn(clone)?;
                append(backend, &tombstone).await?;
            }
            Err(error) => return Err(error),
        }
    }
    let text = format!("clone {clone} changes all the time; try again");
    Err(Error::new(ErrorKind::Transient, text))
}

/// The first and last manifest of a volume that is not to be.
fn stillborn(id: VolumeId) -> Result<Manifest> {
    let name = VolumeName::parse("unfinished-clone").expect("a good name");
    let settings = VolumeSettings::with_size(1 << 20);
    let token = VolumeSeed::random()?.token;
    Ok(Manifest {
        kind: ManifestKind::Tombstone,
        ..Manifest::first(id, name, settings, token)
    })
}

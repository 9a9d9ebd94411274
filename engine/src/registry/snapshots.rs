//! Snapshots and points in time in the backend: reading one, deleting one.

use bytes::Bytes;

use super::history::read_history_at;
use super::images::{named, read_named};
use super::{append_own, pins, release_dead_pins};
use crate::backend::{Backend, Portion, read_checked};
use crate::block::{BlockNum, BlockSize};
use crate::chunk::{slot_stride, verify_slot};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{ManifestNum, VolumeId};
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::index::{ChunkLoc, VolumeBase};
use crate::manifest::{Manifest, ManifestKind};
use crate::snapshot::{ImageName, KeptImage, QualifiedImage, Snapshot, SnapshotChange};

/// Names that a refusal spells out.
const NAMES_TOLD: usize = 5;

/// The manifest and the index of a snapshot: all that is needed to read it. `Corrupt` if the bucket
/// holds another manifest there.
pub async fn read_snapshot(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: &Snapshot,
) -> Result<(Manifest, Rebuilt)> {
    // One that was a point is named by a later manifest, and is known by its cut.
    let cut = (snapshot.generation, snapshot.epoch);
    let is_there = |manifest: &Manifest| (manifest.generation, manifest.epoch) == cut;
    read_image(backend, volume, snapshot.manifest, is_there).await
}

/// The manifest and the index of an image that is kept. `Corrupt` if the bucket holds another
/// manifest there.
pub async fn read_kept(
    backend: &dyn Backend,
    volume: VolumeId,
    image: &KeptImage,
) -> Result<(Manifest, Rebuilt)> {
    match image {
        KeptImage::Snapshot(snapshot) => read_snapshot(backend, volume, snapshot).await,
        KeptImage::Point(point) => {
            let is_there = |manifest: &Manifest| manifest.epoch == point.epoch;
            read_image(backend, volume, point.manifest, is_there).await
        }
    }
}

async fn read_image(
    backend: &dyn Backend,
    volume: VolumeId,
    number: ManifestNum,
    is_there: impl Fn(&Manifest) -> bool,
) -> Result<(Manifest, Rebuilt)> {
    let mut history = read_history_at(backend, volume, number).await?;
    if !is_there(history.head()) {
        let text = format!("manifest {number} is not that of the image");
        return Err(Error::corrupt(text).with_volume(volume));
    }
    let rebuilt = rebuild(backend, &history.manifests).await?;
    let manifest = history.manifests.pop().expect("a history has a head");
    Ok((manifest, rebuilt))
}

/// The image of that name, and the id of its volume. `NotFound` if there is none.
pub async fn find_image(
    backend: &dyn Backend,
    name: &QualifiedImage,
) -> Result<(VolumeId, KeptImage)> {
    let (id, _, head) = read_named(backend, &name.volume).await?;
    let image = match &name.image {
        ImageName::Snapshot(name) => KeptImage::Snapshot(named(&head.snapshots, id, name)?),
        ImageName::Point(point) => KeptImage::Point(head.points.find(*point)?),
    };
    Ok((id, image))
}

/// Reads `count` blocks from `first` as an index says; what is not mapped is zeros. Every block is
/// checked against its CRC32C.
pub async fn read_blocks(
    backend: &dyn Backend,
    base: &VolumeBase,
    block_size: BlockSize,
    (first, count): (BlockNum, u64),
) -> Result<Vec<u8>> {
    let (bytes, stride) = (block_size.bytes(), slot_stride(block_size));
    let mut out = vec![0; count as usize * bytes];
    let block = |at: u64| BlockNum(first.0 + at);
    let mut at = 0;
    while at < count {
        let Some(place) = base.lookup(block(at)) else {
            at += 1;
            continue;
        };
        let next = |slots: u32| {
            let slot = place.slot + slots;
            (at + u64::from(slots) < count).then_some(ChunkLoc { slot, ..place })
        };
        let follows = |slots: &u32| {
            let next = next(*slots);
            next.is_some() && base.lookup(block(at + u64::from(*slots))) == next
        };
        let slots = 1 + (1..).take_while(follows).count() as u32;
        let chunk = base.chunk(place.chunk);
        let chunk = chunk.ok_or_else(|| Error::corrupt("a block of a chunk that is not known"))?;
        let range = chunk.reference.slot_range(block_size, place.slot, slots);
        let (key, len) = (chunk.reference.key.object(), range.end - range.start);
        let verify = |read: &Bytes| -> Result<Vec<Bytes>> {
            let slots = (at..).zip(read.chunks_exact(stride));
            let verified = slots.map(|(at, slot)| {
                let content = verify_slot(slot, block_size, block(at))?;
                Ok(read.slice_ref(content))
            });
            verified.collect()
        };
        let span = Portion::Range(range.start, len);
        for verified in read_checked(backend, &key, span, verify).await? {
            out[at as usize * bytes..][..bytes].copy_from_slice(&verified);
            at += 1;
        }
    }
    Ok(out)
}

/// Deletes a snapshot as the volume's writer: first no clone can pin it any more, then a manifest
/// says that it is gone. To be repeated after an error with the same arguments; no commit of the
/// volume may run meanwhile. `Busy` with their names while clones pin it. Returns the new head.
pub async fn delete_snapshot(
    backend: &dyn Backend,
    head: &Manifest,
    snapshot: &Snapshot,
) -> Result<Manifest> {
    close_to_clones(backend, head.volume, snapshot).await?;
    let mut next = head.successor(ManifestKind::Configured);
    next.snapshots = vec![SnapshotChange::Deleted(snapshot.clone())];
    append_own(backend, &next).await
}

/// Sees to it that no clone has the snapshot, and that none can be made of it any more: nothing of
/// another volume then needs an object for its sake. `Busy` with their names if there are some.
pub(super) async fn close_to_clones(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: &Snapshot,
) -> Result<()> {
    let clones = release_dead_pins(backend, volume, snapshot.id).await?;
    if !clones.is_empty() {
        let told: Vec<_> = clones
            .iter()
            .take(NAMES_TOLD)
            .map(|c| c.name.as_str())
            .collect();
        let (count, name) = (clones.len(), snapshot.name.as_str());
        let text = format!("snapshot {name:?} has clones, {count}: {told:?}");
        let text = format!("{text}; delete them first, or flatten them");
        return Err(Error::new(ErrorKind::Busy, text).with_volume(volume));
    }
    pins::close_pins(backend, volume, snapshot.id).await
}

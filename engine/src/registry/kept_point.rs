//! A point in time becomes a snapshot, so that it stays when it leaves the window: clones of points
//! are clones of such a snapshot.
//!
//! The image, and the rule by which objects are kept for it, are those of a snapshot taken then.
//! Rules: `docs/internals/points.md`.

use super::{append_own, read_kept};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::failpoint::pass;
use crate::index::IndexedImage;
use crate::index::rebuild::Rebuilt;
use crate::manifest::{Manifest, ManifestKind};
use crate::object::SealedRef;
use crate::point::Point;
use crate::snapshot::last_sequence;
use crate::snapshot::{KeptImage, Snapshot, SnapshotChange, SnapshotTable, SnapshotWish};

/// Makes the manifest that keeps a point of the volume of `head` as a snapshot; nothing is changed
/// until it is [put](put_kept_point). With the image. `table`: the snapshots as of `head`.
pub async fn prepare_kept_point(
    backend: &dyn Backend,
    head: &Manifest,
    table: &SnapshotTable,
    (point, wish): (&Point, SnapshotWish),
) -> Result<(Manifest, IndexedImage)> {
    let since = head.moment.map(|moment| moment.since);
    if since.is_none_or(|since| point.manifest < since) {
        let text = format!(
            "the volume does not keep point @{} any more",
            point.manifest
        );
        return Err(Error::invalid(text).with_volume(head.volume));
    }
    let image = KeptImage::Point(*point);
    let (manifest, rebuilt) = read_kept(backend, head.volume, &image).await?;
    let snapshot = Snapshot {
        id: wish.id,
        name: wish.name,
        manifest: manifest.number,
        generation: manifest.generation,
        sequence: sequence_then(&manifest, &rebuilt, table),
        epoch: manifest.epoch,
        taken_ms: wish.taken_ms,
        group: None,
    };
    let mut next = head.successor(ManifestKind::Configured);
    next.snapshots = vec![SnapshotChange::Kept(snapshot)];
    table.clone().follow(&next)?;
    let Rebuilt { base, parts, .. } = rebuilt;
    let image = IndexedImage {
        manifest,
        base,
        parts,
    };
    Ok((next, image))
}

/// Puts that manifest as the volume's writer. To be repeated after an error; no commit of the
/// volume may run meanwhile. Returns the new head.
pub async fn put_kept_point(backend: &dyn Backend, next: &Manifest) -> Result<Manifest> {
    pass("point.keep")?;
    append_own(backend, next).await
}

/// The greatest sequence of an object that the image may need, and at least that of the snapshots
/// before it: what had a greater one by then is needed by none of them.
fn sequence_then(manifest: &Manifest, rebuilt: &Rebuilt, table: &SnapshotTable) -> u64 {
    let chunks = rebuilt.base.chunks().map(|(_, entry)| entry.reference.key);
    let own = chunks.filter(|key| key.volume == manifest.volume);
    let parts = rebuilt.parts.iter().map(|part| part.key);
    let parts = parts.filter(|key| key.volume == manifest.volume);
    let named = own.map(SealedRef::Chunk).chain(parts.map(SealedRef::Index));
    let before = table
        .iter()
        .filter(|s| s.manifest <= manifest.number && s.generation == manifest.generation);
    let before = before.map(|s| s.sequence).max().unwrap_or(0);
    last_sequence(named, manifest.generation).max(before)
}

//! Images of a volume that can be read from the backend alone, and what differs between two.

use super::history::read_history;
use super::resolve_name;
use super::snapshots::read_snapshot;
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::VolumeId;
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::index::{Changed, ChangedRun, VolumeBase, changed_runs};
use crate::manifest::Manifest;
use crate::snapshot::{Snapshot, SnapshotName, SnapshotTable};
use crate::volume::VolumeName;

/// One image of a volume.
pub struct Image {
    /// Its manifest.
    pub manifest: Manifest,
    /// The snapshot; else it is the last committed cut.
    pub snapshot: Option<Snapshot>,
    /// Where its blocks are.
    pub base: VolumeBase,
}

/// A byte range of a volume that may differ in a later image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRange {
    /// First byte.
    pub offset: u64,
    /// Bytes, above zero.
    pub len: u64,
    /// What the later image has there.
    pub what: Changed,
}

/// The volume of that name with its last committed cut. `NotFound` if there is none.
pub(super) async fn read_named(
    backend: &dyn Backend,
    volume: &VolumeName,
) -> Result<(VolumeId, Manifest, Rebuilt)> {
    let id = resolve_name(backend, volume).await?.ok_or_else(|| {
        let text = format!("the backend has no volume {:?}", volume.as_str());
        Error::new(ErrorKind::NotFound, text)
    })?;
    let mut history = read_history(backend, id, None).await?;
    let head = rebuild(backend, &history.manifests).await?;
    let manifest = history.manifests.pop().expect("a history has a head");
    Ok((id, manifest, head))
}

/// The snapshot of that name. `NotFound` if there is none.
pub(super) fn named(
    snapshots: &SnapshotTable,
    volume: VolumeId,
    name: &SnapshotName,
) -> Result<Snapshot> {
    snapshots.by_name(name).cloned().ok_or_else(|| {
        let text = format!("the volume has no snapshot {:?}", name.as_str());
        Error::new(ErrorKind::NotFound, text).with_volume(volume)
    })
}

/// The image of snapshot `from` of a volume, and that of snapshot `to` or of its last committed
/// cut.
pub async fn read_images(
    backend: &dyn Backend,
    volume: &VolumeName,
    from: &SnapshotName,
    to: Option<&SnapshotName>,
) -> Result<(Image, Image)> {
    let (id, manifest, head) = read_named(backend, volume).await?;
    let from = read_image(backend, named(&head.snapshots, id, from)?, id).await?;
    let to = match to {
        Some(name) => read_image(backend, named(&head.snapshots, id, name)?, id).await?,
        None => Image {
            manifest,
            snapshot: None,
            base: head.base,
        },
    };
    Ok((from, to))
}

async fn read_image(backend: &dyn Backend, snapshot: Snapshot, id: VolumeId) -> Result<Image> {
    let (manifest, rebuilt) = read_snapshot(backend, id, &snapshot).await?;
    Ok(Image {
        manifest,
        snapshot: Some(snapshot),
        base: rebuilt.base,
    })
}

/// Calls `visit` with everything in `to` that may differ from `from`, ascending: what
/// [`changed_runs`] says, in bytes within `to`.
pub fn changed_ranges(from: &Image, to: &Image, visit: &mut impl FnMut(ChangedRange)) {
    let settings = &to.manifest.settings;
    let (size_bytes, shift) = (settings.size_bytes, settings.block_size().shift());
    changed_runs(&from.base, &to.base, &mut |run: ChangedRun| {
        let offset = run.start.0 << shift;
        let end = (run.start.0 + run.count) << shift;
        let len = end.min(size_bytes).saturating_sub(offset);
        if len > 0 {
            let what = run.what;
            visit(ChangedRange { offset, len, what });
        }
    });
}

//! Snapshots in the backend: reading one, deleting one.

use super::history::read_history_at;
use super::{append_own, pins};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::identity::VolumeId;
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::manifest::{Manifest, ManifestKind};
use crate::snapshot::{Snapshot, SnapshotChange};

/// The manifest and the index of a snapshot: all that is needed to read it. `Corrupt` if the bucket
/// holds another manifest there.
pub async fn read_snapshot(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshot: &Snapshot,
) -> Result<(Manifest, Rebuilt)> {
    let mut history = read_history_at(backend, volume, snapshot.manifest).await?;
    let taken = SnapshotChange::Taken(snapshot.clone());
    if !history.head().snapshots.contains(&taken) {
        let text = format!(
            "manifest {} did not take snapshot {:?}",
            snapshot.manifest,
            snapshot.name.as_str()
        );
        return Err(Error::corrupt(text).with_volume(volume));
    }
    let rebuilt = rebuild(backend, &history.manifests).await?;
    let manifest = history.manifests.pop().expect("a history has a head");
    Ok((manifest, rebuilt))
}

/// Deletes a snapshot as the volume's writer: first no clone can pin it any more, then a manifest
/// says that it is gone. To be repeated after an error with the same arguments; no commit of the
/// volume may run meanwhile. `Busy` while clones pin it. Returns the new head.
pub async fn delete_snapshot(
    backend: &dyn Backend,
    head: &Manifest,
    snapshot: &Snapshot,
) -> Result<Manifest> {
    pins::close_pins(backend, head.volume, snapshot.id).await?;
    let mut next = head.successor(ManifestKind::Configured);
    next.snapshots = vec![SnapshotChange::Deleted(snapshot.clone())];
    append_own(backend, &next).await
}

//! A clone that needs nothing of other volumes any more lets go of the snapshot that it began with.
//!
//! Rules: `docs/internals/snapshots.md`.

use super::history::read_manifest;
use super::{pins, read_snapshot};
use crate::backend::Backend;
use crate::error::Result;
use crate::failpoint::pass;
use crate::identity::{ManifestNum, VolumeId};
use crate::snapshot::Snapshot;

/// Which of these snapshots of a volume need something of other volumes: a chunk, or a part of
/// their index. What a snapshot needs never changes.
pub async fn snapshots_in_need(
    backend: &dyn Backend,
    volume: VolumeId,
    snapshots: &[Snapshot],
) -> Result<Vec<Snapshot>> {
    let mut in_need = Vec::new();
    for snapshot in snapshots {
        let (_, image) = read_snapshot(backend, volume, snapshot).await?;
        let parts = image.parts.iter().map(|part| part.key.volume);
        let chunks = image.base.chunks().map(|(_, e)| e.reference.key.volume);
        if parts.chain(chunks).any(|owner| owner != volume) {
            in_need.push(snapshot.clone());
        }
    }
    Ok(in_need)
}

/// Whether the volume began as a clone.
pub async fn is_clone(backend: &dyn Backend, volume: VolumeId) -> Result<bool> {
    let first = read_manifest(backend, volume, ManifestNum(1)).await?;
    Ok(first.origin.is_some())
}

/// Releases the pin of a volume at the snapshot that it was cloned from, if it is a clone. Only of
/// one of which no image that is kept, or will ever be, needs anything of other volumes: its writer
/// knows it of the present one, of all that follow from the chain, and of its snapshots and points.
/// To be repeated after an error.
pub async fn release_clone(backend: &dyn Backend, volume: VolumeId) -> Result<()> {
    let first = read_manifest(backend, volume, ManifestNum(1)).await?;
    let Some(origin) = first.origin else {
        return Ok(());
    };
    pass("flatten.release")?;
    pins::release_pin(backend, origin.volume, origin.snapshot, volume).await
}

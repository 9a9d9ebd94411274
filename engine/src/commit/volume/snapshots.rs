//! Snapshots in the commits of a volume: taken by the manifest of a cut, known to its garbage.

use super::{Phase, Staged, VolumeCommit};
use crate::error::{Error, ErrorKind, Result};
use crate::index::IndexedImage;
use crate::manifest::Manifest;
use crate::point::PointTable;
use crate::snapshot::{
    SNAPSHOTS_MAX, Snapshot, SnapshotChange, SnapshotName, SnapshotTable, last_sequence,
};

impl VolumeCommit {
    /// The committed snapshots.
    pub fn snapshots(&self) -> &SnapshotTable {
        &self.snapshots
    }

    /// The last committed image with its index; `None` while that is ahead of it.
    pub fn indexed_image(&self) -> Option<IndexedImage> {
        let is_ahead = matches!(self.phase, Phase::Index(..) | Phase::Manifest(..));
        (!is_ahead).then(|| IndexedImage {
            manifest: self.head.clone(),
            base: self.base.clone(),
            parts: self.parts.clone(),
        })
    }

    /// Whether a snapshot of that name can be taken while `pending` others are.
    pub fn may_take(&self, name: &SnapshotName, pending: usize) -> Result<()> {
        let refuse = |kind, text| Err(Error::new(kind, text).with_volume(self.volume()));
        if self.snapshots.by_name(name).is_some() {
            let text = format!("a snapshot named {:?} exists already", name.as_str());
            return refuse(ErrorKind::AlreadyExists, text);
        }
        if self.snapshots.len() + pending >= SNAPSHOTS_MAX {
            let text = format!("a volume has at most {SNAPSHOTS_MAX} snapshots; delete some first");
            return refuse(ErrorKind::Full, text);
        }
        Ok(())
    }

    /// Makes the draft manifest take the snapshots of its cut, once all objects of the commit are
    /// named. The snapshots as they are after it.
    pub(super) fn take_snapshots(&self, staged: &mut Staged) -> SnapshotTable {
        let manifest = &mut staged.manifest;
        for wish in std::mem::take(&mut staged.wishes) {
            manifest.snapshots.push(SnapshotChange::Taken(Snapshot {
                id: wish.id,
                name: wish.name,
                manifest: manifest.number,
                generation: manifest.generation,
                sequence: self.sequence,
                epoch: manifest.epoch,
                taken_ms: wish.taken_ms,
                group: wish.group,
            }));
        }
        let mut after = self.snapshots.clone();
        followed(after.follow(manifest));
        after
    }

    /// The points in time once the draft manifest is committed.
    pub(super) fn points_after(&self, manifest: &Manifest) -> PointTable {
        let mut after = self.points.clone();
        followed(after.follow(manifest));
        after
    }

    /// The manifest is stored.
    pub(super) fn note_images(&mut self, manifest: &Manifest) {
        followed(self.snapshots.follow(manifest));
        followed(self.points.follow(manifest));
    }

    /// The greatest sequence that this generation is known to have used: a writer that goes on
    /// under its old generation must not name objects before those of its snapshots.
    pub(super) fn sequence_used(&self) -> u64 {
        let generation = self.head.generation;
        let taken = self.snapshots.iter().filter(|s| s.generation == generation);
        let taken = taken.map(|s| s.sequence).max().unwrap_or(0);
        last_sequence(self.named(), generation).max(taken)
    }
}

/// What a writer itself decided follows; else its manifests could not be read again.
fn followed(result: Result<()>) {
    if let Err(error) = result {
        panic!("a manifest of our own does not follow: {error}");
    }
}

//! When a commit also checkpoints the index, and the parts of that checkpoint.

use bytes::Bytes;

use super::{Staged, VolumeCommit};
use crate::identity::ManifestNum;
use crate::index::part::{RootPart, part_ref};
use crate::index::{PartItems, VolumeBase};
use crate::manifest::CheckpointRef;
use crate::object::{IndexKey, SealedRef};
use crate::point::PointTable;
use crate::snapshot::{Keepers, Snapshot};

/// A checkpoint may take one byte for so many bytes packed since the last one.
const DATA_PER_INDEX: u64 = 8;
/// Parts beyond those of a full checkpoint after which one is written in full again.
const PARTS_EXTRA: usize = 64;
/// Bytes up to which old parts are never worth rewriting.
const SMALL_BYTES: u64 = 1 << 20;

/// A checkpoint being stored, part by part; the last part is its root.
pub(super) struct Checkpoint {
    keys: Vec<IndexKey>,
    items: Vec<PartItems>,
    /// Earlier parts that stay in force.
    kept: Vec<CheckpointRef>,
    /// Earlier parts that this checkpoint replaces.
    replaced: Vec<CheckpointRef>,
    condemned: Vec<SealedRef>,
    retained: Vec<(IndexKey, ManifestNum)>,
    snapshots: Vec<Snapshot>,
    points: PointTable,
    stored: Vec<CheckpointRef>,
    /// The part that is out or due, so that a retry puts the same bytes.
    current: Option<Bytes>,
}

impl VolumeCommit {
    /// Whether the commit being staged makes a checkpoint, and whether a full one.
    pub(super) fn checkpoint_due(&self) -> Option<bool> {
        if self.wants_full_checkpoint {
            return Some(true);
        }
        let since = &self.since_checkpoint;
        let too_many = since.chunks >= self.config.checkpoint_chunks || self.is_stale();
        let too_many = too_many || (self.is_sweeping && self.unsettled_slots() > 0);
        if since.commits < self.config.checkpoint_commits && !too_many {
            return None;
        }
        let dirty = self.base.dirty_bytes();
        if dirty > since.bytes / DATA_PER_INDEX && !too_many {
            return None;
        }
        if self.parts.is_empty() {
            return Some(true);
        }
        let full = self.base.full_bytes();
        let old: u64 = self.parts.iter().map(|part| part.bytes).sum();
        let many = full as usize / self.config.part_bytes + PARTS_EXTRA;
        Some(self.parts.len() >= many || old + dirty > 2 * full + SMALL_BYTES)
    }

    /// Names the parts, then takes the snapshots: their images need these parts.
    pub(super) fn begin_checkpoint(&mut self, full: bool, staged: &mut Staged) -> Checkpoint {
        let items = self.base.checkpoint_plan(full, self.config.part_bytes);
        let keys = items.iter().map(|_| self.index_key()).collect();
        let snapshots = self.take_snapshots(staged);
        let (kept, mut replaced) = match full {
            true => (Vec::new(), self.parts.clone()),
            false => (self.parts.clone(), Vec::new()),
        };
        let (number, volume) = (staged.manifest.number, self.volume());
        let keepers = Keepers::of(&self.snapshots, &staged.manifest);
        replaced.retain(|part| {
            let object = SealedRef::Index(part.key);
            // A clone's parent keeps its own parts, by the snapshot that the clone pins.
            part.key.volume == volume && !self.garbage.retain(&object, &keepers, number)
        });
        let mut condemned: Vec<_> = self.garbage.pending_after(&staged.manifest).collect();
        condemned.extend(replaced.iter().map(|part| SealedRef::Index(part.key)));
        Checkpoint {
            keys,
            items,
            kept,
            replaced,
            condemned,
            retained: self.garbage.retained_parts(),
            snapshots: snapshots.iter().cloned().collect(),
            points: self.points_after(&staged.manifest),
            stored: Vec::new(),
            current: None,
        }
    }
}

impl Checkpoint {
    /// The part to be stored now; a retry gets the same bytes.
    pub(super) fn body(&mut self, base: &VolumeBase, manifest: ManifestNum) -> (IndexKey, Bytes) {
        let at = self.stored.len();
        let key = self.keys[at];
        let body = self.current.get_or_insert_with(|| {
            let root = (at + 1 == self.items.len()).then(|| RootPart {
                parts: self.kept.iter().chain(&self.stored).copied().collect(),
                condemned: std::mem::take(&mut self.condemned),
                retained: std::mem::take(&mut self.retained),
                snapshots: std::mem::take(&mut self.snapshots),
                points: std::mem::take(&mut self.points),
            });
            base.checkpoint_part(key, manifest, &self.items[at], root)
                .encode()
        });
        (key, body.clone())
    }

    /// The current part is in the bucket.
    pub(super) fn stored(&mut self) {
        let body = self.current.take().expect("a part was out");
        let key = self.keys[self.stored.len()];
        self.stored.push(part_ref(key, &body));
    }

    pub(super) fn is_complete(&self) -> bool {
        self.stored.len() == self.items.len()
    }

    /// Objects that nothing names once the checkpoint is committed.
    pub(super) fn replaced(&self) -> impl Iterator<Item = SealedRef> {
        self.replaced.iter().map(|part| SealedRef::Index(part.key))
    }

    /// All parts in force, oldest first, the root last.
    pub(super) fn into_parts(self) -> Vec<CheckpointRef> {
        let mut parts = self.kept;
        parts.extend(self.stored);
        parts
    }
}

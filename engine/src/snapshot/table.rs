//! The snapshots of a volume as of one manifest, and which objects they keep.

use super::{SNAPSHOTS_MAX, Snapshot, SnapshotChange, SnapshotId, SnapshotName};
use crate::error::{Error, Result};
use crate::identity::{Generation, ManifestNum};
use crate::manifest::Manifest;
use crate::mutation::{Mutation, is_in};
use crate::object::SealedRef;

/// The snapshots of a volume, in the order of their manifests. Several may share one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotTable(Vec<Snapshot>);

impl SnapshotTable {
    /// A table as a checkpoint holds it; `Corrupt` if it cannot be one.
    pub fn new(snapshots: Vec<Snapshot>) -> Result<Self> {
        let mut table = Self::default();
        for snapshot in snapshots {
            table.enter(snapshot)?;
        }
        Ok(table)
    }

    /// All snapshots, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Snapshot> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The snapshot of that name.
    pub fn by_name(&self, name: &SnapshotName) -> Option<&Snapshot> {
        self.0.iter().find(|snapshot| snapshot.name == *name)
    }

    /// The snapshot of that identity.
    pub fn by_id(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.0.iter().find(|snapshot| snapshot.id == id)
    }

    /// Takes up what the next manifest says; `Corrupt` if that cannot follow. Nothing is changed
    /// then.
    pub fn follow(&mut self, manifest: &Manifest) -> Result<()> {
        if manifest.snapshots.is_empty() {
            return Ok(());
        }
        let mut next = self.clone();
        for change in &manifest.snapshots {
            match change {
                SnapshotChange::Taken(snapshot) => next.enter(snapshot.clone())?,
                SnapshotChange::Kept(snapshot) => next.insert(snapshot.clone())?,
                SnapshotChange::Deleted(snapshot) => next.remove(snapshot)?,
            }
        }
        *self = next;
        Ok(())
    }

    /// Whether a snapshot needs an object of the volume that the head does not need since the
    /// manifest `idle_since`.
    ///
    /// A snapshot may need what was named before it and became idle after it. Names ascend with the
    /// manifests, so the oldest snapshot that is not older than the object decides.
    pub fn needs(&self, object: &SealedRef, idle_since: ManifestNum) -> bool {
        if is_in(Mutation::SnapshotsKeepNothing) {
            return false;
        }
        let (generation, sequence) = match object {
            SealedRef::Chunk(key) => (key.generation, key.sequence),
            SealedRef::Index(key) => (key.generation, key.sequence),
        };
        let older = |s: &Snapshot| (s.generation, s.sequence) < (generation, sequence);
        let first = self.0.partition_point(older);
        self.0.get(first).is_some_and(|s| s.manifest < idle_since)
    }

    fn enter(&mut self, snapshot: Snapshot) -> Result<()> {
        self.enter_at(self.0.len(), snapshot)
    }

    /// Enters a snapshot behind those of its manifest.
    fn insert(&mut self, snapshot: Snapshot) -> Result<()> {
        let at = self.0.partition_point(|s| s.manifest <= snapshot.manifest);
        self.enter_at(at, snapshot)
    }

    fn enter_at(&mut self, at: usize, snapshot: Snapshot) -> Result<()> {
        let (before, after) = self.0.split_at(at);
        let neighbours = [before.last(), Some(&snapshot), after.first()];
        let neighbours: Vec<&Snapshot> = neighbours.into_iter().flatten().collect();
        let ascends = neighbours.is_sorted_by(|a, b| {
            let named = |s: &Snapshot| (s.generation, s.sequence);
            a.manifest <= b.manifest && named(a) <= named(b)
        });
        let name = &snapshot.name;
        let rules = [
            (ascends, "it is older than the one before it"),
            (self.by_name(name).is_none(), "its name is taken"),
            (self.by_id(snapshot.id).is_none(), "it is there already"),
            (self.0.len() < SNAPSHOTS_MAX, "there are too many"),
        ];
        if let Some((_, why)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(Error::corrupt(format!("snapshot {name:?}: {why}")));
        }
        self.0.insert(at, snapshot);
        Ok(())
    }

    fn remove(&mut self, snapshot: &Snapshot) -> Result<()> {
        let at = self.0.iter().position(|known| known == snapshot);
        let at = at.ok_or_else(|| {
            let name = &snapshot.name;
            Error::corrupt(format!(
                "snapshot {name:?} is deleted, but there is no such one"
            ))
        })?;
        self.0.remove(at);
        Ok(())
    }
}

/// The greatest sequence that `generation` used among these objects.
pub(crate) fn last_sequence(
    objects: impl IntoIterator<Item = SealedRef>,
    generation: Generation,
) -> u64 {
    let own = |object: SealedRef| match object {
        SealedRef::Chunk(key) if key.generation == generation => Some(key.sequence),
        SealedRef::Index(key) if key.generation == generation => Some(key.sequence),
        _ => None,
    };
    objects.into_iter().filter_map(own).max().unwrap_or(0)
}

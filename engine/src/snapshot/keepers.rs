//! What keeps objects that the head itself does not need any more.

use super::SnapshotTable;
use crate::identity::ManifestNum;
use crate::manifest::Manifest;
use crate::mutation::{Mutation, is_in};
use crate::object::SealedRef;

/// The snapshots and points in time that are there once a draft manifest is committed.
pub struct Keepers<'a> {
    snapshots: &'a SnapshotTable,
    /// The oldest manifest kept as a point in time; so are all later ones.
    since: Option<ManifestNum>,
}

impl<'a> Keepers<'a> {
    /// Those of the draft, with the snapshots of before.
    pub fn of(snapshots: &'a SnapshotTable, draft: &Manifest) -> Self {
        let since = draft.moment.map(|moment| moment.since);
        Self { snapshots, since }
    }

    /// Whether one of them may need an object that the head does not need since the manifest
    /// `idle_since`.
    pub fn need(&self, object: &SealedRef, idle_since: ManifestNum) -> bool {
        // The image before that manifest is the last one that has it.
        let by_points = self.since.is_some_and(|since| since < idle_since)
            && !is_in(Mutation::PointsKeepNothing);
        by_points || self.snapshots.needs(object, idle_since)
    }
}

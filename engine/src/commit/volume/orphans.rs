//! Which stored objects a volume names; all others of its own are orphans.

use std::collections::BTreeSet;

use super::VolumeCommit;
use crate::mutation::{Mutation, is_in};
use crate::object::SealedRef;

impl VolumeCommit {
    /// Everything that the committed image, a snapshot of the volume or a clone of one may need,
    /// and what its garbage collection will delete: the one answer to "does anything name it".
    ///
    /// What only snapshots need is in the chunk table or among the garbage that is retained, for
    /// as long as they exist; a clone needs nothing that its parent's snapshot does not.
    pub(super) fn named(&self) -> impl Iterator<Item = SealedRef> {
        let chunks = self.base.chunks().map(|(_, entry)| entry.reference.key);
        let parts = self.parts.iter().map(|part| SealedRef::Index(part.key));
        let named = chunks.map(SealedRef::Chunk).chain(parts);
        named.chain(self.garbage.objects().copied())
    }

    /// Which of these objects, all found in the backend before now, nothing names or ever will.
    /// `None` while a commit is under way: it may be about to name some.
    ///
    /// To be asked of a volume whose head is known to be ours, and while nobody changes it
    /// otherwise (settings, a rollback). Then whatever writer gave an object its name has named it
    /// in a manifest by now, or cannot any more: an older generation is fenced, and of this one
    /// nothing is under way; every later attempt draws names of its own. Objects of a newer
    /// generation are another writer's, who has taken the volume over: they are none.
    pub fn orphans_among(&self, listed: &[SealedRef]) -> Option<Vec<SealedRef>> {
        if !self.is_idle() && !is_in(Mutation::SweepsBesideCommits) {
            return None;
        }
        let (volume, generation) = (self.volume(), self.head.generation);
        let own = |object: &&SealedRef| {
            let (of, by) = object.owner();
            of == volume && by <= generation
        };
        let mut orphans: BTreeSet<SealedRef> = listed.iter().filter(own).copied().collect();
        for named in self.named() {
            orphans.remove(&named);
        }
        Some(orphans.into_iter().collect())
    }
}

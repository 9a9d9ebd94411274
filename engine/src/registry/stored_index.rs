//! Index parts and a root, stored for a manifest that is no commit: of a clone, of a rollback.

use crate::backend::Backend;
use crate::commit::Random;
use crate::error::Result;
use crate::failpoint::pass;
use crate::identity::{Generation, ManifestNum, VolumeId};
use crate::index::VolumeBase;
use crate::index::part::{RootPart, part_ref};
use crate::manifest::CheckpointRef;
use crate::object::IndexKey;

/// How an index is stored. The same layout and base give the same objects, and different ones never
/// give objects of the same name.
pub(super) struct IndexDraft {
    /// The volume whose parts they are.
    pub(super) volume: VolumeId,
    /// Generation of their names.
    pub(super) generation: Generation,
    /// Their names ascend from behind this sequence.
    pub(super) after: u64,
    /// Seed of their names, which nothing else has.
    pub(super) seed: [u64; 2],
    /// The manifest whose index it is.
    pub(super) manifest: ManifestNum,
    /// What the root says; its `parts` are those that stay in force, under the new ones.
    pub(super) root: RootPart,
    /// About how many bytes one part takes.
    pub(super) part_bytes: usize,
}

impl IndexDraft {
    /// Stores what the parts in force do not hold, and the root over all. All parts in force then,
    /// oldest first, the root last.
    pub(super) async fn store(
        mut self,
        backend: &dyn Backend,
        base: &VolumeBase,
        failpoint_name: &'static str,
    ) -> Result<Vec<CheckpointRef>> {
        let is_full = self.root.parts.is_empty();
        let items = base.checkpoint_plan(is_full, self.part_bytes);
        let mut random = Random::new([self.seed[0], self.seed[1], 0, 0]);
        let mut parts = self.root.parts.clone();
        for (items, left) in items.iter().zip((0..items.len()).rev()) {
            self.after += 1;
            let mut key = IndexKey {
                volume: self.volume,
                generation: self.generation,
                sequence: self.after,
                random: random.next_u64(),
            };
            let root = (left == 0).then(|| RootPart {
                parts: parts.clone(),
                ..std::mem::take(&mut self.root)
            });
            let mut part = base.checkpoint_part(key, self.manifest, items, root);
            // An earlier attempt may have stored the same index in other words.
            key.random ^= u64::from(crc32c::crc32c(&part.encode()));
            part.key = key;
            let body = part.encode();
            pass(failpoint_name)?;
            backend.put_if_absent(&key.object(), body.clone()).await?;
            parts.push(part_ref(key, &body));
        }
        Ok(parts)
    }
}

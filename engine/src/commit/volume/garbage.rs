//! Objects that nothing names any more: condemned by a manifest, deleted one commit later, noted as
//! dropped in the manifest after that.

use std::collections::{BTreeMap, BTreeSet};

use crate::commit::outcome::Effect;
use crate::error::Result;
use crate::identity::ManifestNum;
use crate::index::{ChunkOrdinal, VolumeBase};
use crate::manifest::Manifest;
use crate::object::{IndexKey, SealedRef};
use crate::snapshot::Keepers;

/// Most chunks condemned, or objects noted as dropped, by one manifest; the rest waits.
const PER_MANIFEST: usize = 1 << 16;
/// Most objects of one delete.
const PER_DELETE: usize = 256;

/// What waits to be deleted or to be noted as deleted.
pub(super) struct Garbage {
    /// Condemned by a committed manifest, not yet deleted.
    condemned: BTreeMap<SealedRef, Condemned>,
    /// Idle, but snapshots or points in time need them: the manifest that found them so.
    retained: BTreeMap<SealedRef, ManifestNum>,
    /// Stored, or perhaps so, for a manifest that is not made: to be deleted.
    strays: BTreeSet<SealedRef>,
    /// Deleted; the next manifest says so.
    dropped: Vec<SealedRef>,
    /// Of other volumes' chunks that are not named any more: recycled by the commit after.
    forgotten: Vec<ChunkOrdinal>,
    deleting: Option<Vec<SealedRef>>,
    /// The last commit stored index parts: its request more is enough, deletes have time.
    resting: bool,
}

#[derive(Clone, Copy)]
struct Condemned {
    by: ManifestNum,
    /// Ordinal to be recycled once no reader can hold it.
    ordinal: Option<ChunkOrdinal>,
    /// Blocks that it holds; 0 if that is not known.
    slots: u32,
}

/// The chunks that the manifest being staged does not name any more.
#[derive(Default)]
pub(super) struct Condemnation {
    /// Condemned by it.
    own: Vec<(SealedRef, ChunkOrdinal, u32)>,
    /// Of other volumes, which alone may condemn them.
    foreign: Vec<ChunkOrdinal>,
}

impl Garbage {
    /// What a rebuild found condemned, and index parts that only snapshots and points need.
    pub(super) fn new(
        condemned: BTreeMap<SealedRef, ManifestNum>,
        retained: BTreeMap<SealedRef, ManifestNum>,
    ) -> Self {
        let entry = |(object, by)| {
            (
                object,
                Condemned {
                    by,
                    ordinal: None,
                    slots: 0,
                },
            )
        };
        Self {
            condemned: condemned.into_iter().map(entry).collect(),
            retained,
            strays: BTreeSet::new(),
            dropped: Vec::new(),
            forgotten: Vec::new(),
            deleting: None,
            resting: false,
        }
    }

    /// Condemns chunks without live blocks, and index parts without a checkpoint, that nothing
    /// keeps after the draft `manifest`, and notes what was deleted. Chunks of other volumes are
    /// only forgotten: a clone's parent keeps them, by the snapshot that the clone pins.
    pub(super) fn condemn(
        &mut self,
        base: &mut VolumeBase,
        keepers: &Keepers<'_>,
        manifest: &mut Manifest,
    ) -> Condemnation {
        let idle = base.condemnable();
        let idle = idle.map(|(ordinal, entry)| (entry.reference, ordinal));
        let (own, foreign): (Vec<_>, Vec<_>) =
            idle.partition(|(chunk, _)| chunk.key.volume == manifest.volume);
        let own = own
            .into_iter()
            .map(|(chunk, ordinal)| (SealedRef::Chunk(chunk.key), ordinal, chunk.slots))
            .filter(|(object, ..)| !self.retain(object, keepers, manifest.number))
            .take(PER_MANIFEST)
            .collect();
        let foreign = foreign.into_iter().map(|(_, ordinal)| ordinal).collect();
        let condemned = Condemnation { own, foreign };
        for (object, ordinal, _) in &condemned.own {
            base.condemn(*ordinal);
            manifest.condemned.push(*object);
        }
        for ordinal in &condemned.foreign {
            base.condemn(*ordinal);
        }
        let free = |(object, since): &(&SealedRef, &ManifestNum)| {
            matches!(object, SealedRef::Index(_)) && !keepers.need(object, **since)
        };
        let parts = self.retained.iter().filter(free).take(PER_MANIFEST);
        let parts: Vec<_> = parts.map(|(object, _)| *object).collect();
        parts.iter().for_each(|part| _ = self.retained.remove(part));
        manifest.condemned.extend(parts);
        let noted = self.dropped.iter().take(PER_MANIFEST);
        manifest.dropped.extend(noted);
        condemned
    }

    /// Keeps what became idle in the manifest `number`, or earlier, if something needs it.
    pub(super) fn retain(
        &mut self,
        object: &SealedRef,
        keepers: &Keepers<'_>,
        number: ManifestNum,
    ) -> bool {
        let since = self.retained.get(object).copied().unwrap_or(number);
        let needed = keepers.need(object, since);
        match needed {
            true => self.retained.insert(*object, since),
            false => self.retained.remove(object),
        };
        needed
    }

    /// The manifest that found a kept object idle.
    pub(super) fn idle_since(&self, object: &SealedRef) -> Option<ManifestNum> {
        self.retained.get(object).copied()
    }

    /// Index parts that only snapshots and points need, for a checkpoint. Chunks are in its table.
    pub(super) fn retained_parts(&self) -> Vec<(IndexKey, ManifestNum)> {
        let part = |(object, since): (&SealedRef, &ManifestNum)| match object {
            SealedRef::Index(key) => Some((*key, *since)),
            SealedRef::Chunk(_) => None,
        };
        self.retained.iter().filter_map(part).collect()
    }

    /// Names of all objects that are not in the index any more.
    pub(super) fn objects(&self) -> impl Iterator<Item = &SealedRef> {
        self.condemned.keys().chain(self.retained.keys())
    }

    /// What is condemned and not dropped once the draft `manifest` is committed.
    pub(super) fn pending_after(&self, manifest: &Manifest) -> impl Iterator<Item = SealedRef> {
        let dropped_later = self.dropped.iter().skip(manifest.dropped.len());
        let earlier = self.condemned.keys().chain(dropped_later).copied();
        earlier.chain(manifest.condemned.iter().copied())
    }

    /// The manifest is committed.
    pub(super) fn committed(
        &mut self,
        manifest: &Manifest,
        chunks: Condemnation,
        base: &mut VolumeBase,
    ) {
        let forgotten = std::mem::replace(&mut self.forgotten, chunks.foreign);
        forgotten
            .into_iter()
            .for_each(|ordinal| base.recycle(ordinal));
        // Deletes that ended since the draft were appended behind those that it notes.
        self.dropped.drain(..manifest.dropped.len());
        // Not twice in a row: a volume so busy that every commit is a checkpoint deletes, too.
        self.resting = manifest.checkpoint.is_some() && !self.resting;
        let chunks = chunks.own.into_iter();
        let chunks: BTreeMap<_, _> = chunks
            .map(|(object, at, slots)| (object, (at, slots)))
            .collect();
        for object in &manifest.condemned {
            let condemned = Condemned {
                by: manifest.number,
                ordinal: chunks.get(object).map(|chunk| chunk.0),
                slots: chunks.get(object).map_or(0, |chunk| chunk.1),
            };
            self.condemned.insert(*object, condemned);
        }
    }

    /// Takes up objects that no manifest names or ever will.
    pub(super) fn stray(&mut self, objects: impl Iterator<Item = SealedRef>) {
        self.strays.extend(objects);
    }

    /// Blocks of the chunks whose deletion waits for a commit after `head`.
    pub(super) fn waiting_slots(&self, head: ManifestNum) -> u64 {
        let waiting = self.condemned.values();
        let waiting = waiting.filter(|condemned| self.resting || condemned.by >= head);
        waiting.map(|condemned| u64::from(condemned.slots)).sum()
    }

    /// Room is needed: deletes do not rest.
    pub(super) fn hurry(&mut self) {
        self.resting = false;
    }

    /// Deletes what an earlier manifest than `head` condemned: readers that still held its places
    /// have had a commit's time, and find newer ones when they look again.
    pub(super) fn next_delete(&mut self, head: ManifestNum) -> Option<Effect> {
        if self.deleting.is_some() || self.resting {
            return None;
        }
        let ripe = self.condemned.iter().filter(|(_, c)| c.by < head);
        let ripe = ripe.map(|(object, _)| object).chain(&self.strays);
        let objects: Vec<_> = ripe.copied().take(PER_DELETE).collect();
        if objects.is_empty() {
            return None;
        }
        self.deleting = Some(objects.clone());
        Some(Effect::Delete { objects })
    }

    /// After a failure the objects are tried again; deleting twice is harmless.
    pub(super) fn deleted(&mut self, result: Result<()>, base: &mut VolumeBase) -> Result<()> {
        let objects = self.deleting.take().expect("a delete was out");
        result?;
        for object in objects {
            if self.strays.remove(&object) {
                continue;
            }
            let condemned = self.condemned.remove(&object);
            if let Some(ordinal) = condemned.and_then(|condemned| condemned.ordinal) {
                base.recycle(ordinal);
            }
            self.dropped.push(object);
        }
        Ok(())
    }
}

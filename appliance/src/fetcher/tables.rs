//! Which object a chunk's ordinal names, and which object was packed after which.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, PoisonError, RwLock};

use taipan_engine::chunk::ChunkRef;
use taipan_engine::identity::VolumeId;
use taipan_engine::index::ChunkOrdinal;
use taipan_engine::object::ChunkKey;

#[derive(Debug, Default)]
struct Table {
    by_ordinal: Vec<Option<ChunkRef>>,
    /// Keys ascend in the order in which objects were packed.
    packed: BTreeMap<ChunkKey, ChunkRef>,
}

/// Chunk objects of every volume by ordinal; written by the uploader before a location is
/// published, read by the data cores and the reads.
#[derive(Debug, Default)]
pub struct ChunkTables {
    tables: RwLock<HashMap<VolumeId, Table>>,
    /// Volumes of which a reader found that an object is not there.
    lacking: Mutex<BTreeSet<VolumeId>>,
}

impl ChunkTables {
    /// Sets the object of one ordinal.
    pub fn set(&self, volume: VolumeId, ordinal: ChunkOrdinal, chunk: Option<ChunkRef>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let table = tables.entry(volume).or_default();
        let index = ordinal.0 as usize;
        if table.by_ordinal.len() <= index {
            table.by_ordinal.resize(index + 1, None);
        }
        if let Some(old) = std::mem::replace(&mut table.by_ordinal[index], chunk) {
            table.packed.remove(&old.key);
        }
        if let Some(chunk) = chunk {
            table.packed.insert(chunk.key, chunk);
        }
    }

    /// Forgets a deleted volume.
    pub fn forget(&self, volume: VolumeId) {
        self.tables
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&volume);
    }

    /// An object of the volume, which somebody reads, is not there.
    pub fn note_lacking(&self, volume: VolumeId) {
        let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        lacking.insert(volume);
    }

    /// Volumes noted since this was asked last.
    pub fn take_lacking(&self) -> BTreeSet<VolumeId> {
        let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lacking)
    }

    /// The object of an ordinal.
    pub fn get(&self, volume: VolumeId, ordinal: ChunkOrdinal) -> Option<ChunkRef> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        *tables.get(&volume)?.by_ordinal.get(ordinal.0 as usize)?
    }

    /// The objects of these ordinals, one for each.
    pub fn all(
        &self,
        volume: VolumeId,
        ordinals: impl Iterator<Item = ChunkOrdinal>,
    ) -> Vec<Option<ChunkRef>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let table = tables.get(&volume);
        let get = |ordinal: ChunkOrdinal| *table?.by_ordinal.get(ordinal.0 as usize)?;
        ordinals.map(get).collect()
    }

    /// The object that was packed after `key`, of those that the volume still has.
    pub fn after(&self, volume: VolumeId, key: &ChunkKey) -> Option<ChunkRef> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let packed = &tables.get(&volume)?.packed;
        let mut later = packed.range((Bound::Excluded(*key), Bound::Unbounded));
        later.next().map(|(_, chunk)| *chunk)
    }

    /// All objects of a volume, the last packed one first.
    pub fn newest_first(&self, volume: VolumeId) -> Vec<ChunkRef> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let table = tables.get(&volume);
        table.map_or_else(Vec::new, |t| t.packed.values().rev().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taipan_engine::identity::Generation;

    fn chunk(sequence: u64) -> ChunkRef {
        let key = ChunkKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: 0,
        };
        ChunkRef {
            key,
            head_bytes: 144,
            slots: 1,
            bytes: 4248,
        }
    }

    #[test]
    fn a_recycled_ordinal_names_only_the_new_object() {
        let tables = ChunkTables::default();
        let volume = VolumeId(1);
        tables.set(volume, ChunkOrdinal(1), Some(chunk(5)));
        tables.set(volume, ChunkOrdinal(0), Some(chunk(7)));
        assert_eq!(tables.after(volume, &chunk(5).key), Some(chunk(7)));
        assert_eq!(tables.after(volume, &chunk(7).key), None);
        tables.set(volume, ChunkOrdinal(1), None);
        assert_eq!(tables.get(volume, ChunkOrdinal(1)), None);
        tables.set(volume, ChunkOrdinal(1), Some(chunk(9)));
        assert_eq!(tables.get(volume, ChunkOrdinal(1)), Some(chunk(9)));
        let asked = [1, 2, 0].map(ChunkOrdinal).into_iter();
        let all = tables.all(volume, asked);
        assert_eq!(all, [Some(chunk(9)), None, Some(chunk(7))]);
        assert_eq!(tables.newest_first(volume), [chunk(9), chunk(7)]);
        tables.forget(volume);
        assert_eq!(tables.get(volume, ChunkOrdinal(0)), None);
    }
}

//! What the caches of chunks hold, for whoever maps a volume. Nothing is read and nobody is asked:
//! the caches keep a list of their slots up to date.

use std::ops::Range;
use std::sync::Arc;

use taipan_engine::cache::Holdings;
use taipan_engine::extents::{Caches, Residence, Stretch};
use taipan_engine::identity::VolumeId;

use super::tables::ChunkTables;

/// The caches of the reads, as the data cores see them.
pub(super) struct Cached {
    pub(super) tables: Arc<ChunkTables>,
    /// The cache in memory.
    pub(super) memory: Holdings,
    /// The cache file; holds nothing where there is none.
    pub(super) file: Holdings,
}

impl Caches for Cached {
    fn tell(
        &self,
        volume: VolumeId,
        stretches: &[Stretch],
        tell: &mut dyn FnMut(Range<u64>, Residence),
    ) {
        let (memory, file) = (self.memory.look(), self.file.look());
        if memory.is_empty() && file.is_empty() {
            return;
        }
        let asked = stretches.iter().map(|stretch| stretch.at.chunk);
        let chunks = self.tables.all(volume, asked);
        for (stretch, chunk) in stretches.iter().zip(chunks) {
            let Some(chunk) = chunk else { continue };
            let (memory, file) = (memory.of(&chunk.key), file.of(&chunk.key));
            if memory.is_none() && file.is_none() {
                continue;
            }
            for (block, slot) in stretch.slots() {
                let residence = if memory.is_some_and(|held| held.contains(slot)) {
                    Residence::Memory
                } else if file.is_some_and(|held| held.contains(slot)) {
                    Residence::Local
                } else {
                    continue;
                };
                tell(block..block + 1, residence);
            }
        }
    }
}

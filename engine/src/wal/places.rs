//! Where the batches of a cut lie: what the uploader needs to read their blocks.

use crate::block::PAGE_BYTES;
use crate::identity::BatchNum;

use super::place::Place;

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// First byte in the arena, if it was in memory: [`crate::arena::ArenaReader::copy`] says
    /// whether it still is.
    pub arena_offset: Option<usize>,
    /// First byte in the shard's WAL file.
    pub file_offset: u64,
}

/// Positions of consecutive batches at one moment.
#[derive(Clone, Debug, Default)]
pub struct PlaceMap {
    first: u64,
    batches: Vec<Location>,
}

impl PlaceMap {
    pub(super) fn new(
        first: BatchNum,
        batches: impl Iterator<Item = (Option<usize>, u64)>,
    ) -> Self {
        let location = |(arena_offset, file_offset)| Location {
            arena_offset,
            file_offset,
        };
        Self {
            first: first.0,
            batches: batches.map(location).collect(),
        }
    }

    /// Where the block at `place` is; `None` for a batch outside of the map.
    pub fn locate(&self, place: Place) -> Option<Location> {
        let index = usize::try_from(place.batch.0.checked_sub(self.first)?).ok()?;
        let batch = self.batches.get(index)?;
        let within = usize::from(place.page) * PAGE_BYTES;
        Some(Location {
            arena_offset: batch.arena_offset.map(|offset| offset + within),
            file_offset: batch.file_offset + within as u64,
        })
    }
}

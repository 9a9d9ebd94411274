//! What the caches of chunks have of committed blocks.

use std::ops::Range;

use super::Residence;
use crate::identity::VolumeId;
use crate::index::ChunkLoc;

/// Neighbouring blocks of a shard in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first shard-local block.
    pub first: u64,
    /// Blocks, above zero.
    pub count: u32,
    /// Where the first one is.
    pub at: ChunkLoc,
    /// Each one is so many slots behind the one before.
    pub step: u32,
}

impl Stretch {
    /// The blocks, with the slot of each.
    pub fn slots(self) -> impl Iterator<Item = (u64, u32)> {
        let blocks = (0..self.count).map(move |k| (k, self.first + u64::from(k)));
        blocks.map(move |(k, block)| (block, self.at.slot + k * self.step))
    }
}

/// Knows which committed blocks are found without asking the backend. What it says is of the
/// moment: a cache forgets at any time.
pub trait Caches: Send + Sync {
    /// Calls `tell` with the blocks of `stretches` that a cache has, in their order, each once. The
    /// stretches ascend and do not overlap.
    fn tell(
        &self,
        volume: VolumeId,
        stretches: &[Stretch],
        tell: &mut dyn FnMut(Range<u64>, Residence),
    );
}

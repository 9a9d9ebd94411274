//! Counting again what the chunk table says: blocks of each chunk that are still named.

use hashbrown::HashMap;

use super::VolumeBase;
use crate::block::{BlockNum, ShardId};
use crate::index::leaf::{ChunkLoc, ChunkOrdinal};

/// A chunk whose count in the table is not what the leaves name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// The chunk.
    pub ordinal: ChunkOrdinal,
    /// Live blocks as the table has it; `None` if it does not have the chunk.
    pub kept: Option<u32>,
    /// Live blocks as the leaves name them.
    pub counted: u32,
}

impl VolumeBase {
    /// Calls `visit` with every mapped block and its place; ascending within each shard.
    pub fn for_each_block(&self, mut visit: impl FnMut(BlockNum, ChunkLoc)) {
        for shard in ShardId::all() {
            for (key, leaf) in self.shard(shard).leaves() {
                let first = key.first();
                leaf.for_each(|index, loc| {
                    let local = crate::block::LocalBlock(first.0 + u64::from(index));
                    visit(local.global(shard), loc);
                });
            }
        }
    }

    /// Counts the live blocks of every chunk from the leaves; returns where the table differs,
    /// which it never does.
    pub fn recount(&self) -> Vec<Miscount> {
        let mut counted: HashMap<ChunkOrdinal, u32> = HashMap::new();
        self.for_each_block(|_, loc| *counted.entry(loc.chunk).or_default() += 1);
        let mut wrong = Vec::new();
        for (ordinal, entry) in self.chunks() {
            let found = counted.remove(&ordinal).unwrap_or(0);
            if found != entry.live {
                wrong.push(Miscount {
                    ordinal,
                    kept: Some(entry.live),
                    counted: found,
                });
            }
        }
        let unknown = counted.into_iter().map(|(ordinal, counted)| Miscount {
            ordinal,
            kept: None,
            counted,
        });
        wrong.extend(unknown);
        wrong
    }
}

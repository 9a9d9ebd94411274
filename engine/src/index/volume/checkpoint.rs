//! Checkpoints of a volume's base: what to write, and loading it again.

use super::VolumeBase;
use crate::block::ShardId;
use crate::chunk::ChunkRef;
use crate::error::{Error, Result};
use crate::identity::ManifestNum;
use crate::index::leaf::{ChunkOrdinal, LeafKey};
use crate::index::part::{IndexPart, RootPart};
use crate::index::volume::ChunkEntry;
use crate::object::IndexKey;

/// Ordinals that a checkpoint may name.
const ORDINALS_MAX: u32 = 1 << 26;
/// A table of up to so many ordinals (256 MiB) is made however few of them are used. Beyond, a bad
/// part must be about as large as what it makes us allocate: see [`ORDINALS_PER_CHUNK_MAX`].
const ORDINALS_UNCHECKED: usize = 1 << 22;
/// Ordinals to one chunk, on average, of a larger table. Ordinals are used again once an object is
/// deleted, so only a volume that shrank to a fraction comes near.
const ORDINALS_PER_CHUNK_MAX: usize = 256;

/// Contents of one part of a checkpoint, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartItems {
    leaves: Vec<(ShardId, LeafKey)>,
    chunks: Vec<ChunkOrdinal>,
}

impl VolumeBase {
    /// Bytes that a checkpoint of the changes since the last one takes.
    pub fn dirty_bytes(&self) -> u64 {
        self.items_bytes(self.dirty_leaf_keys(), self.dirty_chunks.len())
    }

    /// Bytes that a checkpoint of everything takes.
    pub fn full_bytes(&self) -> u64 {
        self.items_bytes(self.all_leaf_keys(), self.chunks().count())
    }

    /// What a checkpoint must hold, cut into parts of about `part_bytes`; at least one part.
    pub fn checkpoint_plan(&self, full: bool, part_bytes: usize) -> Vec<PartItems> {
        if full {
            let chunks = self.chunks().map(|(ordinal, _)| ordinal);
            self.cut_parts(self.all_leaf_keys(), chunks, part_bytes)
        } else {
            let chunks = self.dirty_chunks.iter().copied();
            self.cut_parts(self.dirty_leaf_keys(), chunks, part_bytes)
        }
    }

    /// One part of a checkpoint, as the base is now.
    pub fn checkpoint_part(
        &self,
        key: IndexKey,
        manifest: ManifestNum,
        items: &PartItems,
        root: Option<RootPart>,
    ) -> IndexPart {
        let leaf =
            |&(shard, key): &(ShardId, LeafKey)| (shard, key, self.shard(shard).leaf(key).cloned());
        let chunk =
            |&ordinal: &ChunkOrdinal| (ordinal, self.chunk(ordinal).map(|entry| entry.reference));
        IndexPart {
            key,
            manifest,
            leaves: items.leaves.iter().map(leaf).collect(),
            chunks: items.chunks.iter().map(chunk).collect(),
            root,
        }
    }

    /// A manifest that names the checkpoint of the present base is committed.
    pub fn checkpoint_committed(&mut self) {
        self.dirty_leaves.clear();
        self.dirty_chunks.clear();
        for entry in self.chunks.iter_mut().flatten() {
            entry.checkpointed = true;
        }
    }

    /// Takes over a part; parts are loaded oldest first, then [`VolumeBase::finish_load`].
    pub fn load_part(&mut self, part: IndexPart) -> Result<()> {
        for (shard, key, leaf) in part.leaves {
            self.shards[shard.index()].install([(key, leaf)]);
        }
        for (ordinal, reference) in part.chunks {
            if ordinal.0 >= ORDINALS_MAX {
                return Err(Error::corrupt(format!(
                    "chunk ordinal {} in an index",
                    ordinal.0
                )));
            }
            match reference {
                Some(reference) => self.loading.insert(ordinal, reference),
                None => self.loading.remove(&ordinal),
            };
        }
        Ok(())
    }

    /// Makes the table of the chunks that were loaded.
    fn fill_table(&mut self) -> Result<()> {
        let loaded = std::mem::take(&mut self.loading);
        let end = loaded.keys().map(|ordinal| ordinal.0 as usize + 1).max();
        let len = end.unwrap_or(0);
        if len > ORDINALS_UNCHECKED && len / ORDINALS_PER_CHUNK_MAX > loaded.len() {
            return Err(Error::corrupt(format!(
                "an index of {} chunks names ordinal {}",
                loaded.len(),
                len - 1
            )));
        }
        self.chunks = vec![None; len];
        for (ordinal, reference) in loaded {
            self.chunks[ordinal.0 as usize] = Some(ChunkEntry {
                reference,
                live: 0,
                checkpointed: true,
            });
        }
        Ok(())
    }

    /// Checks the loaded parts against each other and counts the live blocks of each chunk.
    pub fn finish_load(&mut self) -> Result<()> {
        self.fill_table()?;
        let Self { shards, chunks, .. } = self;
        let mut bad = None;
        for (_, leaf) in shards.iter().flat_map(|shard| shard.leaves()) {
            leaf.for_each(|_, loc| {
                let entry = chunks
                    .get_mut(loc.chunk.0 as usize)
                    .and_then(Option::as_mut);
                match entry {
                    Some(entry) if loc.slot < entry.reference.slots => entry.live += 1,
                    _ => bad = Some(loc),
                }
            });
        }
        if let Some(loc) = bad {
            return Err(Error::corrupt(format!(
                "the index names slot {} of chunk {}, which the chunk table does not have",
                loc.slot, loc.chunk.0
            )));
        }
        for (ordinal, entry) in (0..).map(ChunkOrdinal).zip(&self.chunks) {
            match entry {
                None => self.free.push(ordinal),
                Some(entry) if entry.live == 0 => {
                    self.empty.insert(ordinal);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn dirty_leaf_keys(&self) -> impl Iterator<Item = (ShardId, LeafKey)> {
        self.dirty_leaves.iter().copied()
    }

    fn all_leaf_keys(&self) -> impl Iterator<Item = (ShardId, LeafKey)> {
        ShardId::all().flat_map(|shard| {
            let leaves = self.shard(shard).leaves();
            leaves.map(move |(key, _)| (shard, key))
        })
    }

    fn leaf_bytes(&self, shard: ShardId, key: LeafKey) -> usize {
        IndexPart::leaf_bytes(self.shard(shard).leaf(key))
    }

    fn items_bytes(&self, leaves: impl Iterator<Item = (ShardId, LeafKey)>, chunks: usize) -> u64 {
        let leaves: usize = leaves.map(|(shard, key)| self.leaf_bytes(shard, key)).sum();
        (leaves + chunks * (8 + ChunkRef::ENCODED_BYTES)) as u64
    }

    fn cut_parts(
        &self,
        leaves: impl Iterator<Item = (ShardId, LeafKey)>,
        chunks: impl Iterator<Item = ChunkOrdinal>,
        part_bytes: usize,
    ) -> Vec<PartItems> {
        let mut parts = vec![PartItems::default()];
        let mut filled = 0;
        let mut part_for = |bytes: usize, parts: &mut Vec<PartItems>| {
            if filled > 0 && filled + bytes > part_bytes {
                parts.push(PartItems::default());
                filled = 0;
            }
            filled += bytes;
            parts.len() - 1
        };
        for (shard, key) in leaves {
            let part = part_for(self.leaf_bytes(shard, key), &mut parts);
            parts[part].leaves.push((shard, key));
        }
        for chunk in chunks {
            let part = part_for(IndexPart::chunk_bytes(), &mut parts);
            parts[part].chunks.push(chunk);
        }
        parts
    }
}

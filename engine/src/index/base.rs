//! The committed index of one volume in one shard: a directory of immutable leaves.

use std::sync::Arc;

use super::leaf::{ChunkLoc, LEAVES_MAX, Leaf, LeafKey};
use crate::block::LocalBlock;

/// New leaves of one shard; `None` removes a leaf. Keys ascend.
pub type LeafChanges = Vec<(LeafKey, Option<Leaf>)>;

/// Leaves per group of the directory: one group spans 16 GiB of a volume with 4 KiB blocks.
const GROUP_LEAVES: usize = 64;

type Group = [Option<Leaf>; GROUP_LEAVES];

/// Committed leaves of one volume and shard.
///
/// A directory of two levels rather than a hash map: leaves are dense where a volume is used at
/// all, a slot costs 16 bytes instead of up to 57, and a lookup is two loads. Cloning shares the
/// groups, so that an image of a large volume costs as little as that of a small one.
#[derive(Clone, Default)]
pub struct ShardBase {
    groups: Vec<Option<Arc<Group>>>,
    leaves: usize,
    leaf_bytes: usize,
    mapped_blocks: u64,
}

impl ShardBase {
    /// A base in which nothing is mapped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the block `local` is; `None` if it is not mapped and reads as zeros.
    #[inline]
    pub fn lookup(&self, local: LocalBlock) -> Option<ChunkLoc> {
        let (key, index) = LeafKey::of(local);
        self.leaf(key)?.lookup(index)
    }

    /// Replaces or removes leaves.
    ///
    /// # Panics
    /// On a key that no volume can have.
    pub fn install(&mut self, changes: impl IntoIterator<Item = (LeafKey, Option<Leaf>)>) {
        for (key, leaf) in changes {
            self.replace(key, leaf);
        }
    }

    /// The leaf with this key.
    pub fn leaf(&self, key: LeafKey) -> Option<&Leaf> {
        let (group, at) = position(key);
        self.groups.get(group)?.as_ref()?[at].as_ref()
    }

    /// All leaves, ascending.
    pub fn leaves(&self) -> impl Iterator<Item = (LeafKey, &Leaf)> {
        self.leaves_between(LeafKey(0), LeafKey(LEAVES_MAX))
    }

    /// The leaves with `from <= key < to`, ascending.
    pub fn leaves_between(
        &self,
        from: LeafKey,
        to: LeafKey,
    ) -> impl Iterator<Item = (LeafKey, &Leaf)> {
        let first = position(from).0.min(self.groups.len());
        let groups = self.groups[first..].iter().zip(first..);
        groups
            .take_while(move |(_, i)| i * GROUP_LEAVES < to.0 as usize)
            .filter_map(|(group, i)| Some((group.as_ref()?, i)))
            .flat_map(|(group, i)| group.iter().zip(i * GROUP_LEAVES..))
            .filter_map(|(leaf, key)| Some((LeafKey(key as u32), leaf.as_ref()?)))
            .filter(move |(key, _)| (from..to).contains(key))
    }

    /// Number of leaves.
    pub fn leaves_len(&self) -> usize {
        self.leaves
    }

    /// Blocks mapped.
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped_blocks
    }

    /// Heap memory in bytes, directory and allocator overhead included. Leaves are shared with the
    /// uploader's [`VolumeBase`](super::VolumeBase); count them once.
    pub fn heap_bytes(&self) -> usize {
        let groups = self.groups.iter().flatten().count();
        self.leaf_bytes
            + groups * (size_of::<Group>() + 16)
            + self.groups.capacity() * size_of::<Option<Arc<Group>>>()
    }

    fn replace(&mut self, key: LeafKey, leaf: Option<Leaf>) {
        assert!(
            key.0 < LEAVES_MAX,
            "leaf {} is beyond the largest volume",
            key.0
        );
        let (group, at) = position(key);
        if self.groups.len() <= group {
            if leaf.is_none() {
                return;
            }
            self.groups.resize_with(group + 1, || None);
        }
        let group = &mut self.groups[group];
        if group.is_none() && leaf.is_none() {
            return;
        }
        let slots = group.get_or_insert_with(|| Arc::new([const { None }; GROUP_LEAVES]));
        let slots = Arc::make_mut(slots);
        if let Some(new) = &leaf {
            self.leaves += 1;
            self.leaf_bytes += new.heap_bytes();
            self.mapped_blocks += new.mapped();
        }
        if let Some(old) = std::mem::replace(&mut slots[at], leaf) {
            self.leaves -= 1;
            self.leaf_bytes -= old.heap_bytes();
            self.mapped_blocks -= old.mapped();
        }
        if slots.iter().all(Option::is_none) {
            *group = None;
        }
    }
}

fn position(key: LeafKey) -> (usize, usize) {
    let key = key.0 as usize;
    (key / GROUP_LEAVES, key % GROUP_LEAVES)
}

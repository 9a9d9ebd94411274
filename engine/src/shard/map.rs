//! The map of a range of one shard: base, frozen and active overlays, one painted over the other.

use std::ops::Range;

use super::{Shard, ShardVolume, VolumeSlot};
use crate::extents::{BlockState, Content, RUNS_MAX, Runs, Stored, View};
use crate::index::{LEAF_BLOCKS, LeafKey, Point, Scan, ShardBase};

/// Most points and zeroed ranges of one overlay that are looked at.
const POINTS_MAX: usize = 4096;
/// Most leaves that are looked at.
const LEAVES_MAX: usize = 1024;

/// A block in a chunk.
const COMMITTED: BlockState = BlockState {
    content: Content::Data,
    stored: Stored::Committed,
    in_memory: false,
};

impl Shard {
    /// What the blocks `range` (shard-local) are: at most `runs_max` runs, and not more than
    /// [`RUNS_MAX`]. A shorter answer covers the beginning of the range, at least a block. The
    /// effort depends on what the range holds, not on how long it is.
    ///
    /// # Panics
    /// If the volume is not served.
    pub fn map(
        &self,
        slot: VolumeSlot,
        mut range: Range<u64>,
        view: View,
        runs_max: usize,
    ) -> Runs {
        let volume = self.volume(slot);
        let runs_max = runs_max.clamp(1, RUNS_MAX);
        let frozen = volume.frozen.iter().map(|(_, layer)| &**layer);
        let mut layers: Vec<Scan> = Vec::with_capacity(volume.frozen.len() + 1);
        for layer in frozen.chain([&volume.active]) {
            let scan = layer.scan(range.clone(), POINTS_MAX);
            range.end = scan.end;
            layers.push(scan);
        }
        let mut warm = Vec::new();
        if view.in_memory && !range.is_empty() {
            let scan = volume.warm.scan(range.clone(), POINTS_MAX);
            range.end = scan.end;
            warm = self.resident(volume, scan);
        }
        let mut runs = committed(&volume.base, range, view, runs_max);
        if !warm.is_empty() {
            runs = runs.painted(warm);
        }
        let zero = view.of(self.zeroed());
        for Scan { points, zeros, .. } in layers {
            if !zeros.is_empty() {
                runs = runs.painted(zeros.into_iter().map(|range| (range, zero)));
            }
            if !points.is_empty() {
                let data = |point| view.of(self.logged(volume, point));
                let points = points.into_iter();
                runs = runs.painted(points.map(|(at, point)| (at.0..at.0 + 1, data(point))));
            }
        }
        runs.truncate(runs_max);
        runs
    }

    /// Committed blocks of which batch memory has a copy.
    fn resident(&self, volume: &ShardVolume, scan: Scan) -> Vec<(Range<u64>, BlockState)> {
        let bytes = volume.block_size.bytes();
        let data = BlockState {
            in_memory: true,
            ..COMMITTED
        };
        let points = scan.points.into_iter();
        points
            .filter(|(_, point)| self.log.memory(point.place, bytes).is_some())
            .map(|(at, _)| (at.0..at.0 + 1, data))
            .collect()
    }

    /// A block whose newest record is in the log.
    fn logged(&self, volume: &ShardVolume, point: Point) -> BlockState {
        let is_durable = point.place.batch <= self.log.durable_through();
        let memory = self.log.memory(point.place, volume.block_size.bytes());
        BlockState {
            content: Content::Data,
            stored: if is_durable {
                Stored::Local
            } else {
                Stored::Undurable
            },
            in_memory: memory.is_some(),
        }
    }

    /// A range that an uncommitted record zeroed: of these the index knows no batch.
    fn zeroed(&self) -> BlockState {
        let is_durable = self.log.last() <= self.log.durable_through();
        BlockState {
            content: Content::Zero,
            stored: if is_durable {
                Stored::Local
            } else {
                Stored::Undurable
            },
            in_memory: true,
        }
    }
}

/// What the base says of `range`.
fn committed(base: &ShardBase, range: Range<u64>, view: View, runs_max: usize) -> Runs {
    let mut runs = Runs::new(range.start);
    let data = view.of(COMMITTED);
    let from = LeafKey((range.start / LEAF_BLOCKS) as u32);
    let to = LeafKey(range.end.div_ceil(LEAF_BLOCKS) as u32);
    for (looked_at, (key, leaf)) in base.leaves_between(from, to).enumerate() {
        let first = key.first().0;
        if looked_at == LEAVES_MAX || runs.as_slice().len() >= runs_max {
            // Up to here all is known: between leaves nothing is mapped.
            runs.push(first.max(range.start), BlockState::HOLE);
            return runs;
        }
        let within = |block: u64| block.clamp(first, first + LEAF_BLOCKS) - first;
        let part = within(range.start) as u16..within(range.end) as u16;
        leaf.mapped_ranges(part, |mapped| {
            runs.push(first + u64::from(mapped.start), BlockState::HOLE);
            runs.push(first + u64::from(mapped.end), data);
        });
        runs.push(range.end.min(first + LEAF_BLOCKS), BlockState::HOLE);
    }
    runs.push(range.end, BlockState::HOLE);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ChunkLoc, ChunkOrdinal, Leaf};

    /// A base with the blocks `mapped`, ascending, all in slots of their own.
    fn base_of(mapped: impl Iterator<Item = u64>) -> ShardBase {
        let mut leaves: Vec<(LeafKey, Vec<_>)> = Vec::new();
        for (slot, block) in mapped.enumerate() {
            let (key, index) = LeafKey::of(crate::block::LocalBlock(block));
            let loc = ChunkLoc {
                chunk: ChunkOrdinal(slot as u32 / 1000),
                slot: slot as u32 * 7919 % 1000,
            };
            match leaves.last_mut() {
                Some((last, entries)) if *last == key => entries.push((index, loc)),
                _ => leaves.push((key, vec![(index, loc)])),
            }
        }
        let mut base = ShardBase::new();
        base.install(leaves.into_iter().map(|(key, e)| (key, Leaf::build(&e))));
        base
    }

    fn contents(runs: &Runs) -> Vec<(u64, bool)> {
        let is_data = |run: &crate::extents::Run| run.state.content == Content::Data;
        let runs = runs.as_slice().iter();
        runs.map(|run| (run.end, is_data(run))).collect()
    }

    #[test]
    fn the_base_tells_what_its_leaves_hold_and_what_lies_between() {
        let at = LEAF_BLOCKS;
        let base = base_of([5, 6, 7, at - 1, at, 3 * at + 9].into_iter());
        let all = 1 << 30;
        let runs = committed(&base, 6..all, View::default(), RUNS_MAX);
        let ends = [
            (8, true),
            (at - 1, false),
            (at + 1, true),
            (3 * at + 9, false),
            (3 * at + 10, true),
            (all, false),
        ];
        assert_eq!(contents(&runs), ends);
        let inside = committed(&base, at + 1..3 * at, View::default(), RUNS_MAX);
        assert_eq!(contents(&inside), [(3 * at, false)]);
        let hole = committed(&ShardBase::new(), 3..all, View::default(), RUNS_MAX);
        assert_eq!(contents(&hole), [(all, false)]);
    }

    #[test]
    fn a_look_at_the_base_ends_after_so_many_runs_or_leaves() {
        let every_leaf = || (0..2000).map(|leaf| leaf * LEAF_BLOCKS + 1);
        let base = base_of(every_leaf());
        let range = 0..2000 * LEAF_BLOCKS;
        let runs = committed(&base, range.clone(), View::default(), 100);
        assert!((100..110).contains(&runs.as_slice().len()));
        assert_eq!(runs.range().end % LEAF_BLOCKS, 0);
        let runs = committed(&base, range, View::default(), RUNS_MAX);
        assert_eq!(runs.range(), 0..LEAVES_MAX as u64 * LEAF_BLOCKS);
        let data = runs.as_slice().iter().zip(runs.as_slice().iter().skip(1));
        assert!(data.filter(|(hole, data)| data.end == hole.end + 1).count() >= LEAVES_MAX);
    }
}

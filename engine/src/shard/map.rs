//! The map of a range of one shard: base, frozen and active overlays, one painted over the other.

mod changes;

use std::ops::Range;

use super::{Shard, ShardVolume, VolumeSlot};
use crate::extents::{
    BlockState, Caches, Content, RUNS_MAX, Residence, Runs, Seat, Seats, Stored, Stretch, View,
};
use crate::identity::VolumeId;
use crate::index::{Baseline, LEAF_BLOCKS, Leaf, LeafKey, Overlay, Point, Scan, ShardBase};

/// Blocks of the first look; each further one is so many times wider.
const FIRST_BLOCKS: u64 = 64;
const WIDENING: u64 = 8;
/// Points, zeroed ranges and mapped ranges of leaves that are looked at, for each run that is
/// wanted.
const LOOKS_PER_RUN: usize = 16;
/// The least and the most for one question.
const LOOKS_MIN: usize = 256;
const LOOKS_MAX: usize = 4096;
/// So many blocks that caches are asked about count for one more.
const BLOCKS_PER_LOOK: usize = 16;
/// What a leaf itself counts for.
const LOOKS_PER_LEAF: usize = 8;

/// A block in a chunk.
const COMMITTED: BlockState = BlockState {
    content: Content::Data,
    stored: Stored::Committed,
    residence: Residence::Backend,
    changed: Seats::NONE,
};

impl Shard {
    /// What the blocks `range` (shard-local) are: at most `runs_max` runs, and not more than
    /// [`RUNS_MAX`]. A shorter answer covers the beginning of the range, at least a block. The
    /// effort depends on the runs that are wanted, not on how long the range is, nor on how much is
    /// known of what comes after the answer. `caches`, if there are any, say what they have of
    /// committed blocks. `None` if a baseline that is asked about is not there.
    ///
    /// # Panics
    /// If the volume is not served.
    pub fn map(
        &self,
        slot: VolumeSlot,
        range: Range<u64>,
        view: View,
        runs_max: usize,
        caches: Option<&dyn Caches>,
    ) -> Option<Runs> {
        let volume = self.volume(slot);
        let baseline = |seat| {
            let mut baselines = volume.baselines.iter();
            baselines.find(|(taken, _)| *taken == seat)
        };
        let baselines = view.since.iter().map(baseline);
        let frozen = volume.frozen.iter().map(|(_, layer)| &**layer);
        let bytes = volume.block_size.bytes();
        let layers = Layers {
            base: &volume.base,
            warm: view.residence.then_some(&volume.warm),
            caches: caches.filter(|_| view.residence).map(|c| (c, volume.id)),
            overlays: frozen.chain([&volume.active]).collect(),
            baselines: baselines.collect::<Option<_>>()?,
            committed: view.of(COMMITTED),
            zeroed: view.of(self.zeroed()),
            resident: &|point| self.log.memory(point.place, bytes).is_some(),
            logged: &|point| view.of(self.logged(volume, point)),
        };
        Some(layers.map(range, runs_max.clamp(1, RUNS_MAX)))
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
            residence: match memory {
                Some(_) => Residence::Memory,
                None => Residence::Local,
            },
            changed: Seats::NONE,
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
            residence: Residence::Memory,
            changed: Seats::NONE,
        }
    }
}

/// What is known of one volume in one shard, and what is told of it.
struct Layers<'a> {
    base: &'a ShardBase,
    /// Committed blocks that may be in batch memory, if that matters.
    warm: Option<&'a Overlay>,
    /// Who knows of committed blocks in caches of chunks, and of which volume, if that matters.
    caches: Option<(&'a dyn Caches, VolumeId)>,
    /// Oldest first.
    overlays: Vec<&'a Overlay>,
    /// Earlier images to compare with.
    baselines: Vec<&'a (Seat, Baseline)>,
    /// Of blocks in chunks.
    committed: BlockState,
    /// Of zeroed ranges of overlays.
    zeroed: BlockState,
    /// Whether batch memory has a copy.
    resident: &'a dyn Fn(Point) -> bool,
    /// Of points of overlays.
    logged: &'a dyn Fn(Point) -> BlockState,
}

impl Layers<'_> {
    /// Looks at a small part first and then at wider and wider ones, until `runs_max` runs are
    /// complete or enough was looked at.
    fn map(&self, range: Range<u64>, runs_max: usize) -> Runs {
        let mut looks = (runs_max * LOOKS_PER_RUN).clamp(LOOKS_MIN, LOOKS_MAX);
        let mut runs = Runs::new(range.start);
        let mut blocks = FIRST_BLOCKS;
        loop {
            let start = runs.range().end;
            let window = start..range.end.min(start.saturating_add(blocks));
            if window.is_empty() || looks == 0 || runs.as_slice().len() > runs_max {
                break;
            }
            runs.append(&self.look(window, &mut looks));
            blocks = blocks.saturating_mul(WIDENING);
        }
        runs.truncate(runs_max);
        runs
    }

    /// What `window` is, from its first block on, at least that one; uses up `looks`.
    fn look(&self, mut window: Range<u64>, looks: &mut usize) -> Runs {
        let most = *looks;
        let mut scan = |overlay: &Overlay, window: &mut Range<u64>| {
            let scan = overlay.scan(window.clone(), most);
            *looks = looks.saturating_sub(scan.points.len() + scan.zeros.len());
            window.end = scan.end;
            scan
        };
        let overlays = self.overlays.iter();
        let layers: Vec<Scan> = overlays.map(|layer| scan(layer, &mut window)).collect();
        let warm = self.warm.map(|warm| scan(warm, &mut window));
        let mut runs = match self.caches {
            Some(caches) => self.cached(caches, window, looks),
            None => committed(self.base, window, self.committed, looks),
        };
        if let Some(warm) = warm {
            let resident = warm.points.into_iter();
            let resident = resident.filter(|(_, point)| (self.resident)(*point));
            let state = BlockState {
                residence: Residence::Memory,
                ..self.committed
            };
            runs = runs.painted(resident.map(|(at, _)| (at.0..at.0 + 1, state)));
        }
        for Scan { points, zeros, .. } in &layers {
            if !zeros.is_empty() {
                runs = runs.painted(zeros.iter().map(|range| (range.clone(), self.zeroed)));
            }
            if !points.is_empty() {
                let points = points.iter();
                let data = points.map(|(at, point)| (at.0..at.0 + 1, (self.logged)(*point)));
                runs = runs.painted(data);
            }
        }
        for baseline in &self.baselines {
            let changes = self.changes(baseline, runs.range(), &layers, looks);
            runs = runs.marked(&changes);
        }
        runs
    }

    /// What the base says of `range`, as [`committed`] does, and where caches have it.
    fn cached(
        &self,
        (caches, volume): (&dyn Caches, VolumeId),
        range: Range<u64>,
        looks: &mut usize,
    ) -> Runs {
        let mut stretches = Vec::new();
        let visit = |key: LeafKey, leaf: &Leaf, part, mapped: &mut dyn FnMut(Range<u16>)| {
            let mut used = 0;
            leaf.stretches_in(part, |blocks, at, step| {
                used += blocks.len() / BLOCKS_PER_LOOK;
                stretches.push(Stretch {
                    first: key.first().0 + u64::from(blocks.start),
                    count: blocks.len() as u32,
                    at,
                    step,
                });
                mapped(blocks);
            });
            used
        };
        let runs = walked(self.base, range, self.committed, looks, visit);
        let mut told: Vec<(Range<u64>, BlockState)> = Vec::new();
        caches.tell(volume, &stretches, &mut |blocks, residence| {
            let state = BlockState {
                residence,
                ..self.committed
            };
            match told.last_mut() {
                Some((last, same)) if last.end == blocks.start && *same == state => {
                    last.end = blocks.end;
                }
                _ => told.push((blocks, state)),
            }
        });
        runs.painted(told)
    }
}

/// What the base says of `range`: `data` where it is mapped. Ends early, but not before the first
/// leaf was looked at, when `looks` are used up.
fn committed(base: &ShardBase, range: Range<u64>, data: BlockState, looks: &mut usize) -> Runs {
    walked(base, range, data, looks, |_, leaf, part, mapped| {
        leaf.mapped_ranges(part, mapped);
        0
    })
}

/// The same, where `visit` looks at a part of a leaf: it tells what is mapped there and returns for
/// how many looks that counts, apart from one for each call.
fn walked(
    base: &ShardBase,
    range: Range<u64>,
    data: BlockState,
    looks: &mut usize,
    mut visit: impl FnMut(LeafKey, &Leaf, Range<u16>, &mut dyn FnMut(Range<u16>)) -> usize,
) -> Runs {
    let mut runs = Runs::new(range.start);
    if data == BlockState::HOLE {
        // Nobody wants to know what is mapped.
        runs.push(range.end, BlockState::HOLE);
        return runs;
    }
    let (from, to) = leaves_of(&range);
    for (nth, (key, leaf)) in base.leaves_between(from, to).enumerate() {
        let first = key.first().0;
        if *looks == 0 && nth > 0 {
            // Up to here all is known: between leaves nothing is mapped.
            runs.push(first, BlockState::HOLE);
            return runs;
        }
        let mut used = LOOKS_PER_LEAF;
        let more = visit(key, leaf, part_of(&range, key), &mut |mapped| {
            used += 1;
            runs.push(first + u64::from(mapped.start), BlockState::HOLE);
            runs.push(first + u64::from(mapped.end), data);
        });
        used += more;
        *looks = looks.saturating_sub(used);
        runs.push(range.end.min(first + LEAF_BLOCKS), BlockState::HOLE);
    }
    runs.push(range.end, BlockState::HOLE);
    runs
}

/// The leaves that `range` touches: first, and one beyond the last.
fn leaves_of(range: &Range<u64>) -> (LeafKey, LeafKey) {
    let from = LeafKey((range.start / LEAF_BLOCKS) as u32);
    (from, LeafKey(range.end.div_ceil(LEAF_BLOCKS) as u32))
}

/// The part of `range` in one leaf, as indices of the leaf.
fn part_of(range: &Range<u64>, key: LeafKey) -> Range<u16> {
    let first = key.first().0;
    let within = |block: u64| block.clamp(first, first + LEAF_BLOCKS) - first;
    within(range.start) as u16..within(range.end) as u16
}

#[cfg(test)]
mod tests;

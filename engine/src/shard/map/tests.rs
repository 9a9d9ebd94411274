//! Maps of a shard against what lookups say of every block, and how much they look at.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::block::LocalBlock;
use crate::identity::{BatchNum, Lsn};
use crate::index::{ChunkLoc, ChunkOrdinal, Hit, Leaf};
use crate::lcg::Lcg;
use crate::wal::place::Place;

/// A base with the blocks `mapped`, ascending, all in slots of their own.
fn base_of(mapped: impl Iterator<Item = u64>) -> ShardBase {
    let mut leaves: Vec<(LeafKey, Vec<_>)> = Vec::new();
    for (slot, block) in mapped.enumerate() {
        let (key, index) = LeafKey::of(LocalBlock(block));
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

fn write(overlay: &mut Overlay, block: u64, lsn: u64) {
    let place = Place {
        batch: BatchNum(lsn),
        page: 1,
    };
    let point = Point {
        lsn: Lsn(lsn),
        place,
        crc: 0,
    };
    overlay.insert_point(LocalBlock(block), point);
}

const LOGGED: BlockState = BlockState {
    content: Content::Data,
    stored: Stored::Local,
    residence: Residence::Memory,
    changed: Seats::NONE,
};
const ZEROED: BlockState = BlockState {
    content: Content::Zero,
    ..LOGGED
};

/// Where [`HalfOfAll`] has a committed block.
fn cached(at: ChunkLoc) -> Residence {
    match (at.chunk.0 / 2 + at.slot / 4) % 4 {
        0 => Residence::Memory,
        1 => Residence::Local,
        _ => Residence::Backend,
    }
}

/// Caches that have half of the slots; they count the stretches that they are asked about.
#[derive(Default)]
struct HalfOfAll {
    asked: AtomicUsize,
}

impl Caches for HalfOfAll {
    fn tell(
        &self,
        volume: VolumeId,
        stretches: &[Stretch],
        tell: &mut dyn FnMut(Range<u64>, Residence),
    ) {
        assert_eq!(volume, VolumeId(7));
        self.asked.fetch_add(stretches.len(), Ordering::Relaxed);
        assert!(stretches.is_sorted_by_key(|stretch| stretch.first));
        for stretch in stretches {
            for (block, slot) in stretch.slots() {
                let at = ChunkLoc { slot, ..stretch.at };
                if cached(at) != Residence::Backend {
                    tell(block..block + 1, cached(at));
                }
            }
        }
    }
}

fn is_resident(point: Point) -> bool {
    point.lsn.0.is_multiple_of(2)
}

/// Another image in a seat: `base`, in which some of the first `blocks` are elsewhere or nowhere,
/// and which has some more.
fn earlier(base: &ShardBase, blocks: u64, dice: &mut Lcg) -> (Seat, Baseline) {
    let mut then = base.clone();
    let from = dice.below(blocks + 1);
    for (key, leaf) in base.leaves() {
        let mut entries = Vec::new();
        leaf.for_each(|index, loc| {
            let is_old = key.first().0 + u64::from(index) < from || blocks == 0;
            match dice.below(4) {
                0 if !is_old => {}
                1 if !is_old => {
                    let chunk = ChunkOrdinal(loc.chunk.0 + 1);
                    entries.push((index, ChunkLoc { chunk, ..loc }));
                }
                _ => entries.push((index, loc)),
            }
        });
        // Not the very same leaf, even if it says the same.
        then.install([(key, Leaf::build(&entries))]);
    }
    let more = base_of([blocks + 5, blocks + 2 * LEAF_BLOCKS].into_iter());
    if blocks > 0 {
        let new = more.leaves().filter(|(key, _)| base.leaf(*key).is_none());
        then.install(new.map(|(key, leaf)| (key, Some(leaf.clone()))));
    }
    let seats = [
        Seat::free(Seats::NONE),
        Seat::free(Seat::free(Seats::NONE).unwrap().into()),
    ];
    (seats[usize::from(blocks == 0)].unwrap(), Baseline::of(then))
}

/// Layers of which batch memory has what records with even LSNs wrote.
fn layers<'a>(
    base: &'a ShardBase,
    warm: Option<&'a Overlay>,
    overlays: Vec<&'a Overlay>,
) -> Layers<'a> {
    Layers {
        base,
        warm,
        caches: None,
        overlays,
        baselines: Vec::new(),
        committed: COMMITTED,
        zeroed: ZEROED,
        resident: &is_resident,
        logged: &|_| LOGGED,
    }
}

/// What lookups say of a block.
fn state_of(layers: &Layers<'_>, block: u64) -> BlockState {
    let local = LocalBlock(block);
    let mut newest = layers.overlays.iter().rev();
    let newest = newest.find_map(|layer| layer.lookup(local));
    let has_changed = |(_, baseline): &&&(Seat, Baseline)| {
        let then = baseline.base().lookup(local);
        match newest {
            Some(Hit::Data(_)) => true,
            Some(Hit::Zero(_)) => then.is_some(),
            None => then != layers.base.lookup(local),
        }
    };
    let changed = layers.baselines.iter().filter(has_changed);
    let mut state = content_of(layers, block);
    state.changed = changed.map(|(seat, _)| *seat).collect();
    state
}

fn content_of(layers: &Layers<'_>, block: u64) -> BlockState {
    let local = LocalBlock(block);
    match layers
        .overlays
        .iter()
        .rev()
        .find_map(|layer| layer.lookup(local))
    {
        Some(Hit::Data(_)) => return LOGGED,
        Some(Hit::Zero(_)) => return ZEROED,
        None => {}
    }
    match layers.warm.and_then(|warm| warm.lookup(local)) {
        Some(Hit::Data(point)) if is_resident(point) => BlockState {
            residence: Residence::Memory,
            ..layers.committed
        },
        _ => match layers.base.lookup(local) {
            Some(at) if layers.caches.is_some() => BlockState {
                residence: cached(at),
                ..layers.committed
            },
            Some(_) => layers.committed,
            None => BlockState::HOLE,
        },
    }
}

/// The whole answer, from lookups.
fn reference(layers: &Layers<'_>, range: Range<u64>) -> Runs {
    let mut runs = Runs::new(range.start);
    range.for_each(|block| runs.push(block + 1, state_of(layers, block)));
    runs
}

/// Is `told` the beginning of `all`? Its last run may end early.
fn check_beginning(told: &Runs, all: &Runs, runs_max: usize) {
    let (told, all) = (told.as_slice(), all.as_slice());
    assert!(!told.is_empty() && told.len() <= runs_max);
    let (last, before) = told.split_last().unwrap();
    assert_eq!(before, &all[..before.len()]);
    let of_all = all[before.len()];
    assert!(last.state == of_all.state && last.end <= of_all.end);
}

#[test]
fn any_bounds_tell_the_beginning_of_what_lookups_tell() {
    let (mut dice, caches) = (Lcg(5), HalfOfAll::default());
    for round in 0..40 {
        let blocks = [300, 3 * LEAF_BLOCKS][round % 2];
        let (mut warm, mut old, mut new) = (Overlay::new(), Overlay::new(), Overlay::new());
        let base = base_of((0..blocks).filter(|_| dice.below(3) == 0));
        let baselines = [
            earlier(&base, blocks, &mut dice),
            earlier(&base, 0, &mut dice),
        ];
        let every = 1 + dice.below(40);
        for lsn in 1..blocks / every {
            let at = dice.below(blocks);
            match dice.below(8) {
                0 => new.insert_zero(at..at + 1 + dice.below(30), Lsn(lsn)),
                1 => old.insert_zero(at..at + 1 + dice.below(300), Lsn(lsn)),
                2..4 => write(&mut new, at, lsn),
                4..6 => write(&mut old, at, lsn),
                // The read cache has what the base has.
                _ if base.lookup(LocalBlock(at)).is_some() => write(&mut warm, at, lsn),
                _ => {}
            }
        }
        let mut layers = layers(&base, Some(&warm), vec![&old, &new]);
        layers.baselines = baselines.iter().take(round % 3).collect();
        if round % 4 == 0 {
            // Nobody wants to know what is mapped.
            layers.committed = BlockState::HOLE;
        }
        if round % 4 == 1 {
            layers.caches = Some((&caches, VolumeId(7)));
        }
        for _ in 0..10 {
            let start = dice.below(blocks);
            let range = start..start + 1 + dice.below(blocks + 10 - start);
            let all = reference(&layers, range.clone());
            for runs_max in [1, 2, 30, RUNS_MAX] {
                check_beginning(&layers.map(range.clone(), runs_max), &all, runs_max);
            }
            // And piece by piece all of it.
            let mut pieces = Runs::new(range.start);
            while pieces.range().end < range.end {
                let rest = pieces.range().end..range.end;
                pieces.append(&layers.map(rest, 1 + dice.below(50) as usize));
            }
            assert_eq!(pieces, all);
        }
    }
}

#[test]
fn a_question_for_one_run_looks_at_little_of_a_full_overlay() {
    let mut overlay = Overlay::new();
    (0..100_000).for_each(|block| write(&mut overlay, block, 1));
    let base = ShardBase::new();
    let looked_at = Cell::new(0);
    let counting = |_| {
        looked_at.set(looked_at.get() + 1);
        LOGGED
    };
    let layers = Layers {
        logged: &counting,
        ..layers(&base, None, vec![&overlay])
    };
    let told = layers.map(0..1 << 30, 1);
    assert_eq!(told.as_slice().len(), 1);
    assert!(told.range().end >= LOOKS_MIN as u64, "{told:?}");
    assert!(looked_at.get() <= LOOKS_MIN, "{}", looked_at.get());
    // Behind all points one look finds nothing.
    looked_at.set(0);
    assert_eq!(layers.map(100_000..1 << 30, 1).range(), 100_000..1 << 30);
    assert_eq!(looked_at.get(), 0);
}

#[test]
fn the_base_tells_what_its_leaves_hold_and_what_lies_between() {
    let at = LEAF_BLOCKS;
    let base = base_of([5, 6, 7, at - 1, at, 3 * at + 9].into_iter());
    let all = 1 << 30;
    let told = |base: &ShardBase, range: Range<u64>| {
        let runs = layers(base, None, Vec::new()).map(range, RUNS_MAX);
        let runs = runs.as_slice().iter();
        runs.map(|run| (run.end, run.state.content == Content::Data))
            .collect::<Vec<_>>()
    };
    let ends = [
        (8, true),
        (at - 1, false),
        (at + 1, true),
        (3 * at + 9, false),
        (3 * at + 10, true),
        (all, false),
    ];
    assert_eq!(told(&base, 6..all), ends);
    assert_eq!(told(&base, at + 1..3 * at), [(3 * at, false)]);
    assert_eq!(told(&ShardBase::new(), 3..all), [(all, false)]);
}

#[test]
fn a_look_at_the_base_ends_after_so_many_runs_or_looks() {
    let base = base_of((0..2000).map(|leaf| leaf * LEAF_BLOCKS + 1));
    let range = 0..2000 * LEAF_BLOCKS;
    let layers = layers(&base, None, Vec::new());
    assert_eq!(layers.map(range.clone(), 100).as_slice().len(), 100);
    let all = layers.map(range.clone(), RUNS_MAX);
    let leaves = all.range().end / LEAF_BLOCKS;
    assert!((400..500).contains(&leaves), "{leaves}");
    // All mapped: one run, but its leaves have many.
    let base = base_of(0..40 * LEAF_BLOCKS);
    let one = self::layers(&base, None, Vec::new()).map(range, 1);
    assert_eq!(one.as_slice().len(), 1);
    assert!(one.range().end < 10 * LEAF_BLOCKS, "{one:?}");
}

#[test]
fn a_comparison_of_what_is_the_same_looks_at_no_entries() {
    let base = base_of((0..300 * LEAF_BLOCKS).step_by(7));
    let seat = Seat::free(Seats::NONE).unwrap();
    let same = (seat, Baseline::of(base.clone()));
    let mut layers = layers(&base, None, Vec::new());
    layers.baselines.push(&same);
    layers.committed = BlockState::HOLE;
    let told = layers.map(0..300 * LEAF_BLOCKS, 64);
    let runs = told.as_slice();
    assert_eq!(runs.len(), 1);
    assert!(runs[0].state.changed.is_empty());
    assert!(runs[0].end >= 100 * LEAF_BLOCKS, "{told:?}");
}

/// A base as sequential writes make it: each chunk has 64 blocks of the shard, 16 slots apart.
fn sequential(blocks: u64) -> ShardBase {
    let mut base = ShardBase::new();
    for key in 0..blocks.div_ceil(LEAF_BLOCKS) {
        let first = key * LEAF_BLOCKS;
        let place = |block: u64| ChunkLoc {
            chunk: ChunkOrdinal((block / 64) as u32),
            slot: (block % 64 * 16) as u32,
        };
        let blocks = first..blocks.min(first + LEAF_BLOCKS);
        let entries: Vec<_> = blocks.map(|b| ((b - first) as u16, place(b))).collect();
        base.install([(LeafKey(key as u32), Leaf::build(&entries))]);
    }
    base
}

#[test]
fn caches_are_asked_about_stretches_not_blocks_and_not_without_end() {
    let caches = HalfOfAll::default();
    let base = sequential(1000 * LEAF_BLOCKS);
    let layers = Layers {
        caches: Some((&caches, VolumeId(7))),
        ..layers(&base, None, Vec::new())
    };
    let told = layers.map(0..1000 * LEAF_BLOCKS, RUNS_MAX);
    let asked = caches.asked.load(Ordering::Relaxed) as u64;
    assert!(asked * 64 >= told.range().end, "{asked} {:?}", told.range());
    // Each counts for one look and one for 16 blocks; the last leaf is looked at as a whole.
    assert!(asked <= LOOKS_MAX as u64 / 5 + 64, "{asked}");
    assert!(told.range().end >= 64 * 64, "{:?}", told.range());
    check_beginning(&told, &reference(&layers, told.range()), RUNS_MAX);
}

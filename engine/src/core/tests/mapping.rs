//! Maps against a model of every block, on one core and on several.

use std::ops::Range;
use std::sync::Arc;

use super::rig::{BLOCK, Rig, SLOT, VOLUME};
use crate::core::{Failure, Origin, Progress, Ticket};
use crate::extents::{
    BlockState, Caches, Content, Extent, MapQuery, Residence, Seat, Seats, Stored, Stretch, View,
};
use crate::identity::{Epoch, VolumeId};
use crate::index::ChunkLoc;
use crate::lcg::Lcg;
use crate::shard::{Found, VolumeSlot};
use crate::wal::MarkKind;

/// Blocks that are written, zeroed and trimmed.
const BLOCKS: u64 = 96;
/// One of each shard behind them that always holds data, so that no leaf is ever empty.
const SENTINELS: Range<u64> = BLOCKS..BLOCKS + 16;

/// Where the caches have a committed block.
fn cached(at: ChunkLoc) -> Residence {
    match (at.chunk.0 + at.slot) % 3 {
        0 => Residence::Memory,
        1 => Residence::Local,
        _ => Residence::Backend,
    }
}

/// Caches that have two of three slots.
struct TwoOfThree;

impl Caches for TwoOfThree {
    fn tell(
        &self,
        volume: VolumeId,
        stretches: &[Stretch],
        tell: &mut dyn FnMut(Range<u64>, Residence),
    ) {
        assert_eq!(volume, VOLUME);
        for stretch in stretches {
            for (block, slot) in stretch.slots() {
                let residence = cached(ChunkLoc { slot, ..stretch.at });
                if residence != Residence::Backend {
                    tell(block..block + 1, residence);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Cell {
    content: Content,
    /// Cuts before its newest record.
    stamp: u64,
    committed: bool,
}

/// What every block must be.
struct Model {
    cells: Vec<Cell>,
    block_bytes: u64,
    /// Nothing is undurable.
    flushed: bool,
    cuts: u64,
}

impl Model {
    fn new(block_bytes: u64) -> Self {
        let never = Cell {
            content: Content::Hole,
            stamp: 0,
            committed: true,
        };
        Self {
            cells: vec![never; SENTINELS.end as usize],
            block_bytes,
            flushed: true,
            cuts: 0,
        }
    }

    fn change(&mut self, blocks: Range<u64>, content: Content) {
        let new = Cell {
            content,
            stamp: self.cuts,
            committed: false,
        };
        self.cells[blocks.start as usize..blocks.end as usize].fill(new);
        self.flushed = false;
    }

    fn data_blocks(&self) -> Vec<u64> {
        let is_data = |block: &u64| self.cells[*block as usize].content == Content::Data;
        (0..self.cells.len() as u64).filter(is_data).collect()
    }

    fn committed(&mut self, cut: u64) {
        for cell in self.cells.iter_mut().filter(|cell| cell.stamp < cut) {
            cell.committed = true;
            if cell.content == Content::Zero {
                cell.content = Content::Hole;
            }
        }
    }

    fn state(&self, rig: &Rig, block: u64, view: View) -> BlockState {
        let Some(cell) = self.cells.get(block as usize) else {
            return BlockState::HOLE;
        };
        view.of(BlockState {
            content: cell.content,
            stored: match cell.committed {
                true => Stored::Committed,
                false if self.flushed => Stored::Local,
                false => Stored::Undurable,
            },
            residence: match rig.found(block) {
                Some(Found::Memory(_) | Found::Zero) => Residence::Memory,
                Some(Found::Chunk(at)) => cached(at),
                Some(Found::Wal(_)) | None => Residence::Local,
            },
            changed: Seats::NONE,
        })
    }

    /// The whole answer.
    fn extents(&self, rig: &Rig, query: MapQuery) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let (mut at, end) = (query.offset, query.offset + query.len);
        while at < end {
            let block = at / self.block_bytes;
            let len = ((block + 1) * self.block_bytes).min(end) - at;
            let state = self.state(rig, block, query.view);
            match extents.last_mut() {
                Some(last) if last.state == state => last.len += len,
                _ => extents.push(Extent { len, state }),
            }
            at += len;
        }
        extents
    }

    fn check(&self, rig: &mut Rig, core: usize, query: MapQuery) {
        let told = rig.map_on(core, query);
        let mut expected = self.extents(rig, query);
        // Nothing here is so large that anything but the wanted number shortens the answer.
        expected.truncate(query.extents_max);
        let covered: u64 = told.iter().map(|extent| extent.len).sum();
        let first = self.block_bytes - query.offset % self.block_bytes;
        assert!(covered >= first.min(query.len), "{query:?}: {told:?}");
        if told.len() == query.extents_max {
            // Its last extent may be cut short by a shard that has told enough.
            let (told_last, last) = (told.last().unwrap(), expected.last_mut().unwrap());
            assert!(told_last.len <= last.len);
            last.len = told_last.len;
        }
        assert_eq!(told, expected, "{query:?} on {core}");
    }
}

impl Lcg {
    /// A question about any part, more or less precise.
    fn query(&mut self, model: &Model) -> MapQuery {
        let bytes = (SENTINELS.end + 40) * model.block_bytes;
        let offset = self.below(bytes - 1);
        MapQuery {
            offset,
            len: 1 + self.below(bytes - offset),
            view: View {
                stored: model.flushed && self.below(2) == 0,
                residence: self.below(2) == 0,
                ..View::default()
            },
            extents_max: [1, 2, 7, 1000][self.below(4) as usize],
        }
    }
}

fn settle_flush(rig: &mut Rig, model: &mut Model) {
    let flush = rig.flush_on(0);
    rig.settle();
    assert_eq!(rig.result(flush), Some(Ok(())));
    model.flushed = true;
}

/// Writes, zeroes or trims some blocks.
fn change(rig: &mut Rig, model: &mut Model, dice: &mut Lcg) {
    let start = dice.below(BLOCKS);
    let count = 1 + dice.below((BLOCKS - start).min(64 * BLOCK / model.block_bytes + 3));
    let (offset, len) = (start * model.block_bytes, count * model.block_bytes);
    let core = dice.below(rig.cores.len() as u64) as usize;
    let (ticket, content) = match dice.below(4) {
        0 => (rig.mark(offset, len, MarkKind::Zero), Content::Zero),
        1 => (rig.mark(offset, len, MarkKind::Trim), Content::Zero),
        _ => {
            let data = vec![1 + dice.below(255) as u8; len as usize];
            (rig.write_on(core, offset, &data, false), Content::Data)
        }
    };
    rig.settle();
    assert_eq!(rig.result(ticket), Some(Ok(())));
    model.change(start..start + count, content);
}

fn compare(cores: usize, block_bytes: u64, seed: u64) {
    let mut rig = Rig::with_blocks(cores, block_bytes as u32);
    let caches = Arc::new(TwoOfThree);
    rig.cores
        .iter_mut()
        .for_each(|core| core.set_caches(caches.clone()));
    let mut model = Model::new(block_bytes);
    let mut dice = Lcg(seed);
    for block in SENTINELS {
        let data = vec![9; block_bytes as usize];
        rig.write_on(0, block * block_bytes, &data, false);
        rig.settle();
    }
    model.change(SENTINELS, Content::Data);
    for _ in 0..12 {
        let until_cut = 1 + dice.below(4);
        (0..until_cut).for_each(|_| change(&mut rig, &mut model, &mut dice));
        if dice.below(2) == 0 {
            settle_flush(&mut rig, &mut model);
        }
        (0..8).for_each(|_| {
            let query = dice.query(&model);
            model.check(&mut rig, dice.below(cores as u64) as usize, query);
        });
        let cut: Epoch = rig.cut();
        model.cuts += 1;
        let (blocks, cut_model) = (model.data_blocks(), model.cuts);
        change(&mut rig, &mut model, &mut dice);
        settle_flush(&mut rig, &mut model);
        (0..4).for_each(|_| {
            let query = dice.query(&model);
            model.check(&mut rig, 0, query);
        });
        rig.commit(cut, cut_model as u32, &blocks);
        model.committed(cut_model);
        (0..8).for_each(|_| {
            let query = dice.query(&model);
            model.check(&mut rig, dice.below(cores as u64) as usize, query);
        });
    }
    assert!(rig.cores.iter().all(|core| core.unanswered() == 0));
}

#[test]
fn maps_agree_with_a_model_of_every_block() {
    for seed in 0..12 {
        compare(1, BLOCK, seed);
        compare(3, BLOCK, seed);
        compare(1, 16 * BLOCK, seed);
        compare(3, 16 * BLOCK, seed);
    }
}

#[test]
fn a_hole_of_any_size_is_one_extent() {
    for cores in [1, 3] {
        let mut rig = Rig::new(cores);
        rig.write(3, 1);
        let query = MapQuery {
            offset: 4 * BLOCK + 1,
            len: (1 << 45) + 1,
            view: View::default(),
            extents_max: 10,
        };
        let hole = Extent {
            len: query.len,
            state: BlockState::HOLE,
        };
        assert_eq!(rig.map_on(0, query), [hole]);
        let told = rig.map_on(0, MapQuery { offset: 0, ..query });
        assert_eq!(told.len(), 3);
        assert_eq!((told[0].len, told[1].len), (3 * BLOCK, BLOCK));
    }
}

#[test]
fn data_counts_as_undurable_until_it_is_flushed() {
    let mut rig = Rig::new(2);
    rig.write(3, 1);
    let query = MapQuery {
        offset: 3 * BLOCK,
        len: BLOCK,
        view: View {
            stored: true,
            residence: true,
            ..View::default()
        },
        extents_max: 1,
    };
    let told = rig.map_on(0, query)[0].state;
    assert_eq!(told.stored, Stored::Undurable);
    assert_eq!(told.residence, Residence::Memory);
    rig.flush_on(0);
    rig.settle();
    assert_eq!(rig.map_on(0, query)[0].state.stored, Stored::Local);
    let cut = rig.cut();
    rig.commit(cut, 0, &[3]);
    let told = rig.map_on(0, query)[0].state;
    assert_eq!(told.stored, Stored::Committed);
    assert_eq!(told.residence, Residence::Memory);
    rig.evict(3);
    let told = rig.map_on(0, query)[0].state;
    assert_eq!(told.residence, Residence::Backend, "no cache is known");
    let caches = Arc::new(TwoOfThree);
    rig.cores
        .iter_mut()
        .for_each(|core| core.set_caches(caches.clone()));
    let told = rig.map_on(0, query)[0].state;
    assert_eq!(told.residence, Residence::Memory, "slot 0 of chunk 0");
}

#[test]
fn a_volume_that_is_not_served_has_no_map() {
    let mut rig = Rig::new(2);
    let query = MapQuery {
        offset: 0,
        len: 64 * BLOCK,
        view: View::default(),
        extents_max: 1,
    };
    let origin = Origin::Client(Ticket(77));
    let other = VolumeSlot(1);
    let progress = rig.cores[0].map(origin, other, query, &mut Vec::new());
    assert_eq!(progress, Progress::Failed(Failure::Gone));
    // The peer has given it up already.
    rig.cores[1].remove_volume(SLOT);
    let progress = rig.cores[0].map(origin, SLOT, query, &mut Vec::new());
    assert!(matches!(progress, Progress::Pending(_)));
    rig.turn();
    assert_eq!(rig.result(77), Some(Err(Failure::Gone)));
    assert!(rig.done[&77].extents.is_empty());
}

#[test]
fn changes_are_told_since_a_baseline_that_all_cores_have() {
    for cores in [1, 3] {
        let mut rig = Rig::new(cores);
        (0..20).for_each(|block| _ = rig.write(block, 1));
        let cut = rig.cut();
        rig.commit(cut, 0, &(0..20).collect::<Vec<_>>());
        let seat = Seat::free(Seats::NONE).unwrap();
        let query = MapQuery {
            offset: 0,
            len: 32 * BLOCK,
            view: View {
                content: false,
                since: seat.into(),
                ..View::default()
            },
            extents_max: 100,
        };
        let told = |rig: &mut Rig| -> Vec<(u64, bool)> {
            let extents = rig.map_on(0, query);
            let told = |extent: &Extent| (extent.len / BLOCK, extent.state.changed.contains(seat));
            extents.iter().map(told).collect()
        };
        let origin = Origin::Client(Ticket(77));
        let unknown = rig.cores[0].map(origin, SLOT, query, &mut Vec::new());
        assert_eq!(unknown, Progress::Failed(Failure::Gone));
        rig.keep_baseline(seat, 0, &(0..20).collect::<Vec<_>>());
        assert_eq!(told(&mut rig), [(32, false)]);
        rig.write(3, 2);
        rig.mark(18 * BLOCK, 4 * BLOCK, MarkKind::Trim);
        rig.write(30, 1);
        let expected = [
            (3, false),
            (1, true),
            (14, false),
            (2, true),
            (10, false),
            (1, true),
            (1, false),
        ];
        assert_eq!(told(&mut rig), expected);
        rig.cut();
        assert_eq!(told(&mut rig), expected, "sealed");
        rig.cores
            .iter_mut()
            .for_each(|core| core.remove_baseline((SLOT, VOLUME), seat));
        let gone = rig.cores[0].map(origin, SLOT, query, &mut Vec::new());
        assert_eq!(gone, Progress::Failed(Failure::Gone));
    }
}

//! What clients ask for.

use std::ops::Range;

use super::dice::Dice;
use super::pattern::Lattice;
use crate::wal::MarkKind;

/// A request in terms of cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Read(Range<u32>),
    Write {
        cells: Range<u32>,
        fua: bool,
    },
    Mark {
        cells: Range<u32>,
        kind: MarkKind,
        fua: bool,
    },
    Flush,
}

/// Taste of one client in one life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taste {
    reads: u32,
    flushes: u32,
    marks: u32,
    fua: u32,
    /// Requests are whole blocks.
    aligned: u32,
    pub(super) depth: usize,
    pub(super) think_us: u64,
    hot_shard: Option<u32>,
}

impl Taste {
    pub(super) fn new(dice: &mut Dice, hot_shard: Option<u32>) -> Self {
        Self {
            reads: dice.pick(&[50, 300, 500]),
            flushes: dice.pick(&[0, 50, 200]),
            marks: dice.pick(&[0, 60, 200]),
            fua: dice.pick(&[0, 100]),
            aligned: dice.pick(&[200, 700, 950]),
            depth: dice.range(1..=6) as usize,
            think_us: dice.pick(&[200, 600, 3000]),
            hot_shard,
        }
    }

    pub(super) fn wish(&self, dice: &mut Dice, lattice: Lattice) -> Wish {
        if dice.chance(self.flushes) {
            return Wish::Flush;
        }
        let cells = self.cells(dice, lattice);
        if dice.chance(self.reads) {
            return Wish::Read(cells);
        }
        let fua = dice.chance(self.fua);
        if dice.chance(self.marks) {
            let kind = dice.pick(&[MarkKind::Trim, MarkKind::Zero]);
            return Wish::Mark { cells, kind, fua };
        }
        Wish::Write { cells, fua }
    }

    fn cells(&self, dice: &mut Dice, lattice: Lattice) -> Range<u32> {
        let first = match self.hot_shard {
            Some(shard) if dice.chance(700) => {
                let rows = (lattice.blocks - shard).div_ceil(16);
                shard + 16 * dice.below(u64::from(rows)) as u32
            }
            _ => dice.below(u64::from(lattice.blocks)) as u32,
        };
        let most = match dice.below(10) {
            0 => 40,
            1..=3 => 4,
            _ => 1,
        };
        let end = (first + 1 + dice.below(most) as u32).min(lattice.blocks);
        let cells = lattice.of_blocks(first..end);
        if dice.chance(self.aligned) {
            return cells;
        }
        let within = u64::from(cells.end - cells.start);
        let from = cells.start + dice.below(within) as u32;
        let to = from + 1 + dice.below(u64::from(cells.end - from)) as u32;
        from..to
    }
}

//! A part of a leaf: which of its blocks are mapped, and where to.

use std::ops::Range;

use super::{ChunkLoc, Leaf, LeafKind, field, partition, read_u16, run_at};

impl Leaf {
    /// Calls `visit` with the mapped blocks of `range` (indices in the leaf), as ranges that ascend
    /// and do not overlap; they may touch.
    pub fn mapped_ranges(&self, range: Range<u16>, mut visit: impl FnMut(Range<u16>)) {
        let mut clipped = |from: u16, to: u16| {
            let part = from.max(range.start)..to.min(range.end);
            if !part.is_empty() {
                visit(part);
            }
        };
        match self.kind() {
            LeafKind::Runs => {
                let body = self.body();
                let end_of = |i| run_at(body, i).first + run_at(body, i).count;
                let first = partition(self.items(), |i| end_of(i) <= range.start);
                let runs = (first..self.items()).map(|i| run_at(body, i));
                runs.take_while(|run| run.first < range.end)
                    .for_each(|run| clipped(run.first, run.first + run.count));
            }
            LeafKind::Sparse => {
                let body = self.body();
                let first = partition(self.items(), |i| read_u16(body, i * 2) < range.start);
                let indices = (first..self.items()).map(|i| read_u16(body, i * 2));
                indices
                    .take_while(|index| *index < range.end)
                    .for_each(|index| clipped(index, index + 1));
            }
            LeafKind::Dense => {
                let words = self.0[field::BITMAP..field::DENSE_VALUES].chunks_exact(8);
                let first = usize::from(range.start) / 64;
                let end = usize::from(range.end).div_ceil(64);
                for (i, word) in words.enumerate().take(end).skip(first) {
                    let word = word.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b));
                    ranges_of(word, i as u16 * 64, &mut clipped);
                }
            }
        }
    }

    /// Calls `visit` with the entries of `range` (indices in the leaf), ascending.
    pub fn entries_in(&self, range: Range<u16>, mut visit: impl FnMut(u16, ChunkLoc)) {
        self.stretches_in(range, |blocks, at, step| {
            for (index, k) in blocks.zip(0..) {
                let slot = at.slot + k * step;
                visit(index, ChunkLoc { slot, ..at });
            }
        });
    }

    /// Calls `visit` with the entries of `range` (indices in the leaf), ascending, those together
    /// that the leaf holds as one: the blocks, the place of the first one, and how many slots the
    /// next one is behind.
    pub fn stretches_in(
        &self,
        range: Range<u16>,
        mut visit: impl FnMut(Range<u16>, ChunkLoc, u32),
    ) {
        match self.kind() {
            LeafKind::Runs => {
                let run = |i| run_at(self.body(), i);
                let end_of = |i| run(i).first + run(i).count;
                let first = partition(self.items(), |i| end_of(i) <= range.start);
                let runs = (first..self.items()).map(run);
                for run in runs.take_while(|run| run.first < range.end) {
                    let from = run.first.max(range.start);
                    let to = (run.first + run.count).min(range.end);
                    visit(from..to, run.loc(from - run.first), u32::from(run.step));
                }
            }
            LeafKind::Sparse => {
                let index_at = |i| read_u16(self.body(), i * 2);
                let first = partition(self.items(), |i| index_at(i) < range.start);
                (first..self.items())
                    .map(|i| (index_at(i), i))
                    .take_while(|(index, _)| *index < range.end)
                    .for_each(|(index, i)| visit(index..index + 1, self.value(i), 0));
            }
            LeafKind::Dense => {
                if range.is_empty() {
                    return;
                }
                let mut at = self.rank(range.start);
                self.mapped_ranges(range, |mapped| {
                    for index in mapped {
                        visit(index..index + 1, self.value(at), 0);
                        at += 1;
                    }
                });
            }
        }
    }
}

/// The set bits of a word as ranges; bit 0 is the block `base`.
fn ranges_of(mut word: u64, base: u16, visit: &mut impl FnMut(u16, u16)) {
    let mut at = base;
    while word != 0 {
        let clear = word.trailing_zeros();
        word >>= clear;
        let set = word.trailing_ones();
        visit(at + clear as u16, at + (clear + set) as u16);
        word = word.checked_shr(set).unwrap_or(0);
        at += (clear + set) as u16;
    }
}

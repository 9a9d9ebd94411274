//! Which blocks of a leaf are mapped, without where to.

use std::ops::Range;

use super::{Leaf, LeafKind, field, partition, read_u16, run_at};

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

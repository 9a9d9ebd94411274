//! Seeded choices.

use std::ops::RangeInclusive;

use crate::commit::Random;

/// A source of choices; the same seed makes the same ones.
#[derive(Clone, Debug)]
pub(super) struct Dice(Random);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut next = || {
            // SplitMix64, so that neighbouring seeds have nothing in common.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Self(Random::new([next(), next(), next(), next()]))
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`, which is above zero.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    pub(super) fn range(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// True in `per_mille` of 1000 cases.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A source of its own, so that choices there do not shift those here.
    pub(super) fn fork(&mut self) -> Self {
        Self::new(self.number())
    }

    /// Seed for object names of one life.
    pub(super) fn names(&mut self) -> Random {
        Random::new([self.number(), self.number(), self.number(), self.number()])
    }
}

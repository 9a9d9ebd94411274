//! A deterministic source of choices.

/// A linear congruential generator; equal seeds give equal rolls.
#[derive(Clone, Debug)]
pub(in crate::wal) struct Dice(pub(in crate::wal) u64);

impl Dice {
    pub(in crate::wal) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % sides
    }
}

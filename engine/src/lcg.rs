//! Choices of tests that are the same in every run.

/// A linear congruential generator; equal seeds give equal choices.
pub(crate) struct Lcg(pub(crate) u64);

impl Lcg {
    /// A number below `below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1);
        (self.0 >> 33) % below
    }
}

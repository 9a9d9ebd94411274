//! Memory for requests of all connections together (`limits.request_bytes_total`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A request up to this size is taken even when all is spent, if its connection holds nothing:
/// writes that wait for a backend must not keep others from reading.
const ALWAYS_BYTES: u64 = 1 << 20;

/// How many bytes all connections may hold, and how many they do.
#[derive(Debug)]
pub struct Allowance {
    max: u64,
    held: AtomicU64,
}

impl Allowance {
    /// An allowance of `max` bytes, none of it held.
    pub fn new(max: u64) -> Arc<Self> {
        let held = AtomicU64::new(0);
        Arc::new(Self { max, held })
    }

    /// Whether nothing is left.
    #[inline]
    pub fn is_spent(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.max
    }
}

/// One holder's part of an allowance; gives it back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    allowance: Arc<Allowance>,
    held: u64,
}

impl Share {
    pub(super) fn new(allowance: Arc<Allowance>) -> Self {
        Self { allowance, held: 0 }
    }

    /// Bytes held.
    #[inline]
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    #[inline]
    pub(super) fn take(&mut self, bytes: u64) {
        self.held += bytes;
        self.allowance.held.fetch_add(bytes, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.held -= bytes;
        self.allowance.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Holds exactly so much from now on.
    pub(super) fn hold(&mut self, bytes: u64) {
        match bytes.checked_sub(self.held) {
            Some(0) => {}
            Some(more) => self.take(more),
            None => self.give_back(self.held - bytes),
        }
    }

    /// Whether a request of `bytes` of a connection that holds `held` has to wait for others.
    pub(super) fn must_wait(&self, bytes: u64, held: u64) -> bool {
        self.allowance.is_spent() && (held > 0 || bytes > ALWAYS_BYTES)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_back_and_a_small_request_always_passes() {
        let allowance = Allowance::new(10 << 20);
        let mut greedy = Share::new(Arc::clone(&allowance));
        let other = Share::new(Arc::clone(&allowance));
        greedy.take(8 << 20);
        assert!(!other.must_wait(64 << 20, 0), "something is left");
        greedy.hold(12 << 20);
        assert!(allowance.is_spent());
        assert!(greedy.must_wait(1, greedy.held()));
        assert!(!other.must_wait(ALWAYS_BYTES, 0));
        assert!(other.must_wait(ALWAYS_BYTES + 1, 0));
        greedy.hold(1);
        assert!(!allowance.is_spent());
        drop(greedy);
        assert_eq!(allowance.held.load(Ordering::Relaxed), 0);
    }
}

//! Keeps the owner of an arena from reusing the pages of a batch while another thread copies them.
//!
//! A reader publishes the batch it is about to copy, then looks whether it is evicted; the owner
//! publishes the eviction, then looks for readers. With a full fence between the two steps on both
//! sides at least one of them sees the other.

use crate::identity::BatchNum;

// Of the standard library, or of loom where this file is compiled for its model.
use super::sync::{AtomicU64, Ordering, SLOTS, fence, yield_now};

/// Value of a slot that no reader uses.
const FREE: u64 = u64::MAX;

/// The hazard slots of one arena and the eviction they guard.
#[derive(Debug)]
pub(super) struct Hazards {
    /// Batches below are evicted. Written by the owner alone, never lowered.
    evicted_below: AtomicU64,
    /// Batch being copied by the slot's user, or [`FREE`].
    slots: [AtomicU64; SLOTS],
}

impl Hazards {
    pub(super) fn new() -> Self {
        Self {
            evicted_below: AtomicU64::new(0),
            slots: std::array::from_fn(|_| AtomicU64::new(FREE)),
        }
    }

    /// Evicts batches below `batch`; whether no reader is copying one of them.
    pub(super) fn evict_below(&self, batch: BatchNum) -> bool {
        let before = self.evicted_below.load(Ordering::Relaxed);
        self.evicted_below
            .store(before.max(batch.0), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Acquire: the copies of readers that have left happened before the pages are reused.
        self.slots
            .iter()
            .all(|slot| slot.load(Ordering::Acquire) >= batch.0)
    }

    /// Protects `batch` until the guard is dropped; `None` when it is evicted.
    pub(super) fn protect(&self, batch: BatchNum) -> Option<Guard<'_>> {
        debug_assert_ne!(batch.0, FREE);
        let guard = Guard {
            slot: self.claim(batch),
        };
        fence(Ordering::SeqCst);
        (self.evicted_below.load(Ordering::Relaxed) <= batch.0).then_some(guard)
    }

    /// Takes a free slot; waits for one, as copies are short.
    fn claim(&self, batch: BatchNum) -> &AtomicU64 {
        loop {
            for slot in &self.slots {
                let claimed =
                    slot.compare_exchange(FREE, batch.0, Ordering::Relaxed, Ordering::Relaxed);
                if claimed.is_ok() {
                    return slot;
                }
            }
            yield_now();
        }
    }
}

/// A claimed hazard slot.
pub(super) struct Guard<'a> {
    slot: &'a AtomicU64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.slot.store(FREE, Ordering::Release);
    }
}

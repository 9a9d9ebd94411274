//! Keeps the owner of an arena from reusing the pages of a batch while another thread copies them.
//!
//! A reader publishes the batch it is about to copy, then looks whether it is evicted; the owner
//! publishes the eviction, then looks for readers. With a full fence between the two steps on both
//! sides at least one of them sees the other.

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::identity::BatchNum;

/// Copies that can be under way at the same time.
#[cfg(not(all(loom, test)))]
const SLOTS: usize = 8;
#[cfg(all(loom, test))]
const SLOTS: usize = 1;

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
            #[cfg(all(loom, test))]
            loom::thread::yield_now();
            #[cfg(not(all(loom, test)))]
            std::thread::yield_now();
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_waits_for_the_reader_and_shuts_out_the_next() {
        let hazards = Hazards::new();
        let guard = hazards.protect(BatchNum(3)).unwrap();
        assert!(hazards.evict_below(BatchNum(3)), "3 itself is not evicted");
        assert!(!hazards.evict_below(BatchNum(4)));
        assert!(
            hazards.protect(BatchNum(3)).is_none(),
            "evicted although memory is in use"
        );
        drop(guard);
        assert!(hazards.evict_below(BatchNum(4)));
    }

    #[test]
    fn all_slots_can_be_used_at_once() {
        let hazards = Hazards::new();
        let guards: Vec<_> = (0..SLOTS as u64)
            .map(|n| hazards.protect(BatchNum(n)))
            .collect();
        assert!(guards.iter().all(Option::is_some));
        assert!(!hazards.evict_below(BatchNum(1)));
        drop(guards);
        assert!(hazards.evict_below(BatchNum(SLOTS as u64)));
    }
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test -p taipan-engine --lib hazard`.
#[cfg(all(loom, test))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    struct World {
        hazards: Hazards,
        page: UnsafeCell<u64>,
    }

    /// The reader copies the page of batch 0 while the owner evicts it and reuses the page: loom
    /// reports a race if both can touch it at once.
    #[test]
    fn a_page_is_never_reused_under_a_reader() {
        loom::model(|| {
            let world = Arc::new(World {
                hazards: Hazards::new(),
                page: UnsafeCell::new(1),
            });
            let other = Arc::clone(&world);
            let reader = loom::thread::spawn(move || {
                let Some(_guard) = other.hazards.protect(BatchNum(0)) else {
                    return;
                };
                // SAFETY: what is tested: the guard excludes the owner's write.
                let seen = other.page.with(|page| unsafe { *page });
                assert_eq!(seen, 1);
            });
            if world.hazards.evict_below(BatchNum(1)) {
                // SAFETY: what is tested: no reader holds the page.
                world.page.with_mut(|page| unsafe { *page = 2 });
            }
            reader.join().unwrap();
        });
    }
}

//! Loom's model of the hazard protocol: the same code, built of loom's atomics.

mod sync {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    pub(super) use loom::thread::yield_now;

    pub(super) const SLOTS: usize = 1;
}

// The point of this file: the same protocol over other atomics.
#[allow(clippy::duplicate_mod)]
#[path = "hazard.rs"]
mod hazard;

use hazard::Hazards;
use loom::cell::UnsafeCell;
use loom::sync::Arc;

use crate::identity::BatchNum;

struct World {
    hazards: Hazards,
    page: UnsafeCell<u64>,
}

/// Readers copy the page of batch 0 while the owner evicts it and reuses the page: loom
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
            for _ in 0..2 {
                let Some(_guard) = other.hazards.protect(BatchNum(0)) else {
                    return;
                };
                // SAFETY: what is tested: the guard excludes the owner's write.
                let seen = other.page.with(|page| unsafe { *page });
                assert_eq!(seen, 1);
            }
        });
        if world.hazards.evict_below(BatchNum(1)) {
            // SAFETY: what is tested: no reader holds the page.
            world.page.with_mut(|page| unsafe { *page = 2 });
        }
        reader.join().unwrap();
    });
}

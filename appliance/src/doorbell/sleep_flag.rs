//! The flag by which a core says that it is about to sleep.
//!
//! Both sides use a full fence between their store and their load (store own flag, look at the
//! other's), so a message is either seen by the core before it sleeps or the sender sees the flag.

// Of the standard library, or of loom where this file is compiled for its model.
use super::sync::{AtomicBool, Ordering, fence};

/// The flag by which a core says that it is about to sleep.
#[derive(Debug)]
pub struct SleepFlag(AtomicBool);

impl SleepFlag {
    /// The flag of a core that is awake.
    pub fn awake() -> Self {
        Self(AtomicBool::new(false))
    }

    /// The core is about to sleep; it must look at its inbox once more after this.
    pub fn prepare(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The core is awake.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// For a sender whose message is in the inbox: whether it has to wake the core.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }
}

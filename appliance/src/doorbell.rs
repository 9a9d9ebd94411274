//! Wakes a data core that sleeps, and only then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

#[cfg(test)]
mod model;
mod sleep_flag;

pub use sleep_flag::SleepFlag;

/// What the sleep flag is built of; its model brings loom's.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

/// The bell of one data core.
#[derive(Debug)]
pub struct Doorbell {
    flag: SleepFlag,
    event: OwnedFd,
    ring: AtomicI32,
}

impl Doorbell {
    /// A bell of a core that is awake.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            flag: SleepFlag::awake(),
            event,
            ring: AtomicI32::new(-1),
        }))
    }

    /// The core's sleep flag.
    pub fn flag(&self) -> &SleepFlag {
        &self.flag
    }

    /// The descriptor that becomes readable when a thread without a ring rings.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Publishes the core's ring for `IORING_OP_MSG_RING`.
    pub fn set_ring(&self, ring: RawFd) {
        self.ring.store(ring, Ordering::Release);
    }

    /// The core's ring, once it runs.
    pub fn ring(&self) -> Option<RawFd> {
        let ring = self.ring.load(Ordering::Acquire);
        (ring >= 0).then_some(ring)
    }

    /// Wakes the core if it sleeps; for threads without a ring. The message was sent before.
    pub fn wake(&self) {
        if self.flag.must_wake() {
            // A full counter means that the core is being woken already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Empties the event counter.
    pub fn drain(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

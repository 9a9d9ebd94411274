//! Wakes a data core that sleeps, and only then.
//!
//! Both sides use a full fence between their store and their load (store own flag, look at the
//! other's), so a message is either seen by the core before it sleeps or the sender sees the flag.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

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

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::atomic::AtomicUsize;

    #[test]
    fn no_message_is_slept_through() {
        loom::model(|| {
            let flag = loom::sync::Arc::new(SleepFlag::awake());
            let inbox = loom::sync::Arc::new(AtomicUsize::new(0));
            let sender = {
                let (flag, inbox) = (flag.clone(), inbox.clone());
                loom::thread::spawn(move || {
                    inbox.store(1, Ordering::Release);
                    flag.must_wake()
                })
            };
            flag.prepare();
            let seen = inbox.load(Ordering::Acquire) == 1;
            let woken = sender.join().unwrap();
            assert!(seen || woken, "the core sleeps with a message in its inbox");
        });
    }
}

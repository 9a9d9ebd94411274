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
            self.knock();
        }
    }

    /// Wakes the core by its event, whatever its flag says: for whoever took that on and could not
    /// do it through the ring.
    pub fn knock(&self) {
        // A full counter means that the core is being woken already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Empties the event counter.
    pub fn drain(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use taipan_engine::ring::Ring;

    use super::*;

    const NOW: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };

    fn rings(bell: &Doorbell) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(bell.event(), PollFlags::IN)];
        poll(&mut polled, Some(&NOW)).unwrap() > 0
    }

    #[test]
    fn only_a_sleeper_is_woken_and_only_once() {
        let bell = Doorbell::new().unwrap();
        bell.wake();
        assert!(!rings(&bell), "it is awake");
        bell.flag().prepare();
        bell.wake();
        assert!(rings(&bell));
        bell.drain();
        bell.wake();
        assert!(!rings(&bell), "on its way already");
    }

    #[test]
    fn a_message_that_does_not_reach_the_other_ring_says_so_and_the_event_wakes_instead() {
        let bell = Doorbell::new().unwrap();
        bell.flag().prepare();
        assert!(bell.flag().must_wake(), "the sender has to wake it");
        let mut ring = Ring::new(8).unwrap();
        // No ring: the core behind it has ended, or the kernel has no memory.
        let no_ring = std::fs::File::open("/dev/null").unwrap();
        ring.message(no_ring.as_raw_fd(), 1, 2);
        let failed = loop {
            ring.wait(Duration::from_secs(5)).unwrap();
            if let Some(completed) = ring.next_completed() {
                break completed;
            }
        };
        assert_eq!(failed.token, 2);
        assert!(failed.result < 0, "{}", failed.result);
        bell.wake();
        assert!(!rings(&bell), "the flag is taken");
        bell.knock();
        assert!(rings(&bell));
    }
}

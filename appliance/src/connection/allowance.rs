//! Memory for requests of all connections together (`limits.request_bytes_total`): who may hold
//! how much of it, so that clients that take no replies leave enough to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A request up to this size is always taken if its connection holds nothing.
pub(super) const ALWAYS_BYTES: u64 = 128 << 10;
/// A connection that holds no more may use what is left to nobody else.
pub const MODEST_BYTES: u64 = 256 << 10;
/// One connection may hold this part of what is free: many that come at once leave each other
/// something, a single one gets enough to keep a fast network busy.
const PART_OF_FREE: u64 = 4;

/// How many bytes all connections may hold, and how many they do.
///
/// | a connection | takes another request while all hold less than |
/// |---|---|
/// | whose socket is full of replies | a half |
/// | that would hold more than [`MODEST_BYTES`] | three quarters |
/// | that would hold less | all of it |
///
/// and then only if it would hold at most a quarter of the rest. A request that does not fit
/// whatever its connection gives back is taken as the only one of its kind.
#[derive(Debug)]
pub struct Allowance {
    max: u64,
    held: AtomicU64,
    /// A request that did not fit is being answered.
    large: AtomicBool,
    /// Another one waits for that.
    wanted: AtomicBool,
}

impl Allowance {
    /// An allowance of `max` bytes, none of it held.
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            held: AtomicU64::new(0),
            large: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
        })
    }
}

/// What a connection wants to begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Bytes of the request and its reply.
    pub(super) bytes: u64,
    /// What the connection holds for others now.
    pub(super) held: u64,
    /// Its socket is full of replies.
    pub(super) unread: bool,
}

/// One connection's part of an allowance; gives it back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    allowance: Arc<Allowance>,
    held: u64,
    /// Holds a request that did not fit.
    large: bool,
}

impl Share {
    pub(super) fn new(allowance: Arc<Allowance>) -> Self {
        Self {
            allowance,
            held: 0,
            large: false,
        }
    }

    /// Bytes held.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Holds exactly so much from now on: `bytes` of requests and replies, and `buffers`.
    pub(super) fn hold(&mut self, bytes: u64, buffers: u64) {
        let (before, now) = (self.held, bytes + buffers);
        self.held = now;
        match now.checked_sub(before) {
            Some(0) => {}
            Some(more) => _ = self.allowance.held.fetch_add(more, Ordering::Relaxed),
            None => {
                _ = self
                    .allowance
                    .held
                    .fetch_sub(before - now, Ordering::Relaxed)
            }
        }
        if self.large && bytes == 0 {
            self.large = false;
            self.allowance.large.store(false, Ordering::Release);
        }
    }

    /// Whether a request may begin; if not, it waits until others, or this connection, give back.
    pub(super) fn admits(&mut self, need: Need) -> bool {
        if need.held == 0 && need.bytes <= ALWAYS_BYTES {
            return true;
        }
        need.held + need.bytes <= self.part(need) || need.held == 0 && self.take_large()
    }

    /// The most that the connection may hold now.
    fn part(&self, need: Need) -> u64 {
        let max = self.allowance.max;
        let mark = match need.unread {
            true => max / 2,
            false if need.held + need.bytes <= MODEST_BYTES => max,
            false => max - max / 4,
        };
        // What this turn added is not in the sum yet.
        let fresh = need.held.saturating_sub(self.held);
        let held = self.allowance.held.load(Ordering::Relaxed) + fresh;
        mark.saturating_sub(held) / PART_OF_FREE
    }

    fn take_large(&mut self) -> bool {
        let taken = self.allowance.large.swap(true, Ordering::Acquire);
        self.large |= !taken;
        self.allowance.wanted.store(taken, Ordering::Relaxed);
        !taken
    }

    /// Whether a request of another connection waits just for the one that is answered here.
    pub(super) fn blocks_another(&self) -> bool {
        self.large && self.allowance.wanted.load(Ordering::Relaxed)
    }

    /// Whether memory is short, and more than a little of it held here.
    pub(super) fn holds_much_of_little(&self) -> bool {
        let held = self.allowance.held.load(Ordering::Relaxed);
        held > self.allowance.max - self.allowance.max / 4 && self.held > MODEST_BYTES
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn need(bytes: u64, held: u64) -> Need {
        Need {
            bytes,
            held,
            unread: false,
        }
    }

    fn unread(bytes: u64, held: u64) -> Need {
        Need {
            unread: true,
            ..need(bytes, held)
        }
    }

    #[test]
    fn what_is_left_is_kept_for_those_that_take_their_replies_and_want_little() {
        let allowance = Allowance::new(256 * MIB);
        let mut greedy = Share::new(Arc::clone(&allowance));
        let mut other = Share::new(Arc::clone(&allowance));
        let (small, large) = (need(MODEST_BYTES / 2, MODEST_BYTES / 2), need(MIB, MIB));
        // Held by others; may go on: unread, large, small.
        let rows = [
            (0, true, true, true),
            (100, true, true, true),
            (118, true, true, true),
            (119, false, true, true),
            (183, false, true, true),
            (184, false, false, true),
            (254, false, false, true),
            (255, false, false, false),
            (300, false, false, false),
        ];
        for (held, may_unread, may_large, may_small) in rows {
            greedy.hold(held * MIB, 0);
            let may = [unread(MIB, MIB + 1), large, small].map(|need| other.admits(need));
            assert_eq!(may, [may_unread, may_large, may_small], "{held} MiB");
            assert!(other.admits(need(ALWAYS_BYTES, 0)), "{held} MiB");
        }
        drop(greedy);
        assert_eq!(allowance.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_was_added_in_this_turn_counts_before_it_is_booked() {
        let allowance = Allowance::new(16 * MIB);
        let mut share = Share::new(Arc::clone(&allowance));
        let part = 12 * MIB / (PART_OF_FREE + 1);
        assert!(share.admits(need(1000, part - 1000)));
        assert!(!share.admits(need(1000, part)));
        share.hold(part, 0);
        assert!(!share.admits(need(1000, part)), "the same, booked");
        assert!(share.admits(need(1, part - 1)));
    }

    #[test]
    fn one_request_at_a_time_is_taken_though_it_does_not_fit() {
        let allowance = Allowance::new(16 * MIB);
        let mut greedy = Share::new(Arc::clone(&allowance));
        let mut first = Share::new(Arc::clone(&allowance));
        let mut second = Share::new(Arc::clone(&allowance));
        greedy.hold(12 * MIB, 0);
        let whole = need(64 * MIB, 0);
        assert!(first.admits(whole));
        first.hold(64 * MIB, 0);
        assert!(!second.admits(whole));
        assert!(first.blocks_another() && first.holds_much_of_little());
        first.hold(1, 0);
        assert!(!second.admits(whole), "not sent yet");
        first.hold(0, 4096);
        assert!(!first.blocks_another() && !first.holds_much_of_little());
        assert!(second.admits(whole));
        drop(second);
        assert!(first.admits(whole), "who leaves gives it back");
    }
}

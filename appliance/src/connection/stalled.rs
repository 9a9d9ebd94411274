//! Clients that take none of their replies, or nearly none, while others need the memory.

use super::{Buffers, Connection};

/// A client that takes nothing for so long is closed if memory is short and it holds much. TCP
/// clients that take nothing at all are closed by `limits.tcp_user_timeout_seconds` anyway.
const STALLED_MS_MAX: u64 = 30_000;
/// The same if a request of another one waits for nothing else.
const BLOCKING_MS_MAX: u64 = 5000;
/// Who takes less than this within that time takes nothing.
const TAKEN_BYTES_MIN: u64 = 64 << 10;

/// How a client gets on with its replies.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes that its socket took since `since_ms`.
    taken: u64,
    since_ms: u64,
}

impl Progress {
    /// The socket took so many bytes.
    #[inline]
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken += bytes as u64;
    }

    /// How long the client has taken next to nothing of what waits for it (`waits`).
    fn stalled_ms(&mut self, waits: bool, now_ms: u64) -> u64 {
        if !waits || self.taken >= TAKEN_BYTES_MIN {
            (self.taken, self.since_ms) = (0, now_ms);
        }
        now_ms.saturating_sub(self.since_ms)
    }
}

impl Connection {
    /// To be called several times a second: puts away bytes that have waited for a while, and tells
    /// whether the connection has to be closed because its client takes no replies and others need
    /// the memory.
    pub fn is_in_the_way(&mut self, now_ms: u64, buffers: &mut Buffers) -> bool {
        self.input.stow(!self.readable, buffers);
        self.rest(buffers);
        let stalled_ms = self.progress.stalled_ms(self.unread, now_ms);
        stalled_ms >= BLOCKING_MS_MAX && self.share.blocks_another()
            || stalled_ms >= STALLED_MS_MAX && self.share.holds_much_of_little()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_takes_a_little_is_not_stalled_and_one_that_drips_is() {
        let mut progress = Progress::default();
        assert_eq!(progress.stalled_ms(true, 1000), 1000);
        assert_eq!(progress.stalled_ms(false, 5000), 0, "nothing waits for it");
        assert_eq!(progress.stalled_ms(true, 9000), 4000);
        progress.took(TAKEN_BYTES_MIN as usize - 1);
        assert_eq!(progress.stalled_ms(true, 10_000), 5000);
        progress.took(1);
        assert_eq!(progress.stalled_ms(true, 10_200), 0);
        assert_eq!(progress.stalled_ms(true, 10_300), 100);
    }
}

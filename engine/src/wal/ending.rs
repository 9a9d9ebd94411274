//! The end of a log in order: its last log head says that nothing follows, so that the next start
//! need not look for what a torn write might have left (`docs/internals/recovery.md`).

use crate::identity::{Epoch, Lsn};

use super::format::LogEnd;
use super::log::ShardLog;
use super::replay::Recovered;
use super::write::Health;

/// Greatest numbers that anything in the file has, whether it counts or not.
#[derive(Debug)]
pub(super) struct Used {
    next_lsn: Lsn,
    max_epoch: Epoch,
}

impl Used {
    /// What was used before this writer.
    pub(super) fn by(recovered: &Recovered) -> Self {
        Self {
            next_lsn: recovered.next_lsn,
            max_epoch: recovered.max_epoch,
        }
    }

    /// A record with this stamp is appended.
    #[inline]
    pub(super) fn note_epoch(&mut self, epoch: Epoch) {
        self.max_epoch = self.max_epoch.max(epoch);
    }
}

impl ShardLog {
    /// Ends the log if everything in it is durable: from then on appends are refused, and a log
    /// head is queued that says where it ends. False if it cannot end now; nothing is changed then.
    pub fn end(&mut self) -> bool {
        let at_rest = !self.has_open()
            && self.durable_through() == self.last()
            && self.health() == Health::Good;
        if at_rest && !self.writer.has_ended() {
            self.writer.end();
        }
        at_rest
    }

    /// Whether the log head that tells of the end is still to become durable.
    pub fn is_ending(&self) -> bool {
        self.writer.has_ended() && self.writer.is_head_pending() && self.failed().is_none()
    }

    /// What a log head says of the end.
    pub(super) fn log_end(&self) -> LogEnd {
        LogEnd {
            next_lsn: self.used.next_lsn.max(self.last_lsn.next()),
            last_lsn: self.last_lsn,
            max_epoch: self.used.max_epoch,
            last_generation: self.segments.last_generation(),
            chain: self.chain,
        }
    }
}

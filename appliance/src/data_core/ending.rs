//! The last thing that a data core does: its logs end in order, so that the next start need not
//! search them.

use taipan_engine::failpoint;

use super::DataCore;

/// So long the ends may take to become durable. Without them the next start takes longer, and
/// nothing else.
const ENDS_MS_MAX: u64 = 5000;

impl DataCore {
    /// No client is left, and no more messages come.
    pub(super) fn start_ending(&mut self) {
        match failpoint::hit("wal.end") {
            Ok(()) => self.core.end_logs(),
            Err(error) => tracing::warn!(core = self.index, %error, "the logs do not end"),
        }
        self.ends_by_ms = Some(self.now_ms() + ENDS_MS_MAX);
    }

    /// Stops once nothing of the logs is on its way any more.
    pub(super) fn check_ending(&mut self, now_ms: u64) {
        let Some(by_ms) = self.ends_by_ms else {
            return;
        };
        let late = now_ms >= by_ms;
        if late && self.core.is_ending() {
            tracing::warn!(
                core = self.index,
                "the end of the logs is not durable in time"
            );
        }
        self.stopped = late || !self.core.is_ending();
    }
}

//! The last thing that a data core does: its logs end in order, so that the next start need not
//! search them, and note what it would read of them.

use std::fs;

use taipan_engine::failpoint;
use taipan_engine::wal::files::noted_path;

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
        if self.stopped {
            self.note_headers();
        }
    }

    /// Nothing waits for these files to be durable: a start that does not find all of it reads the
    /// log.
    fn note_headers(&self) {
        let mut headers = Vec::new();
        for shard in self.core.shards() {
            headers.clear();
            if !shard.log().note_headers(&mut headers) {
                continue;
            }
            let path = noted_path(&self.wal_dir, shard.id());
            if let Err(error) = fs::write(&path, &headers) {
                tracing::warn!(path = %path.display(), %error, "the next start reads the log");
                // What there is of it is worth nothing, and not believed.
                let _ = fs::remove_file(&path);
                return;
            }
        }
    }
}

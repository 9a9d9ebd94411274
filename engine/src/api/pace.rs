//! How soon the daemon makes durable and commits what was written, as it is configured.

use serde::{Deserialize, Serialize};

/// Part of the status: the settings behind what may be lost. A volume may have an interval of its
/// own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaceStatus {
    /// A batch is written to the WAL at the latest so many milliseconds after its first record.
    pub flush_interval_ms: u64,
    /// At most so many answered bytes are not durable.
    pub flush_size_bytes: u64,
    /// A change is committed to the backend after so many seconds.
    pub commit_interval_seconds: u64,
    /// … or as soon as so many bytes are uncommitted.
    pub commit_pending_bytes: u64,
}

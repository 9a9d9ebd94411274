//! Settings of compaction: when chunks are worth rewriting, and how fast that may go.

use std::fmt::{self, Write};

use super::document::Document;

/// Highest threshold: above, compaction writes ten times what it frees.
const THRESHOLD_PERCENT_MAX: u64 = 90;
const THRESHOLD_PERCENT: u64 = 35;
const BYTES_PER_SECOND: u64 = 50 << 20;

/// Settings of compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Chunks with a smaller live share are rewritten; 0: none is.
    pub threshold_percent: u8,
    /// Bytes read and written each second; 0: compaction is off.
    pub bytes_per_second: u64,
}

/// Reads the section `compaction`.
pub(super) fn read(doc: &mut Document) -> Compaction {
    let threshold = doc.integer("compaction.threshold_percent", 0..=THRESHOLD_PERCENT_MAX);
    let rate = doc.size("compaction.bytes_per_second", 0..=1 << 40);
    Compaction {
        threshold_percent: threshold.unwrap_or(THRESHOLD_PERCENT) as u8,
        bytes_per_second: rate.unwrap_or(BYTES_PER_SECOND),
    }
}

impl Compaction {
    /// The section as it is written in a file.
    pub(super) fn print(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n[compaction]")?;
        writeln!(out, "threshold_percent = {}", self.threshold_percent)?;
        let bytes = super::print::size_text(self.bytes_per_second);
        writeln!(out, "bytes_per_second = {bytes}")
    }
}

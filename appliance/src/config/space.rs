//! Settings of freed space: how fast deleted volumes are freed, and when orphans are swept.

use std::fmt::{self, Write};
use std::time::Duration;

use super::document::Document;

const DELETES_PER_SECOND: u64 = 1000;
const SWEEP_INTERVAL_DAYS: u64 = 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of freed space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Objects of deleted volumes, and orphans, deleted each second.
    pub deletes_per_second: u64,
    /// Orphans are swept so often; `None`: only when that is asked for.
    pub sweep_interval: Option<Duration>,
}

/// Reads the section `space`.
pub(super) fn read(doc: &mut Document) -> Space {
    let rate = doc.integer("space.deletes_per_second", 1..=1_000_000);
    let days = doc.integer("space.sweep_interval_days", 0..=3650);
    let days = days.unwrap_or(SWEEP_INTERVAL_DAYS) as u32;
    Space {
        deletes_per_second: rate.unwrap_or(DELETES_PER_SECOND),
        sweep_interval: (days > 0).then(|| DAY * days),
    }
}

impl Space {
    /// The section as it is written in a file.
    pub(super) fn print(&self, out: &mut String) -> fmt::Result {
        let days = self
            .sweep_interval
            .map_or(0, |interval| interval.as_secs() / DAY.as_secs());
        writeln!(out, "\n[space]")?;
        writeln!(out, "deletes_per_second = {}", self.deletes_per_second)?;
        writeln!(out, "sweep_interval_days = {days}")
    }
}

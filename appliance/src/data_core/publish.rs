//! Shows the core's counts in the daemon's metrics, now and then.

use taipan_engine::core::{Core, CoreCounters as Counts};

use crate::metrics::CoreCounters;

/// How old what is shown may be.
const PUBLISH_EVERY_MS: u64 = 200;
const NANOS_PER_MS: u64 = 1_000_000;

/// What was shown so far.
#[derive(Default)]
pub(super) struct Published {
    at_ms: u64,
    counts: Counts,
}

impl Published {
    /// Adds what was counted since the last time, unless that was just now.
    pub(super) fn publish(&mut self, now_ms: u64, core: &Core, shown: &CoreCounters) {
        if now_ms < self.at_ms + PUBLISH_EVERY_MS {
            return;
        }
        self.at_ms = now_ms;
        let before = std::mem::replace(&mut self.counts, core.counters());
        let now = &self.counts;
        shown
            .wal
            .rewrites
            .add(now.wal_rewrites - before.wal_rewrites);
        let released = now.wal_released - before.wal_released;
        shown.wal.released_segments.add(released);
        let (reads, parks) = (&shown.reads, &shown.parks);
        reads
            .memory_blocks
            .add(now.memory_blocks - before.memory_blocks);
        reads.wal_blocks.add(now.wal_blocks - before.wal_blocks);
        reads
            .chunk_blocks
            .add(now.chunk_blocks - before.chunk_blocks);
        reads.hole_blocks.add(now.hole_blocks - before.hole_blocks);
        let mismatches = now.crc_mismatches - before.crc_mismatches;
        reads.crc_mismatches.add(mismatches);
        parks
            .memory
            .add(now.parked_for_memory - before.parked_for_memory);
        parks.log.add(now.parked_for_log - before.parked_for_log);
        let for_bucket = now.parked_for_bucket - before.parked_for_bucket;
        parks.bucket.add(for_bucket);
        let waited_ms = now.parked_ms - before.parked_ms;
        parks.waited_nanos.add(waited_ms * NANOS_PER_MS);
    }
}

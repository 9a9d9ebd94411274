//! What became of reads of committed blocks: caches, read-ahead, what was wrong.

use std::fmt;

use super::counters::SharedCount;
use super::families::Families;

counters! {
    /// Reads beyond batch memory and the log, written by the thread of the reads.
    ColdReadCounters of SharedCount,
    /// Values of [`ColdReadCounters`].
    ColdReadTotals {
        /// Blocks asked for.
        blocks,
        /// Blocks found in the memory cache.
        ram_blocks,
        /// Bytes of those.
        ram_bytes,
        /// Blocks read from the cache file.
        file_blocks,
        /// Bytes of those.
        file_bytes,
        /// Blocks that waited for a read already under way.
        joined_blocks,
        /// Blocks for which the backend was asked.
        backend_blocks,
        /// Bytes of those.
        backend_bytes,
        /// Blocks written to the cache file.
        file_writes,
        /// Blocks not written to the cache file because too many were on their way.
        file_skipped,
        /// Blocks asked of the backend ahead of their use.
        ahead_blocks,
        /// Blocks read ahead that were used.
        ahead_used,
        /// Blocks read ahead that left memory unused.
        ahead_wasted,
        /// Blocks whose bytes from the backend were wrong.
        backend_mismatches,
        /// Blocks whose bytes from the cache file were wrong.
        file_mismatches,
        /// GETs repeated because of wrong bytes.
        refetches,
        /// GETs repeated because of an error.
        retries,
        /// Reads that waited until their deadline and failed.
        expired,
        /// Objects that the backend did not have.
        missing_objects,
        /// Failures of the cache file, each of which switches it off.
        file_failures,
        /// Blocks that a warm-up brought.
        warmed_blocks,
        /// Bytes that the memory cache holds now.
        ram_bytes_held,
        /// Blocks that the cache file holds now.
        file_blocks_held,
    }
}

impl ColdReadCounters {
    /// Sets a gauge; only the thread of the reads may call this.
    pub(crate) fn hold(gauge: &SharedCount, value: u64) {
        gauge.add(value.wrapping_sub(gauge.get()));
    }
}

/// A counter without labels: name, help and value.
type Plain = (&'static str, &'static str, fn(&ColdReadTotals) -> u64);

const PLAIN: [Plain; 12] = [
    ("cold_read_blocks", "Blocks asked of the caches", |t| {
        t.blocks
    }),
    (
        "cold_read_joined_blocks",
        "Blocks that waited for a read already under way",
        |t| t.joined_blocks,
    ),
    (
        "cache_file_writes",
        "Blocks written to the cache file",
        |t| t.file_writes,
    ),
    (
        "cache_file_skipped",
        "Blocks not cached because the cache file was too slow",
        |t| t.file_skipped,
    ),
    (
        "cache_file_failures",
        "Errors that switched the cache file off",
        |t| t.file_failures,
    ),
    ("read_ahead_blocks", "Blocks read ahead", |t| t.ahead_blocks),
    ("read_ahead_used", "Blocks read ahead and used", |t| {
        t.ahead_used
    }),
    (
        "read_ahead_wasted",
        "Blocks read ahead that left memory unused",
        |t| t.ahead_wasted,
    ),
    (
        "cold_read_refetches",
        "GETs repeated because of wrong bytes",
        |t| t.refetches,
    ),
    (
        "cold_read_retries",
        "GETs repeated because of an error",
        |t| t.retries,
    ),
    (
        "cold_read_expired",
        "Reads that failed at backend_deadline_seconds",
        |t| t.expired,
    ),
    (
        "cold_read_missing_objects",
        "Reads of objects that the backend does not have",
        |t| t.missing_objects,
    ),
];

/// Writes the families.
pub(super) fn encode(out: &mut Families<'_>, totals: &ColdReadTotals) -> fmt::Result {
    for (name, help, value) in PLAIN {
        out.counter(name, help, value(totals) as f64)?;
    }
    out.counter(
        "warmed_blocks",
        "Blocks that warm-ups brought",
        totals.warmed_blocks as f64,
    )?;
    let tiers = |ram, file, backend| {
        [
            ([("tier", "ram")], ram as f64),
            ([("tier", "file")], file as f64),
            ([("tier", "backend")], backend as f64),
        ]
    };
    let t = totals;
    let rows = tiers(t.ram_blocks, t.file_blocks, t.backend_blocks);
    out.counters(
        "cold_read_hits",
        "Blocks by the tier that had them",
        rows.into_iter(),
    )?;
    let rows = tiers(t.ram_bytes, t.file_bytes, t.backend_bytes);
    out.counters(
        "cold_read_bytes",
        "Bytes by the tier that had them",
        rows.into_iter(),
    )?;
    let rows = tiers(0, t.file_mismatches, t.backend_mismatches);
    out.counters(
        "cold_read_mismatches",
        "Blocks with wrong bytes, never returned",
        rows.into_iter().skip(1),
    )?;
    out.gauge(
        "cache_ram_bytes",
        "Bytes held by the memory cache",
        t.ram_bytes_held as f64,
    )?;
    out.gauge(
        "cache_file_blocks",
        "Blocks held by the cache file",
        t.file_blocks_held as f64,
    )
}

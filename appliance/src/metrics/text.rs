//! The counters and the status as OpenMetrics text. Names are listed in `docs/operations/api.md`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;
use taipan_engine::api::{
    BackendState, Lineage, RunState, ShardStatus, Status, UploadStatus, VolumeInfo, VolumeState,
};
use taipan_engine::volume::Durability;

use super::counters::{BackendOp, CoreTotals, MetricsSnapshot, RequestKind, VolumeTotals};
use super::families::{Families, NANOS_PER_SECOND};
use super::latency::LatencyTotals;

/// Content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole text.
pub fn render(status: Status, snapshot: MetricsSnapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("taipan");
    registry.register_collector(Box::new(Scrape { status, snapshot }));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

#[derive(Debug)]
struct Scrape {
    status: Status,
    snapshot: MetricsSnapshot,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::from(encoder);
        encode_process(&mut families, &self.status)?;
        encode_volumes(&mut families, &self.status.volumes)?;
        encode_requests(&mut families, &self.snapshot)?;
        encode_shards(&mut families, &self.status)?;
        encode_cores(&mut families, &self.snapshot.cores)?;
        encode_backend(&mut families, &self.status, &self.snapshot)?;
        super::bucket::encode(&mut families, &self.status.backend)?;
        super::reads::encode(&mut families, &self.snapshot.cold_reads)?;
        encode_uploader(&mut families, &self.snapshot)
    }
}

fn encode_process(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let version = [("version", status.version.as_str())];
    out.gauges(
        "build_info",
        "Version of the daemon",
        [(version, 1.0)].into_iter(),
    )?;
    out.gauge(
        "uptime_seconds",
        "Seconds since the start",
        status.uptime_seconds,
    )?;
    let states = [
        ("starting", RunState::Starting),
        ("serving", RunState::Serving),
        ("draining", RunState::Draining),
        ("stopping", RunState::Stopping),
    ];
    let rows = states.map(|(name, state)| ([("state", name)], is(status.state == state)));
    out.gauges("state", "1 for what the daemon is doing", rows.into_iter())?;
    out.gauge(
        "problems",
        "Entries in the problem list of the status",
        status.problems.len() as f64,
    )?;
    out.gauge("epoch", "The global epoch", status.epoch as f64)?;
    out.gauge(
        "recovery_seconds",
        "From start to serving",
        status.recovery.seconds,
    )?;
    let memory = &status.memory;
    out.gauge(
        "memory_resident_bytes",
        "Resident set",
        memory.resident_bytes as f64,
    )?;
    out.gauge(
        "memory_index_bytes",
        "Extent indexes",
        memory.index_bytes as f64,
    )?;
    let parts = memory.parts.iter();
    out.gauges(
        "memory_budget_bytes",
        "Limit of each bounded use of memory",
        parts.map(|part| ([("part", part.name.as_str())], part.bytes as f64)),
    )
}

fn is(true_or_not: bool) -> f64 {
    f64::from(u8::from(true_or_not))
}

/// A metric of a volume: name, help and value.
type VolumeValue = (&'static str, &'static str, fn(&VolumeInfo) -> f64);

const VOLUME_GAUGES: [VolumeValue; 23] = [
    ("volume_size_bytes", "Size", |v| {
        v.settings.size_bytes as f64
    }),
    (
        "volume_mapped_bytes",
        "Committed blocks that hold data",
        |v| (v.mapped_blocks * u64::from(v.settings.block_size_bytes)) as f64,
    ),
    (
        "volume_dirty_bytes",
        "Bytes that no committed manifest holds",
        |v| v.dirty_bytes as f64,
    ),
    ("volume_connections", "Open NBD connections", |v| {
        f64::from(v.connections)
    }),
    (
        "volume_committed_epoch",
        "Epoch of the last committed cut",
        |v| v.committed_epoch as f64,
    ),
    (
        "volume_manifest",
        "Number of the last committed manifest",
        |v| v.manifest as f64,
    ),
    ("volume_generation", "Writer generation", |v| {
        v.generation as f64
    }),
    (
        "volume_chunks",
        "Chunk objects that hold live blocks",
        |v| v.chunks as f64,
    ),
    ("volume_chunk_bytes", "Bytes of chunk objects", |v| {
        v.usage.chunk_bytes as f64
    }),
    (
        "volume_live_bytes",
        "Bytes of chunk objects that are live",
        |v| v.usage.live_bytes as f64,
    ),
    (
        "volume_sparse_chunks",
        "Chunk objects of which too little is live",
        |v| v.usage.sparse_chunks as f64,
    ),
    ("volume_index_bytes", "Memory of the extent index", |v| {
        v.index_bytes as f64
    }),
    (
        "volume_risk_bytes",
        "Bytes written that the backend lacks",
        |v| v.upload.risk_bytes as f64,
    ),
    (
        "volume_risk_seconds",
        "Seconds since the oldest write that the backend lacks",
        |v| v.upload.risk_seconds.unwrap_or(0.0),
    ),
    (
        "volume_commit_chunks_pending",
        "Chunks of the commit under way that are not stored",
        |v| (v.upload.chunks - v.upload.chunks_stored.min(v.upload.chunks)) as f64,
    ),
    (
        "volume_commit_failures_in_a_row",
        "Failures of the commit under way since its last success",
        |v| f64::from(v.upload.failures),
    ),
    (
        "volume_commit_requests_last_hour",
        "Requests that the volume's commits made of the backend in the last hour",
        |v| v.upload.requests_last_hour as f64,
    ),
    (
        "volume_request_budget_per_hour",
        "Requests that its commits may make in an hour; 0: no budget",
        |v| v.settings.requests_per_hour as f64,
    ),
    (
        "volume_budget_held_seconds",
        "For so long the budget lets commits wait that only the interval makes due",
        |v| v.upload.held_seconds.unwrap_or(0.0),
    ),
    (
        "volume_iops_limit",
        "Requests of clients that may begin in a second; 0: no limit",
        |v| v.settings.iops as f64,
    ),
    (
        "volume_bandwidth_limit_bytes",
        "Bytes that clients may read and write in a second; 0: no limit",
        |v| v.settings.bandwidth_bytes as f64,
    ),
    (
        "volume_durability_remote",
        "1 if FLUSH waits for the backend",
        |v| is(v.settings.durability == Durability::Remote),
    ),
    (
        "volume_lineage_broken",
        "1 if answered writes may have been lost",
        |v| is(v.lineage == Lineage::Broken),
    ),
];

fn encode_volumes(out: &mut Families<'_>, volumes: &[VolumeInfo]) -> fmt::Result {
    for (name, help, value) in VOLUME_GAUGES {
        let rows = volumes.iter();
        out.gauges(
            name,
            help,
            rows.map(|v| ([("volume", v.name.as_str())], value(v))),
        )?;
    }
    let waited: [VolumeValue; 2] = [
        (
            "volume_delayed_requests",
            "Requests that waited because of the volume's limits",
            |v| v.delays.requests as f64,
        ),
        (
            "volume_delayed_seconds",
            "How long these waited, all together",
            |v| v.delays.seconds,
        ),
    ];
    for (name, help, value) in waited {
        let rows = volumes.iter();
        let rows = rows.map(|v| ([("volume", v.name.as_str())], value(v)));
        out.counters(name, help, rows)?;
    }
    let aged = volumes.iter().filter_map(|v| {
        let age = v.last_commit_age_seconds?;
        Some(([("volume", v.name.as_str())], age))
    });
    out.gauges(
        "volume_commit_age_seconds",
        "Seconds since the last commit",
        aged,
    )?;
    let states = [
        ("online", VolumeState::Online),
        ("read_only", VolumeState::ReadOnly),
        ("unverified", VolumeState::Unverified),
        ("refused", VolumeState::Refused),
        ("fenced", VolumeState::Fenced),
        ("elsewhere", VolumeState::Elsewhere),
        ("deleting", VolumeState::Deleting),
    ];
    let rows = volumes.iter().flat_map(|v| {
        states.iter().map(|&(name, state)| {
            (
                [("volume", v.name.as_str()), ("state", name)],
                is(v.state == state),
            )
        })
    });
    out.gauges("volume_state", "1 for the state of the volume", rows)
}

/// A counter of a volume by request kind: name, help and values.
type VolumeCounter = (&'static str, &'static str, fn(&VolumeTotals) -> &[u64]);

fn encode_requests(out: &mut Families<'_>, snapshot: &MetricsSnapshot) -> fmt::Result {
    let families: [VolumeCounter; 3] = [
        ("requests", "Requests answered, errors included", |t| {
            &t.requests
        }),
        ("request_bytes", "Bytes of requests that succeeded", |t| {
            &t.bytes
        }),
        ("request_errors", "Requests answered with an error", |t| {
            &t.errors
        }),
    ];
    for (name, help, values) in families {
        let rows = snapshot.volumes.iter().flat_map(|(volume, totals)| {
            RequestKind::ALL.into_iter().map(move |kind| {
                let labels = [("volume", volume.as_str()), ("kind", kind.name())];
                (labels, values(totals)[kind as usize] as f64)
            })
        });
        out.counters(name, help, rows)?;
    }
    let rows = RequestKind::ALL.into_iter().map(|kind| {
        let of_cores = snapshot
            .cores
            .iter()
            .map(|core| &core.latency[kind as usize]);
        ([("kind", kind.name())], sum(of_cores))
    });
    let help = "From the whole request received to its reply handed to the socket";
    out.histograms("request_latency_seconds", help, rows)
}

fn sum<'a>(of_cores: impl Iterator<Item = &'a LatencyTotals>) -> LatencyTotals {
    let mut totals = LatencyTotals::default();
    of_cores.for_each(|core| totals.add(core));
    totals
}

/// A gauge of a shard: name, help and value.
type ShardGauge = (&'static str, &'static str, fn(&ShardStatus) -> f64);

fn encode_shards(out: &mut Families<'_>, status: &Status) -> fmt::Result {
    let names: Vec<String> = status.shards.iter().map(|s| s.shard.to_string()).collect();
    let gauges: [ShardGauge; 7] = [
        ("wal_size_bytes", "Size of the shard's WAL file", |s| {
            s.wal_total_bytes as f64
        }),
        ("wal_reserve_bytes", "Bytes that writes never get", |s| {
            s.wal_reserve_bytes as f64
        }),
        ("wal_used_bytes", "Bytes not yet released", |s| {
            s.wal_used_bytes as f64
        }),
        (
            "wal_undurable_bytes",
            "Answered bytes that a power loss would take",
            |s| s.undurable_bytes as f64,
        ),
        ("batch_resident_bytes", "Batch memory in use", |s| {
            s.resident_bytes as f64
        }),
        ("parked_requests", "Requests waiting for room now", |s| {
            f64::from(s.parked)
        }),
        ("shard_failed", "1 if the shard refuses writes", |s| {
            is(s.failure.is_some())
        }),
    ];
    for (name, help, value) in gauges {
        let rows = status.shards.iter().zip(&names);
        out.gauges(
            name,
            help,
            rows.map(|(s, n)| ([("shard", n.as_str())], value(s))),
        )?;
    }
    let mode = [("mode", status.wal.sync_mode.as_str())];
    out.gauges(
        "wal_sync_info",
        "How WAL writes are made durable",
        [(mode, 1.0)].into_iter(),
    )
}

/// A counter of a data core: name, help and value.
type CoreCounter = (&'static str, &'static str, fn(&CoreTotals) -> u64);

const CORE_COUNTERS: [CoreCounter; 12] = [
    ("wal_writes", "Batch writes completed", |c| c.wal.writes),
    ("wal_write_bytes", "Bytes of those writes", |c| {
        c.wal.write_bytes
    }),
    ("wal_barriers", "Flush barriers completed", |c| {
        c.wal.barriers
    }),
    ("wal_errors", "Writes and barriers that failed", |c| {
        c.wal.errors
    }),
    (
        "wal_rewrites",
        "Batches written again after an error",
        |c| c.wal.rewrites,
    ),
    (
        "wal_released_segments",
        "Segments released after a commit",
        |c| c.wal.released_segments,
    ),
    (
        "crc_mismatches",
        "Blocks whose checksum did not match",
        |c| c.reads.crc_mismatches,
    ),
    ("connections_accepted", "Connections accepted", |c| {
        c.connections.accepted
    }),
    ("connections_closed", "Connections closed", |c| {
        c.connections.closed
    }),
    (
        "connections_refused",
        "Connections refused at the limit",
        |c| c.connections.refused,
    ),
    (
        "handshake_failures",
        "Connections closed in the handshake",
        |c| c.connections.handshake_failures,
    ),
    (
        "protocol_errors",
        "Connections closed for an invalid request",
        |c| c.connections.protocol_errors,
    ),
];

/// A label's value and the counter that goes with it.
type Labelled = (&'static str, fn(&CoreTotals) -> u64);

const READ_SOURCES: [Labelled; 4] = [
    ("memory", |c| c.reads.memory_blocks),
    ("wal", |c| c.reads.wal_blocks),
    ("chunk", |c| c.reads.chunk_blocks),
    ("hole", |c| c.reads.hole_blocks),
];

const PARK_REASONS: [Labelled; 4] = [
    ("memory", |c| c.parks.memory),
    ("log", |c| c.parks.log),
    ("backend", |c| c.parks.bucket),
    ("connection", |c| c.parks.connection),
];

fn encode_cores(out: &mut Families<'_>, cores: &[CoreTotals]) -> fmt::Result {
    let names: Vec<String> = (0..cores.len()).map(|core| core.to_string()).collect();
    for (name, help, value) in CORE_COUNTERS {
        let rows = cores.iter().zip(&names);
        out.counters(
            name,
            help,
            rows.map(|(c, n)| ([("core", n.as_str())], value(c) as f64)),
        )?;
    }
    let total = |value: fn(&CoreTotals) -> u64| cores.iter().map(value).sum::<u64>() as f64;
    let rows = READ_SOURCES
        .into_iter()
        .map(|(source, value)| ([("source", source)], total(value)));
    out.counters("read_blocks", "Blocks read, by where they were found", rows)?;
    out.counter(
        "read_nearby_blocks",
        "Blocks from chunks that a data core itself read from their files",
        total(|c| c.reads.nearby_blocks),
    )?;
    let rows = PARK_REASONS
        .into_iter()
        .map(|(why, value)| ([("reason", why)], total(value)));
    out.counters("parked", "Requests that had to wait for room", rows)?;
    let waited = total(|c| c.parks.waited_nanos) / NANOS_PER_SECOND;
    out.counter(
        "parked_seconds",
        "Time that requests waited for room",
        waited,
    )?;
    let latencies = [
        ("wal_write_latency_seconds", "Time of a batch write", {
            sum(cores.iter().map(|core| &core.wal_write_latency))
        }),
        ("wal_barrier_latency_seconds", "Time of a flush barrier", {
            sum(cores.iter().map(|core| &core.wal_barrier_latency))
        }),
    ];
    for (name, help, totals) in latencies {
        out.histogram(name, help, &totals)?;
    }
    Ok(())
}

fn encode_backend(
    out: &mut Families<'_>,
    status: &Status,
    snapshot: &MetricsSnapshot,
) -> fmt::Result {
    let states = [
        ("healthy", BackendState::Healthy),
        ("retrying", BackendState::Retrying),
        ("full", BackendState::Full),
    ];
    let backend = &status.backend;
    let rows = states.map(|(name, state)| ([("state", name)], is(backend.state == state)));
    out.gauges(
        "backend_state",
        "1 for the state of the backend",
        rows.into_iter(),
    )?;
    let failing = backend.failing_seconds.unwrap_or(0.0);
    out.gauge(
        "backend_failing_seconds",
        "Seconds since the first failure in a row",
        failing,
    )?;

    encode_backlog(out, &status.upload)?;
    let totals = &snapshot.backend;
    let families: [(&str, &str, &[u64], f64); 4] = [
        (
            "backend_operations",
            "Operations, failed ones included",
            &totals.operations,
            1.0,
        ),
        (
            "backend_errors",
            "Operations that failed",
            &totals.errors,
            1.0,
        ),
        ("backend_bytes", "Payload bytes moved", &totals.bytes, 1.0),
        (
            "backend_seconds",
            "Time spent in operations",
            &totals.nanos,
            NANOS_PER_SECOND,
        ),
    ];
    for (name, help, values, unit) in families {
        let rows = BackendOp::ALL.into_iter();
        let rows = rows.map(|op| {
            (
                [("operation", op.name())],
                values[op as usize] as f64 / unit,
            )
        });
        out.counters(name, help, rows)?;
    }
    Ok(())
}

fn encode_backlog(out: &mut Families<'_>, upload: &UploadStatus) -> fmt::Result {
    let backlog = upload.backlog_bytes as f64;
    out.gauge(
        "upload_backlog_bytes",
        "Bytes written that the backend lacks",
        backlog,
    )?;
    let oldest = upload.oldest_seconds.unwrap_or(0.0);
    let help = "Seconds since the oldest write that the backend lacks";
    out.gauge("upload_oldest_seconds", help, oldest)?;
    let rate = upload.wal_bytes_per_second as f64;
    out.gauge(
        "wal_bytes_per_second",
        "Bytes written to the WAL lately",
        rate,
    )?;
    let help = "Seconds until the WAL is full at this rate if nothing is released";
    match upload.runway_seconds {
        Some(runway) => out.gauge("wal_runway_seconds", help, runway),
        None => Ok(()),
    }
}

fn encode_uploader(out: &mut Families<'_>, snapshot: &MetricsSnapshot) -> fmt::Result {
    let totals = &snapshot.uploader;
    let counters = [
        ("cuts", "Epoch cuts taken", totals.cuts as f64),
        ("commits", "Manifests committed", totals.commits as f64),
        (
            "commit_failures",
            "Attempts to commit that failed",
            totals.commit_failures as f64,
        ),
        (
            "chunks_stored",
            "Chunk objects stored",
            totals.chunks as f64,
        ),
        (
            "packed_blocks",
            "Blocks packed",
            totals.packed_blocks as f64,
        ),
        (
            "superseded_blocks",
            "Blocks with a newer version in their cut",
            { totals.superseded_blocks as f64 },
        ),
        (
            "compactions",
            "Compactions committed",
            totals.compactions as f64,
        ),
        (
            "compaction_failures",
            "Compactions that could not read or store",
            totals.compaction_failures as f64,
        ),
        (
            "compaction_read_bytes",
            "Bytes that compactions read",
            totals.compaction_read_bytes as f64,
        ),
        (
            "compaction_written_bytes",
            "Bytes of chunks that compactions wrote",
            totals.compaction_written_bytes as f64,
        ),
        (
            "freed_objects",
            "Objects of deleted volumes that were deleted",
            totals.freed_objects as f64,
        ),
        ("freed_bytes", "Bytes of them", totals.freed_bytes as f64),
        ("sweeps", "Volumes swept", totals.sweeps as f64),
        (
            "swept_objects",
            "Orphans deleted",
            totals.swept_objects as f64,
        ),
        ("swept_bytes", "Bytes of them", totals.swept_bytes as f64),
        ("commit_seconds", "Time from cut to commit, summed", {
            totals.commit_nanos as f64 / NANOS_PER_SECOND
        }),
    ];
    for (name, help, value) in counters {
        out.counter(name, help, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

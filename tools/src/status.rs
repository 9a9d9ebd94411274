//! `taipan status` and `taipan drain`.

use taipan_engine::api::{BackendState, ShardStatus, Status, VolumeInfo, VolumeList, WalStatus};
use taipan_engine::size::human;

use crate::cli::Target;
use crate::control::Control;
use crate::failure::Outcome;
use crate::output::{human_seconds, percent};
use crate::table::{Align, Fields, Table};
use crate::volume::{list, word};

/// Shows how the appliance is doing.
pub(crate) fn run(target: &Target) -> Outcome<()> {
    let status = Control::new(target.control_socket())?.status()?;
    target.form().print(&status, render)
}

/// Packs everything and waits for it.
pub(crate) fn drain(target: &Target) -> Outcome<()> {
    let control = Control::new(target.control_socket())?;
    control.drain()?;
    target
        .form()
        .print(&serde_json::json!({ "drained": true }), |_| {
            "everything is packed into the backend\n".to_owned()
        })
}

fn render(status: &Status) -> String {
    let mut out = String::new();
    for problem in &status.problems {
        out.push_str(&format!("PROBLEM  {problem}\n"));
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&overview(status));
    out.push('\n');
    out.push_str(&shards(&status.shards));
    out.push('\n');
    let volumes = VolumeList {
        volumes: status.volumes.clone(),
    };
    out.push_str(&list(&volumes));
    out
}

fn overview(status: &Status) -> String {
    let cores: Vec<String> = status.data_cores.iter().map(usize::to_string).collect();
    let uploader = status
        .uploader_core
        .map_or_else(|| "not pinned".to_owned(), |cpu| cpu.to_string());
    let undurable = status.shards.iter().map(|s| s.undurable_bytes).sum();
    let wal = &status.wal;
    let mut fields = Fields::default();
    fields
        .add(
            "taipand",
            format!(
                "{}, process {}, {} for {}",
                status.version,
                status.pid,
                word(status.state),
                human_seconds(status.uptime_seconds)
            ),
        )
        .add("data", status.data_dir.as_str())
        .add("runtime", status.runtime_dir.as_str())
        .add("listeners", status.listeners.join("\n"))
        .add("clients", status.connections.to_string())
        .add(
            "cpus",
            format!("data {}, uploader {uploader}", cores.join(" ")),
        )
        .add("WAL", wal_room(wal))
        .add(
            "WAL sync",
            format!("{} ({})", wal.sync_mode, wal.sync_reason),
        )
        .add("WAL writes", wal_pace(status))
        .add("not durable", format!("{} answered", human(undurable)))
        .add("epoch", status.epoch.to_string())
        .add("backend", backend(status))
        .add("commits", commit_pace(status))
        .add("requests", requests(status))
        .add("upload", upload(status))
        .add("compaction", compaction(status))
        .add("space", space(status))
        .add("memory", memory(status))
        .add("recovery", recovery(status));
    fields.render()
}

/// What writes have taken of what they may.
fn wal_room(wal: &WalStatus) -> String {
    let for_data = wal.total_bytes.saturating_sub(wal.reserve_bytes);
    format!(
        "{} of {} used ({}), and {} in reserve",
        human(wal.used_bytes),
        human(for_data),
        percent(wal.used_bytes, for_data),
        human(wal.reserve_bytes)
    )
}

fn wal_pace(status: &Status) -> String {
    let pace = &status.pace;
    format!(
        "after {} ms, at most {} not durable",
        pace.flush_interval_ms,
        human(pace.flush_size_bytes)
    )
}

fn commit_pace(status: &Status) -> String {
    let pace = &status.pace;
    format!(
        "after {} s or {}, unless a volume has its own interval",
        pace.commit_interval_seconds,
        human(pace.commit_pending_bytes)
    )
}

/// What the commits asked of the backend, and the budgets of volumes that have one.
fn requests(status: &Status) -> String {
    let made = |volume: &VolumeInfo| volume.upload.requests_last_hour;
    let all: u64 = status.volumes.iter().map(made).sum();
    let mut text = format!("{all} by commits in the last hour");
    let budgets = status.volumes.iter();
    for volume in budgets.filter(|volume| volume.settings.requests_per_hour > 0) {
        let (name, budget) = (&volume.name, volume.settings.requests_per_hour);
        text.push_str(&format!("\n{name}: {} of {budget}", made(volume)));
    }
    text
}

fn backend(status: &Status) -> String {
    let backend = &status.backend;
    let mut text = format!("{}, {}", backend.url, word(backend.state));
    if let Some(seconds) = backend.failing_seconds {
        text.push_str(&format!(" for {}", human_seconds(seconds)));
    }
    if let Some(writes) = backend.conditional_writes {
        text.push_str(&format!(", conditional writes: {}", word(writes)));
    }
    if let (false, Some(error)) = (backend.state == BackendState::Healthy, &backend.last_error) {
        text.push_str(&format!("\n{error}"));
    }
    text
}

fn upload(status: &Status) -> String {
    let upload = &status.upload;
    let mut text = format!("{} to go", human(upload.backlog_bytes));
    if let Some(seconds) = upload.oldest_seconds {
        text.push_str(&format!(", the oldest {} old", human_seconds(seconds)));
    }
    if let Some(seconds) = upload.runway_seconds {
        let (rate, runway) = (human(upload.wal_bytes_per_second), human_seconds(seconds));
        text.push_str(&format!(
            "; at {rate}/s the WAL lasts {runway} without the backend"
        ));
    }
    text
}

fn compaction(status: &Status) -> String {
    let compaction = &status.compaction;
    if compaction.threshold_percent == 0 || compaction.bytes_per_second == 0 {
        return "off".to_owned();
    }
    let sparse: u64 = status.volumes.iter().map(|v| v.usage.sparse_chunks).sum();
    let (read, written) = (
        human(compaction.read_bytes),
        human(compaction.written_bytes),
    );
    format!(
        "{read} read, {written} written in {} runs ({} failed); {sparse} chunks below {} % live",
        compaction.committed, compaction.failures, compaction.threshold_percent
    )
}

fn space(status: &Status) -> String {
    let space = &status.space;
    let mut text = format!(
        "{} freed of deleted volumes, {} of orphans in {} sweeps",
        human(space.freed_bytes),
        human(space.swept_bytes),
        space.sweeps
    );
    if space.volumes_to_free > 0 {
        text.push_str(&format!("; {} volumes to go", space.volumes_to_free));
    }
    text
}

fn memory(status: &Status) -> String {
    let memory = &status.memory;
    let mut text = format!(
        "{} resident, budget {}, indexes {}",
        human(memory.resident_bytes),
        human(memory.budget_bytes),
        human(memory.index_bytes)
    );
    for part in &memory.parts {
        text.push_str(&format!("\n{:>10}  {}", human(part.bytes), part.name));
    }
    text
}

fn recovery(status: &Status) -> String {
    let recovery = &status.recovery;
    let end = if recovery.clean {
        "all volumes whole"
    } else {
        "answered writes of a volume may be lost"
    };
    format!(
        "{}: {} batches, {} records ({} from memory only); {end}",
        human_seconds(recovery.seconds),
        recovery.batches,
        recovery.records,
        recovery.region_records
    )
}

fn shards(shards: &[ShardStatus]) -> String {
    let mut table = Table::new(&[
        ("SHARD", Align::Right),
        ("CORE", Align::Right),
        ("WAL USED", Align::Right),
        ("OF", Align::Right),
        ("NOT DURABLE", Align::Right),
        ("IN MEMORY", Align::Right),
        ("BATCH", Align::Right),
        ("DURABLE", Align::Right),
        ("PARKED", Align::Right),
        ("STATE", Align::Left),
    ]);
    for shard in shards {
        let state = match (&shard.failure, shard.silent_seconds) {
            (None, None) => "ok".to_owned(),
            (Some(cause), _) => format!("FAILED: {cause}"),
            (None, Some(seconds)) => format!("SILENT for {}", human_seconds(seconds)),
        };
        table.row([
            shard.shard.to_string(),
            shard.core.to_string(),
            human(shard.wal_used_bytes),
            human(
                shard
                    .wal_total_bytes
                    .saturating_sub(shard.wal_reserve_bytes),
            ),
            human(shard.undurable_bytes),
            human(shard.resident_bytes),
            shard.last_batch.to_string(),
            shard.durable_batch.to_string(),
            shard.parked.to_string(),
            state,
        ]);
    }
    table.render()
}

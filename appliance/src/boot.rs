//! Start: lock is held, now backend, log, volumes, then the threads.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use taipan_engine::api::{Lineage, RecoveryStatus};
use taipan_engine::backend::{Backend, LocalMetadata};
use taipan_engine::block::{SHARD_COUNT, ShardId};
use taipan_engine::core::EpochClock;
use taipan_engine::error::{Error, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::Overlay;
use taipan_engine::registry::{self, LocalHead, LocalHeads, RecordFate};
use taipan_engine::wal::LogConfig;
use taipan_engine::wal::region_files::PreparedRegions;

use crate::assembly::Assembly;
use crate::backend_check::{CheckedBackend, open_checked};
use crate::caretaker::{Again, Left};
use crate::config::Config;
use crate::connection::Allowance;
use crate::daemon::{Parts, Running};
use crate::directory::{Directory, Volume};
use crate::fetcher::ChunkTables;
use crate::handoff::{Handed, Successor};
use crate::listeners::Listeners;
use crate::lock::free_bytes;
use crate::metrics::Metrics;
use crate::opening::Opened;
use crate::ownership::Ownership;
use crate::patience::QUESTION_SILENCE_MAX;
use crate::quarantine::Quarantine;
use crate::recovery::{ReadyShard, RecoveryFigures, Replayed};
use crate::search::{BACKEND_WAIT, Search, is_deleted};
use crate::service::Service;
use crate::stages::Stages;
use crate::sync_mode::SyncChoice;
use crate::tls::TlsService;

/// A volume found at start.
pub(crate) struct BootVolume {
    pub(crate) volume: Arc<Volume>,
    /// `None`: it is refused, or another appliance's.
    pub(crate) opened: Option<Opened>,
    /// It is not open, and none of its records need stay in the WAL.
    pub(crate) released: bool,
}

impl BootVolume {
    fn used(&self) -> Option<(Epoch, bool)> {
        self.opened.as_ref().map(Opened::used)
    }
}

/// Recovers and starts the data plane.
pub fn start(mut parts: Parts<'_>) -> Result<Box<dyn Running>> {
    let started = Instant::now();
    let mut stages = Stages::since(parts.began);
    stages.ended("arrival");
    let armed = failpoint::arm_from_environment().map_err(Error::invalid)?;
    if armed > 0 {
        tracing::warn!(armed, "FAILPOINTS ARE ARMED: this daemon fails on purpose");
    }
    let successor = parts.successor.take();
    let takeover = successor.is_some();
    let prepared = match prepare(&mut parts, takeover) {
        Ok(prepared) => prepared,
        Err(error) => {
            if let Some(successor) = successor {
                successor.give_up(&error);
            }
            return Err(error);
        }
    };
    stages.ended("preparation");
    let clients = successor.map_or(Ok(Vec::new()), Successor::switch)?;
    stages.ended("switch");
    let switched = Instant::now();
    let running = serve(parts, prepared, clients, (started, stages))?;
    if takeover {
        let seconds = switched.elapsed().as_secs_f64();
        tracing::info!(
            seconds,
            "taken over: the clients of the daemon before are served"
        );
    }
    Ok(running)
}

/// Recovers and starts the data plane: this process alone uses the data directory now.
fn serve(
    parts: Parts<'_>,
    prepared: Prepared,
    clients: Vec<Handed>,
    (started, mut stages): (Instant, Stages),
) -> Result<Box<Service>> {
    let config = parts.config;
    let Prepared {
        backend,
        wanted,
        regions,
        sync,
        listeners,
        tls,
    } = prepared;
    let wal_dir = parts.data.path().join("wal");
    let (replayed, sync) = std::thread::scope(|scope| {
        // Beside the replay, if there is something to replay.
        let runtime_dir = &parts.runtime_dir;
        let decide = || SyncChoice::decide(&wal_dir, runtime_dir, config.wal.sync, false);
        let early = (sync.is_none() && wal_dir.is_dir()).then(|| scope.spawn(decide));
        let replayed = Replayed::open(&wal_dir, runtime_dir, &wanted, regions, &mut stages);
        let early = early.map(|thread| thread.join().expect("no panic"));
        let sync = sync.map(Ok).or(early);
        replayed.and_then(|replayed| Ok((replayed, sync.unwrap_or_else(decide)?)))
    })?;
    stages.ended("sync");
    stages.beside("all_sync", sync.took);
    tracing::info!(mode = sync.name(), barrier = ?sync.barrier, reason = sync.reason, "WAL sync");

    let (backend, copies) = with_copies(backend, config, parts.data.path());
    let heads = LocalHeads::open(&parts.data.path().join("volumes"))?;
    let (mut volumes, left) =
        find_volumes(&parts, &*backend, copies.as_deref(), &heads, &replayed)?;
    let served = volumes.iter().filter_map(BootVolume::used);
    let first = registry::first_epoch(served, replayed.stamped_through());
    stages.ended("volumes");

    let paths = replayed.paths();
    let log_config = *replayed.config();
    let asked = left.ownership.is_none().then_some(&*backend);
    let recovered = recover(asked, replayed, &volumes, &mut stages)?;
    // Only now is there memory that outlives this process. A crash before leaves what was closed in
    // order closed in order.
    for opened in volumes.iter_mut().filter_map(|boot| boot.opened.as_mut()) {
        registry::begin_serving(&heads, &mut opened.local, first)?;
    }
    stages.ended("heads");
    let found = (recovered.figures, recovered.memory_survived);
    let metrics = Arc::new(Metrics::new(config.cores.data.len()));
    let assembly = Assembly {
        backend,
        heads,
        clock: Arc::new(EpochClock::new(first)),
        allowance: Allowance::new(config.limits.request_bytes_total),
        tls,
        directory: Arc::new(Directory::with_access(config.access.clone())),
        tables: Arc::new(ChunkTables::default()),
        metrics,
        paths,
        log_config,
        sync,
        started,
    };
    let arrivals = Arrivals { listeners, clients };
    let running = assembly.start(parts, volumes, recovered, (left, arrivals))?;
    stages.ended("threads");
    announce(&running, found, (started, &stages));
    Ok(running)
}

/// Says what the start came to, in the log and in the status.
fn announce(
    running: &Service,
    found: (RecoveryFigures, bool),
    (started, stages): (Instant, &Stages),
) {
    let (figures, memory_survived) = found;
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(
        seconds,
        batches = figures.batches,
        records = figures.records,
        from_memory = figures.region_records,
        searched = figures.searched,
        noted = figures.noted,
        memory_survived,
        parts_ms = %stages,
        "serving"
    );
    running.set_recovery(RecoveryStatus {
        seconds,
        batches: figures.batches,
        records: figures.records,
        region_records: figures.region_records,
        clean: is_intact(running.directory()),
    });
}

/// What is ready before anything of the data directory is touched.
struct Prepared {
    backend: Arc<CheckedBackend>,
    /// Sizes of the log as configured.
    wanted: LogConfig,
    /// Only for a takeover, in which time is short later.
    regions: Option<PreparedRegions>,
    sync: Option<SyncChoice>,
    listeners: Listeners,
    tls: Option<Arc<TlsService>>,
}

/// Who connects, and who is connected.
pub(crate) struct Arrivals {
    pub(crate) listeners: Listeners,
    pub(crate) clients: Vec<Handed>,
}

/// Does what can be done, and can fail, while another daemon may serve still (`takeover`).
fn prepare(parts: &mut Parts<'_>, takeover: bool) -> Result<Prepared> {
    let (config, data) = (parts.config, parts.data.path());
    let backend = open_checked(config, data)?;
    let wal_bytes = config.wal.bytes_on(free_bytes(data)?);
    let arena_bytes = parts.budget.batch_bytes_per_shard() as usize;
    let undurable_bytes = config.wal.flush_size_bytes as usize / SHARD_COUNT;
    let wanted =
        LogConfig::for_wal(wal_bytes / 16, arena_bytes)?.with_undurable_max(undurable_bytes)?;
    let listeners = Listeners::bind(
        &config.listen,
        &config.socket,
        &config.limits,
        parts.inherited,
    )?;
    let (mut regions, mut sync) = (None, None);
    if takeover {
        let (wal_dir, runtime_dir) = (data.join("wal"), &parts.runtime_dir);
        sync = Some(SyncChoice::decide(
            &wal_dir,
            runtime_dir,
            config.wal.sync,
            true,
        )?);
        regions = Some(PreparedRegions::reserve(&parts.runtime_dir, arena_bytes)?);
    }
    Ok(Prepared {
        backend,
        wanted,
        regions,
        sync,
        listeners,
        tls: crate::tls::start(config.tls.as_ref())?,
    })
}

/// Whether no answered write of any volume may be missing.
fn is_intact(directory: &Directory) -> bool {
    let volumes = directory.all();
    volumes.iter().all(|v| v.lineage() == Lineage::Intact)
}

/// Keeps local copies of metadata of backends on other machines.
fn with_copies(
    backend: Arc<dyn Backend>,
    config: &Config,
    data: &Path,
) -> (Arc<dyn Backend>, Option<Arc<LocalMetadata>>) {
    let is_here = ["dir:", "mem:"]
        .iter()
        .any(|kind| config.backend.starts_with(kind));
    if is_here {
        return (backend, None);
    }
    let copies = Arc::new(LocalMetadata::new(backend, &data.join("metadata")));
    (Arc::clone(&copies) as Arc<dyn Backend>, Some(copies))
}

/// The volumes, and what is left to do when the backend can be asked.
fn find_volumes(
    parts: &Parts<'_>,
    backend: &dyn Backend,
    copies: Option<&LocalMetadata>,
    heads: &LocalHeads,
    replayed: &Replayed,
) -> Result<(Vec<BootVolume>, Left)> {
    let heads_dir = parts.data.path().join("volumes");
    let mut ownership = Ownership::decide(parts.config.volumes_open, &heads_dir, heads)?;
    let offline = copies.map(LocalMetadata::offline);
    let search = Search {
        backend,
        copies: offline.as_ref().map(|offline| offline as &dyn Backend),
        patience: BACKEND_WAIT,
        silence: QUESTION_SILENCE_MAX,
        away: Cell::default(),
        heads,
        heads_dir: &heads_dir,
        replayed,
        stamped: replayed.stamped_through(),
        takes_all: ownership.takes_all,
        quarantine: Quarantine::of(parts.data.path()),
    };
    let found = search.open_all()?;
    let takes_all = ownership.takes_all;
    if found.backend_asked {
        ownership.settle()?;
        if let Some(copies) = copies {
            let opened = found.volumes.iter().filter(|boot| boot.opened.is_some());
            copies.retain(&opened.map(|boot| boot.volume.id).collect::<Vec<_>>());
        }
    }
    let left = Left {
        again: Again::of(takes_all, &found.volumes, &replayed.volumes()),
        ownership: (!found.backend_asked).then_some(ownership),
    };
    Ok((found.volumes, left))
}

/// The shards and what they know of each volume.
pub(crate) struct Recovered {
    pub(crate) shards: Vec<ReadyShard>,
    pub(crate) overlays: HashMap<(VolumeId, ShardId), Overlay>,
    pub(crate) figures: RecoveryFigures,
    pub(crate) memory_survived: bool,
    pub(crate) files: taipan_engine::wal::files::WalFiles,
    /// Volumes with records that nobody needs.
    pub(crate) forgotten: Vec<VolumeId>,
}

fn recover(
    backend: Option<&dyn Backend>,
    replayed: Replayed,
    volumes: &[BootVolume],
    stages: &mut Stages,
) -> Result<Recovered> {
    let locals: HashMap<VolumeId, &LocalHead> = volumes
        .iter()
        .filter_map(|boot| Some((boot.volume.id, &boot.opened.as_ref()?.local)))
        .collect();
    let is_replayed = |id: VolumeId, epoch: Epoch| {
        let local = locals.get(&id);
        local.is_some_and(|local| local.fate(epoch) == RecordFate::Replay)
    };
    let mut overlays = replayed.overlays(is_replayed);
    stages.ended("overlays");
    let find = |id: VolumeId| volumes.iter().find(|boot| boot.volume.id == id);
    let forgotten: Vec<VolumeId> = replayed
        .volumes()
        .into_iter()
        .filter(|id| match find(*id) {
            Some(boot) => boot.released,
            // Without an answer of the backend it is kept.
            None => backend.is_some_and(|backend| is_deleted(backend, *id)),
        })
        .collect();
    let is_forgotten = |id: VolumeId| forgotten.contains(&id);
    let memory_survived = replayed.memory_survived;
    let wanted = |id: VolumeId, epoch: Epoch| match locals.contains_key(&id) {
        false => !is_forgotten(id),
        true => is_replayed(id, epoch),
    };
    let (shards, figures, files) = replayed.resume(wanted, |shard, id, record| {
        if !locals.contains_key(&id) {
            return;
        }
        let overlay = overlays.entry((id, shard)).or_default();
        if record.points.is_empty() {
            overlay.insert_zero(record.blocks, record.lsn);
            return;
        }
        for (local, point) in record.blocks.zip(record.points) {
            overlay.insert_point(taipan_engine::block::LocalBlock(local), point);
        }
    })?;
    stages.ended("logs");
    Ok(Recovered {
        shards,
        overlays,
        figures,
        memory_survived,
        files,
        forgotten,
    })
}

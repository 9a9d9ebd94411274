//! Start: lock is held, now backend, log, volumes, then the threads.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use futures::executor::block_on;
use taipan_engine::api::{Lineage, RecoveryStatus, VolumeState};
use taipan_engine::arena::ArenaReader;
use taipan_engine::backend::{self, Backend};
use taipan_engine::block::ShardId;
use taipan_engine::commit::{Coordinator, CutPolicy};
use taipan_engine::core::{Core, EpochClock, WritePolicy};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::Overlay;
use taipan_engine::registry::{self, LocalHead, LocalHeads, NamedVolume, RecordFate};
use taipan_engine::shard::{Shard, VolumeSlot};
use taipan_engine::volume::{OnLostCache, VolumeSettings};
use taipan_engine::wal::LogConfig;

use crate::connection::ConnectionLimits;
use crate::daemon::{Parts, Running};
use crate::data_core::{DataCore, DataCoreParts};
use crate::directory::{Directory, Volume};
use crate::fetcher::{ChunkTables, Fetcher};
use crate::inbox::{CoreAddress, CoreMessage};
use crate::listeners::Listeners;
use crate::lock::free_bytes;
use crate::metrics::Metrics;
use crate::opening::{Opened, open_volume};
use crate::recovery::{ReadyShard, RecoveryFigures, Replayed};
use crate::service::{Service, ServiceParts, Threads};
use crate::sync_mode::SyncChoice;
use crate::uploader::{
    UploadVolume, Uploader, UploaderAddress, UploaderParts, UploaderState, give_way,
};
use crate::watchdog::Watchdog;

/// What an operator is told of a volume whose answered writes may be gone.
const LOST_CACHE: &str = "the host crashed: writes answered after the last FLUSH of their client \
                          may be missing; decide with `taipan volume set --on-lost-cache`";
/// Batch memory is cleared in steps of this.
const POPULATE_BYTES: usize = 1 << 20;

/// A volume opened at start.
struct BootVolume {
    volume: Arc<Volume>,
    /// `None`: it is refused.
    opened: Option<Opened>,
}

/// Recovers and starts the data plane.
pub fn start(parts: Parts<'_>) -> Result<Box<dyn Running>> {
    let started = Instant::now();
    let armed = failpoint::arm_from_environment().map_err(Error::invalid)?;
    if armed > 0 {
        tracing::warn!(armed, "FAILPOINTS ARE ARMED: this daemon fails on purpose");
    }
    let config = parts.config;
    let backend = backend::open(&config.backend, &parts.data.path().join("objects"))?;
    let wal_dir = parts.data.path().join("wal");
    let wal_bytes = config.wal.bytes_on(free_bytes(parts.data.path())?);
    let arena_bytes = parts.budget.batch_bytes_per_shard() as usize;
    let wanted = LogConfig::for_wal(wal_bytes / 16, arena_bytes)?;
    let replayed = Replayed::open(&wal_dir, &parts.runtime_dir, &wanted)?;
    let sync = SyncChoice::decide(&wal_dir, config.wal.sync)?;
    tracing::info!(mode = sync.name(), barrier = ?sync.barrier, reason = sync.reason, "WAL sync");

    let heads = LocalHeads::open(&parts.data.path().join("volumes"))?;
    let stamped = replayed.stamped_through();
    let volumes = open_all(&*backend, &heads, stamped, &replayed)?;
    let heads_epoch = volumes
        .iter()
        .filter_map(|v| Some(v.opened.as_ref()?.commit.head().epoch));
    let epoch = heads_epoch.max().unwrap_or_default().max(stamped).next();
    let clock = Arc::new(EpochClock::new(epoch));

    let paths = replayed.paths();
    let log_config = *replayed.config();
    let recovered = recover(replayed, &volumes)?;
    let memory_survived = recovered.memory_survived;
    let figures = recovered.figures;
    let metrics = Arc::new(Metrics::new(config.cores.data.len()));
    let assembly = Assembly {
        backend,
        heads,
        clock,
        directory: Arc::new(Directory::default()),
        tables: Arc::new(ChunkTables::default()),
        metrics,
        paths,
        log_config,
        sync,
        started,
    };
    let running = assembly.start(parts, volumes, recovered)?;
    let clean = running
        .directory()
        .all()
        .iter()
        .all(|v| v.lineage == Lineage::Intact);
    tracing::info!(
        seconds = started.elapsed().as_secs_f64(),
        batches = figures.batches,
        records = figures.records,
        from_memory = figures.region_records,
        memory_survived,
        "serving"
    );
    running.set_recovery(RecoveryStatus {
        seconds: started.elapsed().as_secs_f64(),
        batches: figures.batches,
        records: figures.records,
        region_records: figures.region_records,
        clean,
    });
    Ok(running)
}

/// Opens every volume of the backend; one that cannot be opened is refused, not forgotten.
fn open_all(
    backend: &dyn Backend,
    heads: &LocalHeads,
    stamped: Epoch,
    replayed: &Replayed,
) -> Result<Vec<BootVolume>> {
    let listing = block_on(registry::list_volumes(backend))?;
    for problem in &listing.problems {
        tracing::error!(error = %problem, "a volume name cannot be read");
    }
    let mut volumes = Vec::new();
    for (index, named) in listing.volumes.into_iter().enumerate() {
        let slot = VolumeSlot(index as u32);
        let opened = block_on(open_volume(backend, heads, named.id, stamped));
        volumes.push(match opened {
            Ok(opened) => judge(slot, opened, replayed, heads)?,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => refuse(slot, named, heads, &error),
        });
    }
    Ok(volumes)
}

/// Decides whether and how an opened volume is served.
fn judge(
    slot: VolumeSlot,
    mut opened: Opened,
    replayed: &Replayed,
    heads: &LocalHeads,
) -> Result<BootVolume> {
    let survived = opened.was_clean || replayed.memory_survived;
    let intact = survived && !opened.local.lost_cache;
    let mut volume = Volume::serving(slot, &opened.local, intact);
    let id = volume.id;
    if replayed.has_foreign(id, |epoch| opened.local.fate(epoch)) {
        let cause = "the WAL holds writes of a lineage that another appliance has replaced; they \
                     are kept and not merged"
            .to_owned();
        tracing::error!(volume = %volume.name, cause, "volume refused");
        volume.set_state(VolumeState::Refused, Some(cause));
        return Ok(BootVolume {
            volume: Arc::new(volume),
            opened: None,
        });
    }
    if !intact {
        tracing::error!(volume = %volume.name, cause = LOST_CACHE, "lineage is broken");
        // Remembered, so that another start does not take the volume for whole.
        opened.local.lost_cache = true;
        heads.save(&opened.local)?;
        let state = match volume.settings().on_lost_cache {
            OnLostCache::Continue => VolumeState::Online,
            OnLostCache::ReadOnly => VolumeState::ReadOnly,
            OnLostCache::Refuse => VolumeState::Refused,
        };
        *volume.read_only.get_mut() = state != VolumeState::Online;
        volume.set_state(state, Some(LOST_CACHE.to_owned()));
    }
    Ok(BootVolume {
        volume: Arc::new(volume),
        opened: Some(opened),
    })
}

fn refuse(slot: VolumeSlot, named: NamedVolume, heads: &LocalHeads, error: &Error) -> BootVolume {
    tracing::error!(volume = %named.name, %error, "volume refused");
    let known = heads.load(named.id).ok().flatten();
    let settings = known.map_or_else(
        || VolumeSettings::with_size(512),
        |local: LocalHead| local.settings,
    );
    let identity = (named.name, named.id);
    let volume = Volume::refused(slot, identity, settings, error.to_string());
    BootVolume {
        volume: Arc::new(volume),
        opened: None,
    }
}

/// The shards and what they know of each volume.
struct Recovered {
    shards: Vec<ReadyShard>,
    overlays: HashMap<(VolumeId, ShardId), Overlay>,
    figures: RecoveryFigures,
    memory_survived: bool,
    files: taipan_engine::wal::files::WalFiles,
    /// Volumes with records that nobody needs.
    forgotten: Vec<VolumeId>,
}

fn recover(replayed: Replayed, volumes: &[BootVolume]) -> Result<Recovered> {
    let mut overlays = HashMap::new();
    for boot in volumes {
        let Some(opened) = &boot.opened else { continue };
        for shard in ShardId::all() {
            let overlay = replayed.overlay(shard, boot.volume.id, |e| opened.local.fate(e));
            overlays.insert((boot.volume.id, shard), overlay);
        }
    }
    let find = |id: VolumeId| volumes.iter().find(|boot| boot.volume.id == id);
    let forgotten = replayed
        .volumes()
        .into_iter()
        .filter(|id| find(*id).is_none())
        .collect();
    let memory_survived = replayed.memory_survived;
    let wanted = |id: VolumeId, epoch: Epoch| match find(id) {
        None => false,
        Some(BootVolume { opened: None, .. }) => true,
        Some(BootVolume {
            opened: Some(opened),
            ..
        }) => opened.local.fate(epoch) == RecordFate::Replay,
    };
    let (shards, figures, files) = replayed.resume(wanted, |shard, id, record| {
        let Some(overlay) = overlays.get_mut(&(id, shard)) else {
            return;
        };
        if record.points.is_empty() {
            overlay.insert_zero(record.blocks, record.lsn);
            return;
        }
        for (local, point) in record.blocks.zip(record.points) {
            overlay.insert_point(taipan_engine::block::LocalBlock(local), point);
        }
    })?;
    Ok(Recovered {
        shards,
        overlays,
        figures,
        memory_survived,
        files,
        forgotten,
    })
}

/// Everything that the threads share.
struct Assembly {
    backend: Arc<dyn Backend>,
    heads: LocalHeads,
    clock: Arc<EpochClock>,
    directory: Arc<Directory>,
    tables: Arc<ChunkTables>,
    metrics: Arc<Metrics>,
    paths: Vec<PathBuf>,
    log_config: LogConfig,
    sync: SyncChoice,
    started: Instant,
}

impl Assembly {
    fn start(
        self,
        parts: Parts<'_>,
        volumes: Vec<BootVolume>,
        recovered: Recovered,
    ) -> Result<Box<Service>> {
        let config = parts.config;
        let (mut addresses, mut inboxes) = (Vec::new(), Vec::new());
        for _ in &config.cores.data {
            let (address, inbox) =
                CoreAddress::new().map_err(|e| Error::io("making a doorbell", e))?;
            addresses.push(address);
            inboxes.push(inbox);
        }
        let (uploader, uploader_inbox) = UploaderAddress::new();
        let fetcher = Fetcher::start(&self.backend, &self.tables, &self.metrics.backend())
            .map_err(|e| Error::io("starting the fetcher", e))?;
        let arenas: Vec<ArenaReader> = recovered
            .shards
            .iter()
            .map(|shard| shard.arena.clone())
            .collect();
        populate(&arenas);
        let mut cores = self.build_cores(config, &volumes, recovered.shards, recovered.overlays);
        for core in &mut cores {
            for id in &recovered.forgotten {
                core.core.forget_volume(*id);
            }
        }
        let mut uploads = Vec::new();
        for boot in volumes {
            if let Some(opened) = boot.opened {
                let volume = Arc::clone(&boot.volume);
                let upload = UploadVolume::new(opened.commit, opened.local, volume);
                upload.fill_tables(&self.tables);
                uploads.push(upload);
            }
            self.directory.insert(boot.volume);
        }
        let state = Arc::new(UploaderState::default());
        let mut watchdog = Watchdog::new(self.started);
        let listeners = Listeners::bind(&config.listen, &config.socket, &config.limits)?;
        let listening = listeners.addresses();

        let mut threads = Threads::default();
        for (built, inbox) in cores.into_iter().zip(inboxes) {
            let heartbeat = Arc::new(AtomicU64::new(0));
            watchdog.watch(format!("data-{}", built.index), Arc::clone(&heartbeat));
            let core = self.core_parts(built, inbox, config, &addresses, &fetcher, &uploader);
            let core = DataCoreParts { heartbeat, ..core };
            let cpu = config.cores.pin.then(|| config.cores.data[core.index]);
            threads.data.push(spawn_core(core, cpu)?);
        }
        let policy = CutPolicy {
            commit_interval_ms: config.commit.interval.as_millis() as u64,
            pending_bytes: config.commit.pending_bytes,
            ..CutPolicy::default()
        };
        let upload_parts = UploaderParts {
            cpu: config.cores.pin.then_some(config.cores.uploader),
            backend: Arc::clone(&self.backend),
            heads: self.heads.clone(),
            arenas,
            wal_paths: self.paths.clone(),
            clock: Arc::clone(&self.clock),
            coordinator: Coordinator::new(policy, self.clock.now()),
            volumes: uploads,
            cores: addresses.clone(),
            directory: Arc::clone(&self.directory),
            tables: Arc::clone(&self.tables),
            metrics: Arc::clone(&self.metrics),
            state: Arc::clone(&state),
            started: self.started,
        };
        let thread = Uploader::start(upload_parts, uploader_inbox, uploader.clone())
            .map_err(|e| Error::io("starting the uploader", e))?;
        threads.uploader = Some(thread);
        watchdog
            .start()
            .map_err(|e| Error::io("starting the watchdog", e))?;

        let service = Service::new(ServiceParts {
            config: config.clone(),
            data_dir: parts.data.path().to_owned(),
            runtime_dir: parts.runtime_dir,
            budget: parts.budget,
            directory: Arc::clone(&self.directory),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock,
            addresses: addresses.clone(),
            uploader,
            state,
            backend: self.backend.describe(),
            sync: self.sync,
            listening,
            started: self.started,
            files: recovered.files,
        });
        service.create_configured()?;
        let stop_accepting = Arc::new(AtomicBool::new(false));
        let acceptor = {
            let stop = Arc::clone(&stop_accepting);
            let (directory, metrics) = (self.directory, self.metrics);
            let accept = move || listeners.run(&addresses, &directory, &metrics, &stop);
            std::thread::Builder::new()
                .name("acceptor".to_owned())
                .spawn(accept)
                .map_err(|e| Error::io("starting the acceptor", e))?
        };
        threads.acceptor = Some((acceptor, stop_accepting));
        service.adopt(threads);
        Ok(Box::new(service))
    }

    fn build_cores(
        &self,
        config: &crate::config::Config,
        volumes: &[BootVolume],
        shards: Vec<ReadyShard>,
        mut overlays: HashMap<(VolumeId, ShardId), Overlay>,
    ) -> Vec<BuiltCore> {
        let cores = config.cores.data.len();
        let policy = WritePolicy {
            sync: self.sync.mode,
            flush_interval_ms: config.wal.flush_interval.as_millis() as u64,
            run_bytes_max: (self.log_config.batch_payload_max as u64).min(512 << 10),
            undurable_bytes: self.log_config.undurable_bytes_max / 2,
            ..WritePolicy::default()
        };
        let mut by_core: Vec<(Vec<Shard>, Vec<_>)> =
            (0..cores).map(|_| Default::default()).collect();
        for shard in shards {
            let (own, files) = &mut by_core[shard.id.core(cores)];
            files.push(shard.file);
            own.push(Shard::new(shard.id, shard.log, shard.next_lsn));
        }
        let mut built = Vec::new();
        for (index, (own, wal_files)) in by_core.into_iter().enumerate() {
            let ids: Vec<ShardId> = own.iter().map(Shard::id).collect();
            let mut core = Core::new(index, cores, Arc::clone(&self.clock), own, policy);
            for boot in volumes {
                let Some(opened) = &boot.opened else { continue };
                let (volume, base) = (&boot.volume, opened.commit.base());
                let part = |shard: &ShardId| {
                    let overlay = overlays.remove(&(volume.id, *shard)).unwrap_or_default();
                    (*shard, overlay, base.shard(*shard).clone())
                };
                let parts = ids.iter().map(part).collect();
                let read_only = volume.read_only.load(std::sync::atomic::Ordering::Relaxed);
                let epoch = opened.local.committed_epoch;
                let settings = volume.settings();
                core.add_volume(volume.slot, volume.id, &settings, read_only, epoch, parts);
            }
            built.push(BuiltCore {
                index,
                core,
                wal_files,
            });
        }
        built
    }

    fn core_parts(
        &self,
        built: BuiltCore,
        inbox: Receiver<CoreMessage>,
        config: &crate::config::Config,
        addresses: &[CoreAddress],
        fetcher: &Fetcher,
        uploader: &UploaderAddress,
    ) -> DataCoreParts {
        let limits = &config.limits;
        DataCoreParts {
            index: built.index,
            core: built.core,
            wal_files: built.wal_files,
            barrier: self.sync.barrier,
            inbox,
            addresses: addresses.to_vec(),
            fetcher: fetcher.clone(),
            uploader: uploader.clone(),
            directory: Arc::clone(&self.directory),
            metrics: Arc::clone(&self.metrics),
            limits: ConnectionLimits {
                requests_max: limits.requests_per_connection as usize,
                bytes_max: limits.request_bytes_per_connection,
                handshake_ms: limits.handshake_timeout.as_millis() as u64,
            },
            spin: config.cores.spin,
            heartbeat: Arc::default(),
            started: self.started,
        }
    }
}

/// Clears the pages of batch memory beside the first requests: otherwise each first write to a page
/// waits for that. In small steps, taking turns among the shards, as they fill alike.
fn populate(arenas: &[ArenaReader]) {
    let arenas = arenas.to_vec();
    let clear = move || {
        give_way();
        let longest = arenas.iter().map(ArenaReader::bytes_len).max().unwrap_or(0);
        for offset in (0..longest).step_by(POPULATE_BYTES) {
            for arena in arenas.iter().filter(|arena| offset < arena.bytes_len()) {
                let len = POPULATE_BYTES.min(arena.bytes_len() - offset);
                if let Err(error) = arena.populate(offset, len) {
                    tracing::info!(%error, "batch memory is cleared when it is first used");
                    return;
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("populate".to_owned())
        .spawn(clear)
    {
        tracing::warn!(%error, "batch memory is cleared when it is first used");
    }
}

struct BuiltCore {
    index: usize,
    core: Core,
    wal_files: Vec<Arc<std::fs::File>>,
}

/// Starts a data core on a thread of its own; the ring is made there.
fn spawn_core(
    parts: DataCoreParts,
    cpu: Option<usize>,
) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
    let name = format!("data-{}", parts.index);
    let (ready, made) = crossbeam_channel::bounded(1);
    let run = move || {
        if let Some(id) = cpu {
            core_affinity::set_for_current(core_affinity::CoreId { id });
        }
        match DataCore::new(parts) {
            Ok(core) => {
                let _ = ready.send(Ok(()));
                core.run()
            }
            Err(error) => {
                let text = format!("{error}");
                let _ = ready.send(Err(error));
                Err(std::io::Error::other(text))
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map_err(|e| Error::io("starting a data core", e))?;
    match made.recv_timeout(Duration::from_secs(10)) {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(Error::io(
            "making a data core's io_uring (is it allowed? see kernel.io_uring_disabled)",
            error,
        )),
        Err(_) => Err(Error::new(ErrorKind::Io, "a data core does not start")),
    }
}

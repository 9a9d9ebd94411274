//! Puts the recovered parts together and starts the threads of the data plane.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use taipan_engine::arena::ArenaReader;
use taipan_engine::backend::Backend;
use taipan_engine::block::ShardId;
use taipan_engine::commit::{Coordinator, CutPolicy};
use taipan_engine::core::{Core, EpochClock, WritePolicy};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::index::Overlay;
use taipan_engine::registry::{LAST_SWEEP_FILE, LocalHeads};
use taipan_engine::shard::Shard;
use taipan_engine::wal::LogConfig;
use taipan_engine::wal::files::WalFiles;
use taipan_engine::wal::region_files::boot_id;

use crate::batch_memory;
use crate::boot::{Arrivals, BootVolume, Recovered};
use crate::budget::{MemoryBudget, machine_memory_bytes};
use crate::caretaker::{Caretaker, Lacking, Left, Unlisted};
use crate::config::Config;
use crate::connection::{Allowance, ConnectionLimits};
use crate::daemon::Parts;
use crate::data_core::{DataCore, DataCoreParts};
use crate::directory::Directory;
use crate::fetcher::{ChunkTables, Fetcher, FetcherParts, ReadSettings};
use crate::inbox::{CoreAddress, CoreMessage, Step};
use crate::listeners::Acceptor;
use crate::metrics::Metrics;
use crate::quarantine::Quarantine;
use crate::recovery::ReadyShard;
use crate::service::{Service, ServiceParts, Threads};
use crate::sync_mode::SyncChoice;
use crate::tail::LiveLogs;
use crate::tls::TlsService;
use crate::uploader::{
    Calendar, UploadVolume, Uploader, UploaderAddress, UploaderParts, UploaderState,
};
use crate::watchdog::Watchdog;

/// A running data core.
type CoreThread = std::thread::JoinHandle<std::io::Result<()>>;

/// Everything that the threads share.
pub(crate) struct Assembly {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) heads: LocalHeads,
    pub(crate) clock: Arc<EpochClock>,
    pub(crate) allowance: Arc<Allowance>,
    pub(crate) tls: Option<Arc<TlsService>>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) tables: Arc<ChunkTables>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) log_config: LogConfig,
    pub(crate) sync: SyncChoice,
    pub(crate) started: Instant,
}

impl Assembly {
    /// Makes the cores, starts every thread, and creates the configured volumes.
    pub(crate) fn start(
        self,
        parts: Parts<'_>,
        volumes: Vec<BootVolume>,
        recovered: Recovered,
        (left, arrivals): (Left, Arrivals),
    ) -> Result<Box<Service>> {
        let config = parts.config;
        let listening = arrivals.listeners.addresses();
        let shards = recovered.shards.iter();
        let arenas: Vec<ArenaReader> = shards.map(|shard| shard.arena.clone()).collect();
        let mut cores = self.build_cores(config, &volumes, recovered.shards, recovered.overlays);
        for core in &mut cores {
            for id in &recovered.forgotten {
                core.core.forget_volume(*id);
            }
        }
        let uploads = self.take_volumes(volumes);
        let (uploader, uploader_inbox) = UploaderAddress::new();
        let mut watchdog = Watchdog::new(self.started);
        let fetcher = self.start_fetcher(config, &parts.budget)?;
        let (addresses, data) =
            self.start_cores(config, cores, &fetcher, &uploader, &mut watchdog)?;
        batch_memory::prepare(&arenas, &addresses);
        let state = Arc::new(UploaderState::default());
        let upload_parts = self.uploader_parts(
            config,
            arenas,
            uploads,
            &addresses,
            &state,
            parts.budget.packing_bytes,
        );
        let upload = Uploader::start(upload_parts, uploader_inbox, uploader.clone())
            .map_err(|e| Error::io("starting the uploader", e))?;
        watchdog
            .start()
            .map_err(|e| Error::io("starting the watchdog", e))?;
        let backend_asked = left.ownership.is_none();
        self.start_caretaker(&parts, &addresses, &uploader, &recovered.files, left)?;
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
            backend: Arc::clone(&self.backend),
            fetcher,
            sync: self.sync,
            listening,
            started: self.started,
            files: recovered.files,
        });
        let create = || match backend_asked {
            true => service.create_configured(),
            false => Ok(()),
        };
        let gates = let_in(arrivals, addresses, self.metrics, create)?;
        service.adopt(Threads {
            data,
            uploader: Some(upload),
            ..gates
        });
        Ok(Box::new(service))
    }

    fn start_caretaker(
        &self,
        parts: &Parts<'_>,
        cores: &[CoreAddress],
        uploader: &UploaderAddress,
        files: &WalFiles,
        left: Left,
    ) -> Result<()> {
        let data_dir = parts.data.path();
        let boot = boot_id()?;
        let unlisted = left.ownership.map(|ownership| Unlisted {
            ownership,
            configured: parts.config.volumes.clone(),
        });
        let caretaker = Caretaker {
            backend: Arc::clone(&self.backend),
            heads: self.heads.clone(),
            heads_dir: data_dir.join("volumes"),
            directory: Arc::clone(&self.directory),
            clock: Arc::clone(&self.clock),
            cores: cores.to_vec(),
            uploader: uploader.clone(),
            quarantine: Quarantine::of(data_dir),
            logs: LiveLogs {
                identities: ShardId::all()
                    .map(|shard| files.identity(shard, boot))
                    .collect(),
                paths: self.paths.clone(),
            },
            unlisted,
            again: left.again,
            tables: Arc::clone(&self.tables),
            lacking: Lacking::default(),
        };
        let started = caretaker.start();
        started.map_err(|e| Error::io("starting the caretaker", e))
    }

    /// Enters the volumes into the directory; those that are open go to the uploader.
    fn take_volumes(&self, volumes: Vec<BootVolume>) -> Vec<UploadVolume> {
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
        uploads
    }

    fn start_fetcher(&self, config: &Config, budget: &MemoryBudget) -> Result<Fetcher> {
        let ram_bytes = budget.read_cache_bytes;
        Fetcher::start(FetcherParts {
            backend: Arc::clone(&self.backend),
            tables: Arc::clone(&self.tables),
            backend_counters: self.metrics.backend(),
            counters: Arc::clone(&self.metrics.cold_reads),
            settings: ReadSettings::plan(config, ram_bytes, machine_memory_bytes()),
        })
    }

    fn start_cores(
        &self,
        config: &Config,
        cores: Vec<BuiltCore>,
        fetcher: &Fetcher,
        uploader: &UploaderAddress,
        watchdog: &mut Watchdog,
    ) -> Result<(Vec<CoreAddress>, Vec<CoreThread>)> {
        let (mut addresses, mut inboxes) = (Vec::new(), Vec::new());
        for _ in &cores {
            let (address, inbox) =
                CoreAddress::new().map_err(|e| Error::io("making a doorbell", e))?;
            addresses.push(address);
            inboxes.push(inbox);
        }
        let mut threads = Vec::new();
        for (mut built, inbox) in cores.into_iter().zip(inboxes) {
            built.core.set_caches(fetcher.caches());
            let heartbeat = Arc::clone(addresses[built.index].heartbeat());
            watchdog.watch(format!("data-{}", built.index), heartbeat);
            let core = self.core_parts(built, inbox, config, &addresses, fetcher, uploader);
            let cpu = config.cores.pin.then(|| config.cores.data[core.index]);
            threads.push(spawn_core(core, cpu)?);
        }
        Ok((addresses, threads))
    }

    fn uploader_parts(
        &self,
        config: &Config,
        arenas: Vec<ArenaReader>,
        volumes: Vec<UploadVolume>,
        cores: &[CoreAddress],
        state: &Arc<UploaderState>,
        packing_bytes: u64,
    ) -> UploaderParts {
        let policy = CutPolicy {
            commit_interval_ms: config.commit.interval.as_millis() as u64,
            pending_bytes: config.commit.pending_bytes,
            ..CutPolicy::default()
        };
        let last_sweep = config.data_dir.join("volumes").join(LAST_SWEEP_FILE);
        let calendar = Calendar::new(last_sweep, config.space.sweep_interval);
        UploaderParts {
            cpu: config.cores.pin.then_some(config.cores.uploader),
            backend: Arc::clone(&self.backend),
            heads: self.heads.clone(),
            arenas,
            wal_paths: self.paths.clone(),
            packing_bytes,
            on_full: config.wal.on_full,
            compaction: config.compaction.clone(),
            space: config.space.clone(),
            calendar,
            commit_interval_ms: config.commit.interval.as_millis() as u64,
            clock: Arc::clone(&self.clock),
            coordinator: Coordinator::new(policy, self.clock.now()),
            volumes,
            cores: cores.to_vec(),
            directory: Arc::clone(&self.directory),
            tables: Arc::clone(&self.tables),
            metrics: Arc::clone(&self.metrics),
            state: Arc::clone(state),
            started: self.started,
        }
    }

    fn build_cores(
        &self,
        config: &Config,
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
                let epoch = opened.local.released_through();
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
        config: &Config,
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
            allowance: Arc::clone(&self.allowance),
            tls: self.tls.clone(),
            limits: ConnectionLimits {
                requests_max: limits.requests_per_connection as usize,
                bytes_max: limits.request_bytes_per_connection,
                handshake_ms: limits.handshake_timeout.as_millis() as u64,
            },
            spin: config.cores.spin,
            started: self.started,
            wal_dir: config.data_dir.join("wal"),
        }
    }
}

/// The clients of the daemon before are served on, and once `ready` those that come.
fn let_in(
    mut arrivals: Arrivals,
    cores: Vec<CoreAddress>,
    metrics: Arc<Metrics>,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Threads> {
    arrivals.listeners.count_open(arrivals.clients.len());
    for client in arrivals.clients {
        let core = usize::from(client.passed.core) % cores.len();
        cores[core].send(CoreMessage::HandOff(Step::Resume(client)));
    }
    ready()?;
    Ok(Threads {
        offers: arrivals.listeners.offers()?,
        acceptor: Some(Acceptor::start(arrivals.listeners, cores, metrics)?),
        ..Threads::default()
    })
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

//! The running data plane as the control plane and the daemon see it.

mod clones;
mod configured;
mod ending;
mod parking;
mod reports;
mod snapshots;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use futures::executor::block_on;
use taipan_engine::api::{
    BackendState, BackendStatus, ChunkUsage, CloneInfo, CompactionStatus, ConnectionInfo,
    ConnectionName, DelayInfo, FlattenStatus, MemoryStatus, PaceStatus, RANGES_MAX, RecoveryStatus,
    RunState, ShardStatus, SnapshotInfo, Status, SweepReport, SweepVolume, TakeSnapshot,
    TakeSnapshotGroup, UploadInfo, UploadStatus, VolumeChanges, VolumeHistory, VolumeInfo,
    VolumePatch, VolumeState, WalStatus, WarmStatus, WarmVolume,
};
use taipan_engine::backend::Backend;
use taipan_engine::core::EpochClock;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::registry;
use taipan_engine::snapshot::{ImageName, SnapshotName};
use taipan_engine::volume::{VolumeName, VolumeSettings};
use taipan_engine::wal::files::WalFiles;

use crate::budget::{MemoryBudget, resident_bytes};
use crate::config::Config;
use crate::connection::ConnectionId;
use crate::control::Appliance;
use crate::directory::{Directory, Volume};
use crate::fetcher::Fetcher;
use crate::handoff::Offer;
use crate::inbox::{CoreAddress, CoreMessage, CoreReport, RosterRequest};
use crate::listeners::{Acceptor, Listeners};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::patience::WAIT_MAX;
use crate::quarantine::Quarantine;
use crate::sync_mode::SyncChoice;
use crate::uploader::{Request, UploaderAddress, UploaderState};

use reports::{REPORT_WAIT, Reports};

mod space;

/// How long the uploader may take for a request other than a drain: it waits for the commit under
/// way, then for the operation, and tells before how it stands.
const REQUEST_WAIT: Duration = Duration::from_secs(2 * WAIT_MAX.as_secs() + 30);
/// The uploader turns once a second at least unless it waits for the backend.
const UPLOADER_STILL: Duration = Duration::from_secs(30);

/// What a service is made of.
pub struct ServiceParts {
    /// Settings.
    pub config: Config,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Directory of the memory that outlives the process.
    pub runtime_dir: PathBuf,
    /// Limits of memory.
    pub budget: MemoryBudget,
    /// The volumes.
    pub directory: Arc<Directory>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The global epoch.
    pub clock: Arc<EpochClock>,
    /// The data cores.
    pub addresses: Vec<CoreAddress>,
    /// The uploader.
    pub uploader: UploaderAddress,
    /// Its state.
    pub state: Arc<UploaderState>,
    /// What the backend is.
    pub backend: Arc<dyn Backend>,
    /// Reads of committed blocks.
    pub fetcher: Fetcher,
    /// How WAL writes become durable.
    pub sync: SyncChoice,
    /// Where NBD is served.
    pub listening: Vec<String>,
    /// Zero of the daemon's clock.
    pub started: Instant,
    /// The locked WAL files.
    pub files: WalFiles,
}

/// The threads of the data plane, and what goes with them.
#[derive(Default)]
pub struct Threads {
    /// Data cores.
    pub data: Vec<JoinHandle<std::io::Result<()>>>,
    /// The uploader.
    pub uploader: Option<JoinHandle<()>>,
    /// The acceptor.
    pub acceptor: Option<Acceptor>,
    /// Its sockets while it pauses.
    pub paused: Option<Listeners>,
    /// The same for a successor, until they are asked for.
    pub offers: Vec<Offer>,
}

/// The running data plane.
pub struct Service {
    shared: Arc<Shared>,
    threads: Mutex<Threads>,
}

struct Shared {
    parts: ServiceParts,
    reports: Reports,
    recovery: Mutex<RecoveryStatus>,
    run_state: Mutex<RunState>,
    /// Configured volumes for which the start did not wait.
    awaited: Mutex<Vec<VolumeName>>,
}

impl Service {
    /// A service whose threads follow with [`Service::adopt`].
    pub fn new(parts: ServiceParts) -> Self {
        let shared = Shared {
            reports: Reports::new(parts.addresses.clone(), parts.started),
            parts,
            recovery: Mutex::default(),
            run_state: Mutex::new(RunState::Serving),
            awaited: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            threads: Mutex::default(),
        }
    }

    /// Takes over the threads.
    pub fn adopt(&self, threads: Threads) {
        *self.threads() = threads;
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volumes.
    pub fn directory(&self) -> &Directory {
        &self.shared.parts.directory
    }

    /// Keeps what the start recovered, for the status.
    pub fn set_recovery(&self, recovery: RecoveryStatus) {
        *self
            .shared
            .recovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = recovery;
    }
}

impl Shared {
    fn set_run_state(&self, state: RunState) {
        *self
            .run_state
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Sends a request to the uploader and waits for its answer.
    fn ask(
        &self,
        request: impl FnOnce(crossbeam_channel::Sender<Result<()>>) -> Request,
    ) -> Result<()> {
        let (reply, answer) = bounded(1);
        self.parts.uploader.request(request(reply));
        answer.recv_timeout(REQUEST_WAIT).unwrap_or_else(|_| {
            let text = "the uploader does not answer; the backend may be slow, see the status";
            Err(Error::new(ErrorKind::Transient, text))
        })
    }

    /// Waits for commits however long they take: the backend may be slow, and the caller chose to
    /// wait.
    fn await_commit(
        &self,
        request: impl FnOnce(crossbeam_channel::Sender<std::result::Result<(), String>>) -> Request,
    ) -> Result<()> {
        let (reply, answer) = bounded(1);
        self.parts.uploader.request(request(reply));
        match answer.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(Error::new(ErrorKind::Transient, why)),
            Err(_) => Err(stopping()),
        }
    }

    /// What the backend lacks of a volume, and how its commit fares.
    fn upload_of(&self, id: VolumeId) -> UploadInfo {
        let exposure = self.parts.clock.exposures().of(id);
        let age = |since: u64| self.now_ms().saturating_sub(since) as f64 / 1000.0;
        let mut upload = UploadInfo {
            risk_bytes: exposure.bytes(),
            risk_seconds: exposure.oldest_ms().map(age),
            ..UploadInfo::default()
        };
        let commits = &self.parts.state.commits;
        let commits = commits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = commits.get(&id) {
            let commit = &view.status;
            upload.changing = view.changing;
            let (requests, held_ms) = view.spent;
            upload.requests_last_hour = requests;
            upload.held_seconds = (held_ms > 0).then(|| held_ms as f64 / 1000.0);
            upload.phase = commit.phase.to_owned();
            upload.chunks = commit.chunks;
            upload.chunks_stored = commit.chunks_stored;
            upload.failures = commit.failures;
            let failure = commit.last_failure.as_ref().filter(|_| commit.failures > 0);
            upload.last_failure = failure.map(|(_, text)| text.clone());
        }
        upload
    }

    /// The logs of all shards together.
    fn wal_status(&self, shards: &[ShardStatus]) -> WalStatus {
        let sync = &self.parts.sync;
        WalStatus {
            total_bytes: shards.iter().map(|shard| shard.wal_total_bytes).sum(),
            reserve_bytes: shards.iter().map(|shard| shard.wal_reserve_bytes).sum(),
            used_bytes: shards.iter().map(|shard| shard.wal_used_bytes).sum(),
            sync_mode: sync.name().to_owned(),
            sync_reason: sync.reason.clone(),
        }
    }

    /// What the backend lacks of all volumes, and how long the WAL lasts without it.
    fn upload_status(&self, status: &Status) -> UploadStatus {
        let volumes = || status.volumes.iter().map(|volume| &volume.upload);
        let rate = self
            .parts
            .state
            .wal_bytes_per_second
            .load(Ordering::Relaxed);
        // The fullest shard decides; writes spread over all of them.
        let free = |shard: &ShardStatus| {
            let taken = shard.wal_used_bytes + shard.wal_reserve_bytes;
            shard.wal_total_bytes.saturating_sub(taken)
        };
        let least = status.shards.iter().map(free).min();
        let room = least.map(|free| (free * status.shards.len() as u64) as f64);
        UploadStatus {
            backlog_bytes: volumes().map(|upload| upload.risk_bytes).sum(),
            oldest_seconds: volumes().filter_map(|u| u.risk_seconds).reduce(f64::max),
            wal_bytes_per_second: rate,
            runway_seconds: room.filter(|_| rate > 0).map(|room| room / rate as f64),
        }
    }

    fn now_ms(&self) -> u64 {
        self.parts.started.elapsed().as_millis() as u64
    }

    fn compaction_status(&self) -> CompactionStatus {
        let totals = self.parts.metrics.uploader().totals();
        let config = &self.parts.config.compaction;
        CompactionStatus {
            threshold_percent: config.threshold_percent,
            bytes_per_second: config.bytes_per_second,
            committed: totals.compactions,
            failures: totals.compaction_failures,
            read_bytes: totals.compaction_read_bytes,
            written_bytes: totals.compaction_written_bytes,
        }
    }

    fn info(&self, volume: &Volume, reports: &[CoreReport]) -> VolumeInfo {
        let (state, cause) = volume.state();
        let settings = volume.settings();
        let uncommitted: u64 = reports
            .iter()
            .flat_map(|report| &report.uncommitted_blocks)
            .filter(|(slot, _)| *slot == volume.slot)
            .map(|(_, blocks)| blocks)
            .sum();
        let load = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let committed_ms = load(&volume.last_commit_ms);
        let mut upload = self.upload_of(volume.id);
        if settings.requests_per_hour == 0 {
            // Its budget was taken away since the uploader looked.
            upload.held_seconds = None;
        }
        // What a taken-over volume's cores still know of is in quarantine, once nothing is at risk.
        let is_apart = state == VolumeState::Fenced && upload.risk_bytes == 0;
        let blocks = if is_apart { 0 } else { uncommitted };
        let dirty_bytes = blocks * u64::from(settings.block_size_bytes);
        VolumeInfo {
            name: volume.name.clone(),
            id: volume.id,
            dirty_bytes,
            settings,
            state,
            cause,
            lineage: volume.lineage(),
            connections: volume.connections.load(Ordering::Relaxed),
            mapped_blocks: load(&volume.mapped_blocks),
            committed_epoch: load(&volume.committed_epoch),
            manifest: load(&volume.manifest),
            generation: load(&volume.generation),
            chunks: load(&volume.chunks),
            usage: ChunkUsage {
                chunk_bytes: load(&volume.chunk_bytes),
                live_bytes: load(&volume.live_bytes),
                sparse_chunks: load(&volume.sparse_chunks),
                unreadable_chunks: load(&volume.unreadable_chunks),
            },
            index_bytes: load(&volume.index_bytes),
            last_commit_age_seconds: (committed_ms > 0)
                .then(|| self.now_ms().saturating_sub(committed_ms) as f64 / 1000.0),
            upload,
            delays: DelayInfo {
                requests: volume.throttle.delays().requests,
                seconds: Duration::from_nanos(volume.throttle.delays().waited_ns).as_secs_f64(),
            },
            quarantine: Quarantine::of(&self.parts.data_dir).held(volume.id),
        }
    }

    fn backend_status(&self) -> BackendStatus {
        let state = &self.parts.state;
        let since = state.failing_since_ms.load(Ordering::Relaxed);
        let failing = (since > 0).then(|| self.now_ms().saturating_sub(since) as f64 / 1000.0);
        let last_error = state
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Without a commit nobody else has noticed that it could not be reached at the start.
        let unlisted = self
            .parts
            .directory
            .unlisted()
            .filter(|_| failing.is_none());
        let (failing, last_error) = match unlisted {
            Some((since, why)) => (Some(since.as_secs_f64()), Some(why)),
            None => (failing, last_error.clone()),
        };
        BackendStatus {
            url: self.parts.backend.describe(),
            location: Some(self.backend_location()),
            conditional_writes: self.parts.backend.known_conditional_writes(),
            requests: self.parts.backend.counts(),
            mismatches: self.parts.backend.mismatches(),
            state: match failing {
                None => BackendState::Healthy,
                Some(_) if state.full.load(Ordering::Relaxed) => BackendState::Full,
                Some(_) => BackendState::Retrying,
            },
            last_error,
            failing_seconds: failing,
        }
    }

    /// The backend as commands take it: the configured URL, for whom the data directory and the
    /// working directory are others.
    fn backend_location(&self) -> String {
        let described = self.parts.backend.describe();
        match described.strip_prefix("dir:") {
            Some(path) => match std::path::absolute(path) {
                Ok(path) => format!("dir:{}", path.display()),
                Err(_) => described,
            },
            None => self.parts.config.backend.clone(),
        }
    }

    fn problems(&self, status: &Status) -> Vec<String> {
        let mut problems = self.absent_volumes();
        for shard in &status.shards {
            if let Some(failure) = &shard.failure {
                problems.push(format!("shard {}: {failure}", shard.shard));
            }
        }
        if status.backend.state != BackendState::Healthy {
            let error = status
                .backend
                .last_error
                .as_deref()
                .unwrap_or("unknown error");
            problems.push(format!("backend: commits wait: {error}"));
        }
        for volume in &status.volumes {
            if let Some(cause) = &volume.cause {
                problems.push(format!("volume {}: {cause}", volume.name));
            }
        }
        let turned_ms = self.parts.state.heartbeat_ms.load(Ordering::Relaxed);
        let still = Duration::from_millis(self.now_ms().saturating_sub(turned_ms));
        if still > UPLOADER_STILL {
            let seconds = still.as_secs();
            problems.push(format!(
                "the uploader has stood still for {seconds} s: no commits"
            ));
        }
        problems.extend(silent_cores(&status.shards));
        problems
    }
}

impl Appliance for Shared {
    fn status(&self) -> Status {
        let parts = &self.parts;
        let reports = self.reports.all();
        let volumes = parts.directory.all();
        let volumes: Vec<_> = volumes.iter().map(|v| self.info(v, &reports)).collect();
        let mut shards: Vec<_> = reports
            .iter()
            .flat_map(|r| r.shards.iter().cloned())
            .collect();
        shards.sort_by_key(|shard| shard.shard);
        let overlays: u64 = reports.iter().map(|report| report.overlay_bytes).sum();
        let views = parts.directory.views();
        let view_bytes = views
            .iter()
            .map(|view| view.index_bytes.load(Ordering::Relaxed));
        let view_clients = views
            .iter()
            .map(|view| view.connections.load(Ordering::Relaxed));
        let bases = volumes.iter().map(|volume| volume.index_bytes);
        let bases: u64 = bases.chain(view_bytes).sum();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: parts.started.elapsed().as_secs_f64(),
            state: *self
                .run_state
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            data_dir: parts.data_dir.display().to_string(),
            runtime_dir: parts.runtime_dir.display().to_string(),
            listeners: parts.listening.clone(),
            connections: volumes
                .iter()
                .map(|volume| volume.connections)
                .chain(view_clients)
                .sum(),
            data_cores: parts.config.cores.data.clone(),
            uploader_core: Some(parts.config.cores.uploader),
            epoch: parts.clock.now().0,
            pace: pace(&parts.config),
            wal: self.wal_status(&shards),
            shards,
            backend: self.backend_status(),
            compaction: self.compaction_status(),
            space: self.space_status(),
            memory: MemoryStatus {
                budget_bytes: parts.budget.total_bytes(),
                parts: parts.budget.parts(),
                index_bytes: overlays + bases,
                cache_directory_bytes: reports.iter().map(|report| report.warm_bytes).sum(),
                resident_bytes: resident_bytes(),
            },
            recovery: self
                .recovery
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            volumes,
            upload: UploadStatus::default(),
            problems: Vec::new(),
        };
        status.upload = self.upload_status(&status);
        status.problems = self.problems(&status);
        status
    }

    fn list(&self) -> Vec<VolumeInfo> {
        let reports = self.reports.all();
        self.parts
            .directory
            .all()
            .iter()
            .map(|volume| self.info(volume, &reports))
            .collect()
    }

    fn show(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let volume = self
            .parts
            .directory
            .get(name)
            .ok_or_else(|| no_volume(name))?;
        Ok(self.info(&volume, &self.reports.all()))
    }

    fn create(&self, name: VolumeName, settings: VolumeSettings) -> Result<VolumeInfo> {
        let created = name.clone();
        self.ask(|reply| Request::Create {
            name,
            settings,
            insists: false,
            reply,
        })?;
        self.show(&created)
    }

    fn resize(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo> {
        let grow = move |settings: &VolumeSettings| {
            if size_bytes < settings.size_bytes {
                let text = format!(
                    "the volume has {} bytes and cannot shrink to {size_bytes}",
                    settings.size_bytes
                );
                return Err(Error::invalid(text));
            }
            Ok(VolumeSettings {
                size_bytes,
                ..settings.clone()
            })
        };
        let (change, wanted) = (Box::new(grow), name.clone());
        self.ask(|reply| Request::Configure {
            name: wanted,
            change,
            decides: false,
            reply,
        })?;
        self.show(name)
    }

    fn configure(&self, name: &VolumeName, patch: VolumePatch) -> Result<VolumeInfo> {
        let change = Box::new(move |settings: &VolumeSettings| Ok(patch.apply(settings)));
        let wanted = name.clone();
        self.ask(|reply| Request::Configure {
            name: wanted,
            change,
            decides: patch.on_lost_cache.is_some(),
            reply,
        })?;
        self.show(name)
    }

    fn take_over(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let wanted = name.clone();
        self.ask(|reply| Request::Takeover {
            name: wanted,
            reply,
        })?;
        self.show(name)
    }

    fn warm(&self, name: &VolumeName, request: WarmVolume) -> Result<WarmStatus> {
        let volume = self.parts.directory.get(name);
        let volume = volume.ok_or_else(|| no_volume(name))?;
        let (settings, fetcher) = (volume.settings(), &self.parts.fetcher);
        fetcher.warm_volume(volume.id, &settings, &request)
    }

    fn warm_status(&self, name: &VolumeName) -> Result<WarmStatus> {
        let volume = self.parts.directory.get(name);
        let volume = volume.ok_or_else(|| no_volume(name))?;
        Ok(self.parts.fetcher.warm_status(volume.id))
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        let wanted = name.clone();
        self.ask(|reply| Request::Delete {
            name: wanted,
            reply,
        })
    }

    fn take_snapshot(&self, name: &VolumeName, request: TakeSnapshot) -> Result<SnapshotInfo> {
        self.snapshot(name, &request)
    }

    fn take_snapshot_group(&self, request: TakeSnapshotGroup) -> Result<Vec<SnapshotInfo>> {
        self.snapshot_group(&request)
    }

    fn list_snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotInfo>> {
        self.snapshots(name)
    }

    fn delete_snapshot(&self, name: &VolumeName, snapshot: &SnapshotName) -> Result<()> {
        let (name, snapshot) = (name.clone(), snapshot.clone());
        self.ask(|reply| Request::DeleteSnapshot {
            name,
            snapshot,
            reply,
        })
    }

    fn changes(
        &self,
        name: &VolumeName,
        from: &SnapshotName,
        to: Option<&SnapshotName>,
    ) -> Result<VolumeChanges> {
        let parts = &self.parts;
        parts.directory.get(name).ok_or_else(|| no_volume(name))?;
        let images = registry::read_images(&*parts.backend, name, from, to);
        let (from, to) = block_on(images)?;
        VolumeChanges::between(&from, &to, RANGES_MAX)
    }

    fn history(&self, name: &VolumeName) -> Result<VolumeHistory> {
        self.points(name)
    }

    fn roll_back(&self, name: &VolumeName, to: &ImageName) -> Result<VolumeInfo> {
        let (of, to) = (name.clone(), to.clone());
        self.ask(|reply| Request::RollBack {
            name: of,
            to,
            reply,
        })?;
        self.show(name)
    }

    fn clone_image(
        &self,
        name: &VolumeName,
        of: &ImageName,
        clone: VolumeName,
    ) -> Result<VolumeInfo> {
        let (of, image, created) = (name.clone(), of.clone(), clone.clone());
        self.ask(|reply| Request::Clone {
            of,
            image,
            name: clone,
            reply,
        })?;
        self.show(&created)
    }

    fn commit(&self, name: &VolumeName) -> Result<VolumeInfo> {
        // What is missing is known before anybody waits.
        self.show(name)?;
        let wanted = name.clone();
        self.await_commit(|reply| Request::Commit {
            name: wanted,
            reply,
        })?;
        self.show(name)
    }

    fn flatten(&self, name: &VolumeName) -> Result<FlattenStatus> {
        self.flatten_clone(name)
    }

    fn flatten_status(&self, name: &VolumeName) -> Result<FlattenStatus> {
        self.flatten_progress(name)
    }

    fn clones(&self, name: &VolumeName) -> Result<Vec<CloneInfo>> {
        self.clones_by_snapshot(name)
    }

    fn sweep(&self, name: &VolumeName, request: SweepVolume) -> Result<SweepReport> {
        self.sweep_orphans(name, request.dry_run)
    }

    fn connections(&self) -> Result<Vec<ConnectionInfo>> {
        let listed = self
            .reports
            .ask(|reply| CoreMessage::Roster(RosterRequest::List(reply)));
        if listed.len() < self.parts.addresses.len() {
            return Err(no_answer());
        }
        let mut connections: Vec<_> = listed.into_iter().flatten().collect();
        connections.sort_by_key(|connection| connection.id);
        Ok(connections)
    }

    fn kick(&self, name: ConnectionName) -> Result<()> {
        let no_such = || {
            let text = format!("there is no connection {name}");
            Error::new(ErrorKind::NotFound, text)
        };
        let core = self.parts.addresses.get(usize::from(name.core));
        let (reply, answer) = bounded(1);
        let id = ConnectionId::named(name);
        let request = RosterRequest::Kick { id, reply };
        core.ok_or_else(no_such)?.send(CoreMessage::Roster(request));
        match answer.recv_timeout(REPORT_WAIT) {
            Ok(true) => Ok(()),
            Ok(false) => Err(no_such()),
            Err(_) => Err(no_answer()),
        }
    }

    fn drain(&self) -> Result<()> {
        self.await_commit(|reply| Request::Drain { reply })
    }

    fn metrics(&self) -> MetricsSnapshot {
        self.parts.metrics.snapshot()
    }
}

/// A problem for each data core that does not answer.
fn silent_cores(shards: &[ShardStatus]) -> Vec<String> {
    let silent = |shard: &ShardStatus| Some((shard.core, shard.silent_seconds?));
    let silent: BTreeMap<usize, f64> = shards.iter().filter_map(silent).collect();
    let told = silent.into_iter().map(|(core, seconds)| {
        format!("data core {core} has stood still for {seconds:.0} s: clients of its shards wait")
    });
    let mut told: Vec<_> = told.collect();
    if shards.len() < taipan_engine::block::SHARD_COUNT {
        told.push("a data core has not reported yet".to_owned());
    }
    told
}

fn pace(config: &Config) -> PaceStatus {
    PaceStatus {
        flush_interval_ms: config.wal.flush_interval.as_millis() as u64,
        flush_size_bytes: config.wal.flush_size_bytes,
        commit_interval_seconds: config.commit.interval.as_secs(),
        commit_pending_bytes: config.commit.pending_bytes,
    }
}

fn stopping() -> Error {
    Error::new(ErrorKind::Transient, "the daemon stops")
}

fn no_answer() -> Error {
    let text = "a data core does not answer; see `taipan status`";
    Error::new(ErrorKind::Transient, text)
}

fn no_volume(name: &VolumeName) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no volume {:?}", name.as_str()),
    )
}

#[cfg(test)]
mod tests;

//! Start: lock is held, now backend, log, volumes, then the threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures::executor::block_on;
use taipan_engine::api::{Lineage, RecoveryStatus, VolumeState};
use taipan_engine::backend::{self, Backend};
use taipan_engine::block::ShardId;
use taipan_engine::core::EpochClock;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::Overlay;
use taipan_engine::manifest::ManifestKind;
use taipan_engine::registry::{self, LocalHead, LocalHeads, NamedVolume, RecordFate};
use taipan_engine::shard::VolumeSlot;
use taipan_engine::volume::{OnLostCache, VolumeSettings};
use taipan_engine::wal::LogConfig;

use crate::assembly::Assembly;
use crate::connection::Allowance;
use crate::daemon::{Parts, Running};
use crate::directory::{Directory, Volume};
use crate::fetcher::ChunkTables;
use crate::lock::free_bytes;
use crate::metrics::Metrics;
use crate::opening::{Opened, open_volume};
use crate::recovery::{ReadyShard, RecoveryFigures, Replayed};
use crate::sync_mode::SyncChoice;

/// What an operator is told of a volume whose answered writes may be gone.
const LOST_CACHE: &str = "the host crashed: writes answered after the last FLUSH of their client \
                          may be missing; decide with `taipan volume set --on-lost-cache`";
/// A volume opened at start.
pub(crate) struct BootVolume {
    pub(crate) volume: Arc<Volume>,
    /// `None`: it is refused.
    pub(crate) opened: Option<Opened>,
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
    let recovered = recover(&*backend, replayed, &volumes)?;
    let memory_survived = recovered.memory_survived;
    let figures = recovered.figures;
    let metrics = Arc::new(Metrics::new(config.cores.data.len()));
    let assembly = Assembly {
        backend,
        heads,
        clock,
        allowance: Allowance::new(config.limits.request_bytes_total),
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
        let before = heads.load(named.id).ok().flatten();
        let opened = block_on(open_volume(backend, heads, named.id, stamped));
        volumes.push(match opened {
            Ok(opened) => judge(slot, opened, replayed, heads)?,
            Err(error) if error.kind() == ErrorKind::NotFound && is_deleted(backend, named.id) => {
                continue;
            }
            Err(error) => {
                keep_verdict(heads, before, replayed.memory_survived)?;
                refuse(slot, named, heads, &error)
            }
        });
    }
    refuse_missing(backend, heads, replayed.memory_survived, &mut volumes)?;
    Ok(volumes)
}

/// Whether the volume's tombstone is there. Anything else that is missing is damage, or the wrong
/// backend, and no reason to forget what was answered.
fn is_deleted(backend: &dyn Backend, id: VolumeId) -> bool {
    let head = block_on(registry::read_head(backend, id, None));
    backend.describe().starts_with("mem:")
        || head.is_ok_and(|head| head.kind == ManifestKind::Tombstone)
}

/// What became of the answered writes of a volume that is refused is known now and at no later
/// start: notes it in its record, of which `before` is the state before this start.
fn keep_verdict(
    heads: &LocalHeads,
    before: Option<LocalHead>,
    memory_survived: bool,
) -> Result<()> {
    let Some(before) = before else { return Ok(()) };
    let Some(mut local) = heads.load(before.id)? else {
        return Ok(());
    };
    // Nothing is written to it, so what was closed in order still is.
    local.clean = before.clean;
    local.lost_cache |= !before.clean && !memory_survived;
    heads.save(&local)
}

/// Volumes that this appliance wrote and that the backend does not list: an object store that is
/// not mounted, or another one. They are refused, and their records in the WAL kept.
fn refuse_missing(
    backend: &dyn Backend,
    heads: &LocalHeads,
    memory_survived: bool,
    volumes: &mut Vec<BootVolume>,
) -> Result<()> {
    for (id, local) in heads.load_all()? {
        if volumes.iter().any(|boot| boot.volume.id == id) {
            continue;
        }
        if is_deleted(backend, id) {
            heads.remove(id)?;
            continue;
        }
        keep_verdict(heads, local.as_ref().ok().cloned(), memory_survived)?;
        let text = format!("the backend ({}) does not have it", backend.describe());
        let error = Error::new(ErrorKind::NotFound, text).with_volume(id);
        match local {
            Ok(local) if volumes.iter().all(|boot| boot.volume.name != local.name) => {
                let slot = VolumeSlot(
                    volumes
                        .iter()
                        .map(|v| v.volume.slot.0 + 1)
                        .max()
                        .unwrap_or(0),
                );
                let named = NamedVolume {
                    name: local.name,
                    id,
                };
                volumes.push(refuse(slot, named, heads, &error));
            }
            Ok(_) => tracing::error!(volume = %id, %error, "a volume is missing"),
            Err(unreadable) => tracing::error!(volume = %id, %error, %unreadable, "missing"),
        }
    }
    Ok(())
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
pub(crate) struct Recovered {
    pub(crate) shards: Vec<ReadyShard>,
    pub(crate) overlays: HashMap<(VolumeId, ShardId), Overlay>,
    pub(crate) figures: RecoveryFigures,
    pub(crate) memory_survived: bool,
    pub(crate) files: taipan_engine::wal::files::WalFiles,
    /// Volumes with records that nobody needs.
    pub(crate) forgotten: Vec<VolumeId>,
}

fn recover(backend: &dyn Backend, replayed: Replayed, volumes: &[BootVolume]) -> Result<Recovered> {
    let mut overlays = HashMap::new();
    for boot in volumes {
        let Some(opened) = &boot.opened else { continue };
        for shard in ShardId::all() {
            let overlay = replayed.overlay(shard, boot.volume.id, |e| opened.local.fate(e));
            overlays.insert((boot.volume.id, shard), overlay);
        }
    }
    let find = |id: VolumeId| volumes.iter().find(|boot| boot.volume.id == id);
    let forgotten: Vec<VolumeId> = replayed
        .volumes()
        .into_iter()
        .filter(|id| find(*id).is_none() && is_deleted(backend, *id))
        .collect();
    let is_forgotten = |id: VolumeId| forgotten.contains(&id);
    let memory_survived = replayed.memory_survived;
    let wanted = |id: VolumeId, epoch: Epoch| match find(id) {
        None => !is_forgotten(id),
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

//! Brings the 16 logs back at start: replay, what only shared memory still has, fresh regions.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use taipan_engine::arena::{Arena, ArenaReader};
use taipan_engine::block::{PAGE_BYTES, ShardId};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::{Epoch, Incarnation, Lsn, VolumeId};
use taipan_engine::index::{Overlay, Point};
use taipan_engine::registry::quarantine::{QuarantineRecord, records_of};
use taipan_engine::registry::{RecordFate, replayed_overlays};
use taipan_engine::wal::files::{FileMedia, WalFiles, noted_path, shard_path};
use taipan_engine::wal::region::{RegionLayout, RegionPage};
use taipan_engine::wal::region_files::{
    PreparedRegions, RegionFile, boot_id, create_region, list_regions, region_name,
};
use taipan_engine::wal::{
    BootId, LogConfig, LogIdentity, ReadMedia, Recovered, ShardLog, WalId, recover_noted_shard,
};

use crate::stages::Stages;

/// The WAL directory with everything that replay found in it.
pub struct Replayed {
    files: WalFiles,
    dir: PathBuf,
    config: LogConfig,
    shards: Vec<ReplayedShard>,
    /// Fresh regions of this process, by shard.
    regions: Vec<File>,
    old_regions: Vec<PathBuf>,
    /// Whether the memory of the process before is there for every shard.
    pub memory_survived: bool,
}

/// What was found in one shard.
struct ReplayedShard {
    identity: LogIdentity,
    found: Recovered,
    /// Records in the file.
    records: u64,
    /// Every volume that has some, in the file or in memory.
    volumes: Vec<VolumeId>,
}

/// One shard ready to run, except for the volumes' overlays that are added to it.
pub struct ReadyShard {
    /// The shard.
    pub id: ShardId,
    /// Its log; everything recovered is durable in it.
    pub log: ShardLog,
    /// Number of the next record.
    pub next_lsn: Lsn,
    /// Its WAL file.
    pub file: Arc<File>,
    /// Its batch memory, for the uploader.
    pub arena: ArenaReader,
}

/// Counts for the status and the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecoveryFigures {
    /// Batches that count.
    pub batches: u64,
    /// Records taken over.
    pub records: u64,
    /// Records that only memory had.
    pub region_records: u64,
    /// Batches cut off as a torn tail.
    pub torn_batches: u64,
    /// Shards whose file was searched for its end: the daemon before did not end in order.
    pub searched: u64,
    /// Shards whose batch headers were noted by the daemon before.
    pub noted: u64,
}

impl Replayed {
    /// Opens or creates the WAL in `dir` and replays it with the regions in `runtime_dir`. If
    /// regions of the right size are prepared there, they are used.
    pub fn open(
        dir: &Path,
        runtime_dir: &Path,
        wanted: &LogConfig,
        prepared: Option<PreparedRegions>,
        stages: &mut Stages,
    ) -> Result<Self> {
        let files = WalFiles::open(dir, wanted)?;
        stages.ended("files");
        let config = files.fit(wanted)?;
        let boot = boot_id()?;
        let found = own_regions(list_regions(runtime_dir)?, files.state().wal)?;
        let incarnation = files.state().incarnation;
        let (regions, shards) = std::thread::scope(|scope| {
            // The kernel takes its time to find the memory: beside the replay.
            let regions = scope.spawn(|| {
                let began = Instant::now();
                let regions = match prepared {
                    Some(regions) if regions.bytes() == config.arena_bytes => {
                        regions.claim(incarnation)
                    }
                    _ => create_regions(runtime_dir, incarnation, &config),
                };
                (regions, began.elapsed())
            });
            let shards = replay_all(&files, dir, boot, &found);
            stages.ended("replay");
            let (regions, took) = regions.join().expect("no panic");
            stages.ended("regions");
            stages.beside("all_regions", took);
            (regions, shards)
        });
        let old_regions = found.into_iter().map(|region| region.path).collect();
        let shards = shards?;
        let memory_survived = shards.iter().all(|shard| shard.found.memory_survived);
        Ok(Self {
            files,
            dir: dir.to_owned(),
            config,
            shards,
            regions: regions?,
            old_regions,
            memory_survived,
        })
    }

    /// Greatest epoch ever stamped, as far as can be seen.
    pub fn stamped_through(&self) -> Epoch {
        self.shards
            .iter()
            .map(|shard| shard.found.max_epoch)
            .max()
            .unwrap_or_default()
    }

    /// Every volume that has records.
    pub fn volumes(&self) -> Vec<VolumeId> {
        let ids = self.shards.iter().flat_map(|shard| &shard.volumes);
        let mut ids: Vec<VolumeId> = ids.copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Sizes of each shard's log.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// The records of the volume that `fate` wants quarantined, with their bytes: by shard, in the
    /// order of their LSN.
    pub fn foreign_records<'a>(
        &'a self,
        id: VolumeId,
        fate: &'a (dyn Fn(Epoch) -> RecordFate + 'a),
    ) -> impl Iterator<Item = Result<QuarantineRecord>> + 'a {
        self.shards.iter().flat_map(move |replayed| {
            let shard = replayed.identity.shard;
            let wanted = move |volume, epoch| volume == id && fate(epoch) == RecordFate::Quarantine;
            let read = move |offset, out: &mut [u8]| self.read(shard, offset, out);
            records_of(shard, &replayed.found, read, wanted)
        })
    }

    fn read(&self, shard: ShardId, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let media = self.files.media(shard);
        media.map_err(std::io::Error::other)?.read_at(offset, out)
    }

    /// The overlays of all volumes: of the records that `wanted` names, those that no manifest
    /// holds. All shards at once: this is work for every CPU.
    pub fn overlays(
        &self,
        wanted: impl Fn(VolumeId, Epoch) -> bool + Sync,
    ) -> HashMap<(VolumeId, ShardId), Overlay> {
        let wanted = &wanted;
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for ReplayedShard {
                identity, found, ..
            } in &self.shards
            {
                let make = move || replayed_overlays(found, wanted);
                threads.push((identity.shard, scope.spawn(make)));
            }
            let mut overlays = HashMap::new();
            for (shard, thread) in threads {
                let found = thread.join().expect("overlays are made without a panic");
                overlays.extend(found.into_iter().map(|(id, o)| ((id, shard), o)));
            }
            overlays
        })
    }

    /// Makes the logs: fresh regions, then the records that only old memory had are written to the
    /// files again and made durable, then the old regions go. `wanted` says whether a record is
    /// needed, `enter` is told where its blocks are now.
    pub fn resume(
        self,
        wanted: impl Fn(VolumeId, Epoch) -> bool,
        mut enter: impl FnMut(ShardId, VolumeId, Recovery),
    ) -> Result<(Vec<ReadyShard>, RecoveryFigures, WalFiles)> {
        let mut figures = RecoveryFigures::default();
        let mut ready = Vec::new();
        let logs = self.open_logs()?;
        for (replayed, mut log) in self.shards.into_iter().zip(logs) {
            let ReplayedShard {
                identity, found, ..
            } = replayed;
            figures.batches += found.batches().len() as u64;
            figures.records += replayed.records;
            figures.region_records += found.region_only.len() as u64;
            figures.searched += u64::from(found.searched);
            figures.noted += u64::from(found.noted);
            if let Some(torn) = found.torn {
                figures.torn_batches += torn.void_batches + 1;
                tracing::warn!(
                    shard = %identity.shard, first = %torn.first, void = torn.void_batches,
                    "the log ended in a torn tail: writes that were never durable are void"
                );
            }
            let shard = identity.shard;
            let file = self.files.file(shard);
            for record in &found.region_only {
                if !wanted(record.volume, record.epoch) {
                    continue;
                }
                let points = append(&mut log, file, record)?;
                let blocks = record.blocks.clone();
                enter(
                    shard,
                    record.volume,
                    Recovery {
                        lsn: record.lsn,
                        blocks,
                        points,
                    },
                );
            }
            log.close();
            write_out(&mut log, file)?;
            let clone = file
                .try_clone()
                .map_err(|e| Error::io("opening the WAL file again", e))?;
            ready.push(ReadyShard {
                id: shard,
                arena: log.reader(),
                next_lsn: found.next_lsn,
                log,
                file: Arc::new(clone),
            });
        }
        for path in self.old_regions {
            fs::remove_file(&path)
                .map_err(|e| Error::io("removing an old region", e).with_path(path))?;
        }
        for shard in ShardId::all() {
            // There may be none. Whatever stays is of no value to anybody.
            let _ = fs::remove_file(noted_path(&self.dir, shard));
        }
        Ok((ready, figures, self.files))
    }

    /// A log in a fresh region for each shard, its head durable. All at once: each waits for the
    /// disk.
    fn open_logs(&self) -> Result<Vec<ShardLog>> {
        let open = |identity: &LogIdentity, found: &Recovered| {
            let (shard, bytes) = (identity.shard, self.config.arena_bytes);
            let arena = Arena::map_file(&self.regions[shard.index()], bytes)?;
            let mut log = ShardLog::resume(*identity, self.config, arena, found)?;
            write_out(&mut log, self.files.file(shard))?;
            Ok(log)
        };
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for replayed in &self.shards {
                threads.push(scope.spawn(move || open(&replayed.identity, &replayed.found)));
            }
            let join = |t: ScopedJoinHandle<'_, _>| t.join().expect("opening does not panic");
            threads.into_iter().map(join).collect()
        })
    }

    /// The WAL files by shard.
    pub fn paths(&self) -> Vec<PathBuf> {
        ShardId::all()
            .map(|shard| shard_path(&self.dir, shard))
            .collect()
    }
}

/// A record that was taken from old memory into the log.
pub struct Recovery {
    /// Its number.
    pub lsn: Lsn,
    /// Its shard-local blocks.
    pub blocks: std::ops::Range<u64>,
    /// Where its blocks are now; empty for a mark.
    pub points: Vec<Point>,
}

/// All shards at once: the disk is what they wait for.
fn replay_all(
    files: &WalFiles,
    dir: &Path,
    boot: BootId,
    found: &[RegionFile],
) -> Result<Vec<ReplayedShard>> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for shard in ShardId::all() {
            let identity = files.identity(shard, boot);
            let paths = found.iter().filter(|region| region.shard == shard);
            let paths: Vec<PathBuf> = paths.map(|region| region.path.clone()).collect();
            threads.push(scope.spawn(move || replay_shard(files, dir, identity, &paths)));
        }
        let join = |t: ScopedJoinHandle<'_, _>| t.join().expect("replay does not panic");
        threads.into_iter().map(join).collect()
    })
}

/// The regions that this log's writers left. Those of another log are nobody's business here: they
/// stay, and out of the way.
fn own_regions(found: Vec<RegionFile>, wal: WalId) -> Result<Vec<RegionFile>> {
    let mut own = Vec::new();
    for region in found {
        let file = File::open(&region.path)
            .map_err(|e| Error::io("opening a memory region", e).with_path(&region.path))?;
        let mut page = vec![0; PAGE_BYTES];
        let read = file.read_exact_at(&mut page, 0).is_ok();
        let bytes = file.metadata().map_or(0, |found| found.len());
        match RegionPage::decode(&page, bytes) {
            RegionPage::Header(header) if read && header.wal != wal => set_aside(&region.path)?,
            RegionPage::Header(_) | RegionPage::Blank | RegionPage::Damaged => own.push(region),
        }
    }
    Ok(own)
}

/// Renames the region of another log, so that its name is free.
fn set_aside(path: &Path) -> Result<()> {
    let mut number = 0;
    let mut aside = path.with_extension("stranger-0");
    while aside.exists() {
        number += 1;
        aside = path.with_extension(format!("stranger-{number}"));
    }
    tracing::warn!(
        region = %path.display(), aside = %aside.display(),
        "a memory region belongs to another log; remove it if that log is gone"
    );
    fs::rename(path, &aside).map_err(|e| Error::io("setting a region aside", e).with_path(path))
}

/// Regions for all shards, in the memory of the process before if that kept it. What a failed
/// attempt made is removed again.
fn create_regions(dir: &Path, incarnation: Incarnation, config: &LogConfig) -> Result<Vec<File>> {
    let layout = RegionLayout::new(config.arena_bytes, config.undurable_bytes_max);
    if let Some(kept) = PreparedRegions::left(dir, config.arena_bytes, layout.ring_start())? {
        return kept.claim(incarnation);
    }
    let mut regions = Vec::new();
    for shard in ShardId::all() {
        match create_region(dir, incarnation, shard, config.arena_bytes) {
            Ok(region) => regions.push(region),
            Err(error) => {
                for made in ShardId::all().take(regions.len()) {
                    let _ = fs::remove_file(dir.join(region_name(incarnation, made)));
                }
                return Err(error);
            }
        }
    }
    Ok(regions)
}

fn replay_shard(
    files: &WalFiles,
    dir: &Path,
    identity: LogIdentity,
    regions: &[PathBuf],
) -> Result<ReplayedShard> {
    let media = files.media(identity.shard)?;
    // Without them the log is read.
    let noted = files.noted(dir, identity.shard).ok();
    let open = |path: &PathBuf| {
        File::open(path).map_err(|e| Error::io("opening a memory region", e).with_path(path))
    };
    let regions: Vec<File> = regions.iter().map(open).collect::<Result<_>>()?;
    let regions: Vec<FileMedia<'_>> = regions.iter().map(FileMedia::new).collect::<Result<_>>()?;
    let regions: Vec<&dyn ReadMedia> = regions.iter().map(|r| r as &dyn ReadMedia).collect();
    let found = recover_noted_shard(&identity, &media, noted.as_deref(), &regions);
    let found = found.map_err(|damage| {
        let text = "`taipand accept-wal-damage` shows what is lost and can give it up";
        Error::corrupt(format!("{damage}; nothing was changed; {text}")).with_shard(identity.shard)
    })?;
    Ok(ReplayedShard::new(identity, found))
}

impl ReplayedShard {
    fn new(identity: LogIdentity, found: Recovered) -> Self {
        let (mut records, mut volumes) = (0, Vec::new());
        for record in found.records() {
            records += 1;
            // There are few volumes, and most records follow one of their own.
            if volumes.last() != Some(&record.volume) {
                volumes.push(record.volume);
            }
        }
        volumes.extend(found.region_only.iter().map(|record| record.volume));
        volumes.sort_unstable();
        volumes.dedup();
        Self {
            identity,
            found,
            records,
            volumes,
        }
    }
}

/// Appends one record again; writes out and retries when memory is short.
pub(crate) fn append(
    log: &mut ShardLog,
    file: &File,
    record: &taipan_engine::wal::RegionRecord,
) -> Result<Vec<Point>> {
    failpoint::hit("region.append").map_err(|e| Error::io("a failpoint refused", e))?;
    for _ in 0..2 {
        let mut points = Vec::new();
        let lsn = record.lsn;
        let appended = log.append_recovered(record, |_, place, crc| {
            points.push(Point { lsn, place, crc })
        });
        if appended.is_ok() {
            return Ok(points);
        }
        log.close();
        write_out(log, file)?;
    }
    let text = "the log has no room for what the process before answered; nothing is lost, \
                the region is kept";
    Err(Error::new(ErrorKind::Full, text).with_shard(log.identity().shard))
}

/// Writes what is queued and makes it durable.
pub(crate) fn write_out(log: &mut ShardLog, file: &File) -> Result<()> {
    let failed = |e| Error::io("writing recovered records to the WAL", e);
    while let Some(write) = log.start_write(false) {
        let result = file.write_all_at(log.write_bytes(&write), write.file_offset);
        let result = result.and_then(|()| {
            if write.dsync {
                file.sync_data()
            } else {
                Ok(())
            }
        });
        let code = match &result {
            Ok(()) => Ok(()),
            Err(e) => Err(e.raw_os_error().unwrap_or(0)),
        };
        log.write_finished(&write, code);
        result.map_err(failed)?;
    }
    if log.durable_through() == log.last() {
        return Ok(());
    }
    let mark = log.barrier_mark();
    file.sync_data().map_err(failed)?;
    log.barrier_finished(mark, Ok(()));
    Ok(())
}

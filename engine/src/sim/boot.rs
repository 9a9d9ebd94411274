//! Recovery of a dead life, with crashes in between. Mirrors `appliance::boot` and `recovery`.

use std::sync::Arc;

use futures::executor::block_on;

use super::bucket::{Bucket, Late};
use super::serve::{Node, arena_bytes, copy_out};
use super::uploader::{UpVolume, Uploader};
use super::world::{Crash, Event, Region, World};
use crate::arena::{Arena, ArenaReader};
use crate::block::{LocalBlock, ShardId};
use crate::commit::{Coordinator, VolumeCommit};
use crate::core::{Core, EpochClock};
use crate::identity::{Epoch, Incarnation, VolumeId};
use crate::index::rebuild::rebuild;
use crate::index::{Overlay, Point};
use crate::registry::{LocalHead, RecordFate, open_for_writing};
use crate::shard::{Shard, VolumeSlot};
use crate::volume::VolumeSettings;
use crate::wal::replay::ProblemKind;
use crate::wal::{Content, ReadMedia, Recovered, ShardLog, recover_shard};

/// How a boot went.
pub(super) enum Booted {
    Up(Box<Node>),
    /// Interrupted; with the memory that the process had by then.
    Crashed(Crash, Vec<Region>),
    /// It gave up for a reason that passes.
    Failed(String, Vec<Region>),
}

/// Why a boot stops half way.
enum Stop {
    Crashed(Crash),
    Failed(String),
    Broken(String),
}

/// What is made during a boot.
#[derive(Default)]
struct Making {
    readers: Vec<ArenaReader>,
    opened: Vec<(VolumeCommit, LocalHead)>,
    /// Overlays by volume, then shard.
    overlays: Vec<Vec<Overlay>>,
    shards: Vec<Shard>,
    stamped: Epoch,
}

impl World {
    /// One attempt to start. An error is a broken promise.
    pub(super) fn boot(&mut self) -> Result<Booted, String> {
        self.incarnation += 1;
        let incarnation = self.incarnation;
        self.note(format_args!("boot, incarnation {incarnation}"));
        let mut making = Making::default();
        let result = self.make(&mut making);
        match result {
            Ok(()) => Ok(Booted::Up(Box::new(self.assemble(making)))),
            Err(Stop::Broken(what)) => Err(what),
            Err(stop) => {
                let regions = self.regions_of(&making);
                drop(making);
                Ok(match stop {
                    Stop::Crashed(crash) => Booted::Crashed(crash, regions),
                    Stop::Failed(why) => Booted::Failed(why, regions),
                    Stop::Broken(_) => unreachable!("handled above"),
                })
            }
        }
    }

    fn regions_of(&self, making: &Making) -> Vec<Region> {
        let bytes = self.plan.log.arena_bytes;
        let readers = ShardId::all().zip(&making.readers);
        readers
            .map(|(shard, reader)| Region {
                shard,
                incarnation: Incarnation(self.incarnation),
                bytes: arena_bytes(reader, bytes),
            })
            .collect()
    }

    fn make(&mut self, making: &mut Making) -> Result<(), Stop> {
        // What the kernel still had of a killed process reaches the medium first.
        for file in &mut self.files {
            let covered = file.covered();
            file.flushed(&covered);
        }
        self.may_crash()?;
        let found = self.replay()?;
        making.stamped = found
            .iter()
            .map(|found| found.max_epoch)
            .max()
            .unwrap_or_default();
        self.may_crash()?;
        self.open_volumes(making)?;
        self.count_lost(&found, making);
        self.copy_out(making)?;
        for (_, local) in &making.opened {
            let of_volume = |found: &Recovered| overlay_of(found, local);
            making.overlays.push(found.iter().map(of_volume).collect());
        }
        for (shard, found) in ShardId::all().zip(found) {
            self.may_crash()?;
            self.resume(shard, &found, making)?;
        }
        while !self.regions.is_empty() {
            self.may_crash()?;
            let incarnation = Incarnation(self.incarnation);
            let old = self
                .regions
                .iter()
                .position(|region| region.incarnation < incarnation);
            let Some(old) = old else { break };
            self.regions.remove(old);
        }
        self.may_crash()
    }

    /// Copies out what must not be merged: from then on the log need not keep it.
    fn copy_out(&mut self, making: &mut Making) -> Result<(), Stop> {
        for (_, local) in &mut making.opened {
            if local.quarantine.is_none_or(|range| range.copied) {
                continue;
            }
            self.may_crash()?;
            local.quarantine_done();
            let saved = self.heads.save(local);
            saved.map_err(|error| Stop::Broken(error.to_string()))?;
            self.may_crash()?;
        }
        Ok(())
    }

    /// Counts records of a lost lineage.
    fn count_lost(&mut self, found: &[Recovered], making: &Making) {
        let Some(racing) = &mut self.racing else {
            return;
        };
        let records = found.iter().flat_map(Recovered::records);
        let lost = records.filter(|record| {
            making.opened.iter().any(|(commit, local)| {
                let own = commit.volume() == record.volume;
                own && local.fate(record.epoch) == RecordFate::Quarantine
            })
        });
        racing.lost_records = lost.count() as u64;
    }

    fn may_crash(&mut self) -> Result<(), Stop> {
        if !self.dice.chance(self.faults.boot) {
            return Ok(());
        }
        let crash = if self.dice.chance(500) {
            Crash::Kill
        } else {
            Crash::Power
        };
        self.note(format_args!("crash {crash:?} during recovery"));
        Err(Stop::Crashed(crash))
    }

    fn replay(&mut self) -> Result<Vec<Recovered>, Stop> {
        let unlucky = self
            .dice
            .chance(self.faults.boot)
            .then(|| self.dice.below(16) as usize);
        let mut all = Vec::new();
        for shard in ShardId::all() {
            let file = &self.files[shard.index()];
            let unreadable =
                (unlucky == Some(shard.index())).then(|| self.dice.below(file.len() as u64));
            let mut regions: Vec<&Region> = self
                .regions
                .iter()
                .filter(|region| region.shard == shard)
                .collect();
            regions.sort_by_key(|region| region.incarnation);
            let regions: Vec<&dyn ReadMedia> = regions
                .iter()
                .map(|region| &region.bytes as &dyn ReadMedia)
                .collect();
            let media = file.media(unreadable);
            match recover_shard(&self.identity(shard), &media, &regions) {
                Ok(found) => all.push(found),
                Err(damage) => {
                    let reading =
                        |kind: &ProblemKind| matches!(kind, ProblemKind::Unreadable { .. });
                    if damage.problems.iter().any(|problem| reading(&problem.kind)) {
                        self.coverage
                            .hit("a boot failed on a read error and was repeated");
                        return Err(Stop::Failed(damage.to_string()));
                    }
                    return Err(Stop::Broken(format!("recovery calls it damage: {damage}")));
                }
            }
        }
        let only_memory = all.iter().map(|found| found.region_only.len() as u64).sum();
        self.coverage
            .add("memory alone held answered records", only_memory);
        for (shard, found) in ShardId::all().zip(&all) {
            if !found.batches().is_empty() || !found.region_only.is_empty() {
                self.note(format_args!(
                    "s{shard}: {} batches, next {}, {} from memory, torn {:?}",
                    found.batches().len(),
                    found.next_batch,
                    found.region_only.len(),
                    found.torn
                ));
            }
        }
        Ok(all)
    }

    fn open_volumes(&mut self, making: &mut Making) -> Result<(), Stop> {
        let is_late = |event: &Event| matches!(event, Event::Land { .. });
        let keys: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, e)| is_late(e))
            .map(|(at, _)| *at)
            .collect();
        let late: Vec<Late> = keys
            .into_iter()
            .filter_map(|at| match self.queue.remove(&at) {
                Some(Event::Land { late, .. }) => Some(late),
                _ => None,
            })
            .collect();
        let fails = self.faults.boot / 2;
        let bucket = Bucket::new(self.objects.clone(), self.dice.fork(), fails, late);
        let result = (|| {
            for id in self.ids.clone() {
                self.may_crash()?;
                self.open_volume(&bucket, id, making)?;
            }
            Ok(())
        })();
        let (late, landed, _) = bucket.into_rest();
        self.coverage.add("a dead life's put landed late", landed);
        for late in late {
            let delay = self.dice.range(1..=300_000);
            self.schedule(delay, Event::Land { late, then: None });
        }
        result
    }

    fn open_volume(
        &mut self,
        bucket: &Bucket,
        id: VolumeId,
        making: &mut Making,
    ) -> Result<(), Stop> {
        let before = self
            .heads
            .load(id)
            .map_err(|e| Stop::Broken(e.to_string()))?;
        let failed = bucket.failed();
        let opened = block_on(async {
            let opened = open_for_writing(bucket, &self.heads, id, making.stamped).await?;
            let rebuilt = rebuild(bucket, &opened.history.manifests).await?;
            Ok::<_, crate::error::Error>((opened, rebuilt))
        });
        let (opened, rebuilt) = match opened {
            Ok(opened) => opened,
            Err(error) if bucket.failed() > failed => {
                self.coverage
                    .hit("a boot failed on the backend and was repeated");
                return Err(Stop::Failed(error.to_string()));
            }
            Err(error) => return Err(Stop::Broken(format!("a volume cannot be opened: {error}"))),
        };
        let manifests = &opened.history.manifests;
        let found = manifests
            .len()
            .checked_sub(2)
            .map_or(Epoch(0), |i| manifests[i].epoch);
        if before.is_some_and(|local| local.committed_epoch < found) {
            self.coverage.hit("the bucket was ahead of the local head");
        }
        let head = opened.history.head().clone();
        let names = self.dice.names();
        let commit = VolumeCommit::new(head, rebuilt, self.plan.commit.clone(), names);
        making.opened.push((commit, opened.local));
        Ok(())
    }

    /// Makes one shard's log, and writes what only memory held into it.
    fn resume(
        &mut self,
        shard: ShardId,
        found: &Recovered,
        making: &mut Making,
    ) -> Result<(), Stop> {
        let config = self.plan.log;
        let arena = Arena::anonymous(config.arena_bytes).expect("memory for an arena");
        making.readers.push(arena.reader());
        let mut log = ShardLog::resume(self.identity(shard), config, arena, found)
            .map_err(|error| Stop::Broken(format!("a log does not resume: {error}")))?;
        self.write_out(shard, &mut log)?;
        for record in &found.region_only {
            let volume = making
                .opened
                .iter()
                .position(|(c, _)| c.volume() == record.volume);
            let volume = volume.expect("all volumes are open");
            if making.opened[volume].1.fate(record.epoch) != RecordFate::Replay {
                continue;
            }
            let mut points: Vec<Point> = Vec::new();
            for attempt in 0.. {
                let lsn = record.lsn;
                let placed = |_, place, crc| points.push(Point { lsn, place, crc });
                match log.append_recovered(record, placed) {
                    Ok(_) => break,
                    Err(shortage) if attempt > 0 => {
                        let what = format!("no room for recovered records: {shortage:?}");
                        return Err(Stop::Broken(what));
                    }
                    Err(_) => {
                        points.clear();
                        log.close();
                        self.write_out(shard, &mut log)?;
                    }
                }
            }
            let overlay = &mut making.overlays[volume][shard.index()];
            if record.mark.is_some() {
                overlay.insert_zero(record.blocks.clone(), record.lsn);
            }
            for (local, point) in record.blocks.clone().zip(points) {
                overlay.insert_point(LocalBlock(local), point);
            }
        }
        log.close();
        self.write_out(shard, &mut log)?;
        making.shards.push(Shard::new(shard, log, found.next_lsn));
        Ok(())
    }

    /// Writes what is queued and makes it durable.
    fn write_out(&mut self, shard: ShardId, log: &mut ShardLog) -> Result<(), Stop> {
        let reader = log.reader();
        while let Some(write) = log.start_write(false) {
            let bytes = copy_out(&reader, write.arena_offset, write.len);
            let id = self.files[shard.index()].issue(write.file_offset, bytes, write.dsync);
            self.may_crash()?;
            self.files[shard.index()].end(id);
            log.write_finished(&write, Ok(()));
        }
        self.may_crash()?;
        let file = &mut self.files[shard.index()];
        let covered = file.covered();
        file.flushed(&covered);
        log.barrier_finished(log.barrier_mark(), Ok(()));
        Ok(())
    }

    /// Puts the process together.
    fn assemble(&mut self, making: Making) -> Node {
        let Making {
            readers,
            opened,
            mut overlays,
            shards,
            stamped,
        } = making;
        let heads = opened.iter().map(|(_, local)| local.judged_through()).max();
        let epoch = heads.unwrap_or_default().max(stamped).next();
        let clock = Arc::new(EpochClock::new(epoch));
        let count = self.plan.cores;
        let mut by_core: Vec<Vec<Shard>> = (0..count).map(|_| Vec::new()).collect();
        for shard in shards {
            by_core[shard.id().core(count)].push(shard);
        }
        let mut cores: Vec<Core> = by_core
            .into_iter()
            .enumerate()
            .map(|(index, shards)| {
                Core::new(index, count, Arc::clone(&clock), shards, self.plan.write)
            })
            .collect();
        let mut volumes = Vec::new();
        for (index, (commit, local)) in opened.into_iter().enumerate() {
            let slot = VolumeSlot(index as u32);
            let head = commit.head();
            let settings: &VolumeSettings = &head.settings;
            for (number, core) in cores.iter_mut().enumerate() {
                core.tick(self.now_us / super::plan::MS);
                let own = ShardId::all().filter(|shard| shard.core(count) == number);
                let parts = own
                    .map(|shard| {
                        let overlay = std::mem::take(&mut overlays[index][shard.index()]);
                        (shard, overlay, commit.base().shard(shard).clone())
                    })
                    .collect();
                let released = local.released_through();
                core.add_volume(slot, head.volume, settings, false, released, parts);
            }
            volumes.push(UpVolume::new(commit, local, slot));
        }
        let coordinator = Coordinator::new(self.plan.cut.clone(), clock.now());
        let uploader = Uploader::new(coordinator, volumes, count);
        let incarnation = Incarnation(self.incarnation);
        Node::new(
            cores,
            clock,
            readers,
            self.plan.log.arena_bytes,
            incarnation,
            uploader,
        )
    }
}

/// The records of one volume and shard that no manifest holds.
fn overlay_of(found: &Recovered, local: &LocalHead) -> Overlay {
    let mut overlay = Overlay::new();
    for record in found.records() {
        if record.volume != local.id || local.fate(record.epoch) != RecordFate::Replay {
            continue;
        }
        match &record.content {
            Content::Data { .. } => {
                for (block, place, crc) in record.points() {
                    overlay.insert_point(
                        block,
                        Point {
                            lsn: record.lsn,
                            place,
                            crc,
                        },
                    );
                }
            }
            Content::Mark(_) => overlay.insert_zero(record.blocks.clone(), record.lsn),
        }
    }
    overlay
}

//! Recovery of a dead life, with crashes in between. Mirrors `appliance::boot` and `recovery`.

use std::sync::Arc;

use super::opening::Opened;
use super::serve::{Node, arena_bytes, copy_out};
use super::uploader::{UpVolume, Uploader};
use super::world::{Crash, Region, World};
use crate::arena::{Arena, ArenaReader};
use crate::block::{LocalBlock, ShardId};
use crate::commit::{Coordinator, VolumePace};
use crate::core::{Core, EpochClock};
use crate::identity::{Epoch, Incarnation, VolumeId};
use crate::index::{Overlay, Point};
use crate::registry::{LocalHead, RecordFate, begin_serving, first_epoch, replayed_overlays};
use crate::shard::{Shard, VolumeSlot};
use crate::volume::VolumeSettings;
use crate::wal::replay::ProblemKind;
use crate::wal::{ReadMedia, Recovered, ShardLog, recover_noted_shard};

/// How a boot went.
pub(super) enum Booted {
    Up(Box<Node>),
    /// Interrupted; with the memory that the process had by then.
    Crashed(Crash, Vec<Region>),
    /// It gave up for a reason that passes.
    Failed(String, Vec<Region>),
}

/// Why a boot stops half way.
pub(super) enum Stop {
    Crashed(Crash),
    Failed(String),
    Broken(String),
}

/// What is made during a boot.
#[derive(Default)]
pub(super) struct Making {
    readers: Vec<ArenaReader>,
    pub(super) opened: Vec<Opened>,
    /// Records of volumes that are another writer's, as judged before they were copied out.
    pub(super) left: Vec<(VolumeSlot, LocalHead)>,
    /// Overlays by volume, then shard.
    overlays: Vec<Vec<Overlay>>,
    shards: Vec<Shard>,
    pub(super) stamped: Epoch,
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
        let wanted = |id: VolumeId, epoch: Epoch| {
            let mut locals = making.opened.iter().map(|opened| &opened.local);
            locals.any(|local| local.id == id && local.fate(epoch) == RecordFate::Replay)
        };
        let mut by_shard: Vec<_> = found
            .iter()
            .map(|found| replayed_overlays(found, wanted))
            .collect();
        for opened in &making.opened {
            let mut of_volume = Vec::new();
            for overlays in &mut by_shard {
                of_volume.push(overlays.remove(&opened.local.id).unwrap_or_default());
            }
            making.overlays.push(of_volume);
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
        let opened = making.opened.iter_mut().map(|opened| &mut opened.local);
        let left = making.left.iter_mut().map(|(_, local)| local);
        for local in opened.chain(left) {
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
            let opened = making.opened.iter().map(|opened| &opened.local);
            let left = making.left.iter().map(|(_, local)| local);
            opened.chain(left).any(|local| {
                let own = local.id == record.volume;
                own && local.fate(record.epoch) == RecordFate::Quarantine
            })
        });
        racing.lost_records = lost.count() as u64;
    }

    pub(super) fn may_crash(&mut self) -> Result<(), Stop> {
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
            let noted = self.notes_found(shard);
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
            let notes = noted.as_deref();
            match recover_noted_shard(&self.identity(shard), &media, notes, &regions) {
                Ok(found) => {
                    self.coverage
                        .add("what a log noted was believed", u64::from(found.noted));
                    let doubted = noted.is_some() && !found.noted;
                    self.coverage
                        .add("what a log noted was not believed", u64::from(doubted));
                    all.push(found);
                }
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
            let is_its = |opened: &Opened| opened.local.id == record.volume;
            let Some(volume) = making.opened.iter().position(is_its) else {
                // It is another writer's, and was copied out.
                continue;
            };
            if making.opened[volume].local.fate(record.epoch) != RecordFate::Replay {
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
            mut opened,
            left,
            mut overlays,
            shards,
            stamped,
        } = making;
        let epoch = first_epoch(opened.iter().map(Opened::used), stamped);
        for opened in &mut opened {
            let begun = begin_serving(&self.heads, &mut opened.local, epoch);
            begun.expect("the directory of head records is sound");
        }
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
        let mut coordinator = Coordinator::new(self.plan.cut.clone(), clock.now());
        for (opened, overlays) in opened.iter().zip(&mut overlays) {
            let settings = self.settings_of(opened);
            coordinator.set_pace(opened.local.id, VolumePace::of(&settings));
            self.add_volume(&mut cores, opened, &settings, overlays);
        }
        for (slot, local) in left {
            self.fenced.volumes.insert(slot.0 as usize);
            for (number, core) in cores.iter_mut().enumerate() {
                self.fenced.told.insert((number, slot.0 as usize));
                core.forget_volume(local.id);
            }
        }
        let volumes = opened.into_iter().map(UpVolume::new).collect();
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

/// What the cores get of a volume.
impl World {
    /// Its settings; the limit in bytes is lower than an operator may choose.
    fn settings_of(&self, opened: &Opened) -> VolumeSettings {
        VolumeSettings {
            rpo_bytes: self.plan.volumes[opened.slot.0 as usize].rpo_bytes,
            ..opened.commit.head().settings.clone()
        }
    }

    fn add_volume(
        &self,
        cores: &mut [Core],
        opened: &Opened,
        settings: &VolumeSettings,
        overlays: &mut [Overlay],
    ) {
        let count = cores.len();
        for (number, core) in cores.iter_mut().enumerate() {
            core.tick(self.now_us / super::plan::MS);
            let own = ShardId::all().filter(|shard| shard.core(count) == number);
            let parts = own
                .map(|shard| {
                    let overlay = std::mem::take(&mut overlays[shard.index()]);
                    (shard, overlay, opened.commit.base().shard(shard).clone())
                })
                .collect();
            let released = opened.local.released_through();
            core.add_volume(
                opened.slot,
                opened.local.id,
                settings,
                false,
                released,
                parts,
            );
        }
    }
}

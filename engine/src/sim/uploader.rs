//! The uploader in the simulator: cuts, packing, commits, on a backend that fails, answers late or
//! is away. Mirrors `appliance::uploader`.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use futures::executor::block_on;

use super::bucket::{Late, lost};
use super::compaction::Compacting;
use super::opening::Opened;
use super::plan::{MS, Moment};
use super::points::Points;
use super::serve::Message;
use super::sweep::Sweeping;
use super::world::{Event, World};
use crate::backend::{Backend, Put};
use crate::block::{SHARD_COUNT, ShardId};
use crate::chunk::ChunkRef;
use crate::commit::{self, Coordinator, Effect, Load, Publication, SealedVolume, VolumeCommit};
use crate::core::{Committed, CoreLoad, SealedCore};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Epoch, Generation, VolumeId};
use crate::index::ChunkOrdinal;
use crate::object::{ObjectKey, SealedRef};
use crate::pack::ChunkJob;
use crate::registry::{GroupVerdict, LocalHead};
use crate::shard::VolumeSlot;
use crate::snapshot::SnapshotId;
use crate::wal::PlaceMap;

pub(super) type CutPlaces = [Option<Arc<PlaceMap>>; SHARD_COUNT];

pub(super) enum UpMessage {
    Sealed(SealedCore),
    Applied(VolumeId, Epoch),
    Want(VolumeId, Epoch),
    Load(CoreLoad),
    Event(VolumeId, commit::Event),
}

/// Local work of the uploader, done after a while.
pub(super) enum Work {
    Build(ChunkJob, Rc<CutPlaces>),
    SaveHead(Box<LocalHead>),
    GetManifest(ObjectKey),
}

/// Who hears of a request that lands, and whether the answer gets through.
pub(super) struct Landing {
    life: u32,
    volume: VolumeId,
    what: What,
    lost: bool,
}

/// The event that the answer becomes.
#[derive(Clone, Copy)]
pub(super) enum What {
    Chunk {
        index: usize,
        reference: ChunkRef,
        /// Of a compaction.
        is_copied: bool,
    },
    Index,
    Manifest,
    Deleted,
    /// Several objects are deleted, one answer is enough.
    Nothing,
}

pub(super) struct UpVolume {
    pub(super) commit: VolumeCommit,
    pub(super) local: LocalHead,
    pub(super) slot: VolumeSlot,
    places: Rc<CutPlaces>,
    pub(super) publishing: Option<(Epoch, usize)>,
    /// Served under its old generation, because the backend could not be asked.
    pub(super) unverified: bool,
}

/// The uploader's state.
pub(super) struct Uploader {
    pub(super) coordinator: Coordinator,
    loads: Vec<CoreLoad>,
    places: Rc<CutPlaces>,
    gathering: CutPlaces,
    pub(super) volumes: BTreeMap<VolumeId, UpVolume>,
    pub(super) tables: BTreeMap<(VolumeId, ChunkOrdinal), ChunkRef>,
    pub(super) inbox: VecDeque<UpMessage>,
    pub(super) full: bool,
    pub(super) compacting: Compacting,
    pub(super) sweeping: Option<Sweeping>,
    /// What became of groups of snapshots, as far as this life has learnt it.
    pub(super) verdicts: BTreeMap<SnapshotId, GroupVerdict>,
}

impl Uploader {
    pub(super) fn new(coordinator: Coordinator, volumes: Vec<UpVolume>, cores: usize) -> Self {
        let mut this = Self {
            coordinator,
            loads: (0..cores)
                .map(|core| CoreLoad {
                    core,
                    ..CoreLoad::default()
                })
                .collect(),
            places: Rc::new(CutPlaces::default()),
            gathering: CutPlaces::default(),
            volumes: volumes
                .into_iter()
                .map(|v| (v.commit.volume(), v))
                .collect(),
            tables: BTreeMap::new(),
            inbox: VecDeque::new(),
            full: false,
            compacting: Compacting::default(),
            sweeping: None,
            verdicts: BTreeMap::new(),
        };
        let ids: Vec<VolumeId> = this.volumes.keys().copied().collect();
        ids.into_iter().for_each(|id| this.fill_tables(id));
        this
    }

    fn fill_tables(&mut self, id: VolumeId) {
        for (ordinal, entry) in self.volumes[&id].commit.base().chunks() {
            self.tables.insert((id, ordinal), entry.reference);
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.coordinator.is_idle()
            && self.inbox.is_empty()
            && self.volumes.values().all(|v| v.is_quiet())
    }

    fn sealed(&mut self, sealed: SealedCore) {
        self.loads[sealed.core] = sealed.load;
        let mut complete = false;
        for shard in sealed.shards {
            self.gathering[shard.shard.index()] = Some(shard.places);
            let volumes = shard
                .volumes
                .into_iter()
                .map(|(_, id, overlay)| (id, overlay));
            complete = self.coordinator.sealed(sealed.epoch, shard.shard, volumes);
        }
        if complete {
            self.places = Rc::new(std::mem::take(&mut self.gathering));
        }
    }

    fn start(&mut self, sealed: &SealedVolume, points: &Points, now: (u64, u64)) {
        let volume = self
            .volumes
            .get_mut(&sealed.volume)
            .expect("all volumes are open");
        volume.places = Rc::clone(&self.places);
        points.tell_time(&mut volume.commit, now);
        let plan = volume.commit.plan(sealed);
        volume.commit.start_with(plan, sealed.snapshots.clone());
    }
}

impl UpVolume {
    pub(super) fn new(opened: Opened) -> Self {
        let Opened {
            slot,
            commit,
            local,
            unverified,
        } = opened;
        Self {
            commit,
            local,
            slot,
            unverified,
            places: Rc::new(CutPlaces::default()),
            publishing: None,
        }
    }

    fn is_quiet(&self) -> bool {
        let fenced = self.commit.fenced_by().is_some();
        (self.commit.is_idle() || fenced) && self.publishing.is_none()
    }

    fn fails(&self) -> Option<ErrorKind> {
        let status = self.commit.status();
        (status.failures > 0)
            .then_some(status.last_failure)
            .flatten()
            .map(|(kind, _)| kind)
    }
}

impl World {
    pub(super) fn tell_uploader(&mut self, message: UpMessage) {
        let Some(node) = &mut self.node else { return };
        node.uploader.inbox.push_back(message);
        let delay = self.dice.range(1..=self.plan.turn_delay_us);
        self.wake_uploader(delay);
    }

    pub(super) fn wake_uploader(&mut self, delay_us: u64) {
        let at = self.now_us + delay_us;
        let Some(node) = &mut self.node else { return };
        if node.uploader_turn_at.is_none_or(|planned| planned > at) {
            node.uploader_turn_at = Some(at);
            self.schedule(delay_us, Event::UploaderTurn { life: self.life });
        }
    }

    pub(super) fn demand_cut(&mut self) {
        if let Some(node) = &mut self.node {
            node.uploader.coordinator.demand_cut();
            self.wake_uploader(1);
        }
    }

    /// What no cut holds yet, on all cores.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.node_ref()
            .cores
            .iter()
            .map(|core| core.load().pending_bytes)
            .sum()
    }

    pub(super) fn uploader_turn(&mut self) {
        let now_us = self.now_us;
        let node = self.node.as_mut().expect("it runs");
        if node.uploader_turn_at.is_none_or(|at| at > now_us) {
            return;
        }
        node.uploader_turn_at = None;
        while let Some(message) = self
            .node
            .as_mut()
            .and_then(|node| node.uploader.inbox.pop_front())
        {
            self.uploader_hears(message);
        }
        self.may_snapshot();
        self.take_cut();
        let snapshots = Rc::clone(&self.snapshots);
        let now = (self.now_us, self.life_began_us);
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        while let Some(sealed) = uploader.coordinator.next_volume() {
            uploader.start(&sealed, &snapshots.points, now);
        }
        self.may_compact();
        self.may_sweep();
        self.resume_cuts();
        self.run_effects();
        self.note_health();
        let uploader = &self.node_ref().uploader;
        let retries = uploader
            .volumes
            .values()
            .filter_map(|volume| volume.commit.next_wake_ms());
        let next_ms = retries.chain(uploader.coordinator.next_wake_ms()).min();
        let wait = next_ms.map_or(1000 * MS, |at| (at * MS).saturating_sub(self.now_us));
        self.wake_uploader(wait.clamp(MS, 1000 * MS));
    }

    fn uploader_hears(&mut self, message: UpMessage) {
        let now_ms = self.now_us / MS;
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        match message {
            UpMessage::Sealed(sealed) => {
                uploader.sealed(sealed);
                self.tell_fulfilled();
            }
            UpMessage::Want(volume, through) => uploader.coordinator.want(volume, through),
            UpMessage::Load(load) => {
                let core = load.core;
                uploader.loads[core] = load;
            }
            UpMessage::Applied(id, epoch) => {
                let volume = uploader.volumes.get_mut(&id).expect("an open volume");
                let Some((publishing, missing)) = &mut volume.publishing else {
                    return;
                };
                assert_eq!(*publishing, epoch, "one publication at a time");
                *missing -= 1;
                if *missing > 0 {
                    return;
                }
                volume.publishing = None;
                volume.commit.handle(commit::Event::Published, now_ms);
                let was_unverified = std::mem::take(&mut volume.unverified);
                if self.compaction_applied(id) {
                    return;
                }
                let uploader = &mut self.node.as_mut().expect("it runs").uploader;
                uploader.coordinator.volume_done(id);
                let covered = uploader.coordinator.covered(id);
                if was_unverified {
                    self.coverage.hit("an unverified volume was verified");
                }
                self.tell_fulfilled();
                // Also those whose writes wait because the bucket lacks too much.
                self.tell_covered(id, covered);
                self.note(format_args!("committed epoch {epoch} of {id}"));
            }
            UpMessage::Event(id, event) => {
                let volume = uploader.volumes.get_mut(&id).expect("an open volume");
                volume.commit.handle(event, now_ms);
                let status = volume.commit.status();
                if status.failures > 0 {
                    self.coverage.hit("a commit was repeated after a failure");
                }
                self.compaction_heard(id);
            }
        }
    }

    /// Tells the cores which volumes the bucket holds as far as their clients wait for it.
    fn tell_fulfilled(&mut self) {
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        for (id, through) in uploader.coordinator.fulfilled() {
            self.tell_covered(id, through);
        }
    }

    fn tell_covered(&mut self, id: VolumeId, through: Epoch) {
        let Some(volume) = self.node_ref().uploader.volumes.get(&id) else {
            return;
        };
        let slot = volume.slot;
        for core in 0..self.plan.cores {
            self.post(core, Message::Covered(slot, id, through));
        }
    }

    /// The uploader runs beside the cores: the epoch may end in the middle of a core's turn.
    pub(super) fn may_cut(&mut self) {
        if self.dice.chance(30) {
            self.take_cut();
        }
    }

    fn take_cut(&mut self) {
        let now_ms = self.now_us / MS;
        let node = self.node.as_mut().expect("it runs");
        let load = Load::of(&node.uploader.loads);
        let Some(cut) = node.uploader.coordinator.tick(now_ms, &load) else {
            return;
        };
        assert_eq!(
            node.clock.advance_of(cut.scope.clone()),
            cut.epoch,
            "the coordinator alone moves the clock"
        );
        self.note(format_args!("cut {} {:?}", cut.epoch, cut.reason));
        for (volume, id) in self.ids.iter().enumerate() {
            if cut.scope.has(*id) {
                self.risk.cut(volume, cut.epoch);
            }
        }
        for core in 0..self.plan.cores {
            self.post(core, Message::Seal);
        }
    }

    fn note_health(&mut self) {
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let full = uploader
            .volumes
            .values()
            .any(|v| v.fails() == Some(ErrorKind::Full));
        if full || uploader.full {
            self.last_full_us = Some(self.now_us);
        }
        if std::mem::replace(&mut uploader.full, full) != full {
            for core in 0..self.plan.cores {
                self.post(core, Message::BackendFull(full));
            }
        }
    }

    fn run_effects(&mut self) {
        let now_ms = self.now_us / MS;
        for id in self.ids.clone() {
            loop {
                let uploader = &mut self.node.as_mut().expect("it runs").uploader;
                let Some(volume) = uploader.volumes.get_mut(&id) else {
                    break;
                };
                let Some(effect) = volume.commit.next_effect(now_ms) else {
                    break;
                };
                self.run_effect(id, effect);
            }
        }
    }

    fn begin(&mut self, after: u64, volume: VolumeId, work: Work) {
        let life = self.life;
        self.schedule(after, Event::Work { life, volume, work });
    }

    fn run_effect(&mut self, id: VolumeId, effect: Effect) {
        let soon = self.dice.range(10..=2 * MS);
        match effect {
            Effect::PutChunk(job) => {
                let places = Rc::clone(&self.node_ref().uploader.volumes[&id].places);
                let work = Work::Build(job, places);
                self.begin(soon, id, work);
            }
            Effect::PutIndex { key, body } => {
                self.coverage.hit("an index checkpoint was written");
                self.send(id, Late::Put(key.object(), body), What::Index);
            }
            Effect::PutManifest { key, body } => {
                self.send(id, Late::Put(key, body), What::Manifest)
            }
            Effect::GetManifest { key } => {
                self.coverage.hit("a commit's lost response was recognised");
                self.begin(soon, id, Work::GetManifest(key));
            }
            Effect::SaveHead(update) => {
                let uploader = &mut self.node.as_mut().expect("it runs").uploader;
                let volume = uploader.volumes.get_mut(&id).expect("an open volume");
                assert_eq!(update.head, volume.commit.head().number);
                volume.local.advance(volume.commit.head());
                let work = Work::SaveHead(Box::new(volume.local.clone()));
                self.begin(soon, id, work);
            }
            Effect::Publish(publication) => self.publish(id, publication),
            Effect::Delete { objects } => {
                let last = objects.len() - 1;
                for (index, object) in objects.into_iter().enumerate() {
                    if matches!(object, SealedRef::Chunk(_)) {
                        self.coverage.hit("a chunk was deleted");
                    }
                    let what = if index == last {
                        What::Deleted
                    } else {
                        What::Nothing
                    };
                    self.send(id, Late::Delete(object.object()), what);
                }
            }
            Effect::Fenced { by } => self.fenced(id, by),
        }
    }

    /// Another writer owns the volume: nothing more of it is acknowledged.
    fn fenced(&mut self, id: VolumeId, by: Generation) {
        self.note(format_args!("volume {id} is fenced by generation {by}"));
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let (slot, unverified) = {
            let volume = &uploader.volumes[&id];
            (volume.slot, volume.unverified)
        };
        uploader.coordinator.forget_volume(id);
        if self.racing.is_none() {
            if !unverified {
                return self.violate(format!("volume {id} was fenced by {by}, nobody did"));
            }
            self.coverage
                .hit("a commit that was never answered fenced a start without the backend");
        } else if unverified {
            self.coverage
                .hit("race: a start without the backend was fenced when it was back");
        }
        self.fenced.volumes.insert(slot.0 as usize);
        for core in 0..self.plan.cores {
            self.post(core, Message::Fence(slot));
        }
    }

    /// Sends a request to the backend: it lands or not, answers or not, in any order.
    fn send(&mut self, volume: VolumeId, late: Late, what: What) {
        let life = self.life;
        let away = self.is_away();
        let delay = self.dice.range(100..=8 * MS);
        let answer = |lost| Landing {
            life,
            volume,
            what,
            lost,
        };
        if self.has_no_room_for(&late, what) {
            let error = Error::new(ErrorKind::Full, "the simulated backend is full");
            return self.answer(delay, volume, what, Err(error));
        }
        if away || self.dice.chance(self.faults.put_fails) {
            return self.answer(delay, volume, what, Err(lost()));
        }
        if self.dice.chance(self.faults.put_late) {
            // The caller gives up, the request lands all the same, perhaps in another life.
            let later = delay + self.dice.range(1..=300 * MS);
            self.schedule(later, Event::Land { late, then: None });
            return self.answer(delay, volume, what, Err(lost()));
        }
        let lost = self.dice.chance(self.faults.put_response_lost);
        self.schedule(
            delay,
            Event::Land {
                late,
                then: Some(answer(lost)),
            },
        );
    }

    /// The backend, with copies of metadata if there are any and the answer is heard.
    fn store(&self, is_heard: bool) -> &dyn Backend {
        match &self.copies {
            Some(copies) if is_heard => copies,
            _ => &self.objects,
        }
    }

    /// A request reaches the backend.
    pub(super) fn land(&mut self, late: Late, then: Option<Landing>) {
        let Some(landing) = then else {
            self.coverage.hit("a dead life's put landed late");
            let kept = late.clone();
            late.land(&self.objects);
            return self.snapshots_landed(&kept);
        };
        let is_manifest = matches!(landing.what, What::Manifest);
        if is_manifest {
            self.moment(Moment::Manifest);
        }
        // What gets no answer is not copied.
        let is_heard = !landing.lost && landing.life == self.life;
        let store = self.store(is_heard);
        let result = match &late {
            Late::Put(key, body) => block_on(store.put_if_absent(key, body.clone())).map(Some),
            Late::Delete(key) => block_on(store.delete(key)).map(|()| None),
        };
        let created = self.racing.is_none() || matches!(result, Ok(Some(Put::Created)));
        if is_manifest
            && created
            && self.dice.chance(150)
            && let Err(what) = self.check_created(landing.volume)
        {
            self.violate(what);
        }
        if created {
            self.snapshots_landed(&late);
        }
        let result = if landing.lost { Err(lost()) } else { result };
        if landing.life == self.life {
            let delay = self.dice.range(10..=4 * MS);
            self.answer(delay, landing.volume, landing.what, result);
        }
    }

    /// Tells the uploader how a request went.
    fn answer(&mut self, delay_us: u64, volume: VolumeId, what: What, result: Result<Option<Put>>) {
        let event = match what {
            What::Chunk {
                index, reference, ..
            } => commit::Event::ChunkPut {
                index,
                result: result.map(|_| reference),
            },
            What::Index => commit::Event::IndexPut(result.map(|_| ())),
            What::Manifest => {
                let put = result.map(|put| put.expect("a put says what it did"));
                commit::Event::ManifestPut(put)
            }
            What::Deleted => commit::Event::Deleted(result.map(|_| ())),
            What::Nothing => return,
        };
        self.schedule(
            delay_us,
            Event::Answer {
                life: self.life,
                volume,
                event,
            },
        );
    }

    /// Does local work of the uploader.
    pub(super) fn work(&mut self, id: VolumeId, work: Work) {
        match work {
            Work::Build(job, places) => match self.build(&job, &places) {
                Ok((body, reference)) => {
                    let what = What::Chunk {
                        index: job.index,
                        reference,
                        is_copied: job.is_copied(),
                    };
                    self.send(id, Late::Put(reference.key.object(), body), what);
                }
                Err(error) => {
                    self.note(format_args!("packing fails: {error}"));
                    let event = commit::Event::ChunkPut {
                        index: job.index,
                        result: Err(error),
                    };
                    self.schedule(
                        1,
                        Event::Answer {
                            life: self.life,
                            volume: id,
                            event,
                        },
                    );
                }
            },
            Work::SaveHead(local) => {
                self.moment(Moment::HeadSave);
                let fails = self.dice.chance(self.faults.head_save);
                let result = match fails {
                    true => Err(Error::new(ErrorKind::Io, "the simulated disk fails")),
                    false => self.heads.save(&local),
                };
                let event = commit::Event::HeadSaved(result);
                self.schedule(
                    100,
                    Event::Answer {
                        life: self.life,
                        volume: id,
                        event,
                    },
                );
            }
            Work::GetManifest(key) => {
                let fails = self.dice.chance(self.faults.get_fails);
                let result = if fails {
                    Err(lost())
                } else {
                    block_on(self.store(true).get(&key))
                };
                let event = commit::Event::ManifestGot(result);
                self.schedule(
                    100,
                    Event::Answer {
                        life: self.life,
                        volume: id,
                        event,
                    },
                );
            }
        }
    }

    fn publish(&mut self, id: VolumeId, publication: Publication) {
        let cores = self.plan.cores;
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        uploader.fill_tables(id);
        let index = self.ids.iter().position(|known| *known == id);
        let index = index.expect("a volume of its own");
        self.risk.committed(index, publication.epoch);
        let volume = uploader.volumes.get_mut(&id).expect("an open volume");
        volume.publishing = Some((publication.epoch, cores));
        let slot = volume.slot;
        let mut by_core: Vec<Vec<_>> = (0..cores).map(|_| Vec::new()).collect();
        for (shard, leaves) in ShardId::all().zip(publication.leaves) {
            by_core[shard.core(cores)].push((shard, leaves));
        }
        for (core, leaves) in by_core.into_iter().enumerate() {
            let epoch = publication.epoch;
            let committed = Committed {
                slot,
                volume: id,
                epoch,
                leaves,
            };
            self.post(core, Message::Committed(committed));
        }
    }
}

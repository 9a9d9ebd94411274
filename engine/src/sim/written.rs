//! Volumes that no appliance serves (clones), written all the same: cuts, compactions, snapshots
//! and rollbacks of their own, by writers that fail at any request and die before any step. What
//! each holds is a map of its bytes.

mod paused;
mod points;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;

use super::coverage::Coverage;
use super::dice::Dice;
use super::image::read_all;
use super::pattern::Lattice;
use crate::backend::{Backend, Fault, FaultRule, MemBackend};
use crate::block::{BlockNum, ShardId};
use crate::commit::{CommitConfig, CompactionPolicy, Effect, Event, SealedVolume, VolumeCommit};
use crate::error::{ErrorKind, Result};
use crate::failpoint::{self, pass};
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId, WriterToken};
use crate::index::rebuild::rebuild;
use crate::index::{Overlay, Point};
use crate::manifest::Manifest;
use crate::object::ObjectKey;
use crate::registry::{
    RollbackWish, Sweep, delete_snapshot, prepare_rollback, put_rollback, read_history,
    read_snapshot,
};
use crate::snapshot::{KeptImage, Snapshot, SnapshotId, SnapshotName, SnapshotWish};
use crate::timestamp::UnixMs;
use crate::wal::place::Place;

use paused::Paused;
use points::Kept;

/// Snapshots of one such volume at a time.
const HELD_MAX: usize = 2;
/// Requests of a step, about.
const REQUESTS: u64 = 16;
/// Little is worth it, so that it is done often.
const POLICY: CompactionPolicy = CompactionPolicy {
    threshold_percent: 95,
    freed_percent: 1,
    chunks_max: 2,
};
/// Steps before which a writer dies, and what is counted then.
pub(super) const DEATHS: [(&str, &str); 9] = [
    ("chunk.put", "a writer died before a chunk's put"),
    ("manifest.put", "a writer died before a manifest's put"),
    ("object.delete", "a writer died before a delete"),
    ("compact.read", "a writer died before a compaction's reads"),
    ("compact.put", "a writer died before a compaction's put"),
    (
        "compact.manifest",
        "a writer died before a compaction's manifest",
    ),
    ("rollback.index", "a writer died before a rollback's index"),
    ("rollback.put", "a writer died before a rollback's manifest"),
    ("sweep.delete", "a writer died before a sweep's delete"),
];

/// A volume, and what it must hold.
pub(super) struct Written {
    id: VolumeId,
    lattice: Lattice,
    image: Vec<u8>,
    snapshots: Vec<(Snapshot, Vec<u8>)>,
    kept: Kept,
    writer: Option<Writer>,
    /// Whether writers pause while others have the volume, and those that do.
    pauses: bool,
    paused: Vec<Paused>,
    /// Counts openings, and what is written.
    number: u64,
}

/// One opening for writing.
pub(super) struct Writer {
    commit: VolumeCommit,
    now_ms: u64,
    /// Bytes of the blocks of its cut.
    blocks: BTreeMap<u64, Vec<u8>>,
    compacts: bool,
    /// It pauses when a delete is due, which is held back.
    stops_at_deletes: bool,
    held: Option<Effect>,
    /// Requests that delete.
    deletes: u64,
}

/// How driving a writer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drove {
    /// Nothing is left to be done.
    Rest,
    /// It died.
    Dead,
    /// There is more; it was told to pause.
    Paused,
}

impl Writer {
    fn open(objects: &MemBackend, id: VolumeId, dice: &mut Dice) -> Result<Self> {
        block_on(async {
            let mut history = read_history(objects, id, None).await?;
            let opened = history.head().opened_by(WriterToken(dice.number()));
            let key = opened.object();
            objects.put_if_absent(&key, opened.encode()).await?;
            history.manifests.push(opened.clone());
            let rebuilt = rebuild(objects, &history.manifests).await?;
            let config = CommitConfig {
                checkpoint_commits: dice.range(1..=3) as u32,
                checkpoint_chunks: dice.range(2..=6) as u32,
                part_bytes: 200,
                chunk_slots_max: 8,
                ..CommitConfig::default()
            };
            Ok(Self {
                commit: VolumeCommit::new(opened, rebuilt, config, dice.names()),
                now_ms: 0,
                blocks: BTreeMap::new(),
                compacts: false,
                stops_at_deletes: false,
                held: None,
                deletes: 0,
            })
        })
    }

    /// Performs up to `effects` effects.
    fn drive(&mut self, objects: &MemBackend, effects: usize) -> Drove {
        for _ in 0..effects {
            let mut effect = self.held.take();
            effect = effect.or_else(|| self.commit.next_effect(self.now_ms));
            if effect.is_none()
                && let Some(wake_ms) = self.commit.next_wake_ms()
            {
                self.now_ms = self.now_ms.max(wake_ms);
                effect = self.commit.next_effect(self.now_ms);
            }
            let Some(effect) = effect else {
                return Drove::Rest;
            };
            if matches!(effect, Effect::Delete { .. }) {
                if self.stops_at_deletes {
                    self.held = Some(effect);
                    return Drove::Paused;
                }
                self.deletes += 1;
            }
            let Some(event) = self.perform(objects, effect) else {
                return Drove::Rest;
            };
            if failpoint::has_fired() {
                return Drove::Dead;
            }
            self.commit.handle(event, self.now_ms);
        }
        Drove::Paused
    }

    /// `None`: it is fenced.
    fn perform(&self, objects: &MemBackend, effect: Effect) -> Option<Event> {
        let step = |cut, compaction| match self.compacts {
            true => pass(compaction),
            false => pass(cut),
        };
        let put = |key: &ObjectKey, body| block_on(objects.put_if_absent(key, body));
        Some(match effect {
            Effect::PutChunk(job) => {
                let built = job.build(|block, out| {
                    out.copy_from_slice(&self.blocks[&block.block.0]);
                    Ok(())
                });
                let result = built.and_then(|(body, reference)| {
                    step("chunk.put", "compact.put")?;
                    put(&reference.key.object(), body)?;
                    Ok(reference)
                });
                let index = job.index;
                Event::ChunkPut { index, result }
            }
            Effect::PutIndex { key, body } => Event::IndexPut(put(&key.object(), body).map(drop)),
            Effect::PutManifest { key, body } => {
                let passed = step("manifest.put", "compact.manifest");
                Event::ManifestPut(passed.and_then(|()| put(&key, body)))
            }
            Effect::GetManifest { key } => Event::ManifestGot(block_on(objects.get(&key))),
            Effect::SaveHead(_) => Event::HeadSaved(Ok(())),
            Effect::Publish(_) => Event::Published,
            Effect::Delete { objects: dead } => {
                let keys: Vec<_> = dead.iter().map(|object| object.object()).collect();
                let passed = pass("object.delete");
                let deleted = passed.and_then(|()| block_on(objects.delete_many(&keys)));
                Event::Deleted(deleted)
            }
            Effect::Fenced { .. } => return None,
        })
    }
}

impl Written {
    /// A volume that holds `image`, and keeps its cuts for so long; whether its writers pause.
    pub(super) fn new(
        id: VolumeId,
        lattice: Lattice,
        image: Vec<u8>,
        (window_ms, pauses): (u64, bool),
    ) -> Self {
        Self {
            pauses,
            paused: Vec::new(),
            kept: Kept::new(window_ms),
            id,
            lattice,
            image,
            snapshots: Vec::new(),
            writer: None,
            number: 0,
        }
    }

    /// One of its snapshots, with what it holds.
    pub(super) fn snapshot(&self, dice: &mut Dice) -> Option<(Snapshot, Vec<u8>)> {
        let at: Vec<usize> = (0..self.snapshots.len()).collect();
        (!at.is_empty()).then(|| self.snapshots[dice.pick(&at)].clone())
    }

    pub(super) fn has_snapshots(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// Its writer pauses in the middle of a commit, and lives on while others have the volume.
    pub(super) fn abandon(&mut self, objects: &MemBackend, dice: &mut Dice) -> Option<Writer> {
        let effects = dice.range(1..=4) as usize;
        self.write(objects, dice, effects, None).ok()?;
        self.writer.take()
    }

    /// One step of its life. An error is a broken promise.
    pub(super) fn step(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> std::result::Result<(), String> {
        self.kept.pass(dice.range(0..=300));
        let paused = self.pause_or_go_on(objects, dice, coverage);
        paused.map_err(|error| format!("a volume is not taken over: {error}"))?;
        let what = dice.below(12);
        let died = dice.chance(300).then(|| match what {
            0..=5 | 7 => dice.pick(&DEATHS[..3]),
            6 => dice.pick(&DEATHS[6..8]),
            8 => DEATHS[8],
            _ => dice.pick(&DEATHS[2..6]),
        });
        if let Some((point, _)) = died {
            failpoint::fail_next(point);
        } else if dice.chance(300) {
            script(objects, dice);
        }
        let done = match what {
            0..=4 => self.write(objects, dice, usize::MAX, None),
            5 if self.snapshots.len() < HELD_MAX => self.take(objects, dice),
            6 => self.roll_back(objects, dice, coverage),
            7 => self.delete_snapshot(objects, dice),
            8 => self.sweep(objects, dice, coverage),
            _ => self.compact(objects, dice, coverage),
        };
        let fired = failpoint::has_fired();
        failpoint::fail_none();
        objects.clear_script();
        if let Some((_, event)) = died.filter(|_| fired) {
            coverage.hit(event);
        }
        // Whatever failed: what is stored is found by the next opening, and nothing else counts.
        if done.is_err() || fired || dice.chance(50) {
            self.writer = None;
        }
        self.check(objects, coverage)
    }

    /// The image, all snapshots and all points in time read as they should.
    pub(super) fn check(
        &mut self,
        objects: &MemBackend,
        coverage: &mut Coverage,
    ) -> std::result::Result<(), String> {
        let (id, lattice) = (self.id, self.lattice);
        let read = block_on(async {
            let history = read_history(objects, id, None).await?;
            let rebuilt = rebuild(objects, &history.manifests).await?;
            let image = read_all(objects, &rebuilt.base, lattice).await?;
            Ok::<_, crate::error::Error>((history.head().epoch, rebuilt.points, image))
        });
        let (epoch, points, image) =
            read.map_err(|error| format!("volume {id} cannot be read: {error}"))?;
        if image != self.image {
            return Err(format!("volume {id} is not what was written"));
        }
        self.kept.note(epoch, &image);
        self.kept.check(objects, (id, lattice), &points, coverage)?;
        for (snapshot, expected) in &self.snapshots {
            let read = block_on(async {
                let (_, rebuilt) = read_snapshot(objects, id, snapshot).await?;
                read_all(objects, &rebuilt.base, lattice).await
            });
            let name = snapshot.id;
            let read = read.map_err(|error| format!("snapshot {name} of {id}: {error}"))?;
            if read != *expected {
                return Err(format!("snapshot {name} of {id} has changed"));
            }
        }
        Ok(())
    }

    fn writer(&mut self, objects: &MemBackend, dice: &mut Dice) -> Result<&mut Writer> {
        if self.writer.is_none() {
            self.writer = Some(Writer::open(objects, self.id, dice)?);
            self.kept.opened();
        }
        let writer = self.writer.as_mut().expect("just opened");
        self.kept.tell_time(&mut writer.commit, dice);
        Ok(writer)
    }

    fn head(&self, objects: &MemBackend) -> Manifest {
        // Nothing is scripted any more, and it exists.
        objects.clear_script();
        let history = block_on(read_history(objects, self.id, None));
        history.expect("its chain can be read").head().clone()
    }

    /// Commits a cut of a few blocks, performing so many effects; it may die on the way.
    fn write(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        effects: usize,
        wish: Option<SnapshotWish>,
    ) -> Result<()> {
        self.number += 1;
        let (number, lattice) = (self.number, self.lattice);
        let (id, bytes) = (self.id, lattice.block_size.bytes());
        let mut image = self.image.clone();
        let writer = self.writer(objects, dice)?;
        let mut layers: Vec<_> = ShardId::all()
            .map(|shard| (shard, Overlay::new()))
            .collect();
        writer.blocks.clear();
        let first = dice.below(u64::from(lattice.blocks));
        let end = (first + dice.range(1..=20)).min(u64::from(lattice.blocks));
        for block in first..end {
            let overlay = &mut layers[BlockNum(block).shard().index()].1;
            let local = BlockNum(block).local();
            let place = &mut image[block as usize * bytes..][..bytes];
            if dice.chance(150) {
                overlay.insert_zero(local.0..local.0 + 1, Lsn(number));
                place.fill(0);
                continue;
            }
            let unit = [id.0 ^ (number << 32), block, number, !block].map(u64::to_le_bytes);
            place.copy_from_slice(&unit.concat().repeat(bytes / 32));
            let crc = crc32c::crc32c(place);
            writer.blocks.insert(block, place.to_vec());
            let point = Point {
                lsn: Lsn(number),
                place: Place {
                    batch: BatchNum(number),
                    page: 1,
                },
                crc,
            };
            overlay.insert_point(local, point);
        }
        let epoch = writer.commit.head().epoch.next();
        let sealed = SealedVolume {
            volume: id,
            epoch,
            layers: layers.into_iter().map(|(s, o)| (s, Arc::new(o))).collect(),
            snapshots: Vec::new(),
        };
        let plan = writer.commit.plan(&sealed);
        writer.compacts = false;
        writer.commit.start_with(plan, wish.into_iter().collect());
        let drove = writer.drive(objects, effects);
        if drove == Drove::Dead {
            self.writer = None;
        }
        if self.head(objects).epoch >= epoch {
            self.image = image;
        }
        Ok(())
    }

    fn take(&mut self, objects: &MemBackend, dice: &mut Dice) -> Result<()> {
        let id = SnapshotId(self.id.0 << 20 | (self.number + 1));
        let name = SnapshotName::parse(&format!("s{}", self.number + 1)).expect("a good name");
        let wish = SnapshotWish {
            id,
            name,
            taken_ms: 0,
            group: None,
        };
        let done = self.write(objects, dice, usize::MAX, Some(wish));
        self.note_snapshots(objects);
        done
    }

    /// Which snapshots there are is what the bucket says.
    fn note_snapshots(&mut self, objects: &MemBackend) {
        objects.clear_script();
        let found = block_on(async {
            let history = read_history(objects, self.id, None).await?;
            rebuild(objects, &history.manifests).await
        });
        let found = found.expect("its chain can be read").snapshots;
        self.snapshots.retain(|(s, _)| found.by_id(s.id).is_some());
        for snapshot in found.iter() {
            if self.snapshots.iter().all(|(s, _)| s.id != snapshot.id) {
                let taken = (snapshot.clone(), self.image.clone());
                self.snapshots.push(taken);
            }
        }
    }

    fn delete_snapshot(&mut self, objects: &MemBackend, dice: &mut Dice) -> Result<()> {
        let Some((snapshot, _)) = self.snapshot(dice) else {
            return Ok(());
        };
        let head = self.writer(objects, dice)?.commit.head().clone();
        let deleted = block_on(delete_snapshot(objects, &head, &snapshot));
        self.note_snapshots(objects);
        // Refused because of its clones: nothing has happened.
        if matches!(&deleted, Err(e) if e.kind() == ErrorKind::Busy) {
            return Ok(());
        }
        let writer = self.writer.as_mut().expect("it is open");
        writer.commit.adopt_head(deleted?);
        Ok(())
    }

    fn roll_back(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> Result<()> {
        let head = self.writer(objects, dice)?.commit.head().clone();
        let Some((to, image)) = self.pick_image(dice) else {
            return Ok(());
        };
        let epoch = Epoch(head.epoch.0 + 3);
        let event = match to {
            KeptImage::Snapshot(_) => "a clone was rolled back",
            KeptImage::Point(_) => "a clone went back to a point in time",
        };
        let wish = RollbackWish {
            to,
            epoch,
            now: UnixMs(0),
            seed: dice.number(),
        };
        let done = block_on(async {
            let next = prepare_rollback(objects, &head, &wish).await?;
            put_rollback(objects, &next).await
        });
        self.writer = None;
        if self.head(objects).epoch == epoch {
            self.image = image;
            self.paused_see_rollback();
            coverage.hit(event);
        }
        done.map(drop)
    }

    /// A snapshot or a point in time of the volume that is open, and what it holds.
    fn pick_image(&self, dice: &mut Dice) -> Option<(KeptImage, Vec<u8>)> {
        let points = self.writer.as_ref()?.commit.points();
        if dice.chance(500)
            && let Some((point, image)) = self.kept.pick(points, dice)
        {
            return Some((KeptImage::Point(point), image));
        }
        let (snapshot, image) = self.snapshot(dice)?;
        Some((KeptImage::Snapshot(snapshot), image))
    }

    /// Deletes what nothing names. What dead writers left is found at once, for nothing is late.
    fn sweep(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> Result<()> {
        let id = self.id;
        let commit = &self.writer(objects, dice)?.commit;
        let mut sweep = Sweep::of(id, true);
        while let Some(listed) = block_on(sweep.look(objects, 7))? {
            let Some(orphans) = commit.orphans_among(&listed) else {
                return Ok(());
            };
            block_on(sweep.judged(objects, &orphans))?;
        }
        if sweep.sum().orphans.objects > 0 {
            coverage.hit("a clone was swept");
        }
        Ok(())
    }

    fn compact(
        &mut self,
        objects: &MemBackend,
        dice: &mut Dice,
        coverage: &mut Coverage,
    ) -> Result<()> {
        let writer = self.writer(objects, dice)?;
        writer.compacts = true;
        let job = writer.commit.choose_compaction(&POLICY);
        let Some(job) = job else {
            if writer.commit.wants_sweep() {
                writer.commit.start_sweep();
                writer.drive(objects, usize::MAX);
            }
            return Ok(());
        };
        pass("compact.read")?;
        let read = block_on(job.read(objects))?;
        if writer.commit.start_compaction(read) {
            writer.drive(objects, usize::MAX);
            coverage.hit("a clone was compacted");
        }
        Ok(())
    }
}

/// What became of a paused writer of a volume that others have, or that is deleted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Haunting {
    /// It has more to do.
    GoesOn,
    /// It had done all that it began before it was taken over.
    Rests,
    /// It has learnt that it is too late.
    Fenced,
}

/// It goes on a little.
pub(super) fn haunt(zombie: &mut Writer, objects: &MemBackend, effects: usize) -> Haunting {
    let drove = zombie.drive(objects, effects);
    match (zombie.commit.fenced_by(), drove) {
        (Some(_), _) => Haunting::Fenced,
        (None, Drove::Paused) => Haunting::GoesOn,
        (None, _) => Haunting::Rests,
    }
}

/// Some request of the next ones fails, before or after its effect.
pub(super) fn script(objects: &MemBackend, dice: &mut Dice) {
    let kind = ErrorKind::Transient;
    let fault = match dice.chance(500) {
        true => Fault::FailBefore(kind),
        false => Fault::FailAfter(kind),
    };
    objects.script(FaultRule::nth(dice.below(REQUESTS) as u32, fault));
}

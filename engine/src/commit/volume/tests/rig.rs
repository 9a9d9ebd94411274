//! A volume in a backend in memory: shards, a model of its blocks, and a driver of its commits that
//! can be stopped after any effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;

use crate::backend::{Backend, MemBackend};
use crate::block::{BlockNum, BlockSize, LocalBlock, SHARD_COUNT, ShardId};
use crate::chunk::verify_slot;
use crate::commit::{CommitConfig, Effect, Event, HeadUpdate, Random, VolumeCommit};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{BatchNum, Epoch, Lsn, ManifestNum, VolumeId, WriterToken};
use crate::index::rebuild::rebuild;
use crate::index::{
    Baseline, Comparison, LEAF_BLOCKS, LeafKey, Overlay, Point, Reassigned, ShardBase, VolumeBase,
};
use crate::manifest::Manifest;
use crate::object::{ObjectKey, SealedRef};
use crate::pack::{ChunkJob, PackBlock, PackPlan};
use crate::registry::{read_history, read_snapshot};
use crate::snapshot::Snapshot;
use crate::volume::{VolumeName, VolumeSettings};
use crate::wal::place::Place;

pub(super) const VOLUME: VolumeId = VolumeId(0xAB);
const CHUNK_SLOTS: u32 = 16;

/// What a block holds: the LSN of its writer fills it.
fn content(block: u64, lsn: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    while bytes.len() < 4096 {
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&lsn.to_le_bytes());
    }
    bytes
}

/// LSN of the newest data of each block; absent blocks are zeros.
pub(super) type Model = BTreeMap<u64, u64>;

/// Everything that outlives a crash of the writer: the bucket, the local head record, and (in place
/// of the WAL) what was written.
pub(super) struct World {
    pub(super) volume: VolumeId,
    pub(super) backend: MemBackend,
    pub(super) head_record: Option<HeadUpdate>,
    pub(super) model: Model,
    /// Content of each committed cut.
    pub(super) cuts: BTreeMap<Epoch, Model>,
    pub(super) epoch: Epoch,
    layers: Vec<(ShardId, Overlay)>,
    next_lsn: u64,
    opens: u64,
    /// Chunks of cuts find no room beyond so many bytes of objects.
    pub(super) room_bytes: Option<u64>,
    /// Blocks may have been copied that a snapshot has elsewhere.
    pub(super) is_flattened: bool,
}

/// One opening of the volume: a writer generation.
pub(super) struct Rig {
    pub(super) commit: VolumeCommit,
    shards: Vec<ShardBase>,
    /// Earlier images that the shards keep.
    baselines: Vec<KeptBaseline>,
    pub(super) now_ms: u64,
    /// Names of the effects so far.
    pub(super) trace: Vec<&'static str>,
    /// Head saves that fail first.
    pub(super) head_failures: u32,
    /// Source reads that give wrong bytes first.
    pub(super) rotten_reads: u32,
}

/// An image of a snapshot that the shards keep.
struct KeptBaseline {
    of: Snapshot,
    shards: Vec<Baseline>,
    reassigned: Arc<Reassigned>,
}

/// A config under which checkpoints, parts and deletes come often.
pub(super) fn eager() -> CommitConfig {
    CommitConfig {
        checkpoint_commits: 2,
        checkpoint_chunks: 6,
        part_bytes: 400,
        chunk_slots_max: CHUNK_SLOTS,
        ..CommitConfig::default()
    }
}

impl World {
    /// A fresh volume.
    pub(super) fn new() -> Self {
        Self::with_settings(VolumeSettings::with_size(1 << 30))
    }

    /// A fresh volume with these settings.
    pub(super) fn with_settings(settings: VolumeSettings) -> Self {
        let backend = MemBackend::new();
        let name = VolumeName::parse("vol0").unwrap();
        let first = Manifest::first(VOLUME, name, settings, WriterToken(1));
        block_on(backend.put_if_absent(&first.object(), first.encode())).unwrap();
        Self::beginning_with(VOLUME, backend, Model::new())
    }

    fn beginning_with(volume: VolumeId, backend: MemBackend, model: Model) -> Self {
        Self {
            volume,
            backend,
            head_record: None,
            cuts: BTreeMap::from([(Epoch(0), model.clone())]),
            model,
            epoch: Epoch(1),
            layers: Vec::new(),
            // No two volumes write the same.
            next_lsn: 1 + volume.0 * 1_000_000,
            opens: 0,
            room_bytes: None,
            is_flattened: false,
        }
    }

    /// A volume of the same bucket that began as the cut of that epoch.
    pub(super) fn cloned(&self, volume: VolumeId, epoch: Epoch) -> Self {
        Self::beginning_with(volume, self.backend.clone(), self.cuts[&epoch].clone())
    }

    /// An epoch above every stamp, as a rollback has.
    pub(super) fn beyond(&self) -> Epoch {
        Epoch(self.epoch.0 + 5)
    }

    /// The volume is what it was in the cut `to`; nothing that was written since is to be seen.
    pub(super) fn rolled_back(&mut self, to: Epoch, at: Epoch) {
        self.model = self.cuts[&to].clone();
        self.cuts.insert(at, self.model.clone());
        self.epoch = at.next();
        self.layers.clear();
    }

    /// Opens under the next generation and rebuilds from the bucket.
    pub(super) fn open(&mut self, config: CommitConfig) -> Rig {
        self.opens += 1;
        let mut history = block_on(read_history(&self.backend, self.volume, None)).unwrap();
        let opened = history.head().opened_by(WriterToken(self.opens + 100));
        block_on(
            self.backend
                .put_if_absent(&opened.object(), opened.encode()),
        )
        .unwrap();
        history.manifests.push(opened);
        let rebuilt = block_on(rebuild(&self.backend, &history.manifests)).unwrap();
        let shards = ShardId::all().map(|shard| rebuilt.base.shard(shard).clone());
        Rig {
            shards: shards.collect(),
            baselines: Vec::new(),
            commit: VolumeCommit::new(
                history.head().clone(),
                rebuilt,
                config,
                Random::new([self.opens, self.volume.0, 3, 4]),
            ),
            now_ms: 0,
            trace: Vec::new(),
            head_failures: 0,
            rotten_reads: 0,
        }
    }

    pub(super) fn write(&mut self, blocks: impl IntoIterator<Item = u64>) {
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        for block in blocks {
            let place = Place {
                batch: BatchNum(lsn),
                page: 1,
            };
            let crc = crc32c::crc32c(&content(block, lsn));
            let point = Point {
                lsn: Lsn(lsn),
                place,
                crc,
            };
            let block = BlockNum(block);
            self.layer(block.shard()).insert_point(block.local(), point);
            self.model.insert(block.0, lsn);
        }
    }

    pub(super) fn zero(&mut self, blocks: impl IntoIterator<Item = u64>) {
        let lsn = Lsn(self.next_lsn);
        self.next_lsn += 1;
        for block in blocks {
            let local = BlockNum(block).local().0;
            self.layer(BlockNum(block).shard())
                .insert_zero(local..local + 1, lsn);
            self.model.remove(&block);
        }
    }

    /// Whether anything was written since the last committed cut.
    pub(super) fn is_dirty(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Ends the epoch. The layers stay, as the WAL's records would, until
    /// [`World::note_committed`]; a second cut merges them.
    pub(super) fn cut(&mut self) -> PackPlan {
        let epoch = self.epoch;
        self.epoch = epoch.next();
        self.cuts.insert(epoch, self.model.clone());
        let layers = self.layers.iter().map(|(shard, layer)| (*shard, layer));
        PackPlan::new(epoch, BlockSize::MIN, CHUNK_SLOTS, layers)
    }

    /// The newest cut is committed (nothing was written since).
    pub(super) fn note_committed(&mut self) {
        self.layers.clear();
    }

    /// The epoch of the bucket's image, after checking that the image is that cut to the byte.
    pub(super) fn verify(&self) -> Epoch {
        let history = block_on(read_history(&self.backend, self.volume, None)).unwrap();
        let image = block_on(rebuild(&self.backend, &history.manifests)).unwrap();
        self.verify_image(&image.base, history.head().epoch)
    }

    /// Checks that an image is the cut of that epoch to the byte.
    pub(super) fn verify_image(&self, image: &VolumeBase, epoch: Epoch) -> Epoch {
        let expected = &self.cuts[&epoch];
        assert_eq!(image.mapped_blocks(), expected.len() as u64, "cut {epoch}");
        for (&block, &lsn) in expected {
            let loc = image
                .lookup(BlockNum(block))
                .expect("a written block is mapped");
            let chunk = image.chunk(loc.chunk).unwrap().reference;
            let range = chunk.slot_range(BlockSize::MIN, loc.slot, 1);
            let len = range.end - range.start;
            let key = chunk.key.object();
            let read = self.backend.get_range(&key, range.start, len);
            let slot = block_on(read).expect("no manifest's chunk is ever deleted");
            let bytes = verify_slot(&slot, BlockSize::MIN, BlockNum(block)).unwrap();
            assert!(bytes == content(block, lsn), "block {block} of cut {epoch}");
        }
        epoch
    }

    /// What so many blocks from `first` hold in the cut of that epoch.
    pub(super) fn content_of(&self, epoch: Epoch, first: u64, count: u64) -> Vec<u8> {
        let cut = &self.cuts[&epoch];
        let bytes = |block: u64| match cut.get(&block) {
            Some(lsn) => content(block, *lsn),
            None => vec![0; 4096],
        };
        (first..first + count).flat_map(bytes).collect()
    }

    /// Bytes of all objects.
    pub(super) fn stored_bytes(&self) -> u64 {
        let all = block_on(self.backend.list("", None, 1_000_000)).unwrap();
        all.iter().map(|object| object.bytes).sum()
    }

    fn room_for(&self, job: &ChunkJob, bytes: usize) -> Result<()> {
        let is_full = |room: u64| self.stored_bytes() + bytes as u64 > room;
        match !job.is_copied() && self.room_bytes.is_some_and(is_full) {
            true => Err(Error::new(ErrorKind::Full, "no room but the ballast")),
            false => Ok(()),
        }
    }

    fn layer(&mut self, shard: ShardId) -> &mut Overlay {
        if self.layers.is_empty() {
            self.layers
                .extend(ShardId::all().map(|shard| (shard, Overlay::new())));
        }
        &mut self.layers[shard.index()].1
    }
}

impl Rig {
    /// Starts to commit all that was written.
    pub(super) fn start(&mut self, world: &mut World) {
        self.commit.start(world.cut());
    }

    /// Performs one effect, advancing the clock if it must; `false` when there is none.
    pub(super) fn step(&mut self, world: &mut World) -> bool {
        let Some(effect) = self.next_effect() else {
            return false;
        };
        if let Some(event) = self.perform(world, effect) {
            self.commit.handle(event, self.now_ms);
        }
        true
    }

    pub(super) fn run(&mut self, world: &mut World) {
        for _ in 0..100_000 {
            if !self.step(world) {
                return;
            }
        }
        panic!("the commit does not end: {:?}", self.commit.status());
    }

    /// Writes nothing, commits what is there, and checks image and shards.
    pub(super) fn commit_and_verify(&mut self, world: &mut World) {
        self.start(world);
        self.run(world);
        assert!(self.commit.is_idle(), "{:?}", self.commit.status());
        world.note_committed();
        assert_eq!(world.verify(), Epoch(world.epoch.0 - 1));
        self.check_shards();
    }

    /// The next effect; the clock jumps to the end of a backoff.
    pub(super) fn next_effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.commit.next_effect(self.now_ms) {
            return Some(effect);
        }
        let wake = self.commit.next_wake_ms()?;
        assert!(wake > self.now_ms, "a wake-up in the past would spin");
        self.now_ms = wake;
        self.commit.next_effect(self.now_ms)
    }

    /// Does what the effect asks; `None` if it has no answer.
    pub(super) fn perform(&mut self, world: &mut World, effect: Effect) -> Option<Event> {
        let backend = &world.backend;
        let put = |key: &ObjectKey, body| block_on(backend.put_if_absent(key, body));
        let (name, event) = match effect {
            Effect::PutChunk(job) => {
                let built = job.build(|block, out| self.read(block, out));
                let result = built.and_then(|(body, reference)| {
                    world.room_for(&job, body.len())?;
                    put(&job.spec.key.object(), body)?;
                    Ok(reference)
                });
                let index = job.index;
                ("chunk", Event::ChunkPut { index, result })
            }
            Effect::PutIndex { key, body } => (
                "index",
                Event::IndexPut(put(&key.object(), body).map(|_| ())),
            ),
            Effect::PutManifest { key, body } => ("manifest", Event::ManifestPut(put(&key, body))),
            Effect::GetManifest { key } => ("get", Event::ManifestGot(block_on(backend.get(&key)))),
            Effect::SaveHead(update) => ("head", Event::HeadSaved(self.save_head(world, update))),
            Effect::Publish(publication) => {
                assert_eq!(publication.leaves.len(), SHARD_COUNT);
                // WAL space is released now: the head record must be durable, the image complete.
                let saved = world
                    .head_record
                    .expect("published before the head was saved");
                assert_eq!(saved.committed_epoch, publication.epoch);
                for kept in &self.baselines {
                    kept.reassigned.note(self.commit.base());
                }
                for (shard, leaves) in self.shards.iter_mut().zip(publication.leaves) {
                    shard.install(leaves);
                }
                ("publish", Event::Published)
            }
            Effect::Delete { objects } => ("delete", Event::Deleted(delete(backend, &objects))),
            Effect::Fenced { .. } => {
                self.trace.push("fenced");
                return None;
            }
        };
        self.trace.push(name);
        Some(event)
    }

    /// The shards hold the index that the uploader has.
    pub(super) fn check_shards(&self) {
        assert_eq!(
            self.commit.base().recount(),
            [],
            "live blocks are counted exactly"
        );
        for (shard, ours) in ShardId::all().zip(&self.shards) {
            assert!(ours.leaves().eq(self.commit.base().shard(shard).leaves()));
        }
    }

    /// Has the shards keep an earlier image of each snapshot of which they have none, and checks
    /// that what has changed since is what the model says.
    pub(super) fn check_changes(&mut self, world: &World) {
        let snapshots: Vec<Snapshot> = self.commit.snapshots().iter().cloned().collect();
        self.baselines.retain(|kept| snapshots.contains(&kept.of));
        for snapshot in snapshots {
            if !self.baselines.iter().any(|kept| kept.of == snapshot) {
                self.keep(world, snapshot);
            }
        }
        let now = &world.cuts[&self.commit.head().epoch];
        for kept in &self.baselines {
            let then = &world.cuts[&kept.of.epoch];
            let differs = |block: &&u64| then.get(block) != now.get(block);
            let expected: BTreeSet<u64> = then
                .keys()
                .chain(now.keys())
                .filter(differs)
                .copied()
                .collect();
            let (changed, name) = (self.changed(kept), &kept.of.name);
            assert!(changed.is_superset(&expected), "since {name:?}");
            // Blocks that a flatten has copied seem to have changed; nothing else does.
            if !world.is_flattened {
                assert_eq!(changed, expected, "since {name:?}");
            }
        }
    }

    fn keep(&mut self, world: &World, of: Snapshot) {
        let read = read_snapshot(&world.backend, world.volume, &of);
        let (_, image) = block_on(read).unwrap();
        let base = self.commit.base();
        let reassigned = Arc::new(Reassigned::new(base));
        let comparison = Comparison::new(&image.base, base, Arc::clone(&reassigned));
        let shards = ShardId::all()
            .map(|shard| comparison.shard(shard))
            .collect();
        self.baselines.push(KeptBaseline {
            of,
            shards,
            reassigned,
        });
    }

    fn changed(&self, kept: &KeptBaseline) -> BTreeSet<u64> {
        let mut changed = BTreeSet::new();
        let (first, all) = (LeafKey(0), 0..LEAF_BLOCKS as u16);
        for (shard, (now, then)) in ShardId::all().zip(self.shards.iter().zip(&kept.shards)) {
            then.changed(first, now.leaf(first), all.clone(), |part| {
                changed.extend(part.map(|local| LocalBlock(local.into()).global(shard).0));
            });
        }
        changed
    }

    fn read(&mut self, block: &PackBlock, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&content(block.block.0, block.place.batch.0));
        if self.rotten_reads > 0 {
            self.rotten_reads -= 1;
            out[100] ^= 1;
        }
        Ok(())
    }

    fn save_head(&mut self, world: &mut World, update: HeadUpdate) -> Result<()> {
        if self.head_failures > 0 {
            self.head_failures -= 1;
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::io("saving the head record", full));
        }
        assert_eq!(
            (update.volume, update.head),
            (world.volume, self.commit.head().number)
        );
        world.head_record = Some(update);
        Ok(())
    }
}

fn delete(backend: &MemBackend, objects: &[SealedRef]) -> Result<()> {
    for object in objects {
        block_on(backend.delete(&object.object()))?;
    }
    Ok(())
}

/// Another appliance takes the volume over.
pub(super) fn take_over(world: &World, head: &Manifest, token: u64) -> Manifest {
    let other = head.opened_by(WriterToken(token));
    block_on(world.backend.put_if_absent(&other.object(), other.encode())).unwrap();
    other
}

pub(super) fn put_raw(world: &World, number: ManifestNum, body: &'static [u8]) {
    let key = ObjectKey::manifest(VOLUME, number);
    block_on(world.backend.put_if_absent(&key, Bytes::from_static(body))).unwrap();
}

//! One volume's commits: chunks, index checkpoint, manifest, local head record, publication.

mod aside;
mod checkpoint;
mod compaction;
mod flatten;
mod garbage;
mod orphans;
mod points;
mod retry;
mod snapshots;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::SealedVolume;
use super::outcome::{CommitStatus, Effect, Event, HeadUpdate, Publication};
use super::random::Random;
use crate::backend::Put;
use crate::block::BlockSize;
use crate::chunk::{ChunkRef, ChunkSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId};
use crate::index::rebuild::{Rebuilt, SinceCheckpoint};
use crate::index::{VolumeBase, VolumeChanges};
use crate::manifest::{CheckpointRef, LIST_MAX, Manifest, ManifestKind};
use crate::mutation::{Mutation, is_in};
use crate::object::{ChunkKey, IndexKey};
use crate::pack::{ChunkJob, PackPlan};
use crate::point::PointTable;
use crate::snapshot::{Keepers, SnapshotTable, SnapshotWish};

pub use compaction::Usage;
pub use flatten::Foreign;
pub use points::Reading;

use aside::Aside;
use checkpoint::Checkpoint;
use garbage::{Condemnation, Garbage};
use points::Ageing;
use retry::Retry;

/// How a [`VolumeCommit`] works.
#[derive(Clone, Debug)]
pub struct CommitConfig {
    /// Chunks built and put at a time; bounds the memory to so many chunks.
    pub chunks_in_flight: usize,
    /// First wait after a failure; doubles with each further one.
    pub backoff_min_ms: u64,
    /// Longest wait after a failure.
    pub backoff_max_ms: u64,
    /// Commits after which an index checkpoint is worth considering.
    pub checkpoint_commits: u32,
    /// Chunks after which a checkpoint is made however large it is, because a rebuild reads each.
    pub checkpoint_chunks: u32,
    /// About how many bytes one index part takes.
    pub part_bytes: usize,
    /// Blocks of a full chunk at most, whatever its volume says: tests make chunks small.
    pub chunk_slots_max: u32,
}

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            chunks_in_flight: 4,
            backoff_min_ms: 100,
            backoff_max_ms: 15_000,
            checkpoint_commits: 32,
            checkpoint_chunks: 1024,
            part_bytes: 8 << 20,
            chunk_slots_max: u32::MAX,
        }
    }
}

/// The commits of one open volume, one cut after the other.
///
/// Drive it: [`start`](Self::start) a cut when [`is_idle`](Self::is_idle); do each
/// [`next_effect`](Self::next_effect) and report it to [`handle`](Self::handle); ask again after
/// each event and at [`next_wake_ms`](Self::next_wake_ms). Every failure is tried again without
/// end, because what was acknowledged must reach the bucket; only another writer ends it.
pub struct VolumeCommit {
    config: CommitConfig,
    random: Random,
    /// The last committed manifest.
    head: Manifest,
    /// Objects named so far in this generation.
    sequence: u64,
    base: VolumeBase,
    /// Parts of the last checkpoint, oldest first.
    parts: Vec<CheckpointRef>,
    since_checkpoint: SinceCheckpoint,
    garbage: Garbage,
    /// As of the last committed manifest.
    snapshots: SnapshotTable,
    /// As of the last committed manifest.
    points: PointTable,
    ageing: Ageing,
    /// Images from this manifest on are in use.
    held: Option<ManifestNum>,
    phase: Phase,
    /// A cut that waits for room, and lets others go before it.
    aside: Option<Aside>,
    /// The commit under way changes nothing, it tidies up.
    is_sweeping: bool,
    /// Chunks that compaction could not read. They stay as they are.
    set_aside: BTreeSet<ChunkKey>,
    /// The commit under way stores the whole index.
    wants_full_checkpoint: bool,
    /// From this manifest on no image needs anything of other volumes.
    independent_since: Option<ManifestNum>,
    retry: Retry,
    /// Deletes wait on their own: they must not hold up commits.
    delete_retry: Retry,
}

enum Phase {
    Idle,
    Chunks(Chunks),
    /// Index parts are stored.
    Index(Staged, Checkpoint, Ask),
    /// The manifest is to be put (or, after `Exists`, read).
    Manifest(Sealed, ManifestStep, Ask),
    /// The manifest is committed; the local head record is to be saved.
    Head(Publication, Ask),
    Publish(Option<Publication>),
    Fenced {
        by: Generation,
        told: bool,
    },
}

/// Whether the one effect of a phase is out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Due,
    Out,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ManifestStep {
    Put,
    Get,
}

/// Chunks being stored.
struct Chunks {
    plan: Arc<PackPlan>,
    specs: Vec<ChunkSpec>,
    due: VecDeque<usize>,
    /// So many, from the first, may be stored: they were tried.
    tried: usize,
    in_flight: usize,
    stored: Vec<Option<ChunkRef>>,
    /// Snapshots of this cut.
    wishes: Vec<SnapshotWish>,
    /// A chunk of a compaction could not be stored.
    is_given_up: bool,
}

/// All chunks are stored and applied to the base.
struct Staged {
    manifest: Box<Manifest>,
    leaves: VolumeChanges,
    garbage_chunks: Condemnation,
    /// Snapshots of this cut, until the manifest has them.
    wishes: Vec<SnapshotWish>,
}

/// The manifest is final; retries put the same bytes.
struct Sealed {
    staged: Staged,
    body: Bytes,
    checkpoint_parts: Option<Vec<CheckpointRef>>,
}

impl VolumeCommit {
    /// The commits that follow `head`, whose index was rebuilt as `rebuilt`. The caller has fenced
    /// earlier writers: `head` carries its own generation and token.
    pub fn new(head: Manifest, rebuilt: Rebuilt, config: CommitConfig, random: Random) -> Self {
        let mut this = Self {
            config,
            random,
            head,
            sequence: 0,
            base: rebuilt.base,
            parts: rebuilt.parts,
            since_checkpoint: rebuilt.since_checkpoint,
            garbage: Garbage::new(rebuilt.condemned, rebuilt.retained),
            snapshots: rebuilt.snapshots,
            points: rebuilt.points,
            ageing: Ageing::default(),
            held: None,
            phase: Phase::Idle,
            aside: None,
            is_sweeping: false,
            set_aside: BTreeSet::new(),
            wants_full_checkpoint: false,
            independent_since: None,
            retry: Retry::default(),
            delete_retry: Retry::default(),
        };
        this.sequence = this.sequence_used();
        this.note_independence();
        this
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.head.volume
    }

    /// The last committed manifest.
    pub fn head(&self) -> &Manifest {
        &self.head
    }

    /// The committed index (during a commit, with its blocks once all its chunks are stored).
    pub fn base(&self) -> &VolumeBase {
        &self.base
    }

    /// Whether no commit is under way: a cut may be started, unless one [stepped
    /// aside](Self::step_aside).
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Generation of the writer that took the volume over.
    pub fn fenced_by(&self) -> Option<Generation> {
        match self.phase {
            Phase::Fenced { by, .. } => Some(by),
            _ => None,
        }
    }

    /// Takes over a manifest that the same writer committed otherwise (settings changed).
    ///
    /// # Panics
    /// While a commit is under way, or if `head` does not follow the present one.
    pub fn adopt_head(&mut self, head: Manifest) {
        assert!(self.is_idle(), "the head changed under a commit");
        let follows = head.check_follows(&self.head).is_ok();
        assert!(follows && head.same_writer(&self.head) && head.added.is_empty());
        self.note_images(&head);
        // Points may be kept from here on: what passed before does not count.
        self.ageing = Ageing::default();
        self.head = head;
    }

    /// How this volume packs its share of a cut.
    pub fn plan(&self, sealed: &SealedVolume) -> PackPlan {
        let settings = &self.head.settings;
        let layers = sealed.layers.iter().map(|(shard, of)| (*shard, &**of));
        let (size, slots) = (settings.block_size(), self.chunk_slots());
        PackPlan::new(sealed.epoch, size, slots, layers)
    }

    /// Begins to commit a cut; ignored once fenced.
    ///
    /// # Panics
    /// While another commit is under way, or if the cut is not newer than the last one.
    pub fn start(&mut self, plan: PackPlan) {
        self.start_with(plan, Vec::new());
    }

    /// As [`start`](Self::start); the image of the cut becomes these snapshots. Their names and
    /// identities are new, and there is room for them: [`may_take`](Self::may_take).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with(&mut self, mut plan: PackPlan, wishes: Vec<SnapshotWish>) {
        if self.fenced_by().is_some() {
            return;
        }
        assert!(self.is_idle() && !self.is_aside(), "one cut at a time");
        assert!(
            plan.epoch() > self.head.epoch,
            "a cut is newer than the one before"
        );
        plan.drop_idle_zeros(&self.base);
        assert!(plan.chunks() <= LIST_MAX, "{} chunks", plan.chunks());
        self.begin_chunks(Arc::new(plan), wishes);
    }

    /// Begins to store the chunks of a cut or of a compaction.
    fn begin_chunks(&mut self, plan: Arc<PackPlan>, wishes: Vec<SnapshotWish>) {
        let chunks = plan.chunks();
        let specs = (0..chunks).map(|_| self.chunk_spec(plan.epoch())).collect();
        self.phase = Phase::Chunks(Chunks {
            plan,
            specs,
            due: (0..chunks).collect(),
            tried: 0,
            in_flight: 0,
            stored: vec![None; chunks],
            wishes,
            is_given_up: false,
        });
        self.retry = Retry::default();
        self.advance();
    }

    /// What to do next; `None` while waiting for an event or for
    /// [`next_wake_ms`](Self::next_wake_ms).
    pub fn next_effect(&mut self, now_ms: u64) -> Option<Effect> {
        if let Phase::Fenced { by, told } = &mut self.phase {
            let by = *by;
            return (!std::mem::replace(told, true)).then_some(Effect::Fenced { by });
        }
        if self.is_idle() {
            self.retry.let_go();
            if self.is_aside() {
                self.garbage.hurry();
            }
            return self.next_delete(now_ms);
        }
        self.delete_retry.let_go();
        if self.retry.holds(now_ms) {
            // What waits for room does not keep others from making some.
            if !matches!(self.phase, Phase::Chunks(_)) || !self.retry.is_for_room() {
                return None;
            }
            self.garbage.hurry();
            return self.next_delete(now_ms);
        }
        let volume = self.head.volume;
        match &mut self.phase {
            Phase::Chunks(chunks) => chunks.next_job(&self.config).map(Effect::PutChunk),
            Phase::Index(staged, checkpoint, ask) => ask.once().then(|| {
                let (key, body) = checkpoint.body(&self.base, staged.manifest.number);
                Effect::PutIndex { key, body }
            }),
            Phase::Manifest(sealed, step, ask) => ask.once().then(|| {
                let key = sealed.staged.manifest.object();
                match step {
                    ManifestStep::Put => Effect::PutManifest {
                        key,
                        body: sealed.body.clone(),
                    },
                    ManifestStep::Get => Effect::GetManifest { key },
                }
            }),
            Phase::Head(publication, ask) => ask.once().then(|| {
                Effect::SaveHead(HeadUpdate {
                    volume,
                    head: publication.head,
                    committed_epoch: publication.epoch,
                })
            }),
            Phase::Publish(publication) => publication.take().map(Effect::Publish),
            Phase::Idle | Phase::Fenced { .. } => None,
        }
    }

    fn next_delete(&mut self, now_ms: u64) -> Option<Effect> {
        let held = self.delete_retry.holds(now_ms);
        let head = self.head.number;
        (!held).then(|| self.garbage.next_delete(head)).flatten()
    }

    /// When to ask for an effect again although no event came; as of the last
    /// [`next_effect`](Self::next_effect).
    pub fn next_wake_ms(&self) -> Option<u64> {
        let retries = [&self.retry, &self.delete_retry];
        retries.into_iter().filter_map(Retry::wake_ms).min()
    }

    /// Takes the outcome of an effect.
    ///
    /// # Panics
    /// On the answer to an effect that is not out: the driver mixed something up.
    pub fn handle(&mut self, event: Event, now_ms: u64) {
        let is_delete = matches!(event, Event::Deleted(_));
        let result = match event {
            Event::ChunkPut { index, result } => self.chunk_put(index, result),
            Event::IndexPut(result) => self.index_put(result),
            Event::ManifestPut(result) => self.manifest_put(result),
            Event::ManifestGot(result) => self.manifest_got(result),
            Event::HeadSaved(result) => self.head_saved(result),
            Event::Published => self.published(),
            Event::Deleted(result) => self.garbage.deleted(result, &mut self.base),
        };
        let retry = match is_delete {
            true => &mut self.delete_retry,
            false => &mut self.retry,
        };
        match result {
            Ok(()) => retry.succeeded(),
            Err(error) => retry.failed(&error, now_ms, &self.config, &mut self.random),
        }
        self.advance();
    }

    /// How it fares.
    pub fn status(&self) -> CommitStatus {
        let aside = self.aside.as_ref();
        let (phase, epoch) = match &self.phase {
            Phase::Idle => match aside {
                Some(aside) => ("chunks", Some(aside.plan.epoch())),
                None => ("idle", None),
            },
            Phase::Chunks(chunks) => ("chunks", Some(chunks.plan.epoch())),
            Phase::Index(staged, ..) => ("index", Some(staged.manifest.epoch)),
            Phase::Manifest(sealed, ..) => ("manifest", Some(sealed.staged.manifest.epoch)),
            Phase::Head(publication, _) => ("head", Some(publication.epoch)),
            Phase::Publish(_) => ("publish", Some(self.head.epoch)),
            Phase::Fenced { .. } => ("fenced", None),
        };
        let (chunks, chunks_stored) = match &self.phase {
            Phase::Chunks(chunks) => (chunks.stored.len(), chunks.stored.iter().flatten().count()),
            Phase::Index(staged, ..) => (staged.manifest.added.len(), staged.manifest.added.len()),
            _ => (0, 0),
        };
        let retry = aside.map_or(&self.retry, |aside| &aside.retry);
        CommitStatus {
            phase,
            epoch,
            chunks,
            chunks_stored,
            failures: retry.failures,
            last_failure: retry.last.clone(),
            retry_at_ms: self.retry.wake_ms(),
            delete_failure: self.delete_retry.last.clone(),
            fenced_by: self.fenced_by(),
        }
    }

    fn chunk_spec(&mut self, epoch: Epoch) -> ChunkSpec {
        let (sequence, random) = self.next_name();
        ChunkSpec {
            key: ChunkKey {
                volume: self.head.volume,
                generation: self.head.generation,
                sequence,
                random,
            },
            block_size: self.block_size(),
            epoch,
            salt: self.random.salt(),
        }
    }

    fn index_key(&mut self) -> IndexKey {
        let (sequence, random) = self.next_name();
        IndexKey {
            volume: self.head.volume,
            generation: self.head.generation,
            sequence,
            random,
        }
    }

    fn next_name(&mut self) -> (u64, u64) {
        self.sequence += 1;
        (self.sequence, self.random.next_u64())
    }

    fn chunk_slots(&self) -> u32 {
        let slots = self.head.settings.chunk_slots();
        slots.min(self.config.chunk_slots_max)
    }

    fn block_size(&self) -> BlockSize {
        self.head.settings.block_size()
    }

    fn chunk_put(&mut self, index: usize, result: Result<ChunkRef>) -> Result<()> {
        let Phase::Chunks(chunks) = &mut self.phase else {
            panic!("a chunk was put outside of the chunks phase");
        };
        chunks.finished(index, result)
    }

    fn index_put(&mut self, result: Result<()>) -> Result<()> {
        let Phase::Index(_, checkpoint, ask) = &mut self.phase else {
            panic!("an index part was put outside of the index phase");
        };
        ask.answered();
        result.map(|()| checkpoint.stored())
    }

    fn manifest_put(&mut self, result: Result<Put>) -> Result<()> {
        let Phase::Manifest(_, step, ask) = &mut self.phase else {
            panic!("a manifest was put outside of the manifest phase");
        };
        assert!(*step == ManifestStep::Put);
        ask.answered();
        match result? {
            Put::Created => self.committed(),
            Put::Exists if is_in(Mutation::ExistsIsOurs) => self.committed(),
            Put::Exists => *step = ManifestStep::Get,
        }
        Ok(())
    }

    /// Somebody's manifest has our number: ours, of an attempt whose response was lost, or another
    /// writer's.
    fn manifest_got(&mut self, result: Result<Bytes>) -> Result<()> {
        let Phase::Manifest(sealed, step, ask) = &mut self.phase else {
            panic!("a manifest was read outside of the manifest phase");
        };
        assert!(*step == ManifestStep::Get);
        ask.answered();
        let found = match result {
            // Deleted in between, or the store is not consistent: the put decides again.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                *step = ManifestStep::Put;
                return Err(error);
            }
            found => found?,
        };
        if found == sealed.body && !is_in(Mutation::LostIsForeign) {
            self.committed();
            return Ok(());
        }
        let found = Manifest::decode(&found)?;
        let ours = &sealed.staged.manifest;
        if found.volume != ours.volume || found.number != ours.number {
            return Err(Error::corrupt(format!(
                "{} holds another manifest",
                ours.object()
            )));
        }
        // Our token with other content is a copy of our data directory at work: another writer.
        self.phase = Phase::Fenced {
            by: found.generation,
            told: false,
        };
        Ok(())
    }

    fn head_saved(&mut self, result: Result<()>) -> Result<()> {
        let Phase::Head(_, ask) = &mut self.phase else {
            panic!("a head record was saved outside of the head phase");
        };
        ask.answered();
        result?;
        let Phase::Head(publication, _) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("looked at above");
        };
        self.phase = Phase::Publish(Some(publication));
        Ok(())
    }

    fn published(&mut self) -> Result<()> {
        assert!(
            matches!(self.phase, Phase::Publish(None)),
            "nothing was published"
        );
        self.phase = Phase::Idle;
        Ok(())
    }

    /// Moves on from phases that are complete.
    fn advance(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Chunks(chunks) if chunks.is_given_up => match chunks.in_flight {
                0 => self.give_up(&chunks),
                _ => self.phase = Phase::Chunks(chunks),
            },
            Phase::Chunks(chunks) if chunks.is_complete() => self.stage(chunks),
            Phase::Index(staged, checkpoint, _) if checkpoint.is_complete() => {
                self.seal(staged, Some(checkpoint));
            }
            other => self.phase = other,
        }
    }

    /// All chunks are stored: applies them to the base and drafts the manifest.
    fn stage(&mut self, chunks: Chunks) {
        let added: Vec<ChunkRef> = chunks.stored.into_iter().flatten().collect();
        let applied: Vec<_> = added
            .iter()
            .enumerate()
            .map(|(i, reference)| chunks.plan.added(i, *reference))
            .collect();
        let leaves = self.base.apply(&applied).leaves;
        let mut manifest = Box::new(self.head.successor(ManifestKind::Commit));
        manifest.epoch = chunks.plan.epoch();
        self.since_checkpoint.note(&added);
        manifest.added = added;
        manifest.moment = self.next_moment();
        let keepers = Keepers::of(&self.snapshots, &manifest);
        let (garbage, base) = (&mut self.garbage, &mut self.base);
        let garbage_chunks = garbage.condemn(base, &keepers, &mut manifest);
        let mut staged = Staged {
            manifest,
            leaves,
            garbage_chunks,
            wishes: chunks.wishes,
        };
        match self.checkpoint_due() {
            Some(full) => {
                let checkpoint = self.begin_checkpoint(full, &mut staged);
                self.phase = Phase::Index(staged, checkpoint, Ask::Due);
            }
            None => {
                self.take_snapshots(&mut staged);
                self.seal(staged, None);
            }
        }
    }

    /// Makes the manifest final.
    fn seal(&mut self, mut staged: Staged, checkpoint: Option<Checkpoint>) {
        let checkpoint_parts = checkpoint.map(|checkpoint| {
            staged.manifest.condemned.extend(checkpoint.replaced());
            checkpoint.into_parts()
        });
        let root = checkpoint_parts.as_ref().and_then(|parts| parts.last());
        staged.manifest.checkpoint = root.copied();
        let body = staged.manifest.encode();
        let sealed = Sealed {
            staged,
            body,
            checkpoint_parts,
        };
        self.phase = Phase::Manifest(sealed, ManifestStep::Put, Ask::Due);
    }

    /// The manifest is in the bucket: from here on the cut is committed.
    fn committed(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        let Phase::Manifest(sealed, ..) = phase else {
            unreachable!("only called in the manifest phase");
        };
        let Staged {
            manifest,
            leaves,
            garbage_chunks,
            wishes: _,
        } = sealed.staged;
        if let Some(parts) = sealed.checkpoint_parts {
            self.parts = parts;
            self.base.checkpoint_committed();
            self.since_checkpoint = SinceCheckpoint::default();
        }
        (self.is_sweeping, self.wants_full_checkpoint) = (false, false);
        self.garbage
            .committed(&manifest, garbage_chunks, &mut self.base);
        self.note_images(&manifest);
        let publication = Publication {
            volume: manifest.volume,
            epoch: manifest.epoch,
            leaves,
            head: manifest.number,
            chunks: manifest.added.len(),
            chunk_bytes: manifest.added.iter().map(|chunk| chunk.bytes).sum(),
        };
        self.head = *manifest;
        self.note_independence();
        self.phase = Phase::Head(publication, Ask::Due);
    }
}

impl Chunks {
    fn next_job(&mut self, config: &CommitConfig) -> Option<ChunkJob> {
        if self.is_given_up || self.in_flight >= config.chunks_in_flight.max(1) {
            return None;
        }
        let index = self.due.pop_front()?;
        self.in_flight += 1;
        self.tried = self.tried.max(index + 1);
        Some(ChunkJob {
            index,
            spec: self.specs[index],
            plan: Arc::clone(&self.plan),
        })
    }

    fn finished(&mut self, index: usize, result: Result<ChunkRef>) -> Result<()> {
        assert!(self.stored[index].is_none() && self.in_flight > 0);
        self.in_flight -= 1;
        match result {
            Ok(reference) => {
                assert_eq!(
                    reference.key, self.specs[index].key,
                    "another chunk was stored"
                );
                self.stored[index] = Some(reference);
                Ok(())
            }
            // What it would have freed is worth less than a cut that waits behind it.
            Err(_) if self.plan.is_copied() => {
                self.is_given_up = true;
                Ok(())
            }
            Err(error) => {
                self.due.push_front(index);
                Err(error)
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.stored.iter().all(Option::is_some)
    }
}

impl Ask {
    /// Whether the effect is due; marks it as out.
    fn once(&mut self) -> bool {
        std::mem::replace(self, Self::Out) == Self::Due
    }

    fn answered(&mut self) {
        assert!(*self == Self::Out, "an answer to nothing");
        *self = Self::Due;
    }
}

#[cfg(test)]
mod tests;

//! One volume's commits as the uploader drives them.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use glommio::spawn_local_into;
use taipan_engine::api::VolumeState;
use taipan_engine::block::ShardId;
use taipan_engine::commit::{Effect, Event, Publication, SealedVolume, Usage, VolumeCommit};
use taipan_engine::core::Committed;
use taipan_engine::error::ErrorKind;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::IndexedImage;
use taipan_engine::manifest::Manifest;
use taipan_engine::registry::LocalHead;
use taipan_engine::snapshot::SnapshotChange;

use super::chunks::CutPlaces;
use super::{Message, Uploader};
use crate::directory::Volume;
use crate::fetcher::ChunkTables;
use crate::inbox::CoreMessage;

/// A commit that keeps failing is worth a line so often.
const LOG_EVERY_MS: u64 = 60_000;

/// A volume with its commit machine.
pub struct UploadVolume {
    pub(super) commit: VolumeCommit,
    pub(super) local: LocalHead,
    pub(super) volume: Arc<Volume>,
    places: Arc<CutPlaces>,
    /// A publication that cores have still to apply.
    publishing: Option<(Epoch, usize)>,
    /// An effect is with a task; deletes and settings changes wait for it.
    in_flight: usize,
    /// An operator's task changes the head.
    pub(super) changing: bool,
    /// When a failure was logged last.
    logged_ms: Option<u64>,
    pub(super) cut_ms: u64,
    packed_blocks: usize,
    /// Blocks of the cut with a newer version in it.
    superseded_blocks: usize,
    /// Since when a cut has stepped aside, and both of these numbers of it.
    aside: Option<(u64, usize, usize)>,
}

impl UploadVolume {
    /// A volume that was opened for writing.
    pub fn new(commit: VolumeCommit, local: LocalHead, volume: Arc<Volume>) -> Self {
        let this = Self {
            commit,
            local,
            volume,
            places: Arc::new(CutPlaces::default()),
            publishing: None,
            in_flight: 0,
            changing: false,
            logged_ms: None,
            cut_ms: 0,
            packed_blocks: 0,
            superseded_blocks: 0,
            aside: None,
        };
        this.publish_figures(0);
        this
    }

    pub(super) fn id(&self) -> VolumeId {
        self.commit.volume()
    }

    pub(super) fn next_wake_ms(&self) -> Option<u64> {
        let waits = !self.changing;
        waits.then(|| self.commit.next_wake_ms()).flatten()
    }

    pub(super) fn last_failure(&self) -> Option<(ErrorKind, String)> {
        let status = self.commit.status();
        (status.failures > 0)
            .then_some(status.last_failure)
            .flatten()
    }

    /// Whether nothing of the commit is under way, so that the head may be changed otherwise.
    pub(super) fn is_settled(&self) -> bool {
        self.commit.is_idle() && self.in_flight == 0
    }

    /// Whether it is settled, or is once a cut that waits for room steps aside.
    pub(super) fn may_settle(&self) -> bool {
        self.in_flight == 0 && (self.commit.is_idle() || self.commit.may_step_aside())
    }

    /// As [`is_settled`](Self::is_settled), after a cut that waits for room has stepped aside.
    pub(super) fn settle(&mut self, now_ms: u64) -> bool {
        if self.in_flight == 0 && self.commit.step_aside() {
            self.aside = Some((now_ms, self.packed_blocks, self.superseded_blocks));
        }
        self.is_settled()
    }

    /// Since when a cut has stepped aside, if one may go on now.
    pub(super) fn aside_since_ms(&self) -> Option<u64> {
        let aside = self.aside.filter(|_| self.is_published() && !self.changing);
        aside.map(|(since_ms, ..)| since_ms)
    }

    /// Has the cut go on that stepped aside; no commit is under way.
    pub(super) fn go_on(&mut self) {
        if let Some((_, packed, superseded)) = self.aside.take() {
            (self.packed_blocks, self.superseded_blocks) = (packed, superseded);
            self.commit.go_on();
        }
    }

    pub(super) fn head(&self) -> &Manifest {
        self.commit.head()
    }

    /// Takes over a manifest that this writer stored otherwise, and its record.
    pub(super) fn adopt(&mut self, head: Manifest, local: LocalHead) {
        self.local = local;
        self.commit.adopt_head(head);
        self.publish_figures(self.volume.last_commit_ms.load(Ordering::Relaxed));
    }

    /// Begins to commit a cut.
    pub(super) fn start(&mut self, sealed: &SealedVolume, places: Arc<CutPlaces>, cut_ms: u64) {
        let plan = self.commit.plan(sealed);
        self.packed_blocks = plan.blocks_len();
        let sealed_blocks: usize = sealed.layers.iter().map(|(_, l)| l.points_len()).sum();
        self.superseded_blocks = sealed_blocks.saturating_sub(self.packed_blocks);
        self.places = places;
        self.cut_ms = cut_ms;
        self.commit.start_with(plan, sealed.snapshots.clone());
    }

    /// What is committed from here on are blocks of other chunks.
    pub(super) fn rewrites(&mut self) {
        (self.packed_blocks, self.superseded_blocks) = (0, 0);
    }

    /// Whether no commit is under way, nor its publication.
    pub(super) fn is_published(&self) -> bool {
        self.is_settled() && self.publishing.is_none()
    }

    /// Served under its old generation, because the backend could not be asked.
    pub(super) fn is_unverified(&self) -> bool {
        self.volume.state().0 == VolumeState::Unverified
    }

    pub(super) fn show_usage(&self, usage: &Usage) {
        let volume = &self.volume;
        let store = |value: &AtomicU64, now| value.store(now, Ordering::Relaxed);
        store(&volume.chunk_bytes, usage.chunk_bytes);
        store(&volume.live_bytes, usage.live_bytes);
        store(&volume.sparse_chunks, usage.sparse_chunks);
        store(&volume.unreadable_chunks, usage.unreadable_chunks);
    }

    /// Tells every chunk's ordinal to the fetcher.
    pub fn fill_tables(&self, tables: &ChunkTables) {
        for (ordinal, entry) in self.commit.base().chunks() {
            tables.set(self.id(), ordinal, Some(entry.reference));
        }
    }

    /// Tells clients which snapshots there are: as soon as they are committed.
    fn publish_snapshots(&self) {
        let snapshots = self.commit.snapshots();
        self.volume.bitmaps.set_bookmarks(snapshots.iter());
    }

    /// The image just committed, if snapshots are of it.
    fn image_taken(&self) -> Option<IndexedImage> {
        let changes = &self.head().snapshots;
        let taken = |change: &SnapshotChange| matches!(change, SnapshotChange::Taken(_));
        let image = changes
            .iter()
            .any(taken)
            .then(|| self.commit.indexed_image());
        image.flatten()
    }

    fn publish_figures(&self, now_ms: u64) {
        let (head, base) = (self.commit.head(), self.commit.base());
        let volume = &self.volume;
        volume
            .committed_epoch
            .store(head.epoch.0, Ordering::Relaxed);
        volume.manifest.store(head.number.0, Ordering::Relaxed);
        volume
            .generation
            .store(head.generation.0, Ordering::Relaxed);
        volume
            .mapped_blocks
            .store(base.mapped_blocks(), Ordering::Relaxed);
        volume
            .chunks
            .store(base.chunks().count() as u64, Ordering::Relaxed);
        volume
            .index_bytes
            .store(base.heap_bytes() as u64, Ordering::Relaxed);
        self.publish_snapshots();
        volume.last_commit_ms.store(now_ms, Ordering::Relaxed);
    }
}

impl Uploader {
    /// Starts every effect that any commit has ready.
    pub(super) fn run_effects(&mut self, now_ms: u64) {
        // While an operator's task changes the head, deletes wait, too: the volume may be opened
        // anew, and must hear of nothing that it did before.
        let unchanging = self.volumes.iter().filter(|(_, volume)| !volume.changing);
        let ids: Vec<VolumeId> = unchanging.map(|(id, _)| *id).collect();
        for id in ids {
            while let Some(effect) = self
                .volumes
                .get_mut(&id)
                .and_then(|volume| volume.commit.next_effect(now_ms))
            {
                self.coordinator.spend(id, effect.requests(), now_ms);
                self.run_effect(id, effect);
            }
        }
        self.note_health();
    }

    fn run_effect(&mut self, id: VolumeId, effect: Effect) {
        let means = Rc::clone(&self.means);
        match effect {
            Effect::PutChunk(job) => {
                let places = Arc::clone(&self.volumes[&id].places);
                self.spawn(id, means.put_chunk(job, places));
            }
            Effect::PutIndex { key, body } => self.spawn(id, means.put_index(key.object(), body)),
            Effect::PutManifest { key, body } => {
                let failpoint = match self.compactor.is_committing(id) {
                    true => "compact.manifest",
                    false => "manifest.put",
                };
                self.spawn(id, means.put_manifest(key, body, failpoint));
            }
            Effect::GetManifest { key } => self.spawn(id, means.get_manifest(key)),
            Effect::SaveHead(update) => {
                let volume = self
                    .volumes
                    .get_mut(&id)
                    .expect("the effect is of this volume");
                assert_eq!(
                    update.head,
                    volume.commit.head().number,
                    "the committed head is saved"
                );
                volume.local.advance(volume.commit.head());
                let local = volume.local.clone();
                self.spawn(id, means.save_head(local));
            }
            Effect::Publish(publication) => self.publish(id, publication),
            Effect::Delete { objects } => self.spawn(id, means.delete(objects)),
            Effect::Fenced { by } => {
                let cause = format!("taken over by the writer of generation {}", by.0);
                self.fenced(id, &cause);
            }
        }
    }

    /// Runs `work` as a task of the upload queue; its event comes back through the inbox.
    fn spawn(&mut self, id: VolumeId, work: impl Future<Output = Event> + 'static) {
        let volume = self
            .volumes
            .get_mut(&id)
            .expect("the effect is of this volume");
        volume.in_flight += 1;
        let own = self.own.clone();
        let task = async move {
            let event = work.await;
            // The uploader reads its inbox until it stops; after that nothing is committed.
            let _ = own.unbounded_send(Message::Event(id, event));
        };
        let queue = self.compactor.queue_of(id).unwrap_or(self.uploads);
        spawn_local_into(task, queue)
            .expect("the task queue exists")
            .detach();
    }

    pub(super) fn event(&mut self, id: VolumeId, event: Event) {
        let now_ms = self.now_ms();
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        volume.in_flight -= 1;
        let before = volume.last_failure();
        let counters = self.metrics.uploader();
        if let Event::ChunkPut { result: Ok(_), .. } = &event {
            counters.chunks.add(1);
        }
        let head = volume.head().number;
        volume.commit.handle(event, now_ms);
        if volume.head().number != head {
            volume.publish_snapshots();
            if let Some(image) = volume.image_taken() {
                for change in &image.manifest.snapshots {
                    if let SnapshotChange::Taken(snapshot) = change {
                        self.images.keep((id, snapshot.id), image.clone(), now_ms);
                    }
                }
            }
        }
        let after = volume.last_failure();
        match &after {
            Some((kind, text)) if after != before => {
                counters.commit_failures.add(1);
                let last = volume.logged_ms.filter(|_| before.is_some());
                if last.is_none_or(|last| now_ms >= last + LOG_EVERY_MS) {
                    volume.logged_ms = Some(now_ms);
                    let name = &volume.volume.name;
                    tracing::warn!(volume = %name, ?kind, error = text, "commit waits");
                }
                if *kind == ErrorKind::Corrupt {
                    self.coordinator.volume_stuck(id);
                }
            }
            None if before.is_some() => {
                tracing::info!(volume = %volume.volume.name, "commit goes on");
            }
            _ => {}
        }
        self.compaction_heard(id, now_ms);
    }

    /// Gives the committed leaves to the shards' cores.
    fn publish(&mut self, id: VolumeId, publication: Publication) {
        let volume = self
            .volumes
            .get_mut(&id)
            .expect("the publication is of this volume");
        volume.fill_tables(&self.tables);
        self.bitmaps
            .note_chunks(&volume.volume, volume.commit.base());
        volume.publishing = Some((publication.epoch, self.cores.len()));
        self.compaction_wrote(id, publication.chunk_bytes);
        let volume = &self.volumes[&id];
        let cores = self.cores.len();
        let mut by_core: Vec<Vec<_>> = (0..cores).map(|_| Vec::new()).collect();
        for (shard, leaves) in ShardId::all().zip(publication.leaves) {
            by_core[shard.core(cores)].push((shard, leaves));
        }
        let slot = volume.volume.slot;
        for (core, leaves) in self.cores.iter().zip(by_core) {
            let epoch = publication.epoch;
            core.send(CoreMessage::Committed(Committed {
                slot,
                volume: id,
                epoch,
                leaves,
            }));
        }
        let counters = self.metrics.uploader();
        counters.packed_blocks.add(volume.packed_blocks as u64);
        counters
            .superseded_blocks
            .add(volume.superseded_blocks as u64);
        tracing::debug!(
            volume = %volume.volume.name, epoch = %publication.epoch, chunks = publication.chunks,
            bytes = publication.chunk_bytes, "committed"
        );
    }

    /// A core has installed a publication; when all have, the commit is over.
    pub(super) fn applied(&mut self, id: VolumeId, epoch: Epoch) {
        let now_ms = self.now_ms();
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let Some((publishing, missing)) = &mut volume.publishing else {
            return;
        };
        if *publishing != epoch {
            return;
        }
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        volume.publishing = None;
        volume.commit.handle(Event::Published, now_ms);
        volume.publish_figures(now_ms.max(1));
        volume.volume.verified();
        if self.compaction_applied(id, now_ms) {
            return;
        }
        let volume = &self.volumes[&id];
        let counters = self.metrics.uploader();
        counters.commits.add(1);
        let took_ms = now_ms.saturating_sub(volume.cut_ms);
        counters.commit_nanos.add(took_ms * 1_000_000);
        self.coordinator.volume_done(id);
        self.tell_fulfilled();
        // Also those whose writes wait because the bucket lacks too much.
        self.tell_covered(id, self.coordinator.covered(id));
        self.finish_drains();
    }

    /// Another writer owns the volume: nothing more is acknowledged.
    pub(super) fn fenced(&mut self, id: VolumeId, cause: &str) {
        // Its tail is copied out of the WAL, and its record kept, by the caretaker.
        let Some(volume) = self.volumes.remove(&id) else {
            return;
        };
        tracing::error!(
            volume = %volume.volume.name, cause,
            "another appliance has taken the volume over; it is no longer served here"
        );
        volume.volume.closing.store(true, Ordering::Release);
        self.forget_bitmaps_of(volume.volume.slot);
        for core in &self.cores {
            core.send(CoreMessage::FenceVolume {
                slot: volume.volume.slot,
            });
        }
        // Shown last: whoever sees it is not let in any more.
        let state = VolumeState::Fenced;
        volume.volume.set_state(state, Some(cause.to_owned()));
        self.drop_views_of(id);
        self.coordinator.forget_volume(id);
        self.fail_drains(id, cause);
    }
}

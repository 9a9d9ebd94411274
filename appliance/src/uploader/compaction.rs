//! Compaction: one at a time of all volumes, paced, behind cuts, and not while the backend fails.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use glommio::{TaskQueueHandle, spawn_local_into};
use taipan_engine::commit::{CompactionJob, CompactionPolicy, CompactionRead};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint::pass;
use taipan_engine::identity::{ManifestNum, VolumeId};

use super::effects::Means;
use super::patience::{deadline, within};
use super::{Message, Uploader};
use crate::config::Compaction;

/// Volumes are looked at so often at most.
const LOOK_EVERY_MS: u64 = 1000;
/// What was read goes before waiting cuts after so long.
const WAIT_MS_MAX: u64 = 10_000;
/// First and longest wait after a failure.
const BACKOFF_MS: (u64, u64) = (1000, 60_000);
/// A volume of which nothing was cut for so many commit intervals is idle.
const IDLE_INTERVALS: u64 = 2;
/// Threshold in an idle volume: the bucket then holds 1.34 times what is live at most.
const IDLE_THRESHOLD_PERCENT: u8 = 75;
/// Bytes that one compaction writes, unless a chunk is larger.
const JOB_BYTES: u64 = 16 << 20;
/// Share of a full chunk that one compaction frees at least.
const FREED_PERCENT: u8 = 12;

/// Which volume is compacted, and how far that is.
struct Active {
    volume: VolumeId,
    step: Step,
    started_ms: u64,
    /// Bytes read and written.
    bytes: u64,
    /// Memory taken from the packer's.
    held_bytes: u64,
}

enum Step {
    Reading,
    /// Read, at that time.
    Ready(Box<CompactionRead>, u64),
    Committing,
}

/// What a volume is like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Looked {
    head: ManifestNum,
    is_idle: bool,
    /// The oldest point in time that it keeps.
    kept: Option<ManifestNum>,
    /// The backend is full.
    for_room: bool,
}

/// When to compact what.
pub(super) struct Compactor {
    config: Compaction,
    idle_ms: u64,
    queue: TaskQueueHandle,
    active: Option<Active>,
    /// The volume that had its turn last.
    last: Option<VolumeId>,
    /// Nothing is begun before.
    next_ms: u64,
    failures: u32,
    /// The state of each volume when nothing was worth it.
    looked: HashMap<VolumeId, Looked>,
}

impl Compactor {
    pub(super) fn new(config: Compaction, commit_ms: u64, queue: TaskQueueHandle) -> Self {
        Self {
            config,
            idle_ms: commit_ms * IDLE_INTERVALS,
            queue,
            active: None,
            last: None,
            next_ms: 0,
            failures: 0,
            looked: HashMap::new(),
        }
    }

    /// The queue in which effects of a compaction run.
    pub(super) fn queue_of(&self, id: VolumeId) -> Option<TaskQueueHandle> {
        self.is_committing(id).then_some(self.queue)
    }

    /// Whether the volume's commit under way is a compaction.
    pub(super) fn is_committing(&self, id: VolumeId) -> bool {
        let active = self.active.as_ref();
        active.is_some_and(|a| a.volume == id && matches!(a.step, Step::Committing))
    }

    /// Whether nothing is read and written in the background.
    pub(super) fn is_stopped(&self) -> bool {
        self.config.bytes_per_second == 0
    }

    fn is_off(&self) -> bool {
        self.is_stopped() || self.config.threshold_percent == 0
    }

    /// Chunks of `chunk_bytes` are written, at most so many. Where room is needed one at a time: it
    /// takes room before it gives some.
    fn policy(&self, chunk_bytes: u64, is_idle: bool, for_room: bool) -> CompactionPolicy {
        let threshold = self.config.threshold_percent;
        CompactionPolicy {
            threshold_percent: match is_idle || for_room {
                true => threshold.max(IDLE_THRESHOLD_PERCENT),
                false => threshold,
            },
            freed_percent: FREED_PERCENT,
            chunks_max: match for_room {
                true => 1,
                false => (JOB_BYTES / chunk_bytes).max(1) as u32,
            },
        }
    }

    /// Whether nothing was worth it in a volume that was like that.
    pub(super) fn is_done(&self, id: VolumeId, looked: Looked) -> bool {
        self.looked.get(&id) == Some(&looked)
    }

    /// How long so many bytes take at the configured pace.
    fn pace_ms(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(1000) / self.config.bytes_per_second.max(1)
    }

    fn failed(&mut self, now_ms: u64) {
        let (first, most) = BACKOFF_MS;
        self.next_ms = now_ms + (first << self.failures.min(16)).min(most);
        self.failures += 1;
    }
}

/// Reads the sources of a job within the packer's memory, of which it keeps `needed` bytes.
async fn read(means: Rc<Means>, job: CompactionJob, needed: u64) -> Result<CompactionRead> {
    let closed = |_| Error::new(ErrorKind::Transient, "packing has ended");
    means.packing.acquire(needed).await.map_err(closed)?;
    let read = async {
        pass("compact.read")?;
        let limit = deadline(needed);
        within(limit, "read for a compaction", job.read(&*means.backend)).await
    };
    let read = read.await;
    if read.is_err() {
        means.packing.signal(needed);
    }
    read
}

impl Uploader {
    /// Begins what is due.
    pub(super) fn run_compaction(&mut self, now_ms: u64) {
        let fails = self.state.failing_since_ms.load(Ordering::Relaxed) > 0;
        let fails = fails && !self.needs_room();
        match &self.compactor.active {
            Some(active)
                if !self.volumes.contains_key(&active.volume)
                    && !matches!(active.step, Step::Reading) =>
            {
                self.compaction_over(now_ms);
            }
            Some(Active {
                step: Step::Ready(..),
                ..
            }) if !fails => self.commit_read(now_ms),
            Some(_) => {}
            None if now_ms >= self.compactor.next_ms && !fails => self.look(now_ms),
            None => {}
        }
    }

    /// Looks for a volume with something to be done, the next one first.
    fn look(&mut self, now_ms: u64) {
        self.compactor.next_ms = now_ms + LOOK_EVERY_MS;
        let mut ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        ids.sort_unstable();
        self.compactor
            .looked
            .retain(|id, _| self.volumes.contains_key(id));
        let last = self.compactor.last;
        let first = ids.partition_point(|id| last.is_some_and(|last| *id <= last));
        let turn = first.min(ids.len());
        ids.rotate_left(turn);
        for id in ids {
            if self.compact_volume(id, now_ms) {
                self.compactor.last = Some(id);
                return;
            }
        }
    }

    /// What the volume is like now.
    pub(super) fn looked(&self, id: VolumeId, now_ms: u64) -> Looked {
        let volume = &self.volumes[&id];
        Looked {
            head: volume.head().number,
            is_idle: now_ms.saturating_sub(volume.cut_ms) >= self.compactor.idle_ms,
            kept: volume.commit.moment_now().map(|moment| moment.since),
            for_room: self.needs_room(),
        }
    }

    /// Whether something else goes before a compaction of the volume: a cut, unless it waits for
    /// room, a change, its budget of requests, unless room is needed.
    fn is_busy(&self, id: VolumeId, now_ms: u64) -> bool {
        let volume = &self.volumes[&id];
        let cut = self.coordinator.is_outstanding(id) && !volume.commit.waits_for_room();
        let (_, held_ms) = self.coordinator.spent(id, now_ms);
        let is_over_budget = held_ms > 0 && !self.needs_room();
        let blocked = volume.changing || volume.is_unverified() || !volume.may_settle();
        cut || self.coordinator.is_held(id) || is_over_budget || blocked
    }

    /// Begins a compaction of the volume, if one is due.
    fn compact_volume(&mut self, id: VolumeId, now_ms: u64) -> bool {
        self.tell_time(id);
        if self.is_busy(id, now_ms) {
            return false;
        }
        let looked = self.looked(id, now_ms);
        let Looked {
            is_idle, for_room, ..
        } = looked;
        // A flatten takes room.
        if !for_room && self.flatten_volume(id, now_ms) {
            return true;
        }
        if self.compactor.is_done(id, looked) {
            return false;
        }
        let volume = self.volumes.get_mut(&id).expect("it was listed");
        let chunk_bytes = u64::from(volume.head().settings.chunk_size_bytes);
        let usage = self.compactor.policy(chunk_bytes, false, false);
        volume.show_usage(&volume.commit.usage(&usage));
        if for_room && volume.commit.wants_room() {
            return self.sweep_volume(id, now_ms);
        }
        if !self.compactor.is_off() {
            let policy = self.compactor.policy(chunk_bytes, is_idle, for_room);
            if let Some(job) = volume.commit.choose_compaction(&policy) {
                self.read_sources(job, now_ms);
                return true;
            }
            if is_idle && volume.commit.wants_sweep() {
                return self.sweep_volume(id, now_ms);
            }
        }
        self.compactor.looked.insert(id, looked);
        false
    }

    /// Begins a commit of nothing, which lets go of what is needed no more.
    fn sweep_volume(&mut self, id: VolumeId, now_ms: u64) -> bool {
        let volume = self.volumes.get_mut(&id).expect("it was listed");
        if !volume.settle(now_ms) {
            return false;
        }
        volume.commit.start_sweep();
        volume.rewrites();
        self.coordinator.occupy(id);
        self.activate(id, Step::Committing, 0, now_ms);
        true
    }

    /// Begins the next step of a flatten of the volume, if one is due.
    fn flatten_volume(&mut self, id: VolumeId, now_ms: u64) -> bool {
        let volume = self.volumes.get_mut(&id).expect("it was listed");
        let held = self.flattens.hold(id, now_ms);
        if !volume.local.flattening || held || self.compactor.is_stopped() {
            return false;
        }
        let chunk_bytes = u64::from(volume.head().settings.chunk_size_bytes);
        let policy = self.compactor.policy(chunk_bytes, false, false);
        if let Some(job) = volume.commit.choose_foreign(policy.chunks_max) {
            self.read_sources(job, now_ms);
        } else if volume.commit.independent_since().is_none() {
            volume.commit.start_full_checkpoint();
            volume.rewrites();
            self.coordinator.occupy(id);
            self.activate(id, Step::Committing, 0, now_ms);
        } else {
            return false;
        }
        true
    }

    fn activate(&mut self, volume: VolumeId, step: Step, held_bytes: u64, now_ms: u64) {
        self.compactor.active = Some(Active {
            volume,
            step,
            started_ms: now_ms,
            bytes: 0,
            held_bytes,
        });
    }

    fn read_sources(&mut self, job: CompactionJob, now_ms: u64) {
        let id = job.volume;
        // The rest is for building its chunks, and for those of cuts.
        let needed = job.bytes_needed().min(self.means.packing_bytes / 2);
        self.activate(id, Step::Reading, needed, now_ms);
        let chunks = job.sources().len();
        tracing::debug!(volume = %id, chunks, bytes = job.bytes_needed(), "compaction begins");
        let (means, own) = (Rc::clone(&self.means), self.own.clone());
        let task = async move {
            let result = read(means, job, needed).await.map(Box::new);
            // The uploader reads its inbox until it stops; after that nothing is compacted.
            let _ = own.unbounded_send(Message::Compact(id, result));
        };
        spawn_local_into(task, self.compactor.queue)
            .expect("the task queue exists")
            .detach();
    }

    /// The sources were read, or not.
    pub(super) fn compaction_read(&mut self, id: VolumeId, result: Result<Box<CompactionRead>>) {
        let now_ms = self.now_ms();
        let Some(active) = &mut self.compactor.active else {
            return;
        };
        match result {
            Ok(read) => {
                for (chunk, error) in &read.unreadable {
                    tracing::warn!(
                        volume = %id, %chunk, %error,
                        "compaction leaves a chunk alone that it cannot read: `taipan verify` \
                         tells what is lost"
                    );
                    self.metrics.uploader().compaction_failures.add(1);
                }
                active.bytes = read.read_bytes;
                self.coordinator.spend(id, read.requests, now_ms);
                self.metrics
                    .uploader()
                    .compaction_read_bytes
                    .add(read.read_bytes);
                active.step = Step::Ready(read, now_ms);
            }
            Err(error) => {
                tracing::warn!(volume = %id, %error, "a compaction cannot read its chunks");
                self.metrics.uploader().compaction_failures.add(1);
                self.flattens.failed(id, &error, now_ms);
                self.compactor.active = None;
                self.compactor.failed(now_ms);
            }
        }
    }

    /// Commits what was read, once the volume is free and no cut of it waits (for long).
    fn commit_read(&mut self, now_ms: u64) {
        let Some(active) = &mut self.compactor.active else {
            return;
        };
        let (id, Step::Ready(_, since_ms)) = (active.volume, &active.step) else {
            return;
        };
        let volume = self.volumes.get_mut(&id).expect("it was looked at");
        let waited = now_ms.saturating_sub(*since_ms) >= WAIT_MS_MAX;
        let waited = waited || volume.commit.waits_for_room();
        let busy = self.coordinator.is_held(id)
            || (self.coordinator.is_outstanding(id) && !waited)
            || volume.changing;
        if busy || !volume.settle(now_ms) {
            return;
        }
        let Step::Ready(read, _) = std::mem::replace(&mut active.step, Step::Committing) else {
            unreachable!("looked at above");
        };
        self.tell_time(id);
        let volume = self.volumes.get_mut(&id).expect("it was looked at");
        if volume.commit.start_compaction(*read) {
            volume.rewrites();
            self.coordinator.occupy(id);
        } else {
            self.compaction_over(now_ms);
        }
    }

    /// A publication of the volume is applied; whether it was a compaction's, which has nothing to
    /// do with cuts.
    pub(super) fn compaction_applied(&mut self, id: VolumeId, now_ms: u64) -> bool {
        if !self.compactor.is_committing(id) {
            return false;
        }
        let counters = self.metrics.uploader();
        counters.compactions.add(1);
        self.flattens.succeeded(id);
        self.compactor.failures = 0;
        self.compaction_over(now_ms);
        true
    }

    /// The volume's commit has moved on: its compaction may have been given up.
    pub(super) fn compaction_heard(&mut self, id: VolumeId, now_ms: u64) {
        let is_ours = self.compactor.is_committing(id);
        let is_over = self.volumes.get(&id).is_some_and(|v| v.is_published());
        if is_ours && is_over {
            self.metrics.uploader().compaction_failures.add(1);
            self.compaction_over(now_ms);
            self.compactor.failed(now_ms);
        }
    }

    /// Chunks of a compaction are about to be published.
    pub(super) fn compaction_wrote(&mut self, id: VolumeId, bytes: u64) {
        if self.compactor.is_committing(id)
            && let Some(active) = &mut self.compactor.active
        {
            active.bytes += bytes;
            self.metrics.uploader().compaction_written_bytes.add(bytes);
        }
    }

    /// Nothing is under way any more; the next one waits for its turn.
    fn compaction_over(&mut self, now_ms: u64) {
        if let Some(active) = self.compactor.active.take() {
            self.means.packing.signal(active.held_bytes);
            self.coordinator.vacate(active.volume);
            let pace_ms = self.compactor.pace_ms(active.bytes);
            self.compactor.next_ms = now_ms.max(active.started_ms + pace_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compactor(threshold_percent: u8, bytes_per_second: u64) -> Compactor {
        let config = Compaction {
            threshold_percent,
            bytes_per_second,
        };
        let executor = glommio::LocalExecutorBuilder::default().make().unwrap();
        let queue = executor.run(async { glommio::executor().current_task_queue() });
        Compactor::new(config, 30_000, queue)
    }

    #[test]
    fn the_pace_the_policy_and_the_waits_follow_the_settings() {
        let mut compactor = compactor(35, 50 << 20);
        assert_eq!(compactor.pace_ms(100 << 20), 2000);
        let policy = |chunk_bytes, is_idle, for_room| {
            let policy = compactor.policy(chunk_bytes, is_idle, for_room);
            (policy.threshold_percent, policy.chunks_max)
        };
        assert_eq!(policy(4 << 20, false, false), (35, 4));
        assert_eq!(policy(4 << 20, true, false), (75, 4));
        assert_eq!(policy(64 << 20, true, false), (75, 1));
        assert_eq!(policy(4 << 20, false, true), (75, 1));
        assert_eq!(compactor.idle_ms, 60_000);
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                compactor.failed(0);
                compactor.next_ms
            })
            .collect();
        assert_eq!(waits[..3], [1000, 2000, 4000]);
        assert_eq!(waits[7], 60_000);
    }

    #[test]
    fn no_threshold_or_no_pace_is_off() {
        assert!(!compactor(35, 1).is_off());
        assert!(compactor(0, 1).is_off() && compactor(35, 0).is_off());
    }
}

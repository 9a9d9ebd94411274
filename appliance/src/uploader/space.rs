//! Space that comes back beside commits: deleted volumes are freed, and orphans swept, each by a
//! task of its own, at a pace, in the background. Rules: `docs/internals/space.md`.

mod calendar;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crossbeam_channel::Sender;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::channel::oneshot;
use futures::stream::StreamExt;
use glommio::{TaskQueueHandle, spawn_local_into};
use taipan_engine::api::SweepReport;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::object::SealedRef;
use taipan_engine::registry::{self, Freeing, Sweep};
use taipan_engine::volume::VolumeName;

use super::control::Request;
use super::effects::Means;
use super::patience::{deadline, is_final, within};
use super::{Message, Uploader};
use crate::config;
use crate::metrics::Metrics;

pub use calendar::Calendar;

/// Objects deleted by one request.
const FREED_AT_ONCE: usize = 256;
/// Objects listed and judged at a time.
const JUDGED_AT_ONCE: usize = 1000;
/// How long one request for many objects may take.
const STEP: Duration = Duration::from_secs(300);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The calendar is looked at so often.
const LOOK_EVERY_MS: u64 = 60_000;

/// A sweep that is wanted.
pub(super) struct Errand {
    id: VolumeId,
    name: VolumeName,
    dry_run: bool,
    /// Who waits for it.
    reply: Option<Sender<Result<SweepReport>>>,
}

/// Where freeing and sweeping are asked for.
pub(super) struct Space {
    to_free: UnboundedSender<VolumeId>,
    to_sweep: UnboundedSender<Errand>,
    calendar: Calendar,
    next_look_ms: u64,
}

/// What both tasks work with.
#[derive(Clone)]
struct Tools {
    means: Rc<Means>,
    metrics: Arc<Metrics>,
    deletes_per_second: u64,
}

impl Tools {
    /// Waits for as long as so many deletes take at the configured pace.
    async fn pace(&self, deleted: u64) {
        if deleted > 0 {
            let micros = deleted * 1_000_000 / self.deletes_per_second.max(1);
            glommio::timer::sleep(Duration::from_micros(micros)).await;
        }
    }
}

impl Space {
    /// Starts both tasks in `queue`. They end with the executor. `to_free` tells others how many
    /// volumes are to be freed; `own` is the uploader's inbox.
    pub(super) fn start(
        config: &config::Space,
        calendar: Calendar,
        (means, metrics): (&Rc<Means>, &Arc<Metrics>),
        waiting: Arc<AtomicU64>,
        (own, queue): (UnboundedSender<Message>, TaskQueueHandle),
    ) -> Self {
        let tools = Tools {
            means: Rc::clone(means),
            metrics: Arc::clone(metrics),
            deletes_per_second: config.deletes_per_second,
        };
        let (to_free, free_inbox) = unbounded();
        let (to_sweep, sweep_inbox) = unbounded();
        let spawn = |task: futures::future::LocalBoxFuture<'static, ()>| {
            let task = spawn_local_into(task, queue).expect("the task queue exists");
            task.detach();
        };
        spawn(Box::pin(free_all(tools.clone(), free_inbox, waiting)));
        spawn(Box::pin(sweep_all(tools, sweep_inbox, own)));
        Self {
            to_free,
            to_sweep,
            calendar,
            next_look_ms: 0,
        }
    }

    /// A volume was deleted, or its mark was put again.
    pub(super) fn free(&self, id: VolumeId) {
        // Nobody listens once the uploader stops; the next start finds the mark.
        let _ = self.to_free.unbounded_send(id);
    }
}

/// Frees deleted volumes: those that the backend has marks of, and then those that it is told of.
async fn free_all(tools: Tools, mut inbox: UnboundedReceiver<VolumeId>, waiting: Arc<AtomicU64>) {
    let mut backoff = BACKOFF.0;
    let mut due = loop {
        let marks = registry::deleted_volumes(&*tools.means.backend);
        match within(STEP, "list deleted volumes", marks).await {
            Ok(volumes) => break BTreeSet::from_iter(volumes),
            Err(error) => {
                tracing::debug!(%error, "deleted volumes cannot be listed yet");
                wait(&mut backoff).await;
            }
        }
    };
    loop {
        while let Ok(id) = inbox.try_recv() {
            due.insert(id);
        }
        waiting.store(due.len() as u64, Ordering::Relaxed);
        let Some(id) = due.first().copied() else {
            match inbox.next().await {
                Some(id) => due.insert(id),
                None => return,
            };
            continue;
        };
        match free(&tools, id).await {
            Ok(()) => {
                due.remove(&id);
                backoff = BACKOFF.0;
            }
            Err(error) if is_final(error.kind()) || error.kind() == ErrorKind::Corrupt => {
                // Kept, whole; the next start looks again.
                tracing::error!(volume = %id, %error, "a deleted volume is not freed");
                due.remove(&id);
            }
            Err(error) => {
                tracing::warn!(volume = %id, %error, "freeing a deleted volume goes on later");
                wait(&mut backoff).await;
            }
        }
    }
}

async fn free(tools: &Tools, id: VolumeId) -> Result<()> {
    let backend = &*tools.means.backend;
    let begin = Freeing::begin(backend, id);
    let mut freeing = within(STEP, "look at a deleted volume", begin).await?;
    tracing::info!(volume = %id, "a deleted volume is being freed");
    while !freeing.is_over() {
        let before = freeing.freed();
        let step = freeing.step(backend, FREED_AT_ONCE);
        within(STEP, "free a deleted volume", step).await?;
        let (now, counters) = (freeing.freed(), tools.metrics.uploader());
        counters.freed_objects.add(now.objects - before.objects);
        counters.freed_bytes.add(now.bytes - before.bytes);
        tools.pace(now.objects - before.objects).await;
    }
    let freed = freeing.freed();
    tracing::info!(volume = %id, objects = freed.objects, bytes = freed.bytes, "volume freed");
    Ok(())
}

async fn wait(backoff: &mut Duration) {
    glommio::timer::sleep(*backoff).await;
    *backoff = (*backoff * 2).min(BACKOFF.1);
}

/// Sweeps one volume after the other, as it is asked to.
async fn sweep_all(
    tools: Tools,
    mut inbox: UnboundedReceiver<Errand>,
    own: UnboundedSender<Message>,
) {
    while let Some(errand) = inbox.next().await {
        let result = sweep(&tools, &errand, &own).await;
        match &result {
            Ok(sum) => tracing::info!(
                volume = %errand.name, objects = sum.objects, orphans = sum.orphans,
                orphan_bytes = sum.orphan_bytes, dry_run = sum.dry_run, "volume swept"
            ),
            Err(error) => tracing::warn!(volume = %errand.name, %error, "a sweep has failed"),
        }
        if let Some(reply) = errand.reply {
            // An operator who does not wait any more misses nothing.
            let _ = reply.send(result);
        }
    }
}

async fn sweep(
    tools: &Tools,
    errand: &Errand,
    own: &UnboundedSender<Message>,
) -> Result<SweepReport> {
    let backend = &*tools.means.backend;
    let mut sweep = Sweep::of(errand.id, !errand.dry_run);
    let mut names = Vec::new();
    loop {
        let look = sweep.look(backend, JUDGED_AT_ONCE);
        let Some(listed) = within(STEP, "list a volume's objects", look).await? else {
            break;
        };
        let orphans = judge(errand.id, listed, own).await?;
        names.extend(
            orphans
                .iter()
                .map(SealedRef::object)
                .map(|key| key.to_string()),
        );
        names.truncate(SweepReport::NAMES_MAX);
        let before = sweep.sum().orphans;
        let limit = deadline(0) + STEP;
        within(limit, "delete orphans", sweep.judged(backend, &orphans)).await?;
        if !errand.dry_run {
            let (now, counters) = (sweep.sum().orphans, tools.metrics.uploader());
            counters.swept_objects.add(now.objects - before.objects);
            counters.swept_bytes.add(now.bytes - before.bytes);
            tools.pace(now.objects - before.objects).await;
        }
    }
    tools.metrics.uploader().sweeps.add(1);
    let sum = sweep.sum();
    Ok(SweepReport {
        volume: errand.name.clone(),
        dry_run: errand.dry_run,
        objects: sum.listed.objects,
        bytes: sum.listed.bytes,
        orphans: sum.orphans.objects,
        orphan_bytes: sum.orphans.bytes,
        names,
        strange: sum.strange,
    })
}

/// Which of these are orphans, as the volume's writer says once nothing of it is under way.
async fn judge(
    id: VolumeId,
    listed: Vec<SealedRef>,
    own: &UnboundedSender<Message>,
) -> Result<Vec<SealedRef>> {
    if listed.is_empty() {
        return Ok(listed);
    }
    let (reply, judged) = oneshot::channel();
    let request = Request::Judge { id, listed, reply };
    let stopped = || Error::new(ErrorKind::Transient, "the daemon stops");
    own.unbounded_send(Message::Request(request))
        .map_err(|_| stopped())?;
    judged.await.unwrap_or_else(|_| Err(stopped()))
}

impl Uploader {
    /// Has a volume swept.
    pub(super) fn begin_sweep(
        &mut self,
        name: VolumeName,
        dry_run: bool,
        reply: Sender<Result<SweepReport>>,
    ) {
        match self.find(&name) {
            Ok((_, id)) => self.want_sweep(id, name, dry_run, Some(reply)),
            Err(error) => _ = reply.send(Err(error)),
        }
    }

    fn want_sweep(
        &self,
        id: VolumeId,
        name: VolumeName,
        dry_run: bool,
        reply: Option<Sender<Result<SweepReport>>>,
    ) {
        let errand = Errand {
            id,
            name,
            dry_run,
            reply,
        };
        // The sweeper ends with the executor.
        let _ = self.space.to_sweep.unbounded_send(errand);
    }

    /// Sweeps all volumes when it is time.
    pub(super) fn sweep_by_calendar(&mut self, now_ms: u64) {
        if now_ms < self.space.next_look_ms {
            return;
        }
        self.space.next_look_ms = now_ms + LOOK_EVERY_MS;
        if !self.space.calendar.is_due(SystemTime::now()) {
            return;
        }
        tracing::info!(
            volumes = self.volumes.len(),
            "orphans are swept, as configured"
        );
        for (id, upload) in &self.volumes {
            self.want_sweep(*id, upload.volume.name.clone(), false, None);
        }
    }

    /// No commit, change of settings or rollback of the volume is under way.
    pub(super) fn judge_orphans(
        &self,
        id: VolumeId,
        listed: &[SealedRef],
    ) -> Result<Vec<SealedRef>> {
        let upload = &self.volumes[&id];
        if upload.is_unverified() {
            let text = "the backend was not asked yet whose the volume is; try again later";
            return Err(Error::new(ErrorKind::Busy, text).with_volume(id));
        }
        let judged = upload.commit.orphans_among(listed);
        Ok(judged.expect("nothing of it is under way"))
    }
}

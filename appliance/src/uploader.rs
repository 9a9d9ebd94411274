//! The uploader core: takes cuts, packs, stores, commits, and lets the data cores release their
//! logs. A glommio executor runs it; all machines are the engine's.

mod bitmaps;
mod changes;
mod chunks;
mod clones;
mod compaction;
mod control;
mod effects;
mod flatten;
mod groups;
mod images;
mod patience;
mod points;
mod rollback;
mod room;
mod snapshots;
mod space;
mod takeover;
mod views;
mod volume;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::future::{Either, select};
use futures::stream::StreamExt;
use glommio::sync::Semaphore;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};
use taipan_engine::arena::ArenaReader;
use taipan_engine::backend::Backend;
use taipan_engine::commit::{CommitStatus, CompactionRead, Coordinator, Event, Load, VolumePace};
use taipan_engine::core::{CoreLoad, CutScope, EpochClock, SealedCore};
use taipan_engine::error::{ErrorKind, Result as EngineResult};
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::registry::LocalHeads;
use taipan_engine::ring::take_short_slices;

use crate::config::{Compaction, OnFull};
use crate::directory::Directory;
use crate::fetcher::ChunkTables;
use crate::inbox::{CoreAddress, CoreMessage};
use crate::metrics::Metrics;

pub use bitmaps::BitmapWish;
pub use control::Request;
pub use groups::GroupWish;
pub use space::Calendar;
pub use views::{Asker, ViewWish};
pub use volume::UploadVolume;

use changes::{Change, Creations};
use chunks::{BlockSource, CutPlaces};
use compaction::Compactor;
use control::Waiting;
use effects::Means;
use space::Space;

/// The uploader looks around at least so often.
const TURN_MS_MAX: u64 = 1000;

/// It is shown so often at most how the commits fare.
const SHOW_EVERY_MS: u64 = 50;

/// Failing without a success for so long, the backend is away and does not just stumble.
const AWAY_MS: u64 = 10_000;

/// Priority of the uploader on machines of one or two CPUs, and how long it may run before a data
/// core that wakes: 2 ms of waiting were seen else, for 0.7 (docs/internals/performance.md).
const NICE_WHEN_SHARED: i32 = 19;
const SLICE_WHEN_SHARED: Duration = Duration::from_micros(100);

/// What the uploader is told.
pub(crate) enum Message {
    Sealed(SealedCore),
    Applied(VolumeId, Epoch),
    Load(CoreLoad),
    Want(VolumeId, Epoch),
    Event(VolumeId, Event),
    Request(Request),
    View(ViewWish),
    Bitmap(BitmapWish),
    Changed(Box<Change>),
    Compact(VolumeId, EngineResult<Box<CompactionRead>>),
    Free(VolumeId),
}

/// The sending side of the uploader's inbox.
#[derive(Clone)]
pub struct UploaderAddress(UnboundedSender<Message>);

impl UploaderAddress {
    /// The inbox; the receiver goes to [`Uploader::run`].
    pub fn new() -> (Self, UploaderInbox) {
        let (sender, receiver) = unbounded();
        (Self(sender), UploaderInbox(receiver))
    }

    /// A core has sealed.
    pub fn sealed(&self, sealed: SealedCore) {
        self.send(Message::Sealed(sealed));
    }

    /// A core has applied a commit.
    pub fn applied(&self, volume: VolumeId, epoch: Epoch) {
        self.send(Message::Applied(volume, epoch));
    }

    /// More waits for a cut.
    pub fn load(&self, load: CoreLoad) {
        self.send(Message::Load(load));
    }

    /// A client waits until everything of the volume stamped up to `through` is committed.
    pub fn want(&self, volume: VolumeId, through: Epoch) {
        self.send(Message::Want(volume, through));
    }

    /// Asks for something; the answer comes over the request's own channel.
    pub fn request(&self, request: Request) {
        self.send(Message::Request(request));
    }

    /// A deleted volume may have objects, and its mark is stored.
    pub fn free(&self, volume: VolumeId) {
        self.send(Message::Free(volume));
    }

    /// A client names a snapshot that is not open.
    pub fn open_view(&self, wish: ViewWish) {
        self.send(Message::View(wish));
    }

    /// A client names a bitmap that is not loaded.
    pub fn load_bitmap(&self, wish: BitmapWish) {
        self.send(Message::Bitmap(wish));
    }

    /// Only a stopped uploader does not listen, and nothing is expected of it any more.
    fn send(&self, message: Message) {
        let _ = self.0.unbounded_send(message);
    }
}

/// The receiving side of the uploader's inbox.
pub struct UploaderInbox(UnboundedReceiver<Message>);

/// How the commit of a volume fares.
#[derive(Clone, Debug)]
pub struct CommitView {
    /// The commit's own words.
    pub status: CommitStatus,
    /// A change of settings or a deletion is under way.
    pub changing: bool,
    /// Requests of the last hour, and for how many milliseconds more the budget of them lets
    /// commits wait.
    pub spent: (u64, u64),
}

/// State of the uploader for the status page, readable from any thread.
#[derive(Debug, Default)]
pub struct UploaderState {
    /// Milliseconds of the daemon's clock since which the backend fails; 0: it does not.
    pub failing_since_ms: AtomicU64,
    /// Whether the backend says that it is full.
    pub full: std::sync::atomic::AtomicBool,
    /// The last error.
    pub last_error: std::sync::Mutex<Option<String>>,
    /// Last turn in milliseconds, for the watchdog.
    pub heartbeat_ms: AtomicU64,
    /// Bytes written to the WAL files each second, lately.
    pub wal_bytes_per_second: AtomicU64,
    /// Deleted volumes whose objects are still to be deleted.
    pub volumes_to_free: Arc<AtomicU64>,
    /// How the commit of each volume fares.
    pub commits: std::sync::Mutex<HashMap<VolumeId, CommitView>>,
}

/// What the uploader is made of. Taken to its own thread.
pub struct UploaderParts {
    /// CPU to pin to.
    pub cpu: Option<usize>,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Local head records.
    pub heads: LocalHeads,
    /// Batch memory by shard.
    pub arenas: Vec<ArenaReader>,
    /// WAL files by shard.
    pub wal_paths: Vec<PathBuf>,
    /// Memory for chunks that are packed or stored.
    pub packing_bytes: u64,
    /// What becomes of writes when the log is full and the backend away.
    pub on_full: OnFull,
    /// When chunks are rewritten.
    pub compaction: Compaction,
    /// How fast space is freed.
    pub space: crate::config::Space,
    /// When orphans are swept.
    pub calendar: Calendar,
    /// Longest time that a write waits for a cut, in milliseconds.
    pub commit_interval_ms: u64,
    /// The global epoch.
    pub clock: Arc<EpochClock>,
    /// Decides on cuts.
    pub coordinator: Coordinator,
    /// Volumes open at the start.
    pub volumes: Vec<UploadVolume>,
    /// The data cores.
    pub cores: Vec<CoreAddress>,
    /// The volumes.
    pub directory: Arc<Directory>,
    /// Objects of chunk ordinals.
    pub tables: Arc<ChunkTables>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// State for others.
    pub state: Arc<UploaderState>,
    /// Zero of the daemon's clock.
    pub started: Instant,
}

/// The uploader on its executor.
pub struct Uploader {
    means: Rc<Means>,
    own: UnboundedSender<Message>,
    clock: Arc<EpochClock>,
    coordinator: Coordinator,
    loads: Vec<CoreLoad>,
    places: Arc<CutPlaces>,
    gathering: CutPlaces,
    volumes: HashMap<VolumeId, UploadVolume>,
    cores: Vec<CoreAddress>,
    directory: Arc<Directory>,
    tables: Arc<ChunkTables>,
    metrics: Arc<Metrics>,
    state: Arc<UploaderState>,
    uploads: TaskQueueHandle,
    compactor: Compactor,
    space: Space,
    on_full: OnFull,
    /// The cores were told that a full log refuses writes.
    refusing: bool,
    drains: Vec<Drain>,
    /// Requests that wait for a volume without a commit under way; it is in no cut meanwhile.
    waiting: Vec<Waiting>,
    creations: Creations,
    /// Snapshots that clients read.
    views: views::Views,
    images: images::RecentImages,
    flattens: flatten::Flattens,
    /// Bitmaps that clients use.
    bitmaps: bitmaps::LoadedBitmaps,
    groups: groups::Groups,
    /// Those who wait for snapshots.
    snapshot_waits: Vec<snapshots::SnapshotWaiter>,
    wal_rate: WalRate,
    /// When it was shown how the commits fare.
    shown_ms: u64,
    /// Volumes that were taken over and wait for the clock.
    taken: Vec<takeover::Taken>,
    /// A stop that waits for local head records under way.
    stopping: Option<Request>,
    cut_started_ms: u64,
    started: Instant,
    stopped: bool,
}

/// Where the uploader shares its CPU with a data core, foreground work goes first. Its share is
/// small, not zero: a log that is never packed fills up.
fn give_way() {
    if !shares_cpus() {
        return;
    }
    // Some sandboxes know only the older call.
    let lowered = take_short_slices(NICE_WHEN_SHARED, SLICE_WHEN_SHARED)
        .or_else(|_| rustix::process::setpriority_process(None, NICE_WHEN_SHARED));
    if let Err(error) = lowered {
        tracing::warn!(%error, "the uploader's priority could not be lowered");
    }
}

/// Whether there are no CPUs to spare for what is done in the background.
pub(crate) fn shares_cpus() -> bool {
    std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() <= 2)
}

/// What that many cores report before they have anything to report.
fn no_loads(cores: usize) -> Vec<CoreLoad> {
    let load = |core| CoreLoad {
        core,
        ..CoreLoad::default()
    };
    (0..cores).map(load).collect()
}

/// How fast the log is written, averaged over about ten seconds.
#[derive(Default)]
struct WalRate {
    at_ms: u64,
    bytes: u64,
    per_second: f64,
}

impl WalRate {
    const EVERY_MS: u64 = 500;
    const MEAN_MS: f64 = 10_000.0;

    /// Takes in that so many bytes were written by now; the rate, if it was computed anew.
    fn sample(&mut self, now_ms: u64, bytes: u64) -> Option<u64> {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        if passed_ms < Self::EVERY_MS {
            return None;
        }
        let rate = bytes.saturating_sub(self.bytes) as f64 * 1000.0 / passed_ms as f64;
        let share = (passed_ms as f64 / Self::MEAN_MS).min(1.0);
        self.per_second += (rate - self.per_second) * share;
        (self.at_ms, self.bytes) = (now_ms, bytes);
        Some(self.per_second as u64)
    }
}

/// Somebody waits until everything answered before is committed.
struct Drain {
    /// One volume, or all.
    volume: Option<VolumeId>,
    /// Cuts up to here must be committed; set when the drain's own cut is taken.
    through: Option<Epoch>,
    reply: Sender<Result<(), String>>,
}

impl Uploader {
    /// Runs the uploader on a thread of its own until it is told to stop.
    pub fn start(
        parts: UploaderParts,
        inbox: UploaderInbox,
        address: UploaderAddress,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let placement = parts.cpu.map_or(Placement::Unbound, Placement::Fixed);
        std::thread::Builder::new()
            .name("uploader".to_owned())
            .spawn(move || {
                let executor = LocalExecutorBuilder::new(placement)
                    .name("uploader")
                    .make()
                    .expect("the executor's rings can be made: checked by boot");
                give_way();
                executor.run(async move { Self::new(parts, address).serve(inbox).await });
            })
    }

    fn new(parts: UploaderParts, address: UploaderAddress) -> Self {
        let executor = glommio::executor();
        let uploads = executor.create_task_queue(
            Shares::Static(800),
            Latency::Matters(Duration::from_millis(5)),
            "uploads",
        );
        let rewrites =
            executor.create_task_queue(Shares::Static(100), Latency::NotImportant, "compaction");
        let compactor = Compactor::new(parts.compaction, parts.commit_interval_ms, rewrites);
        let means = Means {
            backend: parts.backend,
            heads: parts.heads,
            blocks: BlockSource::new(parts.arenas, parts.wal_paths),
            packing_bytes: parts.packing_bytes,
            packing: Semaphore::new(parts.packing_bytes),
            counters: parts.metrics.backend(),
            saves: Cell::new(0),
            stopped: Cell::new(false),
        };
        let means = Rc::new(means);
        let space = Space::start(
            &parts.space,
            parts.calendar,
            (&means, &parts.metrics),
            Arc::clone(&parts.state.volumes_to_free),
            (address.0.clone(), rewrites),
        );
        let cores = parts.cores.len();
        let mut coordinator = parts.coordinator;
        for volume in &parts.volumes {
            coordinator.set_pace(volume.id(), VolumePace::of(&volume.head().settings));
        }
        Self {
            means,
            own: address.0,
            clock: parts.clock,
            coordinator,
            loads: no_loads(cores),
            places: Arc::new(CutPlaces::default()),
            gathering: CutPlaces::default(),
            volumes: parts.volumes.into_iter().map(|v| (v.id(), v)).collect(),
            cores: parts.cores,
            directory: parts.directory,
            tables: parts.tables,
            metrics: parts.metrics,
            state: parts.state,
            uploads,
            compactor,
            space,
            on_full: parts.on_full,
            refusing: false,
            drains: Vec::new(),
            waiting: Vec::new(),
            creations: Creations::default(),
            views: views::Views::default(),
            images: images::RecentImages::default(),
            flattens: flatten::Flattens::default(),
            bitmaps: bitmaps::LoadedBitmaps::default(),
            groups: groups::Groups::default(),
            snapshot_waits: Vec::new(),
            wal_rate: WalRate::default(),
            shown_ms: 0,
            taken: Vec::new(),
            stopping: None,
            cut_started_ms: 0,
            started: parts.started,
            stopped: false,
        }
    }

    async fn serve(mut self, inbox: UploaderInbox) {
        let mut inbox = inbox.0;
        while !self.stopped {
            let now_ms = self.now_ms();
            self.state.heartbeat_ms.store(now_ms, Ordering::Relaxed);
            if self.stopping.is_some() {
                self.stop_when_saved();
                if self.stopped {
                    break;
                }
            } else {
                self.run_waiting(now_ms);
                self.serve_taken();
                self.tend_bitmaps(now_ms);
                self.expire_views(now_ms);
                self.images.expire(now_ms);
                self.take_cut(now_ms);
                self.tend_flattens(now_ms);
                self.run_compaction(now_ms);
                self.resume_cuts(now_ms);
                self.sweep_by_calendar(now_ms);
                self.start_commits();
                self.run_effects(now_ms);
                self.tend_groups(now_ms);
                self.sample(now_ms);
            }
            let wait = Duration::from_millis(self.next_wake_ms(now_ms));
            let timer = std::pin::pin!(glommio::timer::sleep(wait));
            match select(inbox.next(), timer).await {
                Either::Left((Some(message), _)) => self.handle(message),
                Either::Left((None, _)) => break,
                Either::Right(_) => continue,
            }
            while !self.stopped
                && let Ok(message) = inbox.try_recv()
            {
                self.handle(message);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn next_wake_ms(&self, now_ms: u64) -> u64 {
        let retries = self.volumes.values().filter_map(UploadVolume::next_wake_ms);
        let next = retries.chain(self.coordinator.next_wake_ms()).min();
        next.map_or(TURN_MS_MAX, |at| at.saturating_sub(now_ms))
            .clamp(1, TURN_MS_MAX)
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Sealed(sealed) => self.sealed(sealed),
            Message::Applied(volume, epoch) => self.applied(volume, epoch),
            Message::Load(load) => {
                let core = load.core;
                self.loads[core] = load;
            }
            Message::Want(volume, through) => self.coordinator.want(volume, through),
            Message::Event(volume, event) => self.event(volume, event),
            Message::Request(request) => self.request(request),
            Message::View(wish) => self.open_view(wish),
            Message::Bitmap(wish) => self.load_bitmap(wish),
            Message::Changed(change) => self.changed(*change),
            Message::Compact(id, result) => self.compaction_read(id, result),
            Message::Free(id) => self.space.free(id),
        }
    }

    /// Ends an epoch if a cut is due: the clock first, then the wake-ups.
    fn take_cut(&mut self, now_ms: u64) {
        let load = Load::of(&self.loads);
        let Some(cut) = self.coordinator.tick(now_ms, &load) else {
            return;
        };
        self.clock.end(cut.epoch, cut.scope.clone());
        if cut.scope == CutScope::All {
            let waiting = self.drains.iter_mut().filter(|d| d.through.is_none());
            waiting.for_each(|drain| drain.through = Some(cut.epoch));
        }
        self.cut_started_ms = now_ms;
        self.metrics.uploader().cuts.add(1);
        let bytes = load.pending_bytes();
        tracing::debug!(epoch = %cut.epoch, reason = ?cut.reason, bytes, "cut");
        for core in &self.cores {
            core.send(CoreMessage::Seal);
        }
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
            self.places = Arc::new(std::mem::take(&mut self.gathering));
            self.tell_fulfilled();
        }
    }

    /// Tells the cores which volumes the bucket holds as far as their clients wait for it.
    fn tell_fulfilled(&mut self) {
        for (id, through) in self.coordinator.fulfilled() {
            self.tell_covered(id, through);
        }
    }

    fn tell_covered(&self, id: VolumeId, through: Epoch) {
        let Some(volume) = self.volumes.get(&id) else {
            return;
        };
        let slot = volume.volume.slot;
        for core in &self.cores {
            core.send(CoreMessage::Covered { slot, id, through });
        }
    }

    fn start_commits(&mut self) {
        while let Some(sealed) = self.coordinator.next_volume() {
            self.tell_time(sealed.volume);
            match self.volumes.get_mut(&sealed.volume) {
                Some(volume) => {
                    volume.start(&sealed, Arc::clone(&self.places), self.cut_started_ms);
                }
                None => self.coordinator.forget_volume(sealed.volume),
            }
        }
        self.finish_drains();
        self.finish_snapshots();
    }

    fn finish_drains(&mut self) {
        let coordinator = &self.coordinator;
        self.drains.retain(|drain| {
            let done = drain.through.is_some_and(|cut| match drain.volume {
                Some(volume) => coordinator.covered(volume) >= cut,
                None => coordinator.is_drained(cut),
            });
            if done {
                let _ = drain.reply.send(Ok(()));
            }
            !done
        });
    }

    /// Nobody will commit what is waited for.
    fn fail_drains(&mut self, id: VolumeId, why: &str) {
        self.drains.retain(|drain| {
            let of_volume = drain.volume == Some(id);
            if of_volume {
                let _ = drain.reply.send(Err(why.to_owned()));
            }
            !of_volume
        });
    }

    /// Shows how the commits fare, and how fast the log fills.
    fn sample(&mut self, now_ms: u64) {
        if let Some(rate) = self.wal_rate.sample(now_ms, self.metrics.wal_bytes()) {
            let shown = &self.state.wal_bytes_per_second;
            shown.store(rate, Ordering::Relaxed);
        }
        if now_ms < self.shown_ms + SHOW_EVERY_MS {
            return;
        }
        self.shown_ms = now_ms;
        let view = |volume: &UploadVolume| CommitView {
            status: volume.commit.status(),
            changing: volume.changing,
            spent: self.coordinator.spent(volume.id(), now_ms),
        };
        let views = self.volumes.iter();
        let views = views.map(|(id, volume)| (*id, view(volume)));
        let mut shown = self
            .state
            .commits
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *shown = views.collect();
    }

    /// Whether the backend works, as the commits see it.
    fn note_health(&mut self) {
        let failing = self.volumes.values().find_map(UploadVolume::last_failure);
        let mut failures = self.volumes.values().filter_map(UploadVolume::last_failure);
        let full = failures.any(|(kind, _)| kind == ErrorKind::Full);
        self.state.full.store(full, Ordering::Release);
        let since = match (
            &failing,
            self.state.failing_since_ms.load(Ordering::Relaxed),
        ) {
            (None, _) => 0,
            (Some(_), 0) => self.now_ms().max(1),
            (Some(_), since) => since,
        };
        self.state.failing_since_ms.store(since, Ordering::Relaxed);
        let failing_ms = (since > 0).then(|| self.now_ms().saturating_sub(since));
        let refusing = full || is_away_too_long(self.on_full, failing_ms);
        if std::mem::replace(&mut self.refusing, refusing) != refusing {
            for core in &self.cores {
                core.send(CoreMessage::BackendFull(refusing));
            }
        }
        if let Some((_, text)) = failing {
            let mut last = self
                .state
                .last_error
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *last = Some(text);
        }
    }
}

/// Whether a log that is full because the backend is away refuses writes, as the operator chose.
fn is_away_too_long(on_full: OnFull, failing_ms: Option<u64>) -> bool {
    on_full == OnFull::Enospc && failing_ms.is_some_and(|ms| ms >= AWAY_MS)
}

#[cfg(test)]
mod tests {
    use super::{AWAY_MS, OnFull, WalRate, is_away_too_long};

    #[test]
    fn a_full_log_refuses_writes_in_an_outage_only_if_that_was_chosen() {
        for failing_ms in [None, Some(0), Some(AWAY_MS - 1)] {
            assert!(!is_away_too_long(OnFull::Enospc, failing_ms));
        }
        assert!(is_away_too_long(OnFull::Enospc, Some(AWAY_MS)));
        assert!(!is_away_too_long(OnFull::Wait, Some(u64::MAX)));
    }

    #[test]
    fn the_rate_follows_what_is_written_and_falls_when_nothing_is() {
        let mut rate = WalRate::default();
        assert_eq!(rate.sample(100, 1000), None, "too soon");
        let mut bytes = 0;
        let mut last = None;
        for second in 1..=60 {
            bytes += 5_000_000;
            last = rate.sample(second * 1000, bytes).or(last);
        }
        let steady = last.expect("sampled");
        assert!((4_900_000..=5_000_000).contains(&steady), "{steady}");
        let idle = (61..=120).filter_map(|second| rate.sample(second * 1000, bytes));
        assert!(idle.last().expect("sampled") < 50_000);
    }
}

//! The uploader core: takes cuts, packs, stores, commits, and lets the data cores release their
//! logs. A glommio executor runs it; all machines are the engine's.

mod chunks;
mod control;
mod effects;
mod volume;

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
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};
use taipan_engine::arena::ArenaReader;
use taipan_engine::backend::Backend;
use taipan_engine::commit::{Coordinator, Event, Load};
use taipan_engine::core::{CoreLoad, EpochClock, SealedCore};
use taipan_engine::error::ErrorKind;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::registry::LocalHeads;

use crate::directory::Directory;
use crate::fetcher::ChunkTables;
use crate::inbox::{CoreAddress, CoreMessage};
use crate::metrics::Metrics;

pub use control::Request;
pub use volume::UploadVolume;

use chunks::{BlockSource, CutPlaces};
use control::Waiting;
use effects::Means;

/// The uploader looks around at least so often.
const TURN_MS_MAX: u64 = 1000;

/// Priority of the uploader on machines of one or two CPUs.
const NICE_WHEN_SHARED: i32 = 10;

/// What the uploader is told.
pub(crate) enum Message {
    Sealed(SealedCore),
    Applied(VolumeId, Epoch),
    Load(CoreLoad),
    Event(VolumeId, Event),
    Request(Request),
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

    /// Asks for something; the answer comes over the request's own channel.
    pub fn request(&self, request: Request) {
        self.send(Message::Request(request));
    }

    /// Only a stopped uploader does not listen, and nothing is expected of it any more.
    fn send(&self, message: Message) {
        let _ = self.0.unbounded_send(message);
    }
}

/// The receiving side of the uploader's inbox.
pub struct UploaderInbox(UnboundedReceiver<Message>);

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
    drains: Vec<Drain>,
    /// Requests that wait for a volume without a commit under way; no cut is taken meanwhile.
    waiting: Vec<Waiting>,
    /// A stop that waits for local head records under way.
    stopping: Option<Request>,
    cut_started_ms: u64,
    started: Instant,
    stopped: bool,
}

/// Where the uploader shares its CPU with a data core, foreground work goes first. Its share is
/// small, not zero: a log that is never packed fills up.
pub(crate) fn give_way() {
    let shared = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() <= 2);
    if shared && let Err(error) = rustix::process::setpriority_process(None, NICE_WHEN_SHARED) {
        tracing::warn!(%error, "a background thread's priority could not be lowered");
    }
}

/// Somebody waits until everything answered before is committed.
struct Drain {
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
        let means = Means {
            backend: parts.backend,
            heads: parts.heads,
            blocks: BlockSource::new(parts.arenas, parts.wal_paths),
            counters: parts.metrics.backend(),
        };
        let cores = parts.cores.len();
        Self {
            means: Rc::new(means),
            own: address.0,
            clock: parts.clock,
            coordinator: parts.coordinator,
            loads: (0..cores)
                .map(|core| CoreLoad {
                    core,
                    ..CoreLoad::default()
                })
                .collect(),
            places: Arc::new(CutPlaces::default()),
            gathering: CutPlaces::default(),
            volumes: parts.volumes.into_iter().map(|v| (v.id(), v)).collect(),
            cores: parts.cores,
            directory: parts.directory,
            tables: parts.tables,
            metrics: parts.metrics,
            state: parts.state,
            uploads,
            drains: Vec::new(),
            waiting: Vec::new(),
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
                self.run_waiting(now_ms).await;
                if self.waiting.is_empty() {
                    self.take_cut(now_ms);
                }
                self.start_commits();
                self.run_effects(now_ms);
            }
            let wait = Duration::from_millis(self.next_wake_ms(now_ms));
            let timer = std::pin::pin!(glommio::timer::sleep(wait));
            match select(inbox.next(), timer).await {
                Either::Left((Some(message), _)) => self.handle(message).await,
                Either::Left((None, _)) => break,
                Either::Right(_) => continue,
            }
            while !self.stopped
                && let Ok(message) = inbox.try_recv()
            {
                self.handle(message).await;
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

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Sealed(sealed) => self.sealed(sealed),
            Message::Applied(volume, epoch) => self.applied(volume, epoch),
            Message::Load(load) => self.loads[load.core] = load,
            Message::Event(volume, event) => self.event(volume, event),
            Message::Request(request) => self.request(request).await,
        }
    }

    /// Ends an epoch if a cut is due: the clock first, then the wake-ups.
    fn take_cut(&mut self, now_ms: u64) {
        let load = Load {
            pending_bytes: self.loads.iter().map(|load| load.pending_bytes).sum(),
            wal_percent: self
                .loads
                .iter()
                .map(|load| load.wal_percent)
                .max()
                .unwrap_or(0),
        };
        let Some(cut) = self.coordinator.tick(now_ms, &load) else {
            return;
        };
        let ended = self.clock.advance();
        assert_eq!(ended, cut.epoch, "the coordinator alone moves the clock");
        for drain in self
            .drains
            .iter_mut()
            .filter(|drain| drain.through.is_none())
        {
            drain.through = Some(cut.epoch);
        }
        self.cut_started_ms = now_ms;
        self.metrics.uploader().cuts.add(1);
        let bytes = load.pending_bytes;
        tracing::debug!(epoch = %cut.epoch, reason = ?cut.reason, bytes, "cut");
        for core in &self.cores {
            core.send(CoreMessage::Seal);
        }
    }

    fn sealed(&mut self, sealed: SealedCore) {
        self.loads[sealed.core] = CoreLoad {
            core: sealed.core,
            ..CoreLoad::default()
        };
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
        }
    }

    fn start_commits(&mut self) {
        while let Some(sealed) = self.coordinator.next_volume() {
            match self.volumes.get_mut(&sealed.volume) {
                Some(volume) => {
                    volume.start(&sealed, Arc::clone(&self.places), self.cut_started_ms);
                }
                None => self.coordinator.forget_volume(sealed.volume),
            }
        }
        self.finish_drains();
    }

    fn finish_drains(&mut self) {
        let idle = self.coordinator.is_idle();
        self.drains.retain(|drain| {
            let done = drain.through.is_some() && idle;
            if done {
                let _ = drain.reply.send(Ok(()));
            }
            !done
        });
    }

    /// Whether the backend works, as the commits see it.
    fn note_health(&mut self) {
        let failing = self.volumes.values().find_map(UploadVolume::last_failure);
        let mut failures = self.volumes.values().filter_map(UploadVolume::last_failure);
        let full = failures.any(|(kind, _)| kind == ErrorKind::Full);
        if self.state.full.swap(full, Ordering::AcqRel) != full {
            for core in &self.cores {
                core.send(CoreMessage::BackendFull(full));
            }
        }
        let since = match (
            &failing,
            self.state.failing_since_ms.load(Ordering::Relaxed),
        ) {
            (None, _) => 0,
            (Some(_), 0) => self.now_ms().max(1),
            (Some(_), since) => since,
        };
        self.state.failing_since_ms.store(since, Ordering::Relaxed);
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

//! The world of one run: virtual time, what is durable, what is under way, and the lives in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;

use futures::executor::block_on;

use super::boot::Booted;
use super::bucket::Late;
use super::clients::{Clients, Request};
use super::compaction::Compactions;
use super::coverage::Coverage;
use super::dice::Dice;
use super::disk::WalFile;
use super::heads_dir::HeadsDir;
use super::image::read_image;
use super::oracle::Oracle;
use super::plan::{Faults, MS, Moment, Plan};
use super::racing::Racing;
use super::risk::Risk;
use super::room::Room;
use super::serve::{Device, Node};
use super::snapshots::Snapshots;
use super::sweep::Sweeps;
use super::uploader::Landing;
use crate::backend::{LocalMetadata, MemBackend};
use crate::block::{SHARD_COUNT, ShardId};
use crate::chunk::ChunkRef;
use crate::core::{Core, Failure, Fetch, OpKey};
use crate::identity::{Incarnation, VolumeId, WriterToken};
use crate::registry::{LocalHeads, VolumeSeed, create_volume};
use crate::volume::VolumeName;
use crate::wal::{BootId, WalId};

/// Lines of the trace kept for a report.
const TRACE_LINES: usize = 200;
/// A run with more events than this does not come to an end.
const EVENTS_MAX: u64 = 2_000_000;
/// Longest wait for everything to become quiet once all faults are over.
const QUIET_US: u64 = 60_000 * MS;

/// Something promised that did not hold.
#[derive(Debug)]
pub struct Violation {
    /// The seed that shows it.
    pub seed: u64,
    /// What.
    pub what: String,
    /// The last events before it.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

/// What a run without violation tells.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hash over every event: the same seed has the same.
    pub trace_hash: u64,
    /// Events.
    pub events: u64,
    /// What was reached.
    pub coverage: Coverage,
}

/// Something that happens at its time.
pub(super) enum Event {
    /// A core looks at its inbox.
    Turn { life: u32, core: usize },
    /// So does the uploader.
    UploaderTurn { life: u32 },
    /// A device operation ends.
    Device {
        life: u32,
        core: usize,
        device: Device,
    },
    /// The backend carries out a request, whether or not anybody is left who waits.
    Land { late: Late, then: Option<Landing> },
    /// The uploader hears of an effect.
    Answer {
        life: u32,
        volume: VolumeId,
        event: crate::commit::Event,
    },
    /// The uploader builds a chunk, or saves a head.
    Work {
        life: u32,
        volume: VolumeId,
        work: super::uploader::Work,
    },
    /// The backend answers a read of a core.
    Fetch {
        life: u32,
        core: usize,
        fetch: Fetch,
        chunk: ChunkRef,
        attempt: u32,
    },
    /// Its bytes arrive.
    Fetched {
        life: u32,
        core: usize,
        op: OpKey,
        blocks: Result<Vec<u8>, Failure>,
    },
    /// A request arrives at the server.
    Arrive { connection: u32, request: Request },
    /// An answer arrives at its client.
    Reply {
        connection: u32,
        ticket: u64,
        result: Result<(), Failure>,
        data: Vec<u8>,
    },
    /// A client thinks of something.
    Client { client: usize },
    /// The server learns that a connection is dead.
    Hangup { connection: u32 },
}

/// Shared memory that a killed process left.
pub(super) struct Region {
    pub(super) shard: ShardId,
    pub(super) incarnation: Incarnation,
    pub(super) bytes: Vec<u8>,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process is killed: memory and devices stay.
    Kill,
    /// Power is lost.
    Power,
}

/// How an attempt to boot went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// It serves.
    Up,
    /// It was killed, or lost power.
    Interrupted,
    /// It gave up for a reason that passes.
    Failed,
}

/// Everything.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    pub(super) faults: Faults,
    pub(super) now_us: u64,
    pub(super) life_began_us: u64,
    pub(super) life: u32,
    pub(super) life_ends_us: u64,
    pub(super) queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(super) events: u64,
    pub(super) coverage: Coverage,
    pub(super) trace: VecDeque<String>,
    pub(super) trace_hash: u64,
    /// Every line of the trace is printed.
    pub(super) aloud: bool,
    pub(super) fenced: Fenced,
    pub(super) risk: Risk,
    /// Shared by all appliances on the bucket.
    pub(super) snapshots: Rc<Snapshots>,
    pub(super) compactions: Compactions,
    pub(super) room: Room,
    pub(super) sweeps: Sweeps,
    /// In a race: which appliance this is, and what it lost.
    pub(super) racing: Option<Racing>,
    // What outlives a life.
    pub(super) wal_id: WalId,
    pub(super) boot_id: u64,
    pub(super) incarnation: u64,
    pub(super) files: Vec<WalFile>,
    pub(super) regions: Vec<Region>,
    /// What each log noted at an end, last time.
    pub(super) noted: Vec<Option<Vec<u8>>>,
    pub(super) objects: MemBackend,
    pub(super) heads: LocalHeads,
    _heads_dir: HeadsDir,
    /// Copies of metadata, if the appliance keeps any.
    pub(super) copies_dir: Option<HeadsDir>,
    /// A log failed in a life before, and no boot has asked the backend since. What only memory had
    /// may be in the bucket then: a start without the backend may show what was before.
    pub(super) log_failed: bool,
    pub(super) copies: Option<LocalMetadata>,
    /// The data directory is new: the next start takes over every volume.
    pub(super) takes_all: bool,
    pub(super) ids: Vec<VolumeId>,
    pub(super) oracle: Oracle,
    pub(super) clients: Clients,
    /// When a read of a device or the backend was last made to fail.
    pub(super) last_read_fault_us: Option<u64>,
    /// When the backend was last known to be full.
    pub(super) last_full_us: Option<u64>,
    pub(super) broken_promise: Option<String>,
    pub(super) node: Option<Node>,
}

/// Runs one seed.
pub fn run(seed: u64) -> Result<Outcome, Box<Violation>> {
    run_world(World::new(seed), seed)
}

/// Runs one seed and prints every event when it happens, so that a panic, too, has its trace.
pub fn run_aloud(seed: u64) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(seed);
    world.aloud = true;
    run_world(world, seed)
}

fn run_world(mut world: World, seed: u64) -> Result<Outcome, Box<Violation>> {
    let result = world.live();
    if let Some(node) = &mut world.node {
        node.abandon();
    }
    let result = match world.broken_promise.take() {
        Some(what) => Err(what),
        None => result,
    };
    match result {
        Ok(()) => Ok(Outcome {
            trace_hash: world.trace_hash,
            events: world.events,
            coverage: world.coverage.clone(),
        }),
        Err(what) => {
            let trace = world.trace.drain(..).collect();
            Err(Box::new(Violation { seed, what, trace }))
        }
    }
}

/// Volumes that this life serves no more, or never did, because they are another writer's.
#[derive(Default)]
pub(super) struct Fenced {
    pub(super) volumes: BTreeSet<usize>,
    /// Cores that know it, with the volume.
    pub(super) told: BTreeSet<(usize, usize)>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice);
        let lattices = plan.volumes.iter().map(|volume| volume.lattice).collect();
        let heads_dir = HeadsDir::new(&format!("simulator-{seed}"));
        let heads = LocalHeads::open(heads_dir.path()).expect("a directory for head records");
        let copies_dir = plan
            .keeps_copies
            .then(|| HeadsDir::new(&format!("copies-{seed}")));
        let mut world = Self {
            clients: Clients::new(&plan, &mut dice),
            oracle: Oracle::new(lattices),
            risk: Risk::new(&plan.volumes),
            snapshots: Rc::new(Snapshots::new(seed)),
            compactions: Compactions::new(seed),
            room: Room::new(seed),
            sweeps: Sweeps::new(seed),
            plan,
            faults: Faults::default(),
            now_us: 0,
            life_began_us: 0,
            life: 0,
            life_ends_us: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            events: 0,
            coverage: Coverage::default(),
            trace: VecDeque::new(),
            trace_hash: 0xCBF2_9CE4_8422_2325,
            aloud: false,
            racing: None,
            fenced: Fenced::default(),
            wal_id: WalId(dice.number()),
            boot_id: 1,
            incarnation: 0,
            files: Vec::new(),
            regions: Vec::new(),
            noted: vec![None; SHARD_COUNT],
            objects: MemBackend::new(),
            heads,
            _heads_dir: heads_dir,
            copies_dir,
            log_failed: false,
            copies: None,
            takes_all: true,
            ids: Vec::new(),
            last_read_fault_us: None,
            last_full_us: None,
            broken_promise: None,
            node: None,
            dice,
        };
        world.keep_copies();
        world.make_files();
        world.create_volumes();
        world
    }

    fn create_volumes(&mut self) {
        for plan in self.plan.volumes.clone() {
            let seed = VolumeSeed {
                id: VolumeId(self.dice.number()),
                token: WriterToken(self.dice.number()),
            };
            let name = format!("vol{}", plan.lattice.volume);
            let name = VolumeName::parse(&name).expect("a good name");
            let mut settings = plan.settings();
            settings.pitr_window_seconds = self.snapshots.points.window_seconds();
            block_on(create_volume(&self.objects, seed, &name, &settings)).expect("created");
            self.ids.push(seed.id);
        }
    }

    pub(super) fn identity(&self, shard: ShardId) -> crate::wal::LogIdentity {
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.boot_id.to_le_bytes());
        crate::wal::LogIdentity {
            wal: self.wal_id,
            shard,
            incarnation: Incarnation(self.incarnation),
            boot: BootId(boot),
        }
    }

    /// The whole run.
    fn live(&mut self) -> Result<(), String> {
        let mut is_disk_new = false;
        for life in 0..self.plan.lives {
            let is_long = self.plan.has_time_limit() && self.dice.chance(500);
            let life_us = match is_long {
                true => self.dice.range(1200..=1800) * MS,
                false => self.dice.range(10..=250) * MS,
            };
            self.faults = Faults::new(&mut self.dice, life_us);
            self.room.begin_life(&mut self.faults, life_us);
            if is_long {
                self.faults.away_us = (50 * MS, self.dice.range(1150..=1600) * MS);
            }
            self.may_start_without_backend(life_us);
            self.start()?;
            if std::mem::take(&mut is_disk_new) {
                self.begin_with_the_bucket()?;
            } else if self.dice.chance(600) {
                self.audit(true)?;
            }
            self.may_roll_back()?;
            self.clients.begin_life(&mut self.dice, is_long);
            self.schedule_clients();
            self.run_for(life_us)?;
            if life + 1 < self.plan.lives {
                is_disk_new = self.dice.chance(150);
                if !is_disk_new && self.dice.chance(300) {
                    self.end_logs()?;
                }
                let crash = if is_disk_new || self.dice.chance(500) {
                    Crash::Kill
                } else {
                    Crash::Power
                };
                self.crash(crash);
                if is_disk_new {
                    self.coverage.hit("a data directory was lost");
                    self.lose_disk();
                }
            }
        }
        self.calm_down()?;
        self.last_words()
    }

    /// The backend may be away when the appliance starts, if it can do without.
    fn may_start_without_backend(&mut self, life_us: u64) {
        let may = self.copies_dir.is_some() && !self.takes_all && self.dice.chance(300);
        if may && !self.log_failed {
            self.faults.away_at_boot = true;
            self.faults.away_us = (0, self.dice.below(life_us));
            self.faults.full = false;
        }
    }

    /// All that is left is the image in the bucket: it must be a cut that has everything flushed
    /// to it, and it is all that is served.
    fn begin_with_the_bucket(&mut self) -> Result<(), String> {
        for volume in 0..self.ids.len() {
            let lattice = self.oracle.lattices[volume];
            let image = read_image(&self.objects, self.ids[volume], lattice)
                .map_err(|error| format!("the image of volume {volume} cannot be read: {error}"))?;
            self.oracle.image(volume, &image, false)?;
            let before = self.oracle.clone();
            self.oracle.adopt(&before, volume, &image)?;
        }
        self.audit(true)
    }

    /// Boots until it works. Every failed or interrupted boot leaves the world as it made it.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let mut interrupted = 0;
        for attempt in 0..100 {
            if attempt > 6 {
                self.faults.boot = 0;
            }
            match self.start_once()? {
                Started::Up if interrupted < 2 => return Ok(()),
                Started::Up => {
                    self.coverage
                        .hit("two recoveries in a row were interrupted");
                    return Ok(());
                }
                Started::Interrupted => interrupted += 1,
                Started::Failed => {}
            }
        }
        Err("the appliance does not start any more".to_owned())
    }

    /// Tries once to boot.
    pub(super) fn start_once(&mut self) -> Result<Started, String> {
        self.life += 1;
        let started = match self.boot()? {
            Booted::Up(node) => {
                let unverified = node.uploader.volumes.values().any(|v| v.unverified);
                self.log_failed &= unverified;
                self.node = Some(*node);
                self.life_began_us = self.now_us;
                self.wake_all();
                return Ok(Started::Up);
            }
            Booted::Crashed(crash, regions) => {
                self.coverage.hit(match crash {
                    Crash::Kill => "a process was killed during recovery",
                    Crash::Power => "power was lost during recovery",
                });
                self.end_of_process(crash, regions);
                Started::Interrupted
            }
            Booted::Failed(why, regions) => {
                self.note(format_args!("boot failed: {why}"));
                self.end_of_process(Crash::Kill, regions);
                Started::Failed
            }
        };
        self.now_us += self.dice.range(1..=50) * MS;
        Ok(started)
    }

    /// Ends the life. Some answers that are on their way still arrive.
    pub(super) fn crash(&mut self, crash: Crash) {
        self.note(format_args!("crash {crash:?}"));
        self.coverage.hit(match crash {
            Crash::Kill => "a process was killed",
            Crash::Power => "power was lost",
        });
        self.deliver_last_replies();
        let mut node = self.node.take().expect("a life to end");
        self.log_failed |= node.has_failed_log();
        let regions = node.leave(crash);
        drop(node);
        self.end_of_process(crash, regions);
    }

    fn end_of_process(&mut self, crash: Crash, regions: Vec<Region>) {
        self.regions.extend(regions);
        let (mut torn, mut later_kept) = (0, false);
        for file in &mut self.files {
            match crash {
                Crash::Kill => file.kill(&mut self.dice),
                Crash::Power => {
                    let loss = file.power_loss(&mut self.dice);
                    torn += loss.torn;
                    later_kept |= loss.later_kept;
                }
            }
        }
        self.coverage.add("a power loss tore a batch", torn);
        self.coverage.add(
            "a later batch was kept and an earlier one lost",
            u64::from(later_kept),
        );
        if crash == Crash::Power {
            self.regions.clear();
            self.boot_id += 1;
        }
        self.clients.server_gone(&mut self.oracle);
        self.oracle.crashed(crash == Crash::Power);
        self.fenced = Fenced::default();
        self.risk.restart();
        // Requests that the backend has stay with it; everything else dies with the process.
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue
            .into_iter()
            .filter(|(_, event)| matches!(event, Event::Land { .. }))
            .map(|(at, event)| match event {
                Event::Land { late, .. } => (at, Event::Land { late, then: None }),
                other => (at, other),
            })
            .collect();
    }

    /// Heals everything and waits until all is answered, durable and committed.
    pub(super) fn calm_down(&mut self) -> Result<(), String> {
        self.faults = Faults::default();
        self.note(format_args!("calm"));
        self.clients.stop();
        let deadline = self.now_us + QUIET_US;
        if self.node_ref().has_failed_log() {
            // A failed shard stays failed; the operator restarts.
            self.restart()?;
        }
        self.demand_cut();
        while !self.is_quiet() {
            if !self.fenced.volumes.is_empty() {
                // Of an answer that was never heard: the operator restarts.
                self.restart()?;
                self.demand_cut();
            }
            if self.now_us > deadline || !self.step()? {
                return Err(format!("it does not come to rest: {}", self.unrest()));
            }
            if self.node_ref().uploader.coordinator.is_idle() && self.pending_bytes() > 0 {
                self.demand_cut();
            }
        }
        self.audit(false)
    }

    fn restart(&mut self) -> Result<(), String> {
        self.crash(Crash::Kill);
        self.start()
    }

    /// Everything is in the bucket now; it must be enough.
    fn last_words(&mut self) -> Result<(), String> {
        self.check_images(true)?;
        self.settle_space()?;
        let counters: Vec<_> = self.node_ref().cores.iter().map(Core::counters).collect();
        self.note(format_args!("{counters:?}"));
        let mut node = self.node.take().expect("it runs");
        drop(node.leave(Crash::Power));
        drop(node);
        self.queue.clear();
        self.regions.clear();
        self.clients.server_gone(&mut self.oracle);
        self.new_wal();
        self.note(format_args!("the WAL is replaced by an empty one"));
        self.start()?;
        self.audit(false)
    }

    /// The images in the bucket are cuts.
    pub(super) fn check_images(&mut self, complete: bool) -> Result<(), String> {
        for volume in 0..self.ids.len() {
            self.check_image(volume, complete)?;
        }
        Ok(())
    }

    pub(super) fn check_image(&mut self, volume: usize, complete: bool) -> Result<(), String> {
        let lattice = self.oracle.lattices[volume];
        let image = read_image(&self.objects, self.ids[volume], lattice)
            .map_err(|error| format!("the image of volume {volume} cannot be read: {error}"))?;
        self.oracle.image(volume, &image, complete)?;
        self.coverage.hit("an image was compared with the history");
        self.check_snapshots(volume)
    }

    /// A manifest was created: of one of two appliances, which knows only what it writes itself.
    pub(super) fn check_created(&mut self, id: VolumeId) -> Result<(), String> {
        if self.racing.is_none() {
            return self.check_images(false);
        }
        let volume = self.ids.iter().position(|known| *known == id);
        self.check_image(volume.expect("a volume of its own"), false)
    }

    pub(super) fn run_for(&mut self, life_us: u64) -> Result<(), String> {
        self.life_ends_us = self.now_us + life_us;
        while let Some(((at, _), _)) = self.queue.first_key_value()
            && *at <= self.life_ends_us
        {
            self.step()?;
        }
        self.now_us = self.life_ends_us;
        Ok(())
    }

    /// Something happened after which a crash is interesting: the life may end soon.
    pub(super) fn moment(&mut self, moment: Moment) {
        let Some((fatal, left)) = &mut self.faults.fatal else {
            return;
        };
        if *fatal != moment {
            return;
        }
        if *left > 0 {
            *left -= 1;
            return;
        }
        self.faults.fatal = None;
        let soon = self.now_us + self.dice.range(0..=2 * MS);
        self.life_ends_us = self.life_ends_us.min(soon);
    }

    /// Carries out the next event; false if there is none.
    pub(super) fn step(&mut self) -> Result<bool, String> {
        let Some(((at, _), event)) = self.queue.pop_first() else {
            return Ok(false);
        };
        self.events += 1;
        if self.events > EVENTS_MAX {
            return Err("the run does not end".to_owned());
        }
        self.now_us = self.now_us.max(at);
        self.happen(event);
        match self.broken_promise.take() {
            Some(what) => Err(what),
            None => Ok(true),
        }
    }

    pub(super) fn schedule(&mut self, delay_us: u64, event: Event) {
        self.sequence += 1;
        self.queue
            .insert((self.now_us + delay_us, self.sequence), event);
    }

    pub(super) fn violate(&mut self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        self.broken_promise.get_or_insert(what);
    }

    /// Adds a line to the trace.
    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        let line = match &self.racing {
            None => format!("{:>9} {what}", self.now_us),
            Some(racing) => format!("{}{:>9} {what}", ['A', 'B'][racing.label], self.now_us),
        };
        if self.aloud {
            eprintln!("{line}");
        }
        for byte in line.bytes() {
            self.trace_hash = (self.trace_hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub(super) fn node_ref(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }

    /// Whether this life's time is within the interval.
    pub(super) fn within(&self, (from, to): (u64, u64)) -> bool {
        let at = self.now_us - self.life_began_us;
        self.node.is_some() && (from..to).contains(&at)
    }
}

//! What one seed decides beforehand: sizes, policies, and how bad the world is in each life.

use super::dice::Dice;
use super::pattern::Lattice;
use crate::block::{BlockSize, PAGE_BYTES};
use crate::commit::{CommitConfig, CutPolicy};
use crate::core::{SyncMode, WritePolicy};
use crate::volume::{Ack, Durability, VolumeSettings};
use crate::wal::LogConfig;

/// Microseconds of a millisecond.
pub(super) const MS: u64 = 1000;

pub(super) struct Plan {
    pub(super) cores: usize,
    pub(super) volumes: Vec<VolumePlan>,
    pub(super) log: LogConfig,
    pub(super) write: WritePolicy,
    pub(super) cut: CutPolicy,
    pub(super) commit: CommitConfig,
    pub(super) clients: usize,
    pub(super) lives: u32,
    /// Clients prefer blocks of this shard.
    pub(super) hot_shard: Option<u32>,
    /// Longest that a core sleeps before it looks at its inbox.
    pub(super) turn_delay_us: u64,
    /// Longest read of the backend, in microseconds.
    pub(super) get_us: u64,
    /// The appliance keeps copies of metadata, from which it may start without the backend.
    pub(super) keeps_copies: bool,
}

/// How a volume is set up.
#[derive(Clone)]
pub(super) struct VolumePlan {
    pub(super) lattice: Lattice,
    pub(super) ack: Ack,
    pub(super) durability: Durability,
    /// Bytes that the bucket may lack; 0: any. Less than an operator may choose.
    pub(super) rpo_bytes: u64,
    /// Seconds for which the bucket may lack something; 0: any.
    pub(super) rpo_seconds: u64,
}

impl VolumePlan {
    fn new(dice: &mut Dice, volume: u32) -> Self {
        let bytes = dice.pick(&[4096, 4096, 16384, 65536]);
        let block_size = BlockSize::new(bytes).expect("a block size");
        let blocks = dice.range(17..=56) as u32;
        let ack = match dice.chance(200) {
            true => Ack::Durable,
            false => Ack::Memory,
        };
        let durability = match dice.chance(250) {
            true => Durability::Remote,
            false => Durability::Local,
        };
        let lattice = Lattice {
            volume,
            block_size,
            blocks,
        };
        Self {
            lattice,
            ack,
            durability,
            rpo_bytes: dice.pick(&[0, 0, 0, 8, 24]) * u64::from(bytes),
            rpo_seconds: u64::from(dice.chance(15)),
        }
    }

    /// The settings with which it is created.
    pub(super) fn settings(&self) -> VolumeSettings {
        VolumeSettings {
            size_bytes: self.lattice.size_bytes(),
            block_size_bytes: self.lattice.block_size.bytes() as u32,
            chunk_size_bytes: 1 << 20,
            ack: self.ack,
            durability: self.durability,
            rpo_seconds: self.rpo_seconds,
            ..VolumeSettings::with_size(0)
        }
    }
}

/// Something after which a crash is interesting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A barrier began.
    Barrier,
    /// A log head, which frees space, is being written.
    LogHead,
    /// A manifest reached the backend.
    Manifest,
    /// A local head record is being saved.
    HeadSave,
}

/// How bad things are, per 1000.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) wal_write: u32,
    pub(super) wal_barrier: u32,
    pub(super) wal_read: u32,
    pub(super) rot: u32,
    pub(super) put_fails: u32,
    pub(super) put_response_lost: u32,
    pub(super) put_late: u32,
    pub(super) get_fails: u32,
    pub(super) head_save: u32,
    pub(super) disconnect: u32,
    pub(super) boot: u32,
    /// The backend is away between these times of the life, in microseconds.
    pub(super) away_us: (u64, u64),
    /// While it is away it says that it is full.
    pub(super) full: bool,
    /// It is away already when the appliance starts.
    pub(super) away_at_boot: bool,
    /// The life ends soon after so many more of these moments.
    pub(super) fatal: Option<(Moment, u32)>,
    /// Writes to this shard's file fail between these times of the life.
    pub(super) broken: Option<(usize, u64, u64)>,
}

impl Plan {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let log = log_config(dice);
        let volumes = (0..dice.range(1..=3))
            .map(|volume| VolumePlan::new(dice, volume as u32))
            .collect();
        let write = WritePolicy {
            sync: dice.pick(&[
                SyncMode::Dsync,
                SyncMode::Mixed,
                SyncMode::Mixed,
                SyncMode::Fdatasync,
            ]),
            batch_bytes: dice.range(2..=17) as usize * PAGE_BYTES,
            run_bytes_max: 64 << 10,
            writes_in_flight_max: dice.range(1..=8) as usize,
            write_delay_ms: dice.range(0..=4),
            flush_interval_ms: dice.range(5..=100),
            undurable_bytes: 96 << 10,
        };
        let cut = CutPolicy {
            commit_interval_ms: dice.range(3..=120),
            pending_bytes: dice.range(64..=2048) << 10,
            burst_ms: dice.range(0..=20),
            wal_percent: dice.range(30..=70) as u8,
            spacing_ms: dice.range(1..=20),
        };
        let commit = CommitConfig {
            chunks_in_flight: dice.range(1..=3) as usize,
            backoff_min_ms: 2,
            backoff_max_ms: 40,
            checkpoint_commits: dice.range(1..=6) as u32,
            chunk_slots_max: u32::MAX,
            checkpoint_chunks: dice.range(2..=10) as u32,
            part_bytes: 4096,
        };
        Self {
            cores: dice.range(1..=3) as usize,
            volumes,
            log,
            write,
            cut,
            commit,
            clients: dice.range(1..=4) as usize,
            lives: dice.range(2..=4) as u32,
            hot_shard: dice.chance(600).then(|| dice.below(16) as u32),
            turn_delay_us: dice.pick(&[5, 50, 500]),
            get_us: dice.pick(&[500, 5 * MS, 60 * MS, 400 * MS]),
            keeps_copies: dice.chance(400),
        }
    }
}

impl Plan {
    /// Whether a volume limits for how long the bucket may lack something.
    pub(super) fn has_time_limit(&self) -> bool {
        self.volumes.iter().any(|volume| volume.rpo_seconds > 0)
    }
}

/// The smallest log that works, or a little more: so that it wraps, fills up and is parked on.
fn log_config(dice: &mut Dice) -> LogConfig {
    let batch_payload_max = BlockSize::MAX.bytes();
    let batch = batch_payload_max + PAGE_BYTES;
    let undurable_bytes_max = batch * dice.range(1..=3) as usize;
    let segment_bytes = (batch * dice.range(2..=3) as usize) as u64;
    let rewrite = undurable_bytes_max.div_ceil(segment_bytes as usize - batch) as u32;
    // As LogConfig::reserve_for_all.
    let reserve = 2 * rewrite + 2;
    let config = LogConfig {
        arena_bytes: undurable_bytes_max + batch * dice.range(3..=5) as usize,
        undurable_bytes_max,
        batch_payload_max,
        segment_bytes,
        segments: reserve + dice.range(2..=4) as u32,
        reserve_segments: reserve,
    };
    config.validate().expect("the sizes fit each other");
    config
}

impl Faults {
    /// Faults of one life that lasts about `life_us`.
    pub(super) fn new(dice: &mut Dice, life_us: u64) -> Self {
        let mut faults = Self {
            disconnect: dice.pick(&[0, 3, 20]),
            ..Self::default()
        };
        if dice.chance(300) {
            faults.wal_write = dice.pick(&[0, 2, 10]);
            faults.wal_barrier = dice.pick(&[0, 2, 10]);
        }
        if dice.chance(200) {
            let from = dice.below(life_us);
            let lasts_us = dice.pick(&[MS, 10 * MS, life_us]);
            faults.broken = Some((dice.below(16) as usize, from, from + lasts_us));
        }
        if dice.chance(300) {
            faults.wal_read = dice.pick(&[0, 30]);
            faults.rot = dice.pick(&[0, 30]);
        }
        if dice.chance(500) {
            faults.put_fails = dice.pick(&[0, 50, 200]);
            faults.put_response_lost = dice.pick(&[0, 50, 300]);
            faults.put_late = dice.pick(&[0, 50, 200]);
            faults.get_fails = dice.pick(&[0, 0, 100]);
            faults.head_save = dice.pick(&[0, 100]);
        }
        if dice.chance(350) {
            let from = dice.below(life_us / 2);
            faults.away_us = (from, from + dice.range(life_us / 4..=life_us));
            faults.full = dice.chance(200);
        }
        let moments = [
            Moment::Barrier,
            Moment::LogHead,
            Moment::Manifest,
            Moment::HeadSave,
        ];
        if dice.chance(500) {
            faults.fatal = Some((dice.pick(&moments), dice.below(12) as u32));
        }
        faults.boot = dice.pick(&[0, 0, 8, 40]);
        faults
    }
}

//! The plain settings that the rest of the daemon reads; every field is already checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use taipan_engine::volume::{VolumeName, VolumeSettings};

/// Most data cores: one for each shard.
pub const DATA_CORES_MAX: usize = 16;
/// Least bytes of all WAL files together.
pub const WAL_BYTES_MIN: u64 = 128 << 20;
/// Most bytes of all WAL files together.
pub const WAL_BYTES_MAX: u64 = 16 << 40;
/// Default bytes of all WAL files together, where the disk has ten times as much free.
pub const WAL_BYTES_DEFAULT: u64 = 4 << 30;
/// Least bytes of batch memory of all shards together.
pub const MEMORY_BYTES_MIN: u64 = 128 << 20;

/// Everything that `taipand` is told. Built by [`super::load`], which reports all problems at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Data directory: WAL, local head records, lock, sockets and the default backend.
    pub data_dir: PathBuf,
    /// Directory (tmpfs) of the memory that outlives the process; `None`: a private one under
    /// `/dev/shm`, or systemd's RuntimeDirectory; see [`crate::lock::DataDir::runtime_dir`].
    pub runtime_dir: Option<PathBuf>,
    /// Which of the backend's volumes a start opens for writing.
    pub volumes_open: VolumesOpen,
    /// Volumes that are created at start if they do not exist.
    pub volumes: Vec<VolumeConfig>,
    /// TCP addresses for NBD; may be empty.
    pub listen: Vec<SocketAddr>,
    /// Who may use which volume.
    pub access: crate::access::Access,
    /// TLS for NBD; `None`: it is off.
    pub tls: Option<super::Tls>,
    /// Unix socket for NBD.
    pub socket: PathBuf,
    /// Unix socket of the control API.
    pub control_socket: PathBuf,
    /// Address of `/metrics` and `/healthz`; `None` switches the server off.
    pub metrics: Option<SocketAddr>,
    /// Backend URL (`mem:`, `dir:/path`, `s3://…`).
    pub backend: String,
    /// What the backend must be able to do.
    pub fencing: Fencing,
    /// Pack and commit everything before the daemon ends.
    pub drain_on_stop: bool,
    /// CPUs.
    pub cores: Cores,
    /// Write-ahead log.
    pub wal: Wal,
    /// Batch memory kept as a read cache.
    pub cache: Cache,
    /// When cuts are committed to the backend.
    pub commit: Commit,
    /// When chunks are rewritten.
    pub compaction: super::Compaction,
    /// How fast space is freed, and when orphans are swept.
    pub space: super::Space,
    /// Caches of reads, and how long they wait.
    pub reads: super::reads::Reads,
    /// Bounds on what clients may use.
    pub limits: Limits,
    /// Log output.
    pub log: Logging,
}

/// Which of the backend's volumes a start opens for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumesOpen {
    /// All on an empty data directory, else only its own.
    #[default]
    Auto,
    /// All, whoever owned them.
    All,
    /// Only those that this appliance owns.
    Own,
}

/// Whether two appliances on one backend must be kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fencing {
    /// The backend must keep conditional writes.
    #[default]
    Required,
    /// The operator sees to it that there is one appliance only.
    None,
}

/// A volume that the configuration asks for. An existing volume keeps its own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// Name.
    pub name: VolumeName,
    /// Settings, validated.
    pub settings: VolumeSettings,
}

impl VolumeConfig {
    /// What of an existing volume differs from the configuration, for a warning at start.
    pub fn differences(&self, existing: &VolumeSettings) -> Vec<String> {
        let mine = &self.settings;
        let mut found = Vec::new();
        let mut compare = |what: &str, configured: u64, real: u64| {
            if configured != real {
                found.push(format!(
                    "{what} is {real} bytes, configured are {configured}"
                ));
            }
        };
        compare("size", mine.size_bytes, existing.size_bytes);
        compare(
            "block size",
            mine.block_size_bytes.into(),
            existing.block_size_bytes.into(),
        );
        compare(
            "chunk size",
            mine.chunk_size_bytes.into(),
            existing.chunk_size_bytes.into(),
        );
        let pledges = [
            ("durability", mine.durability != existing.durability),
            ("rpo_seconds", mine.rpo_seconds != existing.rpo_seconds),
            ("rpo_bytes", mine.rpo_bytes != existing.rpo_bytes),
            (
                "commit_interval_seconds",
                mine.commit_interval_seconds != existing.commit_interval_seconds,
            ),
            (
                "requests_per_hour",
                mine.requests_per_hour != existing.requests_per_hour,
            ),
            ("iops", mine.iops != existing.iops),
            (
                "bandwidth",
                mine.bandwidth_bytes != existing.bandwidth_bytes,
            ),
            (
                "burst_seconds",
                mine.burst_seconds != existing.burst_seconds,
            ),
            (
                "pitr_window_seconds",
                mine.pitr_window_seconds != existing.pitr_window_seconds,
            ),
        ];
        for (what, _) in pledges.iter().filter(|(_, differs)| *differs) {
            found.push(format!("{what} differs, see `taipan volume show`"));
        }
        if mine.ack != existing.ack {
            found.push(format!(
                "ack is {:?}, configured is {:?}",
                existing.ack, mine.ack
            ));
        }
        if mine.on_lost_cache != existing.on_lost_cache {
            found.push(format!(
                "on_lost_cache is {:?}, configured is {:?}",
                existing.on_lost_cache, mine.on_lost_cache
            ));
        }
        found
    }
}

/// CPUs of the data cores and of the uploader core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// CPU of each data core, 1..=16 of them.
    pub data: Vec<usize>,
    /// CPU of the uploader, the control plane and the metrics server.
    pub uploader: usize,
    /// Pin threads to those CPUs; off by default on machines of one or two CPUs, where clients
    /// need to run too.
    pub pin: bool,
    /// How long a data core polls before it sleeps; zero where CPUs are shared.
    pub spin: Duration,
}

/// Write-ahead log settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wal {
    /// Bytes of all WAL files together; `None`: 4 GiB or a tenth of the free disk,
    /// whichever is less; see [`Wal::bytes_on`].
    pub size_bytes: Option<u64>,
    /// How writes are made durable.
    pub sync: WalSync,
    /// A batch is written at the latest so long after its first record.
    pub flush_interval: Duration,
    /// At most so many answered bytes (of all shards) may be undurable.
    pub flush_size_bytes: u64,
    /// What becomes of writes when the log is full and the backend away.
    pub on_full: OnFull,
}

impl Wal {
    /// Bytes of the WAL on a disk with so many bytes free: as configured, else 4 GiB or a tenth of
    /// the free disk, in whole MiB per shard.
    pub fn bytes_on(&self, free_bytes: u64) -> u64 {
        let grain = 16 << 20;
        let automatic = (free_bytes / 10).min(WAL_BYTES_DEFAULT);
        let bytes = self.size_bytes.unwrap_or(automatic).max(WAL_BYTES_MIN);
        bytes / grain * grain
    }
}

/// How WAL writes are made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalSync {
    /// Decide from the device's cache attributes and a probe.
    #[default]
    Auto,
    /// RWF_DSYNC per write.
    Dsync,
    /// Plain writes, then fdatasync.
    Fdatasync,
}

/// What becomes of writes when the log is full and the backend cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// They wait: an outage passes.
    #[default]
    Wait,
    /// They fail with ENOSPC, as they do when the backend itself is full.
    Enospc,
}

/// Read cache settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Bytes of batch memory of all shards (write buffer and read cache in one); `None`: a tenth
    /// of the machine's memory, bounded by the room in the runtime directory.
    pub size_bytes: Option<u64>,
}

/// When cuts are committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// A cut at the latest so long after the first uncommitted write.
    pub interval: Duration,
    /// A cut as soon as so many bytes are uncommitted.
    pub pending_bytes: u64,
}

/// Bounds on what clients may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections.
    pub connections_max: u32,
    /// A handshake must be finished within this time.
    pub handshake_timeout: Duration,
    /// TCP_USER_TIMEOUT: unacknowledged data closes a connection after this time.
    pub tcp_user_timeout: Duration,
    /// Payload bytes in flight of one connection.
    pub request_bytes_per_connection: u64,
    /// Payload bytes in flight of all connections together.
    pub request_bytes_total: u64,
    /// Requests in flight of one connection.
    pub requests_per_connection: u32,
}

/// Log output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Filter in the syntax of `tracing` (`info`, `taipan_engine=debug,info`).
    pub filter: String,
    /// Form of the lines.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

//! The JSON of the control API: what the daemon answers and what it is asked, shared with the CLI.
//!
//! Answers may gain fields, so their readers ignore what they do not know; requests refuse unknown
//! fields, so that a misspelt setting is never silently dropped. All sizes in answers are bytes as
//! numbers; requests also take text such as `"10GiB"`. Described in `docs/operations/api.md`.

mod changes;
mod clones;
mod connections;
mod pace;
mod points;
mod snapshots;
mod space;
mod warm;

use serde::{Deserialize, Serialize};

use crate::backend::{ConditionalWrites, VerbCounts};
use crate::error::{Error, ErrorKind};
use crate::identity::VolumeId;
use crate::size;
use crate::volume::{Ack, Durability, OnLostCache, VolumeName, VolumeSettings};

pub use changes::{ChangedSpan, ImagePoint, RANGES_MAX, VolumeChanges, changes_path};
pub use clones::{CloneInfo, CloneList, FlattenState, FlattenStatus, clones_of_path, flatten_path};
pub use connections::{
    CONNECTIONS_PATH, ConnectionInfo, ConnectionList, ConnectionName, ConnectionState,
    connection_path,
};
pub use pace::PaceStatus;
pub use points::{VolumeHistory, history_path};
pub use snapshots::{
    CloneSnapshot, RollBack, SNAPSHOT_GROUPS_PATH, SnapshotInfo, SnapshotList, SnapshotState,
    SnapshotWait, TakeSnapshot, TakeSnapshotGroup, clones_path, rollback_path, snapshot_path,
    snapshots_path,
};
pub use space::{SpaceStatus, SweepReport, SweepVolume, sweep_path};
pub use warm::{WarmState, WarmStatus, WarmVolume, warm_path};

/// Path of the status resource.
pub const STATUS_PATH: &str = "/v1/status";
/// Path of the volume collection.
pub const VOLUMES_PATH: &str = "/v1/volumes";
/// Path of the drain action.
pub const DRAIN_PATH: &str = "/v1/drain";
/// Most bytes of a request body that the daemon reads.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Path of one volume; its name is percent-encoded, so that `/` stays inside.
pub fn volume_path(name: &VolumeName) -> String {
    format!("{VOLUMES_PATH}/{}", name.encoded())
}

/// Path of the resize action of one volume.
pub fn resize_path(name: &VolumeName) -> String {
    format!("{}/resize", volume_path(name))
}

/// Path of the commit action of one volume.
pub fn commit_path(name: &VolumeName) -> String {
    format!("{}/commit", volume_path(name))
}

/// Path of the takeover action of one volume.
pub fn takeover_path(name: &VolumeName) -> String {
    format!("{}/takeover", volume_path(name))
}

/// Body of `POST /v1/volumes`. Omitted settings take the daemon's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Name of the new volume.
    pub name: VolumeName,
    /// Size in bytes, a multiple of 512.
    #[serde(alias = "size", deserialize_with = "size::number_or_text")]
    pub size_bytes: u64,
    /// Block size in bytes, 4 KiB to 64 KiB.
    #[serde(
        alias = "block_size",
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub block_size_bytes: Option<u64>,
    /// Chunk size in bytes, 1 MiB to 64 MiB.
    #[serde(
        alias = "chunk_size",
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub chunk_size_bytes: Option<u64>,
    /// When writes are answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// What a lost cache means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost_cache: Option<OnLostCache>,
    /// What FLUSH and FUA promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Age of the oldest write that the bucket lacks above which new ones wait; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// Bytes that the bucket lacks above which new writes wait; 0: no limit.
    #[serde(
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub rpo_bytes: Option<u64>,
    /// Longest wait of a change for its commit; 0: as the daemon is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_interval_seconds: Option<u64>,
    /// Requests in an hour above which commits wait that only the interval makes due; 0: no budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_hour: Option<u64>,
    /// Requests of clients that begin in a second; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes that clients read and write in a second; 0: no limit.
    #[serde(
        alias = "bandwidth",
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub bandwidth_bytes: Option<u64>,
    /// Seconds of both that an idle volume saves up; 0: one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_seconds: Option<u64>,
    /// For how long committed cuts are kept to go back to; 0: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitr_window_seconds: Option<u64>,
}

impl CreateVolume {
    /// The full settings, validated: every problem is in one error.
    pub fn settings(&self) -> crate::error::Result<VolumeSettings> {
        let defaults = VolumeSettings::with_size(self.size_bytes);
        // A size above u32 cannot be valid; saturating keeps it invalid and in the message.
        let narrow = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let settings = VolumeSettings {
            size_bytes: self.size_bytes,
            block_size_bytes: self
                .block_size_bytes
                .map_or(defaults.block_size_bytes, narrow),
            chunk_size_bytes: self
                .chunk_size_bytes
                .map_or(defaults.chunk_size_bytes, narrow),
            ack: self.ack.unwrap_or(defaults.ack),
            on_lost_cache: self.on_lost_cache.unwrap_or(defaults.on_lost_cache),
            durability: self.durability.unwrap_or(defaults.durability),
            rpo_seconds: self.rpo_seconds.unwrap_or(defaults.rpo_seconds),
            rpo_bytes: self.rpo_bytes.unwrap_or(defaults.rpo_bytes),
            commit_interval_seconds: self
                .commit_interval_seconds
                .unwrap_or(defaults.commit_interval_seconds),
            requests_per_hour: self.requests_per_hour.unwrap_or(defaults.requests_per_hour),
            iops: self.iops.unwrap_or(defaults.iops),
            bandwidth_bytes: self.bandwidth_bytes.unwrap_or(defaults.bandwidth_bytes),
            burst_seconds: self.burst_seconds.unwrap_or(defaults.burst_seconds),
            pitr_window_seconds: self
                .pitr_window_seconds
                .unwrap_or(defaults.pitr_window_seconds),
        };
        settings.validate()?;
        Ok(settings)
    }
}

/// Body of `POST /v1/volumes/{name}/resize`. Volumes only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size in bytes, a multiple of 512.
    #[serde(alias = "size", deserialize_with = "size::number_or_text")]
    pub size_bytes: u64,
}

/// Body of `PATCH /v1/volumes/{name}`: the settings that change; the others stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumePatch {
    /// When writes are answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// What a lost cache means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost_cache: Option<OnLostCache>,
    /// What FLUSH and FUA promise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
    /// Age of the oldest write that the bucket lacks above which new ones wait; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// Bytes that the bucket lacks above which new writes wait; 0: no limit.
    #[serde(
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub rpo_bytes: Option<u64>,
    /// Longest wait of a change for its commit; 0: as the daemon is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_interval_seconds: Option<u64>,
    /// Requests in an hour above which commits wait that only the interval makes due; 0: no budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_hour: Option<u64>,
    /// Requests of clients that begin in a second; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes that clients read and write in a second; 0: no limit.
    #[serde(
        alias = "bandwidth",
        default,
        deserialize_with = "size::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub bandwidth_bytes: Option<u64>,
    /// Seconds of both that an idle volume saves up; 0: one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_seconds: Option<u64>,
    /// For how long committed cuts are kept to go back to; 0: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitr_window_seconds: Option<u64>,
}

impl VolumePatch {
    /// `settings` with the changes of this patch.
    pub fn apply(&self, settings: &VolumeSettings) -> VolumeSettings {
        VolumeSettings {
            ack: self.ack.unwrap_or(settings.ack),
            on_lost_cache: self.on_lost_cache.unwrap_or(settings.on_lost_cache),
            durability: self.durability.unwrap_or(settings.durability),
            rpo_seconds: self.rpo_seconds.unwrap_or(settings.rpo_seconds),
            rpo_bytes: self.rpo_bytes.unwrap_or(settings.rpo_bytes),
            commit_interval_seconds: self
                .commit_interval_seconds
                .unwrap_or(settings.commit_interval_seconds),
            requests_per_hour: self.requests_per_hour.unwrap_or(settings.requests_per_hour),
            iops: self.iops.unwrap_or(settings.iops),
            bandwidth_bytes: self.bandwidth_bytes.unwrap_or(settings.bandwidth_bytes),
            burst_seconds: self.burst_seconds.unwrap_or(settings.burst_seconds),
            pitr_window_seconds: self
                .pitr_window_seconds
                .unwrap_or(settings.pitr_window_seconds),
            ..settings.clone()
        }
    }

    /// True if nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Answer of `GET /v1/volumes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeList {
    /// All volumes, by name.
    pub volumes: Vec<VolumeInfo>,
}

/// Whether and how a volume is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Reads and writes are served.
    #[default]
    Online,
    /// Reads only; the cause says why.
    ReadOnly,
    /// Served under its old generation because the backend could not be asked; fenced if it lost.
    Unverified,
    /// Not served; the cause says why.
    Refused,
    /// Another writer took the volume over; nothing more is acknowledged.
    Fenced,
    /// Another appliance owns it; not served here. `taipan volume takeover` takes it over.
    Elsewhere,
    /// Being deleted.
    Deleting,
}

/// Whether what was answered before the last start is still complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lineage {
    /// Every answered write is present.
    #[default]
    Intact,
    /// A host crash took the memory region: answered writes after the last FLUSH may be gone.
    Broken,
}

/// What the chunks of a volume hold; as of the last look of compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkUsage {
    /// Bytes of all chunks of the head, those included that only snapshots need.
    pub chunk_bytes: u64,
    /// Bytes of blocks that are the newest version.
    pub live_bytes: u64,
    /// Chunks whose live share is under the threshold of compaction.
    pub sparse_chunks: u64,
    /// Chunks that compaction found missing or damaged, and leaves alone until the next start.
    #[serde(default)]
    pub unreadable_chunks: u64,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Name.
    pub name: VolumeName,
    /// Identity of this incarnation.
    pub id: VolumeId,
    /// Settings.
    #[serde(flatten)]
    pub settings: VolumeSettings,
    /// Whether it is served.
    pub state: VolumeState,
    /// Why it is not `online`, or what else an operator must know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Whether answered writes may be missing.
    pub lineage: Lineage,
    /// Open NBD connections.
    pub connections: u32,
    /// Blocks that hold data (committed; neither zeros nor holes).
    pub mapped_blocks: u64,
    /// Bytes in the WAL that no committed manifest holds yet: lost with the local disk.
    pub dirty_bytes: u64,
    /// Epoch of the last committed cut.
    pub committed_epoch: u64,
    /// Number of the last committed manifest.
    pub manifest: u64,
    /// Writer generation.
    pub generation: u64,
    /// Chunk objects that hold live blocks.
    pub chunks: u64,
    /// Bytes of chunk objects, and how much of them is live.
    #[serde(default)]
    pub usage: ChunkUsage,
    /// Heap bytes of the extent index.
    pub index_bytes: u64,
    /// Seconds since the last commit; absent before the first one of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_commit_age_seconds: Option<f64>,
    /// Answered writes that a takeover by another appliance kept out of the image; absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<QuarantineInfo>,
    /// What the backend lacks of it.
    #[serde(default)]
    pub upload: UploadInfo,
    /// What became of requests under its limits.
    #[serde(default)]
    pub delays: DelayInfo,
}

/// Requests that waited because of a volume's limits (`iops`, `bandwidth_bytes`), since the daemon
/// started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DelayInfo {
    /// How many.
    pub requests: u64,
    /// How long, all together.
    pub seconds: f64,
}

/// What the backend lacks of a volume, and how its commit fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UploadInfo {
    /// Bytes written that no committed manifest holds; a block written twice counts twice.
    pub risk_bytes: u64,
    /// Seconds since the oldest of these was written; absent while there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk_seconds: Option<f64>,
    /// What its commit does: `idle`, `chunks`, `index`, `manifest`, `head`, `publish`, `fenced`;
    /// empty while it is not open.
    #[serde(default)]
    pub phase: String,
    /// Chunks of the commit under way.
    #[serde(default)]
    pub chunks: usize,
    /// Those of them that are stored.
    #[serde(default)]
    pub chunks_stored: usize,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// The last of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// A change of settings or a deletion is under way; its outcome is not known yet.
    #[serde(default)]
    pub changing: bool,
    /// Requests that its commits made in the last hour.
    #[serde(default)]
    pub requests_last_hour: u64,
    /// For so long its budget of requests lets commits wait that only the interval makes due;
    /// absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_seconds: Option<f64>,
}

/// What the quarantine files of a volume hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuarantineInfo {
    /// Files under `<data>/quarantine`.
    pub files: u32,
    /// Records in them.
    pub records: u64,
    /// Bytes that these wrote.
    pub bytes: u64,
    /// Within so many seconds they were all written, those aside of which it is not known.
    pub seconds: f64,
}

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Recovering; not yet serving.
    #[default]
    Starting,
    /// Serving.
    Serving,
    /// Packing everything.
    Draining,
    /// Answering what is in flight, then ending.
    Stopping,
}

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// What it is doing.
    pub state: RunState,
    /// Data directory.
    pub data_dir: String,
    /// Directory of the memory that outlives the process.
    pub runtime_dir: String,
    /// Where NBD is served (`127.0.0.1:10809`, `unix:/path`).
    pub listeners: Vec<String>,
    /// Open NBD connections.
    pub connections: u32,
    /// CPUs of the data cores, in order of core number.
    pub data_cores: Vec<usize>,
    /// CPU of the uploader core.
    pub uploader_core: Option<usize>,
    /// The current global epoch.
    pub epoch: u64,
    /// How soon what was written is made durable and committed.
    #[serde(default)]
    pub pace: PaceStatus,
    /// The write-ahead log as a whole.
    pub wal: WalStatus,
    /// The shards, by index.
    pub shards: Vec<ShardStatus>,
    /// The backend.
    pub backend: BackendStatus,
    /// What the backend lacks of all volumes.
    #[serde(default)]
    pub upload: UploadStatus,
    /// What compaction has done, and when it does something.
    #[serde(default)]
    pub compaction: CompactionStatus,
    /// What deleted volumes and orphans gave back.
    #[serde(default)]
    pub space: SpaceStatus,
    /// Where memory may go.
    pub memory: MemoryStatus,
    /// What the last start recovered.
    pub recovery: RecoveryStatus,
    /// The volumes, by name.
    pub volumes: Vec<VolumeInfo>,
    /// What an operator should look at, most urgent first; empty when all is well.
    pub problems: Vec<String>,
}

/// Compaction, since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompactionStatus {
    /// Live share, in percent, under which a chunk is rewritten; 0: none is.
    pub threshold_percent: u8,
    /// Pace, in bytes read and written; 0: it is off.
    pub bytes_per_second: u64,
    /// Compactions committed.
    pub committed: u64,
    /// Compactions that could not read or store.
    pub failures: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of chunks written.
    pub written_bytes: u64,
}

/// The write-ahead log as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WalStatus {
    /// Bytes of all WAL files.
    pub total_bytes: u64,
    /// Bytes of them that writes never get: they are kept for TRIM, errors and recovery.
    #[serde(default)]
    pub reserve_bytes: u64,
    /// Bytes that hold records not yet released.
    pub used_bytes: u64,
    /// Sync mode in use (`dsync`, `fdatasync` or `mixed`).
    pub sync_mode: String,
    /// Why that mode was chosen.
    pub sync_reason: String,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Index, 0..16.
    pub shard: u8,
    /// Number of the data core that owns it.
    pub core: usize,
    /// Bytes of its WAL file.
    pub wal_total_bytes: u64,
    /// Bytes of it that writes never get.
    #[serde(default)]
    pub wal_reserve_bytes: u64,
    /// Bytes of its WAL that hold records not yet released.
    pub wal_used_bytes: u64,
    /// Answered bytes that a power loss would take.
    pub undurable_bytes: u64,
    /// Bytes of its batch memory in use (write buffer and read cache).
    pub resident_bytes: u64,
    /// Last WAL batch that is durable with all before it.
    pub durable_batch: u64,
    /// Last WAL batch with content.
    pub last_batch: u64,
    /// Requests parked for want of memory or log space.
    pub parked: u32,
    /// Why the shard refuses writes; absent when it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Its data core does not answer for so long, and all of this is as it was before; absent when
    /// it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<f64>,
}

/// How the backend is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// The last operation succeeded, or none was needed yet.
    #[default]
    Healthy,
    /// The last operation failed and is tried again.
    Retrying,
    /// It reports that it is full.
    Full,
}

/// The backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// What it is (`dir:/path`).
    pub url: String,
    /// As `--backend` takes it; absent from daemons that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// How it is doing.
    pub state: BackendState,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Seconds since the first failure in a row; absent when healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_seconds: Option<f64>,
    /// Which conditional writes it keeps; absent until it was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditional_writes: Option<ConditionalWrites>,
    /// Requests made since the start, by kind; empty where requests cost nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<VerbCounts>,
    /// Replies with wrong bytes to others than the reads of clients: manifests, index parts, heads
    /// of chunks, what a compaction reads.
    #[serde(default)]
    pub mismatches: u64,
}

/// What the backend lacks of all volumes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UploadStatus {
    /// Bytes written that no committed manifest holds.
    pub backlog_bytes: u64,
    /// Seconds since the oldest of these was written; absent while there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// Bytes written to the WAL each second, over the last ten seconds or so.
    pub wal_bytes_per_second: u64,
    /// Seconds until the WAL is full at that rate if nothing of it is released; absent while
    /// nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runway_seconds: Option<f64>,
}

/// Where memory may go: the budget printed at start, and what is used of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Sum of all bounded parts.
    pub budget_bytes: u64,
    /// The bounded parts.
    pub parts: Vec<MemoryPart>,
    /// Extent indexes of all volumes: the one part that grows with mapped data.
    pub index_bytes: u64,
    /// Which committed blocks batch memory still holds; bounded by that memory.
    #[serde(default)]
    pub cache_directory_bytes: u64,
    /// Resident set of the process.
    pub resident_bytes: u64,
}

/// One bounded use of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// What it is for.
    pub name: String,
    /// At most so many bytes.
    pub bytes: u64,
}

/// What the last start recovered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Seconds from start to serving.
    pub seconds: f64,
    /// WAL batches replayed.
    pub batches: u64,
    /// Records taken over.
    pub records: u64,
    /// Records found only in the memory that outlives the process.
    pub region_records: u64,
    /// True if no volume may have lost answered writes: every lineage is intact, whether the
    /// process before was stopped or killed.
    pub clean: bool,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error: a stable class and a text for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable class on which programs decide.
    pub kind: ErrorCode,
    /// What was tried, on what, and what to do.
    pub message: String,
}

/// Stable error classes of the control API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The name exists (409).
    AlreadyExists,
    /// In use: clients are connected (409).
    Busy,
    /// Stored bytes are damaged (500).
    Corrupt,
    /// Another writer owns the volume (409).
    Fenced,
    /// No space (507).
    Full,
    /// The request makes no sense (400).
    Invalid,
    /// A device or the operating system failed (500).
    Io,
    /// Not there (404).
    NotFound,
    /// The method does not exist for this path (405).
    MethodNotAllowed,
    /// The volume may only be read (409).
    ReadOnly,
    /// The body is larger than is read (413).
    TooLarge,
    /// May succeed when tried again (503).
    Transient,
    /// A class that this program does not know yet.
    #[serde(other)]
    Other,
}

impl ErrorCode {
    /// The HTTP status code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::AlreadyExists | Self::Busy | Self::Fenced | Self::ReadOnly => 409,
            Self::TooLarge => 413,
            Self::Corrupt | Self::Io | Self::Other => 500,
            Self::Transient => 503,
            Self::Full => 507,
        }
    }
}

impl From<ErrorKind> for ErrorCode {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::AlreadyExists => Self::AlreadyExists,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::Fenced => Self::Fenced,
            ErrorKind::Full => Self::Full,
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Io => Self::Io,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::ReadOnly => Self::ReadOnly,
            ErrorKind::Transient => Self::Transient,
        }
    }
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        Self {
            error: ErrorDetail {
                kind: error.kind().into(),
                message: error.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests;

//! The counters themselves, who writes them, and their sums.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taipan_engine::volume::VolumeName;

use super::latency::{Latency, LatencyTotals};
use super::reads::{ColdReadCounters, ColdReadTotals};

/// A counter with one writing thread: adding is a load and a store, without a locked instruction.
#[derive(Debug, Default)]
pub struct LocalCount(AtomicU64);

impl LocalCount {
    /// Adds `n`; only the owning thread may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value now, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A counter with many writing threads.
#[derive(Debug, Default)]
pub struct SharedCount(AtomicU64);

impl SharedCount {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Declares a struct of counters and the struct of its values, so that none is forgotten.
macro_rules! counters {
    (
        $(#[$doc:meta])* $name:ident of $count:ident,
        $(#[$totals_doc:meta])* $totals:ident
        { $($(#[$field_doc:meta])* $field:ident,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $count,)* }

        $(#[$totals_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $totals { $($(#[$field_doc])* pub $field: u64,)* }

        impl $name {
            /// The values now.
            pub fn totals(&self) -> $totals {
                $totals { $($field: self.$field.get(),)* }
            }
        }
    };
}

counters! {
    /// What a data core does to the write-ahead logs of its shards.
    WalCounters of LocalCount,
    /// Values of [`WalCounters`].
    WalTotals {
        /// Batch writes completed.
        writes,
        /// Bytes of those writes.
        write_bytes,
        /// Flush barriers completed (fdatasync).
        barriers,
        /// Writes and barriers that failed.
        errors,
        /// Batches written once more to a fresh segment after an error.
        rewrites,
        /// Segments released after a commit.
        released_segments,
    }
}

counters! {
    /// Where reads of a data core found their blocks.
    ReadCounters of LocalCount,
    /// Values of [`ReadCounters`].
    ReadTotals {
        /// Blocks in batch memory.
        memory_blocks,
        /// Blocks read from the WAL file.
        wal_blocks,
        /// Blocks read from chunks in the backend.
        chunk_blocks,
        /// Of those, blocks that the core itself read from files.
        nearby_blocks,
        /// Blocks without data.
        hole_blocks,
        /// Blocks whose checksum did not match what was read.
        crc_mismatches,
    }
}

counters! {
    /// Requests of a data core that had to wait for room.
    ParkCounters of LocalCount,
    /// Values of [`ParkCounters`].
    ParkTotals {
        /// For batch memory.
        memory,
        /// For log space: the backend does not keep up.
        log,
        /// For a commit: the backend lacks more of the volume than it may.
        bucket,
        /// For the connection's budget of bytes or requests.
        connection,
        /// Nanoseconds that parked requests waited.
        waited_nanos,
    }
}

counters! {
    /// Connections of a data core.
    ConnectionCounters of LocalCount,
    /// Values of [`ConnectionCounters`].
    ConnectionTotals {
        /// Accepted.
        accepted,
        /// Closed, for whatever reason.
        closed,
        /// Refused because the limit was reached.
        refused,
        /// Closed during the handshake: garbage, a time-out or an unknown export.
        handshake_failures,
        /// Closed because of an invalid request.
        protocol_errors,
    }
}

counters! {
    /// What the uploader does.
    UploaderCounters of SharedCount,
    /// Values of [`UploaderCounters`].
    UploaderTotals {
        /// Cuts taken.
        cuts,
        /// Manifests committed.
        commits,
        /// Attempts to commit that failed and are tried again.
        commit_failures,
        /// Chunk objects stored.
        chunks,
        /// Blocks packed.
        packed_blocks,
        /// Blocks dropped because a newer version was in the same cut.
        superseded_blocks,
        /// Compactions committed.
        compactions,
        /// Compactions that could not read or store, and are tried again.
        compaction_failures,
        /// Bytes that compactions read.
        compaction_read_bytes,
        /// Bytes of chunks that compactions wrote.
        compaction_written_bytes,
        /// Objects of deleted volumes that were deleted.
        freed_objects,
        /// Bytes of them.
        freed_bytes,
        /// Volumes whose orphans were swept.
        sweeps,
        /// Orphans deleted.
        swept_objects,
        /// Bytes of them.
        swept_bytes,
        /// Nanoseconds from cut to commit, summed over commits.
        commit_nanos,
    }
}

/// Kinds of NBD requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// FLUSH.
    Flush,
    /// TRIM.
    Trim,
    /// WRITE_ZEROES.
    Zero,
    /// CACHE.
    Cache,
    /// BLOCK_STATUS.
    Status,
}

impl RequestKind {
    /// All kinds, in order of their index.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::Zero,
        Self::Cache,
        Self::Status,
    ];

    /// The label of this kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Zero => "zero",
            Self::Cache => "cache",
            Self::Status => "block_status",
        }
    }
}

const KINDS: usize = RequestKind::ALL.len();

/// Counters of one data core; written by that core's thread only.
#[derive(Debug, Default)]
// Cores write theirs all the time: they must not share cache lines.
#[repr(align(128))]
pub struct CoreCounters {
    /// From the whole request received to its reply handed to the socket, by [`RequestKind`].
    pub latency: [Latency; KINDS],
    /// Write-ahead log.
    pub wal: WalCounters,
    /// Time of one batch write.
    pub wal_write_latency: Latency,
    /// Time of one flush barrier.
    pub wal_barrier_latency: Latency,
    /// Reads.
    pub reads: ReadCounters,
    /// Parked requests.
    pub parks: ParkCounters,
    /// Connections.
    pub connections: ConnectionCounters,
}

impl CoreCounters {
    /// Records that a request of `kind` took `duration`.
    pub fn answered(&self, kind: RequestKind, duration: Duration) {
        self.latency[kind as usize].record(duration);
    }

    fn totals(&self) -> CoreTotals {
        CoreTotals {
            latency: std::array::from_fn(|i| self.latency[i].totals()),
            wal: self.wal.totals(),
            wal_write_latency: self.wal_write_latency.totals(),
            wal_barrier_latency: self.wal_barrier_latency.totals(),
            reads: self.reads.totals(),
            parks: self.parks.totals(),
            connections: self.connections.totals(),
        }
    }
}

/// Values of [`CoreCounters`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreTotals {
    /// By [`RequestKind`].
    pub latency: [LatencyTotals; KINDS],
    /// Write-ahead log.
    pub wal: WalTotals,
    /// Time of batch writes.
    pub wal_write_latency: LatencyTotals,
    /// Time of flush barriers.
    pub wal_barrier_latency: LatencyTotals,
    /// Reads.
    pub reads: ReadTotals,
    /// Parked requests.
    pub parks: ParkTotals,
    /// Connections.
    pub connections: ConnectionTotals,
}

/// Requests of one volume on one data core; written by that core's thread only.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct VolumeCounters {
    requests: [LocalCount; KINDS],
    bytes: [LocalCount; KINDS],
    errors: [LocalCount; KINDS],
}

impl VolumeCounters {
    /// Counts a request of `kind` that succeeded, with its length in bytes.
    pub fn succeeded(&self, kind: RequestKind, bytes: u64) {
        self.requests[kind as usize].add(1);
        self.bytes[kind as usize].add(bytes);
    }

    /// Counts a request of `kind` that was answered with an error.
    pub fn failed(&self, kind: RequestKind) {
        self.requests[kind as usize].add(1);
        self.errors[kind as usize].add(1);
    }
}

/// Sums of [`VolumeCounters`] over the cores, by [`RequestKind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeTotals {
    /// Requests answered, errors included.
    pub requests: [u64; KINDS],
    /// Bytes of those that succeeded.
    pub bytes: [u64; KINDS],
    /// Requests answered with an error.
    pub errors: [u64; KINDS],
}

impl VolumeTotals {
    fn add(&mut self, counters: &VolumeCounters) {
        for kind in 0..KINDS {
            self.requests[kind] += counters.requests[kind].get();
            self.bytes[kind] += counters.bytes[kind].get();
            self.errors[kind] += counters.errors[kind].get();
        }
    }
}

/// Operations on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendOp {
    /// Storing an object.
    Put,
    /// Reading an object or a range of it.
    Get,
    /// Asking whether an object exists.
    Head,
    /// Listing names.
    List,
    /// Deleting an object.
    Delete,
}

impl BackendOp {
    /// All operations, in order of their index.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Delete];

    /// The label of this operation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

const OPS: usize = BackendOp::ALL.len();

/// What is asked of the backend, from any thread.
#[derive(Debug, Default)]
pub struct BackendCounters {
    operations: [SharedCount; OPS],
    errors: [SharedCount; OPS],
    bytes: [SharedCount; OPS],
    nanos: [SharedCount; OPS],
}

impl BackendCounters {
    /// Counts an operation that moved `bytes` of payload (`None`: it failed).
    pub fn done(&self, op: BackendOp, bytes: Option<u64>, duration: Duration) {
        let op = op as usize;
        self.operations[op].add(1);
        match bytes {
            Some(bytes) => self.bytes[op].add(bytes),
            None => self.errors[op].add(1),
        }
        self.nanos[op].add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    fn totals(&self) -> BackendTotals {
        let values = |counts: &[SharedCount; OPS]| std::array::from_fn(|i| counts[i].get());
        BackendTotals {
            operations: values(&self.operations),
            errors: values(&self.errors),
            bytes: values(&self.bytes),
            nanos: values(&self.nanos),
        }
    }
}

/// Values of [`BackendCounters`], by [`BackendOp`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendTotals {
    /// Operations, failed ones included.
    pub operations: [u64; OPS],
    /// Operations that failed.
    pub errors: [u64; OPS],
    /// Payload bytes of those that succeeded.
    pub bytes: [u64; OPS],
    /// Nanoseconds spent in them.
    pub nanos: [u64; OPS],
}

/// All counters of the daemon.
#[derive(Debug)]
pub struct Metrics {
    cores: Vec<Arc<CoreCounters>>,
    backend: Arc<BackendCounters>,
    uploader: Arc<UploaderCounters>,
    /// Reads of committed blocks.
    pub cold_reads: Arc<ColdReadCounters>,
    /// Connections refused before a data core saw them, because the limit was reached.
    pub refused_connections: SharedCount,
    volumes: Mutex<BTreeMap<VolumeName, Vec<Arc<VolumeCounters>>>>,
}

impl Metrics {
    /// Zeroed counters for so many data cores.
    pub fn new(data_cores: usize) -> Self {
        Self {
            cores: (0..data_cores).map(|_| Arc::default()).collect(),
            backend: Arc::default(),
            uploader: Arc::default(),
            cold_reads: Arc::default(),
            refused_connections: SharedCount::default(),
            volumes: Mutex::default(),
        }
    }

    /// The counters that data core `index` writes.
    pub fn core(&self, index: usize) -> Arc<CoreCounters> {
        Arc::clone(&self.cores[index])
    }

    /// The backend's counters.
    pub fn backend(&self) -> Arc<BackendCounters> {
        Arc::clone(&self.backend)
    }

    /// What became of the connections of each data core.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionTotals> {
        self.cores.iter().map(|core| core.connections.totals())
    }

    /// Bytes written to the WAL files.
    pub fn wal_bytes(&self) -> u64 {
        let cores = self.cores.iter();
        cores.map(|core| core.wal.write_bytes.get()).sum()
    }

    /// The uploader's counters.
    pub fn uploader(&self) -> Arc<UploaderCounters> {
        Arc::clone(&self.uploader)
    }

    /// The counters that data core `core` writes for a volume; fetched once for a connection.
    pub fn volume(&self, core: usize, name: &VolumeName) -> Arc<VolumeCounters> {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let of_cores = volumes
            .entry(name.clone())
            .or_insert_with(|| self.cores.iter().map(|_| Arc::default()).collect());
        Arc::clone(&of_cores[core])
    }

    /// Forgets the counters of a deleted volume.
    pub fn forget(&self, name: &VolumeName) {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.remove(name);
    }

    /// All values now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |of_cores: &Vec<Arc<VolumeCounters>>| {
            let mut totals = VolumeTotals::default();
            of_cores.iter().for_each(|counters| totals.add(counters));
            totals
        };
        let mut cores: Vec<CoreTotals> = self.cores.iter().map(|core| core.totals()).collect();
        if let Some(first) = cores.first_mut() {
            first.connections.refused += self.refused_connections.get();
        }
        MetricsSnapshot {
            cores,
            backend: self.backend.totals(),
            uploader: self.uploader.totals(),
            cold_reads: self.cold_reads.totals(),
            volumes: volumes
                .iter()
                .map(|(name, of_cores)| (name.clone(), sum(of_cores)))
                .collect(),
        }
    }
}

/// Values of all counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// By data core.
    pub cores: Vec<CoreTotals>,
    /// The backend.
    pub backend: BackendTotals,
    /// The uploader.
    pub uploader: UploaderTotals,
    /// Reads of committed blocks.
    pub cold_reads: ColdReadTotals,
    /// By volume, in order of names; volumes without connections so far are absent.
    pub volumes: Vec<(VolumeName, VolumeTotals)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_counters_of_all_cores_are_summed_and_forgotten() {
        let metrics = Metrics::new(2);
        let name = VolumeName::parse("tenant/v").unwrap();
        metrics.volume(0, &name).succeeded(RequestKind::Write, 4096);
        metrics.volume(1, &name).succeeded(RequestKind::Write, 512);
        metrics.volume(1, &name).failed(RequestKind::Flush);

        let snapshot = metrics.snapshot();
        let (found, totals) = &snapshot.volumes[0];
        assert_eq!(found, &name);
        assert_eq!(totals.requests[RequestKind::Write as usize], 2);
        assert_eq!(totals.bytes[RequestKind::Write as usize], 4608);
        assert_eq!(totals.errors[RequestKind::Flush as usize], 1);
        assert_eq!(totals.requests[RequestKind::Flush as usize], 1);

        metrics.forget(&name);
        assert!(metrics.snapshot().volumes.is_empty());
    }

    #[test]
    fn kinds_and_operations_index_their_own_slot() {
        for (index, kind) in RequestKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        for (index, op) in BackendOp::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, index);
        }
    }

    #[test]
    fn failed_backend_operations_count_as_errors_without_bytes() {
        let metrics = Metrics::new(1);
        let backend = metrics.backend();
        backend.done(BackendOp::Put, Some(100), Duration::from_nanos(5));
        backend.done(BackendOp::Put, None, Duration::from_nanos(7));
        let totals = metrics.snapshot().backend;
        let put = BackendOp::Put as usize;
        assert_eq!((totals.operations[put], totals.errors[put]), (2, 1));
        assert_eq!((totals.bytes[put], totals.nanos[put]), (100, 12));
    }
}

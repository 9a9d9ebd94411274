//! Counters of the daemon: written without contention by the cores, read by the metrics server.

mod bucket;
#[macro_use]
mod counters;
mod families;
mod latency;
mod reads;
mod text;

pub use counters::{
    BackendCounters, BackendOp, BackendTotals, ConnectionCounters, ConnectionTotals, CoreCounters,
    CoreTotals, LocalCount, Metrics, MetricsSnapshot, ParkCounters, ParkTotals, ReadCounters,
    ReadTotals, RequestKind, SharedCount, UploaderCounters, UploaderTotals, VolumeCounters,
    VolumeTotals, WalCounters, WalTotals,
};
pub use latency::{Latency, LatencyTotals, bound_nanos};
pub use reads::{ColdReadCounters, ColdReadTotals};
pub use text::{CONTENT_TYPE, render};

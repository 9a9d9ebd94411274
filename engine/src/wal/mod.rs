//! The write-ahead log of one shard: batches in shared memory, written to one file per shard, and
//! replayed after a crash. Formats: `docs/internals/wal.md`; rules: `docs/internals/recovery.md`.

mod batch;
pub mod config;
pub mod device;
mod ending;
pub mod files;
pub mod format;
pub mod fuzz;
mod headers;
mod log;
pub mod media;
mod pages;
pub mod place;
mod places;
pub mod record;
pub mod region;
pub mod region_files;
pub mod replay;
mod segments;
pub mod state;
mod write;

pub use config::{BootId, LogConfig, LogIdentity, WalId};
pub use log::{LogStats, ShardLog, Shortage};
pub use media::ReadMedia;
pub use place::Place;
pub use places::{Location, PlaceMap};
pub use record::{Content, MarkKind, Record, RecordHead};
pub use replay::{Damage, Recovered, RegionRecord, recover_noted_shard, recover_shard};
pub use replay::{LostRange, Salvage, salvage_shard};
pub use write::{BarrierMark, Health, WalWrite};

#[cfg(test)]
mod tests;

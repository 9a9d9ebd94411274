//! The effective configuration: defaults, then the file, then the flags, checked as a whole.
//! Every key and its default is listed in `docs/operations/config.md`.

mod access;
mod compaction;
mod cpus;
mod document;
mod flags;
mod load;
mod places;
mod print;
mod reads;
mod settings;
mod space;
mod tls;

pub use compaction::Compaction;
pub use flags::{Cli, Command, Flags};
pub use load::{Machine, Problems, load};
pub use reads::{CacheSize, Reads};
pub use settings::{
    Cache, Commit, Config, Cores, DATA_CORES_MAX, Fencing, Limits, LogFormat, Logging,
    MEMORY_BYTES_MIN, OnFull, VolumeConfig, VolumesOpen, WAL_BYTES_DEFAULT, WAL_BYTES_MAX,
    WAL_BYTES_MIN, Wal, WalSync,
};
pub use space::Space;
pub use tls::Tls;

#[cfg(test)]
mod tests;

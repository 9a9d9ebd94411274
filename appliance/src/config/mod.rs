//! The effective configuration: defaults, then the file, then the flags, checked as a whole.

mod settings;

pub use settings::{
    Cache, Commit, Config, Cores, Limits, LogFormat, Logging, VolumeConfig, Wal, WalSync,
};

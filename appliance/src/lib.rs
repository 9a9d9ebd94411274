//! The appliance: configuration, control plane, data cores and uploader behind `taipand`.
//!
//! The control plane (this crate's `config`, `control`, `metrics`) talks to the data plane only
//! through [`control::Appliance`] and the counters of [`metrics`].

pub mod access;
pub mod activation;
mod assembly;
mod backend_check;
mod batch_memory;
pub mod boot;
pub mod budget;
mod caretaker;
pub mod config;
pub mod connection;
pub mod control;
pub mod daemon;
pub mod data_core;
pub mod deadline;
pub mod directory;
pub mod doorbell;
pub mod fetcher;
pub mod handoff;
pub mod inbox;
pub mod inherited;
pub mod listeners;
pub mod lock;
pub mod logging;
pub mod memlock;
pub mod metrics;
pub mod notify;
pub mod opening;
pub mod ownership;
mod patience;
pub mod quarantine;
pub mod recovery;
mod search;
pub mod service;
pub mod signals;
pub mod sockets;
pub mod stages;
pub mod sync_mode;
mod tail;
pub mod throttle;
pub mod tls;
pub mod uploader;
pub mod wal_damage;
pub mod watchdog;

//! The seeded simulator: the machines that production runs, on simulated disks, memory, backend and
//! clients, in one thread and in virtual time. See `docs/internals/testing-simulator.md`.
//!
//! One seed is one run: a few lives of the appliance, each ended by a kill or a power loss, checked
//! by an oracle against everything the clients were told.

mod boot;
mod bucket;
mod clients;
mod clones;
mod compaction;
mod coverage;
mod data_dir;
mod dice;
mod disk;
mod ending;
mod family;
mod freeing;
mod heads_dir;
mod image;
pub mod model;
mod opening;
mod oracle;
mod packing;
mod pattern;
mod plan;
mod points;
mod race;
mod racing;
mod risk;
mod room;
mod serve;
mod snapshots;
mod sweep;
pub mod throughput;
mod uploader;
mod workload;
mod world;
mod written;

pub use coverage::{Coverage, EVENTS};
pub use family::{FAMILY_EVENTS, run_family, run_family_aloud};
pub use race::{RACE_EVENTS, run_race, run_race_aloud};
pub use world::{Outcome, Violation, run, run_aloud};

#[cfg(test)]
mod tests;

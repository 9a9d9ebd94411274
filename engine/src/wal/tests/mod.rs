//! Tests of the log, its replay and both under crashes.

mod appending;
mod crashes;
mod damage;
pub(in crate::wal) mod dice;
mod ending;
mod errors;
mod format;
mod noting;
mod world;

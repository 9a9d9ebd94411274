//! Tests of the log, its replay and both under crashes.

mod appending;
mod crashes;
mod damage;
mod errors;
mod format;
mod world;

//! Tests of a core with a driver that does nothing unless told to.

mod bucket;
mod counters;
mod cuts;
mod durability;
mod errors;
mod mapping;
mod merging;
mod parking;
mod peers;
mod reading;
mod rig;

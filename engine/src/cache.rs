//! What keeps cold reads away from the backend: a cache in memory, the directory of a cache file,
//! a table that lets reads of the same slots wait for one GET, and read-ahead. Sans-IO.
//!
//! Everything is named by the key of the chunk object and the slot in it: such names are never used
//! twice, so that nothing cached can be stale. See `docs/internals/read-path.md`.

mod disk;
mod flight;
mod holdings;
mod ram;
mod scan;
mod stream;

use crate::object::ChunkKey;

pub use disk::{DiskMap, OnDisk, Reserved};
pub use flight::{Flight, FlightId, Flights};
pub use holdings::{HeldNow, HeldSlots, Holdings};
pub use ram::{Hit, RamCache, RamCounts};
pub use scan::Body;
pub use stream::{Ahead, ReadSeen, StreamId, Streams};

/// One slot of one chunk object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// The object.
    pub chunk: ChunkKey,
    /// The slot in it.
    pub slot: u32,
}

#[cfg(test)]
mod tests;

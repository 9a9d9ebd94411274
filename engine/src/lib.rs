//! The storage engine: volumes cut into 16 shards, each with a write-ahead log on local NVMe and an
//! extent index, packed into immutable chunks in a backend whose image is always one epoch cut.
//!
//! State machines here are sans-IO: they take inputs and emit effects. Production drives them from
//! the ring loop, tests from a seeded simulator. See `docs/ARCHITECTURE.md`.

pub mod api;
pub mod arena;
pub mod backend;
pub mod block;
pub mod bodies;
pub mod cache;
pub mod checksum;
pub mod chunk;
pub mod commit;
pub mod core;
pub mod error;
pub mod extents;
pub mod failpoint;
pub mod fuzz;
pub mod identity;
pub mod increment;
pub mod index;
pub mod invariant;
#[cfg(test)]
mod lcg;
pub mod manifest;
mod mutation;
pub mod object;
pub mod pack;
pub mod point;
pub mod registry;
pub mod ring;
pub mod shard;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod size;
pub mod snapshot;
pub mod timestamp;
pub mod verify;
pub mod volume;
pub mod wal;

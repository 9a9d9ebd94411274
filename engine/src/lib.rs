//! The storage engine: volumes cut into 16 shards, each with a write-ahead log on local NVMe and an
//! extent index, packed into immutable chunks in a backend whose image is always one epoch cut.
//!
//! State machines here are sans-IO: they take inputs and emit effects. Production drives them from
//! the ring loop, tests from a seeded simulator. See `docs/ARCHITECTURE.md`.

pub mod api;
pub mod arena;
pub mod backend;
pub mod block;
pub mod chunk;
pub mod commit;
pub mod error;
pub mod identity;
pub mod index;
pub mod manifest;
pub mod object;
pub mod registry;
pub mod pack;
pub mod size;
pub mod volume;
pub mod wal;
pub mod core;
pub mod failpoint;
pub mod ring;
pub mod shard;

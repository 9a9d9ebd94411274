//! The write-ahead log of one shard.

pub mod place;

//! What became of a group of snapshots.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::group_entry(data));

//! A WAL file and a region against the replay.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::replay(data));

//! The file `wal/state`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::wal_state(data));

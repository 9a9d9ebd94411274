//! A manifest, and whether others may follow it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::manifest(data));

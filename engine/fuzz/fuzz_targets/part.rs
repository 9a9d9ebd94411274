//! An index part, its leaves, and a base loaded from it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::part(data));

//! A quarantine file.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::quarantine(data));

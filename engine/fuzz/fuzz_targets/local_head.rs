//! A local head record, and a takeover that starts from it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::local_head(data));

//! A chunk object's header, extent table and slots.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::chunk(data));

//! An entry of the log of a snapshot's pins.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::pin_entry(data));

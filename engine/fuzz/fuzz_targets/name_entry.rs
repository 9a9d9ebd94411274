//! An entry of a volume name's log.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_engine::fuzz::name_entry(data));

//! A message of a hand-off.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_appliance::handoff::format::fuzz(data));

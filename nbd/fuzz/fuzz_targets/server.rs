//! A client's whole stream against the server's machines.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_nbd::fuzz::fuzz_server(data));

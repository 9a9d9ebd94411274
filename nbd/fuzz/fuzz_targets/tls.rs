//! What comes in the clear before TLS, and what comes through it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| taipan_nbd::fuzz::fuzz_tls(data));

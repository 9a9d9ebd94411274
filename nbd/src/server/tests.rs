//! The handshake against every rule, one row or test each.

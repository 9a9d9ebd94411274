//! How much negotiation one connection may cause.

/// Bounds of a handshake. The defaults take everything that a sane client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Options of one connection. Every export that a LIST named allows four more.
    pub options_max: u32,
    /// Longest option that is looked at, in bytes; a longer one is answered TOO_BIG. This is also
    /// the memory that a handshake can be made to hold.
    pub option_bytes_max: u32,
    /// Longest option data that is thrown away to stay in sync, in bytes; above it the connection
    /// is closed.
    pub discard_bytes_max: u32,
}

/// The longest legal GO: two lengths, a name of 4096 bytes and 65535 information requests.
const LONGEST_GO_BYTES: u32 = 4 + 4096 + 2 + 2 * 65535;

impl HandshakeLimits {
    /// Limits for a server in the open.
    pub const DEFAULT: Self = Self {
        options_max: 64,
        option_bytes_max: 256 << 10,
        discard_bytes_max: 64 << 20,
    };
}

const _: () = assert!(HandshakeLimits::DEFAULT.option_bytes_max >= LONGEST_GO_BYTES);
const _: () = assert!(
    HandshakeLimits::DEFAULT.discard_bytes_max >= HandshakeLimits::DEFAULT.option_bytes_max
);

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

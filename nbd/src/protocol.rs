//! The numbers of the protocol, as its text names them, and nothing else.

/// First eight bytes of a server: "NBDMAGIC".
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": second magic of a newstyle server, and first of every option of a client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second magic of the dead oldstyle handshake.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First eight bytes of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// First four bytes of a request with extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First four bytes of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First four bytes of a chunk of a reply with extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of the server's greeting: two magics and the handshake flags.
pub const GREETING_BYTES: usize = 18;
/// Bytes of the client's flags.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// Bytes before the data of an option: magic, option, data length.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Bytes before the data of a reply to an option: magic, option, type, data length.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Bytes of the answer to EXPORT_NAME: size and transmission flags.
pub const EXPORT_NAME_REPLY_BYTES: usize = 10;
/// Zero bytes behind that answer when the client did not set C_NO_ZEROES.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// Longest string on the wire: export name, description, error text; bytes of UTF-8 without NUL.
pub const STRING_BYTES_MAX: usize = 4096;

/// Flags of the handshake; the client's have the same values as the server's.
pub mod handshake_flag {
    /// Options may be answered by errors, so that negotiation goes on.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The 124 zero bytes behind EXPORT_NAME may be left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of a client.
pub mod option {
    /// Choose the export; cannot be refused except by closing.
    pub const EXPORT_NAME: u32 = 1;
    /// End politely.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Withdrawn.
    pub const PEEK_EXPORT: u32 = 4;
    /// Go on under TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start transmission.
    pub const GO: u32 = 7;
    /// Replies in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// 32-byte headers with 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of the replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a LIST.
    pub const SERVER: u32 = 2;
    /// One information of INFO or GO.
    pub const INFO: u32 = 3;
    /// One metadata context of LIST_META_CONTEXT or SET_META_CONTEXT.
    pub const META_CONTEXT: u32 = 4;
    /// Bit that all errors have.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The server does not know the option.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The server's configuration forbids it.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option was malformed, or not legal now.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// The server's platform cannot.
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// Only under TLS.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The export has block sizes that the client must ask for.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// The option is too long for this server.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// Only with extended headers.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Types of information on an export.
pub mod info {
    /// Size and transmission flags; always sent.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read a range.
    pub const READ: u16 = 0;
    /// Write a range; the only command whose request carries a payload.
    pub const WRITE: u16 = 1;
    /// Disconnect, without a reply.
    pub const DISC: u16 = 2;
    /// Make durable what was answered.
    pub const FLUSH: u16 = 3;
    /// Give up the content of a range.
    pub const TRIM: u16 = 4;
    /// Bring a range nearer.
    pub const CACHE: u16 = 5;
    /// Fill a range with zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Describe a range by metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeros that stay allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Data of a read in one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent of block status.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros only if faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload (extended headers).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Flags of a chunk.
pub mod chunk_flag {
    /// The last chunk of its reply.
    pub const DONE: u16 = 1 << 0;
}

/// Types of the chunks of structured replies and of replies with extended headers.
pub mod chunk {
    /// Nothing; ends a reply.
    pub const NONE: u16 = 0;
    /// Offset u64 and data of a READ.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset u64 and length u32 of zeros of a READ.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context u32, then extents: length u32, status u32.
    pub const BLOCK_STATUS: u16 = 5;
    /// Context u32, count u32, then extents: length u64, status u64. Extended headers only.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Bit that all errors have.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// Error u32, text length u16, text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The same, then the offset u64 where it happened.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Names of metadata contexts. A client matches them as strings: they never change.
pub mod context {
    /// Which ranges are holes and which read as zeros: see [`state`](super::state).
    pub const BASE_ALLOCATION: &str = "base:allocation";
    /// How many layers down the content of a range lies.
    pub const QEMU_ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
    /// Followed by the name of a bitmap: which ranges have changed.
    pub const QEMU_DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
    /// How safe the content of a range is.
    pub const TAIPAN_DURABILITY: &str = "taipan:durability";
    /// Where the content of a range can be read from.
    pub const TAIPAN_RESIDENCY: &str = "taipan:residency";
}

/// Status of an extent, by context. 0 is always safe to say, except of a dirty bitmap.
pub mod state {
    /// `base:allocation`: not allocated, a later write may find no space.
    pub const HOLE: u32 = 1 << 0;
    /// `base:allocation`: reads as zeros.
    pub const ZERO: u32 = 1 << 1;
    /// `qemu:dirty-bitmap:`: changed.
    pub const DIRTY: u32 = 1 << 0;
    /// `taipan:durability`: nothing is promised, not even after a power cut.
    pub const UNFLUSHED: u32 = 0;
    /// `taipan:durability`: durable on this machine only.
    pub const LOCAL_ONLY: u32 = 1;
    /// `taipan:durability`: durable in the backend.
    pub const REMOTE_DURABLE: u32 = 2;
    /// `taipan:residency`: only in the backend.
    pub const IN_BACKEND: u32 = 0;
    /// `taipan:residency`: on the local NVMe.
    pub const ON_NVME: u32 = 1;
    /// `taipan:residency`: in memory.
    pub const IN_MEMORY: u32 = 2;
}

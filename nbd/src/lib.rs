//! The NBD wire protocol, both sides, sans-IO: handshake, requests, replies, limits, errnos.
//!
//! Nothing here reads, writes, waits or allocates per request (texts of errors and block status go
//! into a buffer of the driver). A driver owns the socket and feeds bytes in; what is to be sent
//! comes out. The tables of the format are in `docs/internals/nbd.md`.
//!
//! * [`ServerHandshake`] and [`ClientHandshake`] take bytes in whatever pieces they arrive.
//! * [`RequestHeader::parse`] reads 28 bytes, [`validate`] decides every errno of the protocol, and
//!   [`simple_reply`] makes the 16 bytes of the answer.
//! * [`ServerHandshake::with_features`] also negotiates structured replies, extended headers and
//!   metadata contexts. Then [`Session::validate`] decides on [`Request`]s, and [`ReplyTo`],
//!   [`ReadReply`] and [`StatusChunk`] make the chunks of the answers. A client cuts them with
//!   [`ReplyReader`], reads them with [`Chunk::parse`] and judges them with [`ReplyTracker`].
//!
//! **Panic contract**: no input of the peer, in whatever order and length, makes a function of this
//! crate panic, or allocate more than its limits say. The fuzz target and its corpus see to that.
//!
//! ```
//! use taipan_nbd::{ExportInfo, Op, RequestHeader, simple_reply, validate};
//!
//! let export = ExportInfo::new("vol0", 1 << 30);
//! let wire = RequestHeader::read(7, 4096, 512).encode();
//! let header = RequestHeader::parse(&wire).expect("a request we made");
//! assert_eq!(validate(&header, &export), Ok(Op::Read { offset: 4096, len: 512 }));
//! assert_eq!(simple_reply(None, header.cookie).len(), 16);
//! ```

#![forbid(unsafe_code)]

mod chunk;
mod client;
mod codec;
mod command;
mod errno;
mod export;
mod framer;
pub mod fuzz;
pub mod protocol;
mod reply;
mod request;
mod server;
mod session;
mod validate;
mod wide_request;

pub use chunk::{
    EXTENDED_CHUNK_BYTES, EXTENTS_MAX, NoExtents, ReadReply, ReadReplyError, ReplyHead, ReplyTo,
    STRUCTURED_CHUNK_BYTES, StatusChunk,
};
pub use client::{
    Chunk, ClientAdvance, ClientEnd, ClientError, ClientExport, ClientHandshake, Goal,
    ListedExport, ReplyError, ReplyHeader, ReplyKind, ReplyProgress, ReplyReader, ReplyTracker,
    StatusExtent, StatusExtents, Wishes,
};
pub use command::{Command, StatusQuery, status_payload};
pub use errno::Errno;
pub use export::{
    Awaited, BlockSizes, ExportDirectory, ExportInfo, LookupError, PAYLOAD_BYTES_ACCEPTED,
    PAYLOAD_BYTES_ADVERTISED, TransmissionFlags,
};
pub use reply::{SIMPLE_REPLY_BYTES, SimpleReply, simple_reply};
pub use request::{BadMagic, REQUEST_BYTES, RequestHeader};
pub use server::{
    Advance, Features, HandshakeEnd, HandshakeError, HandshakeLimits, RefusedOption, Selected,
    ServerHandshake, TlsPolicy,
};
pub use session::{Agreement, CONTEXTS_MAX, ContextIds, HeaderStyle, MetaContext, Session};
pub use validate::{Op, Refusal, validate};
pub use wide_request::{EXTENDED_REQUEST_BYTES, LengthTooLong, Request};

//! Requests that may be served in a negotiated session, and a client's BLOCK_STATUS payload.

use crate::session::ContextIds;
use crate::validate::Op;

/// A request that may be served, whatever was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Everything but READ and BLOCK_STATUS.
    Op(Op),
    /// Send the content of the range, with [`ReadReply`](crate::ReadReply).
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`PAYLOAD_BYTES_ACCEPTED`](crate::PAYLOAD_BYTES_ACCEPTED).
        len: u32,
        /// In one piece, zeros written out.
        df: bool,
    },
    /// Describe the range, one [`StatusChunk`](crate::StatusChunk) a context.
    Status(StatusQuery),
    /// Read the payload, then ask [`Session::status_payload`](crate::Session::status_payload).
    StatusPayload {
        /// First byte.
        offset: u64,
        /// One extent a context.
        one: bool,
        /// Bytes of the payload that follows the header; a few hundred at most.
        payload: u32,
    },
}

/// A BLOCK_STATUS that may be served: the range lies inside the export and is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusQuery {
    /// First byte.
    pub offset: u64,
    /// Bytes; a hint of what the client cares for.
    pub len: u64,
    /// One extent a context, not longer than `len`.
    pub one: bool,
    /// Contexts to report.
    pub contexts: ContextIds,
}

/// The payload with which a client asks for the status of `len` bytes in some contexts only.
pub fn status_payload(len: u64, contexts: &[u32]) -> Vec<u8> {
    let mut payload = len.to_be_bytes().to_vec();
    payload.extend(contexts.iter().flat_map(|id| id.to_be_bytes()));
    payload
}

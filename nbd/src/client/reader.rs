//! Cuts the bytes of a server's transmission phase into replies.

use std::fmt;

use crate::codec::{be_u16, be_u32, be_u64};
use crate::errno::Errno;
use crate::framer::Framer;
use crate::protocol::{
    EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk_flag,
};
use crate::session::HeaderStyle;

/// Bytes of the magic that tells which header follows.
const MAGIC_BYTES: usize = 4;
/// Bytes of the headers behind their magic.
const SIMPLE_REST_BYTES: usize = 12;
const STRUCTURED_REST_BYTES: usize = 16;
const EXTENDED_REST_BYTES: usize = 28;

/// The header of a reply or of one of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The cookie of the request that this answers.
    pub cookie: u64,
    /// What it is.
    pub kind: ReplyKind,
}

/// What a [`ReplyHeader`] stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// The whole reply, except that the data of a successful READ follows when nothing was
    /// negotiated.
    Simple(Option<Errno>),
    /// A chunk.
    Chunk {
        /// One of [`chunk`](crate::protocol::chunk), or something unknown.
        kind: u16,
        /// The last one of its reply.
        done: bool,
        /// The offset of the request, which extended headers echo.
        echo: Option<u64>,
        /// Bytes of payload.
        payload: u32,
    },
}

/// The stream of a server is lost: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyError {
    /// A message breaks the protocol.
    Malformed(&'static str),
    /// A chunk claims more payload than the client could have asked for, in bytes.
    TooLong(u64),
    /// A message starts with what is no magic here.
    WrongMagic(u32),
}

/// Cuts a server's bytes into headers and payloads. Memory: one payload, and only as much of it as
/// has come.
#[derive(Debug)]
pub struct ReplyReader {
    style: HeaderStyle,
    payload_max: u32,
    framer: Framer,
    magic: Option<u32>,
    header: Option<ReplyHeader>,
}

impl ReplyReader {
    /// A reader for the style that was negotiated. `payload_max`: the longest payload of a chunk in
    /// bytes; 8 more than the longest READ, and enough for the extents of a BLOCK_STATUS.
    pub fn new(style: HeaderStyle, payload_max: u32) -> Self {
        Self {
            style,
            payload_max,
            framer: Framer::default(),
            magic: None,
            header: None,
        }
    }

    /// The next reply or chunk with its payload, taken from what is held and from the front of
    /// `input`, which is shortened. `None`: more bytes must come. The data of a simple READ reply
    /// is not taken; it is the caller's to read before the next call.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(ReplyHeader, &'a [u8])>, ReplyError> {
        let header = match self.header {
            Some(header) => header,
            None => match self.header(input)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        self.header = Some(header);
        let payload = match header.kind {
            ReplyKind::Simple(_) => 0,
            ReplyKind::Chunk { payload, .. } => payload,
        };
        match self.framer.take(input, payload as usize) {
            Some(payload) => {
                self.header = None;
                Ok(Some((header, payload)))
            }
            None => Ok(None),
        }
    }

    fn header(&mut self, input: &mut &[u8]) -> Result<Option<ReplyHeader>, ReplyError> {
        let magic = match self.magic {
            Some(magic) => magic,
            None => match self.framer.take(input, MAGIC_BYTES) {
                Some(bytes) => be_u32(bytes, 0),
                None => return Ok(None),
            },
        };
        let rest_bytes = match (magic, self.style) {
            (SIMPLE_REPLY_MAGIC, HeaderStyle::Simple | HeaderStyle::Structured) => {
                SIMPLE_REST_BYTES
            }
            (STRUCTURED_REPLY_MAGIC, HeaderStyle::Structured) => STRUCTURED_REST_BYTES,
            (EXTENDED_REPLY_MAGIC, HeaderStyle::Extended) => EXTENDED_REST_BYTES,
            _ => return Err(ReplyError::WrongMagic(magic)),
        };
        self.magic = Some(magic);
        let Some(rest) = self.framer.take(input, rest_bytes) else {
            return Ok(None);
        };
        self.magic = None;
        let (header, payload) = ReplyHeader::parse(magic, rest);
        if payload > u64::from(self.payload_max) {
            return Err(ReplyError::TooLong(payload));
        }
        Ok(Some(header))
    }
}

impl ReplyHeader {
    /// What follows one of the three magics, and the payload that it claims in bytes.
    fn parse(magic: u32, rest: &[u8]) -> (Self, u64) {
        if magic == SIMPLE_REPLY_MAGIC {
            let kind = ReplyKind::Simple(Errno::from_code(be_u32(rest, 0)));
            let cookie = be_u64(rest, 4);
            return (Self { cookie, kind }, 0);
        }
        let extended = magic == EXTENDED_REPLY_MAGIC;
        let payload = if extended {
            be_u64(rest, 20)
        } else {
            u64::from(be_u32(rest, 12))
        };
        let kind = ReplyKind::Chunk {
            kind: be_u16(rest, 2),
            done: be_u16(rest, 0) & chunk_flag::DONE != 0,
            echo: extended.then(|| be_u64(rest, 12)),
            payload: payload as u32,
        };
        let cookie = be_u64(rest, 4);
        (Self { cookie, kind }, payload)
    }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "the server broke the protocol: {what}"),
            Self::TooLong(bytes) => write!(f, "the server sends a chunk of {bytes} bytes"),
            Self::WrongMagic(magic) => {
                write!(
                    f,
                    "a reply starts with {magic:#010x}, which is no magic here"
                )
            }
        }
    }
}

impl std::error::Error for ReplyError {}

#[cfg(test)]
mod tests;

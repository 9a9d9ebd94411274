//! What a server sends in answer to one request: headers of replies and chunks, and errors.

mod read;
mod status;

use crate::codec::clip;
use crate::errno::Errno;
use crate::protocol::{EXTENDED_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, chunk_flag, command};
use crate::reply::simple_reply;
use crate::session::HeaderStyle;
use crate::wide_request::Request;

pub use read::{ReadReply, ReadReplyError};
pub use status::{EXTENTS_MAX, NoExtents, StatusChunk};

/// Bytes of the header of a structured chunk.
pub const STRUCTURED_CHUNK_BYTES: usize = 20;
/// Bytes of the header of an extended chunk.
pub const EXTENDED_CHUNK_BYTES: usize = 32;

/// Longest header with the fixed fields of a payload: those of a hole.
const HEAD_BYTES_MAX: usize = EXTENDED_CHUNK_BYTES + 12;

/// Bytes to send, made without allocating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl ReplyHead {
    fn new(bytes: &[u8]) -> Self {
        let mut head = Self {
            bytes: [0; HEAD_BYTES_MAX],
            len: 0,
        };
        head.push(bytes);
        head
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// The bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The request that is answered, as far as answers depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    style: HeaderStyle,
    command: u16,
    cookie: u64,
    offset: u64,
}

impl ReplyTo {
    /// Answers to `request` in a session of the style.
    #[inline]
    pub const fn new(style: HeaderStyle, request: &Request) -> Self {
        Self {
            style,
            command: request.command,
            cookie: request.cookie,
            offset: request.offset,
        }
    }

    /// Whether the reply is a simple one, without chunks.
    #[inline]
    pub const fn is_simple(self) -> bool {
        matches!(self.style, HeaderStyle::Simple)
    }

    /// Success without data, which ends the reply. With structured replies READ and BLOCK_STATUS
    /// get a chunk and all else the shorter simple reply.
    #[inline]
    pub fn success(self) -> ReplyHead {
        let simple = match self.style {
            HeaderStyle::Simple => true,
            HeaderStyle::Structured => {
                !matches!(self.command, command::READ | command::BLOCK_STATUS)
            }
            HeaderStyle::Extended => false,
        };
        if simple {
            return ReplyHead::new(&simple_reply(None, self.cookie));
        }
        self.chunk(chunk::NONE, true, 0)
    }

    /// An error of the whole request, which ends the reply. The text is for people and is cut at
    /// 4096 bytes; a simple reply has none.
    pub fn error(self, errno: Errno, text: &str, out: &mut Vec<u8>) {
        if self.style == HeaderStyle::Simple {
            out.extend_from_slice(&simple_reply(Some(errno), self.cookie));
            return;
        }
        self.error_chunk(chunk::ERROR, errno, text, &[], out);
    }

    /// An error at an offset of the export, which ends the reply. A simple reply has no offset.
    /// The offset must lie inside the request; [`ReadReply::fail`] sees to that for READ.
    pub fn error_at(self, errno: Errno, offset: u64, text: &str, out: &mut Vec<u8>) {
        if self.style == HeaderStyle::Simple {
            return self.error(errno, text, out);
        }
        self.error_chunk(chunk::ERROR_OFFSET, errno, text, &offset.to_be_bytes(), out);
    }

    fn error_chunk(self, kind: u16, errno: Errno, text: &str, tail: &[u8], out: &mut Vec<u8>) {
        let text = clip(text).as_bytes();
        let payload = 4 + 2 + text.len() + tail.len();
        out.extend_from_slice(self.chunk(kind, true, payload as u32).as_bytes());
        out.extend_from_slice(&errno.code().to_be_bytes());
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(text);
        out.extend_from_slice(tail);
    }

    /// The header of a chunk with `payload` bytes behind it. Not for simple replies.
    #[inline]
    fn chunk(self, kind: u16, done: bool, payload: u32) -> ReplyHead {
        debug_assert!(self.style.has_chunks(), "a chunk among simple replies");
        let extended = self.style == HeaderStyle::Extended;
        let magic = if extended {
            EXTENDED_REPLY_MAGIC
        } else {
            STRUCTURED_REPLY_MAGIC
        };
        let flags = if done { chunk_flag::DONE } else { 0 };
        let mut head = ReplyHead::new(&magic.to_be_bytes());
        head.push(&flags.to_be_bytes());
        head.push(&kind.to_be_bytes());
        head.push(&self.cookie.to_be_bytes());
        if extended {
            head.push(&self.offset.to_be_bytes());
            head.push(&u64::from(payload).to_be_bytes());
        } else {
            head.push(&payload.to_be_bytes());
        }
        head
    }
}

#[cfg(test)]
mod tests;

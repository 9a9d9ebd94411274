//! The reply to one READ, chunk by chunk, with the rules that chunks obey.

use std::fmt;

use super::{ReplyHead, ReplyTo};
use crate::errno::Errno;
use crate::protocol::chunk;
use crate::reply::simple_reply;
use crate::session::HeaderStyle;

/// The reply to one READ. Content goes out in rising order without gaps, so that nothing overlaps
/// or lies outside the request; the end is told exactly once, after which nothing more comes.
///
/// After an error of this type nothing was put out and the reply is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadReply {
    to: ReplyTo,
    start: u64,
    end: u64,
    /// First byte that was not sent.
    next: u64,
    df: bool,
    ended: bool,
}

/// Why something may not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadReplyError {
    /// A chunk of no bytes, or past the end of the request.
    OutOfRange,
    /// The client wants one piece, or knows no chunks: send all of the range as data.
    NotInPieces,
    /// The reply has ended.
    Ended,
    /// Part of the range was not sent.
    Unfinished,
    /// Success was told in a simple reply: the only honest way out is to close the connection.
    TooLate,
}

impl ReadReply {
    /// The reply to a READ that [`Session::validate`](crate::Session::validate) let through. The
    /// range lies inside the export, so its end does not overflow.
    pub const fn new(to: ReplyTo, offset: u64, len: u32, df: bool) -> Self {
        Self {
            to,
            start: offset,
            end: offset.saturating_add(len as u64),
            next: offset,
            df,
            ended: false,
        }
    }

    /// Bytes of the range that were not sent yet.
    pub const fn left(&self) -> u64 {
        self.end - self.next
    }

    /// The head of the next `len` bytes of data, which must follow. `certain`: the data lies in
    /// memory and cannot fail any more, so that the last piece may end the reply. Otherwise
    /// [`finish`](Self::finish) ends it.
    #[inline]
    pub fn data(&mut self, len: u32, certain: bool) -> Result<ReplyHead, ReadReplyError> {
        let offset = self.next;
        self.check_piece(len)?;
        if self.to.style == HeaderStyle::Simple {
            self.next = self.end;
            self.ended = true;
            return Ok(ReplyHead::new(&simple_reply(None, self.to.cookie)));
        }
        // 8 bytes more than 64 MiB at most: no overflow.
        let payload = len.saturating_add(8);
        self.next += u64::from(len);
        self.ended = certain && self.next == self.end;
        let mut head = self.to.chunk(chunk::OFFSET_DATA, self.ended, payload);
        head.push(&offset.to_be_bytes());
        Ok(head)
    }

    /// The next `len` bytes are zeros, known without reading: nothing follows the head.
    #[inline]
    pub fn hole(&mut self, len: u32) -> Result<ReplyHead, ReadReplyError> {
        if self.to.style == HeaderStyle::Simple {
            return Err(ReadReplyError::NotInPieces);
        }
        let offset = self.next;
        self.check_piece(len)?;
        self.next += u64::from(len);
        self.ended = self.next == self.end;
        let mut head = self.to.chunk(chunk::OFFSET_HOLE, self.ended, 12);
        head.push(&offset.to_be_bytes());
        head.push(&len.to_be_bytes());
        Ok(head)
    }

    /// Ends the reply: the chunk that says so, or nothing when the last piece said it. A READ of no
    /// bytes is answered by this alone.
    pub fn finish(&mut self) -> Result<Option<ReplyHead>, ReadReplyError> {
        if self.next != self.end {
            return Err(ReadReplyError::Unfinished);
        }
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        Ok(Some(self.to.success()))
    }

    /// Ends the reply with an error at the offset, which is brought inside the request. A chunk
    /// whose head was sent must be filled up first, with zeros.
    pub fn fail(
        &mut self,
        errno: Errno,
        offset: u64,
        text: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadReplyError> {
        if self.ended {
            return Err(match self.to.style {
                HeaderStyle::Simple => ReadReplyError::TooLate,
                HeaderStyle::Structured | HeaderStyle::Extended => ReadReplyError::Ended,
            });
        }
        self.ended = true;
        if self.start == self.end || errno == Errno::Overflow {
            self.to.error(errno, text, out);
        } else {
            let offset = offset.clamp(self.start, self.end - 1);
            self.to.error_at(errno, offset, text, out);
        }
        Ok(())
    }

    fn check_piece(&self, len: u32) -> Result<(), ReadReplyError> {
        if self.ended {
            return Err(ReadReplyError::Ended);
        }
        if len == 0 || u64::from(len) > self.left() {
            return Err(ReadReplyError::OutOfRange);
        }
        let whole = self.next == self.start && u64::from(len) == self.left();
        let one_piece = self.df || self.to.style == HeaderStyle::Simple;
        if one_piece && !whole {
            return Err(ReadReplyError::NotInPieces);
        }
        Ok(())
    }
}

impl fmt::Display for ReadReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "a piece of a read reply is empty or beyond the request",
            Self::NotInPieces => "this read reply must be one piece of data",
            Self::Ended => "the read reply had ended before",
            Self::Unfinished => "part of the read reply was not sent",
            Self::TooLate => "a read failed after its success was told: close the connection",
        })
    }
}

impl std::error::Error for ReadReplyError {}

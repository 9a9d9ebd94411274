//! Holds the chunks of one reply to the rules, as a careful client does.

use std::collections::{BTreeMap, BTreeSet};

use super::chunk::Chunk;
use super::reader::{ReplyError, ReplyHeader, ReplyKind};
use crate::errno::Errno;
use crate::protocol::{command, command_flag};
use crate::session::HeaderStyle;
use crate::wide_request::Request;

/// Most separate pieces and error offsets of one reply that are kept.
const PIECES_MAX: usize = 1 << 16;

/// The reply to one request so far. It remembers which bytes have come, not the bytes.
#[derive(Clone, Debug)]
pub struct ReplyTracker {
    style: HeaderStyle,
    request: Request,
    /// Contexts of a BLOCK_STATUS that have not come.
    contexts: Vec<u32>,
    /// Content that has come: begin to end, neighbours joined.
    covered: BTreeMap<u64, u64>,
    content_chunks: usize,
    /// Where errors were told.
    error_offsets: BTreeSet<u64>,
    errno: Option<Errno>,
    ended: bool,
}

/// How far a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyProgress {
    /// More chunks come.
    More,
    /// The reply is complete; `Err` is what the server said.
    Done(Result<(), Errno>),
}

impl ReplyTracker {
    /// Waits for the reply to `request`, as it was sent in a session of the style. `contexts`: the
    /// ids that a BLOCK_STATUS is about. `effect_len`: the bytes of the range, which the payload of
    /// a request tells and its header does not.
    pub fn new(style: HeaderStyle, request: Request, effect_len: u64, contexts: &[u32]) -> Self {
        let status = request.command == command::BLOCK_STATUS;
        Self {
            style,
            request: Request {
                length: effect_len,
                ..request
            },
            contexts: if status {
                contexts.to_vec()
            } else {
                Vec::new()
            },
            covered: BTreeMap::new(),
            content_chunks: 0,
            error_offsets: BTreeSet::new(),
            errno: None,
            ended: false,
        }
    }

    /// Takes in the next reply or chunk with the cookie of the request. `chunk` is `None` for a
    /// simple reply. After an error the stream is lost.
    pub fn take(
        &mut self,
        header: &ReplyHeader,
        chunk: Option<&Chunk<'_>>,
    ) -> Result<ReplyProgress, ReplyError> {
        if self.ended {
            return Err(ReplyError::Malformed("more after the end of a reply"));
        }
        let done = match (header.kind, chunk) {
            (ReplyKind::Simple(errno), _) => {
                self.simple(errno)?;
                true
            }
            (ReplyKind::Chunk { done, echo, .. }, Some(chunk)) => {
                if echo.is_some_and(|echo| echo != self.request.offset) {
                    return Err(ReplyError::Malformed("reply with the offset of another"));
                }
                self.chunk(chunk, done)?;
                done
            }
            (ReplyKind::Chunk { .. }, None) => {
                return Err(ReplyError::Malformed("chunk without content"));
            }
        };
        if !done {
            return Ok(ReplyProgress::More);
        }
        self.ended = true;
        match self.errno {
            Some(errno) => Ok(ReplyProgress::Done(Err(errno))),
            None if self.is_complete() => Ok(ReplyProgress::Done(Ok(()))),
            None => Err(ReplyError::Malformed("success with something missing")),
        }
    }

    /// Did all come that success promises?
    fn is_complete(&self) -> bool {
        match (self.request.command, self.style) {
            (command::READ, HeaderStyle::Structured | HeaderStyle::Extended) => {
                let Request { offset, length, .. } = self.request;
                length == 0 || self.covered.get(&offset) == offset.checked_add(length).as_ref()
            }
            (command::BLOCK_STATUS, _) => self.contexts.is_empty(),
            _ => true,
        }
    }

    fn simple(&mut self, errno: Option<Errno>) -> Result<(), ReplyError> {
        let read = self.request.command == command::READ;
        if self.content_chunks > 0 || read && self.style != HeaderStyle::Simple {
            return Err(ReplyError::Malformed("simple reply where chunks belong"));
        }
        self.errno = errno;
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>, done: bool) -> Result<(), ReplyError> {
        match *chunk {
            Chunk::None if done => Ok(()),
            Chunk::None => Err(ReplyError::Malformed("empty chunk that is not the last")),
            Chunk::Data { offset, data } => self.content(offset, data.len() as u64),
            Chunk::Hole { offset, len } => self.content(offset, u64::from(len)),
            Chunk::Status {
                context,
                ref extents,
            } => {
                let total = extents.iter().try_fold(0_u64, |sum, extent| {
                    // The last extent alone may reach past the request.
                    (sum < self.request.length).then_some(sum.saturating_add(extent.len))
                });
                let one = self.request.flags & command_flag::REQ_ONE != 0;
                let within = total.is_some_and(|total| !one || total <= self.request.length);
                let wide = self.style == HeaderStyle::Extended;
                let legal = within && (!one || extents.len() == 1) && extents.is_wide() == wide;
                self.status(context, legal)
            }
            Chunk::Error { errno, offset, .. } => self.error(errno, offset),
        }
    }

    fn content(&mut self, offset: u64, len: u64) -> Result<(), ReplyError> {
        const OUTSIDE: ReplyError = ReplyError::Malformed("content outside of the request");
        if self.request.command != command::READ {
            return Err(ReplyError::Malformed("content in the reply to no READ"));
        }
        let end = offset.checked_add(len).ok_or(OUTSIDE)?;
        let before = offset.checked_sub(self.request.offset).ok_or(OUTSIDE)?;
        if before > self.request.length || len > self.request.length - before {
            return Err(OUTSIDE);
        }
        self.content_chunks += 1;
        if self.request.flags & command_flag::DF != 0 && self.content_chunks > 1 {
            return Err(ReplyError::Malformed("fragments despite DF"));
        }
        let hits_error = self.error_offsets.range(offset..end).next().is_some();
        let left = self.covered.range(..end).next_back();
        if hits_error || left.is_some_and(|(_, left_end)| *left_end > offset) {
            return Err(ReplyError::Malformed("content that overlaps"));
        }
        self.cover(offset, end)
    }

    /// Adds a piece that overlaps none.
    fn cover(&mut self, begin: u64, end: u64) -> Result<(), ReplyError> {
        let mut begin = begin;
        let mut end = end;
        if let Some((left_begin, left_end)) = self.covered.range(..begin).next_back()
            && *left_end == begin
        {
            begin = *left_begin;
        }
        if let Some(right_end) = self.covered.remove(&end) {
            end = right_end;
        }
        self.covered.insert(begin, end);
        if self.covered.len() > PIECES_MAX {
            return Err(ReplyError::Malformed("reply in too many pieces"));
        }
        Ok(())
    }

    fn status(&mut self, context: u32, legal: bool) -> Result<(), ReplyError> {
        if !legal || self.request.command != command::BLOCK_STATUS {
            return Err(ReplyError::Malformed("status that breaks the request"));
        }
        let Some(at) = self.contexts.iter().position(|id| *id == context) else {
            return Err(ReplyError::Malformed("status of a context not asked for"));
        };
        self.contexts.swap_remove(at);
        self.content_chunks += 1;
        Ok(())
    }

    fn error(&mut self, errno: Errno, offset: Option<u64>) -> Result<(), ReplyError> {
        if let Some(offset) = offset {
            let Request {
                offset: start,
                length,
                ..
            } = self.request;
            let inside = offset.checked_sub(start).is_some_and(|at| at < length);
            if !inside || self.error_offsets.len() >= PIECES_MAX {
                return Err(ReplyError::Malformed("error outside of the request"));
            }
            self.error_offsets.insert(offset);
        }
        self.errno = self.errno.or(Some(errno));
        Ok(())
    }
}

#[cfg(test)]
mod tests;

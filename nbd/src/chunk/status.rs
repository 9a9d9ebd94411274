//! The chunk that describes a range in one metadata context.

use std::fmt;

use super::{ReplyHead, ReplyTo};
use crate::command::StatusQuery;
use crate::export::ExportInfo;
use crate::protocol::chunk;
use crate::session::HeaderStyle;

/// Most extents that one chunk holds: 1 MiB on the wire, 2 MiB with extended headers. The client
/// asks again from where they end.
pub const EXTENTS_MAX: u32 = 1 << 17;

/// Extents of 32 bits end on a boundary of at least this many bytes, so that a client that rounds
/// never sees 2^32 - 1.
const COMPACT_ALIGN_BYTES: u64 = 4096;

/// Writes the status of a range in one context, extent by extent, and keeps the rules: no empty
/// extents, equal neighbours merged, nothing past the end of the export, only the last extent may
/// reach past the request, and with REQ_ONE one extent that does not.
///
/// Memory: what is written to `out`, at most 16 bytes for each of [`EXTENTS_MAX`] extents.
#[derive(Debug)]
pub struct StatusChunk<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    to: ReplyTo,
    id: u32,
    one: bool,
    /// Bytes of the request that no extent covers yet.
    wanted: u64,
    /// Bytes up to the end of the export that no extent covers yet.
    room: u64,
    /// Longest extent that can be written, in bytes.
    extent_bytes_max: u64,
    pending: Extent,
    written: u32,
    full: bool,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    /// 0 when there is none.
    len: u64,
    status: u32,
}

/// A chunk without extents cannot be sent; nothing was written. Answer with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoExtents;

impl<'o> StatusChunk<'o> {
    /// Starts the chunk of context `id` behind what `out` holds. Only for sessions with chunks,
    /// which a [`StatusQuery`] proves.
    pub fn new(
        to: ReplyTo,
        query: &StatusQuery,
        id: u32,
        export: &ExportInfo,
        out: &'o mut Vec<u8>,
    ) -> Self {
        let align = u64::from(export.min_block).max(COMPACT_ALIGN_BYTES);
        let wide = to.style == HeaderStyle::Extended;
        let start = out.len();
        let chunk = Self {
            out,
            start,
            to,
            id,
            one: query.one,
            wanted: query.len,
            room: export.size.saturating_sub(query.offset),
            extent_bytes_max: if wide {
                u64::MAX
            } else {
                u64::from(u32::MAX) / align * align
            },
            pending: Extent { len: 0, status: 0 },
            written: 0,
            full: false,
        };
        let head = chunk.head(false, 0);
        chunk.out.extend_from_slice(head.as_bytes());
        chunk
    }

    /// The next `len` bytes have this status. `false`: more is of no use, because the request is
    /// covered or the chunk is full.
    pub fn push(&mut self, len: u64, status: u32) -> bool {
        let mut len = len.min(self.room);
        if self.one {
            len = len.min(self.wanted);
        }
        if self.full || len == 0 {
            return !self.full;
        }
        if self.pending.len > 0 && self.pending.status != status {
            if self.one || self.written + 1 >= EXTENTS_MAX {
                self.full = true;
                return false;
            }
            self.write_pending();
        }
        let fits = self.extent_bytes_max - self.pending.len;
        if len > fits {
            len = fits;
            self.full = true;
        }
        self.pending = Extent {
            len: self.pending.len + len,
            status,
        };
        self.room -= len;
        self.wanted = self.wanted.saturating_sub(len);
        self.full |= self.wanted == 0 || self.room == 0;
        !self.full
    }

    /// Ends the chunk, and with `done` the reply.
    pub fn finish(mut self, done: bool) -> Result<(), NoExtents> {
        if self.pending.len == 0 {
            self.out.truncate(self.start);
            return Err(NoExtents);
        }
        self.write_pending();
        let head_bytes = self.head(done, 0).as_bytes().len();
        let head = self.head(done, self.out.len() - self.start - head_bytes);
        self.out[self.start..self.start + head_bytes].copy_from_slice(head.as_bytes());
        Ok(())
    }

    fn write_pending(&mut self) {
        let Extent { len, status } = self.pending;
        if self.to.style == HeaderStyle::Extended {
            self.out.extend_from_slice(&len.to_be_bytes());
            self.out.extend_from_slice(&u64::from(status).to_be_bytes());
        } else {
            // No longer than `extent_bytes_max`.
            self.out.extend_from_slice(&(len as u32).to_be_bytes());
            self.out.extend_from_slice(&status.to_be_bytes());
        }
        self.written += 1;
        self.pending.len = 0;
    }

    /// Header, context id, and with extended headers the count.
    fn head(&self, done: bool, extents_bytes: usize) -> ReplyHead {
        let wide = self.to.style == HeaderStyle::Extended;
        let (kind, fixed_bytes) = if wide {
            (chunk::BLOCK_STATUS_EXT, 8)
        } else {
            (chunk::BLOCK_STATUS, 4)
        };
        // EXTENTS_MAX bounds it far below 32 bits.
        let payload = fixed_bytes + extents_bytes as u32;
        let mut head = self.to.chunk(kind, done, payload);
        head.push(&self.id.to_be_bytes());
        if wide {
            head.push(&self.written.to_be_bytes());
        }
        head
    }
}

impl fmt::Display for NoExtents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the status of a range without any extent cannot be sent")
    }
}

impl std::error::Error for NoExtents {}

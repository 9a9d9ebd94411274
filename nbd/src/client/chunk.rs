//! What the payload of a chunk says to a client.

use super::reader::ReplyError;
use crate::codec::{Cursor, be_u32, be_u64};
use crate::errno::Errno;
use crate::protocol::{STRING_BYTES_MAX, chunk};

/// A chunk of a reply. Data and extents stay where they were received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing: the reply ends.
    None,
    /// Content of a READ.
    Data {
        /// First byte.
        offset: u64,
        /// At least one byte.
        data: &'a [u8],
    },
    /// Zeros of a READ.
    Hole {
        /// First byte.
        offset: u64,
        /// Bytes, at least one.
        len: u32,
    },
    /// Status of the range that was asked about, in one context.
    Status {
        /// The context.
        context: u32,
        /// At least one extent.
        extents: StatusExtents<'a>,
    },
    /// The request failed.
    Error {
        /// Why.
        errno: Errno,
        /// Where, if the server told.
        offset: Option<u64>,
        /// The server's text; may be empty, invalid UTF-8 is replaced.
        text: String,
    },
}

/// One extent of a [`Chunk::Status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes, at least one.
    pub len: u64,
    /// Status, whose meaning is the context's.
    pub status: u64,
}

/// The extents of a [`Chunk::Status`], one after the other from the offset of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtents<'a> {
    /// A whole number of extents.
    bytes: &'a [u8],
    wide: bool,
}

impl<'a> Chunk<'a> {
    /// Reads the payload of a chunk of the type. Unknown errors are errors, everything else that is
    /// unknown loses the stream.
    pub fn parse(kind: u16, payload: &'a [u8]) -> Result<Self, ReplyError> {
        const SHORT: ReplyError = ReplyError::Malformed("chunk of the wrong length");
        let mut cursor = Cursor::new(payload);
        match kind {
            chunk::NONE if payload.is_empty() => Ok(Self::None),
            chunk::OFFSET_DATA => {
                let offset = cursor.u64().ok_or(SHORT)?;
                let data = cursor.rest();
                let ends = (data.len() as u64).checked_add(offset).is_some();
                (ends && !data.is_empty())
                    .then_some(Self::Data { offset, data })
                    .ok_or(SHORT)
            }
            chunk::OFFSET_HOLE => {
                let offset = cursor.u64().ok_or(SHORT)?;
                let len = cursor.u32().filter(|len| *len > 0).ok_or(SHORT)?;
                let ends = u64::from(len).checked_add(offset).is_some();
                (ends && cursor.is_empty())
                    .then_some(Self::Hole { offset, len })
                    .ok_or(SHORT)
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
                let wide = kind == chunk::BLOCK_STATUS_EXT;
                let context = cursor.u32().ok_or(SHORT)?;
                let count = if wide { cursor.u32() } else { Some(0) };
                let count = count.ok_or(SHORT)?;
                let extents = StatusExtents::parse(cursor.rest(), wide, count).ok_or(SHORT)?;
                Ok(Self::Status { context, extents })
            }
            _ if kind & chunk::ERROR_BIT != 0 => Self::parse_error(kind, cursor),
            chunk::NONE => Err(SHORT),
            _ => Err(ReplyError::Malformed("chunk of an unknown type")),
        }
    }

    fn parse_error(kind: u16, mut cursor: Cursor<'a>) -> Result<Self, ReplyError> {
        const BAD: ReplyError = ReplyError::Malformed("error chunk whose lengths lie");
        let errno = cursor.u32().and_then(Errno::from_code).ok_or(BAD)?;
        let len = usize::from(cursor.u16().ok_or(BAD)?);
        let text = cursor.take(len).ok_or(BAD)?;
        if len > STRING_BYTES_MAX {
            return Err(BAD);
        }
        let offset = match kind {
            chunk::ERROR_OFFSET => Some(cursor.u64().ok_or(BAD)?),
            _ => None,
        };
        Ok(Self::Error {
            errno,
            offset,
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

impl<'a> StatusExtents<'a> {
    /// `None` when there is no extent, part of one, an empty one, or a count that lies. The count
    /// may be left at 0.
    fn parse(bytes: &'a [u8], wide: bool, count: u32) -> Option<Self> {
        let extents = Self { bytes, wide };
        let whole = !bytes.is_empty() && bytes.len().is_multiple_of(extents.extent_bytes());
        let counted = count == 0 || count as usize == extents.len();
        (whole && counted && extents.iter().all(|extent| extent.len > 0)).then_some(extents)
    }

    const fn extent_bytes(self) -> usize {
        if self.wide { 16 } else { 8 }
    }

    /// How many extents there are.
    pub const fn len(self) -> usize {
        self.bytes.len() / self.extent_bytes()
    }

    /// Never: a chunk has an extent at least.
    pub const fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// The extents.
    pub fn iter(self) -> impl Iterator<Item = StatusExtent> + 'a {
        self.bytes
            .chunks_exact(self.extent_bytes())
            .map(move |bytes| {
                if self.wide {
                    StatusExtent {
                        len: be_u64(bytes, 0),
                        status: be_u64(bytes, 8),
                    }
                } else {
                    StatusExtent {
                        len: u64::from(be_u32(bytes, 0)),
                        status: u64::from(be_u32(bytes, 4)),
                    }
                }
            })
    }

    pub(super) const fn is_wide(self) -> bool {
        self.wide
    }
}

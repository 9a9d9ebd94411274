//! The 28-byte request header of the transmission phase.

use std::fmt;

use crate::codec::{be_u16, be_u32, be_u64};
use crate::protocol::{REQUEST_MAGIC, command, command_flag};

/// Bytes of a request header.
pub const REQUEST_BYTES: usize = 28;

/// Where the fields begin.
mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const FLAGS: usize = 4;
    pub(super) const COMMAND: usize = 6;
    pub(super) const COOKIE: usize = 8;
    pub(super) const OFFSET: usize = 16;
    pub(super) const LENGTH: usize = 24;
    pub(super) const END: usize = 28;
}

const _: () = assert!(field::END == REQUEST_BYTES);

/// A request as it stands on the wire, nothing checked but its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// One of [`command`], or something unknown.
    pub command: u16,
    /// Opaque to the server and echoed in the reply; not unique.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range; for WRITE also of the payload that follows.
    pub length: u32,
}

impl RequestHeader {
    /// Reads a header. A wrong magic means that the stream is lost: close without a reply.
    #[inline]
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        let magic = be_u32(bytes, field::MAGIC);
        if magic != REQUEST_MAGIC {
            return Err(BadMagic(magic));
        }
        Ok(Self {
            flags: be_u16(bytes, field::FLAGS),
            command: be_u16(bytes, field::COMMAND),
            cookie: be_u64(bytes, field::COOKIE),
            offset: be_u64(bytes, field::OFFSET),
            length: be_u32(bytes, field::LENGTH),
        })
    }

    /// The header's bytes.
    #[inline]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[field::MAGIC..field::FLAGS].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[field::FLAGS..field::COMMAND].copy_from_slice(&self.flags.to_be_bytes());
        bytes[field::COMMAND..field::COOKIE].copy_from_slice(&self.command.to_be_bytes());
        bytes[field::COOKIE..field::OFFSET].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[field::OFFSET..field::LENGTH].copy_from_slice(&self.offset.to_be_bytes());
        bytes[field::LENGTH..field::END].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Bytes of payload that follow this header on the wire.
    #[inline]
    pub const fn payload_len(&self) -> u32 {
        if self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }

    /// A READ of `length` bytes.
    pub const fn read(cookie: u64, offset: u64, length: u32) -> Self {
        Self {
            flags: 0,
            command: command::READ,
            cookie,
            offset,
            length,
        }
    }

    /// A WRITE; `length` bytes of payload must follow it.
    pub const fn write(cookie: u64, offset: u64, length: u32) -> Self {
        Self {
            flags: 0,
            command: command::WRITE,
            cookie,
            offset,
            length,
        }
    }

    /// A FLUSH.
    pub const fn flush(cookie: u64) -> Self {
        Self {
            flags: 0,
            command: command::FLUSH,
            cookie,
            offset: 0,
            length: 0,
        }
    }

    /// A TRIM.
    pub const fn trim(cookie: u64, offset: u64, length: u32) -> Self {
        Self {
            flags: 0,
            command: command::TRIM,
            cookie,
            offset,
            length,
        }
    }

    /// A CACHE.
    pub const fn cache(cookie: u64, offset: u64, length: u32) -> Self {
        Self {
            flags: 0,
            command: command::CACHE,
            cookie,
            offset,
            length,
        }
    }

    /// A WRITE_ZEROES that may make holes.
    pub const fn write_zeroes(cookie: u64, offset: u64, length: u32) -> Self {
        Self {
            flags: 0,
            command: command::WRITE_ZEROES,
            cookie,
            offset,
            length,
        }
    }

    /// A DISC; it gets no reply.
    pub const fn disconnect() -> Self {
        Self {
            flags: 0,
            command: command::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        }
    }

    /// The same with further [`command_flag`]s.
    pub const fn with_flags(self, flags: u16) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    /// The same with FUA: durable before the reply.
    pub const fn with_fua(self) -> Self {
        self.with_flags(command_flag::FUA)
    }
}

/// A request did not start with the request magic: the stream is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMagic(pub u32);

impl fmt::Display for BadMagic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "message starts with {:#010x}, which is no NBD magic expected here",
            self.0
        )
    }
}

impl std::error::Error for BadMagic {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_golden_bytes_of_a_write() {
        let header = RequestHeader::write(0x0102_0304_0506_0708, 0x1000, 0x200).with_fua();
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(header.encode(), bytes);
        assert_eq!(RequestHeader::parse(&bytes), Ok(header));
        assert_eq!(header.payload_len(), 0x200);
        assert_eq!(RequestHeader::read(0, 0, 7).payload_len(), 0);
    }

    proptest! {
        #[test]
        fn every_header_survives_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32,
        ) {
            let header = RequestHeader { flags, command, cookie, offset, length };
            prop_assert_eq!(RequestHeader::parse(&header.encode()), Ok(header));
        }

        #[test]
        fn a_wrong_magic_is_refused(magic: u32, rest: [u8; 24]) {
            prop_assume!(magic != REQUEST_MAGIC);
            let mut bytes = [0; REQUEST_BYTES];
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            bytes[4..].copy_from_slice(&rest);
            prop_assert_eq!(RequestHeader::parse(&bytes), Err(BadMagic(magic)));
        }
    }
}

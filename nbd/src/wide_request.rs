//! A request with a 64-bit length: what both request headers become, and the extended header.

use std::fmt;

use crate::codec::{be_u16, be_u32, be_u64};
use crate::protocol::{EXTENDED_REQUEST_MAGIC, command, command_flag};
use crate::request::{BadMagic, REQUEST_BYTES, RequestHeader};
use crate::session::HeaderStyle;

/// Bytes of an extended request header.
pub const EXTENDED_REQUEST_BYTES: usize = 32;

/// Where the fields begin.
mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const FLAGS: usize = 4;
    pub(super) const COMMAND: usize = 6;
    pub(super) const COOKIE: usize = 8;
    pub(super) const OFFSET: usize = 16;
    pub(super) const LENGTH: usize = 24;
    pub(super) const END: usize = 32;
}

const _: () = assert!(field::END == EXTENDED_REQUEST_BYTES);

/// A request, nothing checked but its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// One of [`command`], or something unknown.
    pub command: u16,
    /// Opaque to the server and echoed in the reply; not unique.
    pub cookie: u64,
    /// First byte of the range. Extended replies echo it.
    pub offset: u64,
    /// Bytes of the range, or of the payload ([`payload_len`](Self::payload_len) knows).
    pub length: u64,
}

impl From<RequestHeader> for Request {
    #[inline]
    fn from(header: RequestHeader) -> Self {
        Self {
            flags: header.flags,
            command: header.command,
            cookie: header.cookie,
            offset: header.offset,
            length: u64::from(header.length),
        }
    }
}

impl Request {
    /// Reads the header of the style from the front of `bytes`. `None`: more bytes are needed,
    /// [`HeaderStyle::request_bytes`] in all. A wrong magic means that the stream is lost: close
    /// without a reply.
    #[inline]
    pub fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Option<Self>, BadMagic> {
        if style == HeaderStyle::Extended {
            return match bytes.first_chunk::<EXTENDED_REQUEST_BYTES>() {
                Some(header) => Self::parse_extended(header).map(Some),
                None => Ok(None),
            };
        }
        match bytes.first_chunk::<REQUEST_BYTES>() {
            Some(header) => RequestHeader::parse(header).map(|header| Some(header.into())),
            None => Ok(None),
        }
    }

    /// Reads an extended header.
    #[inline]
    pub fn parse_extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<Self, BadMagic> {
        let magic = be_u32(bytes, field::MAGIC);
        if magic != EXTENDED_REQUEST_MAGIC {
            return Err(BadMagic(magic));
        }
        Ok(Self {
            flags: be_u16(bytes, field::FLAGS),
            command: be_u16(bytes, field::COMMAND),
            cookie: be_u64(bytes, field::COOKIE),
            offset: be_u64(bytes, field::OFFSET),
            length: be_u64(bytes, field::LENGTH),
        })
    }

    /// The bytes of an extended header, flags as they are.
    #[inline]
    pub fn encode_extended(&self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let mut bytes = [0; EXTENDED_REQUEST_BYTES];
        bytes[field::MAGIC..field::FLAGS].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        bytes[field::FLAGS..field::COMMAND].copy_from_slice(&self.flags.to_be_bytes());
        bytes[field::COMMAND..field::COOKIE].copy_from_slice(&self.command.to_be_bytes());
        bytes[field::COOKIE..field::OFFSET].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[field::OFFSET..field::LENGTH].copy_from_slice(&self.offset.to_be_bytes());
        bytes[field::LENGTH..field::END].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Appends the header as a client of the style sends it; the payload, if any, must follow. With
    /// extended headers a WRITE gets the PAYLOAD_LEN flag that it must have there.
    pub fn append(&self, style: HeaderStyle, out: &mut Vec<u8>) -> Result<(), LengthTooLong> {
        if style == HeaderStyle::Extended {
            let mut request = *self;
            if request.command == command::WRITE {
                request.flags |= command_flag::PAYLOAD_LEN;
            }
            out.extend_from_slice(&request.encode_extended());
            return Ok(());
        }
        let header = RequestHeader {
            flags: self.flags,
            command: self.command,
            cookie: self.cookie,
            offset: self.offset,
            length: u32::try_from(self.length).map_err(|_| LengthTooLong(self.length))?,
        };
        out.extend_from_slice(&header.encode());
        Ok(())
    }

    /// Bytes of payload that follow this header on the wire. With extended headers a WRITE must
    /// have the PAYLOAD_LEN flag; QEMU 10.0.2 leaves it out and sends the payload all the same.
    #[inline]
    pub fn payload_len(&self, style: HeaderStyle) -> u64 {
        let flagged = style == HeaderStyle::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        if flagged || self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }

    /// A BLOCK_STATUS of `length` bytes for all contexts of the session.
    pub const fn block_status(cookie: u64, offset: u64, length: u64) -> Self {
        Self {
            flags: 0,
            command: command::BLOCK_STATUS,
            cookie,
            offset,
            length,
        }
    }

    /// A BLOCK_STATUS whose payload of `payload` bytes, made by
    /// [`status_payload`](crate::status_payload), follows.
    pub const fn block_status_of(cookie: u64, offset: u64, payload: u32) -> Self {
        Self {
            flags: command_flag::PAYLOAD_LEN,
            command: command::BLOCK_STATUS,
            cookie,
            offset,
            length: payload as u64,
        }
    }
}

/// A request cannot be sent without extended headers: its length does not fit into 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthTooLong(pub u64);

impl fmt::Display for LengthTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a request of {} bytes needs extended headers, which the server does not serve",
            self.0
        )
    }
}

impl std::error::Error for LengthTooLong {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_golden_bytes_of_an_extended_write() {
        let write = Request::from(RequestHeader::write(0x0102_0304_0506_0708, 0x1000, 0x200));
        let mut out = Vec::new();
        write
            .append(HeaderStyle::Extended, &mut out)
            .expect("64 bits");
        let bytes = [
            0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10,
            0, 0, 0, 0, 0, 0, 0, 2, 0,
        ];
        assert_eq!(out, bytes);
        let read_back = Request::parse(HeaderStyle::Extended, &bytes);
        let read_back = read_back.expect("the magic").expect("all 32 bytes");
        assert_eq!(read_back.payload_len(HeaderStyle::Extended), 0x200);
        assert_eq!(read_back.length, 0x200);
    }

    #[test]
    fn the_payload_is_told_by_the_flag_or_by_the_command() {
        let status = Request::block_status_of(1, 0, 12);
        let write = Request::from(RequestHeader::write(1, 0, 9));
        let rows = [
            (status, HeaderStyle::Simple, 0),
            (status, HeaderStyle::Structured, 0),
            (status, HeaderStyle::Extended, 12),
            (write, HeaderStyle::Simple, 9),
            (write, HeaderStyle::Structured, 9),
            (write, HeaderStyle::Extended, 9),
        ];
        for (request, style, payload) in rows {
            assert_eq!(request.payload_len(style), payload, "{style:?} {request:?}");
        }
    }

    #[test]
    fn a_length_of_64_bits_needs_extended_headers() {
        let status = Request::block_status(1, 0, 1 << 32);
        for style in [HeaderStyle::Simple, HeaderStyle::Structured] {
            let refused = status.append(style, &mut Vec::new());
            assert_eq!(refused, Err(LengthTooLong(1 << 32)));
        }
        assert_eq!(
            status.append(HeaderStyle::Extended, &mut Vec::new()),
            Ok(())
        );
    }

    proptest! {
        #[test]
        fn every_header_survives_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u64,
        ) {
            let request = Request { flags, command, cookie, offset, length };
            let bytes = request.encode_extended();
            prop_assert_eq!(Request::parse_extended(&bytes), Ok(request));
            prop_assert_eq!(Request::parse(HeaderStyle::Extended, &bytes[..31]), Ok(None));
            let compact = RequestHeader { flags, command, cookie, offset, length: length as u32 };
            let read = Request::parse(HeaderStyle::Structured, &compact.encode());
            prop_assert_eq!(read, Ok(Some(compact.into())));
        }

        #[test]
        fn the_other_styles_magic_is_refused(bytes: [u8; 32]) {
            prop_assume!(bytes[..4] != EXTENDED_REQUEST_MAGIC.to_be_bytes());
            prop_assert!(Request::parse(HeaderStyle::Extended, &bytes).is_err());
            let compact = RequestHeader::read(1, 2, 3).encode();
            let padded = [&compact[..], &[0; 4]].concat();
            prop_assert!(Request::parse(HeaderStyle::Extended, &padded).is_err());
        }
    }
}

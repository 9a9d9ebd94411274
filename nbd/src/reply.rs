//! The 16-byte simple reply, made by the server and read by the client.

use crate::codec::{be_u32, be_u64};
use crate::errno::Errno;
use crate::protocol::SIMPLE_REPLY_MAGIC;
use crate::request::BadMagic;

/// Bytes of a simple reply; the data of a successful READ follows them.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// Where the fields begin.
mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const ERROR: usize = 4;
    pub(super) const COOKIE: usize = 8;
    pub(super) const END: usize = 16;
}

const _: () = assert!(field::END == SIMPLE_REPLY_BYTES);

/// The bytes of a reply: success for `None`.
///
/// After a reply of success to a READ exactly the requested data must follow. When that turns out
/// to be impossible the only honest way out is to close the connection.
#[inline]
pub fn simple_reply(errno: Option<Errno>, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    let code = match errno {
        Some(errno) => errno.code(),
        None => 0,
    };
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[field::MAGIC..field::ERROR].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[field::ERROR..field::COOKIE].copy_from_slice(&code.to_be_bytes());
    bytes[field::COOKIE..field::END].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// A simple reply as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// The cookie of the request that this answers.
    pub cookie: u64,
    /// `None` for success.
    pub errno: Option<Errno>,
}

impl SimpleReply {
    /// Reads a reply. A wrong magic means that the stream is lost.
    #[inline]
    pub fn parse(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Result<Self, BadMagic> {
        let magic = be_u32(bytes, field::MAGIC);
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(BadMagic(magic));
        }
        Ok(Self {
            cookie: be_u64(bytes, field::COOKIE),
            errno: Errno::from_code(be_u32(bytes, field::ERROR)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_golden_bytes_of_a_refusal() {
        let bytes = simple_reply(Some(Errno::NoSpc), 0x0102_0304_0506_0708);
        assert_eq!(
            bytes,
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]
        );
    }

    proptest! {
        #[test]
        fn every_reply_survives_the_wire(cookie: u64, which in 0..=Errno::ALL.len()) {
            let errno = Errno::ALL.get(which).copied();
            let reply = SimpleReply::parse(&simple_reply(errno, cookie));
            prop_assert_eq!(reply, Ok(SimpleReply { cookie, errno }));
        }

        #[test]
        fn a_wrong_magic_is_refused(bytes: [u8; SIMPLE_REPLY_BYTES]) {
            prop_assume!(bytes[..4] != SIMPLE_REPLY_MAGIC.to_be_bytes());
            prop_assert!(SimpleReply::parse(&bytes).is_err());
        }
    }
}

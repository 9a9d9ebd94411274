//! The heads of replies, in the style that was negotiated; the data behind them is not copied.

use anyhow::{Result, bail, ensure};
use taipan_nbd::protocol::{
    EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, chunk_flag,
};
use taipan_nbd::{
    EXTENDED_CHUNK_BYTES, Errno, HeaderStyle, SIMPLE_REPLY_BYTES, STRUCTURED_CHUNK_BYTES,
};

/// Bytes of the offset before data, and of offset and length of a hole.
const DATA_HEAD_BYTES: usize = 8;
const HOLE_BYTES: usize = 12;

/// A simple reply, or a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the request.
    pub(crate) cookie: u64,
    /// What it says.
    pub(crate) says: Says,
    /// Nothing more follows of this reply, behind the data.
    pub(crate) last: bool,
    /// Bytes of the head.
    pub(crate) bytes: usize,
}

/// What a [`Head`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// Success; all data of a READ follows if the style is simple.
    Success,
    /// So many bytes of data follow, from that offset of the export on.
    Data(u64, usize),
    /// So many zeros are at that offset.
    Hole(u64, usize),
    /// The request failed. So many bytes of explanation follow.
    Failure(Errno, usize),
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn failure(code: u32) -> Result<Errno> {
    match Errno::from_code(code) {
        Some(errno) => Ok(errno),
        None => bail!("the server sends an error chunk without an error"),
    }
}

impl Head {
    /// The head at the front of `bytes`; `None` if that is not all of it.
    pub(crate) fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.len() < SIMPLE_REPLY_BYTES {
            return Ok(None);
        }
        let magic = be_u32(bytes, 0);
        match (magic, style) {
            (SIMPLE_REPLY_MAGIC, HeaderStyle::Simple | HeaderStyle::Structured) => {
                let says = match Errno::from_code(be_u32(bytes, 4)) {
                    Some(errno) => Says::Failure(errno, 0),
                    None => Says::Success,
                };
                Ok(Some(Self {
                    cookie: be_u64(bytes, 8),
                    says,
                    last: true,
                    bytes: SIMPLE_REPLY_BYTES,
                }))
            }
            (STRUCTURED_REPLY_MAGIC, HeaderStyle::Structured) => {
                Self::chunk(bytes, STRUCTURED_CHUNK_BYTES)
            }
            (EXTENDED_REPLY_MAGIC, HeaderStyle::Extended) => {
                Self::chunk(bytes, EXTENDED_CHUNK_BYTES)
            }
            _ => bail!("the reply stream is broken: {magic:#010x} is no magic here"),
        }
    }

    fn chunk(bytes: &[u8], head_bytes: usize) -> Result<Option<Self>> {
        if bytes.len() < head_bytes {
            return Ok(None);
        }
        // The low half of a longer length; what it says more is more than any chunk has.
        let payload = be_u32(bytes, head_bytes - 4) as usize;
        let kind = u16::from_be_bytes([bytes[6], bytes[7]]);
        let inner = match kind {
            chunk::NONE => 0,
            chunk::OFFSET_DATA => DATA_HEAD_BYTES,
            chunk::OFFSET_HOLE => HOLE_BYTES,
            kind if kind & chunk::ERROR_BIT != 0 => 4,
            kind => bail!("the server answers with a chunk of type {kind}"),
        };
        ensure!(payload >= inner, "a chunk of type {kind} is too short");
        let end = head_bytes + inner;
        if bytes.len() < end {
            return Ok(None);
        }
        let says = match kind {
            chunk::NONE => Says::Success,
            chunk::OFFSET_DATA => Says::Data(be_u64(bytes, head_bytes), payload - inner),
            chunk::OFFSET_HOLE => {
                let len = be_u32(bytes, head_bytes + DATA_HEAD_BYTES) as usize;
                Says::Hole(be_u64(bytes, head_bytes), len)
            }
            _ => Says::Failure(failure(be_u32(bytes, head_bytes))?, payload - inner),
        };
        let flags = u16::from_be_bytes([bytes[4], bytes[5]]);
        Ok(Some(Self {
            cookie: be_u64(bytes, 8),
            says,
            last: flags & chunk_flag::DONE != 0,
            bytes: end,
        }))
    }
}

#[cfg(test)]
mod tests {
    use taipan_nbd::{ReadReply, ReplyTo, Request};

    use super::*;

    fn request() -> Request {
        Request {
            flags: 0,
            command: 0,
            cookie: 9,
            offset: 4096,
            length: 100,
        }
    }

    #[test]
    fn chunks_of_both_styles_say_what_the_server_said() {
        for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
            let to = ReplyTo::new(style, &request());
            let mut reply = ReadReply::new(to, 4096, 100, false);
            let data = reply.data(60, true).unwrap();
            let hole = reply.hole(40).unwrap();
            let (success, mut failure) = (to.success(), Vec::new());
            to.error(Errno::Io, "why", &mut failure);
            let rows = [
                (data.as_bytes(), Says::Data(4096, 60), false),
                (hole.as_bytes(), Says::Hole(4156, 40), true),
                (success.as_bytes(), Says::Success, true),
                (&failure[..], Says::Failure(Errno::Io, 2 + 3), true),
            ];
            for (bytes, says, last) in rows {
                let head = Head::parse(style, bytes).unwrap().unwrap();
                assert_eq!((head.cookie, head.says, head.last), (9, says, last));
                for cut in 0..head.bytes {
                    assert_eq!(Head::parse(style, &bytes[..cut]).unwrap(), None);
                }
            }
            assert!(Head::parse(HeaderStyle::Simple, data.as_bytes()).is_err());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let to = ReplyTo::new(HeaderStyle::Structured, &request());
        let mut bytes = to.success().as_bytes().to_vec();
        for (at, value) in [(7, 5), (7, chunk::OFFSET_DATA as u8), (0, 1)] {
            let before = std::mem::replace(&mut bytes[at], value);
            assert!(Head::parse(HeaderStyle::Structured, &bytes).is_err());
            bytes[at] = before;
        }
    }
}

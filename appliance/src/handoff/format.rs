//! The messages of a hand-off as bytes (`docs/internals/handoff.md`). Little endian, every frame
//! with a version and a checksum; what does not parse ends the hand-off and nothing else.

mod codec;
mod passed;

#[cfg(test)]
mod tests;

use std::fmt;

use codec::{Reader, Writer};
pub use passed::{Begun, Passed};

/// First bytes of a frame.
pub const FRAME_MAGIC: [u8; 8] = *b"TAIPHAND";
/// Version of frames and of what is in them.
pub const FRAME_VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 32;
/// Longest body. A connection of which more waits is closed instead.
pub const BODY_BYTES_MAX: usize = 256 << 20;

/// Where the fields of a header begin.
mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 8;
    pub(super) const KIND: usize = 10;
    pub(super) const BODY_LEN: usize = 12;
    pub(super) const RESERVED: usize = 16;
    pub(super) const CRC: usize = 28;
    pub(super) const END: usize = 32;
}

const _: () = assert!(field::END == HEADER_BYTES);

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const WELCOME: u16 = 2;
    pub(super) const LISTENER: u16 = 3;
    pub(super) const SWITCH: u16 = 4;
    pub(super) const CONNECTION: u16 = 5;
    pub(super) const PARKED: u16 = 6;
    pub(super) const TAKEN: u16 = 7;
    pub(super) const RELEASED: u16 = 8;
    pub(super) const REFUSED: u16 = 9;
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// Not one of ours at all.
    Magic,
    /// Of another version, which is told.
    Version(u16),
    /// The checksum is wrong.
    Checksum,
    /// A length, a number or a text cannot be.
    Content,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "not a message of a hand-off"),
            Self::Version(version) => write!(
                f,
                "a message of version {version}, and this program knows {FRAME_VERSION}; restart \
                 the daemon instead"
            ),
            Self::Checksum => write!(f, "a message with a wrong checksum"),
            Self::Content => write!(f, "a message that makes no sense"),
        }
    }
}

impl std::error::Error for BadFrame {}

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Clients of NBD.
    Nbd = 0,
    /// The control API.
    Control = 1,
    /// Metrics and health.
    Metrics = 2,
    /// The next hand-off.
    HandOff = 3,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Nbd, Self::Control, Self::Metrics, Self::HandOff];

    /// The name in `LISTEN_FDNAMES`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Control => "control",
            Self::Metrics => "metrics",
            Self::HandOff => "handoff",
        }
    }
}

/// A listening socket; its descriptor comes with the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerNote {
    /// What it is for.
    pub purpose: Purpose,
    /// The service manager made it, so it is used whatever the configuration says.
    pub activated: bool,
    /// The absolute path of a unix socket; empty: TCP.
    pub path: String,
}

/// A message of a hand-off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A successor introduces itself.
    Hello {
        /// Its process.
        pid: u32,
        /// Its release, for the log.
        release: String,
    },
    /// The predecessor agrees; with the lock of the data directory.
    Welcome {
        /// Its process.
        pid: u32,
        /// Its release, for the log.
        release: String,
        /// Listeners that came before.
        listeners: u32,
    },
    /// With a listening socket.
    Listener(ListenerNote),
    /// The successor has prepared everything that can be prepared.
    Switch,
    /// With the socket of a client.
    Connection(Box<Passed>),
    /// Nothing is served any more, everything answered is durable.
    Parked {
        /// Connections that came before.
        connections: u32,
    },
    /// The successor has all of it: the point of no return.
    Taken,
    /// The WAL files are free.
    Released,
    /// It does not go on, and why.
    Refused(String),
}

/// The header of a frame whose body is still to come.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    kind: u16,
    body_len: usize,
    crc: u32,
    bytes_crc: u32,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BadFrame> {
        if bytes[field::MAGIC..field::VERSION] != FRAME_MAGIC {
            return Err(BadFrame::Magic);
        }
        let mut reader = Reader::new(&bytes[field::VERSION..]);
        let version = reader.u16()?;
        if version != FRAME_VERSION {
            return Err(BadFrame::Version(version));
        }
        let kind = reader.u16()?;
        let body_len = reader.u32()? as usize;
        if body_len > BODY_BYTES_MAX || bytes[field::RESERVED..field::CRC] != [0; 12] {
            return Err(BadFrame::Content);
        }
        Ok(Self {
            kind,
            body_len,
            crc: Reader::new(&bytes[field::CRC..]).u32()?,
            bytes_crc: crc32c::crc32c(&bytes[..field::CRC]),
        })
    }

    /// Bytes that follow.
    pub fn body_len(&self) -> usize {
        self.body_len
    }
}

impl Message {
    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::after(HEADER_BYTES);
        let kind = self.write_body(&mut writer);
        let mut frame = writer.into_bytes();
        let body_len = (frame.len() - HEADER_BYTES) as u32;
        frame[field::MAGIC..field::VERSION].copy_from_slice(&FRAME_MAGIC);
        frame[field::VERSION..field::KIND].copy_from_slice(&FRAME_VERSION.to_le_bytes());
        frame[field::KIND..field::BODY_LEN].copy_from_slice(&kind.to_le_bytes());
        frame[field::BODY_LEN..field::RESERVED].copy_from_slice(&body_len.to_le_bytes());
        let crc = crc32c::crc32c(&frame[..field::CRC]);
        let crc = crc32c::crc32c_append(crc, &frame[HEADER_BYTES..]);
        frame[field::CRC..field::END].copy_from_slice(&crc.to_le_bytes());
        frame
    }

    fn write_body(&self, writer: &mut Writer) -> u16 {
        match self {
            Self::Hello { pid, release } => {
                writer.u32(*pid);
                writer.text(release);
                kind::HELLO
            }
            Self::Welcome {
                pid,
                release,
                listeners,
            } => {
                writer.u32(*pid);
                writer.u32(*listeners);
                writer.text(release);
                kind::WELCOME
            }
            Self::Listener(note) => {
                writer.u8(note.purpose as u8);
                writer.u8(u8::from(note.activated));
                writer.text(&note.path);
                kind::LISTENER
            }
            Self::Switch => kind::SWITCH,
            Self::Connection(passed) => {
                passed.write(writer);
                kind::CONNECTION
            }
            Self::Parked { connections } => {
                writer.u32(*connections);
                kind::PARKED
            }
            Self::Taken => kind::TAKEN,
            Self::Released => kind::RELEASED,
            Self::Refused(why) => {
                writer.text(why);
                kind::REFUSED
            }
        }
    }

    /// Reads the body that belongs to a header.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, BadFrame> {
        if body.len() != header.body_len {
            return Err(BadFrame::Content);
        }
        if crc32c::crc32c_append(header.bytes_crc, body) != header.crc {
            return Err(BadFrame::Checksum);
        }
        let mut reader = Reader::new(body);
        let message = Self::read_body(header.kind, &mut reader)?;
        reader.end()?;
        Ok(message)
    }

    fn read_body(kind: u16, reader: &mut Reader<'_>) -> Result<Self, BadFrame> {
        Ok(match kind {
            kind::HELLO => Self::Hello {
                pid: reader.u32()?,
                release: reader.text()?,
            },
            kind::WELCOME => {
                let (pid, listeners) = (reader.u32()?, reader.u32()?);
                let release = reader.text()?;
                Self::Welcome {
                    pid,
                    release,
                    listeners,
                }
            }
            kind::LISTENER => {
                let purpose = Purpose::ALL.get(usize::from(reader.u8()?));
                Self::Listener(ListenerNote {
                    purpose: *purpose.ok_or(BadFrame::Content)?,
                    activated: reader.flag()?,
                    path: reader.text()?,
                })
            }
            kind::SWITCH => Self::Switch,
            kind::CONNECTION => Self::Connection(Box::new(Passed::read(reader)?)),
            kind::PARKED => Self::Parked {
                connections: reader.u32()?,
            },
            kind::TAKEN => Self::Taken,
            kind::RELEASED => Self::Released,
            kind::REFUSED => Self::Refused(reader.text()?),
            _ => return Err(BadFrame::Content),
        })
    }
}

/// The entry of the fuzz target: whatever the bytes, no panic, and what is read is written as it
/// was. The checksum is put right first, so that what lies behind it is reached.
pub fn fuzz(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let mut header = *header;
    header[field::MAGIC..field::VERSION].copy_from_slice(&FRAME_MAGIC);
    header[field::VERSION..field::KIND].copy_from_slice(&FRAME_VERSION.to_le_bytes());
    header[field::BODY_LEN..field::RESERVED].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[field::RESERVED..field::CRC].fill(0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..field::CRC]), body);
    header[field::CRC..].copy_from_slice(&crc.to_le_bytes());
    let Ok(read) = Header::decode(&header) else {
        return;
    };
    if let Ok(message) = Message::decode(&read, body) {
        let again = message.encode();
        assert_eq!(again[..HEADER_BYTES], header);
        assert_eq!(&again[HEADER_BYTES..], body);
    }
}

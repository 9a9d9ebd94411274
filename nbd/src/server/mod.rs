//! The server's side of the handshake: bytes in, bytes and a decision out.

mod answer;
mod features;
mod limits;
mod negotiation;
mod refused;
mod tls;

use std::fmt;
use std::mem;

use crate::codec::{be_u32, be_u64};
use crate::export::{Awaited, ExportDirectory, ExportInfo};
use crate::framer::Framer;
use crate::protocol::{
    CLIENT_FLAGS_BYTES, GREETING_BYTES, NBD_MAGIC, OPTION_HEADER_BYTES, OPTION_MAGIC,
    STRING_BYTES_MAX, handshake_flag, option,
};
use crate::session::Session;

use negotiation::Negotiated;
use tls::Tls;

pub use features::Features;
pub use limits::HandshakeLimits;
pub use refused::RefusedOption;
pub use tls::TlsPolicy;

/// One call of [`ServerHandshake::advance`] stops at the next option once it has put out this many
/// bytes, so that a driver can send before it lets the client ask for more.
const OUTPUT_PAUSE_BYTES: usize = 64 << 10;

/// Every export that a LIST named allows this many further options: clients that list (`qemu-nbd
/// -L`) ask for each export on the same connection.
const OPTIONS_PER_LISTED_EXPORT: u32 = 4;

/// The first two bytes of a TLS connection: a record of a handshake, version 3.
const TLS_HELLO: u32 = 0x1603;

/// The handshake of one connection, from the greeting to the transmission phase or the end.
///
/// Send [`greeting`](Self::greeting), then feed [`advance`](Self::advance) with what arrives. The
/// deadline of the handshake is the driver's.
#[derive(Debug)]
pub struct ServerHandshake {
    limits: HandshakeLimits,
    features: Features,
    stage: Stage,
    framer: Framer,
    client: ClientFlags,
    negotiated: Negotiated,
    tls: Tls,
    /// Options seen, those being read included.
    options: u32,
    /// Most exports that one LIST has named.
    listed_max: u32,
    /// Data of the option in [`Stage::Held`].
    held: Vec<u8>,
    /// Options that were refused and not asked about.
    refused: Vec<RefusedOption>,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ClientFlags,
    OptionHeader,
    /// The data of an option that is looked at.
    OptionData {
        option: u32,
        len: u32,
    },
    /// Nothing: an option that was taken in waits for what its export turns out to be.
    Held {
        option: u32,
    },
    /// The data of an option that is answered without looking at its data.
    Discard {
        option: u32,
        len: u32,
        left: u32,
    },
    Ended,
}

/// The handshake flags that the client chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ClientFlags {
    fixed_newstyle: bool,
    no_zeroes: bool,
}

/// How far a call came.
#[derive(Debug, PartialEq, Eq)]
pub struct Advance {
    /// Bytes of the input that are done with. Bytes behind them, if the handshake has not ended,
    /// belong into the next call *after* the output was sent; at least one byte of a non-empty
    /// input is consumed by every call, unless it awaits an export.
    pub consumed: usize,
    /// The next option names this, and it is not known yet whether there is one. To be called
    /// again, with whatever input there is or none, once [`ExportDirectory::awaits`] or
    /// [`ExportDirectory::awaits_context`] says that it is; until then no option is answered.
    pub awaits: Option<Awaited>,
    /// STARTTLS was acknowledged. Once the output was sent in the clear, what arrives is TLS; what
    /// comes out of that belongs into the next call. All input was consumed.
    pub starts_tls: bool,
    /// Set when the handshake is over. Unconsumed input is then of the transmission phase.
    pub end: Option<HandshakeEnd>,
}

/// How a handshake ends without an error.
#[derive(Debug, PartialEq, Eq)]
pub enum HandshakeEnd {
    /// The client said goodbye: send the output, close, nothing to log.
    Aborted,
    /// Send the output, then requests follow.
    Transmission(Selected),
}

/// What was agreed on for the transmission phase.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selected {
    /// The export's name as the client wrote it.
    pub name: String,
    /// The export as it was described to this client.
    pub info: ExportInfo,
    /// What was negotiated; plain unless [`Features`] were offered.
    pub session: Session,
}

/// Why a connection is to be closed (after the output, if any, was sent).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// `advance` was called after the end.
    AlreadyEnded,
    /// An option does not start with the magic.
    BadOptionMagic(u64),
    /// So many bytes came behind STARTTLS before it was answered: no client of this protocol sends
    /// them.
    BytesBehindStartTls(usize),
    /// EXPORT_NAME for an export with block sizes that this client did not ask for.
    BlockSizeRequired(String),
    /// EXPORT_NAME after EXTENDED_HEADERS, which obliges the client to use GO.
    ExportNameAfterExtendedHeaders,
    /// EXPORT_NAME for an export that cannot be had; it has no way to refuse but closing.
    ExportRefused(String),
    /// The name in EXPORT_NAME is no name: too long, not UTF-8, or with NUL.
    InvalidName,
    /// A client without fixed newstyle may send EXPORT_NAME only.
    NotFixedNewstyle(u32),
    /// An option claims more data than anybody should throw away.
    OptionTooLong {
        /// The option.
        option: u32,
        /// The claimed length of its data in bytes.
        len: u32,
    },
    /// EXPORT_NAME without TLS, where that is required; it cannot be refused but by closing.
    TlsRequired,
    /// The client negotiates without end.
    TooManyOptions(u32),
    /// Client flags that were not offered.
    UnknownClientFlags(u32),
}

impl ServerHandshake {
    /// A handshake that has not begun and offers the plain protocol only.
    pub fn new(limits: HandshakeLimits) -> Self {
        Self::with_features(limits, Features::default())
    }

    /// A handshake that has not begun and offers what the driver can serve.
    pub fn with_features(limits: HandshakeLimits, features: Features) -> Self {
        Self {
            limits,
            features,
            stage: Stage::ClientFlags,
            framer: Framer::default(),
            client: ClientFlags::default(),
            negotiated: Negotiated::default(),
            tls: Tls::default(),
            options: 0,
            listed_max: 0,
            held: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// The bytes that the server sends first.
    pub fn greeting(&self) -> [u8; GREETING_BYTES] {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let mut bytes = [0; GREETING_BYTES];
        bytes[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// Most exports that one LIST has named: the client may ask for each of them before it chooses,
    /// which a deadline should leave it the time for.
    pub fn listed(&self) -> u32 {
        self.listed_max
    }

    /// Takes in `input` and appends what is to be sent to `out`.
    ///
    /// One call appends at most 64 KiB and the answer to one option. After an error the connection
    /// is over; `out` is still to be sent.
    pub fn advance(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) -> Result<Advance, HandshakeError> {
        // The framer hands out slices of itself while `self` changes.
        let mut framer = mem::take(&mut self.framer);
        let result = self.run(&mut framer, input, out, exports);
        self.framer = framer;
        if !matches!(&result, Ok(Advance { end: None, .. })) {
            self.stage = Stage::Ended;
        }
        result
    }

    fn run(
        &mut self,
        framer: &mut Framer,
        input: &[u8],
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) -> Result<Advance, HandshakeError> {
        let out_start = out.len();
        let mut rest = input;
        let (mut end, mut awaits, mut starts_tls) = (None, None, false);
        while end.is_none() && awaits.is_none() && !starts_tls {
            match self.stage {
                Stage::ClientFlags => {
                    let Some(flags) = framer.take(&mut rest, CLIENT_FLAGS_BYTES) else {
                        break;
                    };
                    self.client = ClientFlags::parse(be_u32(flags, 0))?;
                    self.stage = Stage::OptionHeader;
                }
                Stage::OptionHeader => {
                    if out.len() - out_start >= OUTPUT_PAUSE_BYTES {
                        break;
                    }
                    let Some(header) = framer.take(&mut rest, OPTION_HEADER_BYTES) else {
                        break;
                    };
                    self.stage = self.option_header(header)?;
                }
                Stage::OptionData { option, len } => {
                    let Some(data) = framer.take(&mut rest, len as usize) else {
                        break;
                    };
                    (end, awaits) = self.answer_or_hold(option, data, out, exports)?;
                }
                Stage::Held { option } => {
                    let data = mem::take(&mut self.held);
                    (end, awaits) = self.answer_or_hold(option, &data, out, exports)?;
                }
                Stage::Discard { option, len, left } => {
                    let here = rest.len().min(left as usize);
                    rest = &rest[here..];
                    let left = left - here as u32;
                    if left > 0 {
                        self.stage = Stage::Discard { option, len, left };
                        break;
                    }
                    self.stage = Stage::OptionHeader;
                    if option == option::STARTTLS {
                        starts_tls = self.start_tls(len, rest.len(), out)?;
                    } else {
                        end = self.answer_unread(option, len, out, exports);
                    }
                }
                Stage::Ended => return Err(HandshakeError::AlreadyEnded),
            }
        }
        Ok(Advance {
            consumed: input.len() - rest.len(),
            awaits,
            starts_tls,
            end,
        })
    }

    /// Answers an option, unless its export is awaited: then it is held, and the name told.
    fn answer_or_hold(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) -> Result<(Option<HandshakeEnd>, Option<Awaited>), HandshakeError> {
        if let Some(awaited) = self.awaited(option, data, exports) {
            self.held = data.to_vec();
            self.stage = Stage::Held { option };
            return Ok((None, Some(awaited)));
        }
        self.stage = Stage::OptionHeader;
        Ok((self.answer(option, data, out, exports)?, None))
    }

    /// What is to be known before the option can be answered.
    fn awaited(&self, option: u32, data: &[u8], exports: &dyn ExportDirectory) -> Option<Awaited> {
        let export = answer::export_named(option, data)?;
        let context = match exports.awaits(export) {
            true => None,
            false => Some(self.context_awaited(option, data, exports)?),
        };
        Some(Awaited {
            export: export.to_owned(),
            context,
        })
    }

    /// Bytes of an unfinished message that are held.
    pub(crate) fn held_bytes(&self) -> usize {
        self.framer.held_bytes() + self.held.len()
    }

    /// Decides from an option's header how its data is taken in.
    fn option_header(&mut self, header: &[u8]) -> Result<Stage, HandshakeError> {
        let magic = be_u64(header, 0);
        let option = be_u32(header, 8);
        let len = be_u32(header, 12);
        if magic != OPTION_MAGIC {
            return Err(HandshakeError::BadOptionMagic(magic));
        }
        self.options = self.options.saturating_add(1);
        let allowance = self.listed_max.saturating_mul(OPTIONS_PER_LISTED_EXPORT);
        if self.options > self.limits.options_max.saturating_add(allowance) {
            return Err(HandshakeError::TooManyOptions(self.options));
        }
        if !self.client.fixed_newstyle && option != option::EXPORT_NAME {
            return Err(HandshakeError::NotFixedNewstyle(option));
        }
        if option == option::EXPORT_NAME && len as usize > STRING_BYTES_MAX {
            return Err(HandshakeError::InvalidName);
        }
        if len > self.limits.discard_bytes_max {
            return Err(HandshakeError::OptionTooLong { option, len });
        }
        if self.tls.forbids(option) && option == option::EXPORT_NAME {
            return Err(HandshakeError::TlsRequired);
        }
        let looked_at = match option {
            _ if self.tls.forbids(option) => false,
            // Cannot be answered by an error, and is short.
            option::EXPORT_NAME => true,
            option::INFO | option::GO => len <= self.limits.option_bytes_max,
            _ => self.offers(option) && len <= self.limits.option_bytes_max,
        };
        if looked_at {
            Ok(Stage::OptionData { option, len })
        } else {
            Ok(Stage::Discard {
                option,
                len,
                left: len,
            })
        }
    }
}

impl ClientFlags {
    /// Flags that were not offered end the connection.
    fn parse(bits: u32) -> Result<Self, HandshakeError> {
        let fixed_newstyle = u32::from(handshake_flag::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake_flag::NO_ZEROES);
        if bits & !(fixed_newstyle | no_zeroes) != 0 {
            return Err(HandshakeError::UnknownClientFlags(bits));
        }
        Ok(Self {
            fixed_newstyle: bits & fixed_newstyle != 0,
            no_zeroes: bits & no_zeroes != 0,
        })
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyEnded => f.write_str("the handshake had ended before"),
            Self::BadOptionMagic(magic) => {
                write!(
                    f,
                    "option starts with {magic:#018x}, not with IHAVEOPT: no NBD client"
                )
            }
            Self::BytesBehindStartTls(count) => write!(
                f,
                "{count} bytes in the clear behind STARTTLS, before it was answered"
            ),
            Self::BlockSizeRequired(name) => write!(
                f,
                "EXPORT_NAME {name:?} cannot tell the block sizes that this export requires; \
                 the client must use GO"
            ),
            Self::ExportNameAfterExtendedHeaders => {
                f.write_str("EXPORT_NAME after EXTENDED_HEADERS; the client must use GO")
            }
            Self::ExportRefused(name) => {
                write!(
                    f,
                    "EXPORT_NAME {name:?} is no export that this client can have"
                )
            }
            Self::InvalidName => write!(
                f,
                "EXPORT_NAME with a name that is not UTF-8 without NUL of at most \
                 {STRING_BYTES_MAX} bytes"
            ),
            Self::NotFixedNewstyle(option) => {
                write!(
                    f,
                    "option {option} from a client that did not choose fixed newstyle"
                )
            }
            Self::OptionTooLong { option, len } => {
                write!(f, "option {option} claims {len} bytes of data")
            }
            Self::TlsRequired => f.write_str("EXPORT_NAME without TLS, which is required"),
            Self::TooManyOptions(count) => write!(f, "option number {count} of one handshake"),
            Self::UnknownClientFlags(bits) => {
                write!(f, "client flags {bits:#010x} were not all offered")?;
                match bits >> 16 {
                    TLS_HELLO => f.write_str(": TLS begins with STARTTLS, not with the connection"),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for HandshakeError {}

#[cfg(test)]
mod tests;

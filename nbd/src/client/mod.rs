//! The client's side of the handshake, for the bench, the tools and the tests.

mod answer;
mod chunk;
mod negotiation;
mod reader;
mod tracker;

use std::fmt;
use std::mem;

use crate::codec::{be_u16, be_u32, be_u64, string};
use crate::export::{BlockSizes, TransmissionFlags};
use crate::framer::Framer;
use crate::protocol::{
    EXPORT_NAME_REPLY_BYTES, EXPORT_NAME_ZEROES, GREETING_BYTES, NBD_MAGIC, OLDSTYLE_MAGIC,
    OPTION_MAGIC, OPTION_REPLY_HEADER_BYTES, OPTION_REPLY_MAGIC, STRING_BYTES_MAX, handshake_flag,
    info, option,
};
use crate::session::{HeaderStyle, MetaContext};

pub use chunk::{Chunk, StatusExtent, StatusExtents};
pub use negotiation::Wishes;
pub use reader::{ReplyError, ReplyHeader, ReplyKind, ReplyReader};
pub use tracker::{ReplyProgress, ReplyTracker};

/// Longest single reply to an option that is read, in bytes.
const REPLY_BYTES_MAX: u32 = 64 << 10;
/// Most replies to one option that are read; also the longest list of exports.
const REPLIES_MAX: u32 = 1 << 20;

/// Longest option that is sent, in bytes: [`Wishes`] see to it.
const OPTION_BYTES_MAX: usize = 128 << 10;

/// What the client came for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Choose the export and start transmission. Falls back to EXPORT_NAME with an old server.
    Go(String),
    /// Describe the export and leave.
    Info(String),
    /// Name all exports and leave.
    List,
}

/// The handshake of one connection, from the server's greeting on. Feed
/// [`advance`](Self::advance) with what arrives; it says what to send.
#[derive(Debug)]
pub struct ClientHandshake {
    goal: Goal,
    wishes: Wishes,
    /// The option that was sent last.
    asked: u32,
    headers: HeaderStyle,
    contexts: Vec<MetaContext>,
    stage: Stage,
    framer: Framer,
    no_zeroes: bool,
    replies: u32,
    export: Option<ClientExport>,
    name: Option<String>,
    description: Option<String>,
    block_sizes: Option<BlockSizes>,
    listed: Vec<ListedExport>,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    ReplyHeader,
    ReplyData {
        kind: u32,
        len: u32,
    },
    ExportNameReply,
    /// Nothing, until TLS has started.
    AwaitsTls,
    Ended,
}

/// How far a call came.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientAdvance {
    /// Bytes of the input that are done with: all of them unless the handshake has ended.
    pub consumed: usize,
    /// [`Wishes::tls`]: what arrives from now on must be TLS. Call
    /// [`ClientHandshake::tls_started`] once it is.
    pub starts_tls: bool,
    /// Set when the handshake is over. Send the output all the same.
    pub end: Option<ClientEnd>,
}

/// How a handshake ends without an error.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientEnd {
    /// [`Goal::Info`]: the export; the output says goodbye.
    Described(ClientExport),
    /// [`Goal::List`]: the exports; the output says goodbye.
    Listed(Vec<ListedExport>),
    /// [`Goal::Go`]: requests may be sent.
    Transmission(ClientExport),
}

/// An export as a server described it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientExport {
    /// Bytes of the export.
    pub size: u64,
    /// What may be asked of it.
    pub flags: TransmissionFlags,
    /// Block sizes in bytes, if the server told.
    pub block_sizes: Option<BlockSizes>,
    /// The export's own name, if the server told.
    pub canonical_name: Option<String>,
    /// Text for people, if the server told.
    pub description: Option<String>,
    /// Which headers requests and replies have.
    pub headers: HeaderStyle,
    /// With [`Goal::Go`] the contexts that were selected, with [`Goal::Info`] those that could be
    /// (their ids mean nothing).
    pub contexts: Vec<MetaContext>,
}

/// One entry of a server's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// Name to ask for.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
}

/// Why a handshake failed. The connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientError {
    /// `advance` was called after the end.
    AlreadyEnded,
    /// The contexts wished for cannot be sent: too many, longer than 4096 bytes or with NUL.
    ContextsInvalid,
    /// A message of the server breaks the protocol.
    Malformed(&'static str),
    /// The name asked for cannot be sent: longer than 4096 bytes or with NUL.
    NameInvalid,
    /// The server speaks another protocol.
    NotNbd(u64),
    /// The server speaks the dead oldstyle handshake, or cannot do what was asked without fixed
    /// newstyle.
    OldServer,
    /// The server refused.
    Refused {
        /// One of [`option_reply`](crate::protocol::option_reply)'s errors.
        code: u32,
        /// The server's text; may be empty.
        message: String,
    },
}

impl ClientHandshake {
    /// A handshake that waits for the server's greeting and wishes for nothing.
    pub fn new(goal: Goal) -> Result<Self, ClientError> {
        Self::with_wishes(goal, Wishes::default())
    }

    /// A handshake that waits for the server's greeting. What a server does not have of the wishes
    /// is left out; [`ClientExport`] tells.
    pub fn with_wishes(goal: Goal, wishes: Wishes) -> Result<Self, ClientError> {
        if !wishes.can_be_sent() {
            return Err(ClientError::ContextsInvalid);
        }
        if let Goal::Go(name) | Goal::Info(name) = &goal
            && string(name.as_bytes()).is_none()
        {
            return Err(ClientError::NameInvalid);
        }
        Ok(Self {
            asked: goal.option(),
            goal,
            wishes,
            headers: HeaderStyle::Simple,
            contexts: Vec::new(),
            stage: Stage::Greeting,
            framer: Framer::default(),
            no_zeroes: false,
            replies: 0,
            export: None,
            name: None,
            description: None,
            block_sizes: None,
            listed: Vec::new(),
        })
    }

    /// Takes in `input` and appends what is to be sent to `out`.
    pub fn advance(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<ClientAdvance, ClientError> {
        // The framer hands out slices of itself while `self` changes.
        let mut framer = mem::take(&mut self.framer);
        let result = self.run(&mut framer, input, out);
        self.framer = framer;
        if !matches!(&result, Ok(ClientAdvance { end: None, .. })) {
            self.stage = Stage::Ended;
        }
        result
    }

    fn run(
        &mut self,
        framer: &mut Framer,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<ClientAdvance, ClientError> {
        let mut rest = input;
        let mut end = None;
        while end.is_none() {
            match self.stage {
                Stage::AwaitsTls if rest.is_empty() => break,
                Stage::AwaitsTls => {
                    return Err(ClientError::Malformed(
                        "bytes in the clear where TLS begins",
                    ));
                }
                Stage::Greeting => {
                    let Some(greeting) = framer.take(&mut rest, GREETING_BYTES) else {
                        break;
                    };
                    self.stage = self.greeted(greeting, out)?;
                }
                Stage::ReplyHeader => {
                    let Some(header) = framer.take(&mut rest, OPTION_REPLY_HEADER_BYTES) else {
                        break;
                    };
                    self.stage = self.reply_header(header)?;
                }
                Stage::ReplyData { kind, len } => {
                    let Some(data) = framer.take(&mut rest, len as usize) else {
                        break;
                    };
                    self.stage = Stage::ReplyHeader;
                    end = self.answer(kind, data, out)?;
                }
                Stage::ExportNameReply => {
                    let zeroes = if self.no_zeroes {
                        0
                    } else {
                        EXPORT_NAME_ZEROES
                    };
                    let need = EXPORT_NAME_REPLY_BYTES + zeroes;
                    let Some(data) = framer.take(&mut rest, need) else {
                        break;
                    };
                    let flags = TransmissionFlags::from_bits(be_u16(data, 8));
                    end = Some(ClientEnd::Transmission(ClientExport {
                        headers: self.headers,
                        contexts: mem::take(&mut self.contexts),
                        ..ClientExport::new(be_u64(data, 0), flags)
                    }));
                }
                Stage::Ended => return Err(ClientError::AlreadyEnded),
            }
        }
        Ok(ClientAdvance {
            consumed: input.len() - rest.len(),
            starts_tls: self.stage == Stage::AwaitsTls,
            end,
        })
    }

    /// Answers the greeting with flags and the first option.
    fn greeted(&mut self, greeting: &[u8], out: &mut Vec<u8>) -> Result<Stage, ClientError> {
        let magic = be_u64(greeting, 0);
        if magic != NBD_MAGIC {
            return Err(ClientError::NotNbd(magic));
        }
        match be_u64(greeting, 8) {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC => return Err(ClientError::OldServer),
            other => return Err(ClientError::NotNbd(other)),
        }
        let offered = be_u16(greeting, 16);
        let fixed_newstyle = offered & handshake_flag::FIXED_NEWSTYLE != 0;
        self.no_zeroes = offered & handshake_flag::NO_ZEROES != 0;
        let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        out.extend_from_slice(&u32::from(offered & known).to_be_bytes());
        match &self.goal {
            Goal::Go(name) if !fixed_newstyle && !self.wishes.tls => {
                send_option(out, option::EXPORT_NAME, &[name.as_bytes()]);
                return Ok(Stage::ExportNameReply);
            }
            _ if !fixed_newstyle => return Err(ClientError::OldServer),
            _ => self.ask_first(out),
        }
        Ok(Stage::ReplyHeader)
    }

    /// Sends the option that the client came for.
    fn ask_for_goal(&mut self, out: &mut Vec<u8>) {
        self.asked = self.goal.option();
        match &self.goal {
            Goal::Go(name) | Goal::Info(name) => send_info_request(out, self.asked, name),
            Goal::List => send_option(out, option::LIST, &[]),
        }
    }

    fn reply_header(&mut self, header: &[u8]) -> Result<Stage, ClientError> {
        if be_u64(header, 0) != OPTION_REPLY_MAGIC {
            return Err(ClientError::Malformed("reply without the magic of replies"));
        }
        if be_u32(header, 8) != self.asked {
            return Err(ClientError::Malformed(
                "reply to an option that was not sent",
            ));
        }
        let len = be_u32(header, 16);
        if len > REPLY_BYTES_MAX {
            return Err(ClientError::Malformed("reply longer than 64 KiB"));
        }
        self.replies += 1;
        if self.replies > REPLIES_MAX {
            return Err(ClientError::Malformed(
                "more than a million replies to one option",
            ));
        }
        Ok(Stage::ReplyData {
            kind: be_u32(header, 12),
            len,
        })
    }
}

impl Goal {
    fn option(&self) -> u32 {
        match self {
            Self::Go(_) => option::GO,
            Self::Info(_) => option::INFO,
            Self::List => option::LIST,
        }
    }
}

impl ClientExport {
    fn new(size: u64, flags: TransmissionFlags) -> Self {
        Self {
            size,
            flags,
            block_sizes: None,
            canonical_name: None,
            description: None,
            headers: HeaderStyle::Simple,
            contexts: Vec::new(),
        }
    }
}

fn send_option(out: &mut Vec<u8>, option: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(len <= OPTION_BYTES_MAX, "option of {len} bytes");
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// INFO or GO with requests for everything that [`ClientExport`] can tell.
fn send_info_request(out: &mut Vec<u8>, option: u32, name: &str) {
    let name_len = (name.len() as u32).to_be_bytes();
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    let count = (wanted.len() as u16).to_be_bytes();
    let [a, b, c] = wanted.map(u16::to_be_bytes);
    send_option(
        out,
        option,
        &[&name_len, name.as_bytes(), &count, &a, &b, &c],
    );
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyEnded => f.write_str("the handshake had ended before"),
            Self::ContextsInvalid => {
                f.write_str("contexts are at most 64, with a namespace, without NUL, 64 KiB in all")
            }
            Self::Malformed(what) => write!(f, "the server broke the protocol: {what}"),
            Self::NameInvalid => write!(
                f,
                "an export name is at most {STRING_BYTES_MAX} bytes of UTF-8 without NUL"
            ),
            Self::NotNbd(magic) => {
                write!(
                    f,
                    "the server starts with {magic:#018x}: it does not speak NBD"
                )
            }
            Self::OldServer => f.write_str("the server is too old: no fixed newstyle handshake"),
            Self::Refused { code, message } => {
                write!(f, "the server refused: {}", answer::refusal_name(*code))?;
                if message.is_empty() {
                    Ok(())
                } else {
                    write!(f, " ({message})")
                }
            }
        }
    }
}

impl std::error::Error for ClientError {}

#[cfg(test)]
mod tests;

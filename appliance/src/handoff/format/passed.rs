//! The state of a connection at a request boundary.

use taipan_engine::core::Failure;
use taipan_nbd::{Agreement, CONTEXTS_MAX, Errno, HeaderStyle, MetaContext, Request};

use super::BadFrame;
use super::codec::{Reader, Writer};

/// A request whose payload has come in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// No such request.
    Nothing,
    /// A long WRITE: what has come is in the engine.
    Write {
        /// Its header.
        request: Request,
        /// Payload bytes still to come.
        remaining: u64,
        /// A part of it failed.
        failure: Option<Failure>,
    },
    /// A request that is refused behind its payload, which is thrown away.
    Refused {
        /// Its header.
        request: Request,
        /// Payload bytes still to come.
        remaining: u64,
        /// The answer.
        errno: Errno,
    },
}

mod begun {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const WRITE: u8 = 1;
    pub(super) const REFUSED: u8 = 2;
}

/// A client's connection: everything that its successor must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The data core that served it.
    pub core: u16,
    /// The client was told that it may only read.
    pub read_only: bool,
    /// How long it is connected.
    pub age_ms: u64,
    /// Bytes of the export, as the client was told.
    pub size_bytes: u64,
    /// Requests answered, of these with an error, bytes read, bytes written.
    pub tally: [u64; 4],
    /// The export: a volume, or a snapshot of one.
    pub export: String,
    /// Who the client is, for the log.
    pub peer: String,
    /// What was negotiated.
    pub agreement: Agreement,
    /// A request whose payload has come in part.
    pub begun: Begun,
    /// Bytes received and not looked at.
    pub input: Vec<u8>,
    /// Bytes of replies that the socket did not take.
    pub output: Vec<u8>,
}

impl Passed {
    pub(super) fn write(&self, writer: &mut Writer) {
        let agreement = &self.agreement;
        writer.u16(self.core);
        writer.u8(u8::from(self.read_only));
        writer.u8(style_code(agreement.headers));
        writer.u8(u8::from(agreement.block_status_payload));
        writer.u32(agreement.df_bytes_max);
        writer.u64(self.age_ms);
        writer.u64(self.size_bytes);
        for count in self.tally {
            writer.u64(count);
        }
        writer.text(&self.export);
        writer.text(&self.peer);
        writer.u16(agreement.contexts.len() as u16);
        for context in &agreement.contexts {
            writer.u32(context.id);
            writer.text(&context.name);
        }
        self.begun.write(writer);
        writer.bytes(&self.input);
        writer.bytes(&self.output);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, BadFrame> {
        let (core, read_only) = (reader.u16()?, reader.flag()?);
        let mut agreement = Agreement {
            headers: style(reader.u8()?)?,
            contexts: Vec::new(),
            block_status_payload: reader.flag()?,
            df_bytes_max: reader.u32()?,
        };
        let (age_ms, size_bytes) = (reader.u64()?, reader.u64()?);
        let mut tally = [0; 4];
        for count in &mut tally {
            *count = reader.u64()?;
        }
        let (export, peer) = (reader.text()?, reader.text()?);
        let contexts = reader.u16()?;
        if usize::from(contexts) > CONTEXTS_MAX {
            return Err(BadFrame::Content);
        }
        for _ in 0..contexts {
            agreement.contexts.push(MetaContext {
                id: reader.u32()?,
                name: reader.text()?,
            });
        }
        Ok(Self {
            core,
            read_only,
            age_ms,
            size_bytes,
            tally,
            export,
            peer,
            agreement,
            begun: Begun::read(reader)?,
            input: reader.bytes()?.to_vec(),
            output: reader.bytes()?.to_vec(),
        })
    }
}

impl Begun {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Nothing => writer.u8(begun::NOTHING),
            Self::Write {
                request,
                remaining,
                failure,
            } => {
                writer.u8(begun::WRITE);
                write_request(writer, request, *remaining);
                writer.u8(failure_code(*failure));
            }
            Self::Refused {
                request,
                remaining,
                errno,
            } => {
                writer.u8(begun::REFUSED);
                write_request(writer, request, *remaining);
                writer.u32(errno.code());
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, BadFrame> {
        Ok(match reader.u8()? {
            begun::NOTHING => Self::Nothing,
            begun::WRITE => {
                let (request, remaining) = read_request(reader)?;
                let failure = failure(reader.u8()?)?;
                Self::Write {
                    request,
                    remaining,
                    failure,
                }
            }
            begun::REFUSED => {
                let (request, remaining) = read_request(reader)?;
                let code = reader.u32()?;
                let errno = Errno::from_code(code).filter(|errno| errno.code() == code);
                Self::Refused {
                    request,
                    remaining,
                    errno: errno.ok_or(BadFrame::Content)?,
                }
            }
            _ => return Err(BadFrame::Content),
        })
    }
}

fn write_request(writer: &mut Writer, request: &Request, remaining: u64) {
    writer.u16(request.flags);
    writer.u16(request.command);
    writer.u64(request.cookie);
    writer.u64(request.offset);
    writer.u64(request.length);
    writer.u64(remaining);
}

/// More cannot be missing than the request has.
fn read_request(reader: &mut Reader<'_>) -> Result<(Request, u64), BadFrame> {
    let request = Request {
        flags: reader.u16()?,
        command: reader.u16()?,
        cookie: reader.u64()?,
        offset: reader.u64()?,
        length: reader.u64()?,
    };
    let remaining = reader.u64()?;
    if remaining > request.length || request.offset.checked_add(request.length).is_none() {
        return Err(BadFrame::Content);
    }
    Ok((request, remaining))
}

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

fn style_code(style: HeaderStyle) -> u8 {
    match style {
        HeaderStyle::Simple => 0,
        HeaderStyle::Structured => 1,
        HeaderStyle::Extended => 2,
    }
}

fn style(code: u8) -> Result<HeaderStyle, BadFrame> {
    let style = STYLES.get(usize::from(code)).copied();
    style.ok_or(BadFrame::Content)
}

const FAILURES: [Option<Failure>; 5] = [
    None,
    Some(Failure::Io),
    Some(Failure::NoSpace),
    Some(Failure::ReadOnly),
    Some(Failure::Gone),
];

fn failure_code(failure: Option<Failure>) -> u8 {
    match failure {
        None => 0,
        Some(Failure::Io) => 1,
        Some(Failure::NoSpace) => 2,
        Some(Failure::ReadOnly) => 3,
        Some(Failure::Gone) => 4,
    }
}

fn failure(code: u8) -> Result<Option<Failure>, BadFrame> {
    let failure = FAILURES.get(usize::from(code)).copied();
    failure.ok_or(BadFrame::Content)
}

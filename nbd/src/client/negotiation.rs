//! What a client wishes beyond the plain protocol, and the options that ask for it.

use super::{ClientError, ClientHandshake, Goal, Stage, send_option};
use crate::codec::{Cursor, string};
use crate::protocol::{option, option_reply};
use crate::session::{CONTEXTS_MAX, HeaderStyle, MetaContext};

/// Most bytes of contexts that are asked for.
const QUERIES_BYTES_MAX: usize = 64 << 10;
/// Most contexts of a reply that are kept; a server with more breaks the connection.
const CONTEXTS_KEPT_MAX: usize = 4096;

/// What to ask the server for before the export. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// TLS, before anything else. Unlike the rest this is a condition: a server without it is an
    /// error.
    pub tls: bool,
    /// Headers of 32 bytes with 64-bit lengths.
    pub extended_headers: bool,
    /// Replies in chunks; asked for when there are no extended headers.
    pub structured_replies: bool,
    /// Contexts to select with [`Goal::Go`], or to list with [`Goal::Info`], where a name may end
    /// in a colon for all that begin so. Asked for only when replies come in chunks.
    pub contexts: Vec<String>,
}

impl Wishes {
    pub(super) fn can_be_sent(&self) -> bool {
        let bytes: usize = self.contexts.iter().map(|query| query.len() + 4).sum();
        let legal = |query: &String| string(query.as_bytes()).is_some() && query.contains(':');
        self.contexts.len() <= CONTEXTS_MAX
            && bytes <= QUERIES_BYTES_MAX
            && self.contexts.iter().all(legal)
    }
}

impl ClientHandshake {
    /// Sends the first option of a fixed newstyle negotiation.
    pub(super) fn ask_first(&mut self, out: &mut Vec<u8>) {
        if self.wishes.tls {
            self.ask(option::STARTTLS, out);
        } else {
            self.ask_for_headers(out);
        }
    }

    /// TLS has started: appends what is to be sent through it.
    pub fn tls_started(&mut self, out: &mut Vec<u8>) -> Result<(), ClientError> {
        if self.stage != Stage::AwaitsTls {
            return Err(ClientError::Malformed("TLS that was not asked for"));
        }
        self.stage = Stage::ReplyHeader;
        self.ask_for_headers(out);
        Ok(())
    }

    fn ask_for_headers(&mut self, out: &mut Vec<u8>) {
        if self.wishes.extended_headers {
            self.ask(option::EXTENDED_HEADERS, out);
        } else {
            self.ask_for_structured_replies(out);
        }
    }

    fn ask_for_structured_replies(&mut self, out: &mut Vec<u8>) {
        if self.wishes.structured_replies {
            self.ask(option::STRUCTURED_REPLY, out);
        } else {
            self.ask_for_contexts(out);
        }
    }

    fn ask_for_contexts(&mut self, out: &mut Vec<u8>) {
        let (asked, export) = match &self.goal {
            Goal::Go(name) => (option::SET_META_CONTEXT, name),
            Goal::Info(name) => (option::LIST_META_CONTEXT, name),
            Goal::List => return self.ask_for_goal(out),
        };
        if self.wishes.contexts.is_empty() || !self.headers.has_chunks() {
            return self.ask_for_goal(out);
        }
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&(self.wishes.contexts.len() as u32).to_be_bytes());
        for query in &self.wishes.contexts {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        self.asked = asked;
        send_option(out, asked, &[&data]);
    }

    fn ask(&mut self, option: u32, out: &mut Vec<u8>) {
        self.asked = option;
        send_option(out, option, &[]);
    }

    /// Takes in one reply to an option of negotiation. A refusal is no error: the handshake goes on
    /// with less.
    pub(super) fn negotiated(
        &mut self,
        kind: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ClientError> {
        let accepted = kind == option_reply::ACK;
        let over = accepted || kind & option_reply::ERROR_BIT != 0;
        if accepted && !data.is_empty() {
            return Err(ClientError::Malformed("acknowledgement with data"));
        }
        match self.asked {
            option::STARTTLS if accepted => self.stage = Stage::AwaitsTls,
            option::STARTTLS if over => {
                let message = String::from_utf8_lossy(data).into_owned();
                return Err(ClientError::Refused {
                    code: kind,
                    message,
                });
            }
            option::EXTENDED_HEADERS if accepted => {
                self.headers = HeaderStyle::Extended;
                self.ask_for_contexts(out);
            }
            option::EXTENDED_HEADERS if over => self.ask_for_structured_replies(out),
            option::STRUCTURED_REPLY if over => {
                if accepted {
                    self.headers = HeaderStyle::Structured;
                }
                self.ask_for_contexts(out);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT if over => {
                if !accepted {
                    self.contexts.clear();
                }
                self.ask_for_goal(out);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT
                if kind == option_reply::META_CONTEXT =>
            {
                self.context(data)?;
            }
            _ => {
                return Err(ClientError::Malformed(
                    "reply of a type that does not belong here",
                ));
            }
        }
        Ok(())
    }

    fn context(&mut self, data: &[u8]) -> Result<(), ClientError> {
        const BAD: ClientError = ClientError::Malformed("metadata context without id or name");
        let mut cursor = Cursor::new(data);
        let id = cursor.u32().ok_or(BAD)?;
        let name = string(cursor.rest()).ok_or(BAD)?;
        let selected = self.asked == option::SET_META_CONTEXT;
        if selected && self.contexts.iter().any(|context| context.id == id) {
            return Err(ClientError::Malformed("two metadata contexts of one id"));
        }
        // A selection cannot exceed what was asked for.
        let most = if selected {
            CONTEXTS_MAX
        } else {
            CONTEXTS_KEPT_MAX
        };
        if self.contexts.len() >= most {
            return Err(ClientError::Malformed(
                "more metadata contexts than asked for",
            ));
        }
        self.contexts.push(MetaContext {
            id,
            name: name.to_owned(),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;

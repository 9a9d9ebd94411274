//! What the server's replies to options mean to the client.

use super::{
    ClientEnd, ClientError, ClientExport, ClientHandshake, Goal, ListedExport, Stage, send_option,
};
use crate::codec::{Cursor, string};
use crate::export::{BlockSizes, TransmissionFlags};
use crate::protocol::{info, option, option_reply};
use crate::session::HeaderStyle;

const BAD_STRING: ClientError =
    ClientError::Malformed("string that is too long, not UTF-8 or with NUL");

impl ClientHandshake {
    /// Takes in one reply.
    pub(super) fn answer(
        &mut self,
        kind: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<ClientEnd>, ClientError> {
        if self.asked != self.goal.option() {
            self.negotiated(kind, data, out)?;
            return Ok(None);
        }
        match (kind, &self.goal) {
            (option_reply::INFO, Goal::Go(_) | Goal::Info(_)) => self.informed(data),
            (option_reply::SERVER, Goal::List) => self.listed(data),
            (option_reply::ACK, _) => self.acknowledged(data, out).map(Some),
            (option_reply::ERR_UNSUP, Goal::Go(name)) if self.headers != HeaderStyle::Extended => {
                send_option(out, option::EXPORT_NAME, &[name.as_bytes()]);
                self.stage = Stage::ExportNameReply;
                Ok(None)
            }
            _ if kind & option_reply::ERROR_BIT != 0 => {
                let message = String::from_utf8_lossy(data).into_owned();
                Err(ClientError::Refused {
                    code: kind,
                    message,
                })
            }
            _ => Err(ClientError::Malformed(
                "reply of a type that does not belong here",
            )),
        }
    }

    fn acknowledged(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<ClientEnd, ClientError> {
        if !data.is_empty() {
            return Err(ClientError::Malformed("acknowledgement with data"));
        }
        if let Goal::Go(_) = self.goal {
            return self.take_export().map(ClientEnd::Transmission);
        }
        send_option(out, option::ABORT, &[]);
        match self.goal {
            Goal::List => Ok(ClientEnd::Listed(std::mem::take(&mut self.listed))),
            _ => self.take_export().map(ClientEnd::Described),
        }
    }

    fn take_export(&mut self) -> Result<ClientExport, ClientError> {
        let Some(export) = self.export.take() else {
            return Err(ClientError::Malformed("acknowledgement without a size"));
        };
        Ok(ClientExport {
            block_sizes: self.block_sizes,
            canonical_name: self.name.take(),
            description: self.description.take(),
            headers: self.headers,
            contexts: std::mem::take(&mut self.contexts),
            ..export
        })
    }

    /// One information; unknown types are passed over.
    fn informed(&mut self, data: &[u8]) -> Result<Option<ClientEnd>, ClientError> {
        const SHORT: ClientError = ClientError::Malformed("information of the wrong length");
        let mut cursor = Cursor::new(data);
        let kind = cursor.u16().ok_or(SHORT)?;
        match kind {
            info::EXPORT => {
                let size = cursor.u64().ok_or(SHORT)?;
                let flags = cursor.u16().filter(|_| cursor.is_empty()).ok_or(SHORT)?;
                let flags = TransmissionFlags::from_bits(flags);
                self.export = Some(ClientExport::new(size, flags));
            }
            info::NAME => self.name = Some(text(cursor)?),
            info::DESCRIPTION => self.description = Some(text(cursor)?),
            info::BLOCK_SIZE => self.block_sizes = Some(block_sizes(cursor).ok_or(SHORT)?),
            _ => {}
        }
        Ok(None)
    }

    /// One export of a list.
    fn listed(&mut self, data: &[u8]) -> Result<Option<ClientEnd>, ClientError> {
        let mut cursor = Cursor::new(data);
        let name = cursor.u32().and_then(|len| cursor.take(len as usize));
        let name = name.ok_or(ClientError::Malformed("list entry shorter than its name"))?;
        let name = string(name).ok_or(BAD_STRING)?.to_owned();
        self.listed.push(ListedExport {
            name,
            description: text(cursor)?,
        });
        Ok(None)
    }
}

fn text(cursor: Cursor<'_>) -> Result<String, ClientError> {
    string(cursor.rest()).map(str::to_owned).ok_or(BAD_STRING)
}

fn block_sizes(mut cursor: Cursor<'_>) -> Option<BlockSizes> {
    let sizes = BlockSizes {
        minimum: cursor.u32()?,
        preferred: cursor.u32()?,
        maximum_payload: cursor.u32()?,
    };
    cursor.is_empty().then_some(sizes)
}

/// The name of a refusal's code.
pub(super) fn refusal_name(code: u32) -> &'static str {
    match code {
        option_reply::ERR_UNSUP => "not supported",
        option_reply::ERR_POLICY => "forbidden by its configuration",
        option_reply::ERR_INVALID => "invalid request",
        option_reply::ERR_PLATFORM => "not possible on its platform",
        option_reply::ERR_TLS_REQD => "TLS required",
        option_reply::ERR_UNKNOWN => "no such export",
        option_reply::ERR_SHUTDOWN => "it is shutting down",
        option_reply::ERR_BLOCK_SIZE_REQD => "block sizes must be asked for",
        option_reply::ERR_TOO_BIG => "request too big",
        option_reply::ERR_EXT_HEADER_REQD => "extended headers required",
        _ => "unknown error",
    }
}

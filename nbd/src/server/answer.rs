//! The answers to options.

use super::{HandshakeEnd, HandshakeError, Selected, ServerHandshake};
use crate::codec::{Cursor, clip, string};
use crate::export::{ExportDirectory, ExportInfo, LookupError, TransmissionFlags};
use crate::protocol::{
    EXPORT_NAME_ZEROES, OPTION_REPLY_MAGIC, STRING_BYTES_MAX, info, option, option_reply,
};
use crate::session::HeaderStyle;

type Answer = Result<Option<HandshakeEnd>, HandshakeError>;

impl ServerHandshake {
    /// Answers an option whose data was looked at.
    pub(super) fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) -> Answer {
        let refused = self.refused.len();
        let answer = match option {
            option::EXPORT_NAME => self.export_name(data, out, exports),
            _ if self.offers(option) => {
                self.negotiate(option, Some(data), out, exports);
                Ok(None)
            }
            _ => Ok(self.info_or_go(option, data, out, exports)),
        };
        self.name_refused(refused, option, data);
        answer
    }

    /// Answers an option whose `len` bytes of data were thrown away.
    pub(super) fn answer_unread(
        &mut self,
        option: u32,
        len: u32,
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) -> Option<HandshakeEnd> {
        match option {
            _ if self.tls.forbids(option) => {
                let text = "this server insists on TLS: send STARTTLS first";
                self.refuse(out, option, option_reply::ERR_TLS_REQD, text);
            }
            // ABORT is acknowledged whatever comes with it.
            option::ABORT => {
                reply(out, option, option_reply::ACK, &[]);
                return Some(HandshakeEnd::Aborted);
            }
            option::LIST if len == 0 => self.list(out, exports),
            option::LIST => {
                self.refuse(out, option, option_reply::ERR_INVALID, "LIST takes no data");
            }
            option::INFO | option::GO => {
                let text = format!("{len} bytes are too many for this option");
                self.refuse(out, option, option_reply::ERR_TOO_BIG, &text);
            }
            _ if self.offers(option) => self.negotiate(option, None, out, exports),
            _ => {
                let text = format!("option {option} is not supported");
                self.refuse(out, option, option_reply::ERR_UNSUP, &text);
            }
        }
        None
    }

    /// EXPORT_NAME has no error reply: whatever is wrong closes the connection.
    fn export_name(&self, data: &[u8], out: &mut Vec<u8>, exports: &dyn ExportDirectory) -> Answer {
        if self.negotiated.headers() == HeaderStyle::Extended {
            return Err(HandshakeError::ExportNameAfterExtendedHeaders);
        }
        let name = string(data).ok_or(HandshakeError::InvalidName)?;
        let Ok(found) = exports.find(name) else {
            return Err(HandshakeError::ExportRefused(name.to_owned()));
        };
        if found.min_block > 1 {
            return Err(HandshakeError::BlockSizeRequired(name.to_owned()));
        }
        let session = self.negotiated.session(name, &self.features);
        let flags = session.transmission_flags(&found);
        out.extend_from_slice(&found.size.to_be_bytes());
        out.extend_from_slice(&flags.bits().to_be_bytes());
        if !self.client.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        Ok(Some(HandshakeEnd::Transmission(Selected {
            name: name.to_owned(),
            info: found,
            session,
        })))
    }

    fn list(&mut self, out: &mut Vec<u8>, exports: &dyn ExportDirectory) {
        let mut listed = 0_u32;
        let result = exports.list(&mut |name, description| {
            // A name that no client could send back is not an export for anybody.
            if string(name.as_bytes()).is_none() {
                return;
            }
            listed = listed.saturating_add(1);
            let name_len = (name.len() as u32).to_be_bytes();
            let parts = [&name_len[..], name.as_bytes(), clip(description).as_bytes()];
            reply(out, option::LIST, option_reply::SERVER, &parts);
        });
        self.listed_max = self.listed_max.max(listed);
        match result {
            Ok(()) => reply(out, option::LIST, option_reply::ACK, &[]),
            Err(error) => self.refuse_lookup(out, option::LIST, &error),
        }
    }

    fn info_or_go(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
        exports: &dyn ExportDirectory,
    ) -> Option<HandshakeEnd> {
        let Some(request) = InfoRequest::parse(data) else {
            let text = "malformed export name or request list";
            self.refuse(out, option, option_reply::ERR_INVALID, text);
            return None;
        };
        let found = match exports.find(request.name) {
            Ok(found) => found,
            Err(error) => {
                self.refuse_lookup(out, option, &error);
                return None;
            }
        };
        if found.min_block > 1 && !request.wants(info::BLOCK_SIZE) {
            let text = format!("this export needs blocks of {} bytes", found.min_block);
            self.refuse(out, option, option_reply::ERR_BLOCK_SIZE_REQD, &text);
            return None;
        }
        let session = self.negotiated.session(request.name, &self.features);
        let flags = session.transmission_flags(&found);
        describe(option, &request, &found, flags, out);
        reply(out, option, option_reply::ACK, &[]);
        (option == option::GO).then(|| {
            HandshakeEnd::Transmission(Selected {
                name: request.name.to_owned(),
                info: found,
                session,
            })
        })
    }

    pub(super) fn refuse_lookup(&mut self, out: &mut Vec<u8>, option: u32, error: &LookupError) {
        let (error, text) = match error {
            LookupError::Policy(text) => (option_reply::ERR_POLICY, text.as_str()),
            LookupError::Shutdown => (option_reply::ERR_SHUTDOWN, "the server is shutting down"),
            // A client under TLS cannot be told to start it.
            LookupError::TlsRequired(text) if self.tls.is_on() => {
                (option_reply::ERR_POLICY, text.as_str())
            }
            LookupError::TlsRequired(text) => (option_reply::ERR_TLS_REQD, text.as_str()),
            LookupError::Unknown => (option_reply::ERR_UNKNOWN, "no export of that name"),
        };
        self.refuse(out, option, error, text);
    }
}

/// The export that an option names, if it names one.
pub(super) fn export_named(option: u32, data: &[u8]) -> Option<&str> {
    match option {
        option::EXPORT_NAME => string(data),
        option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            let mut cursor = Cursor::new(data);
            let name_len = cursor.u32()?;
            string(cursor.take(name_len as usize)?)
        }
        _ => None,
    }
}

/// The data of INFO and GO.
struct InfoRequest<'a> {
    name: &'a str,
    /// Pairs of bytes, each a wanted type of information.
    wanted: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// `None` when a length lies, bytes are left over, or the name is not a legal string.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let name_len = cursor.u32()?;
        let name = string(cursor.take(name_len as usize)?)?;
        let count = cursor.u16()?;
        let wanted = cursor.take(usize::from(count) * 2)?;
        cursor.is_empty().then_some(Self { name, wanted })
    }

    fn wants(&self, kind: u16) -> bool {
        self.wanted
            .chunks_exact(2)
            .any(|pair| pair == kind.to_be_bytes())
    }
}

/// EXPORT always, the rest when asked for; requests of unknown information are passed over.
fn describe(
    option: u32,
    request: &InfoRequest<'_>,
    found: &ExportInfo,
    flags: TransmissionFlags,
    out: &mut Vec<u8>,
) {
    let mut inform = |kind: u16, parts: [&[u8]; 3]| {
        let [a, b, c] = parts;
        reply(
            out,
            option,
            option_reply::INFO,
            &[&kind.to_be_bytes(), a, b, c],
        );
    };
    let size = found.size.to_be_bytes();
    let flags = flags.bits().to_be_bytes();
    inform(info::EXPORT, [&size, &flags, &[]]);
    if request.wants(info::NAME) {
        inform(
            info::NAME,
            [clip(&found.canonical_name).as_bytes(), &[], &[]],
        );
    }
    if request.wants(info::DESCRIPTION) && !found.description.is_empty() {
        inform(
            info::DESCRIPTION,
            [clip(&found.description).as_bytes(), &[], &[]],
        );
    }
    if request.wants(info::BLOCK_SIZE) {
        let sizes = found.block_sizes();
        let minimum = sizes.minimum.to_be_bytes();
        let preferred = sizes.preferred.to_be_bytes();
        inform(
            info::BLOCK_SIZE,
            [&minimum, &preferred, &sizes.maximum_payload.to_be_bytes()],
        );
    }
}

/// One reply to an option; its data is `parts` joined.
pub(super) fn reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(len <= 2 * STRING_BYTES_MAX + 8, "reply of {len} bytes");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

//! What a server said no to during the handshake, for its log.

use super::ServerHandshake;
use super::answer::{export_named, reply};
use crate::codec::clip;
use crate::protocol::{option, option_reply};

/// Refusals that are remembered until they are taken.
const REFUSED_MAX: usize = 16;

/// An option that was answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedOption {
    /// The option.
    pub option: u32,
    /// The error, one of [`option_reply`].
    pub error: u32,
    /// The export that it names, as the client wrote it, if its data was looked at.
    pub export: Option<String>,
    /// What the client was told.
    pub text: String,
}

impl RefusedOption {
    /// The option's name in the protocol's text.
    pub fn option_name(&self) -> &'static str {
        match self.option {
            option::EXPORT_NAME => "EXPORT_NAME",
            option::ABORT => "ABORT",
            option::LIST => "LIST",
            option::STARTTLS => "STARTTLS",
            option::INFO => "INFO",
            option::GO => "GO",
            option::STRUCTURED_REPLY => "STRUCTURED_REPLY",
            option::LIST_META_CONTEXT => "LIST_META_CONTEXT",
            option::SET_META_CONTEXT => "SET_META_CONTEXT",
            option::EXTENDED_HEADERS => "EXTENDED_HEADERS",
            _ => "unknown",
        }
    }

    /// The error's name in the protocol's text, without what they all begin with.
    pub fn error_name(&self) -> &'static str {
        match self.error {
            option_reply::ERR_UNSUP => "UNSUP",
            option_reply::ERR_POLICY => "POLICY",
            option_reply::ERR_INVALID => "INVALID",
            option_reply::ERR_PLATFORM => "PLATFORM",
            option_reply::ERR_TLS_REQD => "TLS_REQD",
            option_reply::ERR_UNKNOWN => "UNKNOWN",
            option_reply::ERR_SHUTDOWN => "SHUTDOWN",
            option_reply::ERR_BLOCK_SIZE_REQD => "BLOCK_SIZE_REQD",
            option_reply::ERR_TOO_BIG => "TOO_BIG",
            option_reply::ERR_EXT_HEADER_REQD => "EXT_HEADER_REQD",
            _ => "unknown",
        }
    }
}

impl ServerHandshake {
    /// Options that were answered with an error since this was asked last, in order; the first 16
    /// of them if they are more.
    pub fn take_refused(&mut self) -> Vec<RefusedOption> {
        std::mem::take(&mut self.refused)
    }

    /// An error reply with a text for people.
    pub(super) fn refuse(&mut self, out: &mut Vec<u8>, option: u32, error: u32, text: &str) {
        debug_assert!(
            error & option_reply::ERROR_BIT != 0,
            "{error:#x} is not an error"
        );
        let text = clip(text);
        reply(out, option, error, &[text.as_bytes()]);
        if self.refused.len() < REFUSED_MAX {
            self.refused.push(RefusedOption {
                option,
                error,
                export: None,
                text: text.to_owned(),
            });
        }
    }

    /// Of which export those from number `from` on speak: the data of their option says it.
    pub(super) fn name_refused(&mut self, from: usize, option: u32, data: &[u8]) {
        for refused in self.refused.iter_mut().skip(from) {
            refused.export = export_named(option, data).map(str::to_owned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{ExportDirectory, ExportInfo, LookupError};
    use crate::protocol::OPTION_MAGIC;
    use crate::server::{Features, HandshakeLimits};

    /// Nobody gets anything here.
    struct Closed;

    impl ExportDirectory for Closed {
        fn list(&self, _: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
            Err(LookupError::Policy("no lists".to_owned()))
        }

        fn find(&self, _: &str) -> Result<ExportInfo, LookupError> {
            Err(LookupError::Unknown)
        }
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let len = (data.len() as u32).to_be_bytes();
        let head = [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &len];
        [&head.concat(), data].concat()
    }

    fn refused_by(options: &[Vec<u8>]) -> Vec<RefusedOption> {
        let features = Features::ALL;
        let mut server = ServerHandshake::with_features(HandshakeLimits::DEFAULT, features);
        let mut input = 3_u32.to_be_bytes().to_vec();
        input.extend(options.iter().flatten());
        let mut out = Vec::new();
        let advance = server.advance(&input, &mut out, &Closed).expect("a client");
        assert_eq!(advance.consumed, input.len());
        let refused = server.take_refused();
        assert_eq!(server.take_refused(), [], "they are taken once");
        refused
    }

    #[test]
    fn every_option_that_is_refused_is_told_with_export_error_and_text() {
        let go = [&[0, 0, 0, 4][..], b"vol9", &[0, 0]].concat();
        let contexts = [&[0, 0, 0, 4][..], b"vol9", &[0; 4]].concat();
        let refused = refused_by(&[
            option(option::GO, &go),
            option(option::STRUCTURED_REPLY, &[]),
            option(option::SET_META_CONTEXT, &contexts),
            option(option::LIST, &[]),
            option(option::STARTTLS, &[]),
            option(77, b"what"),
        ]);
        let told = |refused: &RefusedOption| {
            let export = refused.export.as_deref().unwrap_or("-");
            let (option, error) = (refused.option_name(), refused.error_name());
            format!("{option} {error} {export}: {}", refused.text)
        };
        let told: Vec<String> = refused.iter().map(told).collect();
        assert_eq!(
            told,
            [
                "GO UNKNOWN vol9: no export of that name",
                "SET_META_CONTEXT UNKNOWN vol9: no export of that name",
                "LIST POLICY -: no lists",
                "STARTTLS UNSUP -: TLS is not offered here",
                "unknown UNSUP -: option 77 is not supported",
            ]
        );
    }

    #[test]
    fn a_client_that_is_refused_on_and_on_costs_no_more_memory() {
        let options: Vec<_> = (0..60).map(|_| option(77, b"")).collect();
        assert_eq!(refused_by(&options).len(), REFUSED_MAX);
    }
}

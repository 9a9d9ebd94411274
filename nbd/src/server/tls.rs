//! STARTTLS: what is offered, what is forbidden without it, and what is forgotten by it.

use super::answer::reply;
use super::negotiation::Negotiated;
use super::{HandshakeError, ServerHandshake};
use crate::protocol::{option, option_reply};

/// Whether a server offers TLS, or insists on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsPolicy {
    /// STARTTLS gets UNSUP.
    #[default]
    Off,
    /// The client decides.
    Allow,
    /// Without TLS a client may start it or leave; anything else gets TLS_REQD.
    Require,
}

/// How far TLS has come on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tls {
    policy: TlsPolicy,
    /// STARTTLS was acknowledged: what comes now came through TLS.
    is_on: bool,
}

impl Tls {
    /// Whether an option may not be answered in the clear. ABORT may: leaving is always allowed.
    pub(super) fn forbids(self, asked: u32) -> bool {
        let harmless = [option::STARTTLS, option::ABORT].contains(&asked);
        self.policy == TlsPolicy::Require && !self.is_on && !harmless
    }

    pub(super) fn is_on(self) -> bool {
        self.is_on
    }
}

impl ServerHandshake {
    /// The same handshake with STARTTLS as `policy` says. The driver owes the TLS:
    /// [`Advance::starts_tls`](super::Advance::starts_tls).
    #[must_use]
    pub fn with_tls(mut self, policy: TlsPolicy) -> Self {
        self.tls.policy = policy;
        self
    }

    /// Answers STARTTLS with `len` bytes of data, and `behind` bytes of input behind it; true if
    /// TLS starts. A client waits for the answer: whatever stands behind the option was put there
    /// by somebody who can write on the wire and not under TLS.
    pub(super) fn start_tls(
        &mut self,
        len: u32,
        behind: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, HandshakeError> {
        let (error, text) = if self.tls.policy == TlsPolicy::Off {
            (option_reply::ERR_UNSUP, "TLS is not offered here")
        } else if self.tls.is_on {
            (option_reply::ERR_INVALID, "TLS is in use already")
        } else if len > 0 {
            (option_reply::ERR_INVALID, "STARTTLS takes no data")
        } else if behind > 0 {
            return Err(HandshakeError::BytesBehindStartTls(behind));
        } else {
            reply(out, option::STARTTLS, option_reply::ACK, &[]);
            self.tls.is_on = true;
            // What was negotiated in the clear counts for nothing. The caps on options stay.
            self.negotiated = Negotiated::default();
            return Ok(true);
        };
        self.refuse(out, option::STARTTLS, error, text);
        Ok(false)
    }
}

#[cfg(test)]
mod tests;

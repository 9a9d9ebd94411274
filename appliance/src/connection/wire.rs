//! What lies between the socket of a connection and its protocol: nothing, or TLS.

use std::io::{self, IoSlice, Write};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use taipan_tls::{Identity, Opened, RECORD_BYTES_MAX, ServerChannel, TlsError};

/// Bytes as they are on the wire.
pub(super) enum Wire {
    /// Those of the protocol.
    Clear,
    /// TLS.
    Tls(Box<Tls>),
}

/// TLS of one connection.
pub(super) struct Tls {
    channel: ServerChannel,
    /// The acknowledgement of STARTTLS was sent in the clear; all else goes through the channel.
    has_begun: bool,
    /// The client has said that nothing more comes.
    has_ended: bool,
    identity: Option<Identity>,
}

impl Wire {
    /// TLS, once what waits to be sent is sent in the clear.
    pub(super) fn tls(channel: ServerChannel) -> Self {
        Self::Tls(Box::new(Tls {
            channel,
            has_begun: false,
            has_ended: false,
            identity: None,
        }))
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The channel that bytes go through now.
    pub(super) fn channel(&mut self) -> Option<&mut ServerChannel> {
        match self {
            Self::Tls(tls) if tls.has_begun => Some(&mut tls.channel),
            Self::Clear | Self::Tls(_) => None,
        }
    }

    fn begun(&self) -> Option<&Tls> {
        match self {
            Self::Tls(tls) if tls.has_begun => Some(tls),
            Self::Clear | Self::Tls(_) => None,
        }
    }

    /// All that was to be sent in the clear is sent.
    pub(super) fn begin(&mut self) {
        if let Self::Tls(tls) = self {
            tls.has_begun = true;
        }
    }

    /// Whether the TLS handshake is still to be done.
    pub(super) fn is_handshaking(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.channel.is_handshaking())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.begun().is_some_and(|tls| tls.has_ended)
    }

    /// Whether sealed bytes wait for the socket.
    pub(super) fn wants_send(&self) -> bool {
        self.begun().is_some_and(|tls| tls.channel.wants_send())
    }

    /// Bytes of replies in them.
    pub(super) fn sealed(&self) -> usize {
        self.begun().map_or(0, |tls| tls.channel.sealed())
    }

    /// Bytes of memory that it may hold beside replies.
    pub(super) fn held(&self) -> usize {
        self.reserve()
    }

    /// So many bytes of the receive buffer are kept free beside those that are received: a record
    /// that came in pieces comes out at once.
    pub(super) fn reserve(&self) -> usize {
        match self {
            Self::Clear => 0,
            Self::Tls(_) => RECORD_BYTES_MAX,
        }
    }

    /// Who the client is, if it has shown a certificate.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.begun()?.identity.as_ref()
    }

    /// Version of TLS in use.
    pub(super) fn version(&self) -> Option<&'static str> {
        self.begun()?.channel.version()
    }
}

impl Tls {
    /// Takes in bytes from the socket; see [`ServerChannel::open`]. Tells how long that took if it
    /// was a step of the handshake.
    pub(super) fn open(
        &mut self,
        wire: &[u8],
        room: &mut [u8],
    ) -> (Result<usize, TlsError>, Option<u64>) {
        if !self.channel.is_handshaking() {
            let opened = self.channel.open(wire, room);
            return (opened.map(|opened| self.note(opened)), None);
        }
        let begin = Instant::now();
        let opened = self.channel.open(wire, room);
        if opened.is_ok() && !self.channel.is_handshaking() {
            self.identity = self.channel.identity();
        }
        let took_ns = begin.elapsed().as_nanos() as u64;
        (opened.map(|opened| self.note(opened)), Some(took_ns))
    }

    fn note(&mut self, opened: Opened) -> usize {
        self.has_ended |= opened.ended;
        opened.bytes
    }
}

/// A socket that sealed bytes are sent to without waiting, many records in one call.
pub(super) struct Socket<'a>(pub(super) BorrowedFd<'a>);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        Ok(sendmsg(self.0, slices, &mut nothing, flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When a core does steps of TLS handshakes, which take it a millisecond or two with large RSA
/// keys: one a turn, and at most half of the time, however many clients come at once.
#[derive(Debug, Default)]
pub struct HandshakePace {
    free_at_ns: u64,
}

impl HandshakePace {
    /// Whether a step may begin in a turn that began at that time.
    pub(super) fn is_free(&self, now_ns: u64) -> bool {
        now_ns >= self.free_at_ns
    }

    /// A step took so long.
    pub(super) fn took(&mut self, now_ns: u64, ns: u64) {
        self.free_at_ns = now_ns + 2 * ns.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_take_one_step_a_turn_and_half_of_the_time() {
        let mut pace = HandshakePace::default();
        assert!(pace.is_free(0));
        pace.took(0, 0);
        assert!(!pace.is_free(0), "the same turn");
        pace.took(1000, 300);
        assert!(!pace.is_free(1599));
        assert!(pace.is_free(1600));
    }
}

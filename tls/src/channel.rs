//! One TLS connection of a server between its socket and the protocol, without I/O.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::{ProtocolVersion, ServerConfig, ServerConnection};

use crate::error::TlsError;
use crate::identity::Identity;

/// Most bytes of one record on the wire: what may be held of one that has not come wholly.
pub const RECORD_BYTES_MAX: usize = 5 + (16 << 10) + 2048;
/// So many bytes of the protocol are sealed at a time: 17 records, which go out in one call. That
/// is a reply of 256 KiB, for which many clients ask, with its header; with less it goes in pieces,
/// and each wakes the client.
const SEALED_AT_ONCE_BYTES: usize = 272 << 10;

/// A connection of a server.
pub struct ServerChannel {
    connection: ServerConnection,
    /// Bytes of the protocol in what is sealed and not sent.
    sealed: usize,
}

/// What came of bytes from the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the protocol that were put into the room.
    pub bytes: usize,
    /// The client has said that nothing more comes.
    pub ended: bool,
}

impl ServerChannel {
    /// A connection that waits for a client's first message.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let mut connection = ServerConnection::new(config)?;
        connection.set_buffer_limit(Some(SEALED_AT_ONCE_BYTES));
        Ok(Self {
            connection,
            sealed: 0,
        })
    }

    /// Whether the TLS handshake goes on.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes in all of `wire`, bytes from the socket, and puts those of the protocol into `room`,
    /// which must be longer by [`RECORD_BYTES_MAX`]. After an error there may be a last message to
    /// [`send`](Self::send); nothing may be received any more.
    pub fn open(&mut self, mut wire: &[u8], room: &mut [u8]) -> Result<Opened, TlsError> {
        assert!(
            room.len() >= wire.len() + RECORD_BYTES_MAX,
            "room for all of it"
        );
        let mut opened = Opened::default();
        while !wire.is_empty() && !opened.ended {
            let full = |error| TlsError::new("a message is too long").because(error);
            self.connection.read_tls(&mut wire).map_err(full)?;
            let state = self.connection.process_new_packets()?;
            opened.ended = state.peer_has_closed();
            let end = opened.bytes + state.plaintext_bytes_to_read();
            let piece = room.get_mut(opened.bytes..end);
            let piece = piece.ok_or_else(|| TlsError::new("more came out than went in"))?;
            let short = |error| TlsError::new("less came out than was said").because(error);
            self.connection.reader().read_exact(piece).map_err(short)?;
            opened.bytes = end;
        }
        Ok(opened)
    }

    /// Seals bytes of the protocol from the beginning of `plain`, and tells how many: none before
    /// the handshake is over, or while anything waits to be sent.
    pub fn seal(&mut self, plain: &[u8]) -> usize {
        if self.connection.is_handshaking() || self.connection.wants_write() {
            return 0;
        }
        let piece = &plain[..plain.len().min(SEALED_AT_ONCE_BYTES)];
        // It is memory that is written to.
        let taken = self.connection.writer().write(piece).unwrap_or(0);
        self.sealed += taken;
        taken
    }

    /// Whether something waits to be sent.
    pub fn wants_send(&self) -> bool {
        self.connection.wants_write()
    }

    /// Bytes of the protocol that are sealed and not sent wholly.
    pub fn sealed(&self) -> usize {
        self.sealed
    }

    /// Hands what waits to the socket, in one call; tells how many bytes it took.
    pub fn send(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
        let sent = self.connection.write_tls(socket)?;
        if !self.connection.wants_write() {
            self.sealed = 0;
        }
        Ok(sent)
    }

    /// Tells the client that nothing more comes; to be sent.
    pub fn end(&mut self) {
        self.connection.send_close_notify();
    }

    /// Who the client is, if it has shown a certificate. It is verified.
    pub fn identity(&self) -> Option<Identity> {
        if self.is_handshaking() {
            return None;
        }
        let shown = self.connection.peer_certificates()?.first()?;
        Some(Identity::of(shown))
    }

    /// Which version of TLS, once that is agreed on.
    pub fn version(&self) -> Option<&'static str> {
        match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Some("1.2"),
            ProtocolVersion::TLSv1_3 => Some("1.3"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;

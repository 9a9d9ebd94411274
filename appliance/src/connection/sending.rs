//! What goes to the socket of a connection, through TLS if that is in use.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use rustix::io::Errno as Os;
use rustix::net::{SendFlags, send};

use super::Connection;
use super::buffers::{Buffers, SEND_BYTES_KEPT};
use super::wire::Socket;

/// So many bytes of replies are sealed for one connection in a turn, and perhaps one portion more:
/// that is a millisecond, and others wait.
const SEALED_BYTES_PER_TURN: usize = 1 << 20;

/// How far sending came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left, or nothing can be sent any more.
    All,
    /// The socket is full.
    Full,
    /// The next turn goes on.
    Later,
}

impl Connection {
    /// Whether reply bytes wait for the socket.
    pub fn has_output(&self) -> bool {
        self.sent < self.output.len() || self.wire.wants_send()
    }

    /// Bytes of replies that the socket has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.output.len() - self.sent + self.wire.sealed()
    }

    /// Sends what is queued.
    pub fn flush_output(&mut self) -> Flushed {
        if self.is_handed() {
            return Flushed::All;
        }
        let flushed = match self.wire.channel() {
            None => self.send_clear(),
            Some(_) => self.send_sealed(),
        };
        match flushed {
            Flushed::All => {
                self.unread = false;
                self.output.clear();
                self.sent = 0;
                // If TLS was acknowledged just now.
                self.wire.begin();
            }
            Flushed::Full => {
                self.unread = true;
                self.drop_sent();
            }
            Flushed::Later => self.drop_sent(),
        }
        flushed
    }

    fn send_clear(&mut self) -> Flushed {
        while self.sent < self.output.len() && !self.broken {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.socket, &self.output[self.sent..], flags) {
                Ok(n) => {
                    self.sent += n;
                    self.progress.took(n);
                }
                Err(Os::AGAIN) => return Flushed::Full,
                Err(Os::INTR) => {}
                Err(_) => self.broken = true,
            }
        }
        Flushed::All
    }

    fn send_sealed(&mut self) -> Flushed {
        let mut sealed = 0;
        while let Some(channel) = self.wire.channel()
            && !self.broken
        {
            if channel.wants_send() {
                match channel.send(&mut Socket(self.socket.as_fd())) {
                    Ok(n) => self.progress.took(n),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Flushed::Full,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => self.broken = true,
                }
                continue;
            }
            if self.sent == self.output.len() {
                break;
            }
            if sealed >= SEALED_BYTES_PER_TURN {
                return Flushed::Later;
            }
            let taken = channel.seal(&self.output[self.sent..]);
            // Nothing is said before the handshake is over.
            self.broken |= taken == 0;
            self.sent += taken;
            sealed += taken;
        }
        Flushed::All
    }

    /// Gives back the part of the replies that was sent once it is the larger one: a client that
    /// always leaves something unread would make them grow for ever.
    fn drop_sent(&mut self) {
        if self.sent < self.output.len() - self.sent {
            return;
        }
        if self.output.capacity() > SEND_BYTES_KEPT {
            self.output = self.output[self.sent..].to_vec();
        } else {
            self.output.drain(..self.sent);
        }
        self.sent = 0;
    }

    /// The connection is about to be closed: tells a client under TLS, if everything else is sent,
    /// so that it can tell the end from a cut.
    pub fn say_goodbye(&mut self) {
        if self.broken || self.has_output() {
            return;
        }
        if let Some(channel) = self.wire.channel() {
            channel.end();
            // A full socket is not waited for.
            let _ = channel.send(&mut Socket(self.socket.as_fd()));
        }
    }

    /// To be called after whatever the connection did: gives back what it does not need, and books
    /// what it holds.
    pub fn rest(&mut self, buffers: &mut Buffers) {
        self.input.rest(buffers);
        if self.output.is_empty() {
            buffers.give_output(std::mem::take(&mut self.output));
        }
        let buffers = self.input.held() + self.wire.held() as u64;
        self.share.hold(self.held(), buffers);
    }
}

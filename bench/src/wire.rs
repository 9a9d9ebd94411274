//! The bytes of an NBD connection: a socket, in the clear or under TLS.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use rustix::io::Errno as Os;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use taipan_tls::{ClientSettings, ClientStream};

use crate::uri::Tls;

/// A connection to a server.
pub(crate) enum Wire {
    /// A stream socket, of whatever family.
    Clear(UnixStream),
    /// TLS over one.
    Sealed(Box<ClientStream<UnixStream>>),
}

impl Wire {
    /// Goes on under TLS.
    pub(crate) fn seal(self, tls: Option<&Tls>) -> Result<Self> {
        let (Some(tls), Self::Clear(socket)) = (tls, self) else {
            bail!("TLS was not asked for, or twice");
        };
        let settings = ClientSettings::load(&tls.certificates)?;
        let stream = ClientStream::start(&settings, &tls.name, socket).context("starting TLS")?;
        Ok(Self::Sealed(Box::new(stream)))
    }

    /// The socket, for its settings and for polling.
    pub(crate) fn socket(&self) -> &UnixStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Sealed(stream) => stream.socket(),
        }
    }

    /// Whether it is in the clear: then a receive may wait.
    pub(crate) fn is_clear(&self) -> bool {
        matches!(self, Self::Clear(_))
    }

    /// Whether bytes that were taken over are still to be sent.
    pub(crate) fn wants_send(&self) -> bool {
        match self {
            Self::Clear(_) => false,
            Self::Sealed(stream) => stream.wants_send(),
        }
    }

    /// Sends what is taken without waiting.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Os> {
        match self {
            Self::Clear(socket) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                sendmsg(&*socket, slices, &mut SendAncillaryBuffer::default(), flags)
            }
            Self::Sealed(stream) => stream.try_send(slices).map_err(|error| os_error(&error)),
        }
    }

    /// Receives what is there; in the clear it may wait for something.
    pub(crate) fn receive(&mut self, room: &mut [u8], block: bool) -> Result<usize, Os> {
        match self {
            Self::Clear(socket) => {
                let flags = match block {
                    true => RecvFlags::empty(),
                    false => RecvFlags::DONTWAIT,
                };
                recv(&*socket, room, flags).map(|(len, _)| len)
            }
            Self::Sealed(stream) => stream.try_receive(room).map_err(|error| os_error(&error)),
        }
    }
}

/// What TLS itself finds wrong has no number of the system's.
fn os_error(error: &io::Error) -> Os {
    Os::from_io_error(error).unwrap_or_else(|| match error.kind() {
        io::ErrorKind::WouldBlock => Os::AGAIN,
        io::ErrorKind::UnexpectedEof => Os::CONNRESET,
        _ => Os::PROTO,
    })
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read(room),
            Self::Sealed(stream) => stream.read(room),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write(bytes),
            Self::Sealed(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.flush(),
            Self::Sealed(stream) => stream.flush(),
        }
    }
}

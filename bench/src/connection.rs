//! Opens an NBD connection: socket, handshake, and whether the export can do what is asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use taipan_nbd::{ClientEnd, ClientExport, ClientHandshake, Goal, HeaderStyle, Wishes};

use crate::options::Replies;
use crate::uri::{Address, Tls};
use crate::wire::Wire;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection in the transmission phase.
pub(crate) struct Connection {
    /// The socket, blocking, and TLS if that was asked for.
    pub(crate) wire: Wire,
    /// What the server said of the export.
    pub(crate) export: ClientExport,
}

impl Connection {
    /// Connects, negotiates the replies and chooses the export.
    pub(crate) fn open(address: &Address, replies: Replies) -> Result<Self> {
        let (server, tls) = match address {
            Address::Sealed { server, tls } => (&**server, Some(tls)),
            server => (server, None),
        };
        let (socket, export) = match server {
            Address::Unix { socket, export } => {
                let stream = UnixStream::connect(socket);
                let connecting = || format!("connecting to {}", socket.display());
                (stream.with_context(connecting)?, export)
            }
            Address::Tcp { host, port, export } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .with_context(|| format!("connecting to {host} port {port}"))?;
                stream.set_nodelay(true)?;
                // Connected stream sockets are used alike.
                (UnixStream::from(OwnedFd::from(stream)), export)
            }
            Address::Sealed { .. } | Address::File(_) => bail!("{server} is no NBD address"),
        };
        socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        socket.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        shake_hands(
            Wire::Clear(socket),
            tls,
            Greeting::new(export, replies, tls.is_some())?,
        )
    }
}

fn shake_hands(mut wire: Wire, tls: Option<&Tls>, mut greeting: Greeting) -> Result<Connection> {
    let mut input = [0; GREETING_BYTES];
    loop {
        let len = wire
            .read(&mut input)
            .context("reading the server's handshake")?;
        let mut greeted = greeting.advance(&input[..len])?;
        wire.write_all(&greeted.out)
            .context("sending the handshake")?;
        if greeted.starts_tls {
            wire = wire.seal(tls)?;
            greeted = greeting.tls_started()?;
            wire.write_all(&greeted.out)
                .context("sending the handshake")?;
        }
        if let Some(export) = greeted.export {
            return Ok(Connection { wire, export });
        }
    }
}

/// Bytes of a handshake that are read at once.
pub(crate) const GREETING_BYTES: usize = 4096;

/// What comes of a piece of a handshake.
#[derive(Default)]
pub(crate) struct Greeted {
    /// To be sent.
    pub(crate) out: Vec<u8>,
    /// What follows goes through TLS.
    pub(crate) starts_tls: bool,
    /// The export, once all is said.
    pub(crate) export: Option<ClientExport>,
}

/// The handshake without its socket.
pub(crate) struct Greeting {
    handshake: ClientHandshake,
    export: String,
    replies: Replies,
    style: HeaderStyle,
}

impl Greeting {
    /// Asks for an export and a kind of replies.
    pub(crate) fn new(export: &str, replies: Replies, tls: bool) -> Result<Self> {
        let (style, wishes) = wishes(replies, tls);
        Ok(Self {
            handshake: ClientHandshake::with_wishes(Goal::Go(export.to_owned()), wishes)?,
            export: export.to_owned(),
            replies,
            style,
        })
    }

    /// Takes what came from the server.
    pub(crate) fn advance(&mut self, input: &[u8]) -> Result<Greeted> {
        ensure!(
            !input.is_empty(),
            "the server closed the connection during the handshake"
        );
        let mut greeted = Greeted::default();
        let advance = self
            .handshake
            .advance(input, &mut greeted.out)
            .with_context(|| format!("handshake for export {:?}", self.export))?;
        greeted.starts_tls = advance.starts_tls;
        match advance.end {
            Some(ClientEnd::Transmission(described)) => {
                ensure!(
                    described.headers == self.style,
                    "the server does not offer {:?} replies",
                    self.replies
                );
                ensure!(
                    advance.consumed == input.len(),
                    "the server sent data before any request"
                );
                greeted.export = Some(described);
            }
            Some(other) => bail!("the handshake ended with {other:?}"),
            None => {}
        }
        Ok(greeted)
    }

    /// TLS is in use now: what goes through it first.
    fn tls_started(&mut self) -> Result<Greeted> {
        let mut greeted = Greeted::default();
        self.handshake.tls_started(&mut greeted.out)?;
        Ok(greeted)
    }
}

/// What to ask for, and what has to come of it.
fn wishes(replies: Replies, tls: bool) -> (HeaderStyle, Wishes) {
    let style = match replies {
        Replies::Simple => HeaderStyle::Simple,
        Replies::Structured => HeaderStyle::Structured,
        Replies::Extended => HeaderStyle::Extended,
    };
    let wishes = Wishes {
        extended_headers: style == HeaderStyle::Extended,
        structured_replies: style == HeaderStyle::Structured,
        contexts: Vec::new(),
        tls,
    };
    (style, wishes)
}

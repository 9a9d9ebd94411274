//! Opens an NBD connection: socket, handshake, and whether the export can do what is asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use taipan_nbd::{ClientEnd, ClientExport, ClientHandshake, Goal, HeaderStyle, Wishes};

use crate::options::Replies;
use crate::uri::Address;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection in the transmission phase.
pub(crate) struct Connection {
    /// The socket, blocking.
    pub(crate) socket: OwnedFd,
    /// What the server said of the export.
    pub(crate) export: ClientExport,
}

impl Connection {
    /// Connects, negotiates the replies and chooses the export.
    pub(crate) fn open(address: &Address, replies: Replies) -> Result<Self> {
        match address {
            Address::Unix { socket, export } => {
                let mut stream = UnixStream::connect(socket)
                    .with_context(|| format!("connecting to {}", socket.display()))?;
                stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
                stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
                let export = shake_hands(&mut stream, export, replies)?;
                Ok(Self {
                    socket: stream.into(),
                    export,
                })
            }
            Address::Tcp { host, port, export } => {
                let mut stream = TcpStream::connect((host.as_str(), *port))
                    .with_context(|| format!("connecting to {host} port {port}"))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
                stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
                let export = shake_hands(&mut stream, export, replies)?;
                Ok(Self {
                    socket: stream.into(),
                    export,
                })
            }
            Address::File(path) => bail!("{} is no NBD address", path.display()),
        }
    }
}

fn shake_hands(
    stream: &mut (impl Read + Write),
    export: &str,
    replies: Replies,
) -> Result<ClientExport> {
    let mut greeting = Greeting::new(export, replies)?;
    let mut input = [0; GREETING_BYTES];
    loop {
        let len = stream
            .read(&mut input)
            .context("reading the server's handshake")?;
        let (out, described) = greeting.advance(&input[..len])?;
        stream.write_all(&out).context("sending the handshake")?;
        if let Some(described) = described {
            return Ok(described);
        }
    }
}

/// Bytes of a handshake that are read at once.
pub(crate) const GREETING_BYTES: usize = 4096;

/// The handshake without its socket.
pub(crate) struct Greeting {
    handshake: ClientHandshake,
    export: String,
    replies: Replies,
    style: HeaderStyle,
}

impl Greeting {
    /// Asks for an export and a kind of replies.
    pub(crate) fn new(export: &str, replies: Replies) -> Result<Self> {
        let (style, wishes) = wishes(replies);
        Ok(Self {
            handshake: ClientHandshake::with_wishes(Goal::Go(export.to_owned()), wishes)?,
            export: export.to_owned(),
            replies,
            style,
        })
    }

    /// Takes what came from the server: what to send, and the export once all is said.
    pub(crate) fn advance(&mut self, input: &[u8]) -> Result<(Vec<u8>, Option<ClientExport>)> {
        ensure!(
            !input.is_empty(),
            "the server closed the connection during the handshake"
        );
        let mut out = Vec::new();
        let advance = self
            .handshake
            .advance(input, &mut out)
            .with_context(|| format!("handshake for export {:?}", self.export))?;
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
                Ok((out, Some(described)))
            }
            Some(other) => bail!("the handshake ended with {other:?}"),
            None => Ok((out, None)),
        }
    }
}

/// What to ask for, and what has to come of it.
fn wishes(replies: Replies) -> (HeaderStyle, Wishes) {
    let style = match replies {
        Replies::Simple => HeaderStyle::Simple,
        Replies::Structured => HeaderStyle::Structured,
        Replies::Extended => HeaderStyle::Extended,
    };
    let wishes = Wishes {
        extended_headers: style == HeaderStyle::Extended,
        structured_replies: style == HeaderStyle::Structured,
        contexts: Vec::new(),
        ..Wishes::default()
    };
    (style, wishes)
}

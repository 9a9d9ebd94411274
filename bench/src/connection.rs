//! Opens an NBD connection: socket, handshake, and whether the export can do what is asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use taipan_nbd::{ClientEnd, ClientExport, ClientHandshake, Goal, HeaderStyle, Wishes};

use crate::cli::Replies;
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
    let (style, wishes) = wishes(replies);
    let mut handshake = ClientHandshake::with_wishes(Goal::Go(export.to_owned()), wishes)?;
    let mut out = Vec::new();
    let mut input = [0; 4096];
    loop {
        let len = stream
            .read(&mut input)
            .context("reading the server's handshake")?;
        ensure!(
            len > 0,
            "the server closed the connection during the handshake"
        );
        let advance = handshake
            .advance(&input[..len], &mut out)
            .with_context(|| format!("handshake for export {export:?}"))?;
        stream.write_all(&out).context("sending the handshake")?;
        out.clear();
        match advance.end {
            Some(ClientEnd::Transmission(described)) => {
                ensure!(
                    described.headers == style,
                    "the server does not offer {replies:?} replies"
                );
                ensure!(
                    advance.consumed == len,
                    "the server sent data before any request"
                );
                return Ok(described);
            }
            Some(other) => bail!("the handshake ended with {other:?}"),
            None => {}
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

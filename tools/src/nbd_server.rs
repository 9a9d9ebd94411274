//! Where `taipan import` and `export` find a server: a unix socket or an address, with or without
//! TLS.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use taipan_tls::{ClientSettings, ClientStream};

use crate::control::unreachable;
use crate::failure::{Exit, Failure, Outcome};

const DEFAULT_PORT: u16 = 10809;

/// An NBD server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdServer {
    place: Place,
    /// `None`: in the clear.
    tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tls {
    /// Directory of certificates.
    certificates: PathBuf,
    /// What the server's certificate must name.
    name: String,
}

/// A connection to a server.
pub(crate) enum Wire {
    /// A stream socket, of whatever family.
    Clear(UnixStream),
    /// TLS over one.
    Sealed(Box<ClientStream<UnixStream>>),
}

impl NbdServer {
    /// The server behind a unix socket, in the clear.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self {
            place: Place::Unix(socket),
            tls: None,
        }
    }

    /// Whether the connection has to be under TLS before anything else.
    pub(crate) fn wants_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects, in the clear; `what` cannot be done without.
    pub(crate) fn connect(&self, what: &str) -> Outcome<Wire> {
        let socket = match &self.place {
            Place::Unix(path) => {
                UnixStream::connect(path).map_err(|error| unreachable(what, path, &error))?
            }
            Place::Tcp { host, port } => {
                let connected = TcpStream::connect((host.as_str(), *port));
                let connected = connected.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp));
                let text = |error| format!("{what}: {self}: {error}");
                let tcp =
                    connected.map_err(|error| Failure::new(Exit::Unreachable, text(error)))?;
                // Connected stream sockets are used alike.
                UnixStream::from(OwnedFd::from(tcp))
            }
        };
        Ok(Wire::Clear(socket))
    }

    /// Goes on under TLS.
    pub(crate) fn start_tls(&self, wire: Wire) -> io::Result<Wire> {
        let (Some(tls), Wire::Clear(socket)) = (&self.tls, wire) else {
            return Err(io::Error::other("TLS was not asked for, or twice"));
        };
        let settings = ClientSettings::load(&tls.certificates).map_err(io::Error::other)?;
        let stream = ClientStream::start(&settings, &tls.name, socket)?;
        Ok(Wire::Sealed(Box::new(stream)))
    }
}

impl Wire {
    /// The socket, for its settings.
    pub(crate) fn socket(&self) -> &UnixStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Sealed(stream) => stream.socket(),
        }
    }

    /// Tells the server that nothing more comes.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(_) => Ok(()),
            Self::Sealed(stream) => stream.end(),
        }
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
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write_vectored(slices),
            Self::Sealed(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.flush(),
            Self::Sealed(stream) => stream.flush(),
        }
    }
}

impl FromStr for NbdServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::at(PathBuf::from(text)));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        if !export.is_empty() {
            return Err("the volume is an argument of its own: leave it out here".to_owned());
        }
        let (mut socket, mut certificates, mut name) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value)?;
            match key {
                "socket" => socket = Some(value),
                "tls-certificates" => certificates = Some(value),
                "tls-hostname" => name = Some(value),
                _ => return Err(format!("unknown parameter {key:?}")),
            }
        }
        let place = match scheme {
            "nbd" | "nbds" if socket.is_none() => tcp(host)?,
            "nbd+unix" | "nbds+unix" if host.is_empty() => {
                Place::Unix(socket.ok_or("?socket=PATH is missing")?.into())
            }
            _ => {
                let forms = "PATH, nbd://HOST[:PORT], nbds://HOST[:PORT]?tls-certificates=DIR or \
                             nbds+unix://?socket=PATH&tls-certificates=DIR";
                return Err(format!("write {forms}"));
            }
        };
        let tls = match (scheme.starts_with("nbds"), certificates) {
            (true, Some(certificates)) => Some(Tls {
                certificates: certificates.into(),
                name: name.unwrap_or_else(|| place.name()),
            }),
            (true, None) => return Err("?tls-certificates=DIR is missing".to_owned()),
            (false, None) if name.is_none() => None,
            (false, _) => return Err("TLS is nbds://, not nbd://".to_owned()),
        };
        Ok(Self { place, tls })
    }
}

impl Place {
    /// What a certificate calls it.
    fn name(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tcp { host, .. } => host.clone(),
        }
    }
}

fn tcp(authority: &str) -> Result<Place, String> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
            (host, port)
        }
        _ => (authority, DEFAULT_PORT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match bare.unwrap_or(host) {
        "" => Err("a host is missing".to_owned()),
        host => Ok(Place::Tcp {
            host: host.to_owned(),
            port,
        }),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| format!("{text:?} is not UTF-8"))?;
    Ok(decoded.into_owned())
}

impl fmt::Display for NbdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix(path) => path.display().fmt(f),
            Place::Tcp { host, port } => write!(f, "{host} port {port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(place: Place, tls: Option<(&str, &str)>) -> NbdServer {
        let tls = tls.map(|(certificates, name)| Tls {
            certificates: certificates.into(),
            name: name.to_owned(),
        });
        NbdServer { place, tls }
    }

    #[test]
    fn servers_are_paths_or_uris() {
        let tcp = |host: &str, port| Place::Tcp {
            host: host.to_owned(),
            port,
        };
        let unix = |path: &str| Place::Unix(path.into());
        let rows = [
            ("d/nbd.sock", unix("d/nbd.sock"), None),
            ("nbd+unix://?socket=/a%20b", unix("/a b"), None),
            ("nbd://h", tcp("h", 10809), None),
            ("nbd://[::1]:99/", tcp("::1", 99), None),
            ("nbd://[::1]", tcp("::1", 10809), None),
            (
                "nbds://h:7?tls-certificates=/pki",
                tcp("h", 7),
                Some(("/pki", "h")),
            ),
            (
                "nbds+unix://?socket=/s&tls-certificates=p&tls-hostname=n",
                unix("/s"),
                Some(("p", "n")),
            ),
        ];
        for (text, place, tls) in rows {
            assert_eq!(text.parse(), Ok(server(place, tls)), "{text}");
        }
    }

    #[test]
    fn what_is_no_server_is_refused_with_the_reason() {
        for (text, why) in [
            ("nbd://h/vol0", "an argument of its own"),
            ("nbd://", "a host is missing"),
            ("nbd://h:x", "no port"),
            ("nbds://h", "tls-certificates"),
            ("nbd://h?tls-certificates=/p", "nbds"),
            ("nbd+unix://", "socket"),
            ("nbd://h?socket=/s", "write"),
            ("http://h", "write"),
            ("nbd://h?a=b", "unknown parameter"),
        ] {
            let error = text.parse::<NbdServer>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

//! Listening sockets that another process made for this one: the service manager (socket
//! activation) or the daemon before it (a hand-off).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrAny, getsockname, sockopt};
use taipan_engine::error::{Error, Result};

use crate::handoff::Purpose;

/// A listening socket.
#[derive(Debug)]
pub enum Listening {
    /// On a TCP address.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener, PathBuf),
}

/// Who made a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process.
    Bound,
    /// The daemon before: its path is not removed before this process serves.
    Passed,
    /// The service manager keeps it: it is used whatever the configuration says, and its path is
    /// never removed.
    Activated,
}

/// A listening socket, and whose it is.
#[derive(Debug)]
pub struct Socket {
    /// The socket.
    pub listening: Listening,
    /// Who made it.
    pub origin: Origin,
}

/// Sockets that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<(Purpose, Socket)>,
}

impl Listening {
    /// Which kind of socket a descriptor is; it must listen. `path` is known of a unix socket that
    /// was bound by a relative one.
    pub fn of(descriptor: OwnedFd, path: Option<PathBuf>) -> Result<Self> {
        let failed = |e: rustix::io::Errno| Error::io("looking at a listening socket", e.into());
        if !sockopt::socket_acceptconn(&descriptor).map_err(failed)? {
            return Err(Error::invalid("a socket that was passed does not listen"));
        }
        let address = getsockname(&descriptor).map_err(failed)?;
        match address.address_family() {
            AddressFamily::INET | AddressFamily::INET6 => Ok(Self::Tcp(descriptor.into())),
            AddressFamily::UNIX => {
                let path = path.or_else(|| path_of(&address)).unwrap_or_default();
                Ok(Self::Unix(descriptor.into(), path))
            }
            other => {
                let text = format!("a socket that was passed is of an unknown family: {other:?}");
                Err(Error::invalid(text))
            }
        }
    }

    /// The same socket once more.
    pub fn try_clone(&self) -> Result<OwnedFd> {
        let socket = match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix, _) => unix.as_fd(),
        };
        socket
            .try_clone_to_owned()
            .map_err(|e| Error::io("opening a listening socket again", e))
    }

    /// Whether one that a daemon bound is what a configured address means. A port of 0 means any.
    fn is_at(&self, address: SocketAddr) -> bool {
        let Self::Tcp(tcp) = self else { return false };
        tcp.local_addr().is_ok_and(|bound| match address.port() {
            0 => bound.ip() == address.ip(),
            _ => bound == address,
        })
    }
}

fn path_of(address: &SocketAddrAny) -> Option<PathBuf> {
    let address = rustix::net::SocketAddrUnix::try_from(address.clone()).ok()?;
    let path = address.path()?;
    Some(PathBuf::from(path.to_str().ok()?))
}

impl Inherited {
    /// Adds a socket.
    pub fn add(&mut self, purpose: Purpose, socket: Socket) {
        self.sockets.push((purpose, socket));
    }

    /// The service manager's sockets for that purpose of one kind, which stand for all configured
    /// ones of it: TCP, or unix.
    fn take_activated(&mut self, purpose: Purpose, is_tcp: bool) -> Vec<Socket> {
        self.take_all(|found, socket| {
            let same_kind = matches!(socket.listening, Listening::Tcp(_)) == is_tcp;
            found == purpose && socket.origin == Origin::Activated && same_kind
        })
    }

    fn take_all(&mut self, wanted: impl Fn(Purpose, &Socket) -> bool) -> Vec<Socket> {
        let taken = self
            .sockets
            .extract_if(.., |(purpose, socket)| wanted(*purpose, socket));
        taken.map(|(_, socket)| socket).collect()
    }

    fn take_one(&mut self, wanted: impl Fn(Purpose, &Socket) -> bool) -> Option<Socket> {
        let is_wanted = |(purpose, socket): &(Purpose, Socket)| wanted(*purpose, socket);
        let at = self.sockets.iter().position(is_wanted)?;
        Some(self.sockets.remove(at).1)
    }

    /// TCP sockets for these addresses: the service manager's if it gave any; else those that were
    /// bound to them already, and `bind` for the others.
    pub fn tcp(
        &mut self,
        purpose: Purpose,
        addresses: &[SocketAddr],
        bind: impl Fn(SocketAddr) -> Result<TcpListener>,
    ) -> Result<Vec<Socket>> {
        let activated = self.take_activated(purpose, true);
        if !activated.is_empty() {
            return Ok(activated);
        }
        let one = |address: &SocketAddr| {
            let bound = self.take_one(|found, socket| {
                found == purpose
                    && socket.origin == Origin::Passed
                    && socket.listening.is_at(*address)
            });
            match bound {
                Some(socket) => Ok(socket),
                None => Ok(Socket {
                    listening: Listening::Tcp(bind(*address)?),
                    origin: Origin::Bound,
                }),
            }
        };
        addresses.iter().map(one).collect()
    }

    /// The same for a unix socket. Of several that the service manager gave all are used.
    pub fn unix(
        &mut self,
        purpose: Purpose,
        path: &Path,
        bind: impl FnOnce(&Path) -> Result<UnixListener>,
    ) -> Result<Vec<Socket>> {
        let activated = self.take_activated(purpose, false);
        if !activated.is_empty() {
            return Ok(activated);
        }
        let wanted = absolute(path);
        let bound = self.take_one(|found, socket| {
            let at = matches!(&socket.listening, Listening::Unix(_, at) if absolute(at) == wanted);
            found == purpose && socket.origin == Origin::Passed && at
        });
        let socket = match bound {
            Some(socket) => socket,
            None => Socket {
                listening: Listening::Unix(bind(path)?, path.to_owned()),
                origin: Origin::Bound,
            },
        };
        Ok(vec![socket])
    }
}

/// The same for every name of the place of a socket that exists.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    let resolved = path.canonicalize();
    resolved.unwrap_or_else(|_| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::{listen_tcp, listen_unix};

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn tcp() -> (TcpListener, SocketAddr) {
        let listener = listen_tcp(ANY, "tests").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn socket(listener: impl Into<OwnedFd>, origin: Origin) -> Socket {
        Socket {
            listening: Listening::of(listener.into(), None).unwrap(),
            origin,
        }
    }

    fn addresses(sockets: &[Socket]) -> Vec<SocketAddr> {
        let address = |socket: &Socket| match &socket.listening {
            Listening::Tcp(tcp) => tcp.local_addr().unwrap(),
            Listening::Unix(..) => panic!("not TCP"),
        };
        sockets.iter().map(address).collect()
    }

    fn bind(address: SocketAddr) -> Result<TcpListener> {
        listen_tcp(address, "tests")
    }

    #[test]
    fn what_a_predecessor_bound_is_used_where_it_is_configured() {
        let (mut inherited, mut bound) = (Inherited::default(), Vec::new());
        for _ in 0..2 {
            let (listener, address) = tcp();
            inherited.add(Purpose::Nbd, socket(listener, Origin::Passed));
            bound.push(address);
        }
        let (metrics, _) = tcp();
        inherited.add(Purpose::Metrics, socket(metrics, Origin::Passed));
        let (free, other) = tcp();
        drop(free);
        let found = inherited
            .tcp(Purpose::Nbd, &[bound[1], other, ANY], bind)
            .unwrap();
        assert_eq!(addresses(&found), [bound[1], other, bound[0]]);
        assert_eq!(inherited.sockets.len(), 1, "metrics are another matter");
    }

    #[test]
    fn what_the_service_manager_gives_stands_for_what_is_configured() {
        let (mut inherited, (listener, address)) = (Inherited::default(), tcp());
        inherited.add(Purpose::Nbd, socket(listener, Origin::Activated));
        let (other, configured) = tcp();
        drop(other);
        let found = inherited.tcp(Purpose::Nbd, &[configured], bind).unwrap();
        assert_eq!(addresses(&found), [address]);
        let found = inherited.tcp(Purpose::Nbd, &[configured], bind).unwrap();
        assert_eq!(addresses(&found), [configured], "it gave one");
    }

    #[test]
    fn a_unix_socket_is_found_by_its_place_and_what_does_not_listen_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut inherited = Inherited::default();
        inherited.add(
            Purpose::Control,
            socket(listen_unix(&path, 0o600).unwrap(), Origin::Passed),
        );
        let never = |_: &Path| -> Result<UnixListener> { panic!("bound already") };
        let same = dir.path().join(".").join("s");
        let found = inherited.unix(Purpose::Control, &same, never).unwrap();
        assert!(matches!(&found[0].listening, Listening::Unix(_, at) if *at == path));
        let again = |path: &Path| listen_unix(path, 0o600);
        assert!(
            inherited.unix(Purpose::Control, &path, again).is_err(),
            "it is in use"
        );

        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Listening::of(one.into(), None).is_err());
    }
}

//! Accepts NBD connections on TCP and unix sockets and hands them to the data cores in turn.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use taipan_engine::error::{Error, Result};

use crate::config::Limits;
use crate::connection::half_open::keep_alive;
use crate::directory::Directory;
use crate::inbox::{CoreAddress, CoreMessage};
use crate::metrics::Metrics;
use crate::sockets::{listen_tcp, listen_unix};

/// How often the acceptor looks whether it should end.
const LOOK_MS: i64 = 200;
/// Who may connect to the unix socket: owner and group.
const SOCKET_MODE: u32 = 0o660;
const HOLD_BACK: Duration = Duration::from_millis(100);

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// All listening sockets.
pub struct Listeners {
    sockets: Vec<Listener>,
    limits: Limits,
}

impl Listeners {
    /// Binds everything; an error names the address.
    pub fn bind(tcp: &[SocketAddr], unix: &Path, limits: &Limits) -> Result<Self> {
        let mut sockets = Vec::new();
        for address in tcp {
            let listener = listen_tcp(*address, "NBD")?;
            let failed = |e| Error::io(format!("listen on {address}"), e);
            listener.set_nonblocking(true).map_err(failed)?;
            sockets.push(Listener::Tcp(listener));
        }
        let listener = listen_unix(unix, SOCKET_MODE)?;
        listener
            .set_nonblocking(true)
            .map_err(|e| Error::io("listen on the socket", e).with_path(unix))?;
        sockets.push(Listener::Unix(listener, unix.to_owned()));
        Ok(Self {
            sockets,
            limits: limits.clone(),
        })
    }

    /// The addresses, for the log and the status (a port of 0 shows the one that was given).
    pub fn addresses(&self) -> Vec<String> {
        let address = |listener: &Listener| match listener {
            Listener::Tcp(tcp) => tcp
                .local_addr()
                .map_or_else(|e| format!("tcp ({e})"), |a| a.to_string()),
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        };
        self.sockets.iter().map(address).collect()
    }

    /// Accepts until `stop` is set, then closes the listening sockets.
    pub fn run(
        self,
        cores: &[CoreAddress],
        directory: &Arc<Directory>,
        metrics: &Metrics,
        stop: &AtomicBool,
    ) {
        let mut handed_over = 0;
        while !stop.load(Ordering::Acquire) {
            let mut polled: Vec<PollFd<'_>> = self
                .sockets
                .iter()
                .map(|l| PollFd::from_borrowed_fd(l.fd(), PollFlags::IN))
                .collect();
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: LOOK_MS * 1_000_000,
            };
            if poll(&mut polled, Some(&wait)).is_err() {
                continue;
            }
            let ready: Vec<bool> = polled
                .iter()
                .map(|p| p.revents().contains(PollFlags::IN))
                .collect();
            for (listener, _) in self.sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
                while let Some((socket, peer)) = self.accept(listener) {
                    let open = handed_over - ended_connections(metrics);
                    if open >= u64::from(self.limits.connections_max) {
                        metrics.refused_connections.add(1);
                        tracing::warn!(%peer, "connection limit reached: refused");
                        continue;
                    }
                    let core = handed_over as usize % cores.len();
                    cores[core].send(CoreMessage::Accepted { socket, peer });
                    handed_over += 1;
                }
            }
        }
        directory.stop();
        for listener in &self.sockets {
            if let Listener::Unix(_, path) = listener {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn accept(&self, listener: &Listener) -> Option<(OwnedFd, String)> {
        match listener {
            Listener::Tcp(tcp) => {
                let (stream, peer) = tcp.accept().inspect_err(hold_back).ok()?;
                stream.set_nonblocking(true).ok()?;
                self.tune(&stream);
                Some((stream.into(), peer.to_string()))
            }
            Listener::Unix(unix, _) => {
                let (stream, _) = unix.accept().inspect_err(hold_back).ok()?;
                stream.set_nonblocking(true).ok()?;
                let peer = sockopt::socket_peercred(&stream)
                    .map_or_else(|_| "unix".to_owned(), |c| format!("unix pid {}", c.pid));
                Some((stream.into(), peer))
            }
        }
    }

    /// Small replies at once, and clients that vanished are noticed within a minute or two.
    fn tune(&self, stream: &impl AsFd) {
        let user_timeout_ms =
            u32::try_from(self.limits.tcp_user_timeout.as_millis()).unwrap_or(u32::MAX);
        let results = [
            sockopt::set_tcp_nodelay(stream, true),
            sockopt::set_socket_keepalive(stream, true),
            sockopt::set_tcp_user_timeout(stream, user_timeout_ms),
        ];
        if let Some(error) = results.into_iter().find_map(std::result::Result::err) {
            tracing::warn!(%error, "a TCP option could not be set");
        }
        keep_alive(stream);
    }
}

impl Listener {
    fn fd(&self) -> rustix::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix, _) => unix.as_fd(),
        }
    }
}

/// An accept that fails although a connection waits (no descriptors left) would fail again at once:
/// what waits is looked at later.
fn hold_back(error: &std::io::Error) {
    if error.kind() != ErrorKind::WouldBlock {
        tracing::warn!(%error, "a connection could not be accepted");
        std::thread::sleep(HOLD_BACK);
    }
}

/// Connections handed to the data cores that are over: closed there, or refused.
fn ended_connections(metrics: &Metrics) -> u64 {
    let ended = |c: crate::metrics::ConnectionTotals| c.closed + c.refused;
    metrics.connections().map(ended).sum()
}

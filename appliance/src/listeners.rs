//! Accepts NBD connections on TCP and unix sockets and hands them to the data cores in turn.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt;
use taipan_engine::error::{Error, Result};

use crate::config::Limits;
use crate::connection::half_open::keep_alive;
use crate::directory::Directory;
use crate::handoff::{Offer, Purpose};
use crate::inbox::{CoreAddress, CoreMessage};
use crate::inherited::{Inherited, Listening, Origin, Socket};
use crate::metrics::Metrics;
use crate::sockets::{listen_tcp, listen_unix};

/// Who may connect to the unix socket: owner and group.
const SOCKET_MODE: u32 = 0o660;
const HOLD_BACK: Duration = Duration::from_millis(100);

/// All listening sockets.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<Socket>,
    limits: Limits,
    /// Connections that came to the data cores in any way.
    handed_over: u64,
}

impl Listeners {
    /// Takes what is inherited and binds the rest; an error names the address.
    pub fn bind(
        tcp: &[SocketAddr],
        unix: &Path,
        limits: &Limits,
        inherited: &mut Inherited,
    ) -> Result<Self> {
        let mut sockets = inherited.tcp(Purpose::Nbd, tcp, |address| listen_tcp(address, "NBD"))?;
        sockets.extend(inherited.unix(Purpose::Nbd, unix, |path| listen_unix(path, SOCKET_MODE))?);
        for socket in &sockets {
            let set = match &socket.listening {
                Listening::Tcp(tcp) => tcp.set_nonblocking(true),
                Listening::Unix(unix, _) => unix.set_nonblocking(true),
            };
            set.map_err(|e| Error::io("preparing a listening socket", e))?;
        }
        Ok(Self {
            sockets,
            limits: limits.clone(),
            handed_over: 0,
        })
    }

    /// The addresses, for the log and the status (a port of 0 shows the one that was given).
    pub fn addresses(&self) -> Vec<String> {
        let address = |socket: &Socket| match &socket.listening {
            Listening::Tcp(tcp) => tcp
                .local_addr()
                .map_or_else(|e| format!("tcp ({e})"), |a| a.to_string()),
            Listening::Unix(_, path) => format!("unix:{}", path.display()),
        };
        self.sockets.iter().map(address).collect()
    }

    /// The sockets for a daemon that follows.
    pub fn offers(&self) -> Result<Vec<Offer>> {
        let offer = |socket| Offer::of(Purpose::Nbd, socket);
        self.sockets.iter().map(offer).collect()
    }

    /// So many connections are there without having been accepted here.
    pub fn count_open(&mut self, connections: usize) {
        self.handed_over += connections as u64;
    }

    /// Accepts until `halt`; gives the sockets back, which listen still.
    fn run(mut self, cores: &[CoreAddress], metrics: &Metrics, halt: &Halt) -> Self {
        while !halt.wanted.load(Ordering::Acquire) {
            let mut polled: Vec<PollFd<'_>> = self
                .sockets
                .iter()
                .map(|socket| socket.listening.fd())
                .chain([halt.bell.as_fd()])
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            if poll(&mut polled, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = polled
                .iter()
                .map(|p| p.revents().contains(PollFlags::IN))
                .collect();
            let mut accepted = 0;
            for (socket, _) in self.sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
                while let Some((client, peer)) = self.accept(&socket.listening) {
                    let handed_over = self.handed_over + accepted;
                    let open = handed_over - ended_connections(metrics);
                    if open >= u64::from(self.limits.connections_max) {
                        metrics.refused_connections.add(1);
                        tracing::warn!(%peer, "connection limit reached: refused");
                        continue;
                    }
                    let core = handed_over as usize % cores.len();
                    let socket = client;
                    cores[core].send(CoreMessage::Accepted { socket, peer });
                    accepted += 1;
                }
            }
            self.handed_over += accepted;
        }
        self
    }

    /// No more clients: the sockets are closed, and their paths removed.
    fn close(self) {
        let removable = |socket: &&Socket| socket.origin != Origin::Activated;
        for socket in self.sockets.iter().filter(removable) {
            if let Listening::Unix(_, path) = &socket.listening {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn accept(&self, listener: &Listening) -> Option<(OwnedFd, String)> {
        match listener {
            Listening::Tcp(tcp) => {
                let (stream, peer) = tcp.accept().inspect_err(hold_back).ok()?;
                stream.set_nonblocking(true).ok()?;
                self.tune(&stream);
                Some((stream.into(), peer.to_string()))
            }
            Listening::Unix(unix, _) => {
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

impl Listening {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix, _) => unix.as_fd(),
        }
    }
}

/// Asks the acceptor to end.
struct Halt {
    wanted: AtomicBool,
    bell: OwnedFd,
}

/// The thread that accepts connections.
pub struct Acceptor {
    thread: JoinHandle<Listeners>,
    halt: Arc<Halt>,
}

impl Acceptor {
    /// Starts it.
    pub fn start(
        listeners: Listeners,
        cores: Vec<CoreAddress>,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let failed = |e| Error::io("starting the acceptor", e);
        let bell = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let halt = Arc::new(Halt {
            wanted: AtomicBool::new(false),
            bell,
        });
        let halted = Arc::clone(&halt);
        let thread = std::thread::Builder::new()
            .name("acceptor".to_owned())
            .spawn(move || listeners.run(&cores, &metrics, &halted))
            .map_err(failed)?;
        Ok(Self { thread, halt })
    }

    /// Accepts no more; who connects waits in the backlogs of the sockets.
    pub fn pause(self) -> Result<Listeners> {
        self.halt.wanted.store(true, Ordering::Release);
        // Room for it is always there.
        let _ = rustix::io::write(&self.halt.bell, &1_u64.to_ne_bytes());
        let ended = self.thread.join();
        ended.map_err(|_| Error::invalid("the acceptor panicked"))
    }

    /// Ends: no connection, and no negotiation, gets any further.
    pub fn stop(self, directory: &Directory) {
        let paused = self.pause();
        directory.stop();
        if let Ok(listeners) = paused {
            listeners.close();
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

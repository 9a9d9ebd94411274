//! TLS between a client that speaks in the clear and a server.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use taipan_tls::{ClientSettings, ClientStream};

/// Most bytes that are on their way at a time in each direction.
const PIECE_BYTES: usize = 256 << 10;

/// Does the handshake, and gives the socket of the client. What it sends and receives goes through
/// a thread that ends with either side.
pub(super) fn start(
    server: UnixStream,
    settings: &ClientSettings,
    silence: Duration,
) -> UnixStream {
    let sealed = ClientStream::start(settings, "localhost", server).expect("a TLS handshake");
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    near.set_read_timeout(Some(silence)).expect("a time limit");
    for socket in [sealed.socket(), &far] {
        socket.set_nonblocking(true).expect("no waiting");
    }
    std::thread::spawn(move || {
        let relay = Relay {
            sealed,
            far,
            to_server: Vec::new(),
            to_client: Vec::new(),
            client_has_ended: false,
        };
        // However it ends: both sides see their sockets closed.
        let _ = relay.run();
    });
    near
}

struct Relay {
    sealed: ClientStream<UnixStream>,
    far: UnixStream,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    client_has_ended: bool,
}

impl Relay {
    fn run(mut self) -> io::Result<()> {
        loop {
            self.take_from_client()?;
            self.pass_to_server()?;
            let has_ended = self.take_from_server()?;
            self.pass_to_client()?;
            if has_ended && self.to_client.is_empty() {
                return self.far.shutdown(Shutdown::Both);
            }
            self.wait()?;
        }
    }

    fn take_from_client(&mut self) -> io::Result<()> {
        if !self.to_server.is_empty() || self.client_has_ended {
            return Ok(());
        }
        let mut room = vec![0; PIECE_BYTES];
        match unless_blocked(self.far.read(&mut room))? {
            Some(0) => {
                self.client_has_ended = true;
                self.sealed.end().or_else(ignore_blocked)?;
            }
            Some(bytes) => self.to_server.extend(&room[..bytes]),
            None => {}
        }
        Ok(())
    }

    fn pass_to_server(&mut self) -> io::Result<()> {
        if self.to_server.is_empty() && !self.sealed.wants_send() {
            return Ok(());
        }
        let slices = [io::IoSlice::new(&self.to_server)];
        if let Some(taken) = unless_blocked(self.sealed.try_send(&slices))? {
            self.to_server.drain(..taken);
        }
        Ok(())
    }

    /// Whether the server has closed.
    fn take_from_server(&mut self) -> io::Result<bool> {
        if !self.to_client.is_empty() {
            return Ok(false);
        }
        let mut room = vec![0; PIECE_BYTES];
        let received = unless_blocked(self.sealed.try_receive(&mut room))?;
        self.to_client.extend(&room[..received.unwrap_or_default()]);
        Ok(received == Some(0))
    }

    fn pass_to_client(&mut self) -> io::Result<()> {
        if let Some(taken) = unless_blocked(self.far.write(&self.to_client))? {
            self.to_client.drain(..taken);
        }
        Ok(())
    }

    /// Until something of that can go on.
    fn wait(&self) -> io::Result<()> {
        let when = |flag: PollFlags, holds: bool| match holds {
            true => flag,
            false => PollFlags::empty(),
        };
        let sends = self.sealed.wants_send() || !self.to_server.is_empty();
        let reads_client = self.to_server.is_empty() && !self.client_has_ended;
        let server = when(PollFlags::IN, self.to_client.is_empty()) | when(PollFlags::OUT, sends);
        let client =
            when(PollFlags::IN, reads_client) | when(PollFlags::OUT, !self.to_client.is_empty());
        let mut polled = [
            PollFd::new(self.sealed.socket(), server),
            PollFd::new(&self.far, client),
        ];
        poll(&mut polled, None)?;
        Ok(())
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

fn ignore_blocked(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(error),
    }
}

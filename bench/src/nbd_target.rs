//! One NBD connection under load: direct send and receive, many requests a system call.

use std::io::IoSlice;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as Os;
use rustix::net::sockopt;
use taipan_nbd::HeaderStyle;

use crate::nbd_session::{SLICES_MAX, Session, Shape};
use crate::target::{Answer, Target};
use crate::wire::Wire;
use crate::workload::Op;

/// Longest wait in one receive; the load loop looks at its clock in between.
const RECV_TIMEOUT: Duration = Duration::from_millis(100);
/// Asked of the kernel for unsent requests; it grants what its limits allow.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// An NBD connection with its slots.
pub(crate) struct NbdTarget {
    wire: Wire,
    session: Session,
}

impl NbdTarget {
    /// A connection that has just ended its handshake.
    pub(crate) fn new((wire, style): (Wire, HeaderStyle), shape: Shape) -> Result<Self> {
        let socket = wire.socket();
        // The default buffer may be larger than what is granted here: losing is not an error.
        let _ = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES);
        sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(RECV_TIMEOUT))?;
        // TLS must not wait for the one direction while the other has something.
        socket.set_nonblocking(!wire.is_clear())?;
        Ok(Self {
            wire,
            session: Session::new(style, shape),
        })
    }

    /// Sends as much of the queue as the socket takes.
    fn send(&mut self) -> Result<()> {
        while !self.session.all_sent() || self.wire.wants_send() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.session.unsent(&mut slices);
            match self.wire.send(&slices[..count]) {
                Ok(len) => self.session.advance(len),
                Err(Os::AGAIN) => return Ok(()),
                Err(Os::INTR) => {}
                // Replies that came before are still there to be received; the end follows them.
                Err(Os::PIPE | Os::CONNRESET) => {
                    self.session.abandon();
                    return Ok(());
                }
                Err(error) => return Err(error).context("sending requests"),
            }
        }
        Ok(())
    }

    /// Receives what is there, waiting for at most `patience`.
    fn receive(&mut self, patience: Duration) -> Result<()> {
        let all_sent = self.session.all_sent() && !self.wire.wants_send();
        // One blocking receive is the cheapest wait; polling is for shorter or two-sided waits, and
        // does not see what TLS has opened already.
        let clear = self.wire.is_clear();
        let block = clear && all_sent && patience >= RECV_TIMEOUT;
        let first = if block || !all_sent || !clear {
            self.receive_once(block)?
        } else {
            false
        };
        if first || block {
            return Ok(());
        }
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, !all_sent);
        let timeout = Timespec::try_from(patience)?;
        match poll(&mut [PollFd::new(&self.wire, events)], Some(&timeout)) {
            Ok(0) | Err(Os::INTR) => Ok(()),
            Ok(_) => self.receive_once(false).map(|_| ()),
            Err(error) => Err(error).context("waiting for the server"),
        }
    }

    /// Whether something was received.
    fn receive_once(&mut self, block: bool) -> Result<bool> {
        match self.wire.receive(self.session.room(), block) {
            Ok(len) => self.session.received(len).map(|()| true),
            Err(Os::CONNRESET) => bail!("the server closed the connection"),
            Err(Os::AGAIN | Os::INTR) => Ok(false),
            Err(error) => Err(error).context("receiving replies"),
        }
    }
}

impl Target for NbdTarget {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.session.buffer(slot)
    }

    fn submit(&mut self, slot: usize, op: &Op) -> Result<()> {
        self.session.submit(slot, op)
    }

    async fn turn(&mut self, patience: Duration, answers: &mut Vec<Answer>) -> Result<()> {
        self.send()?;
        self.receive(patience)?;
        self.session.parse(answers)
    }

    async fn finish(&mut self) -> Result<()> {
        let goodbye = self.session.goodbye();
        let sent = self.wire.send(&[IoSlice::new(&goodbye)]);
        sent.context("disconnecting")?;
        Ok(())
    }
}

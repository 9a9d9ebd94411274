//! One NBD connection under load: direct send and receive, many requests a system call.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as Os;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};
use taipan_nbd::{REQUEST_BYTES, RequestHeader, SIMPLE_REPLY_BYTES, SimpleReply};

use crate::target::{Answer, Refused, Target};
use crate::workload::{Kind, Op};

/// Longest wait in one receive; the load loop looks at its clock in between.
const RECV_TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes received at once: small enough to stay in the CPU's second-level cache.
const INPUT_BYTES: usize = 256 << 10;
/// Asked of the kernel for unsent requests; it grants what its limits allow.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// Requests sent in one call.
const SLICES_MAX: usize = 128;

struct Slot {
    /// Header and, behind it, the payload: sent in one piece.
    wire: Vec<u8>,
    wire_len: usize,
    /// Sent and not yet answered.
    busy: bool,
    /// Bytes of data that follow a successful reply.
    read_bytes: usize,
}

/// Data of a read that is still arriving.
struct Arriving {
    slot: usize,
    received: usize,
}

/// An NBD connection with its slots.
pub(crate) struct NbdTarget {
    socket: OwnedFd,
    slots: Vec<Slot>,
    fua: bool,
    keep_data: bool,
    queue: VecDeque<usize>,
    /// Bytes of the queue's front that are sent.
    sent: usize,
    input: Vec<u8>,
    filled: usize,
    arriving: Option<Arriving>,
}

impl NbdTarget {
    /// A connection that has just ended its handshake. `slots` requests of up to `bytes_max` may be
    /// in flight; `keep_data` makes what reads return visible in the slots' buffers.
    pub(crate) fn new(
        socket: OwnedFd,
        slots: usize,
        bytes_max: usize,
        fua: bool,
        keep_data: bool,
    ) -> Result<Self> {
        // The default buffer may be larger than what is granted here: losing is not an error.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(RECV_TIMEOUT))?;
        let slot = || Slot {
            wire: vec![0; REQUEST_BYTES + bytes_max],
            wire_len: 0,
            busy: false,
            read_bytes: 0,
        };
        Ok(Self {
            socket,
            slots: (0..slots).map(|_| slot()).collect(),
            fua,
            keep_data,
            queue: VecDeque::with_capacity(slots),
            sent: 0,
            input: vec![0; INPUT_BYTES],
            filled: 0,
            arriving: None,
        })
    }

    /// Sends as much of the queue as the socket takes.
    fn send(&mut self) -> Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, &slot) in slices.iter_mut().zip(&self.queue) {
                let slot = &self.slots[slot];
                let from = if count == 0 { self.sent } else { 0 };
                *slice = IoSlice::new(&slot.wire[from..slot.wire_len]);
                count += 1;
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &slices[..count], &mut control, flags) {
                Ok(len) => self.advance(len),
                Err(Os::AGAIN) => return Ok(()),
                Err(Os::INTR) => {}
                // Replies that came before are still there to be received; the end follows them.
                Err(Os::PIPE | Os::CONNRESET) => {
                    self.queue.clear();
                    return Ok(());
                }
                Err(error) => return Err(error).context("sending requests"),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut len: usize) {
        while let Some(&slot) = self.queue.front() {
            let left = self.slots[slot].wire_len - self.sent;
            if len < left {
                self.sent += len;
                return;
            }
            len -= left;
            self.sent = 0;
            self.queue.pop_front();
        }
    }

    /// Receives what is there, waiting for at most `patience`.
    fn receive(&mut self, patience: Duration) -> Result<()> {
        let all_sent = self.queue.is_empty();
        // One blocking receive is the cheapest wait; polling is for shorter or two-sided waits.
        let block = all_sent && patience >= RECV_TIMEOUT;
        let first = if block || !all_sent {
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
        match poll(&mut [PollFd::new(&self.socket, events)], Some(&timeout)) {
            Ok(0) | Err(Os::INTR) => Ok(()),
            Ok(_) => self.receive_once(false).map(|_| ()),
            Err(error) => Err(error).context("waiting for the server"),
        }
    }

    /// Whether something was received.
    fn receive_once(&mut self, block: bool) -> Result<bool> {
        let flags = if block {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        match recv(&self.socket, &mut self.input[self.filled..], flags) {
            Ok((0, _)) | Err(Os::CONNRESET) => bail!("the server closed the connection"),
            Ok((len, _)) => {
                self.filled += len;
                Ok(true)
            }
            Err(Os::AGAIN | Os::INTR) => Ok(false),
            Err(error) => Err(error).context("receiving replies"),
        }
    }

    /// Takes all whole answers out of what was received.
    fn parse(&mut self, answers: &mut Vec<Answer>) -> Result<()> {
        let mut at = 0;
        loop {
            if let Some(Arriving { slot, received }) = &mut self.arriving {
                let slot = *slot;
                let wanted = self.slots[slot].read_bytes - *received;
                let len = wanted.min(self.filled - at);
                if self.keep_data {
                    let from = REQUEST_BYTES + *received;
                    let data = &self.input[at..at + len];
                    self.slots[slot].wire[from..from + len].copy_from_slice(data);
                }
                at += len;
                if len < wanted {
                    *received += len;
                    break;
                }
                self.arriving = None;
                answers.push(Answer {
                    slot,
                    outcome: Ok(()),
                });
            }
            let Some(head) = self.input[at..self.filled].first_chunk::<SIMPLE_REPLY_BYTES>() else {
                break;
            };
            let reply = SimpleReply::parse(head).context("the reply stream is broken")?;
            at += SIMPLE_REPLY_BYTES;
            self.reply(reply, answers)?;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    fn reply(&mut self, reply: SimpleReply, answers: &mut Vec<Answer>) -> Result<()> {
        let slot = usize::try_from(reply.cookie).unwrap_or(usize::MAX);
        let Some(state) = self.slots.get_mut(slot).filter(|state| state.busy) else {
            bail!(
                "the server answered request {:#x}, which is not in flight",
                reply.cookie
            );
        };
        state.busy = false;
        match reply.errno {
            Some(errno) => answers.push(Answer {
                slot,
                outcome: Err(Refused::Nbd(errno)),
            }),
            None if state.read_bytes > 0 => self.arriving = Some(Arriving { slot, received: 0 }),
            None => answers.push(Answer {
                slot,
                outcome: Ok(()),
            }),
        }
        Ok(())
    }
}

impl Target for NbdTarget {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        &mut self.slots[slot].wire[REQUEST_BYTES..]
    }

    fn submit(&mut self, slot: usize, op: &Op) -> Result<()> {
        let cookie = slot as u64;
        let header = match op.kind {
            Kind::Read => RequestHeader::read(cookie, op.offset, op.len),
            Kind::Write if self.fua => RequestHeader::write(cookie, op.offset, op.len).with_fua(),
            Kind::Write => RequestHeader::write(cookie, op.offset, op.len),
            Kind::Trim => RequestHeader::trim(cookie, op.offset, op.len),
            Kind::Flush => RequestHeader::flush(cookie),
        };
        let state = &mut self.slots[slot];
        ensure!(!state.busy, "slot {slot} is in use");
        state.busy = true;
        state.wire[..REQUEST_BYTES].copy_from_slice(&header.encode());
        state.wire_len = REQUEST_BYTES + header.payload_len() as usize;
        state.read_bytes = if op.kind == Kind::Read {
            op.len as usize
        } else {
            0
        };
        self.queue.push_back(slot);
        Ok(())
    }

    fn turn(&mut self, patience: Duration, answers: &mut Vec<Answer>) -> Result<()> {
        self.send()?;
        self.receive(patience)?;
        self.parse(answers)
    }

    fn finish(&mut self) -> Result<()> {
        let header = RequestHeader::disconnect().encode();
        rustix::net::send(&self.socket, &header, SendFlags::NOSIGNAL).context("disconnecting")?;
        Ok(())
    }
}

//! The protocol of one NBD connection under load, without its socket: requests that are to be sent,
//! replies that arrive.

use std::collections::VecDeque;
use std::io::IoSlice;

use anyhow::{Result, bail, ensure};
use taipan_nbd::protocol::command_flag;
use taipan_nbd::{EXTENDED_REQUEST_BYTES, Errno, HeaderStyle, Request, RequestHeader};

use crate::replies::{Head, Says};
use crate::target::{Answer, Refused};
use crate::workload::{Kind, Op};

/// Bytes received at once: small enough to stay in the CPU's second-level cache.
const INPUT_BYTES: usize = 256 << 10;
/// Requests sent in one call.
pub(crate) const SLICES_MAX: usize = 128;

struct Slot {
    /// Header and, behind it, the payload: sent in one piece.
    wire: Vec<u8>,
    wire_len: usize,
    /// Sent and not yet answered.
    busy: bool,
    /// First byte that a read asks for.
    read_from: u64,
    /// Bytes that a read asks for, and those of them that have not come.
    read_bytes: usize,
    missing: usize,
    refused: Option<Errno>,
}

/// Bytes of a reply that are still arriving.
struct Arriving {
    slot: usize,
    /// Where in the slot's buffer they belong, if they are data.
    place: Option<usize>,
    left: usize,
    /// Nothing of the reply comes behind them.
    last: bool,
}

/// What a connection's requests are like.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Most requests in flight.
    pub(crate) slots: usize,
    /// Most bytes of a request's data.
    pub(crate) bytes_max: usize,
    /// Whether writes carry FUA.
    pub(crate) fua: bool,
    /// Whether what reads return is kept in the slots' buffers.
    pub(crate) keep_data: bool,
}

/// The state of a connection.
pub(crate) struct Session {
    style: HeaderStyle,
    /// Bytes of a request before its payload.
    header_bytes: usize,
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

impl Session {
    /// A connection that has just ended its handshake.
    pub(crate) fn new(style: HeaderStyle, shape: Shape) -> Self {
        let slot = || Slot {
            wire: vec![0; EXTENDED_REQUEST_BYTES + shape.bytes_max],
            wire_len: 0,
            busy: false,
            read_from: 0,
            read_bytes: 0,
            missing: 0,
            refused: None,
        };
        Self {
            style,
            header_bytes: style.request_bytes(),
            slots: (0..shape.slots).map(|_| slot()).collect(),
            fua: shape.fua,
            keep_data: shape.keep_data,
            queue: VecDeque::with_capacity(shape.slots),
            sent: 0,
            input: vec![0; INPUT_BYTES],
            filled: 0,
            arriving: None,
        }
    }

    /// The payload to write, or what a read returned.
    pub(crate) fn buffer(&mut self, slot: usize) -> &mut [u8] {
        &mut self.slots[slot].wire[self.header_bytes..]
    }

    /// Queues a request in a free slot.
    pub(crate) fn submit(&mut self, slot: usize, op: &Op) -> Result<()> {
        let cookie = slot as u64;
        let header = match op.kind {
            Kind::Read => RequestHeader::read(cookie, op.offset, op.len),
            Kind::Write if self.fua => RequestHeader::write(cookie, op.offset, op.len).with_fua(),
            Kind::Write => RequestHeader::write(cookie, op.offset, op.len),
            Kind::Trim => RequestHeader::trim(cookie, op.offset, op.len),
            Kind::Zeroes => RequestHeader::write_zeroes(cookie, op.offset, op.len),
            Kind::Flush => RequestHeader::flush(cookie),
        };
        let state = &mut self.slots[slot];
        ensure!(!state.busy, "slot {slot} is in use");
        state.busy = true;
        let payload = header.payload_len() as usize;
        put_header(self.style, &header, &mut state.wire[..self.header_bytes]);
        state.wire_len = self.header_bytes + payload;
        (state.read_from, state.read_bytes) = match op.kind {
            Kind::Read => (op.offset, op.len as usize),
            _ => (0, 0),
        };
        state.missing = state.read_bytes;
        self.queue.push_back(slot);
        Ok(())
    }

    /// Whether all requests were sent.
    pub(crate) fn all_sent(&self) -> bool {
        self.queue.is_empty()
    }

    /// Requests to be sent in one call; how many.
    pub(crate) fn unsent<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut count = 0;
        for (slice, &slot) in slices.iter_mut().zip(&self.queue) {
            let slot = &self.slots[slot];
            let from = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&slot.wire[from..slot.wire_len]);
            count += 1;
        }
        count
    }

    /// So many bytes of them were sent.
    pub(crate) fn advance(&mut self, mut len: usize) {
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

    /// The server takes no more; its last replies may still be there.
    pub(crate) fn abandon(&mut self) {
        self.queue.clear();
    }

    /// Where the next bytes from the server go.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.input[self.filled..]
    }

    /// So many bytes came; none means the end.
    pub(crate) fn received(&mut self, len: usize) -> Result<()> {
        ensure!(len > 0, "the server closed the connection");
        self.filled += len;
        Ok(())
    }

    /// The last request of a connection.
    pub(crate) fn goodbye(&self) -> Vec<u8> {
        let mut header = vec![0; self.header_bytes];
        put_header(self.style, &RequestHeader::disconnect(), &mut header);
        header
    }

    /// Takes all whole answers out of what was received.
    pub(crate) fn parse(&mut self, answers: &mut Vec<Answer>) -> Result<()> {
        let mut at = 0;
        loop {
            if let Some(arriving) = &mut self.arriving {
                let len = arriving.left.min(self.filled - at);
                if let Some(place) = arriving.place.filter(|_| self.keep_data) {
                    let from = self.header_bytes + place;
                    let data = &self.input[at..at + len];
                    self.slots[arriving.slot].wire[from..from + len].copy_from_slice(data);
                    arriving.place = Some(place + len);
                }
                at += len;
                arriving.left -= len;
                if arriving.left > 0 {
                    break;
                }
                let (slot, last) = (arriving.slot, arriving.last);
                self.arriving = None;
                if last {
                    answers.push(self.answer(slot)?);
                }
            }
            let Some(head) = Head::parse(self.style, &self.input[at..self.filled])? else {
                break;
            };
            at += head.bytes;
            self.arriving = Some(self.begin(head)?);
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    /// Takes the head of a reply or of a chunk; what belongs to it is to arrive.
    fn begin(&mut self, head: Head) -> Result<Arriving> {
        let slot = usize::try_from(head.cookie).unwrap_or(usize::MAX);
        let Some(state) = self.slots.get_mut(slot).filter(|state| state.busy) else {
            bail!(
                "the server answered request {:#x}, which is not in flight",
                head.cookie
            );
        };
        let simple = self.style == HeaderStyle::Simple;
        let (range, bytes) = match head.says {
            Says::Success if simple => (Some((state.read_from, state.read_bytes)), true),
            Says::Success => (None, false),
            Says::Data(offset, len) => (Some((offset, len)), true),
            Says::Hole(offset, len) => (Some((offset, len)), false),
            Says::Failure(errno, text) => {
                state.refused = Some(errno);
                state.missing = 0;
                let (place, last) = (None, head.last);
                return Ok(Arriving {
                    slot,
                    place,
                    left: text,
                    last,
                });
            }
        };
        let mut arriving = Arriving {
            slot,
            place: None,
            left: 0,
            last: head.last,
        };
        let Some((offset, len)) = range else {
            return Ok(arriving);
        };
        let begin = offset.wrapping_sub(state.read_from);
        let fits = begin <= state.read_bytes as u64 && len <= state.read_bytes - begin as usize;
        ensure!(
            fits && len <= state.missing,
            "data that nobody asked for at {offset}"
        );
        state.missing -= len;
        let begin = begin as usize;
        if bytes {
            (arriving.place, arriving.left) = (Some(begin), len);
        } else if self.keep_data {
            let from = self.header_bytes + begin;
            state.wire[from..from + len].fill(0);
        }
        Ok(arriving)
    }

    /// The reply is complete.
    fn answer(&mut self, slot: usize) -> Result<Answer> {
        let state = &mut self.slots[slot];
        state.busy = false;
        let outcome = match state.refused.take() {
            Some(errno) => Err(Refused::Nbd(errno)),
            None => Ok(()),
        };
        ensure!(state.missing == 0, "a reply ends without all of its data");
        Ok(Answer { slot, outcome })
    }
}

/// Writes a header in the style that was negotiated.
fn put_header(style: HeaderStyle, header: &RequestHeader, out: &mut [u8]) {
    if style != HeaderStyle::Extended {
        return out.copy_from_slice(&header.encode());
    }
    let with_payload = match header.payload_len() {
        0 => 0,
        _ => command_flag::PAYLOAD_LEN,
    };
    let request = Request {
        flags: header.flags | with_payload,
        command: header.command,
        cookie: header.cookie,
        offset: header.offset,
        length: u64::from(header.length),
    };
    out.copy_from_slice(&request.encode_extended());
}

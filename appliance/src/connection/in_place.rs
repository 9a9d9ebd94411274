//! Reads whose blocks are in batch memory: their bytes go to the socket from there.

use std::io::{ErrorKind, IoSlice, Write};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use taipan_engine::block::PAGE_BYTES;
use taipan_nbd::protocol::command;
use taipan_nbd::{Command, HeaderStyle, ReplyHead, ReplyTo, Request};

use super::allowance::ALWAYS_BYTES;
use super::replies::{Answer, data_head};
use super::requests::{Asked, InFlight};
use super::throttled::Toll;
use super::wire::{Socket, Wire};
use super::{Connection, Phase, REQUESTS_PER_TURN, Surroundings, pieces};
use crate::metrics::RequestKind;

/// From here on a READ goes alone, and holes in it are left out.
const LONG_BYTES: u32 = 64 << 10;
/// What QEMU's tools read at once; longer ones would keep others waiting.
const READ_BYTES_MAX: u32 = 2 << 20;
/// Those that go alone.
const LONG: RangeInclusive<u32> = LONG_BYTES..=READ_BYTES_MAX;
/// Most bytes of short ones that go together: a connection that holds nothing may always have so
/// many, so that asking for them takes nothing from others.
const RUN_BYTES_MAX: u64 = 128 << 10;
const _: () = assert!(RUN_BYTES_MAX <= ALWAYS_BYTES);
/// No holes are left out of short ones.
const _: () = assert!(LONG_BYTES as usize <= pieces::READ_BYTES_MIN);
/// Most READs that wait for room in the socket: they are looked at in each turn.
pub(super) const WAITING_READS_MAX: usize = 256;
/// Most slices of one call of the kernel.
const SLICES_MAX: usize = 1024;
/// What waits, a head, and blocks of which the first and the last are partly wanted.
const _: () = assert!(READ_BYTES_MAX as usize / PAGE_BYTES + 3 <= SLICES_MAX);
/// The same of short ones, each with a head.
const _: () = assert!(REQUESTS_PER_TURN * (LONG_BYTES as usize / PAGE_BYTES + 2) < SLICES_MAX);

/// A READ of a run.
struct Taken {
    request: InFlight,
    head: ReplyHead,
    /// Where its pieces end among those of the run.
    end: usize,
}

impl Connection {
    /// Whether a READ of (offset, length), which is next, waits for a socket that is full of
    /// replies: what is all in memory can be sent from there once it has room, and would be copied
    /// now. Only while nothing but READs is behind it: a client that sends anything else may take
    /// no reply before that is received, and behind the end of a file nothing is taken any more.
    pub(super) fn waits_for_room(
        &self,
        (offset, len): (u64, u32),
        around: &Surroundings<'_>,
    ) -> bool {
        let may_wait = self.unread && !self.hung_up && matches!(self.wire, Wire::Clear);
        // One that waits for the limits of its volume has its turn then.
        let is_first = self.toll == Toll::Unknown;
        if !may_wait || !is_first || !LONG.contains(&len) {
            return false;
        }
        let Phase::Transmission(session) = &self.phase else {
            return false;
        };
        let (slot, range) = (session.volume.slot, (offset, u64::from(len)));
        self.only_reads_wait(session.terms.headers())
            && around.core.resident(slot, range, &mut Vec::new())
    }

    /// Whether the receive buffer holds nothing but READs, as far as they are there.
    fn only_reads_wait(&self, style: HeaderStyle) -> bool {
        let bytes = self.input.bytes();
        let is_read = |header| match Request::parse(style, header) {
            Ok(Some(request)) => request.command == command::READ,
            // The rest of it comes, or does not.
            Ok(None) => true,
            Err(_) => false,
        };
        bytes.len() <= WAITING_READS_MAX * style.request_bytes()
            && bytes.chunks(style.request_bytes()).all(is_read)
    }

    /// Answers a READ of (offset, length) with what is in memory, and sends that at once. False,
    /// and nothing has happened, if it is not all there, or to be answered in another form.
    pub(super) fn answer_in_place(
        &mut self,
        to: ReplyTo,
        (offset, len, df): (u64, u32, bool),
        around: &mut Surroundings<'_>,
    ) -> bool {
        if !self.may_send_at_once() || !LONG.contains(&len) {
            return false;
        }
        let Phase::Transmission(session) = &self.phase else {
            return false;
        };
        let range = (offset, u64::from(len));
        let mut content = Vec::with_capacity(len as usize / PAGE_BYTES + 2);
        let slot = session.volume.slot;
        if !around.core.resident(slot, range, &mut content) {
            return false;
        }
        if !df && !to.is_simple() && content.iter().any(|piece| pieces::has_zeros(piece)) {
            return false;
        }
        let blocks = content.len();
        let head = data_head(to, (offset, len), df);
        content.insert(0, head.as_bytes());
        self.send_pieces(&content);
        around.core.count_resident(blocks);
        if self.broken {
            self.gone(around);
        }
        true
    }

    /// Takes up to `most` short READs that are next in the receive buffer and answers them with
    /// what is in memory, in one piece; the number of them. What is not all there, or to be
    /// answered in another form, ends the run and is left to the ordinary way.
    pub(super) fn answer_run(&mut self, most: usize, around: &mut Surroundings<'_>) -> usize {
        let may_begin = self.toll == Toll::Unknown && around.core.cores() == 1;
        if !may_begin || !self.may_send_at_once() || !self.next_is_read() {
            return 0;
        }
        // In case that the socket takes none of it.
        if !self.admits(RUN_BYTES_MAX) {
            return 0;
        }
        let (mut run, mut content) = (Vec::with_capacity(most), Vec::new());
        let bytes = self.take_run(&mut run, &mut content, most, around);
        if run.is_empty() {
            return 0;
        }
        let (mut pieces, mut from) = (Vec::with_capacity(content.len() + run.len()), 0);
        for taken in &run {
            pieces.push(taken.head.as_bytes());
            pieces.extend_from_slice(&content[from..taken.end]);
            from = taken.end;
        }
        let blocks = content.len();
        self.send_pieces(&pieces);
        self.input.consume(bytes);
        around.core.count_resident(blocks);
        if let Phase::Transmission(session) = &mut self.phase {
            for taken in &run {
                session.book(&taken.request, &self.peer, around);
            }
        }
        if self.broken {
            self.gone(around);
        }
        run.len()
    }

    /// Finds the READs of a run and their bytes; the length of their headers.
    fn take_run<'a>(
        &self,
        run: &mut Vec<Taken>,
        content: &mut Vec<&'a [u8]>,
        most: usize,
        around: &'a Surroundings<'_>,
    ) -> usize {
        let Phase::Transmission(session) = &self.phase else {
            return 0;
        };
        if session.volume.throttle.is_on() {
            return 0;
        }
        let style = session.terms.headers();
        let (mut rest, mut room) = (self.input.bytes(), RUN_BYTES_MAX);
        while run.len() < most
            && let Ok(Some(request)) = Request::parse(style, rest)
            && let Ok(Command::Read { offset, len, df }) =
                session.terms.validate(&request, &session.info)
            && (1..LONG_BYTES).contains(&len)
            && let Some(left) = room.checked_sub(u64::from(len))
        {
            let (range, before) = ((offset, u64::from(len)), content.len());
            if !around.core.resident(session.volume.slot, range, content) {
                break;
            }
            let asked = Asked { style, request };
            let to = ReplyTo::new(style, &request);
            let is_whole = df || to.is_simple();
            if !is_whole && content[before..].iter().all(|piece| pieces::is_zero(piece)) {
                content.truncate(before);
                break;
            }
            let kind = (RequestKind::Read, Answer::Content { df });
            run.push(Taken {
                request: InFlight::new(asked, kind, around.now_ns),
                head: data_head(to, (offset, len), df),
                end: content.len(),
            });
            rest = &rest[style.request_bytes()..];
            room = left;
        }
        run.len() * style.request_bytes()
    }

    /// Whether the socket takes bytes as they are, and is not known to be full.
    fn may_send_at_once(&self) -> bool {
        !self.unread && matches!(self.wire, Wire::Clear)
    }

    /// Whether a READ is next in the receive buffer, as far as a glance tells.
    fn next_is_read(&self) -> bool {
        // In headers of both styles, behind magic and flags.
        const COMMAND: std::ops::Range<usize> = 6..8;
        self.input.bytes().get(COMMAND) == Some(&command::READ.to_be_bytes()[..])
    }

    /// Sends what waits and then the pieces of replies; keeps what the socket does not take.
    fn send_pieces(&mut self, pieces: &[&[u8]]) {
        let waiting = &self.output[self.sent..];
        let mut slices = Vec::with_capacity(pieces.len() + 1);
        slices.push(IoSlice::new(waiting));
        slices.extend(pieces.iter().map(|piece| IoSlice::new(piece)));
        let mut taken = loop {
            match Socket(self.socket.as_fd()).write_vectored(&slices) {
                Ok(taken) => break taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        };
        self.progress.took(taken);
        let of_waiting = taken.min(waiting.len());
        taken -= of_waiting;
        self.sent_in_place += taken;
        self.sent += of_waiting;
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        for piece in pieces {
            let of_piece = taken.min(piece.len());
            taken -= of_piece;
            self.output.extend_from_slice(&piece[of_piece..]);
        }
        self.unread |= !self.output.is_empty();
    }
}

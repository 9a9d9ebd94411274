//! Requests of one connection: from the header on the wire to the reply.

use std::time::Duration;

use taipan_engine::core::{Done, Failure, Origin, Progress, RequestKey};
use taipan_engine::wal::MarkKind;
use taipan_nbd::protocol::command_flag;
use taipan_nbd::{
    Command, Errno, ExportInfo, HeaderStyle, Op, Refusal, ReplyTo, Request, StatusQuery,
};

use super::allowance::Need;
use super::errors::{Cause, Failed};
use super::pieces::leave_out_holes;
use super::replies::{Answer, Found, STATUS_BYTES, data_head, hole_head, map_query};
use super::throttled::Toll;
use super::{BURST_BYTES, Connection, Outcome, Phase, REQUESTS_PER_TURN, Session, Surroundings};
use crate::metrics::RequestKind;

/// Payload of a large write is handed on in pieces of at least this many bytes.
const PIECE_BYTES_MIN: usize = 128 << 10;

/// So much of the range of a CACHE is read at most; the rest is as it was.
pub(super) const CACHE_BYTES_MAX: u64 = 1 << 20;

/// What a FAST_ZERO is told that does not cover whole blocks: the old content of the others may
/// have to be fetched.
const NOT_FAST: Refusal = Refusal {
    errno: Errno::NotSup,
    payload: 0,
    close: false,
};

/// A request that is not answered yet.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) to: ReplyTo,
    pub(super) answer: Answer,
    pub(super) kind: RequestKind,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) started_ns: u64,
    pub(super) failure: Option<Failure>,
    /// Its payload did not come wholly: whatever becomes of the parts, it is never answered.
    pub(super) abandoned: bool,
    parts: u32,
    parts_pending: Vec<Pending>,
    /// Bytes of memory that it may hold.
    held: u64,
}

/// A part of a request in the core.
#[derive(Clone, Copy, Debug)]
struct Pending {
    key: RequestKey,
    /// Bytes that are held no more when it ends, if the request goes on: a piece of a stream.
    bytes: u64,
}

/// A request as it came, with the style that it came in.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) style: HeaderStyle,
    pub(super) request: Request,
}

impl Asked {
    fn header_bytes(self) -> usize {
        self.style.request_bytes()
    }

    fn to(self) -> ReplyTo {
        ReplyTo::new(self.style, &self.request)
    }
}

/// A write whose payload is larger than the receive buffer: taken in piece by piece.
pub(super) struct WriteStream {
    pub(super) request: u32,
    pub(super) asked: Request,
    offset: u64,
    pub(super) remaining: usize,
    fua: bool,
}

impl WriteStream {
    /// The rest of a request that another process began.
    pub(super) fn resume(request: u32, asked: Request, remaining: u64) -> Self {
        Self {
            request,
            asked,
            offset: asked.offset + asked.length - remaining,
            remaining: remaining as usize,
            fua: asked.flags & command_flag::FUA != 0,
        }
    }
}

/// A request that is refused once its payload was thrown away. Not before: libnbd drops the answer
/// to a command that it is still sending, and then waits for one for ever.
pub(super) struct Refused {
    pub(super) asked: Asked,
    pub(super) errno: Errno,
    /// Bytes still to come.
    pub(super) payload: usize,
}

/// The table of requests in flight.
#[derive(Default)]
pub(super) struct Requests {
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// Bytes that they hold.
    bytes: u64,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of memory that the requests in flight may hold.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The core's names of all unfinished parts.
    pub(super) fn keys(&self) -> Vec<RequestKey> {
        self.slots
            .iter()
            .flatten()
            .flat_map(|request| request.parts_pending.iter().map(|part| part.key))
            .collect()
    }

    /// Whether nothing is in flight but this request, of which no part is in the core.
    pub(super) fn has_only(&self, index: u32) -> bool {
        let request = self.slots[index as usize].as_ref();
        self.len() == 1 && request.is_some_and(|request| request.parts == 1)
    }

    /// Why a part of the request failed, if one did.
    pub(super) fn failure(&self, index: u32) -> Option<Failure> {
        self.slots[index as usize].as_ref()?.failure
    }

    pub(super) fn insert(&mut self, request: InFlight) -> u32 {
        self.bytes += request.held;
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(request);
                index
            }
            None => {
                self.slots.push(Some(request));
                self.slots.len() as u32 - 1
            }
        }
    }

    fn get(&mut self, index: u32) -> &mut InFlight {
        self.slots[index as usize]
            .as_mut()
            .expect("the request is in flight")
    }

    fn remove(&mut self, index: u32) -> InFlight {
        let request = self.slots[index as usize]
            .take()
            .expect("the request is in flight");
        self.bytes -= request.held;
        self.free.push(index);
        request
    }

    /// One part ended in the core; the request, if that was the last.
    pub(super) fn part_done(&mut self, index: u32, done: &Done) -> Option<InFlight> {
        let request = self.get(index);
        // The core may give the same key to another request now: it must not be cancelled for us.
        let pending = &mut request.parts_pending;
        if let Some(place) = pending.iter().position(|part| part.key == done.key) {
            let freed = pending.swap_remove(place).bytes;
            request.held -= freed;
            self.bytes -= freed;
        }
        let request = self.get(index);
        if let Err(failure) = done.result {
            request.failure.get_or_insert(failure);
        }
        self.drop_part(index)
    }

    /// A part of the request is in the core.
    fn add_part(&mut self, index: u32, part: Pending) {
        let request = self.get(index);
        request.held += part.bytes;
        request.parts_pending.push(part);
        self.bytes += part.bytes;
    }

    /// No more of the request's payload comes: it is dropped unanswered when its parts have ended.
    pub(super) fn abandon(&mut self, index: u32) {
        self.get(index).abandoned = true;
        self.drop_part(index);
    }

    /// One part ended; the request, if that was the last.
    fn drop_part(&mut self, index: u32) -> Option<InFlight> {
        let request = self.get(index);
        request.parts -= 1;
        (request.parts == 0).then(|| self.remove(index))
    }
}

impl InFlight {
    pub(super) fn new(
        asked: Asked,
        (kind, answer): (RequestKind, Answer),
        started_ns: u64,
    ) -> Self {
        let len = asked.request.length;
        let held = match kind {
            RequestKind::Read | RequestKind::Write => len,
            RequestKind::Cache => len.min(CACHE_BYTES_MAX),
            RequestKind::Flush | RequestKind::Trim | RequestKind::Zero => 0,
            RequestKind::Status => STATUS_BYTES,
        };
        Self {
            to: asked.to(),
            answer,
            kind,
            offset: asked.request.offset,
            len,
            started_ns,
            failure: None,
            abandoned: false,
            parts: 1,
            parts_pending: Vec::new(),
            held,
        }
    }
}

impl InFlight {
    /// A write of which another process has taken a part in, and that failed perhaps.
    pub(super) fn streamed(
        asked: Asked,
        kind: (RequestKind, Answer),
        started_ns: u64,
        failure: Option<Failure>,
    ) -> Self {
        Self {
            held: 0,
            failure,
            ..Self::new(asked, kind, started_ns)
        }
    }
}

impl Session {
    /// Counts an answered request and logs an error that is sent, once in a while.
    pub(super) fn book(&mut self, finished: &InFlight, peer: &str, around: &Surroundings<'_>) {
        let took = around.now_ns.saturating_sub(finished.started_ns);
        around
            .counters
            .answered(finished.kind, Duration::from_nanos(took));
        let Some(failure) = finished.failure else {
            self.tally.succeeded(finished.kind, finished.len);
            return self.counters.succeeded(finished.kind, finished.len);
        };
        let failed = Failed {
            kind: Some(finished.kind),
            offset: finished.offset,
            len: finished.len,
            cause: Cause::Engine(failure),
        };
        self.failed(&failed, peer, around.now_ns);
    }
}

/// Refuses a FAST_ZERO that may not be fast.
#[inline]
fn fast_enough(command: Command, export: &ExportInfo) -> Result<Command, Refusal> {
    let block = u64::from(export.preferred_block);
    match command {
        Command::Op(Op::Zero {
            offset,
            len,
            fast: true,
            ..
        }) if len > 0 && !(offset | len).is_multiple_of(block) => Err(NOT_FAST),
        command => Ok(command),
    }
}

impl Connection {
    /// Takes requests out of the receive buffer until it holds no whole one, or there is no room.
    pub(super) fn take_requests(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        let was_starved = self.starved;
        (self.starved, self.late) = (false, false);
        self.take_what_fits(around);
        if self.starved && !was_starved {
            around.counters.parks.connection.add(1);
        }
        Outcome::Waiting
    }

    fn take_what_fits(&mut self, around: &mut Surroundings<'_>) {
        let mut looks = 0;
        while !self.finishing && !self.broken && !self.is_resting() && !self.is_paused(around) {
            looks += 1;
            let is_burst = !self.unread && self.output.len() + self.sent_in_place >= BURST_BYTES;
            let is_much = looks > REQUESTS_PER_TURN && !self.input.bytes().is_empty();
            if is_burst || is_much {
                self.late = true;
                break;
            }
            let Phase::Transmission(session) = &mut self.phase else {
                break;
            };
            if session.refused.is_some() {
                if !self.throw_away() {
                    break;
                }
                continue;
            }
            if session.stream.is_some() {
                if !self.take_piece(around) {
                    break;
                }
                continue;
            }
            let style = session.terms.headers();
            match self.answer_run((REQUESTS_PER_TURN + 1).saturating_sub(looks), around) {
                0 => {}
                answered => {
                    looks += answered - 1;
                    continue;
                }
            }
            let request = match Request::parse(style, self.input.bytes()) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(_) => {
                    tracing::info!(peer = %self.peer, "bad request magic: connection closed");
                    around.counters.connections.protocol_errors.add(1);
                    self.broken = true;
                    self.gone(around);
                    break;
                }
            };
            if !self.take_request(Asked { style, request }, around) {
                break;
            }
        }
    }

    /// Whether there is memory for so many bytes more.
    pub(super) fn admits(&mut self, bytes: u64) -> bool {
        let need = Need {
            bytes,
            held: self.held(),
            unread: self.unread,
        };
        self.share.admits(need)
    }

    /// Whether a write is taken in as a whole, in one piece with its header.
    fn is_in_one_piece(&self, header_bytes: usize, payload: usize) -> bool {
        header_bytes + payload <= self.input.capacity() / 2
    }

    /// Handles one request; false if its payload is not here yet.
    fn take_request(&mut self, asked: Asked, around: &mut Surroundings<'_>) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let legal = session.terms.validate(&asked.request, &session.info);
        let command = match legal.and_then(|command| fast_enough(command, &session.info)) {
            Ok(command) => command,
            Err(refusal) => return self.refuse(asked, refusal, around),
        };
        if let Command::Read { offset, len, .. } = command
            && self.waits_for_room((offset, len), around)
        {
            return false;
        }
        let in_one_piece = |len| self.is_in_one_piece(asked.header_bytes(), len as usize);
        let (bytes, maps) = match command {
            // The pieces of others are counted one by one.
            Command::Op(Op::Write { len, .. }) if !in_one_piece(len) => (0, 0),
            Command::Op(Op::Write { len, .. }) | Command::Read { len, .. } => (u64::from(len), 0),
            Command::Op(Op::Cache { len, .. }) => (len.min(CACHE_BYTES_MAX), 0),
            Command::Status(_) | Command::StatusPayload { .. } => (STATUS_BYTES, 1),
            Command::Op(_) => (0, 0),
        };
        self.late = *around.maps_left < maps;
        // A write may wait for a backend for ever: it never holds what is there only once.
        let first = matches!(command, Command::Op(Op::Write { .. })) && self.held() == 0;
        self.starved = !self.late && bytes > 0 && !first && !self.admits(bytes);
        if self.late || self.starved || !self.may_begin(&command, around) {
            return false;
        }
        *around.maps_left -= maps;
        let taken = self.begin(asked, command, around);
        if taken {
            self.toll = Toll::Unknown;
        }
        taken
    }

    /// Begins with a request; false if its payload is not here yet.
    fn begin(&mut self, asked: Asked, command: Command, around: &mut Surroundings<'_>) -> bool {
        match command {
            Command::Op(Op::Write { offset, len, fua }) => {
                return self.take_write(asked, (offset, len as usize, fua), around);
            }
            Command::StatusPayload {
                offset,
                one,
                payload,
            } => return self.take_status(asked, (offset, one, payload as usize), around),
            Command::Status(query) => {
                self.input.consume(asked.header_bytes());
                self.start_status(asked, query, around);
            }
            Command::Read { offset, len, df } => {
                self.input.consume(asked.header_bytes());
                self.start_read(asked, (offset, len, df), around);
            }
            Command::Op(op) => {
                self.input.consume(asked.header_bytes());
                self.start_op(asked, op, around);
            }
        }
        true
    }

    /// Refuses a request, to be answered behind its payload; false if the connection ends by it.
    fn refuse(&mut self, asked: Asked, refusal: Refusal, around: &mut Surroundings<'_>) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let request = &asked.request;
        if refusal.close {
            tracing::info!(peer = %self.peer, len = request.length, "payload too large: closed");
            around.counters.connections.protocol_errors.add(1);
            self.broken = true;
            self.gone(around);
            return false;
        }
        let failed = Failed::refused(request, refusal.errno, session.info.size);
        session.failed(&failed, &self.peer, around.now_ns);
        session.refused = Some(Refused {
            asked,
            errno: refusal.errno,
            payload: refusal.payload as usize,
        });
        self.input.consume(asked.header_bytes());
        true
    }

    /// Throws away what is here of a refused request's payload, and answers when that was all of
    /// it; false if more has to come.
    fn throw_away(&mut self) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let Some(refused) = &mut session.refused else {
            return false;
        };
        let n = refused.payload.min(self.input.bytes().len());
        self.input.consume(n);
        refused.payload -= n;
        if refused.payload > 0 {
            return false;
        }
        let Refused { asked, errno, .. } = refused;
        let cause = Cause::of_refusal(&asked.request, *errno, session.info.size);
        cause.answer(asked.to(), &mut self.output);
        session.refused = None;
        true
    }

    /// Starts what needs neither payload nor an answer of its own kind.
    fn start_op(&mut self, asked: Asked, op: Op, around: &mut Surroundings<'_>) {
        let now_ns = around.now_ns;
        let request = |kind| InFlight::new(asked, (kind, Answer::Nothing), now_ns);
        match op {
            Op::Flush => self.start(request(RequestKind::Flush), around, |core, origin, slot| {
                core.flush(origin, slot)
            }),
            Op::Trim { offset, len, fua } => {
                self.start(request(RequestKind::Trim), around, |core, origin, slot| {
                    core.mark(origin, slot, offset, len, MarkKind::Trim, fua)
                });
            }
            Op::Zero {
                offset, len, fua, ..
            } => {
                self.start(request(RequestKind::Zero), around, |core, origin, slot| {
                    core.mark(origin, slot, offset, len, MarkKind::Zero, fua)
                });
            }
            // Read, which brings it into the caches, and not sent.
            Op::Cache { offset, len } => {
                let len = len.min(CACHE_BYTES_MAX);
                self.start(request(RequestKind::Cache), around, |core, origin, slot| {
                    core.read(origin, slot, offset, len, &mut Vec::new())
                });
            }
            Op::Disconnect => self.finishing = true,
            Op::Read { .. } | Op::Write { .. } => unreachable!("these have ways of their own"),
        }
    }

    /// Takes a BLOCK_STATUS that names its contexts in a payload; false if that is not here yet.
    fn take_status(
        &mut self,
        asked: Asked,
        (offset, one, payload): (u64, bool, usize),
        around: &mut Surroundings<'_>,
    ) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let end = asked.header_bytes() + payload;
        let Some(bytes) = self.input.bytes().get(asked.header_bytes()..end) else {
            return false;
        };
        let query = session
            .terms
            .status_payload(offset, one, bytes, &session.info);
        self.input.consume(end);
        match query {
            Ok(query) => self.start_status(asked, query, around),
            Err(errno) => {
                let failed = Failed::refused(&asked.request, errno, session.info.size);
                session.failed(&failed, &self.peer, around.now_ns);
                failed.cause.answer(asked.to(), &mut self.output);
            }
        }
        true
    }

    fn start_status(&mut self, asked: Asked, query: StatusQuery, around: &mut Surroundings<'_>) {
        let Phase::Transmission(session) = &self.phase else {
            return;
        };
        let slot = session.volume.slot;
        let map = map_query(&query, &session.terms, &session.bitmaps);
        let answer = (RequestKind::Status, Answer::Status(query));
        let mut request = InFlight::new(asked, answer, around.now_ns);
        // With a payload the length in the header is that of the payload.
        request.len = query.len;
        let index = self.requests.insert(request);
        let origin = Origin::Client(self.id.ticket(index));
        let mut extents = Vec::new();
        match around.core.map(origin, slot, map, &mut extents) {
            Progress::Done => {
                let finished = self.requests.remove(index);
                let found = Found {
                    extents: &extents,
                    ..Found::default()
                };
                self.reply(&finished, found, around);
            }
            progress => self.settle_part(index, (progress, 0), around),
        }
    }

    fn take_write(
        &mut self,
        asked: Asked,
        (offset, len, fua): (u64, usize, bool),
        around: &mut Surroundings<'_>,
    ) -> bool {
        let header_bytes = asked.header_bytes();
        let available = self.input.bytes().len() - header_bytes;
        let fits = self.is_in_one_piece(header_bytes, len);
        if available < len && fits {
            return false;
        }
        let kind = (RequestKind::Write, Answer::Nothing);
        let mut request = InFlight::new(asked, kind, around.now_ns);
        if !fits {
            request.held = 0;
            self.input.consume(header_bytes);
            let request = self.requests.insert(request);
            let Phase::Transmission(session) = &mut self.phase else {
                return false;
            };
            session.stream = Some(WriteStream {
                request,
                asked: asked.request,
                offset,
                remaining: len,
                fua,
            });
            return true;
        }
        let Phase::Transmission(session) = &self.phase else {
            return false;
        };
        let slot = session.volume.slot;
        let index = self.requests.insert(request);
        let origin = Origin::Client(self.id.ticket(index));
        let data = &self.input.bytes()[header_bytes..header_bytes + len];
        let progress = around.core.write(origin, slot, offset, data, fua);
        self.input.consume(header_bytes + len);
        self.settle_part(index, (progress, 0), around);
        true
    }

    /// Hands on the next piece of a large write; false if too little of it is here.
    fn take_piece(&mut self, around: &mut Surroundings<'_>) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let Some(stream) = &mut session.stream else {
            return false;
        };
        let available = self.input.bytes().len();
        let mut take = available.min(stream.remaining);
        if take < stream.remaining {
            // Pieces end at block borders, so that no block is written twice for one request.
            let block = u64::from(session.info.preferred_block);
            let end = (stream.offset + take as u64) / block * block;
            take = end.saturating_sub(stream.offset) as usize;
            if take < PIECE_BYTES_MIN {
                return false;
            }
        }
        if self.requests.get(stream.request).held > 0 && !self.admits(take as u64) {
            self.starved = true;
            return false;
        }
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let Some(stream) = &mut session.stream else {
            return false;
        };
        let (request, offset, fua) = (stream.request, stream.offset, stream.fua);
        stream.offset += take as u64;
        stream.remaining -= take;
        let last = stream.remaining == 0;
        if last {
            session.stream = None;
        }
        let slot = session.volume.slot;
        let origin = Origin::Client(self.id.ticket(request));
        if !last {
            self.requests.get(request).parts += 1;
        }
        let data = &self.input.bytes()[..take];
        let progress = around.core.write(origin, slot, offset, data, fua);
        self.input.consume(take);
        self.settle_part(request, (progress, take as u64), around);
        true
    }

    fn start_read(
        &mut self,
        asked: Asked,
        (offset, len, df): (u64, u32, bool),
        around: &mut Surroundings<'_>,
    ) {
        let kind = (RequestKind::Read, Answer::Content { df });
        let request = InFlight::new(asked, kind, around.now_ns);
        let to = request.to;
        let in_place = self.answer_in_place(to, (offset, len, df), around);
        let Phase::Transmission(session) = &mut self.phase else {
            return;
        };
        if in_place {
            return session.book(&request, &self.peer, around);
        }
        let slot = session.volume.slot;
        let index = self.requests.insert(request);
        let origin = Origin::Client(self.id.ticket(index));
        let start = self.output.len();
        let head = data_head(to, (offset, len), df);
        self.output.extend_from_slice(head.as_bytes());
        let content = self.output.len();
        match around
            .core
            .read(origin, slot, offset, u64::from(len), &mut self.output)
        {
            Progress::Done => {
                let data = &self.output[content..];
                if let Some(hole) = hole_head(to, (offset, len), df, data) {
                    self.output.truncate(start);
                    self.output.extend_from_slice(hole.as_bytes());
                } else {
                    let (range, places) = ((offset, len), (start, content));
                    leave_out_holes(to, range, df, places, &mut self.output);
                }
                let finished = self.requests.remove(index);
                session.book(&finished, &self.peer, around);
            }
            progress => {
                self.output.truncate(start);
                self.settle_part(index, (progress, 0), around);
            }
        }
    }

    fn start(
        &mut self,
        request: InFlight,
        around: &mut Surroundings<'_>,
        call: impl FnOnce(
            &mut taipan_engine::core::Core,
            Origin,
            taipan_engine::shard::VolumeSlot,
        ) -> Progress,
    ) {
        let Phase::Transmission(session) = &self.phase else {
            return;
        };
        let slot = session.volume.slot;
        let index = self.requests.insert(request);
        let progress = call(around.core, Origin::Client(self.id.ticket(index)), slot);
        self.settle_part(index, (progress, 0), around);
    }

    /// Books what a call into the core said about one part of a request: a piece of a stream has so
    /// many bytes, which are held as long as it takes.
    fn settle_part(
        &mut self,
        index: u32,
        (progress, bytes): (Progress, u64),
        around: &mut Surroundings<'_>,
    ) {
        match progress {
            Progress::Pending(key) => return self.requests.add_part(index, Pending { key, bytes }),
            Progress::Failed(failure) => {
                self.requests.get(index).failure.get_or_insert(failure);
            }
            Progress::Done => {}
        }
        if let Some(finished) = self.requests.drop_part(index) {
            self.reply(&finished, Found::default(), around);
        }
    }
}

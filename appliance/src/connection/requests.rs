//! Requests of one connection: from the header on the wire to the reply.

use std::time::Duration;

use taipan_engine::core::{Done, Failure, Origin, Progress, RequestKey};
use taipan_engine::wal::MarkKind;
use taipan_nbd::{Errno, Op, REQUEST_BYTES, RequestHeader, simple_reply, validate};

use super::allowance::Share;
use super::{Connection, Outcome, Phase, Session, Surroundings};
use crate::metrics::RequestKind;

/// Payload of a large write is handed on in pieces of at least this many bytes.
const PIECE_BYTES_MIN: usize = 128 << 10;

/// A request that is not answered yet.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) cookie: u64,
    pub(super) kind: RequestKind,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) started_ns: u64,
    pub(super) failure: Option<Failure>,
    parts: u32,
    keys: Vec<RequestKey>,
}

/// A write whose payload is larger than the receive buffer: taken in piece by piece.
pub(super) struct WriteStream {
    pub(super) request: u32,
    offset: u64,
    remaining: usize,
    fua: bool,
}

/// The table of requests in flight.
pub(super) struct Requests {
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    share: Share,
}

impl Requests {
    pub(super) fn new(share: Share) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            share,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Payload bytes of the requests in flight.
    pub(super) fn bytes(&self) -> u64 {
        self.share.held()
    }

    /// The core's names of all unfinished parts.
    pub(super) fn keys(&self) -> Vec<RequestKey> {
        self.slots
            .iter()
            .flatten()
            .flat_map(|request| request.keys.iter().copied())
            .collect()
    }

    fn insert(&mut self, request: InFlight) -> u32 {
        self.share.take(request.payload());
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
        self.share.give_back(request.payload());
        self.free.push(index);
        request
    }

    /// One part ended in the core; the request, if that was the last.
    pub(super) fn part_done(&mut self, index: u32, done: &Done) -> Option<InFlight> {
        let request = self.get(index);
        // The core may give the same key to another request now: it must not be cancelled for us.
        request.keys.retain(|key| *key != done.key);
        if let Err(failure) = done.result {
            request.failure.get_or_insert(failure);
        }
        self.drop_part(index)
    }

    /// One part ended; the request, if that was the last.
    pub(super) fn drop_part(&mut self, index: u32) -> Option<InFlight> {
        let request = self.get(index);
        request.parts -= 1;
        (request.parts == 0).then(|| self.remove(index))
    }
}

impl InFlight {
    fn new(header: &RequestHeader, kind: RequestKind, started_ns: u64) -> Self {
        Self {
            cookie: header.cookie,
            kind,
            offset: header.offset,
            len: u64::from(header.length),
            started_ns,
            failure: None,
            parts: 1,
            keys: Vec::new(),
        }
    }

    /// Bytes of memory that the request may hold.
    fn payload(&self) -> u64 {
        match self.kind {
            RequestKind::Read | RequestKind::Write => self.len,
            RequestKind::Flush | RequestKind::Trim | RequestKind::Zero | RequestKind::Cache => 0,
        }
    }
}

/// The errno of a failure: the one place where the engine's failures meet the protocol.
pub(super) fn errno_of(failure: Failure) -> Errno {
    match failure {
        Failure::Io => Errno::Io,
        Failure::NoSpace => Errno::NoSpc,
        Failure::ReadOnly => Errno::Perm,
        Failure::Gone => Errno::Shutdown,
    }
}

impl Session {
    /// Counts an answered request and logs an error that is sent, once in a while.
    pub(super) fn book(&mut self, finished: &InFlight, peer: &str, around: &Surroundings<'_>) {
        let took = around.now_ns.saturating_sub(finished.started_ns);
        around
            .counters
            .answered(finished.kind, Duration::from_nanos(took));
        match finished.failure {
            None => self.counters.succeeded(finished.kind, finished.len),
            Some(failure) => {
                self.counters.failed(finished.kind);
                let Some(unsaid) = self.failures.note(around.now_ns) else {
                    return;
                };
                tracing::warn!(
                    volume = %self.volume.name,
                    peer,
                    request = finished.kind.name(),
                    offset = finished.offset,
                    len = finished.len,
                    cause = ?failure,
                    unsaid,
                    "request failed"
                );
            }
        }
    }
}

impl Connection {
    /// Takes requests out of the receive buffer until it holds no whole one, or there is no room.
    pub(super) fn take_requests(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        self.starved = false;
        while !self.finishing && !self.broken && !self.is_paused(around) {
            let Phase::Transmission(session) = &mut self.phase else {
                break;
            };
            if session.discard > 0 {
                let n = (self.input.bytes().len() as u64).min(session.discard);
                if n == 0 {
                    break;
                }
                self.input.consume(n as usize);
                session.discard -= n;
                continue;
            }
            if session.stream.is_some() {
                if !self.take_piece(around) {
                    break;
                }
                continue;
            }
            let Some(bytes) = self.input.bytes().first_chunk::<REQUEST_BYTES>() else {
                break;
            };
            let Ok(header) = RequestHeader::parse(bytes) else {
                tracing::info!(peer = %self.peer, "bad request magic: connection closed");
                around.counters.connections.protocol_errors.add(1);
                self.broken = true;
                return self.gone(around);
            };
            if !self.take_request(&header, around) {
                break;
            }
        }
        Outcome::Waiting
    }

    /// Handles one request; false if its payload is not here yet.
    fn take_request(&mut self, header: &RequestHeader, around: &mut Surroundings<'_>) -> bool {
        let Phase::Transmission(session) = &mut self.phase else {
            return false;
        };
        let op = match validate(header, &session.info) {
            Ok(op) => op,
            Err(refusal) if refusal.close => {
                tracing::info!(peer = %self.peer, len = header.length, "payload too large: closed");
                around.counters.connections.protocol_errors.add(1);
                self.broken = true;
                self.gone(around);
                return false;
            }
            Err(refusal) => {
                tracing::info!(
                    volume = %session.volume.name, peer = %self.peer, command = header.command,
                    flags = header.flags, offset = header.offset, len = header.length,
                    errno = ?refusal.errno, "request refused"
                );
                session.discard = u64::from(refusal.payload);
                self.input.consume(REQUEST_BYTES);
                self.output
                    .extend_from_slice(&simple_reply(Some(refusal.errno), header.cookie));
                return true;
            }
        };
        if let Op::Write { len, .. } | Op::Read { len, .. } = op
            && self.unsent.must_wait(u64::from(len), self.held())
        {
            around.counters.parks.connection.add(1);
            self.starved = true;
            return false;
        }
        if let Op::Write { offset, len, fua } = op {
            return self.take_write(header, (offset, len as usize, fua), around);
        }
        self.input.consume(REQUEST_BYTES);
        let request = |kind| InFlight::new(header, kind, around.now_ns);
        match op {
            Op::Read { offset, len } => {
                self.start_read(request(RequestKind::Read), offset, len, around);
            }
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
            // Advisory: what is in memory is fast already, and nothing else is cached yet.
            Op::Cache { .. } => {
                self.start(request(RequestKind::Cache), around, |_, _, _| {
                    Progress::Done
                });
            }
            Op::Disconnect => self.finishing = true,
            Op::Write { .. } => unreachable!("handled above"),
        }
        true
    }

    fn take_write(
        &mut self,
        header: &RequestHeader,
        (offset, len, fua): (u64, usize, bool),
        around: &mut Surroundings<'_>,
    ) -> bool {
        let available = self.input.bytes().len() - REQUEST_BYTES;
        let fits = REQUEST_BYTES + len <= self.input.capacity() / 2;
        if available < len && fits {
            return false;
        }
        let request = InFlight::new(header, RequestKind::Write, around.now_ns);
        if !fits {
            self.input.consume(REQUEST_BYTES);
            let request = self.requests.insert(request);
            let Phase::Transmission(session) = &mut self.phase else {
                return false;
            };
            session.stream = Some(WriteStream {
                request,
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
        let data = &self.input.bytes()[REQUEST_BYTES..REQUEST_BYTES + len];
        let progress = around.core.write(origin, slot, offset, data, fua);
        self.input.consume(REQUEST_BYTES + len);
        self.settle_part(index, progress, around);
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
        self.settle_part(request, progress, around);
        true
    }

    fn start_read(
        &mut self,
        request: InFlight,
        offset: u64,
        len: u32,
        around: &mut Surroundings<'_>,
    ) {
        let Phase::Transmission(session) = &mut self.phase else {
            return;
        };
        let slot = session.volume.slot;
        let index = self.requests.insert(request);
        let origin = Origin::Client(self.id.ticket(index));
        let cookie = self.requests.get(index).cookie;
        let start = self.output.len();
        self.output.extend_from_slice(&simple_reply(None, cookie));
        match around
            .core
            .read(origin, slot, offset, u64::from(len), &mut self.output)
        {
            Progress::Done => {
                let finished = self.requests.remove(index);
                session.book(&finished, &self.peer, around);
            }
            progress => {
                self.output.truncate(start);
                self.settle_part(index, progress, around);
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
        self.settle_part(index, progress, around);
    }

    /// Books what a call into the core said about one part of a request.
    fn settle_part(&mut self, index: u32, progress: Progress, around: &mut Surroundings<'_>) {
        match progress {
            Progress::Pending(key) => return self.requests.get(index).keys.push(key),
            Progress::Failed(failure) => {
                self.requests.get(index).failure.get_or_insert(failure);
            }
            Progress::Done => {}
        }
        if let Some(finished) = self.requests.drop_part(index) {
            self.reply(&finished, &[], around);
        }
    }
}

//! A connection comes to rest at a request boundary, becomes bytes, and goes on in another process.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use taipan_nbd::{Awaited, ExportDirectory, ExportInfo, Request, Session as Terms};

use super::failure_log::FailureLog;
use super::replies::{Answer, hold_bitmaps};
use super::requests::{Asked, InFlight, Refused, WriteStream};
use super::roster::Tally;
use super::{Allowance, Connection, ConnectionId, Lookup, Outcome, Phase, Session, Surroundings};
use crate::access::Client;
use crate::directory::Volume;
use crate::handoff::format::Begun;
use crate::handoff::{Handed, Passed};
use crate::metrics::RequestKind;

/// How far a connection is on its way to another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rest {
    /// It is served here.
    #[default]
    Served,
    /// Requests are not read any more; what is in flight is answered.
    Parked,
    /// Another process has its state: nothing may be received or sent.
    Handed,
}

/// A connection of the process before, until it is known what it is about.
pub(super) struct Resuming {
    passed: Box<Passed>,
    /// A snapshot that is being opened.
    pub(super) lookup: Lookup,
}

impl Connection {
    /// Reads no more requests.
    pub fn park(&mut self) {
        self.rest = Rest::Parked;
    }

    /// Goes on after all.
    pub fn unpark(&mut self) {
        self.rest = Rest::Served;
    }

    /// Whether no request is read now. A handshake goes on until it has come to an end.
    #[inline]
    pub(super) fn is_resting(&self) -> bool {
        match &self.phase {
            Phase::Transmission(_) => self.rest != Rest::Served,
            Phase::Resuming(_) => true,
            Phase::Handshake { .. } | Phase::Joining { .. } => false,
        }
    }

    /// Whether another process has its state.
    pub fn is_handed(&self) -> bool {
        self.rest == Rest::Handed
    }

    /// Whether it is not known yet what the client wants.
    pub fn is_negotiating(&self) -> bool {
        !matches!(self.phase, Phase::Transmission(_)) && !self.finishing && !self.broken
    }

    /// Whether nothing is in flight, but for a write of which a part is still to come. Bytes that
    /// the client does not take are passed on.
    pub fn is_at_rest(&self) -> bool {
        match &self.phase {
            Phase::Transmission(session) => match &session.stream {
                Some(stream) => self.requests.has_only(stream.request),
                None => self.requests.is_empty(),
            },
            _ => true,
        }
    }

    /// Its socket and state for another process; `None` if it cannot or need not go on there. From
    /// now on nothing is received or sent here, until [`Connection::unpark`].
    pub fn hand_over(&mut self, core: usize, age_ms: u64) -> io::Result<Option<Handed>> {
        let over = self.finishing || self.broken;
        let Phase::Transmission(session) = &self.phase else {
            return Ok(None);
        };
        let waiting = self.input.bytes().len() + self.output.len() - self.sent;
        if over || self.is_tls() || waiting > WAITING_BYTES_MAX {
            return Ok(None);
        }
        let passed = Passed {
            core: core as u16,
            read_only: session.info.read_only,
            age_ms,
            size_bytes: session.info.size,
            tally: session.tally.counts(),
            export: session.volume.label(),
            peer: self.peer.clone(),
            agreement: session.terms.agreement(),
            begun: self.begun(session),
            input: self.input.bytes().to_vec(),
            output: self.output[self.sent..].to_vec(),
        };
        let socket = self.socket.as_fd().try_clone_to_owned()?;
        self.rest = Rest::Handed;
        Ok(Some(Handed {
            socket,
            passed: Box::new(passed),
        }))
    }

    fn begun(&self, session: &Session) -> Begun {
        if let Some(stream) = &session.stream {
            return Begun::Write {
                request: stream.asked,
                remaining: stream.remaining as u64,
                failure: self.requests.failure(stream.request),
            };
        }
        match &session.refused {
            Some(refused) => Begun::Refused {
                request: refused.asked.request,
                remaining: refused.payload as u64,
                errno: refused.errno,
            },
            None => Begun::Nothing,
        }
    }

    /// A connection of the process before; [`Connection::resume`] is to be called next.
    pub fn resumed(id: ConnectionId, handed: Handed, allowance: Arc<Allowance>) -> Self {
        let Handed { socket, passed } = handed;
        let peer = passed.peer.clone();
        let mut connection = Self::new(id, socket, peer, u64::MAX, allowance, None);
        connection.output.clear();
        connection.phase = Phase::Resuming(Box::new(Resuming {
            passed,
            lookup: Lookup::default(),
        }));
        connection
    }

    /// Goes on where the process before stopped. A snapshot is opened first.
    pub fn resume(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        let Phase::Resuming(resuming) = &mut self.phase else {
            return Outcome::Waiting;
        };
        let told = std::mem::take(&mut resuming.lookup);
        let client = Client {
            address: self.peer_ip,
            ..Client::default()
        };
        let exports = told.exports(around.directory.seen_by(client));
        let name = &resuming.passed.export;
        if let Some(awaited) = awaited(&resuming.passed, &exports) {
            resuming.lookup = Lookup::Awaited(awaited);
            return Outcome::Looking;
        }
        let found = agreed(&resuming.passed, &exports);
        let volume = around.directory.resolve(name);
        let (Some((terms, info)), Ok(volume)) = (found, volume) else {
            tracing::warn!(peer = %self.peer, export = name, "cannot be served on: closed");
            return Outcome::Closed;
        };
        self.go_on(volume, (terms, info), around)
    }

    fn go_on(
        &mut self,
        volume: Arc<Volume>,
        (terms, info): (Terms, ExportInfo),
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        if !volume.enter(&self.peer) {
            return Outcome::Closed;
        }
        let Some(bitmaps) = hold_bitmaps(&volume, &terms, &self.peer) else {
            volume.leave(&self.peer);
            return Outcome::Closed;
        };
        let Phase::Resuming(resuming) = std::mem::replace(&mut self.phase, super::dead_phase())
        else {
            return Outcome::Waiting;
        };
        let passed = resuming.passed;
        tracing::info!(peer = %self.peer, volume = volume.label(), "client taken over");
        let counters = (around.volume_counters)(&volume);
        let mut session = Session {
            volume,
            info,
            terms,
            bitmaps,
            counters,
            stream: None,
            refused: None,
            failures: FailureLog::default(),
            tally: Tally::of(passed.tally),
        };
        self.take_up(passed.begun, &mut session, around);
        self.input.put(passed.input);
        self.output.extend_from_slice(&passed.output);
        self.phase = Phase::Transmission(Box::new(session));
        self.work(around)
    }

    /// The rest of a request is still to come.
    fn take_up(&mut self, begun: Begun, session: &mut Session, around: &Surroundings<'_>) {
        let asked = |request: Request| Asked {
            style: session.terms.headers(),
            request,
        };
        match begun {
            Begun::Nothing => {}
            Begun::Write {
                request,
                remaining,
                failure,
            } => {
                let kind = (RequestKind::Write, Answer::Nothing);
                let in_flight = InFlight::streamed(asked(request), kind, around.now_ns, failure);
                session.stream = Some(WriteStream::resume(
                    self.requests.insert(in_flight),
                    request,
                    remaining,
                ));
            }
            Begun::Refused {
                request,
                remaining,
                errno,
            } => {
                session.refused = Some(Refused {
                    asked: asked(request),
                    errno,
                    payload: remaining as usize,
                });
            }
        }
    }
}

/// What is to be opened first of all that the client uses.
fn awaited(passed: &Passed, exports: &dyn ExportDirectory) -> Option<Awaited> {
    let name = &passed.export;
    let of = |context: Option<String>| Awaited {
        export: name.clone(),
        context,
    };
    if exports.awaits(name) {
        return Some(of(None));
    }
    let mut contexts = passed.agreement.contexts.iter();
    let context = contexts.find(|context| exports.awaits_context(name, &context.name))?;
    Some(of(Some(context.name.clone())))
}

/// More than this a client that takes no replies may not leave to another process.
const WAITING_BYTES_MAX: usize = 192 << 20;

/// What the client was told still holds, or it cannot be served on.
fn agreed(passed: &Passed, exports: &dyn ExportDirectory) -> Option<(Terms, ExportInfo)> {
    let found = exports.find(&passed.export).ok()?;
    let terms = Terms::resume(passed.agreement.clone())?;
    let mut known = Vec::new();
    exports
        .contexts(&passed.export, &mut |name| known.push(name.to_owned()))
        .ok()?;
    let mut selected = terms.contexts().iter();
    let fits = found.size >= passed.size_bytes
        && selected.all(|context| known.contains(&context.name))
        && passed.input.len() <= super::RECEIVE_BYTES;
    // What may only be read now is refused request by request.
    let info = ExportInfo {
        size: passed.size_bytes,
        read_only: found.read_only || passed.read_only,
        ..found
    };
    fits.then_some((terms, info))
}

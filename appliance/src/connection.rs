//! One NBD connection: bytes in, requests to the core, replies out. It owns the socket, bounded
//! buffers and the table of requests in flight.

mod allowance;
mod buffers;
mod errors;
mod failure_log;
pub(crate) mod half_open;
mod handed;
mod in_place;
mod input;
mod lookup;
mod pieces;
mod receiving;
mod refusals;
mod replies;
mod requests;
mod roster;
mod sending;
mod stalled;
mod throttled;
mod wire;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use taipan_engine::core::{Core, Done, Ticket};
use taipan_nbd::{
    ExportInfo, Features, HandshakeEnd, HandshakeLimits, Selected, ServerHandshake,
    Session as Terms, TlsPolicy,
};

use crate::access::Client;
use crate::directory::{Directory, Volume};
use crate::metrics::{CoreCounters, VolumeCounters};
use crate::tls::TlsService;

use allowance::Share;
pub use allowance::{Allowance, MODEST_BYTES};
pub use buffers::Buffers;
use failure_log::FailureLog;
pub use half_open::Pulse;
use handed::{Rest, Resuming};
use input::Input;
use lookup::Lookup;
use receiving::Received;
use refusals::RefusalLog;
pub(crate) use replies::CONTEXTS;
use replies::{Agreed, Found, Since};
use requests::{InFlight, Refused, Requests, WriteStream};
use roster::Tally;
pub use sending::Flushed;
use stalled::Progress;
use throttled::Toll;
pub use wire::HandshakePace;
use wire::Wire;

/// Bytes of the receive buffer. Larger writes are taken in piece by piece.
pub const RECEIVE_BYTES: usize = 512 << 10;
/// No request is taken while so many reply bytes wait for the client.
pub const SEND_BYTES_MAX: usize = 4 << 20;
/// A client whose socket is not known to be full gets so many reply bytes in a turn, and perhaps
/// one reply more: whether it takes them shows when they are sent.
const BURST_BYTES: usize = 256 << 10;
/// The kernel's buffer for replies of a unix socket, which it doubles for its own needs: with its
/// default a reply of 256 KiB does not fit.
const UNIX_SEND_BYTES: usize = 256 << 10;
/// Every export that a LIST named gives the handshake so much more time: clients that list ask for
/// each of them on the same connection, and `nbdinfo` 1.14 leaves 200 ms between two over TCP.
const LISTED_EXPORT_MS: u64 = 500;
/// Requests that are taken before their replies are sent: the client works on these while the next
/// ones are made. With all of them in one piece each side would wait for the other, and be woken.
const REQUESTS_PER_TURN: usize = 4;

/// Name of a connection within its core; the generation makes it unique over reuse of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    /// Index in the core's table.
    pub index: u32,
    /// Counts the uses of the index.
    pub generation: u32,
}

impl ConnectionId {
    const INDEX_BITS: u32 = 16;
    const GENERATION_BITS: u32 = 16;

    /// As one number below 2^32.
    pub fn packed(self) -> u64 {
        u64::from(self.generation) << Self::INDEX_BITS | u64::from(self.index)
    }

    /// Undoes [`ConnectionId::packed`].
    pub fn unpack(number: u64) -> Self {
        Self {
            index: (number & ((1 << Self::INDEX_BITS) - 1)) as u32,
            generation: (number >> Self::INDEX_BITS) as u32 & ((1 << Self::GENERATION_BITS) - 1),
        }
    }

    /// The next use of the same index.
    pub fn next(self) -> Self {
        let mask = (1 << Self::GENERATION_BITS) - 1;
        Self {
            index: self.index,
            generation: (self.generation + 1) & mask,
        }
    }

    /// The connection whose request the ticket names, and the request's index.
    pub fn of_ticket(ticket: Ticket) -> (Self, u32) {
        (Self::unpack(ticket.0 >> 32), ticket.0 as u32)
    }

    fn ticket(self, request: u32) -> Ticket {
        Ticket(self.packed() << 32 | u64::from(request))
    }
}

/// Bounds on one connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Requests in flight.
    pub requests_max: usize,
    /// Payload bytes in flight.
    pub bytes_max: u64,
    /// Milliseconds for the handshake.
    pub handshake_ms: u64,
}

/// What a connection needs from its core while it works.
pub struct Surroundings<'a> {
    /// The engine of this core.
    pub core: &'a mut Core,
    /// The volumes.
    pub directory: &'a Directory,
    /// Counters of this core.
    pub counters: &'a CoreCounters,
    /// Nanoseconds on the core's clock, taken once a turn.
    pub now_ns: u64,
    /// Finds the counters of a volume.
    pub volume_counters: &'a dyn Fn(&Volume) -> Arc<VolumeCounters>,
    /// Bounds.
    pub limits: ConnectionLimits,
    /// BLOCK_STATUS that the core may still answer in this turn: each may walk a whole overlay.
    pub maps_left: &'a mut u32,
    /// Spare buffers of the core.
    pub buffers: &'a mut Buffers,
    /// When the core does steps of TLS handshakes.
    pub handshakes: &'a mut HandshakePace,
}

/// The state of the protocol.
enum Phase {
    Handshake {
        machine: Box<ServerHandshake>,
        deadline_ms: u64,
        /// What the client named and is not open.
        lookup: Lookup,
        refusals: RefusalLog,
    },
    /// The handshake is done; dead connections of the volume are being closed on other cores.
    Joining {
        session: Box<Session>,
        held: Vec<u8>,
    },
    Transmission(Box<Session>),
    /// It comes from another process.
    Resuming(Box<Resuming>),
}

/// A client that transmits.
struct Session {
    volume: Arc<Volume>,
    info: ExportInfo,
    /// What the client negotiated.
    terms: Terms,
    /// The selected contexts that tell what has changed.
    bitmaps: Vec<Since>,
    counters: Arc<VolumeCounters>,
    stream: Option<WriteStream>,
    refused: Option<Refused>,
    failures: FailureLog,
    tally: Tally,
}

/// What a call did, and what the core has to do about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for the socket or for completions.
    Waiting,
    /// There may be more to read: call again in the next turn.
    Ready,
    /// The client named a snapshot that is not open, or a bitmap that is not loaded: have
    /// [`Connection::awaited`] opened, then call `found`.
    Looking,
    /// The client chose a volume: close its dead connections, then call `join`.
    Joining,
    /// Over: close it.
    Closed,
}

/// One connection. Dropping it closes the socket.
pub struct Connection {
    id: ConnectionId,
    socket: OwnedFd,
    peer: String,
    /// Address of a TCP client.
    peer_ip: Option<IpAddr>,
    /// For a client that starts TLS.
    tls: Option<Arc<TlsService>>,
    wire: Wire,
    input: Input,
    output: Vec<u8>,
    sent: usize,
    /// Bytes of replies that the socket took in this turn without their waiting in `output`.
    sent_in_place: usize,
    /// The socket did not take all of it when it was last tried.
    unread: bool,
    progress: Progress,
    /// Memory for requests in flight, replies and buffers.
    share: Share,
    phase: Phase,
    requests: Requests,
    /// No further request is read: DISC, end of file, or shutdown.
    finishing: bool,
    /// Replies cannot be sent any more.
    broken: bool,
    /// The socket may have bytes that were not received yet.
    readable: bool,
    /// The client will send no more: the end of file is still to be received.
    hung_up: bool,
    /// A request waits for memory.
    starved: bool,
    /// A request waits for the next turn.
    late: bool,
    /// Whether it is on its way to another process.
    rest: Rest,
    /// Whether the next request may begin as far as the volume's limits go.
    toll: Toll,
}

impl Connection {
    /// A connection that starts with the server's greeting.
    pub fn new(
        id: ConnectionId,
        socket: OwnedFd,
        peer: String,
        deadline_ms: u64,
        allowance: Arc<Allowance>,
        tls: Option<Arc<TlsService>>,
    ) -> Self {
        let peer_ip = half_open::peer_ip(socket.as_fd());
        // Of TCP sockets the kernel finds the size by itself. Advisory.
        if peer_ip.is_none()
            && sockopt::socket_send_buffer_size(&socket).is_ok_and(|n| n < 2 * UNIX_SEND_BYTES)
        {
            let _ = sockopt::set_socket_send_buffer_size(&socket, UNIX_SEND_BYTES);
        }
        let policy = tls.as_ref().map(|tls| tls.policy(peer_ip));
        let machine = Box::new(handshake(policy.unwrap_or_default()));
        let output = machine.greeting().to_vec();
        Self {
            id,
            peer_ip,
            tls,
            wire: Wire::Clear,
            socket,
            peer,
            input: Input::new(RECEIVE_BYTES),
            output,
            sent: 0,
            phase: Phase::Handshake {
                machine,
                deadline_ms,
                lookup: Lookup::Nothing,
                refusals: RefusalLog::default(),
            },
            sent_in_place: 0,
            unread: false,
            progress: Progress::default(),
            share: Share::new(allowance),
            requests: Requests::default(),
            finishing: false,
            broken: false,
            readable: true,
            hung_up: false,
            starved: false,
            late: false,
            rest: Rest::default(),
            toll: Toll::default(),
        }
    }

    /// The connection's name.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Who the client is.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Address of a TCP client.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer_ip
    }

    /// Makes the kernel ask a quiet client at once whether it is there; false if that is known.
    pub fn ask_for_pulse(&self) -> bool {
        half_open::ask(self.socket())
    }

    /// What is known of the client, so long after it was asked.
    pub fn pulse(&self, since_ms: u64) -> Pulse {
        half_open::pulse(self.socket(), since_ms)
    }

    /// The socket, for polling.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The volume, once chosen.
    pub fn volume(&self) -> Option<&Arc<Volume>> {
        match &self.phase {
            Phase::Handshake { .. } | Phase::Resuming(_) => None,
            Phase::Joining { session, .. } | Phase::Transmission(session) => Some(&session.volume),
        }
    }

    /// Whether the connection is under TLS, whose state stays in this process.
    pub fn is_tls(&self) -> bool {
        self.wire.is_tls()
    }

    /// Whether the handshake has taken too long.
    pub fn is_overdue(&self, now_ms: u64) -> bool {
        let Phase::Handshake {
            machine,
            deadline_ms,
            ..
        } = &self.phase
        else {
            return false;
        };
        let listed_ms = u64::from(machine.listed()) * LISTED_EXPORT_MS;
        now_ms >= deadline_ms.saturating_add(listed_ms)
    }

    /// Whether the client sends no more, or has gone.
    pub fn is_dead(&self) -> bool {
        self.polls(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    fn polls(&self, gone: PollFlags) -> bool {
        let mut polled = [PollFd::new(&self.socket, gone)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut polled, Some(&now)), Ok(n) if n > 0)
            && polled[0].revents().intersects(gone)
    }

    /// The socket has become readable, or its other end has gone (`hung_up`).
    pub fn notice(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
    }

    /// One turn: works on what was received earlier, then receives once.
    pub fn turn(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        self.sent_in_place = 0;
        if !self.input.bytes().is_empty() || self.is_told() {
            match self.work(around) {
                Outcome::Waiting | Outcome::Ready => {}
                outcome => return outcome,
            }
            if self.late {
                return self.settle(Outcome::Ready);
            }
        }
        if !self.readable || self.finishing || self.broken || self.is_resting() {
            return self.settle(Outcome::Waiting);
        }
        if self.is_full() || self.is_paused(around) || self.turn_ns().is_some() {
            // Nothing is read now, so a client that has gone must be noticed here. One that only
            // sends no more waits for its replies: its DISC may be unread.
            return if self.polls(PollFlags::HUP | PollFlags::ERR) {
                self.gone(around)
            } else {
                self.settle(Outcome::Waiting)
            };
        }
        if self.wire.has_ended() {
            return self.gone(around);
        }
        if self.is_paced(around) {
            return self.settle(Outcome::Ready);
        }
        match self.receive(around) {
            Received::Some => {
                let outcome = self.work(around);
                self.after_work(outcome)
            }
            Received::Nothing => self.settle(Outcome::Waiting),
            Received::Interrupted => Outcome::Ready,
            Received::End if self.unread && !self.hung_up && !self.wire.is_tls() => {
                // READs that waited for room are taken first. The end is met again.
                self.hung_up = true;
                Outcome::Ready
            }
            Received::End => self.gone(around),
        }
    }

    /// Works on bytes that were received earlier; called when room has come back.
    pub fn work(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        loop {
            let blocked = self.finishing || self.has_output();
            match &mut self.phase {
                Phase::Handshake { lookup, .. } if blocked || lookup.is_awaited() => {
                    return self.settle(Outcome::Waiting);
                }
                Phase::Handshake { .. } => {
                    if let Some(outcome) = self.negotiate(around) {
                        return self.settle(outcome);
                    }
                }
                Phase::Joining { .. } => return Outcome::Waiting,
                Phase::Resuming(_) => return self.resume(around),
                Phase::Transmission(_) => {
                    let outcome = self.take_requests(around);
                    return self.settle(outcome);
                }
            }
        }
    }

    /// The dead connections of the volume are closed: transmission begins.
    pub fn join(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        let phase = std::mem::replace(&mut self.phase, dead_phase());
        let Phase::Joining { session, held } = phase else {
            self.phase = phase;
            return Outcome::Waiting;
        };
        self.output.extend_from_slice(&held);
        self.phase = Phase::Transmission(session);
        self.work(around)
    }

    /// Runs the handshake; `None`: transmission has begun.
    fn negotiate(&mut self, around: &mut Surroundings<'_>) -> Option<Outcome> {
        let Phase::Handshake {
            machine,
            lookup,
            refusals,
            ..
        } = &mut self.phase
        else {
            return None;
        };
        let mut out = Vec::new();
        let told = std::mem::take(lookup);
        let client = Client {
            address: self.peer_ip,
            identity: self.wire.identity(),
            may_start_tls: self.tls.is_some() && !self.wire.is_tls(),
        };
        let exports = told.exports(around.directory.seen_by(client));
        let advance = machine.advance(self.input.bytes(), &mut out, &exports);
        refusals.note(&machine.take_refused(), &self.peer);
        let advance = match advance {
            Ok(advance) => advance,
            Err(error) => {
                tracing::info!(peer = %self.peer, %error, "handshake failed");
                around.counters.connections.handshake_failures.add(1);
                self.output.extend_from_slice(&out);
                self.finishing = true;
                return Some(Outcome::Waiting);
            }
        };
        self.input.consume(advance.consumed);
        match advance.end {
            None => {
                self.output.extend_from_slice(&out);
                if let Some(awaited) = advance.awaits {
                    *lookup = Lookup::Awaited(awaited);
                    return Some(Outcome::Looking);
                }
                if advance.starts_tls {
                    self.start_tls();
                }
                // A paused handshake goes on once its output was sent (`after_sent`).
                Some(Outcome::Waiting)
            }
            Some(HandshakeEnd::Aborted) => {
                self.output.extend_from_slice(&out);
                self.finishing = true;
                Some(Outcome::Waiting)
            }
            Some(HandshakeEnd::Transmission(selected)) => Some(self.select(selected, out, around)),
        }
    }

    fn select(
        &mut self,
        selected: Selected,
        held: Vec<u8>,
        around: &mut Surroundings<'_>,
    ) -> Outcome {
        // Deleted between the lookup and now: the client sees a closed connection.
        let Ok(volume) = around.directory.resolve(&selected.name) else {
            return Outcome::Closed;
        };
        if !volume.enter(&self.peer) {
            return Outcome::Closed;
        }
        let Some(bitmaps) = replies::hold_bitmaps(&volume, &selected.session, &self.peer) else {
            volume.leave(&self.peer);
            return Outcome::Closed;
        };
        let tls = self.wire.version();
        tracing::info!(peer = %self.peer, volume = volume.label(), tls, "client connected");
        let counters = (around.volume_counters)(&volume);
        let session = Session {
            volume,
            info: selected.info,
            terms: selected.session,
            bitmaps,
            counters,
            stream: None,
            refused: None,
            failures: FailureLog::default(),
            tally: Tally::default(),
        };
        self.phase = Phase::Joining {
            session: Box::new(session),
            held,
        };
        Outcome::Joining
    }

    /// Books a finished request and queues its reply.
    pub fn done(&mut self, request: u32, done: &Done, around: &mut Surroundings<'_>) {
        let Some(finished) = self.requests.part_done(request, done) else {
            return;
        };
        let found = Found {
            data: &done.data,
            extents: &done.extents,
        };
        self.reply(&finished, found, around);
    }

    fn reply(&mut self, finished: &InFlight, found: Found<'_>, around: &mut Surroundings<'_>) {
        let Phase::Transmission(session) = &mut self.phase else {
            return;
        };
        if finished.abandoned {
            return;
        }
        if !self.broken {
            let agreed = Agreed {
                terms: &session.terms,
                bitmaps: &session.bitmaps,
                info: &session.info,
            };
            replies::reply(finished, found, agreed, &mut self.output);
        }
        session.book(finished, &self.peer, around);
    }

    /// Whether the connection is over: nothing in flight, nothing to send, no more to read.
    pub fn is_over(&self) -> bool {
        (self.finishing || self.broken)
            && self.requests.is_empty()
            && (self.broken || !self.has_output())
    }

    /// What to do after a request was answered: perhaps there is room for more now.
    pub fn after_done(&self) -> Outcome {
        if self.is_over() {
            Outcome::Closed
        } else if self.wants_turn() {
            Outcome::Ready
        } else {
            Outcome::Waiting
        }
    }

    /// Whether a turn could get further: bytes to work on, or to receive.
    pub fn wants_turn(&self) -> bool {
        let has_work = self.readable || self.is_told() || !self.input.bytes().is_empty();
        !self.finishing && !self.broken && !self.is_resting() && has_work
    }

    /// Whether nothing is in flight and everything is sent, or never can be.
    pub fn is_idle(&self) -> bool {
        self.is_answered() && (self.broken || !self.has_output())
    }

    /// Whether nothing is in flight; replies may wait for the client.
    pub fn is_answered(&self) -> bool {
        self.requests.is_empty()
    }

    /// No further requests are read; what is in flight is answered. A write whose payload has not
    /// arrived wholly never is: it is not kept.
    pub fn finish(&mut self) {
        self.finishing = true;
        self.drop_stream();
    }

    fn drop_stream(&mut self) {
        if let Phase::Transmission(session) = &mut self.phase
            && let Some(stream) = session.stream.take()
        {
            self.requests.abandon(stream.request);
        }
    }

    /// Whether replies cannot be sent any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The client has gone: cancels what is not yet appended. Replies of the rest are still sent,
    /// in case only its sending direction is closed.
    pub fn gone(&mut self, around: &mut Surroundings<'_>) -> Outcome {
        self.finishing = true;
        for key in self.requests.keys() {
            around.core.cancel(key);
        }
        self.drop_stream();
        self.settle(Outcome::Waiting)
    }

    /// Whether a request waits for memory that only other connections hold: to be tried again.
    pub fn is_starved(&self) -> bool {
        self.starved && self.held() == 0
    }

    /// Bytes held for requests and replies.
    fn held(&self) -> u64 {
        self.requests.bytes() + (self.output.len() + self.wire.sealed()) as u64
    }

    /// Whether the next request has to wait. The payload of one that was begun never does: the
    /// memory for it is counted already, or it is thrown away, and a client that sends it may not
    /// read a reply before.
    fn is_paused(&self, around: &Surroundings<'_>) -> bool {
        if let Phase::Transmission(session) = &self.phase
            && (session.stream.is_some() || session.refused.is_some())
        {
            return false;
        }
        self.unsent() >= SEND_BYTES_MAX
            || self.requests.len() >= around.limits.requests_max
            || self.requests.bytes() >= around.limits.bytes_max
    }

    fn settle(&self, outcome: Outcome) -> Outcome {
        if self.is_over() {
            Outcome::Closed
        } else if self.late && outcome == Outcome::Waiting {
            Outcome::Ready
        } else {
            outcome
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(volume) = self.volume() {
            volume.leave(&self.peer);
            if self.is_handed() {
                return;
            }
            tracing::info!(peer = %self.peer, volume = volume.label(), "client disconnected");
        }
        if let Phase::Transmission(session) = &self.phase
            && session.failures.unsaid() > 0
        {
            let (volume, more) = (session.volume.label(), session.failures.unsaid());
            tracing::warn!(
                peer = %self.peer,
                volume,
                more,
                "further requests of this client had failed"
            );
        }
    }
}

/// A handshake that offers everything. Requests of any length are bounded: what is read or written
/// by the protocol's payload, marks cost a record a shard, maps end after so many looks.
fn handshake(tls: TlsPolicy) -> ServerHandshake {
    ServerHandshake::with_features(HandshakeLimits::DEFAULT, Features::ALL).with_tls(tls)
}

fn dead_phase() -> Phase {
    let machine = Box::new(handshake(TlsPolicy::Off));
    Phase::Handshake {
        machine,
        deadline_ms: 0,
        lookup: Lookup::Nothing,
        refusals: RefusalLog::default(),
    }
}

#[cfg(test)]
mod tests;

//! What operators see of a connection.

use taipan_engine::api::{ConnectionInfo, ConnectionName, ConnectionState};
use taipan_nbd::HeaderStyle;

use super::{Connection, ConnectionId, Phase, Session};
use crate::metrics::RequestKind;

/// What a client has asked for so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: u64,
    errors: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Tally {
    /// What another process counted.
    pub(super) fn of([requests, errors, read_bytes, written_bytes]: [u64; 4]) -> Self {
        Self {
            requests,
            errors,
            read_bytes,
            written_bytes,
        }
    }

    /// The same for another process.
    pub(super) fn counts(&self) -> [u64; 4] {
        [
            self.requests,
            self.errors,
            self.read_bytes,
            self.written_bytes,
        ]
    }

    /// A request of so many bytes succeeded.
    #[inline]
    pub(super) fn succeeded(&mut self, kind: RequestKind, bytes: u64) {
        self.requests += 1;
        match kind {
            RequestKind::Read => self.read_bytes += bytes,
            RequestKind::Write => self.written_bytes += bytes,
            _ => {}
        }
    }

    /// A request was answered with an error.
    pub(super) fn failed(&mut self) {
        self.requests += 1;
        self.errors += 1;
    }
}

impl ConnectionId {
    /// The name that operators use of a connection of that core.
    pub fn name(self, core: usize) -> ConnectionName {
        ConnectionName {
            core: core as u16,
            index: self.index as u16,
            generation: self.generation as u16,
        }
    }

    /// Whose name it is, on the core that the name says.
    pub fn named(name: ConnectionName) -> Self {
        Self {
            index: u32::from(name.index),
            generation: u32::from(name.generation),
        }
    }
}

impl Connection {
    /// What operators see of it: a connection of that core, accepted so many seconds ago.
    pub fn info(&self, core: usize, seconds: f64) -> ConnectionInfo {
        let (none, session) = (Tally::default(), self.session());
        let view = self.volume().and_then(|volume| volume.view.as_ref());
        let tally = session.map_or(&none, |session| &session.tally);
        ConnectionInfo {
            id: self.id.name(core),
            client: self.peer.clone(),
            volume: self.volume().map(|volume| volume.name.clone()),
            snapshot: view.map(|view| view.image.clone()),
            state: self.state(),
            seconds,
            requests: tally.requests,
            errors: tally.errors,
            read_bytes: tally.read_bytes,
            written_bytes: tally.written_bytes,
            in_flight: self.requests.len() as u64,
            unsent_bytes: self.unsent() as u64,
            features: self.features(),
            identity: self.wire.identity().map(ToString::to_string),
        }
    }

    fn session(&self) -> Option<&Session> {
        match &self.phase {
            Phase::Handshake { .. } | Phase::Resuming(_) => None,
            Phase::Joining { session, .. } | Phase::Transmission(session) => Some(session),
        }
    }

    fn state(&self) -> ConnectionState {
        if self.finishing || self.broken {
            return ConnectionState::Closing;
        }
        match &self.phase {
            Phase::Handshake { .. } => ConnectionState::Handshake,
            Phase::Joining { .. } | Phase::Resuming(_) => ConnectionState::Joining,
            Phase::Transmission(_) => ConnectionState::Serving,
        }
    }
}

impl Connection {
    fn features(&self) -> Vec<String> {
        let tls = self.wire.version().map(|version| format!("tls_{version}"));
        let session = self.session().map_or_else(Vec::new, Session::features);
        tls.into_iter().chain(session).collect()
    }
}

impl Session {
    fn features(&self) -> Vec<String> {
        let style = match self.terms.headers() {
            HeaderStyle::Simple => None,
            HeaderStyle::Structured => Some("structured_replies"),
            HeaderStyle::Extended => Some("extended_headers"),
        };
        let contexts = self.terms.contexts().iter();
        let contexts = contexts.map(|context| context.name.clone());
        style
            .map(str::to_owned)
            .into_iter()
            .chain(contexts)
            .collect()
    }
}

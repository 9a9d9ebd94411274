//! What comes from the socket of a connection, through TLS if that is in use.

use rustix::io::Errno as Os;
use rustix::net::{RecvFlags, recv, sockopt};

use super::buffers::Buffers;
use super::wire::Wire;
use super::{Connection, Outcome, Phase, RECEIVE_BYTES, Surroundings};

/// What a look at the socket came to.
pub(super) enum Received {
    /// Bytes for the protocol, or for TLS alone.
    Some,
    /// Nothing was there.
    Nothing,
    /// To be tried again.
    Interrupted,
    /// The connection is over.
    End,
}

impl Connection {
    /// The client starts TLS: what is queued is its acknowledgement, in the clear.
    pub(super) fn start_tls(&mut self) {
        let channel = self.tls.as_ref().map(|tls| tls.channel());
        match channel {
            Some(Ok(channel)) if self.input.bytes().is_empty() => self.wire = Wire::tls(channel),
            Some(Err(error)) => {
                tracing::error!(peer = %self.peer, %error, "TLS cannot be started");
                self.finishing = true;
            }
            // Neither can be: the handshake offers TLS if there is some, and takes all input.
            None | Some(Ok(_)) => self.finishing = true,
        }
    }

    /// Whether no more can be received for now, because received bytes wait or the acknowledgement
    /// of STARTTLS, behind which all is TLS, is not sent.
    pub(super) fn is_full(&self) -> bool {
        let waits = self.wire.is_handshaking() && self.has_output();
        waits || self.input.room_left() <= self.wire.reserve()
    }

    /// Whether other handshakes come first.
    pub(super) fn is_paced(&self, around: &Surroundings<'_>) -> bool {
        self.wire.is_handshaking() && !around.handshakes.is_free(around.now_ns)
    }

    /// Looks at the socket once.
    pub(super) fn receive(&mut self, around: &mut Surroundings<'_>) -> Received {
        let (wanted, received) = match &self.wire {
            Wire::Clear => {
                let room = self.input.room(around.buffers);
                let wanted = room.len();
                let received = recv(&self.socket, room, RecvFlags::DONTWAIT);
                if let Ok((_, n)) = received {
                    self.input.filled(n);
                }
                (wanted, received.map(|(_, n)| n))
            }
            Wire::Tls(_) => {
                let mut sealed = around.buffers.input(RECEIVE_BYTES);
                let room = self.input.room(around.buffers).len();
                let wanted = sealed.len().min(room - self.wire.reserve());
                let received = recv(&self.socket, &mut sealed[..wanted], RecvFlags::DONTWAIT);
                let received = received.map(|(_, n)| n);
                if let Ok(n @ 1..) = received
                    && !self.open(&sealed[..n], around)
                {
                    around.buffers.give_input(sealed);
                    return Received::End;
                }
                around.buffers.give_input(sealed);
                (wanted, received)
            }
        };
        match received {
            Ok(0) => {
                if self.wire.is_handshaking() {
                    tracing::info!(
                        peer = %self.peer,
                        "left during the TLS handshake: does it trust the certificate? \
                         (A pre-shared key alone is not enough: none are supported)"
                    );
                    around.counters.connections.handshake_failures.add(1);
                }
                Received::End
            }
            Ok(n) => {
                // A short read emptied the socket; what comes later raises a new event, but for an
                // end of file that was announced together with these bytes.
                self.readable = n == wanted || self.hung_up || self.wire.has_ended();
                self.acknowledge();
                Received::Some
            }
            Err(Os::AGAIN) => {
                self.readable = false;
                Received::Nothing
            }
            Err(Os::INTR) => Received::Interrupted,
            Err(_) => Received::End,
        }
    }

    /// Tells a TCP client in the handshake at once that its bytes have come, before they are
    /// answered: one that sends an option in pieces and waits for that between them (`qemu-nbd -L`)
    /// would otherwise wait 40 ms each time.
    fn acknowledge(&self) {
        if self.peer_ip.is_some() && matches!(self.phase, Phase::Handshake { .. }) {
            let _ = sockopt::set_tcp_quickack(&self.socket, true);
        }
    }

    /// Takes in bytes of TLS; false if they break it.
    fn open(&mut self, sealed: &[u8], around: &mut Surroundings<'_>) -> bool {
        let Wire::Tls(tls) = &mut self.wire else {
            return false;
        };
        let (opened, took_ns) = tls.open(sealed, self.input.room(around.buffers));
        if let Some(ns) = took_ns {
            around.handshakes.took(around.now_ns, ns);
        }
        let bytes = match opened {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::info!(peer = %self.peer, %error, "TLS failed: connection closed");
                let counters = &around.counters.connections;
                match self.phase {
                    Phase::Handshake { .. } => counters.handshake_failures.add(1),
                    Phase::Joining { .. } | Phase::Transmission(_) | Phase::Resuming(_) => {
                        counters.protocol_errors.add(1);
                    }
                }
                return false;
            }
        };
        self.input.filled(bytes);
        if took_ns.is_some() && !self.wire.is_handshaking() {
            let version = self.wire.version().unwrap_or("of an unknown version");
            match self.wire.identity() {
                Some(who) => tracing::info!(peer = %self.peer, version, %who, "TLS"),
                None => tracing::info!(peer = %self.peer, version, "TLS, no certificate shown"),
            }
        }
        true
    }

    /// What to do when received bytes have been worked on.
    pub(super) fn after_work(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Waiting if self.readable && !self.finishing => Outcome::Ready,
            outcome => outcome,
        }
    }

    /// To be called before the connection does anything: it may have to say something.
    pub fn equip(&mut self, buffers: &mut Buffers) {
        if self.output.capacity() == 0 {
            self.output = buffers.output();
        }
    }
}

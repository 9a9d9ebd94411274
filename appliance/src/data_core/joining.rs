//! Joining a volume: what is left of the client's former connections is closed first, on every
//! core (DESIGN §4.8, `docs/internals/cores.md`). Before that a snapshot
//! is opened if it is not, or a bitmap loaded.

use std::net::IpAddr;

use taipan_engine::shard::VolumeSlot;
use taipan_nbd::LookupError;

use super::DataCore;
use crate::connection::{Connection, ConnectionId, Pulse};
use crate::inbox::CoreMessage;

/// A client that waits until others of its address have shown that they are alive.
pub(super) struct Inquiry {
    /// The core that asked.
    asker: usize,
    /// Its connection.
    connection: u64,
    /// Connections of this core that have not answered.
    doubtful: Vec<ConnectionId>,
    since_ms: u64,
}

impl DataCore {
    /// A client named a snapshot that is not open, or a bitmap that is not loaded: the uploader is
    /// asked for it.
    pub(super) fn start_lookup(&mut self, index: u32) {
        let Some(connection) = &self.slots[index as usize].connection else {
            return;
        };
        let Some(awaited) = connection.awaited() else {
            return;
        };
        let number = connection.id().packed();
        let Some(context) = &awaited.context else {
            return match awaited.export.parse() {
                Ok(name) => self.carrier.open_view(name, number),
                Err(_) => self.looked_up(number, Err(LookupError::Unknown)),
            };
        };
        match self.directory.bitmap_named(&awaited.export, context) {
            Some((export, since)) => self.carrier.load_bitmap(export, since, number),
            // Its snapshot was deleted at this moment: an unknown context is no error.
            None => self.looked_up(number, Ok(())),
        }
    }

    /// The snapshot of a client is open, or refused.
    pub(super) fn looked_up(&mut self, number: u64, result: Result<(), LookupError>) {
        let id = ConnectionId::unpack(number);
        if self.connection(id).is_some() {
            self.serve(id.index, |connection, around| {
                connection.found(result, around)
            });
        }
    }

    /// A client chose a volume: dead connections of that volume are closed first, on every core.
    pub(super) fn start_join(&mut self, index: u32) {
        let Some(connection) = &self.slots[index as usize].connection else {
            return;
        };
        let Some(slot) = connection.volume().map(|volume| volume.slot) else {
            return;
        };
        let (id, address) = (connection.id(), connection.peer_ip());
        let from = self.index;
        self.slots[index as usize].joins = self.addresses.len();
        for core in (0..self.addresses.len()).filter(|core| *core != from) {
            let ask = CoreMessage::CloseDead {
                from,
                slot,
                connection: id.packed(),
                address,
            };
            self.post(core, ask);
        }
        self.inquire(from, slot, id.packed(), address);
    }

    /// Closes the dead connections of the volume, asks the doubtful ones of this address whether
    /// they are alive, and answers core `asker` when that is known.
    pub(super) fn inquire(
        &mut self,
        asker: usize,
        slot: VolumeSlot,
        connection: u64,
        address: Option<IpAddr>,
    ) {
        let own = asker == self.index;
        let except = own.then(|| ConnectionId::unpack(connection));
        let doubtful = self.close_dead(slot, except, address);
        if doubtful.is_empty() {
            return self.inquired(asker, connection);
        }
        self.inquiries.push(Inquiry {
            asker,
            connection,
            doubtful,
            since_ms: self.now_ms(),
        });
    }

    fn inquired(&mut self, asker: usize, connection: u64) {
        if asker == self.index {
            self.joined(connection);
        } else {
            self.outbox.dead_closed(asker, connection);
        }
    }

    /// One core has closed what was dead.
    pub(super) fn joined(&mut self, number: u64) {
        let id = ConnectionId::unpack(number);
        if self.connection(id).is_none() {
            return;
        }
        let slot = &mut self.slots[id.index as usize];
        slot.joins -= 1;
        if slot.joins == 0 {
            self.serve(id.index, Connection::join);
        }
    }

    /// Closes connections of the volume whose client has gone, so that none of their requests can
    /// land after those of a successor. Gives the connections from `address` that may be half-open.
    fn close_dead(
        &mut self,
        slot: VolumeSlot,
        except: Option<ConnectionId>,
        address: Option<IpAddr>,
    ) -> Vec<ConnectionId> {
        let mut doubtful = Vec::new();
        for index in 0..self.slots.len() as u32 {
            let Some(connection) = self.slots[index as usize].connection.as_ref() else {
                continue;
            };
            let id = connection.id();
            if Some(id) == except || connection.volume().is_none_or(|v| v.slot != slot) {
                continue;
            }
            if connection.is_dead() {
                self.close_gone(index);
            } else if address.is_some()
                && connection.peer_ip() == address
                && connection.ask_for_pulse()
            {
                doubtful.push(id);
            }
        }
        doubtful
    }

    fn close_gone(&mut self, index: u32) {
        self.serve(index, Connection::gone);
        self.close(index);
    }

    /// Looks at the connections that were asked whether they are alive.
    pub(super) fn check_inquiries(&mut self, now_ms: u64) {
        let mut open = Vec::new();
        for mut inquiry in std::mem::take(&mut self.inquiries) {
            let since_ms = now_ms.saturating_sub(inquiry.since_ms);
            inquiry
                .doubtful
                .retain(|id| self.is_in_doubt(*id, since_ms));
            if inquiry.doubtful.is_empty() {
                self.inquired(inquiry.asker, inquiry.connection);
            } else {
                open.push(inquiry);
            }
        }
        self.inquiries.append(&mut open);
    }

    fn is_in_doubt(&mut self, id: ConnectionId, since_ms: u64) -> bool {
        let Some(connection) = self.connection(id) else {
            return false;
        };
        if !connection.is_dead() {
            match connection.pulse(since_ms) {
                Pulse::Alive => return false,
                Pulse::Awaited => return true,
                Pulse::Lost => {}
            }
        }
        let peer = connection.peer();
        tracing::warn!(
            peer,
            "the client came back: its half-open connection is closed"
        );
        self.close_gone(id.index);
        false
    }
}

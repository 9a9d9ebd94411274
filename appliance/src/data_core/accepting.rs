//! New connections of a core: their place in the table, and the poll of their sockets.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::PollFlags;

use super::{DataCore, Slot, token};
use crate::connection::{Connection, ConnectionId};

const MAX_CONNECTIONS: usize = 1 << 16;

impl DataCore {
    pub(super) fn accept(&mut self, socket: OwnedFd, peer: String) {
        let Some(index) = self.free_slot() else {
            return;
        };
        let now_ms = self.now_ms();
        let deadline_ms = now_ms + self.limits.handshake_ms;
        let (allowance, tls) = (Arc::clone(&self.allowance), self.tls.clone());
        let slot = &mut self.slots[index as usize];
        let id = slot.id;
        slot.since_ms = now_ms;
        let connection = Connection::new(id, socket, peer, deadline_ms, allowance, tls);
        slot.connection = Some(connection);
        self.counters.connections.accepted.add(1);
        self.arm(id);
        self.unsent.push(index);
        self.queue(index);
    }

    /// Room for a connection, unless the core stops or there is none.
    pub(super) fn free_slot(&mut self) -> Option<u32> {
        if self.quiesce.is_some() || self.slots.len() - self.free.len() >= MAX_CONNECTIONS {
            self.counters.connections.refused.add(1);
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            let id = ConnectionId {
                index: self.slots.len() as u32,
                generation: 0,
            };
            let slot = Slot {
                connection: None,
                id,
                since_ms: 0,
                queued: false,
                awaits_room: false,
                joins: 0,
            };
            self.slots.push(slot);
            id.index
        });
        Some(index)
    }

    /// Arms the multishot poll of a connection's socket.
    pub(super) fn arm(&mut self, id: ConnectionId) {
        let Some(connection) = self.slots[id.index as usize].connection.as_ref() else {
            return;
        };
        let events = PollFlags::IN | PollFlags::RDHUP;
        let token = token::READABLE | id.packed();
        self.ring
            .poll(connection.socket(), u32::from(events.bits()), true, token);
    }
}

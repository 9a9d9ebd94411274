//! The connections of a core as operators see them, and the end of one that they want gone.

use taipan_engine::api::ConnectionInfo;

use super::DataCore;
use crate::connection::{Connection, ConnectionId};
use crate::inbox::RosterRequest;

impl DataCore {
    /// Does what an operator wants of the connections; nobody may be waiting any more.
    pub(super) fn answer_operator(&mut self, request: RosterRequest) {
        match request {
            RosterRequest::List(reply) => {
                let _ = reply.send(self.connections());
            }
            RosterRequest::Kick { id, reply } => {
                let _ = reply.send(self.kick(id));
            }
        }
    }

    /// All connections, by index.
    fn connections(&self) -> Vec<ConnectionInfo> {
        let now_ms = self.now_ms();
        let shown = self.slots.iter().filter_map(|slot| {
            let connection = slot.connection.as_ref()?;
            let seconds = now_ms.saturating_sub(slot.since_ms) as f64 / 1000.0;
            Some(connection.info(self.index, seconds))
        });
        shown.collect()
    }

    /// Closes a connection: what is not appended yet is cancelled, what was answered stays. False
    /// if there is none of that name.
    fn kick(&mut self, id: ConnectionId) -> bool {
        let Some(connection) = self.connection(id) else {
            return false;
        };
        tracing::warn!(peer = connection.peer(), "closed by an operator");
        self.serve(id.index, Connection::gone);
        self.close(id.index);
        true
    }
}

//! The connections of a core come to rest at a request boundary, to be handed to another process;
//! and those that come from one.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::DataCore;
use crate::connection::{Connection, ConnectionId};
use crate::handoff::Handed;
use crate::inbox::Step;

/// So long connections may be in the handshake while the others are served on.
const HANDSHAKES_MS_MAX: u64 = 500;
/// So long requests in flight may take; the clients wait meanwhile.
const ANSWERS_MS_MAX: u64 = 3000;

/// A hand-off that is being prepared.
pub(super) struct Parking {
    /// `None`: answered.
    reply: Option<Sender<Result<Vec<Handed>, String>>>,
    since_ms: u64,
    /// No more requests are read.
    held: bool,
}

impl DataCore {
    /// Does a step of a hand-off.
    pub(super) fn hand_off(&mut self, step: Step) {
        match step {
            Step::Park(reply) => self.start_parking(reply),
            Step::Unpark => self.unpark(),
            Step::Release(released) => {
                self.release();
                drop(released);
            }
            Step::Resume(handed) => self.resume(handed),
        }
    }

    fn start_parking(&mut self, reply: Sender<Result<Vec<Handed>, String>>) {
        self.parking = Some(Parking {
            reply: Some(reply),
            since_ms: self.now_ms(),
            held: false,
        });
    }

    /// Whether time passes that somebody waits for.
    pub(super) fn is_parking(&self) -> bool {
        self.parking.as_ref().is_some_and(|p| p.reply.is_some())
    }

    /// Lets the connections come to rest, step by step.
    pub(super) fn check_parking(&mut self, now_ms: u64) {
        let Some(parking) = &mut self.parking else {
            return;
        };
        let connections = || {
            self.slots
                .iter()
                .filter_map(|slot| slot.connection.as_ref())
        };
        if !parking.held {
            let late = now_ms >= parking.since_ms + HANDSHAKES_MS_MAX;
            if !late && connections().any(Connection::is_negotiating) {
                return;
            }
            parking.held = true;
            parking.since_ms = now_ms;
            for slot in &mut self.slots {
                if let Some(connection) = &mut slot.connection {
                    connection.park();
                }
            }
            return;
        }
        // Parts of requests of other cores may come as long as those are not at rest.
        if !self.core.is_quiet() {
            self.core.make_durable();
        }
        if parking.reply.is_none() {
            return;
        }
        let rest = connections().all(Connection::is_at_rest);
        if rest && self.core.is_quiet() {
            let handed = self.hand_all();
            self.answer_parking(handed);
        } else if now_ms >= parking.since_ms + ANSWERS_MS_MAX {
            let text = "requests are in flight that are not answered soon; try again later, or \
                        restart";
            self.answer_parking(Err(text.to_owned()));
        }
    }

    fn answer_parking(&mut self, answer: Result<Vec<Handed>, String>) {
        let reply = self
            .parking
            .as_mut()
            .and_then(|parking| parking.reply.take());
        if let Some(reply) = reply {
            // Nobody may be waiting any more; then an `Unpark` follows.
            let _ = reply.send(answer);
        }
    }

    fn hand_all(&mut self) -> Result<Vec<Handed>, String> {
        let (now_ms, core) = (self.now_ms(), self.index);
        let mut all = Vec::new();
        for slot in &mut self.slots {
            let age_ms = now_ms.saturating_sub(slot.since_ms);
            if let Some(connection) = &mut slot.connection {
                let handed = connection.hand_over(core, age_ms);
                all.extend(handed.map_err(|e| format!("a client's socket: {e}"))?);
            }
        }
        Ok(all)
    }

    /// There was no hand-off: the connections go on.
    fn unpark(&mut self) {
        self.parking = None;
        for index in 0..self.slots.len() as u32 {
            if let Some(connection) = &mut self.slots[index as usize].connection {
                connection.unpark();
                self.unsent.push(index);
                self.queue(index);
            }
        }
    }

    /// Another process has the connections; those that it has not are closed.
    fn release(&mut self) {
        for index in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[index as usize];
            match slot.connection.take_if(|connection| connection.is_handed()) {
                // The ring's poll ends with the ring; a shutdown would be the other process's.
                Some(handed) => drop(handed),
                None => self.close(index),
            }
        }
        self.slots.clear();
        self.free.clear();
        self.ready.clear();
        self.unsent.clear();
        self.starved.clear();
        self.throttled.clear();
    }

    /// A connection of the daemon before is served on.
    fn resume(&mut self, handed: Handed) {
        let Some(index) = self.free_slot() else {
            return;
        };
        let since_ms = self.now_ms();
        let allowance = Arc::clone(&self.allowance);
        let slot = &mut self.slots[index as usize];
        let id: ConnectionId = slot.id;
        slot.since_ms = since_ms;
        slot.connection = Some(Connection::resumed(id, handed, allowance));
        self.counters.connections.accepted.add(1);
        self.arm(id);
        self.serve(index, Connection::resume);
        self.queue(index);
    }
}

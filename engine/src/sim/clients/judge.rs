//! What the clients' answers are held to, beside what the oracle says.

use super::super::oracle::Kept;
use super::super::plan::MS;
use super::super::risk::Begun;
use super::super::serve::Node;
use super::super::world::World;
use super::{Asked, Operation};
use crate::core::Failure;

impl World {
    /// What clients were told is in the bucket is looked for there, now and then.
    pub(super) fn look_into_the_bucket(
        &mut self,
        volume: usize,
        place: Kept,
    ) -> Result<(), String> {
        if place < Kept::Bucket {
            return Ok(());
        }
        self.coverage.hit("a FLUSH or FUA waited for the bucket");
        // In a race it may be the next owner's by now; it is looked at when it changes hands.
        match self.racing.is_none() && self.dice.chance(100) {
            true => self.check_image(volume, false),
            false => Ok(()),
        }
    }

    /// A write is answered: the bucket may lack only so much by then.
    pub(super) fn note_risk(&mut self, volume: usize, adds: Option<Begun>, at_once: bool) {
        let Some(begun) = adds else { return };
        let now_us = self.now_us;
        if let Err(what) = self.risk.answered(volume, begun, now_us, at_once) {
            self.violate(what);
        }
    }

    /// A core that knows that another writer has the volume acknowledges nothing of it any more.
    pub(super) fn check_right_to_answer(&mut self, number: u32, ticket: u64) {
        let connection = &self.clients.connections[number as usize];
        let place = (connection.core, connection.volume);
        let asked = connection.waiting.get(&ticket).map(|wait| &wait.asked);
        if !matches!(asked, Some(Asked::Write { .. } | Asked::Flush { .. })) {
            return;
        }
        // A FLUSH with nothing new under it promises nothing that another owner could miss, and
        // asks for no commit at which the fence would be seen.
        if let Some(racing) = &mut self.racing
            && matches!(asked, Some(Asked::Write { .. }))
        {
            *racing.answered.entry(place.1).or_default() += 1;
        }
        if self.fenced.told.contains(&place) {
            self.violate(format!(
                "#{ticket} is acknowledged after its volume was fenced"
            ));
        }
    }

    /// A request may fail only if something was made to fail.
    pub(super) fn judge_failure(
        &mut self,
        volume: usize,
        operation: &Operation,
        failure: Failure,
        ticket: u64,
    ) {
        let read_fault = self
            .last_read_fault_us
            .is_some_and(|at| at >= operation.sent_us);
        let log_failed = self.node.as_ref().is_some_and(Node::has_failed_log);
        if self.fenced.volumes.contains(&volume) {
            return;
        }
        let excused = match (&operation.asked, failure) {
            (Asked::Read { .. }, Failure::Io) => {
                self.coverage.hit("a read failed on rot or errors");
                read_fault
            }
            (Asked::Flush { .. }, Failure::Io) => {
                self.coverage.hit("a flush failed on a failed shard");
                log_failed
            }
            (Asked::Write { .. }, Failure::Io) => log_failed || read_fault,
            (Asked::Write { .. }, Failure::NoSpace) => {
                // The cores hear a little later that there is room again.
                let is_full = self.node.as_ref().is_some_and(|node| node.uploader.full);
                let was_full = self.last_full_us;
                is_full || was_full.is_some_and(|at| at + 20 * MS >= operation.sent_us)
            }
            _ => false,
        };
        if !excused {
            self.violate(format!(
                "#{ticket} on volume {volume} fails without cause: {failure:?}"
            ));
        }
    }
}

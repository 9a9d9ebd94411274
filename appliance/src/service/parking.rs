//! The clients of all cores come to rest for a hand-off, or go on after one that did not happen.

use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use taipan_engine::error::{Error, ErrorKind, Result};

use super::Service;
use crate::handoff::Handed;
use crate::inbox::{CoreMessage, Step};
use crate::listeners::Acceptor;

/// Longer than the cores try.
const PARK_WAIT: Duration = Duration::from_secs(8);

impl Service {
    /// Nobody is accepted, and no request read, from now on; gives the connections once everything
    /// answered is durable.
    pub(super) fn park_all(&self) -> Result<Vec<Handed>> {
        let acceptor = self.threads().acceptor.take();
        if let Some(acceptor) = acceptor {
            let listeners = acceptor.pause()?;
            self.threads().paused = Some(listeners);
        }
        let addresses = &self.shared.parts.addresses;
        let (reply, answers) = bounded(addresses.len());
        for core in addresses {
            core.send(CoreMessage::HandOff(Step::Park(reply.clone())));
        }
        drop(reply);
        let deadline = Instant::now() + PARK_WAIT;
        let (mut clients, mut parked) = (Vec::new(), 0);
        while let Ok(answer) = answers.recv_deadline(deadline) {
            let busy = |why| Error::new(ErrorKind::Busy, why);
            clients.extend(answer.map_err(busy)?);
            parked += 1;
        }
        if parked < addresses.len() {
            return Err(Error::new(ErrorKind::Busy, "a data core does not answer"));
        }
        if !self.shared.durable_soon() {
            let text = "not everything answered could be made durable";
            return Err(Error::new(ErrorKind::Io, text));
        }
        Ok(clients)
    }

    /// Everybody is served on.
    pub(super) fn unpark_all(&self) -> Result<()> {
        for core in &self.shared.parts.addresses {
            core.send(CoreMessage::HandOff(Step::Unpark));
        }
        let paused = self.threads().paused.take();
        if let Some(listeners) = paused {
            let cores = self.shared.parts.addresses.clone();
            let metrics = self.shared.parts.metrics.clone();
            let acceptor = Acceptor::start(listeners, cores, metrics)?;
            self.threads().acceptor = Some(acceptor);
        }
        Ok(())
    }
}

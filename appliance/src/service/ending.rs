//! How the data plane ends: in order, or because another process serves on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use taipan_engine::api::RunState;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::wal::region_files::{keep_for_later, list_regions};

use super::{Service, Shared};
use crate::control::Appliance;
use crate::daemon::Running;
use crate::handoff::{Handed, Offer};
use crate::inbox::{CoreMessage, Step};
use crate::notify;
use crate::stages::Stages;
use crate::uploader::Request;

/// How long a stop waits for the cores to answer and flush.
const QUIESCE_WAIT: Duration = Duration::from_secs(20);
/// How long the last batches may take to become durable when no more requests come.
const DURABLE_WAIT: Duration = Duration::from_secs(1);
const DURABLE_PAUSE: Duration = Duration::from_millis(5);

/// What becomes of the batch memory when nothing in it is needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// It stays reserved for the next start: to find it again takes the kernel a second.
    Kept,
    /// A successor has its own, or none comes.
    Freed,
}

impl Running for Service {
    fn appliance(&self) -> Arc<dyn Appliance> {
        Arc::clone(&self.shared) as Arc<dyn Appliance>
    }

    fn offers(&self) -> Result<Vec<Offer>> {
        Ok(std::mem::take(&mut self.threads().offers))
    }

    fn park(&self) -> Result<Vec<Handed>> {
        self.park_all()
    }

    fn unpark(&self) -> Result<()> {
        self.unpark_all()
    }

    fn release(self: Box<Self>) -> Result<()> {
        self.shared.set_run_state(RunState::Stopping);
        let (ack, released) = bounded(0);
        for core in &self.shared.parts.addresses {
            core.send(CoreMessage::HandOff(Step::Release(ack.clone())));
        }
        drop(ack);
        let stages = Stages::since(Instant::now());
        let _ = released.recv_timeout(QUIESCE_WAIT);
        let closed = self.close(Ok(()), Memory::Freed, stages);
        let unlocked = self.shared.parts.files.unlock();
        closed.and(unlocked)
    }

    fn stop(self: Box<Self>, drain: bool) -> Result<()> {
        let mut stages = Stages::since(Instant::now());
        self.shared.set_run_state(RunState::Stopping);
        if let Some(acceptor) = self.threads().acceptor.take() {
            acceptor.stop(&self.shared.parts.directory);
        }
        let (ack, quiet) = bounded(0);
        for core in &self.shared.parts.addresses {
            core.send(CoreMessage::Quiesce(ack.clone()));
        }
        drop(ack);
        // The channel closes when every core has answered, flushed and closed its sockets.
        let _ = quiet.recv_timeout(QUIESCE_WAIT);
        stages.ended("requests");
        let drained = if drain { self.shared.drain() } else { Ok(()) };
        // Whoever drains goes for good; and whoever was started by hand may never come back.
        let memory = match !drain && notify::is_managed() {
            true => Memory::Kept,
            false => Memory::Freed,
        };
        stages.ended("drain");
        self.close(drained, memory, stages)
    }
}

impl Service {
    /// No client is left: notes that everything is durable, if it is, and ends all threads.
    fn close(&self, mut result: Result<()>, memory: Memory, mut stages: Stages) -> Result<()> {
        let threads = std::mem::take(&mut *self.threads());
        let durable = self.shared.durable_soon();
        stages.ended("durable");
        if !durable {
            let text = "not everything answered could be made durable; the memory regions are kept";
            result = result.and(Err(Error::new(ErrorKind::Io, text)));
        }
        let closed = self.shared.ask(|reply| Request::Stop {
            clean: durable,
            reply,
        });
        stages.ended("volumes");
        for core in &self.shared.parts.addresses {
            core.send(CoreMessage::Stop);
        }
        for thread in threads.data {
            if let Ok(Err(error)) = thread.join() {
                result = result.and(Err(Error::io("a data core failed", error)));
            }
        }
        stages.ended("logs");
        if let Some(uploader) = threads.uploader {
            let _ = uploader.join();
        }
        stages.ended("uploader");
        if durable && closed.is_ok() {
            match memory {
                Memory::Freed => self.shared.remove_regions(),
                Memory::Kept => self.shared.keep_regions(),
            }
        }
        stages.ended("regions");
        tracing::info!(parts_ms = %stages, "the volumes are closed");
        result.and(closed)
    }
}

impl Shared {
    fn everything_durable(&self) -> bool {
        let reports = self.reports.fresh();
        reports.len() == self.parts.addresses.len()
            && reports
                .iter()
                .flat_map(|report| &report.shards)
                .all(|shard| shard.failure.is_none() && shard.durable_batch >= shard.last_batch)
    }

    /// Whether something never will be durable.
    fn has_failed_shard(&self) -> bool {
        let reports = self.reports.fresh();
        let mut shards = reports.iter().flat_map(|report| &report.shards);
        shards.any(|shard| shard.failure.is_some())
    }

    fn is_stopping(&self) -> bool {
        let run_state = self.run_state.lock();
        *run_state.unwrap_or_else(std::sync::PoisonError::into_inner) == RunState::Stopping
    }

    /// The same, a moment later if need be: a core that was quiet first may have got parts of
    /// requests of the others since.
    pub(super) fn durable_soon(&self) -> bool {
        // Nobody waits for a stop, which has the time of a disk that stands still for seconds.
        let limit = match self.is_stopping() {
            true => QUIESCE_WAIT,
            false => DURABLE_WAIT,
        };
        let deadline = Instant::now() + limit;
        loop {
            if self.everything_durable() {
                return true;
            }
            if Instant::now() >= deadline || self.has_failed_shard() {
                return false;
            }
            std::thread::sleep(DURABLE_PAUSE);
        }
    }

    /// The next start finds its memory reserved. The regions hold nothing that is not durable
    /// elsewhere.
    fn keep_regions(&self) {
        let own = self.parts.files.state().incarnation;
        if let Err(error) = keep_for_later(&self.parts.runtime_dir, own) {
            tracing::warn!(%error, "the next start reserves its memory anew");
        }
    }

    /// The regions of this process hold nothing that is not durable elsewhere.
    fn remove_regions(&self) {
        let Ok(regions) = list_regions(&self.parts.runtime_dir) else {
            return;
        };
        let own = self.parts.files.state().incarnation;
        for region in regions
            .into_iter()
            .filter(|region| region.incarnation <= own)
        {
            if let Err(error) = std::fs::remove_file(&region.path) {
                tracing::warn!(path = %region.path.display(), %error, "region not removed");
            }
        }
    }
}

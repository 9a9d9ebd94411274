//! Volumes that the configuration names: those that do not exist yet are created by the start.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use taipan_engine::api::VolumeState;
use taipan_engine::error::{ErrorKind, Result};
use taipan_engine::volume::VolumeName;

use super::{Service, Shared, stopping};
use crate::config::VolumeConfig;
use crate::directory::Volume;
use crate::signals;
use crate::uploader::Request;

/// How long a start waits for what it creates. On a slow backend the creation goes on beside it.
const START_WAIT: Duration = Duration::from_secs(60);
/// A signal is noticed within this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A volume that is being created.
struct Creating {
    name: VolumeName,
    answer: Receiver<Result<()>>,
}

impl Service {
    /// Creates the configured volumes that do not exist yet; existing ones keep their settings.
    /// Waits for that no longer than a minute, or until a signal comes: other volumes are to be
    /// served, too.
    pub fn create_configured(&self) -> Result<()> {
        let mut creating = Vec::new();
        for wanted in &self.shared.parts.config.volumes {
            match self.shared.parts.directory.get(&wanted.name) {
                Some(volume) => compare(wanted, &volume),
                None => creating.push(self.shared.create_wanted(wanted)),
            }
        }
        let deadline = Instant::now() + START_WAIT;
        let is_over = || signals::has_come() || Instant::now() >= deadline;
        creating
            .into_iter()
            .try_for_each(|volume| self.shared.await_created(volume, &is_over))
    }
}

/// What there is to say of a configured volume that exists.
fn compare(wanted: &VolumeConfig, volume: &Volume) {
    if volume.state().0 == VolumeState::Elsewhere {
        // Not a reason to leave the others unserved.
        tracing::error!(
            volume = %wanted.name,
            "the configured volume exists and another appliance owns it; take it over with \
             `taipan volume takeover`, or choose another name"
        );
        return;
    }
    for difference in wanted.differences(&volume.settings()) {
        tracing::warn!(
            volume = %wanted.name,
            "the volume exists and keeps its settings: {difference}"
        );
    }
}

impl Shared {
    fn create_wanted(&self, wanted: &VolumeConfig) -> Creating {
        let (reply, answer) = bounded(1);
        self.parts.uploader.request(Request::Create {
            name: wanted.name.clone(),
            settings: wanted.settings.clone(),
            insists: true,
            reply,
        });
        let name = wanted.name.clone();
        Creating { name, answer }
    }

    /// Waits until the volume is created, or `is_over`: then that goes on beside the start.
    fn await_created(&self, volume: Creating, is_over: &dyn Fn() -> bool) -> Result<()> {
        loop {
            match volume.answer.recv_timeout(LOOK_EVERY) {
                // The outcome is still to come.
                Ok(Err(error)) if error.kind() == ErrorKind::Transient => break,
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(stopping()),
                Err(RecvTimeoutError::Timeout) if !is_over() => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        let name = volume.name;
        tracing::error!(
            volume = %name,
            "the backend is slow or away: the volume is created when it answers; serving without it"
        );
        self.awaited().push(name);
        Ok(())
    }

    fn awaited(&self) -> MutexGuard<'_, Vec<VolumeName>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A problem for each configured volume that is still being created.
    pub(super) fn absent_volumes(&self) -> Vec<String> {
        let mut awaited = self.awaited();
        awaited.retain(|name| self.parts.directory.get(name).is_none());
        let problem = |name| {
            format!("volume {name}: it is being created, which waits for the backend; see the log")
        };
        awaited.iter().map(problem).collect()
    }
}

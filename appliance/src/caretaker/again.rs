//! Volumes of which a start could not say what becomes of them, because the backend did not answer,
//! and those of our own that a commit without an answer fenced: they are asked for again until it
//! is known, and opened with what the WAL holds of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use taipan_engine::api::VolumeState;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Generation, VolumeId};
use taipan_engine::registry::{self, LocalHead};

use super::Caretaker;
use crate::boot::BootVolume;
use crate::directory::Volume;
use crate::tail::Tail;
use crate::uploader::Request;

/// What is said of a volume that was lost while it was refused.
const LOST: &str = "another appliance took it over; what was answered here is being copied out";

/// First wait after a failure; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// Longest wait after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What is tried again.
pub(crate) struct Again {
    /// The start was to take over every volume.
    takes_all: bool,
    /// Volumes that are refused and whose answered writes are all in the WAL files or the image.
    refused: HashSet<VolumeId>,
    /// Those of them of which the WAL may have records.
    recorded: HashSet<VolumeId>,
    pauses: HashMap<VolumeId, Pause>,
}

impl Again {
    /// What the start leaves, `volumes` being what it found and `recorded` those of which the WAL
    /// has records.
    pub(crate) fn of(takes_all: bool, volumes: &[BootVolume], recorded: &[VolumeId]) -> Self {
        let is_refused = |boot: &&BootVolume| {
            boot.opened.is_none() && boot.volume.state().0 == VolumeState::Refused
        };
        let refused = volumes.iter().filter(is_refused);
        Self {
            takes_all,
            refused: refused.map(|boot| boot.volume.id).collect(),
            recorded: recorded.iter().copied().collect(),
            pauses: HashMap::new(),
        }
    }

    /// A volume that was served is refused, and all that was answered of it is in the WAL files.
    pub(super) fn readmit(&mut self, id: VolumeId) {
        self.refused.insert(id);
        self.recorded.insert(id);
    }
}

/// How long a volume is left alone after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn after(before: Option<Self>, now: Instant) -> Self {
        let wait = before.map_or(PAUSE_MIN, |pause| pause.next);
        Self {
            until: now + wait,
            next: (wait * 2).min(PAUSE_MAX),
        }
    }
}

/// Whether answered writes of the volume must be copied out of the WAL before it is opened: they
/// belong to a lineage that another appliance has replaced.
fn has_replaced_writes(local: &LocalHead) -> bool {
    local.quarantine.is_some_and(|range| !range.copied)
}

impl Caretaker {
    /// Asks for the volumes that are not decided, each after its pause.
    pub(super) fn try_again(&mut self, volumes: &[Arc<Volume>]) {
        let is_open = |volume: &Arc<Volume>| match volume.state().0 {
            VolumeState::Unverified => true,
            VolumeState::Refused => self.again.refused.contains(&volume.id),
            _ => false,
        };
        let open: Vec<&Arc<Volume>> = volumes.iter().filter(|volume| is_open(volume)).collect();
        let is_left = |id: &VolumeId| open.iter().any(|volume| volume.id == *id);
        self.again.pauses.retain(|id, _| is_left(id));
        for volume in open {
            let pause = self.again.pauses.get(&volume.id).copied();
            if pause.is_some_and(|pause| Instant::now() < pause.until) {
                continue;
            }
            let tried = match volume.state().0 {
                VolumeState::Unverified => self.verify(volume),
                _ => self.reopen(volume),
            };
            if let Err(error) = tried {
                tracing::debug!(volume = %volume.name, %error, "not decided yet");
            }
            let pause = Pause::after(pause, Instant::now());
            self.again.pauses.insert(volume.id, pause);
        }
    }

    /// Stores a manifest without a change: it tells whose the volume is, as a commit would.
    fn verify(&self, volume: &Volume) -> Result<()> {
        // First whether the backend answers at all: what waits for it holds up commits.
        let head = self.ask(registry::read_head(&*self.backend, volume.id, None))?;
        let local = self.heads.load(volume.id)?;
        let is_further = |local: &LocalHead| local.is_own(&head) && head.number != local.head;
        if local.as_ref().is_none_or(is_further) {
            // Stored by this appliance before it crashed: what became of that a start finds out.
            return Ok(());
        }
        self.put_unchanged(volume)
    }

    /// Has a manifest without a change stored, however long that takes.
    pub(super) fn put_unchanged(&self, volume: &Volume) -> Result<()> {
        let name = volume.name.clone();
        self.answered(|reply| Request::Configure {
            name,
            change: Box::new(|settings| Ok(settings.clone())),
            decides: false,
            reply,
        })
    }

    /// Opens a volume that is refused although nothing here speaks against it.
    fn reopen(&mut self, volume: &Volume) -> Result<()> {
        let (id, takes_all) = (volume.id, self.again.takes_all);
        let mut local = self.heads.load(id)?;
        if let Some(local) = local.as_mut().filter(|local| has_replaced_writes(local)) {
            // A start could not, or first heard of it later: nobody has written it since.
            let former = local.clone();
            let logs = self.logs.scan()?;
            self.keep_apart(&former, local, &logs, SystemTime::now())?;
        }
        let head = self.ask(registry::read_head(&*self.backend, id, None))?;
        let is_known = local.is_some();
        let is_ours = head.generation == Generation(0) || local.is_some_and(|l| l.is_own(&head));
        let is_recorded = self.again.recorded.contains(&id);
        match (is_ours, is_recorded) {
            (false, false) if !takes_all => {
                self.directory
                    .replace(Arc::new(Volume::elsewhere(volume.slot, &head)));
                return Ok(());
            }
            // What was answered here and never committed goes the way of a fenced volume's tail.
            (false, true) if is_known && !takes_all => {
                volume.set_state(VolumeState::Fenced, Some(LOST.to_owned()));
                self.again.refused.remove(&id);
                return Ok(());
            }
            (false, true) => return Ok(()),
            _ => {}
        }
        let (name, logs) = (volume.name.clone(), self.logs.clone());
        let read = move |local: &LocalHead| match is_recorded {
            true => logs.tail(local),
            false => Ok(Tail::default()),
        };
        self.answered(|reply| Request::Reopen {
            name,
            takes_all,
            tail: Box::new(read),
            reply,
        })?;
        self.again.refused.remove(&id);
        Ok(())
    }

    /// Asks the uploader and waits for the answer, which it gives within about a minute.
    fn answered(
        &self,
        request: impl FnOnce(crossbeam_channel::Sender<Result<()>>) -> Request,
    ) -> Result<()> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.uploader.request(request(reply));
        answer.recv().unwrap_or_else(|_| {
            let text = "the uploader has stopped";
            Err(Error::new(ErrorKind::Transient, text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taipan_engine::identity::Epoch;
    use taipan_engine::volume::{VolumeName, VolumeSettings};

    #[test]
    fn pauses_double_up_to_a_minute() {
        let now = Instant::now();
        let mut pause = None;
        let mut waits = Vec::new();
        for _ in 0..7 {
            let next = Pause::after(pause, now);
            waits.push((next.until - now).as_secs());
            pause = Some(next);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn what_another_appliance_replaced_is_copied_out_once() {
        let name = VolumeName::parse("v").unwrap();
        let whole = LocalHead::named(VolumeId(1), name, VolumeSettings::with_size(512));
        assert!(!has_replaced_writes(&whole));
        let mut disowned = whole;
        disowned.disown(Epoch(5));
        assert!(has_replaced_writes(&disowned));
        disowned.quarantine_done();
        assert!(!has_replaced_writes(&disowned));
    }
}

//! Opens volumes while the daemon runs: those of another appliance (`taipan volume takeover`), and
//! those of our own that are refused.
//!
//! Records of the volume must be stamped above everything stamped here before and above the head's
//! epoch: those up to there may be skipped or quarantined by a later start. So the clock is moved
//! there by a cut before the cores serve the volume.

use std::rc::Rc;
use std::sync::Arc;

use crossbeam_channel::Sender;
use taipan_engine::api::VolumeState;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::registry;
use taipan_engine::volume::VolumeName;

use super::changes::Change;
use super::effects::Means;
use super::patience::{Answer, until_known, while_answering};
use super::{UploadVolume, Uploader};
use crate::directory::Volume;
use crate::opening::{Found, Opened, open_at_start, open_volume};
use crate::tail::{Tail, TailSource};

/// A volume that was opened, and what of it the WAL holds and the image may not.
pub(crate) struct Regained {
    opened: Box<Opened>,
    tail: Tail,
}

impl Regained {
    pub(super) fn new(opened: Box<Opened>, tail: Tail) -> Self {
        Self { opened, tail }
    }
}

/// A volume that was taken over and waits for the clock.
pub(super) struct Taken {
    name: VolumeName,
    regained: Regained,
    /// The clock must be above.
    above: Epoch,
    answer: Answer,
}

/// Opens the volume in the backend, whoever owned it.
pub(super) async fn take_over(
    means: Rc<Means>,
    name: VolumeName,
    known: Option<VolumeId>,
    stamped_through: Epoch,
    mut answer: Answer,
) -> Change {
    let backend = &*means.backend;
    let opened = until_known(backend, "take a volume over", &mut answer, async || {
        let id = match known {
            Some(id) => id,
            None => registry::resolve_name(backend, &name)
                .await?
                .ok_or_else(|| no_volume(&name))?,
        };
        open_volume(backend, &means.heads, id, stamped_through).await
    });
    let result = opened.await.map(|mut opened| {
        // What is served is the image; our own earlier tail, if any, is in quarantine.
        opened.was_clean = true;
        Regained::new(Box::new(opened), Tail::default())
    });
    Change::TakenOver {
        name,
        stamped_through,
        result,
        answer,
    }
}

/// Opens a volume in the backend as a start does, with what the WAL holds of it.
async fn reopen(
    means: Rc<Means>,
    volume: Arc<Volume>,
    (takes_all, tail): (bool, TailSource),
    stamped_through: Epoch,
    answer: Answer,
) -> Change {
    let (backend, heads, id) = (&*means.backend, &means.heads, volume.id);
    let attempt = async {
        match open_at_start(backend, heads, id, stamped_through, takes_all).await? {
            Found::Opened(mut opened) => {
                registry::begin_serving(heads, &mut opened.local, stamped_through)?;
                // Nothing was answered since the record says what became of the cache.
                opened.was_clean = !opened.local.lost_cache;
                Ok(opened)
            }
            Found::Elsewhere(_) => {
                let text = "another appliance owns the volume";
                Err(Error::new(ErrorKind::Fenced, text).with_volume(id))
            }
        }
    };
    let result = match while_answering(backend, "open a volume", attempt).await {
        Ok(opened) => with_tail(opened, tail).await,
        Err(error) => Err(error),
    };
    Change::TakenOver {
        name: volume.name.clone(),
        stamped_through,
        result,
        answer,
    }
}

/// Reads what the WAL holds of the volume, on a thread of its own.
async fn with_tail(opened: Box<Opened>, tail: TailSource) -> Result<Regained> {
    let local = opened.local.clone();
    let read = glommio::executor().spawn_blocking(move || tail(&local));
    let tail = read.await?;
    Ok(Regained::new(opened, tail))
}

impl Uploader {
    /// Only for a volume that is refused: nobody writes it, and what was answered of it is in the
    /// WAL files.
    pub(super) fn begin_reopening(
        &mut self,
        name: &VolumeName,
        takes_all: bool,
        tail: TailSource,
        reply: Sender<Result<()>>,
    ) {
        let refused = |volume: &Arc<Volume>| {
            let state = volume.state().0;
            state == VolumeState::Refused && !self.volumes.contains_key(&volume.id)
        };
        let is_taking = self.taken.iter().any(|taken| taken.name == *name);
        let found = self.directory.get(name).filter(refused);
        let Some(volume) = found.filter(|_| !is_taking) else {
            let text = format!("volume {:?} is not one to be opened again", name.as_str());
            let _ = reply.send(Err(Error::new(ErrorKind::Busy, text)));
            return;
        };
        let answer = Answer::new(reply, "the opening is pending");
        let (means, stamped) = (Rc::clone(&self.means), self.clock.now());
        let how = (takes_all, tail);
        self.spawn_change(reopen(means, volume, how, stamped, answer));
    }

    pub(super) fn begin_takeover(&mut self, name: VolumeName, reply: Sender<Result<()>>) {
        let present = self.directory.get(&name);
        let refusal = present.as_ref().and_then(|volume| {
            let (state, cause) = volume.state();
            match state {
                VolumeState::Elsewhere => None,
                VolumeState::Fenced => self.uncopied(volume.id),
                VolumeState::Refused => Some(format!(
                    "volume {:?} is refused: {}",
                    name.as_str(),
                    cause.unwrap_or_default()
                )),
                _ => Some(format!("volume {:?} is served here", name.as_str())),
            }
        });
        let is_taking = self.taken.iter().any(|taken| taken.name == name);
        let refusal = refusal.or_else(|| is_taking.then(|| "it is being taken over".to_owned()));
        if let Some(text) = refusal {
            let _ = reply.send(Err(Error::new(ErrorKind::Busy, text)));
            return;
        }
        let answer = Answer::new(reply, "the takeover is pending, it is tried again");
        let known = present.map(|volume| volume.id);
        let (means, stamped) = (Rc::clone(&self.means), self.clock.now());
        self.spawn_change(take_over(means, name, known, stamped, answer));
    }

    /// Why a fenced volume cannot be taken back yet.
    fn uncopied(&self, id: VolumeId) -> Option<String> {
        let copied = match self.means.heads.load(id) {
            Ok(local) => local.is_none_or(|l| l.quarantine.is_some_and(|range| range.copied)),
            Err(error) => return Some(error.to_string()),
        };
        let text = "its tail is being copied out of the WAL; try again in a few seconds";
        (!copied).then(|| text.to_owned())
    }

    /// The volume is ours; it is served once the clock is far enough.
    pub(super) fn taken_over(
        &mut self,
        name: VolumeName,
        stamped_through: Epoch,
        regained: Regained,
        answer: Answer,
    ) {
        let opened = &regained.opened;
        // What a cut under way seals of before must not be committed on top of the image: the cores
        // let go of the volume while the coordinator has forgotten it, and it is served after the
        // next cut, which is not made before all of this one is sealed.
        if let Some(former) = self.directory.get(&name) {
            self.remove_from_cores(former.slot, false);
        }
        let stamped_through = stamped_through.max(self.clock.now());
        // What was copied out earlier may be gone from the WAL; replay still goes by its stamps.
        let judged = opened.local.judged_through();
        let above = stamped_through.max(opened.commit.head().epoch).max(judged);
        self.coordinator.raise(above);
        self.taken.push(Taken {
            name,
            regained,
            above,
            answer,
        });
    }

    /// Serves the volumes that were taken over, as far as the clock allows.
    pub(super) fn serve_taken(&mut self) {
        let now = self.clock.now();
        let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.taken)
            .into_iter()
            .partition(|taken| now > taken.above);
        self.taken = waiting;
        for mut taken in ready {
            let Regained { opened, tail } = taken.regained;
            let id = opened.local.id;
            self.leave_former(&taken.name, id);
            self.coordinator.readmit_volume(id);
            self.serve_opened(*opened, tail);
            taken.answer.give(Ok(()));
        }
    }

    /// Takes away what was shown, and served before it was fenced, under that name. What the WAL
    /// holds of it stays: the opening says what of that is needed.
    fn leave_former(&mut self, name: &VolumeName, id: VolumeId) {
        let former: Option<UploadVolume> = self.volumes.remove(&id);
        let Some(volume) = self.directory.get(name) else {
            return;
        };
        if former.is_some() || !volume.is_served() {
            self.remove_from_cores(volume.slot, false);
        }
        if former.is_some() {
            // Served until now: what waited to be committed is not waited for any more.
            self.clock.exposures().forget(id);
        }
        self.tables.forget(id);
        self.directory.remove(name);
    }
}

fn no_volume(name: &VolumeName) -> Error {
    let text = format!("the backend has no volume {:?}", name.as_str());
    Error::new(ErrorKind::NotFound, text)
}

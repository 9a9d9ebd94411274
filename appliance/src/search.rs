//! Which volumes a start finds, and what becomes of each: opened, left to another appliance, or
//! refused. A volume is never forgotten, and no record of it dropped on doubt.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::executor::block_on;
use taipan_engine::api::VolumeState;
use taipan_engine::backend::Backend;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::manifest::{Manifest, ManifestKind};
use taipan_engine::registry::quarantine::QuarantineHeader;
use taipan_engine::registry::{self, LocalHead, LocalHeads, NamedVolume};
use taipan_engine::shard::VolumeSlot;
use taipan_engine::volume::VolumeSettings;

use crate::boot::BootVolume;
use crate::directory::{LOST_CACHE, Volume};
use crate::opening::{Found, Opened, open_at_start, open_unverified};
use crate::patience::block_while_answering;
use crate::quarantine::{Quarantine, oldest_ms, unix_ms, written_ms};
use crate::recovery::Replayed;

/// What is told of a volume that is served from local copies.
const UNVERIFIED: &str = "the backend could not be reached at the start: served as this appliance \
                          last knew it; the first commit tells whether another one took it over";
/// How long a start waits for a backend that fails before it serves what it knows without it.
pub(crate) const BACKEND_WAIT: Duration = Duration::from_secs(10);
/// How long it waits for each further volume once the backend went away meanwhile.
const AWAY_WAIT: Duration = Duration::from_secs(1);
const BACKEND_PAUSE: Duration = Duration::from_millis(250);

/// Everything that decides what becomes of a volume at start.
pub(crate) struct Search<'a> {
    pub(crate) backend: &'a dyn Backend,
    /// What is known without it; `None`: a backend on this machine, without which nothing starts.
    pub(crate) copies: Option<&'a dyn Backend>,
    /// A backend that fails for so long is taken for unreachable,
    pub(crate) patience: Duration,
    /// … and one that says nothing for so long.
    pub(crate) silence: Duration,
    /// It did not answer the last question.
    pub(crate) away: Cell<bool>,
    pub(crate) heads: &'a LocalHeads,
    /// Where they lie.
    pub(crate) heads_dir: &'a Path,
    pub(crate) replayed: &'a Replayed,
    /// Greatest epoch ever stamped here.
    pub(crate) stamped: Epoch,
    /// Take over every volume, whoever owns it.
    pub(crate) takes_all: bool,
    pub(crate) quarantine: Quarantine,
}

/// What was known of a volume before this start touched its record.
struct Before {
    local: Option<LocalHead>,
    /// No uncommitted write of ours is older, in milliseconds since 1970; 0: not known.
    since_ms: u64,
}

impl Search<'_> {
    /// Opens the backend's volumes; one that cannot be opened is refused, not forgotten.
    pub(crate) fn open_all(&self) -> Result<FoundVolumes> {
        let listing = match self.ask(|| registry::list_volumes(self.backend)) {
            Ok(listing) => listing,
            Err(error) if self.copies.is_some() && is_unreachable(&error) => {
                tracing::error!(%error, "the backend cannot be reached; starting without it");
                return Ok(FoundVolumes {
                    volumes: self.open_known()?,
                    backend_asked: false,
                });
            }
            Err(error) => return Err(error),
        };
        for problem in &listing.problems {
            tracing::error!(error = %problem, "a volume name cannot be read");
        }
        let mut volumes = Vec::new();
        for (index, named) in listing.volumes.into_iter().enumerate() {
            volumes.extend(self.open_one(VolumeSlot(index as u32), named)?);
        }
        self.refuse_missing(&mut volumes)?;
        Ok(FoundVolumes {
            volumes,
            backend_asked: true,
        })
    }

    /// Asks the backend; where a start without it is possible, as long as it answers at all. A slow
    /// one is not away: a large index takes its time.
    fn ask<T, F: Future<Output = Result<T>>>(&self, question: impl Fn() -> F) -> Result<T> {
        if self.copies.is_none() {
            return block_on(question());
        }
        let (patience, silence) = match self.away.get() {
            true => (AWAY_WAIT, AWAY_WAIT),
            false => (self.patience, self.silence),
        };
        let begun = Instant::now();
        loop {
            match block_while_answering(self.backend, silence, question()) {
                Err(error) if is_unreachable(&error) && begun.elapsed() < patience => {
                    std::thread::sleep(BACKEND_PAUSE);
                }
                answer => {
                    self.away.set(answer.as_ref().is_err_and(is_unreachable));
                    return answer;
                }
            }
        }
    }

    /// As [`is_deleted`].
    fn is_deleted(&self, id: VolumeId) -> bool {
        let head = self.ask(|| registry::read_head(self.backend, id, None));
        is_tombstone(self.backend, head)
    }

    /// The volumes of which there are local records, as they were last known.
    fn open_known(&self) -> Result<Vec<BootVolume>> {
        let mut volumes: Vec<BootVolume> = Vec::new();
        for (id, local) in self.heads.load_all()? {
            let local = match local {
                Ok(local) if volumes.iter().all(|boot| boot.volume.name != local.name) => local,
                Ok(local) => {
                    tracing::error!(volume = %local.name, %id, "a second volume of that name");
                    continue;
                }
                Err(unreadable) => {
                    tracing::error!(volume = %id, %unreadable, "a volume's record is unreadable");
                    continue;
                }
            };
            let slot = next_slot(&volumes);
            let text = "the backend cannot be reached";
            let error = Error::new(ErrorKind::Transient, text).with_volume(id);
            volumes.push(self.open_copy(slot, local, error)?);
        }
        Ok(volumes)
    }

    /// Serves a volume as it was last known here, or refuses it.
    fn open_copy(&self, slot: VolumeSlot, local: LocalHead, why: Error) -> Result<BootVolume> {
        let named = NamedVolume {
            name: local.name.clone(),
            id: local.id,
        };
        let before = Before {
            since_ms: self.since_ms(&local),
            local: Some(local.clone()),
        };
        let opened = match self.copies {
            Some(copies) => block_on(open_unverified(copies, self.heads, local)),
            None => Err(why),
        };
        match opened {
            Ok(opened) => {
                tracing::warn!(volume = %named.name, cause = UNVERIFIED, "volume unverified");
                self.judge(slot, opened, &before)
            }
            Err(error) => {
                self.keep_verdict(before.local)?;
                Ok(self.refuse(slot, named, &error))
            }
        }
    }

    /// No write that the backend lacks is older, in milliseconds since 1970; 0: not known.
    fn since_ms(&self, local: &LocalHead) -> u64 {
        oldest_ms(local, self.heads_dir)
    }

    /// `None`: it was deleted meanwhile.
    fn open_one(&self, slot: VolumeSlot, named: NamedVolume) -> Result<Option<BootVolume>> {
        let local = self.heads.load(named.id).ok().flatten();
        let before = Before {
            since_ms: local.as_ref().map_or(0, |local| self.since_ms(local)),
            local,
        };
        let opening = self.ask(|| {
            let (stamped, takes_all) = (self.stamped, self.takes_all);
            open_at_start(self.backend, self.heads, named.id, stamped, takes_all)
        });
        match opening {
            Ok(Found::Opened(opened)) => self.judge(slot, *opened, &before).map(Some),
            Ok(Found::Elsewhere(head)) => self.leave(slot, &head, &before).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_deleted(named.id) => {
                self.finish_deletion(&named);
                Ok(None)
            }
            Err(error) if self.copies.is_some() && is_unreachable(&error) => {
                // It may have noted a takeover that was tried.
                match self.heads.load(named.id) {
                    Ok(Some(local)) => self.open_copy(slot, local, error).map(Some),
                    _ => Ok(Some(self.refuse(slot, named, &error))),
                }
            }
            Err(error) => {
                self.keep_verdict(before.local)?;
                Ok(Some(self.refuse(slot, named, &error)))
            }
        }
    }

    /// A deletion, by whomever, was interrupted after the tombstone: the name is still taken, and
    /// nothing says yet that objects are to be freed.
    fn finish_deletion(&self, named: &NamedVolume) {
        let finished = self.ask(|| async {
            let head = registry::read_head(self.backend, named.id, None).await?;
            match head.kind {
                ManifestKind::Tombstone => registry::finish_deletion(self.backend, &head).await,
                _ => Ok(()),
            }
        });
        match finished {
            Ok(()) => tracing::info!(volume = %named.name, "an interrupted deletion is finished"),
            Err(error) => {
                tracing::warn!(volume = %named.name, %error, "a deletion is not finished yet");
            }
        }
    }

    /// What became of the answered writes of a volume that is refused is known now and at no later
    /// start: notes it in its record, of which `before` is the state before this start.
    fn keep_verdict(&self, before: Option<LocalHead>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        let Some(mut local) = self.heads.load(before.id)? else {
            return Ok(());
        };
        // Nothing is written to it, so what was closed in order still is.
        local.clean = before.clean;
        local.lost_cache |= !before.clean && !self.replayed.memory_survived;
        self.heads.save(&local)
    }

    /// Volumes that this appliance wrote and that the backend does not list: an object store that
    /// is not mounted, or another one. They are refused, and their records in the WAL kept.
    fn refuse_missing(&self, volumes: &mut Vec<BootVolume>) -> Result<()> {
        for (id, local) in self.heads.load_all()? {
            if volumes.iter().any(|boot| boot.volume.id == id) {
                continue;
            }
            if self.is_deleted(id) {
                self.heads.remove(id)?;
                continue;
            }
            self.keep_verdict(local.as_ref().ok().cloned())?;
            let text = format!("the backend ({}) does not have it", self.backend.describe());
            let error = Error::new(ErrorKind::NotFound, text).with_volume(id);
            match local {
                Ok(local) if volumes.iter().all(|boot| boot.volume.name != local.name) => {
                    let name = local.name;
                    let refused = self.refuse(next_slot(volumes), NamedVolume { name, id }, &error);
                    volumes.push(refused);
                }
                Ok(_) => tracing::error!(volume = %id, %error, "a volume is missing"),
                Err(unreadable) => tracing::error!(volume = %id, %error, %unreadable, "missing"),
            }
        }
        Ok(())
    }

    /// Decides whether and how an opened volume is served.
    fn judge(&self, slot: VolumeSlot, mut opened: Opened, before: &Before) -> Result<BootVolume> {
        if let Err(error) = self.copy_out(&mut opened.local, before) {
            let named = NamedVolume {
                name: opened.local.name.clone(),
                id: opened.local.id,
            };
            self.keep_verdict(before.local.clone())?;
            return Ok(self.refuse(slot, named, &uncopied(error)));
        }
        let survived = opened.was_clean || self.replayed.memory_survived;
        let intact = survived && !opened.local.lost_cache;
        let mut volume = Volume::serving(slot, &opened.local, intact);
        if !intact {
            tracing::error!(volume = %volume.name, cause = LOST_CACHE, "lineage is broken");
            // Remembered, so that another start does not take the volume for whole.
            opened.local.lost_cache = true;
            self.heads.save(&opened.local)?;
            volume.note_lost_cache();
        }
        if opened.unverified && volume.state().0 == VolumeState::Online {
            volume.set_state(VolumeState::Unverified, Some(UNVERIFIED.to_owned()));
        }
        Ok(BootVolume {
            volume: Arc::new(volume),
            opened: Some(opened),
            released: false,
        })
    }

    /// Another appliance's volume: listed, not served. What this appliance answered and never
    /// committed is copied out, then its WAL space is free.
    fn leave(&self, slot: VolumeSlot, head: &Manifest, before: &Before) -> Result<BootVolume> {
        let volume = Volume::elsewhere(slot, head);
        let has_records = self.replayed.volumes().contains(&head.volume);
        if before.local.is_none() && !has_records {
            return Ok(BootVolume {
                volume: Arc::new(volume),
                opened: None,
                released: true,
            });
        }
        tracing::warn!(
            volume = %volume.name, generation = %head.generation,
            "another appliance owns the volume; it is not served here"
        );
        let local = before.local.clone();
        let mut local = local.unwrap_or_else(|| LocalHead::unknown(head));
        local.disown(self.stamped);
        let copied = self.copy_out(&mut local, before);
        if let Err(error) = &copied {
            tracing::error!(volume = %volume.name, %error, "records cannot be copied out");
            let cause = format!("another appliance owns it; {error}; the WAL keeps our writes");
            volume.set_state(VolumeState::Refused, Some(cause));
        }
        Ok(BootVolume {
            volume: Arc::new(volume),
            opened: None,
            released: copied.is_ok(),
        })
    }

    /// Copies the records that must not be merged into a file and notes that durably. After an
    /// error they must stay in the WAL.
    fn copy_out(&self, local: &mut LocalHead, before: &Before) -> Result<()> {
        let Some(range) = local.quarantine.filter(|range| !range.copied) else {
            return Ok(());
        };
        let ours = before.local.as_ref().unwrap_or(local);
        let newest_ms = self
            .replayed
            .paths()
            .iter()
            .map(|path| written_ms(path))
            .max();
        let header = QuarantineHeader {
            volume: ours.id,
            name: ours.name.clone(),
            block_size_bytes: ours.settings.block_size_bytes,
            generation: ours.generation,
            head: ours.head,
            after: range.after,
            through: range.through,
            since_ms: before.since_ms,
            until_ms: newest_ms.unwrap_or_else(|| unix_ms(SystemTime::now())),
        };
        let judged = local.clone();
        let fate = |epoch| judged.fate(epoch);
        let records = self.replayed.foreign_records(local.id, &fate);
        self.quarantine.copy(&header, records)?;
        local.quarantine_done();
        self.heads.save(local)
    }

    fn refuse(&self, slot: VolumeSlot, named: NamedVolume, error: &Error) -> BootVolume {
        tracing::error!(volume = %named.name, %error, "volume refused");
        let known = self.heads.load(named.id).ok().flatten();
        let settings = known.map_or_else(
            || VolumeSettings::with_size(512),
            |local: LocalHead| local.settings,
        );
        let identity = (named.name, named.id);
        let volume = Volume::refused(slot, identity, settings, error.to_string());
        BootVolume {
            volume: Arc::new(volume),
            opened: None,
            released: false,
        }
    }
}

/// What a start found.
pub(crate) struct FoundVolumes {
    pub(crate) volumes: Vec<BootVolume>,
    /// The backend's volumes were listed.
    pub(crate) backend_asked: bool,
}

/// Whether the backend said nothing, as opposed to no.
fn is_unreachable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Transient | ErrorKind::Io)
}

fn next_slot(volumes: &[BootVolume]) -> VolumeSlot {
    let slots = volumes.iter().map(|boot| boot.volume.slot.0 + 1);
    VolumeSlot(slots.max().unwrap_or(0))
}

fn uncopied(error: Error) -> Error {
    let text = "the WAL holds writes of a lineage that another appliance has replaced, and they \
                cannot be copied out; nothing is lost; make room: it is tried again";
    Error::new(error.kind(), text).with_source(error)
}

/// Whether the volume's tombstone is there. Anything else that is missing is damage, or the wrong
/// backend, and no reason to forget what was answered.
pub(crate) fn is_deleted(backend: &dyn Backend, id: VolumeId) -> bool {
    let head = block_on(registry::read_head(backend, id, None));
    is_tombstone(backend, head)
}

fn is_tombstone(backend: &dyn Backend, head: Result<Manifest>) -> bool {
    backend.describe().starts_with("mem:")
        || head.is_ok_and(|head| head.kind == ManifestKind::Tombstone)
}

#[cfg(test)]
mod tests;

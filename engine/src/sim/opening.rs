//! Which volumes a boot opens, and how: as its own, in the place of a lost appliance, or from
//! copies of metadata while the backend is away. Mirrors `appliance::{search, opening, ownership}`.

use std::sync::Arc;

use futures::executor::block_on;

use super::boot::{Making, Stop};
use super::bucket::{Bucket, Late};
use super::world::{Event, World};
use crate::backend::{Backend, LocalMetadata};
use crate::commit::VolumeCommit;
use crate::error::Error;
use crate::identity::{Epoch, VolumeId};
use crate::index::rebuild::rebuild;
use crate::registry::{
    LocalHead, OpenedVolume, Opening, open_for_writing, open_own, open_unverified,
};
use crate::shard::VolumeSlot;

/// A volume that this life may write.
pub(super) struct Opened {
    pub(super) slot: VolumeSlot,
    pub(super) commit: VolumeCommit,
    pub(super) local: LocalHead,
    /// Served under its old generation, because the backend could not be asked.
    pub(super) unverified: bool,
}

impl Opened {
    /// What the first epoch of the life goes by.
    pub(super) fn used(&self) -> (Epoch, bool) {
        let used = self.commit.head().epoch.max(self.local.begins_above());
        (used, self.unverified)
    }
}

impl World {
    pub(super) fn open_volumes(&mut self, making: &mut Making) -> Result<(), Stop> {
        let late = self.take_late();
        let fails = self.faults.boot / 2;
        let bucket = Bucket::new(self.objects.clone(), self.dice.fork(), fails, late);
        let bucket = Arc::new(bucket);
        let copies = self.copies_dir.as_ref().map(|dir| dir.path().to_owned());
        let copies = copies.map(|dir| LocalMetadata::new(Arc::clone(&bucket) as _, &dir));
        let result = self.open_each(&bucket, copies.as_ref(), making);
        if result.is_ok() && !self.faults.away_at_boot {
            self.takes_all = false;
            if let Some(copies) = &copies {
                let opened = making.opened.iter().map(|opened| opened.local.id);
                copies.retain(&opened.collect::<Vec<_>>());
            }
        }
        drop(copies);
        let bucket = Arc::into_inner(bucket).expect("nobody else has it any more");
        let (late, landed, behind) = bucket.into_rest();
        self.coverage.add("a dead life's put landed late", landed);
        let event = "a boot was shown an old list of manifests";
        self.coverage.add(event, behind);
        for late in late {
            let delay = self.dice.range(1..=300_000);
            self.schedule(delay, Event::Land { late, then: None });
        }
        result
    }

    /// Requests of dead lives that have not landed.
    fn take_late(&mut self) -> Vec<Late> {
        let is_late = |event: &Event| matches!(event, Event::Land { .. });
        let queued = self.queue.iter().filter(|(_, event)| is_late(event));
        let keys: Vec<_> = queued.map(|(at, _)| *at).collect();
        let taken = keys.into_iter().map(|at| self.queue.remove(&at));
        taken
            .filter_map(|event| match event {
                Some(Event::Land { late, .. }) => Some(late),
                _ => None,
            })
            .collect()
    }

    fn open_each(
        &mut self,
        bucket: &Bucket,
        copies: Option<&LocalMetadata>,
        making: &mut Making,
    ) -> Result<(), Stop> {
        for (index, id) in self.ids.clone().into_iter().enumerate() {
            self.may_crash()?;
            let slot = VolumeSlot(index as u32);
            if self.faults.away_at_boot {
                let copies = copies.expect("only who keeps copies starts without the backend");
                self.open_copy(copies, slot, id, making)?;
            } else {
                self.open_volume(bucket, copies, slot, id, making)?;
            }
        }
        Ok(())
    }

    fn open_volume(
        &mut self,
        bucket: &Bucket,
        copies: Option<&LocalMetadata>,
        slot: VolumeSlot,
        id: VolumeId,
        making: &mut Making,
    ) -> Result<(), Stop> {
        let before = self.local_of(id)?;
        let failed = bucket.failed();
        let backend: &dyn Backend = copies.map_or(bucket, |copies| copies);
        let (takes_all, stamped) = (self.takes_all, making.stamped);
        let opening = block_on(async {
            if takes_all {
                let opened = open_for_writing(backend, &self.heads, id, stamped).await?;
                return Ok::<_, Error>(Opening::Opened(Box::new(opened)));
            }
            open_own(backend, &self.heads, id, stamped).await
        });
        let built = opening.and_then(|opening| match opening {
            Opening::Opened(opened) => self.commits_of(backend, slot, *opened).map(Some),
            Opening::Elsewhere(_) => Ok(None),
        });
        match built {
            Ok(Some(opened)) => {
                self.note_behind(before.as_ref(), &opened);
                making.opened.push(opened);
                Ok(())
            }
            Ok(None) => self.leave(slot, id, making),
            Err(_)
                if bucket.failed() > failed
                    && copies.is_some()
                    && self.dice.chance(500)
                    && !self.log_failed =>
            {
                // It went away half way. The record may name a takeover that was tried.
                let copies = copies.expect("looked at");
                self.open_copy(copies, slot, id, making)
            }
            Err(error) if bucket.failed() > failed => {
                self.coverage
                    .hit("a boot failed on the backend and was repeated");
                Err(Stop::Failed(error.to_string()))
            }
            Err(error) => Err(Stop::Broken(format!("a volume cannot be opened: {error}"))),
        }
    }

    fn local_of(&self, id: VolumeId) -> Result<Option<LocalHead>, Stop> {
        let local = self.heads.load(id);
        local.map_err(|error| Stop::Broken(error.to_string()))
    }

    fn commits_of(
        &mut self,
        backend: &dyn Backend,
        slot: VolumeSlot,
        opened: OpenedVolume,
    ) -> Result<Opened, Error> {
        let rebuilt = block_on(rebuild(backend, &opened.history.manifests))?;
        let head = opened.history.head().clone();
        let names = self.dice.names();
        Ok(Opened {
            slot,
            commit: VolumeCommit::new(head, rebuilt, self.plan.commit.clone(), names),
            local: opened.local,
            unverified: false,
        })
    }

    /// The bucket may hold a commit that the local record does not know.
    fn note_behind(&mut self, before: Option<&LocalHead>, opened: &Opened) {
        let found = opened.commit.head().epoch;
        if before.is_some_and(|local| local.committed_epoch < found) {
            self.coverage.hit("the bucket was ahead of the local head");
        }
    }

    /// Opens a volume as it was last known here.
    fn open_copy(
        &mut self,
        copies: &LocalMetadata,
        slot: VolumeSlot,
        id: VolumeId,
        making: &mut Making,
    ) -> Result<(), Stop> {
        let refused = |why: String| Err(Stop::Failed(format!("refused without backend: {why}")));
        let Some(local) = self.local_of(id)? else {
            return refused("nothing is known of it".to_owned());
        };
        // Else its index was perhaps never read wholly.
        let was_served = self.faults.away_at_boot && self.racing.is_none();
        let opened = block_on(open_unverified(&copies.offline(), &self.heads, local));
        let (opened, rebuilt) = match opened {
            Ok(opened) => opened,
            Err(error) if was_served => {
                let what = format!("a volume does not start without the backend: {error}");
                return Err(Stop::Broken(what));
            }
            Err(error) => return refused(error.to_string()),
        };
        self.coverage.hit("a volume was served without the backend");
        let head = opened.history.head().clone();
        let names = self.dice.names();
        making.opened.push(Opened {
            slot,
            commit: VolumeCommit::new(head, rebuilt, self.plan.commit.clone(), names),
            local: opened.local,
            unverified: true,
        });
        Ok(())
    }

    /// Another writer's volume is not served; what was answered here and never committed is copied
    /// out.
    fn leave(&mut self, slot: VolumeSlot, id: VolumeId, making: &mut Making) -> Result<(), Stop> {
        if self.racing.is_none() {
            let what = format!("volume {id} is said to be another writer's, there is none");
            return Err(Stop::Broken(what));
        }
        self.coverage
            .hit("race: a restart left a volume to its new owner");
        let head = crate::registry::read_head(&self.objects, id, None);
        let head = block_on(head).map_err(|error| Stop::Broken(error.to_string()))?;
        let local = self.local_of(id)?;
        let mut local = local.unwrap_or_else(|| LocalHead::unknown(&head));
        local.disown(making.stamped);
        making.left.push((slot, local));
        Ok(())
    }
}

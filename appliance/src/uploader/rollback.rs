//! Rollback of a volume to a snapshot or point in time while nobody is connected: a manifest with
//! the old content, then the volume is opened anew, and the cores begin with that.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::manifest::Manifest;
use taipan_engine::registry::{self, LocalHead, RollbackWish, random_u64};
use taipan_engine::snapshot::{ImageName, KeptImage};

use super::Uploader;
use super::changes::Change;
use super::effects::Means;
use super::patience::{Answer, until_known, while_answering};
use super::points::wall_clock;
use super::takeover::Regained;
use crate::opening::open_volume;
use crate::tail::Tail;

/// More cuts than are made while a rollback is under way. Until the cores have let go of what they
/// had, a request that its client gave up may still be stamped: below the rollback's epoch.
const EPOCHS_MAX: u64 = 1 << 20;

/// What is to be done.
struct Rollback {
    head: Manifest,
    local: LocalHead,
    to: KeptImage,
    stamped_through: Epoch,
}

impl Rollback {
    async fn run(self, means: &Means, answer: &mut Answer) -> Result<Regained> {
        let (backend, heads) = (&*means.backend, &means.heads);
        let Self {
            head,
            mut local,
            to,
            stamped_through,
        } = self;
        let epoch = Epoch(stamped_through.max(head.epoch).0 + EPOCHS_MAX);
        let wish = RollbackWish {
            to,
            epoch,
            now: wall_clock(),
            seed: random_u64()?,
        };
        let prepared = registry::prepare_rollback(backend, &head, &wish);
        let next = while_answering(backend, "prepare a rollback", prepared).await?;
        let stored = until_known(backend, "roll a volume back", answer, async || {
            registry::put_rollback(backend, &next).await
        });
        local.advance(&stored.await?);
        if let Err(error) = means.save(local).await {
            // The opening finds the manifest in the backend.
            tracing::warn!(volume = %head.name, %error, "a rollback was not noted locally");
        }
        let opened = until_known(backend, "open a volume rolled back", answer, async || {
            open_volume(backend, heads, head.volume, stamped_through).await
        });
        let mut opened = opened.await?;
        // What is served is the image.
        opened.was_clean = true;
        Ok(Regained::new(Box::new(opened), Tail::default()))
    }
}

impl Uploader {
    /// Begins to roll a volume back; no commit of it is under way.
    pub(super) fn begin_rollback(
        &mut self,
        id: VolumeId,
        name: &ImageName,
        reply: Sender<Result<()>>,
    ) {
        let to = match self.may_roll_back(id, name) {
            Ok(image) => image,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let upload = self.volumes.get_mut(&id).expect("it was looked at");
        upload.changing = true;
        let job = Rollback {
            head: upload.head().clone(),
            local: upload.local.clone(),
            to,
            stamped_through: self.clock.now(),
        };
        tracing::info!(volume = %job.head.name, to = %job.to, "a rollback begins");
        let mut answer = Answer::new(reply, "the rollback is pending, it is tried again");
        let means = Rc::clone(&self.means);
        self.spawn_change(async move {
            let result = job.run(&means, &mut answer).await;
            Change::RolledBack { id, result, answer }
        });
    }

    /// Closes the volume to clients if there are none.
    fn may_roll_back(&self, id: VolumeId, name: &ImageName) -> Result<KeptImage> {
        let image = self.kept(id, name)?;
        if self.coordinator.pending_snapshots(id).next().is_some() {
            let text = "a snapshot of the volume is being taken; try again later";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        self.close_to_clients(id)?;
        Ok(image)
    }

    /// A rollback has ended.
    pub(super) fn rolled_back(
        &mut self,
        id: VolumeId,
        result: Result<Regained>,
        mut answer: Answer,
    ) {
        let Some(upload) = self.volumes.get(&id) else {
            answer.give(result.map(drop));
            return;
        };
        let volume = std::sync::Arc::clone(&upload.volume);
        match result {
            Ok(regained) => {
                tracing::info!(volume = %volume.name, %id, "volume rolled back");
                self.coordinator.forget_volume(id);
                self.fail_drains(id, "the volume was rolled back");
                let name = volume.name.clone();
                self.taken_over(name, self.clock.now(), regained, answer);
            }
            Err(error) => {
                volume.closing.store(false, Ordering::SeqCst);
                let result = Err(error);
                self.end_change(id, &result);
                answer.give(result);
            }
        }
    }
}

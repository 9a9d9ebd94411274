//! What waits for the bucket: FLUSH and FUA of volumes with `durability = remote`, until a
//! committed cut covers everything answered before; and new writes of a volume of which the bucket
//! lacks more than it may.

use super::exposure::Limits;
use super::park::Parked;
use super::request::{Failure, RequestKey};
use super::{Core, CoreVolume};
use crate::identity::{Epoch, VolumeId};
use crate::shard::VolumeSlot;
use crate::volume::{Durability, VolumeSettings};

/// A FLUSH or FUA, durable here, that the bucket has to hold too.
pub(super) struct Awaiting {
    request: RequestKey,
    slot: VolumeSlot,
    /// The cut that covers it.
    through: Epoch,
}

/// Waits for the bucket.
#[derive(Default)]
pub(super) struct Bucket {
    awaiting: Vec<Awaiting>,
    /// Parts of writes, by position of their shard, in the order in which they came.
    held: Vec<(usize, Parked)>,
}

impl Limits {
    pub(super) fn of(settings: &VolumeSettings) -> Self {
        Self {
            age_ms: settings.rpo_seconds.saturating_mul(1000),
            bytes: settings.rpo_bytes,
        }
    }
}

impl Core {
    /// The volume, if its FLUSH and FUA wait for the bucket.
    pub(super) fn remote(&self, slot: VolumeSlot) -> Option<VolumeSlot> {
        let volume = self.served(slot)?;
        (volume.durability == Durability::Remote).then_some(slot)
    }

    /// Whether a request that is done otherwise waits for the bucket; it is finished later then.
    pub(super) fn awaits_bucket(&mut self, key: RequestKey) -> bool {
        let request = self.requests.get(key);
        let Some(slot) = request.remote.take() else {
            return false;
        };
        if request.failure.is_some() || request.cancelled {
            return false;
        }
        // Every part of it, and everything answered before it, was stamped with this at most.
        let through = self.clock.now();
        let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) else {
            return false;
        };
        if volume.durability == Durability::Local || volume.covered >= through {
            return false;
        }
        if volume.wanted < through {
            volume.wanted = through;
            self.effects.wants.push((volume.id, through));
        }
        let request = key;
        self.bucket.awaiting.push(Awaiting {
            request,
            slot,
            through,
        });
        true
    }

    /// Everything of the volume stamped up to `through` is in the bucket.
    pub fn covered(&mut self, slot: VolumeSlot, id: VolumeId, through: Epoch) {
        if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize)
            && volume.id == id
        {
            volume.covered = volume.covered.max(through);
        }
        self.answer_awaiting();
    }

    /// Answers what need not wait for the bucket any more.
    pub(super) fn answer_awaiting(&mut self) {
        if self.bucket.awaiting.is_empty() {
            return;
        }
        for awaiting in std::mem::take(&mut self.bucket.awaiting) {
            let volume = self.served(awaiting.slot);
            let fenced = volume.is_none_or(|volume| volume.fenced);
            let done = volume.is_some_and(|volume| {
                volume.durability == Durability::Local || volume.covered >= awaiting.through
            });
            if fenced || self.requests.is_cancelled(awaiting.request) {
                self.requests.get(awaiting.request).failure = Some(Failure::Gone);
            } else if !done {
                self.bucket.awaiting.push(awaiting);
                continue;
            }
            self.finish(awaiting.request);
        }
    }

    /// Whether a new write of the volume has to wait: the bucket lacks too much of it, or others
    /// wait for that already.
    #[inline]
    pub(super) fn must_hold(&mut self, slot: VolumeSlot) -> bool {
        let now_ms = self.now_ms;
        let exceeds = |volume: &CoreVolume| volume.risk.exceeds(volume.limits, now_ms);
        let hold = self
            .served(slot)
            .is_some_and(|volume| volume.held > 0 || exceeds(volume));
        // Only a commit helps, and the load told last may not make one due.
        self.load_due |= hold;
        hold
    }

    /// Lets a part of a write wait for the bucket.
    pub(super) fn hold(&mut self, position: usize, parked: Parked) {
        if let Some(Some(volume)) = self.volumes.get_mut(parked.slot().0 as usize) {
            volume.held += 1;
        }
        self.counters.parked += 1;
        self.counters.parked_for_bucket += 1;
        self.bucket.held.push((position, parked));
    }

    /// Carries on what waits for the bucket, in order, as far as the limits allow.
    pub(super) fn release_held(&mut self) {
        if self.bucket.held.is_empty() {
            return;
        }
        let mut kept = Vec::new();
        for (position, parked) in std::mem::take(&mut self.bucket.held) {
            let slot = parked.slot();
            let now_ms = self.now_ms;
            let stays = kept.iter().any(|(_, k): &(_, Parked)| k.slot() == slot)
                || self
                    .served(slot)
                    .is_some_and(|volume| volume.risk.exceeds(volume.limits, now_ms));
            if stays {
                kept.push((position, parked));
                continue;
            }
            if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) {
                volume.held -= 1;
            }
            self.release(position, parked);
        }
        self.bucket.held = kept;
    }

    /// Takes the held parts that are `doomed` out.
    pub(super) fn drop_held(
        &mut self,
        doomed: impl Fn(&Self, &Parked) -> bool,
    ) -> Vec<(usize, Parked)> {
        let held = std::mem::take(&mut self.bucket.held);
        let (gone, kept): (Vec<_>, _) = held.into_iter().partition(|(_, p)| doomed(self, p));
        self.bucket.held = kept;
        for (_, parked) in &gone {
            if let Some(Some(volume)) = self.volumes.get_mut(parked.slot().0 as usize) {
                volume.held -= 1;
            }
        }
        gone
    }

    /// Parts of writes to the shard at `position` that wait for the bucket.
    pub(super) fn held(&self, position: usize) -> usize {
        let held = self.bucket.held.iter();
        held.filter(|(of, _)| *of == position).count()
    }
}

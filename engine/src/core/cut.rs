//! Cuts: a core that observes a new epoch seals the old one at once, in all its shards, before it
//! stamps anything with the new one.
//!
//! Proof (DESIGN §6): the stamp of A ≤ the epoch when A is answered ≤ the stamp of any B issued
//! after that; so a cut never holds B without A.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Core, CoreLoad};
use crate::block::ShardId;
use crate::identity::{BatchNum, Epoch, VolumeId};
use crate::index::{LeafChanges, Overlay};
use crate::shard::{SealedShard, VolumeSlot};
use crate::wal::ShardLog;

/// Which volumes a cut is of. The others stay as they are, and are stamped on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CutScope {
    /// All.
    #[default]
    All,
    /// These.
    Only(Arc<BTreeSet<VolumeId>>),
}

impl CutScope {
    /// Whether the volume is cut.
    pub fn has(&self, volume: VolumeId) -> bool {
        match self {
            Self::All => true,
            Self::Only(volumes) => volumes.contains(&volume),
        }
    }
}

/// What a core hands to the coordinator for one cut.
pub struct SealedCore {
    /// The core.
    pub core: usize,
    /// The cut: records stamped up to here.
    pub epoch: Epoch,
    /// Its shards, all of them.
    pub shards: Vec<SealedShard>,
    /// What waits for a later cut.
    pub load: CoreLoad,
}

/// A committed cut of one volume, for one core.
#[derive(Clone)]
pub struct Committed {
    /// The volume's slot.
    pub slot: VolumeSlot,
    /// Its identity: slots are reused.
    pub volume: VolumeId,
    /// The cut.
    pub epoch: Epoch,
    /// New leaves of the core's own shards.
    pub leaves: Vec<(ShardId, LeafChanges)>,
}

type FrozenVolumes = Vec<(VolumeSlot, VolumeId, Arc<Overlay>)>;

/// A seal whose batches are being made durable. Their place in the WAL file is final then, and the
/// bucket never holds what a power loss takes from the disk: else a start without the backend would
/// serve what was before, and a later one what the bucket has, so that blocks went back in time.
pub(super) struct Sealing {
    epoch: Epoch,
    parts: Vec<(BatchNum, FrozenVolumes)>,
    /// All is written, and a barrier was asked for.
    hastened: bool,
}

impl Core {
    /// Looks at the global epoch; if it moved, seals everything stamped so far.
    #[inline]
    pub(super) fn observe_epoch(&mut self) {
        let now = self.clock.now();
        if now != self.epoch {
            self.seal(now);
        }
    }

    #[cold]
    fn seal(&mut self, now: Epoch) {
        assert!(now > self.epoch, "the epoch never goes back");
        let cut = Epoch(now.0 - 1);
        let scope = self.clock.scope();
        let earlier = self.sealing.take();
        let mut parts = Vec::with_capacity(self.shards.len());
        for (position, shard) in self.shards.iter_mut().enumerate() {
            let mut frozen = shard.seal(cut, |id| scope.has(id));
            if let Some(earlier) = &earlier {
                // Unpacked cuts may merge: the coordinator gets all layers with the later one.
                frozen.splice(0..0, earlier.parts[position].1.iter().cloned());
            }
            parts.push((shard.log().last(), frozen));
        }
        self.epoch = now;
        for volume in self.volumes.iter_mut().flatten() {
            if scope.has(volume.id) {
                volume.risk.seal(cut);
            }
        }
        self.sealing = Some(Sealing {
            epoch: cut,
            parts,
            hastened: false,
        });
        self.hurry_all();
    }

    /// Hands the seal over once its batches are durable (or kept in memory by a failed log).
    pub(super) fn finish_seal(&mut self) {
        let Some(sealing) = &mut self.sealing else {
            return;
        };
        let shards = &self.shards;
        let all = |is_far: fn(&ShardLog, BatchNum) -> bool| {
            let mut parts = sealing.parts.iter().enumerate();
            parts.all(|(position, (last, _))| {
                let log = shards[position].log();
                is_far(log, *last) || log.failed().is_some()
            })
        };
        if !all(|log, last| log.durable_through() >= last) {
            if all(|log, last| log.written_through() >= last) && !sealing.hastened {
                sealing.hastened = true;
                self.durability.sync_all();
            }
            return;
        }
        let sealing = self.sealing.take().expect("looked at above");
        let load = self.load();
        self.load_due = false;
        let shards = self
            .shards
            .iter()
            .zip(sealing.parts)
            .map(|(shard, (last, volumes))| SealedShard {
                shard: shard.id(),
                volumes,
                places: shard.log().places(last),
            });
        self.effects.sealed = Some(SealedCore {
            core: self.index,
            epoch: sealing.epoch,
            shards: shards.collect(),
            load,
        });
    }

    /// The cut is in the backend and the local head record is durable: its WAL space is free.
    pub fn committed(&mut self, commit: Committed) {
        self.observe_epoch();
        for (shard, leaves) in commit.leaves {
            let position = self.position(shard).expect("leaves of own shards");
            self.shards[position].commit(commit.slot, commit.volume, commit.epoch, leaves);
        }
        let epoch = self.committed.entry(commit.volume).or_insert(commit.epoch);
        *epoch = (*epoch).max(commit.epoch);
        if let Some(Some(volume)) = self.volumes.get_mut(commit.slot.0 as usize)
            && volume.id == commit.volume
        {
            volume.risk.committed(commit.epoch);
        }
        self.covered(commit.slot, commit.volume, commit.epoch);
        self.release_logs();
        self.effects.applied.push((commit.volume, commit.epoch));
    }

    /// Frees WAL segments whose every record is committed or of a deleted volume.
    pub(super) fn release_logs(&mut self) {
        let committed = &self.committed;
        let mut released = 0;
        for shard in &mut self.shards {
            released += shard.log_mut().release(|volume, epoch| {
                committed
                    .get(&volume)
                    .is_some_and(|through| *through >= epoch)
            });
        }
        if released > 0 {
            // The space is free once a log head says so; parked writes may wait for just that.
            self.hurry_all();
        }
        self.retry = u16::MAX;
    }
}

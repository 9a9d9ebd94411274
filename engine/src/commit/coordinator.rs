//! When to cut, and gathering what the shards seal: one cut at a time, one result per volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::block::{SHARD_COUNT, ShardId};
use crate::identity::{Epoch, VolumeId};
use crate::index::Overlay;

/// When a cut is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutPolicy {
    /// Longest time that a dirty block waits for a cut.
    pub commit_interval_ms: u64,
    /// Uncommitted bytes that make a cut due at once.
    pub pending_bytes: u64,
    /// Share of the fullest shard's WAL, in percent, that makes a cut due at once.
    pub wal_percent: u8,
    /// Shortest time between two cuts that bytes or WAL make due, so that a WAL kept full by a
    /// stuck volume does not cause a storm of tiny cuts.
    pub spacing_ms: u64,
}

impl Default for CutPolicy {
    fn default() -> Self {
        Self {
            commit_interval_ms: 30_000,
            pending_bytes: 64 << 20,
            wal_percent: 50,
            spacing_ms: 20,
        }
    }
}

/// What the shards report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes written (or zeroed ranges, each counted as a block) that no cut holds yet.
    pub pending_bytes: u64,
    /// Used share of the fullest shard's WAL, in percent.
    pub wal_percent: u8,
}

/// Why a cut was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// Enough bytes wait.
    Bytes,
    /// Asked for, by a drain or an operator.
    Demand,
    /// The oldest change waited for the commit interval.
    Interval,
    /// The WAL fills up.
    Wal,
}

/// A volume's share of a cut.
#[derive(Clone)]
pub struct SealedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The cut: everything stamped up to here is in `layers` or committed.
    pub epoch: Epoch,
    /// What the shards froze since the volume's last commit.
    pub layers: Vec<(ShardId, Arc<Overlay>)>,
}

/// A cut to be made: raise the global epoch to `epoch + 1` and let every shard seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Records stamped up to here are in it.
    pub epoch: Epoch,
    /// Why it was made.
    pub reason: CutReason,
}

/// Decides on cuts for all volumes together.
///
/// A cut is *sealing* until all 16 shards have handed over, then each of its volumes is
/// *outstanding* until committed everywhere. The next cut starts when none is outstanding but those
/// reported as stuck; a stuck volume's layers merge with those of later cuts.
pub struct Coordinator {
    policy: CutPolicy,
    /// The epoch that stamps new records.
    epoch: Epoch,
    /// When the pending bytes began to wait; `None` while there are none.
    dirty_since_ms: Option<u64>,
    last_cut_ms: Option<u64>,
    demand: bool,
    sealing: Option<Sealing>,
    /// Volumes of past cuts that are not committed, and what of them was handed out.
    outstanding: BTreeMap<VolumeId, Outstanding>,
    /// Volumes of which nothing is committed any more.
    forgotten: BTreeSet<VolumeId>,
}

struct Sealing {
    cut: Epoch,
    missing: [bool; SHARD_COUNT],
}

#[derive(Default)]
struct Outstanding {
    /// Layers not handed to a commit yet, up to `epoch`.
    waiting: Vec<(ShardId, Arc<Overlay>)>,
    epoch: Epoch,
    committing: bool,
    stuck: bool,
}

impl Coordinator {
    /// A coordinator; `epoch` stamps new records now.
    pub fn new(policy: CutPolicy, epoch: Epoch) -> Self {
        Self {
            policy,
            epoch,
            dirty_since_ms: None,
            last_cut_ms: None,
            demand: false,
            sealing: None,
            outstanding: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        }
    }

    /// The epoch that stamps new records.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Changes the policy from now on.
    pub fn set_policy(&mut self, policy: CutPolicy) {
        self.policy = policy;
    }

    /// Asks for a cut as soon as possible, even of nothing.
    pub fn demand_cut(&mut self) {
        self.demand = true;
    }

    /// Nothing is sealed, outstanding or demanded: with no pending bytes all is in the bucket.
    pub fn is_idle(&self) -> bool {
        self.sealing.is_none() && self.outstanding.is_empty() && !self.demand
    }

    /// Whether a cut is to be made now. If so its epoch is over: the caller raises the global epoch
    /// before anything else.
    pub fn tick(&mut self, now_ms: u64, load: &Load) -> Option<Cut> {
        if load.pending_bytes == 0 {
            self.dirty_since_ms = None;
        } else {
            self.dirty_since_ms.get_or_insert(now_ms);
        }
        let may_cut = self.sealing.is_none() && self.outstanding.values().all(|o| o.stuck);
        let reason = may_cut.then(|| self.reason(now_ms, load)).flatten()?;
        let cut = self.epoch;
        self.epoch = cut.next();
        self.dirty_since_ms = None;
        self.last_cut_ms = Some(now_ms);
        self.demand = false;
        self.sealing = Some(Sealing {
            cut,
            missing: [true; SHARD_COUNT],
        });
        Some(Cut { epoch: cut, reason })
    }

    /// When the interval makes a cut due, unless something else does earlier.
    pub fn next_wake_ms(&self) -> Option<u64> {
        self.dirty_since_ms
            .map(|since| since.saturating_add(self.policy.commit_interval_ms))
    }

    /// One shard's share of the cut: what it froze, by volume. Returns whether the cut is complete,
    /// so that [`next_volume`](Self::next_volume) has work.
    ///
    /// # Panics
    /// For another cut than the one being sealed, or a shard twice.
    pub fn sealed(
        &mut self,
        cut: Epoch,
        shard: ShardId,
        volumes: impl IntoIterator<Item = (VolumeId, Arc<Overlay>)>,
    ) -> bool {
        let sealing = self.sealing.as_mut().expect("a cut is being sealed");
        assert_eq!(sealing.cut, cut, "a shard sealed another cut");
        let missing = std::mem::replace(&mut sealing.missing[shard.index()], false);
        assert!(missing, "shard {shard} sealed twice");
        let complete = !sealing.missing.contains(&true);
        for (volume, layer) in volumes {
            if self.forgotten.contains(&volume) {
                continue;
            }
            let outstanding = self.outstanding.entry(volume).or_default();
            outstanding.waiting.push((shard, layer));
            outstanding.epoch = cut;
        }
        if complete {
            self.sealing = None;
        }
        complete
    }

    /// A volume whose commit may be started; it is then committing until
    /// [`volume_done`](Self::volume_done).
    pub fn next_volume(&mut self) -> Option<SealedVolume> {
        if self.sealing.is_some() {
            // Layers of a cut that is half sealed must not be packed: they are not a cut.
            return None;
        }
        let startable = |o: &Outstanding| !o.committing && !o.waiting.is_empty();
        let (volume, outstanding) = self.outstanding.iter_mut().find(|(_, o)| startable(o))?;
        outstanding.committing = true;
        Some(SealedVolume {
            volume: *volume,
            epoch: outstanding.epoch,
            layers: std::mem::take(&mut outstanding.waiting),
        })
    }

    /// A commit cannot make progress for a reason that will not pass by itself soon (its source is
    /// damaged): it no longer holds up the cuts of other volumes.
    pub fn volume_stuck(&mut self, volume: VolumeId) {
        if let Some(outstanding) = self.outstanding.get_mut(&volume) {
            outstanding.stuck = true;
        }
    }

    /// The volume's commit is published in all shards.
    pub fn volume_done(&mut self, volume: VolumeId) {
        let Some(outstanding) = self.outstanding.get_mut(&volume) else {
            return;
        };
        assert!(outstanding.committing, "volume {volume} was not committing");
        outstanding.committing = false;
        outstanding.stuck = false;
        if outstanding.waiting.is_empty() {
            self.outstanding.remove(&volume);
        }
    }

    /// The volume was fenced or deleted: nothing of it is committed from now on, whatever shards
    /// may still seal.
    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.outstanding.remove(&volume);
        self.forgotten.insert(volume);
    }

    /// A volume that was forgotten was opened for writing again.
    pub fn readmit_volume(&mut self, volume: VolumeId) {
        self.forgotten.remove(&volume);
    }

    /// Volumes not yet committed, those half sealed included.
    pub fn outstanding(&self) -> impl Iterator<Item = VolumeId> {
        self.outstanding.keys().copied()
    }

    fn reason(&self, now_ms: u64, load: &Load) -> Option<CutReason> {
        if self.demand {
            return Some(CutReason::Demand);
        }
        if load.pending_bytes == 0 {
            return None;
        }
        let spaced = self
            .last_cut_ms
            .is_none_or(|last| now_ms.saturating_sub(last) >= self.policy.spacing_ms);
        if spaced && load.pending_bytes >= self.policy.pending_bytes {
            return Some(CutReason::Bytes);
        }
        if spaced && load.wal_percent >= self.policy.wal_percent {
            return Some(CutReason::Wal);
        }
        let due = self.next_wake_ms().is_some_and(|due| now_ms >= due);
        due.then_some(CutReason::Interval)
    }
}

#[cfg(test)]
mod tests;

//! When one volume is to be cut, and what waits for cuts.

use std::collections::BTreeMap;

use super::budget::Spending;
use super::{BURSTS, CutPolicy, CutReason};
use crate::core::CoreLoad;
use crate::identity::{Epoch, VolumeId};
use crate::snapshot::SnapshotWish;
use crate::volume::VolumeSettings;

/// What the shards report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes written (or zeroed ranges, each counted as a block) that no cut holds yet, by volume.
    pub volumes: Vec<(VolumeId, u64)>,
    /// Used share of the fullest shard's WAL, in percent.
    pub wal_percent: u8,
}

impl Load {
    /// What all cores report together.
    pub fn of(cores: &[CoreLoad]) -> Self {
        let mut volumes = BTreeMap::new();
        for (volume, bytes) in cores.iter().flat_map(|core| &core.volumes) {
            *volumes.entry(*volume).or_insert(0) += bytes;
        }
        Self {
            volumes: volumes.into_iter().collect(),
            wal_percent: cores.iter().map(|core| core.wal_percent).max().unwrap_or(0),
        }
    }

    /// Bytes that no cut holds yet.
    pub fn pending_bytes(&self) -> u64 {
        self.volumes.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a volume's settings say of its cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumePace {
    /// Longest time that a dirty block waits for a cut; 0: as the policy says.
    pub commit_interval_ms: u64,
    /// Age of the oldest uncommitted write at which new ones wait; 0: none.
    pub rpo_ms: u64,
    /// Uncommitted bytes at which new writes wait; 0: none.
    pub rpo_bytes: u64,
    /// Requests that its commits may make in an hour before those that only the interval makes due
    /// wait; 0: as many as they like.
    pub requests_per_hour: u64,
}

impl VolumePace {
    /// What these settings say.
    pub fn of(settings: &VolumeSettings) -> Self {
        Self {
            commit_interval_ms: settings.commit_interval_seconds.saturating_mul(1000),
            rpo_ms: settings.rpo_seconds.saturating_mul(1000),
            rpo_bytes: settings.rpo_bytes,
            requests_per_hour: settings.requests_per_hour,
        }
    }
}

/// One volume between its cuts.
#[derive(Default)]
pub(super) struct Pace {
    pub(super) limits: VolumePace,
    /// Bytes that no cut holds.
    pub(super) bytes: u64,
    /// When they began to wait; `None` while there are none.
    pub(super) dirty_since_ms: Option<u64>,
    /// Somebody waits until everything up to here is committed.
    pub(super) want: Epoch,
    /// The last cut in which the volume was.
    pub(super) cut: Epoch,
    /// Everything up to here is committed.
    pub(super) covered: Epoch,
    /// What of `covered` those that want it were told.
    pub(super) told: Epoch,
    /// The head is being changed otherwise.
    pub(super) held: bool,
    /// The next cut is to be these snapshots.
    pub(super) snapshots: Vec<SnapshotWish>,
    /// What it asked of the backend.
    pub(super) spending: Spending,
}

impl Pace {
    /// When time makes a cut due: the interval, but for the budget of requests, or half of what may
    /// be lost, which counts for more than the bill; the other half is left for the commit itself.
    pub(super) fn due_ms(&self, policy: &CutPolicy) -> Option<u64> {
        let since = self.dirty_since_ms?;
        let interval = match self.limits.commit_interval_ms {
            0 => policy.commit_interval_ms,
            own => own,
        };
        let due = since.saturating_add(interval).max(self.held_until_ms());
        Some(match self.limits.rpo_ms {
            0 => due,
            rpo => due.min(since.saturating_add(rpo / 2)),
        })
    }

    /// Until when the budget of requests lets cuts wait that only the interval makes due.
    pub(super) fn held_until_ms(&self) -> u64 {
        match self.limits.requests_per_hour {
            0 => 0,
            _ => self.spending.paid_ms(),
        }
    }

    /// When its bytes alone make a cut due, if they do.
    pub(super) fn heavy_ms(&self, policy: &CutPolicy) -> Option<u64> {
        let since = self.dirty_since_ms?;
        let risky = self.limits.rpo_bytes > 0 && self.bytes >= self.limits.rpo_bytes / 2;
        if risky || self.bytes / BURSTS >= policy.pending_bytes {
            return Some(since);
        }
        (self.bytes >= policy.pending_bytes).then(|| since.saturating_add(policy.burst_ms))
    }

    /// Why the volume is to be cut now. `spaced`: the last cut is long enough ago for one by bytes.
    pub(super) fn reason(
        &self,
        policy: &CutPolicy,
        now_ms: u64,
        spaced: bool,
    ) -> Option<CutReason> {
        if self.want > self.cut {
            return Some(CutReason::Demand);
        }
        if spaced && self.heavy_ms(policy).is_some_and(|due| now_ms >= due) {
            return Some(CutReason::Bytes);
        }
        let late = self.due_ms(policy).is_some_and(|due| now_ms >= due);
        late.then_some(CutReason::Interval)
    }
}

//! What the bucket lacks, by volume: every core notes its own share, all threads read the sum.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::SHARD_COUNT;
use crate::identity::{Epoch, VolumeId};

/// What the bucket lacks of one volume. Each data core writes its own share.
#[derive(Debug, Default)]
pub struct Exposure {
    cores: [Share; SHARD_COUNT],
}

/// One core's share; cores write all the time and must not share cache lines.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Share {
    bytes: AtomicU64,
    /// When the oldest of these was written, in the driver's milliseconds plus 1; 0: there is none.
    since: AtomicU64,
}

impl Exposure {
    /// Bytes written (a zeroed range counts as a block) that no committed manifest holds. A block
    /// written twice counts twice.
    pub fn bytes(&self) -> u64 {
        self.cores.iter().map(|core| core.bytes.load(Relaxed)).sum()
    }

    /// When the oldest of these was written, in the driver's milliseconds.
    pub fn oldest_ms(&self) -> Option<u64> {
        let since = self.cores.iter().map(|core| core.since.load(Relaxed));
        since
            .filter(|since| *since > 0)
            .min()
            .map(|since| since - 1)
    }
}

/// The exposure of every volume.
#[derive(Debug, Default)]
pub struct Exposures(Mutex<HashMap<VolumeId, Arc<Exposure>>>);

impl Exposures {
    /// That of one volume.
    pub fn of(&self, volume: VolumeId) -> Arc<Exposure> {
        let mut volumes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(volumes.entry(volume).or_default())
    }

    /// Forgets a volume that is not served any more.
    pub fn forget(&self, volume: VolumeId) {
        let mut volumes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.remove(&volume);
    }
}

/// How much may be exposed before new writes wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Age in milliseconds; 0: no limit.
    pub(super) age_ms: u64,
    /// Bytes; 0: no limit.
    pub(super) bytes: u64,
}

/// One core's books on what the bucket lacks of one volume.
pub(super) struct Risk {
    exposure: Arc<Exposure>,
    core: usize,
    /// In no cut yet.
    pub(super) unsealed_bytes: u64,
    unsealed_since_ms: Option<u64>,
    /// In a cut that is not committed: its epoch, bytes, and age.
    sealed: VecDeque<(Epoch, u64, u64)>,
}

impl Risk {
    pub(super) fn new(exposure: Arc<Exposure>, core: usize) -> Self {
        let risk = Self {
            exposure,
            core,
            unsealed_bytes: 0,
            unsealed_since_ms: None,
            sealed: VecDeque::new(),
        };
        risk.publish();
        risk
    }

    /// So much was written.
    #[inline]
    pub(super) fn add(&mut self, bytes: u64, now_ms: u64) {
        self.unsealed_bytes += bytes;
        let share = &self.exposure.cores[self.core];
        share
            .bytes
            .store(share.bytes.load(Relaxed) + bytes, Relaxed);
        if self.unsealed_since_ms.is_none() {
            self.unsealed_since_ms = Some(now_ms);
            self.publish();
        }
    }

    /// What was written so far is in the cut `epoch`.
    pub(super) fn seal(&mut self, epoch: Epoch) {
        if let Some(since) = self.unsealed_since_ms.take() {
            let bytes = std::mem::take(&mut self.unsealed_bytes);
            self.sealed.push_back((epoch, bytes, since));
        }
    }

    /// Cuts up to `epoch` are committed.
    pub(super) fn committed(&mut self, epoch: Epoch) {
        while self.sealed.front().is_some_and(|(cut, ..)| *cut <= epoch) {
            self.sealed.pop_front();
        }
        self.publish();
    }

    /// Whether new writes have to wait.
    #[inline]
    pub(super) fn exceeds(&self, limits: Limits, now_ms: u64) -> bool {
        if limits.age_ms == 0 && limits.bytes == 0 {
            return false;
        }
        let too_old = |since: u64| now_ms.saturating_sub(since) > limits.age_ms;
        (limits.bytes > 0 && self.exposure.bytes() > limits.bytes)
            || (limits.age_ms > 0 && self.exposure.oldest_ms().is_some_and(too_old))
    }

    fn publish(&self) {
        let sealed: u64 = self.sealed.iter().map(|(_, bytes, _)| bytes).sum();
        let oldest = self.sealed.iter().map(|(.., since)| *since);
        let oldest = oldest.chain(self.unsealed_since_ms).min();
        let share = &self.exposure.cores[self.core];
        share.bytes.store(sealed + self.unsealed_bytes, Relaxed);
        share
            .since
            .store(oldest.map_or(0, |since| since + 1), Relaxed);
    }
}

impl Drop for Risk {
    fn drop(&mut self) {
        let share = &self.exposure.cores[self.core];
        share.bytes.store(0, Relaxed);
        share.since.store(0, Relaxed);
    }
}

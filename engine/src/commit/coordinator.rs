//! When to cut which volumes, and gathering what the shards seal: one cut is sealed at a time, each
//! volume has one commit at a time.

mod budget;
mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::block::{SHARD_COUNT, ShardId};
use crate::core::CutScope;
use crate::identity::{Epoch, VolumeId};
use crate::index::Overlay;
use crate::snapshot::SnapshotWish;

pub use pace::{Load, VolumePace};

use pace::Pace;

/// When a cut is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutPolicy {
    /// Longest time that a dirty block waits for a cut, unless its volume says otherwise.
    pub commit_interval_ms: u64,
    /// Uncommitted bytes of a volume that make a cut of it due.
    pub pending_bytes: u64,
    /// But a burst is left alone for so long, unless it grows to [`BURSTS`] times as many bytes:
    /// packing in the midst of it costs it half of its speed on a machine of two CPUs.
    pub burst_ms: u64,
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
            burst_ms: 3000,
            wal_percent: 50,
            spacing_ms: 20,
        }
    }
}

/// Why a cut was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CutReason {
    /// The oldest change waited for the commit interval, or for half of what `rpo_seconds` allows.
    Interval,
    /// Enough bytes wait, or half of what `rpo_bytes` allows.
    Bytes,
    /// The WAL fills up.
    Wal,
    /// Asked for, by a drain, an operator, or a client whose FLUSH waits for the bucket.
    Demand,
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
    /// Snapshots of this cut.
    pub snapshots: Vec<SnapshotWish>,
}

/// A cut to be made: raise the global epoch to `epoch + 1` and let every shard seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Records stamped up to here are in it.
    pub epoch: Epoch,
    /// Why it was made.
    pub reason: CutReason,
    /// Which volumes are cut.
    pub scope: CutScope,
}

/// At so many times the bytes that make one volume due, a burst is long enough; and many volumes
/// with little each are all due.
const BURSTS: u64 = 32;

/// Decides on cuts of volumes.
///
/// A cut is *sealing* until all 16 shards have handed over, then each of its volumes is
/// *outstanding* until committed everywhere, and in no other cut until then. Only a volume reported
/// as stuck is: its layers merge with those of later cuts.
pub struct Coordinator {
    policy: CutPolicy,
    /// The epoch that stamps new records.
    epoch: Epoch,
    /// Cuts are numbered from here on at least.
    floor: Epoch,
    last_cut_ms: Option<u64>,
    demand: bool,
    sealing: Option<Sealing>,
    paces: BTreeMap<VolumeId, Pace>,
    /// Volumes of past cuts that are not committed, and what of them was handed out.
    outstanding: BTreeMap<VolumeId, Outstanding>,
    /// Volumes of which nothing is committed any more.
    forgotten: BTreeSet<VolumeId>,
    /// Volumes whose head a compaction is changing: their cuts are handed out after it.
    occupied: BTreeSet<VolumeId>,
    /// Snapshots that one cut is to take, of several volumes each.
    groups: Vec<Vec<(VolumeId, SnapshotWish)>>,
}

struct Sealing {
    cut: Epoch,
    scope: CutScope,
    snapshots: BTreeMap<VolumeId, Vec<SnapshotWish>>,
    missing: [bool; SHARD_COUNT],
}

#[derive(Default)]
struct Outstanding {
    /// Layers not handed to a commit yet, of cuts from `waiting_from` to `epoch`.
    waiting: Vec<(ShardId, Arc<Overlay>)>,
    waiting_from: Epoch,
    epoch: Epoch,
    /// First and last cut of the commit under way.
    committing: Option<(Epoch, Epoch)>,
    stuck: bool,
    /// Snapshots of what waits, which may be without layers: no later cut may merge with it.
    snapshots: Vec<SnapshotWish>,
    /// Snapshots of the commit under way.
    committing_snapshots: Vec<SnapshotWish>,
}

impl Outstanding {
    /// The oldest cut of which something is not committed.
    fn oldest(&self) -> Epoch {
        self.committing
            .map_or(self.waiting_from, |(first, _)| first)
    }

    fn waits(&self) -> bool {
        !self.snapshots.is_empty() || !self.waiting.is_empty()
    }
}

impl Coordinator {
    /// A coordinator; `epoch` stamps new records now.
    pub fn new(policy: CutPolicy, epoch: Epoch) -> Self {
        Self {
            policy,
            epoch,
            floor: Epoch(0),
            last_cut_ms: None,
            demand: false,
            sealing: None,
            paces: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            occupied: BTreeSet::new(),
            groups: Vec::new(),
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

    /// Changes when the volume is cut.
    pub fn set_pace(&mut self, volume: VolumeId, pace: VolumePace) {
        self.paces.entry(volume).or_default().limits = pace;
    }

    /// Notes that the volume's commit made requests of the backend.
    pub fn spend(&mut self, volume: VolumeId, requests: u64, now_ms: u64) {
        if let Some(pace) = self.paces.get_mut(&volume) {
            let per_hour = pace.limits.requests_per_hour;
            pace.spending.spend(requests, per_hour, now_ms);
        }
    }

    /// Requests of the volume's commits within the last hour, and for how many milliseconds more
    /// its budget lets cuts wait that only the interval makes due.
    pub fn spent(&self, volume: VolumeId, now_ms: u64) -> (u64, u64) {
        self.paces.get(&volume).map_or((0, 0), |pace| {
            let held_ms = pace.held_until_ms().saturating_sub(now_ms);
            (pace.spending.last_hour(now_ms), held_ms)
        })
    }

    /// Asks for a cut after which records are stamped above `epoch`: a volume was opened whose head
    /// is that far.
    pub fn raise(&mut self, epoch: Epoch) {
        self.floor = self.floor.max(epoch);
        self.demand |= self.epoch <= epoch;
    }

    /// Asks for a cut of all volumes as soon as possible, even of nothing.
    pub fn demand_cut(&mut self) {
        self.demand = true;
    }

    /// Asks that everything of the volume stamped up to `through` be committed as soon as possible;
    /// [`covered`](Self::covered) tells when it is. All that ask meanwhile share a cut.
    pub fn want(&mut self, volume: VolumeId, through: Epoch) {
        if !self.forgotten.contains(&volume) {
            let pace = self.paces.entry(volume).or_default();
            pace.want = pace.want.max(through);
        }
    }

    /// Asks that the volume's next cut be made as soon as possible and be a snapshot, even if none
    /// was due. It need not wait for a commit under way: it is the one cut that may wait beside
    /// it. [`pending_snapshots`](Self::pending_snapshots) tells when it is taken.
    pub fn snapshot(&mut self, volume: VolumeId, wish: SnapshotWish) {
        if !self.forgotten.contains(&volume) {
            self.paces.entry(volume).or_default().snapshots.push(wish);
        }
    }

    /// Asks that one cut of all these volumes be made as soon as possible, and be these snapshots:
    /// as soon as a snapshot of each could be taken. Nothing is asked if one of them is forgotten.
    pub fn snapshot_group(&mut self, wishes: Vec<(VolumeId, SnapshotWish)>) {
        let gone = |(volume, _): &(VolumeId, _)| self.forgotten.contains(volume);
        if !wishes.iter().any(gone) {
            for (volume, _) in &wishes {
                self.paces.entry(*volume).or_default();
            }
            self.groups.push(wishes);
        }
    }

    /// Snapshots of the volume that no committed manifest holds, and whether each is taken: its cut
    /// is sealed, and in the log of every shard. They are gone with the process.
    pub fn pending_snapshots(
        &self,
        volume: VolumeId,
    ) -> impl Iterator<Item = (&SnapshotWish, bool)> {
        let asked = self.paces.get(&volume).map(|pace| &pace.snapshots);
        let sealing = self.sealing.as_ref();
        let sealing = sealing.and_then(|sealing| sealing.snapshots.get(&volume));
        let outstanding = self.outstanding.get(&volume);
        let taken = outstanding.into_iter().flat_map(|o| {
            let all = o.committing_snapshots.iter().chain(&o.snapshots);
            all.map(|wish| (wish, true))
        });
        let grouped = self.groups.iter().flatten();
        let grouped = grouped.filter(move |(of, _)| *of == volume);
        let asked = asked.into_iter().chain(sealing).flatten();
        let asked = asked.chain(grouped.map(|(_, wish)| wish));
        taken.chain(asked.map(|wish| (wish, false)))
    }

    /// The greatest epoch through which all of the volume is known to be committed.
    pub fn covered(&self, volume: VolumeId) -> Epoch {
        self.paces
            .get(&volume)
            .map_or(Epoch(0), |pace| pace.covered)
    }

    /// Volumes whose [`want`](Self::want) is fulfilled; each is told once.
    pub fn fulfilled(&mut self) -> Vec<(VolumeId, Epoch)> {
        let mut told = Vec::new();
        for (volume, pace) in &mut self.paces {
            if pace.want > pace.told && pace.covered >= pace.want {
                pace.told = pace.covered;
                told.push((*volume, pace.covered));
            }
        }
        told
    }

    /// Takes the volume out of cuts and commits: its head is being changed otherwise.
    pub fn hold(&mut self, volume: VolumeId) {
        self.paces.entry(volume).or_default().held = true;
    }

    /// Ends a [`hold`](Self::hold).
    pub fn unhold(&mut self, volume: VolumeId) {
        if let Some(pace) = self.paces.get_mut(&volume) {
            pace.held = false;
        }
    }

    /// Whether the volume is taken out of cuts by a [`hold`](Self::hold).
    pub fn is_held(&self, volume: VolumeId) -> bool {
        self.paces.get(&volume).is_some_and(|pace| pace.held)
    }

    /// Hands out no cut of the volume until [`vacate`](Self::vacate): a compaction commits. Cuts
    /// are made meanwhile, so that snapshots are taken.
    pub fn occupy(&mut self, volume: VolumeId) {
        self.occupied.insert(volume);
    }

    /// Ends [`occupy`](Self::occupy).
    pub fn vacate(&mut self, volume: VolumeId) {
        self.occupied.remove(&volume);
    }

    /// Whether a cut of the volume is committed, or waits for that.
    pub fn is_outstanding(&self, volume: VolumeId) -> bool {
        self.outstanding.contains_key(&volume)
    }

    /// Nothing is sealed, outstanding or demanded: with no pending bytes all is in the bucket.
    pub fn is_idle(&self) -> bool {
        self.sealing.is_none() && self.outstanding.is_empty() && !self.demand
    }

    /// Whether everything of all cuts up to `cut` is committed.
    pub fn is_drained(&self, cut: Epoch) -> bool {
        let sealing = self.sealing.as_ref().is_some_and(|s| s.cut <= cut);
        !sealing && self.outstanding.values().all(|o| o.oldest() > cut)
    }

    /// Whether a cut is to be made now. If so its epoch is over: the caller raises the global epoch
    /// before anything else.
    pub fn tick(&mut self, now_ms: u64, load: &Load) -> Option<Cut> {
        self.note_load(now_ms, load);
        if self.sealing.is_some() {
            return None;
        }
        let (scope, reason) = self.due(now_ms, load)?;
        let cut = self.epoch.max(self.floor);
        self.epoch = cut.next();
        let mut snapshots = BTreeMap::new();
        for (volume, pace) in &mut self.paces {
            if scope.has(*volume) {
                pace.dirty_since_ms = None;
                pace.cut = cut;
                if !pace.snapshots.is_empty() {
                    snapshots.insert(*volume, std::mem::take(&mut pace.snapshots));
                }
            }
        }
        self.groups.retain_mut(|group| {
            let whole = group.iter().all(|(volume, _)| scope.has(*volume));
            for (volume, wish) in group.drain(..if whole { group.len() } else { 0 }) {
                snapshots.entry(volume).or_insert_with(Vec::new).push(wish);
            }
            !whole
        });
        self.last_cut_ms = Some(now_ms);
        self.demand &= scope != CutScope::All;
        self.sealing = Some(Sealing {
            cut,
            scope: scope.clone(),
            snapshots,
            missing: [true; SHARD_COUNT],
        });
        Some(Cut {
            epoch: cut,
            reason,
            scope,
        })
    }

    /// When time makes a cut due, unless something else does earlier.
    pub fn next_wake_ms(&self) -> Option<u64> {
        if self.sealing.is_some() || self.demand {
            return None;
        }
        let free = self
            .paces
            .iter()
            .filter(|(volume, _)| self.is_free(**volume));
        free.filter_map(|(_, pace)| {
            let spaced = self
                .last_cut_ms
                .map_or(0, |last| last + self.policy.spacing_ms);
            let by_bytes = pace.heavy_ms(&self.policy).map(|due| due.max(spaced));
            pace.due_ms(&self.policy).into_iter().chain(by_bytes).min()
        })
        .min()
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
            if outstanding.waiting.is_empty() {
                outstanding.waiting_from = cut;
            }
            outstanding.waiting.push((shard, layer));
            outstanding.epoch = cut;
        }
        if complete && let Some(sealing) = self.sealing.take() {
            for (volume, wishes) in sealing.snapshots {
                self.note_snapshots(volume, cut, wishes);
            }
            for (volume, pace) in &mut self.paces {
                if sealing.scope.has(*volume) && !self.outstanding.contains_key(volume) {
                    pace.covered = cut;
                }
            }
        }
        complete
    }

    /// What the volume sealed, be it nothing, is these snapshots.
    fn note_snapshots(&mut self, volume: VolumeId, cut: Epoch, wishes: Vec<SnapshotWish>) {
        if self.forgotten.contains(&volume) {
            return;
        }
        let outstanding = self.outstanding.entry(volume).or_default();
        if outstanding.waiting.is_empty() {
            outstanding.waiting_from = cut;
        }
        outstanding.epoch = cut;
        outstanding.snapshots.extend(wishes);
    }

    /// A volume whose commit may be started; it is then committing until
    /// [`volume_done`](Self::volume_done).
    pub fn next_volume(&mut self) -> Option<SealedVolume> {
        if self.sealing.is_some() {
            // Layers of a cut that is half sealed must not be packed: they are not a cut.
            return None;
        }
        let (paces, occupied) = (&self.paces, &self.occupied);
        let held = |volume: &VolumeId| paces.get(volume).is_some_and(|pace| pace.held);
        let startable = |volume: &VolumeId, o: &Outstanding| {
            o.committing.is_none() && o.waits() && !held(volume) && !occupied.contains(volume)
        };
        let (volume, outstanding) = self
            .outstanding
            .iter_mut()
            .find(|(volume, o)| startable(volume, o))?;
        outstanding.committing = Some((outstanding.waiting_from, outstanding.epoch));
        outstanding.committing_snapshots = std::mem::take(&mut outstanding.snapshots);
        Some(SealedVolume {
            volume: *volume,
            epoch: outstanding.epoch,
            layers: std::mem::take(&mut outstanding.waiting),
            snapshots: outstanding.committing_snapshots.clone(),
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
        let committed = outstanding.committing.take();
        let (_, through) =
            committed.unwrap_or_else(|| panic!("volume {volume} was not committing"));
        outstanding.stuck = false;
        outstanding.committing_snapshots.clear();
        let half_sealed = self.sealing.as_ref().is_some_and(|s| s.scope.has(volume));
        let pace = self.paces.entry(volume).or_default();
        pace.covered = pace.covered.max(through);
        if !outstanding.waits() {
            self.outstanding.remove(&volume);
            if !half_sealed {
                pace.covered = pace.covered.max(pace.cut);
            }
        }
    }

    /// The volume was fenced or deleted: nothing of it is committed from now on, whatever shards
    /// may still seal.
    pub fn forget_volume(&mut self, volume: VolumeId) {
        self.outstanding.remove(&volume);
        self.occupied.remove(&volume);
        self.paces.remove(&volume);
        self.groups
            .retain(|group| group.iter().all(|(of, _)| *of != volume));
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

    /// Whether a volume may be cut: its last cut is committed, or will not be soon.
    fn is_free(&self, volume: VolumeId) -> bool {
        let held = self.paces.get(&volume).is_some_and(|pace| pace.held);
        let merges = |o: &Outstanding| o.stuck && o.snapshots.is_empty();
        !held && self.outstanding.get(&volume).is_none_or(merges)
    }

    /// Whether a snapshot may be cut: beside the commit under way, if nothing else waits for that.
    fn may_snapshot(&self, volume: VolumeId) -> bool {
        let beside = |o: &Outstanding| !o.waits() && !o.stuck;
        !self.is_held(volume) && self.outstanding.get(&volume).is_none_or(beside)
    }

    /// Volumes of which snapshots are to be cut now.
    fn snapshots_due(&self) -> impl Iterator<Item = VolumeId> {
        let asked = self.paces.iter().filter(|(_, p)| !p.snapshots.is_empty());
        let single = asked.map(|(volume, _)| *volume);
        let single = single.filter(|volume| self.may_snapshot(*volume));
        let together = |group: &&Vec<(VolumeId, SnapshotWish)>| {
            let mut volumes = group.iter();
            volumes.all(|(volume, _)| self.may_snapshot(*volume))
        };
        let groups = self.groups.iter().filter(together).flatten();
        single.chain(groups.map(|(volume, _)| *volume))
    }

    fn note_load(&mut self, now_ms: u64, load: &Load) {
        self.paces.values_mut().for_each(|pace| pace.bytes = 0);
        for (volume, bytes) in &load.volumes {
            if !self.forgotten.contains(volume) {
                self.paces.entry(*volume).or_default().bytes = *bytes;
            }
        }
        for pace in self.paces.values_mut() {
            match pace.bytes {
                0 => pace.dirty_since_ms = None,
                _ => _ = pace.dirty_since_ms.get_or_insert(now_ms),
            }
        }
    }

    /// Which volumes to cut now, and why.
    fn due(&self, now_ms: u64, load: &Load) -> Option<(CutScope, CutReason)> {
        if self.demand {
            // It is of all volumes, so no other cut may come in between again and again.
            let mut all = self.outstanding.keys().chain(self.paces.keys());
            let free = all.all(|volume| self.is_free(*volume));
            return free.then_some((CutScope::All, CutReason::Demand));
        }
        let spaced = self
            .last_cut_ms
            .is_none_or(|last| now_ms.saturating_sub(last) >= self.policy.spacing_ms);
        let free = self
            .paces
            .iter()
            .filter(|(volume, _)| self.is_free(**volume));
        let free: Vec<_> = free.collect();
        let bytes: u64 = free.iter().map(|(_, pace)| pace.bytes).sum();
        let together = match () {
            () if !spaced => None,
            () if load.wal_percent >= self.policy.wal_percent => Some(CutReason::Wal),
            () if bytes / BURSTS >= self.policy.pending_bytes => Some(CutReason::Bytes),
            () => None,
        };
        let due = |pace: &Pace| {
            let of_all = together.filter(|_| pace.bytes > 0);
            pace.reason(&self.policy, now_ms, spaced).max(of_all)
        };
        let due = free
            .iter()
            .filter_map(|(volume, pace)| Some((**volume, due(pace)?)));
        let snapshots = self.snapshots_due();
        let snapshots = snapshots.map(|volume| (volume, CutReason::Demand));
        let due: BTreeMap<VolumeId, CutReason> = due.chain(snapshots).collect();
        let reason = *due.values().max()?;
        let volumes = due.into_keys().collect();
        Some((CutScope::Only(Arc::new(volumes)), reason))
    }
}

#[cfg(test)]
mod tests;

//! A cut that waits for room steps aside: what makes room (the deletion of a snapshot, a
//! compaction, settings) is committed before it. Else a full backend would stay full.

use std::sync::Arc;

use super::retry::Retry;
use super::{Phase, VolumeCommit};
use crate::object::SealedRef;
use crate::pack::PackPlan;
use crate::snapshot::SnapshotWish;

/// A cut that has stepped aside.
pub(super) struct Aside {
    pub(super) plan: Arc<PackPlan>,
    wishes: Vec<SnapshotWish>,
    /// Its failures: the backend is full until one of its chunks is stored.
    pub(super) retry: Retry,
}

impl VolumeCommit {
    /// Whether a cut waits for room, be it that it stepped aside.
    pub fn waits_for_room(&self) -> bool {
        self.is_aside() || self.is_without_room()
    }

    /// Whether the commit under way is a cut that waits for room: the base is that of the head.
    pub(super) fn is_without_room(&self) -> bool {
        match &self.phase {
            Phase::Chunks(chunks) => !chunks.plan.is_copied() && self.retry.is_for_room(),
            _ => false,
        }
    }

    /// Whether a cut has stepped aside.
    pub fn is_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// Whether [`step_aside`](Self::step_aside) would do it.
    pub fn may_step_aside(&self) -> bool {
        let is_out = match &self.phase {
            Phase::Chunks(chunks) => chunks.in_flight > 0,
            _ => true,
        };
        !is_out && self.is_without_room()
    }

    /// Puts a cut aside that waits for room and of which nothing is out, so that other manifests
    /// may follow the head, until [`go_on`](Self::go_on). Returns whether it did: then the volume
    /// is [idle](Self::is_idle). No other cut may be started before.
    ///
    /// Chunks of it that are stored already are deleted: that gives room to what comes before it,
    /// and names have to ascend with the manifests, so it draws new ones.
    pub fn step_aside(&mut self) -> bool {
        if !self.may_step_aside() {
            return false;
        }
        let Phase::Chunks(chunks) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("looked at above");
        };
        let tried = chunks.specs[..chunks.tried].iter();
        self.garbage
            .stray(tried.map(|spec| SealedRef::Chunk(spec.key)));
        self.aside = Some(Aside {
            plan: chunks.plan,
            wishes: chunks.wishes,
            retry: std::mem::take(&mut self.retry),
        });
        true
    }

    /// Has a cut go on that stepped aside; ignored if none did, and once fenced.
    ///
    /// # Panics
    /// While another commit is under way.
    pub fn go_on(&mut self) {
        if self.fenced_by().is_some() {
            return;
        }
        if let Some(aside) = self.aside.take() {
            assert!(self.is_idle(), "one commit at a time");
            self.begin_chunks(aside.plan, aside.wishes);
            self.retry = aside.retry.at_once();
        }
    }

    /// As [`wants_sweep`](Self::wants_sweep) where room is needed: any chunk is worth it.
    pub fn wants_room(&self) -> bool {
        let is_free = self.is_idle() || self.is_without_room();
        let dead = self.dead_slots() + self.garbage.waiting_slots(self.head.number);
        is_free && (dead > 0 || self.unsettled_slots() >= u64::from(self.chunk_slots()))
    }
}

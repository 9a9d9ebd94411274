//! Parts of writes that wait: for room in memory or log, for a block that is being merged, or
//! behind one that waits. First come, first served within a shard.

use std::collections::VecDeque;
use std::ops::Range;

use super::Core;
use super::request::{Failure, RequestKey};
use super::write::{Attempt, Patch, Writing};
use crate::block::{BlockNum, LocalBlock};
use crate::shard::VolumeSlot;
use crate::wal::{MarkKind, Shortage};

/// A part of a write that waits.
pub(super) struct Parked {
    request: RequestKey,
    slot: VolumeSlot,
    work: Work,
    since_ms: u64,
    /// What is short; `None`: it waits for a block that is being merged.
    shortage: Option<Shortage>,
}

pub(super) enum Work {
    Run {
        start: LocalBlock,
        data: Vec<u8>,
    },
    Patch {
        block: BlockNum,
        from: usize,
        patch: Patch,
    },
    Mark {
        range: Range<u64>,
        kind: MarkKind,
    },
}

/// Where in the queue of its shard a part is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was there first: its block was locked for it.
    Front,
    Back,
    /// Not in the shard's queue: it waits for the bucket, and must not hold up other volumes.
    Held,
}

impl Parked {
    pub(super) fn slot(&self) -> VolumeSlot {
        self.slot
    }
}

impl Core {
    /// Lets a part of a request wait in the shard at `position`.
    pub(super) fn park(
        &mut self,
        position: usize,
        request: RequestKey,
        slot: VolumeSlot,
        work: Work,
        end: End,
    ) {
        if end == End::Held {
            let parked = Parked {
                request,
                slot,
                work,
                since_ms: self.now_ms,
                shortage: None,
            };
            return self.hold(position, parked);
        }
        let queue = &mut self.parked[position];
        let ahead = queue.back().and_then(|parked| parked.shortage);
        let shortage = self.shortage.take().or(ahead);
        self.counters.parked += 1;
        match shortage {
            Some(Shortage::Log) => self.counters.parked_for_log += 1,
            Some(Shortage::Memory) => self.counters.parked_for_memory += 1,
            Some(Shortage::Failed) | None => {}
        }
        let since_ms = self.now_ms;
        let parked = Parked {
            request,
            slot,
            work,
            since_ms,
            shortage,
        };
        match end {
            End::Front => queue.push_front(parked),
            End::Back | End::Held => queue.push_back(parked),
        }
    }

    /// Carries on a part that need not wait for the bucket any more.
    pub(super) fn release(&mut self, position: usize, parked: Parked) {
        self.parked[position].push_back(parked);
        while self.retry_one(position) {}
    }

    /// Tries parked parts again, in order, for every shard where something changed.
    pub(super) fn retry_parked(&mut self) {
        let mask = std::mem::take(&mut self.retry);
        for position in 0..self.shards.len() {
            if mask & 1 << position != 0 {
                while self.retry_one(position) {}
            }
        }
    }

    /// Handles the oldest parked part of a shard; false when it still has to wait.
    fn retry_one(&mut self, position: usize) -> bool {
        let Some(mut parked) = self.parked[position].pop_front() else {
            return false;
        };
        let (request, slot) = (parked.request, parked.slot);
        let result = if self.requests.is_cancelled(request) || self.served(slot).is_none() {
            Err(Failure::Gone)
        } else {
            match self.attempt(position, &parked) {
                Attempt::NoRoom => {
                    parked.shortage = self.shortage.take().or(parked.shortage);
                    self.parked[position].push_front(parked);
                    return false;
                }
                Attempt::Placed | Attempt::Reading => Ok(()),
                Attempt::Failed(failure) => Err(failure),
            }
        };
        self.counters.parked_ms += self.now_ms - parked.since_ms;
        self.part_done(request, result);
        true
    }

    fn attempt(&mut self, position: usize, parked: &Parked) -> Attempt {
        let Parked { slot, request, .. } = *parked;
        let locals = match &parked.work {
            Work::Run { start, data } => {
                let bytes = self.served(slot).map_or(1, |v| v.block_size.bytes());
                start.0..start.0 + (data.len() / bytes) as u64
            }
            Work::Patch { block, .. } => block.local().0..block.local().0 + 1,
            Work::Mark { range, .. } => range.clone(),
        };
        if self.is_locked(position, slot, locals.clone()) {
            return Attempt::NoRoom;
        }
        let mut writing = Writing::resumed(self.requests.get(request), slot, request);
        match &parked.work {
            Work::Run { start, data } => {
                let count = (locals.end - locals.start) as u32;
                let bytes = data.len() / count as usize;
                self.try_run(&mut writing, position, *start, count, |i| {
                    &data[i as usize * bytes..(i as usize + 1) * bytes]
                })
            }
            Work::Patch { block, from, patch } => {
                self.try_patch(&mut writing, position, *block, *from, patch)
            }
            Work::Mark { kind, .. } => self.try_mark(&mut writing, position, locals, *kind),
        }
    }

    /// Drops parked parts of cancelled requests.
    pub(super) fn drop_cancelled(&mut self) {
        self.drop_parked(|core, parked| core.requests.is_cancelled(parked.request));
    }

    /// Drops parked parts of a volume that is no longer served.
    pub(super) fn drop_parked_of(&mut self, slot: VolumeSlot) {
        self.drop_parked(|_, parked| parked.slot == slot);
    }

    fn drop_parked(&mut self, doomed: impl Fn(&Self, &Parked) -> bool) {
        for (_, parked) in self.drop_held(&doomed) {
            self.part_done(parked.request, Err(Failure::Gone));
        }
        for position in 0..self.shards.len() {
            let parked = std::mem::take(&mut self.parked[position]);
            let (gone, kept): (VecDeque<_>, _) =
                parked.into_iter().partition(|parked| doomed(self, parked));
            self.parked[position] = kept;
            for parked in gone {
                self.part_done(parked.request, Err(Failure::Gone));
            }
            self.retry |= 1 << position;
        }
    }
}

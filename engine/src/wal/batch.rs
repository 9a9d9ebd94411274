//! The batches that a log knows: where each lies in memory and in the file, and how safe it is.

use std::collections::VecDeque;

use crate::block::PAGE_BYTES;
use crate::identity::BatchNum;

use super::place::Place;

/// How far a batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Records may be appended.
    Open,
    /// Complete, waits to be written.
    Queued,
    /// Being written.
    Writing {
        /// With RWF_DSYNC.
        dsync: bool,
    },
    /// Written, not durable; `order` counts completed writes.
    Written { order: u64 },
    /// Written and durable.
    Durable,
}

/// One batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) state: State,
    /// Position in the ring of arena pages.
    pub(super) position: u64,
    /// First byte of the header page in the arena.
    pub(super) arena_offset: usize,
    /// First byte in the file.
    pub(super) file_offset: u64,
    /// Header and payload pages; of an open batch those reserved.
    pub(super) pages: u32,
}

impl Batch {
    pub(super) fn bytes(&self) -> usize {
        self.pages as usize * PAGE_BYTES
    }
}

/// Batches by number, without gaps.
#[derive(Debug)]
pub(super) struct Batches {
    first: BatchNum,
    batches: VecDeque<Batch>,
    /// Batches below are not in memory.
    evicted_below: BatchNum,
}

impl Batches {
    /// No batches; the next is `first`.
    pub(super) fn new(first: BatchNum) -> Self {
        Self {
            first,
            batches: VecDeque::new(),
            evicted_below: first,
        }
    }

    #[inline]
    pub(super) fn find(&self, number: BatchNum) -> Option<&Batch> {
        self.batches
            .get(usize::try_from(number.0.wrapping_sub(self.first.0)).ok()?)
    }

    pub(super) fn get_mut(&mut self, number: BatchNum) -> &mut Batch {
        let index = number
            .0
            .checked_sub(self.first.0)
            .expect("the batch is still known");
        &mut self.batches[index as usize]
    }

    /// The number of the batch to be pushed next.
    pub(super) fn next(&self) -> BatchNum {
        BatchNum(self.first.0 + self.batches.len() as u64)
    }

    pub(super) fn first(&self) -> BatchNum {
        self.first
    }

    pub(super) fn evicted_below(&self) -> BatchNum {
        self.evicted_below
    }

    pub(super) fn push(&mut self, batch: Batch) {
        self.batches.push_back(batch);
    }

    /// Registers a batch that is only in the file.
    pub(super) fn push_durable(&mut self, file_offset: u64, pages: u32) {
        debug_assert_eq!(
            self.evicted_below,
            self.next(),
            "before any batch in memory"
        );
        self.batches.push_back(Batch {
            state: State::Durable,
            position: 0,
            arena_offset: 0,
            file_offset,
            pages,
        });
        self.evicted_below = self.next();
    }

    /// Where the bytes of a place lie in the arena, if they still do.
    #[inline]
    pub(super) fn arena_offset(&self, place: Place) -> Option<usize> {
        if place.batch < self.evicted_below {
            return None;
        }
        let batch = self.find(place.batch)?;
        Some(batch.arena_offset + usize::from(place.page) * PAGE_BYTES)
    }

    /// Takes the oldest batch in memory out of it; returns where the next one in memory starts, as
    /// a position of the ring, or `head` when there is none.
    pub(super) fn evict_oldest(&mut self) {
        assert!(
            self.evicted_below < self.next(),
            "there is a batch to evict"
        );
        self.evicted_below = self.evicted_below.next();
    }

    /// Ring position of the oldest batch in memory, or `head` when there is none.
    pub(super) fn resident_from(&self, head: u64) -> u64 {
        self.find(self.evicted_below)
            .map_or(head, |batch| batch.position)
    }

    /// Forgets batches that are neither in memory nor in a live segment.
    pub(super) fn forget(&mut self, released_before: BatchNum) {
        let keep_from = released_before.min(self.evicted_below);
        while self.first < keep_from && self.batches.pop_front().is_some() {
            self.first = self.first.next();
        }
    }

    pub(super) fn from(&self, number: BatchNum) -> impl Iterator<Item = (BatchNum, &Batch)> {
        let first = number.max(self.first);
        let skip = (first.0 - self.first.0) as usize;
        self.batches
            .iter()
            .skip(skip)
            .zip(first.0..)
            .map(|(batch, n)| (BatchNum(n), batch))
    }
}

//! Segments of a shard's WAL file: taken in ring order, released oldest first.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::block::PAGE_BYTES;
use crate::identity::{BatchNum, Epoch, VolumeId};

use super::config::LogConfig;
use super::format::HEAD_AREA_BYTES;

/// A tail of a segment shorter than this is left empty rather than holding tiny batches.
const TAIL_PAGES_MIN: u32 = 16;

/// Who may take the segments that are held in reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reserve {
    /// Data: never.
    Keep,
    /// Marks: one segment.
    Marks,
    /// Rewriting after an error: all but those for a recovery.
    Rewrite,
    /// Recovery: all.
    Recovery,
}

/// File space for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileRun {
    pub(super) file_offset: u64,
    pub(super) generation: u64,
    pub(super) pages: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Live,
    /// Released, but no durable log head says so yet.
    Released,
}

#[derive(Debug)]
struct Segment {
    state: State,
    generation: u64,
    /// Batches of a live or released segment; none when `last < first`.
    first: BatchNum,
    last: BatchNum,
    /// Greatest epoch of each volume with records here.
    uses: HashMap<VolumeId, Epoch>,
}

#[derive(Debug)]
struct Floor {
    data: usize,
    marks: usize,
    rewrite: usize,
}

impl Floor {
    fn of(config: &LogConfig) -> Self {
        let data = config.reserve_segments as usize;
        let marks = data.saturating_sub(1);
        Self {
            data,
            marks,
            rewrite: marks.saturating_sub(config.rewrite_segments() as usize),
        }
    }

    fn leaves(&self, reserve: Reserve) -> usize {
        match reserve {
            Reserve::Keep => self.data,
            Reserve::Marks => self.marks,
            Reserve::Rewrite => self.rewrite,
            Reserve::Recovery => 0,
        }
    }
}

/// The segments of one file.
#[derive(Debug)]
pub(super) struct Segments {
    segment_bytes: u64,
    /// Free segments that each use leaves alone.
    floor: Floor,
    segments: Vec<Segment>,
    /// Live segments, the oldest first. The last one is being filled if `filled_bytes` is set.
    live: VecDeque<usize>,
    /// Bytes used of the last live segment; `None`: take a fresh one.
    filled_bytes: Option<u64>,
    free: usize,
    /// Where the search for a free segment starts.
    next: usize,
    last_generation: u64,
}

impl Segments {
    pub(super) fn new(config: &LogConfig, last_generation: u64) -> Self {
        let segment = || Segment {
            state: State::Free,
            generation: 0,
            first: BatchNum(1),
            last: BatchNum(0),
            uses: HashMap::new(),
        };
        Self {
            segment_bytes: config.segment_bytes,
            floor: Floor::of(config),
            segments: (0..config.segments).map(|_| segment()).collect(),
            live: VecDeque::with_capacity(config.segments as usize),
            filled_bytes: None,
            free: config.segments as usize,
            next: 0,
            last_generation,
        }
    }

    /// Registers a replayed batch and who uses it, in order of numbers. Its segment is never
    /// appended to again.
    pub(super) fn adopt(
        &mut self,
        number: BatchNum,
        file_offset: u64,
        uses: impl Iterator<Item = (VolumeId, Epoch)>,
    ) {
        let index = self.index_of(file_offset);
        self.next = (index + 1) % self.segments.len();
        let segment = &mut self.segments[index];
        if segment.state == State::Free {
            segment.state = State::Live;
            segment.first = number;
            self.live.push_back(index);
            self.free -= 1;
        }
        assert_eq!(
            self.live.back(),
            Some(&index),
            "batches of a segment are consecutive"
        );
        segment.last = number;
        uses.for_each(|(volume, epoch)| segment.note_use(volume, epoch));
    }

    fn index_of(&self, file_offset: u64) -> usize {
        ((file_offset - HEAD_AREA_BYTES) / self.segment_bytes) as usize
    }

    fn start_of(&self, index: usize) -> u64 {
        HEAD_AREA_BYTES + index as u64 * self.segment_bytes
    }

    /// Space for a batch of at least `need` and at most `want` pages. Nothing is taken before
    /// [`Segments::take`] but a fresh segment where one is needed.
    pub(super) fn plan(
        &mut self,
        number: BatchNum,
        (need, want): (u32, u32),
        reserve: Reserve,
    ) -> Option<FileRun> {
        let floor = self.floor.leaves(reserve);
        let left = self.filled_bytes.map_or(0, |filled| {
            ((self.segment_bytes - filled) / PAGE_BYTES as u64) as u32
        });
        if left < need.max(TAIL_PAGES_MIN.min(want)) {
            if self.free <= floor {
                return None;
            }
            self.take_fresh(number);
        } else if self.free < floor {
            return None;
        }
        let filled = self.filled_bytes.expect("there is a segment to fill");
        let index = *self.live.back().expect("the segment being filled is live");
        let left = ((self.segment_bytes - filled) / PAGE_BYTES as u64) as u32;
        assert!(left >= need, "a batch fits into a fresh segment");
        Some(FileRun {
            file_offset: self.start_of(index) + filled,
            generation: self.segments[index].generation,
            pages: left.min(want),
        })
    }

    fn take_fresh(&mut self, first: BatchNum) {
        let count = self.segments.len();
        let index = (0..count)
            .map(|i| (self.next + i) % count)
            .find(|&i| self.segments[i].state == State::Free)
            .expect("a segment is free as counted");
        self.last_generation += 1;
        self.free -= 1;
        self.next = (index + 1) % count;
        self.live.push_back(index);
        self.filled_bytes = Some(0);
        let segment = &mut self.segments[index];
        segment.state = State::Live;
        segment.generation = self.last_generation;
        segment.first = first;
        segment.last = BatchNum(first.0 - 1);
        segment.uses.clear();
    }

    /// Takes `pages` of the run planned last for batch `number`.
    pub(super) fn take(&mut self, number: BatchNum, run: FileRun, pages: u32) {
        assert!(pages <= run.pages, "a batch fits into what it was given");
        let index = *self.live.back().expect("planned in the last live segment");
        let start = self.start_of(index);
        let end = run.file_offset + u64::from(pages) * PAGE_BYTES as u64;
        assert!(
            self.filled_bytes == Some(run.file_offset - start) && end <= start + self.segment_bytes,
            "batches of a segment follow each other within it"
        );
        self.filled_bytes = Some(end - start);
        let segment = &mut self.segments[index];
        assert_eq!(
            segment.last.next(),
            number,
            "batches of a segment are consecutive"
        );
        segment.last = number;
    }

    /// Returns the last `pages` of what was taken last.
    pub(super) fn give_back(&mut self, pages: u32) {
        let filled = self
            .filled_bytes
            .as_mut()
            .expect("a batch was just taken from it");
        *filled -= u64::from(pages) * PAGE_BYTES as u64;
    }

    /// Whether a data append that needs a fresh segment would be refused.
    pub(super) fn only_reserve_left(&self) -> bool {
        self.free <= self.floor.data
    }

    /// Notes that the segment being filled holds records of `volume` up to `epoch`.
    pub(super) fn note_use(&mut self, volume: VolumeId, epoch: Epoch) {
        let index = *self.live.back().expect("a batch is open in it");
        self.segments[index].note_use(volume, epoch);
    }

    /// Batches after `durable` are written again from a fresh segment on: takes them out of their
    /// segments and returns which volumes and epochs those may hold.
    pub(super) fn withdraw_after(&mut self, durable: BatchNum) -> Vec<(VolumeId, Epoch)> {
        self.filled_bytes = None;
        let mut uses = Vec::new();
        for &index in &self.live {
            let segment = &mut self.segments[index];
            if segment.last > durable {
                uses.extend(segment.uses.iter().map(|(volume, epoch)| (*volume, *epoch)));
                segment.first = segment.first.min(durable.next());
                segment.last = durable;
            }
        }
        uses
    }

    /// Forgets uses that are `committed`, then releases what can be.
    pub(super) fn release(
        &mut self,
        durable: BatchNum,
        committed: impl Fn(VolumeId, Epoch) -> bool,
    ) -> u32 {
        for &index in &self.live {
            self.segments[index]
                .uses
                .retain(|volume, epoch| !committed(*volume, *epoch));
        }
        self.release_unused(durable)
    }

    /// Releases the oldest segments without uncommitted uses whose batches are all `durable`, but
    /// never the one being filled. They become free by [`Segments::free_below`].
    pub(super) fn release_unused(&mut self, durable: BatchNum) -> u32 {
        let mut released = 0;
        let keep = usize::from(self.filled_bytes.is_some());
        while self.live.len() > keep {
            let segment = &mut self.segments[self.live[0]];
            if segment.last > durable || !segment.uses.is_empty() {
                break;
            }
            segment.state = State::Released;
            self.live.pop_front();
            released += 1;
        }
        released
    }

    /// Batches below this are released, given the number of the next batch.
    pub(super) fn released_before(&self, next: BatchNum) -> BatchNum {
        self.live
            .front()
            .map_or(next, |&index| self.segments[index].first)
    }

    /// A durable log head says that batches below `batch` are released: their space is free.
    pub(super) fn free_below(&mut self, batch: BatchNum) {
        for segment in &mut self.segments {
            if segment.state == State::Released && segment.last < batch {
                segment.state = State::Free;
                segment.uses.clear();
                self.free += 1;
            }
        }
    }

    /// Generation of the segment at this file offset.
    pub(super) fn generation_at(&self, file_offset: u64) -> u64 {
        self.segments[self.index_of(file_offset)].generation
    }

    /// Segments taken so far, over all writers.
    pub(super) fn last_generation(&self) -> u64 {
        self.last_generation
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    pub(super) fn count(&self) -> usize {
        self.segments.len()
    }
}

impl Segment {
    fn note_use(&mut self, volume: VolumeId, epoch: Epoch) {
        let greatest = self.uses.entry(volume).or_insert(epoch);
        *greatest = (*greatest).max(epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Segments {
        let config = LogConfig {
            arena_bytes: 4 << 20,
            undurable_bytes_max: 1 << 20,
            batch_payload_max: 64 << 10,
            segment_bytes: 32 * PAGE_BYTES as u64,
            segments: 4,
            reserve_segments: 2,
        };
        Segments::new(&config, 10)
    }

    fn batch(segments: &mut Segments, number: u64, pages: u32, reserve: Reserve) -> Option<u64> {
        let run = segments.plan(BatchNum(number), (pages, pages), reserve)?;
        segments.take(BatchNum(number), run, pages);
        segments.note_use(VolumeId(number), Epoch(number));
        Some((run.file_offset - HEAD_AREA_BYTES) / PAGE_BYTES as u64)
    }

    #[test]
    fn batches_never_cross_a_segment_and_the_reserve_is_kept() {
        let mut s = segments();
        assert_eq!(batch(&mut s, 1, 17, Reserve::Keep), Some(0));
        assert_eq!(batch(&mut s, 2, 17, Reserve::Keep), Some(32));
        assert_eq!(batch(&mut s, 3, 15, Reserve::Keep), Some(49));
        assert_eq!(batch(&mut s, 4, 1, Reserve::Keep), None);
        assert_eq!(batch(&mut s, 4, 1, Reserve::Recovery), Some(64));
        assert_eq!(
            batch(&mut s, 5, 1, Reserve::Keep),
            None,
            "marks took from the reserve"
        );
        assert_eq!(s.free(), 1);
    }

    #[test]
    fn the_oldest_are_released_once_durable_and_committed() {
        let mut s = segments();
        for number in 1..=3 {
            batch(&mut s, number, 20, Reserve::Recovery).unwrap();
        }
        assert_eq!(
            s.release(BatchNum(3), |_, epoch| epoch == Epoch(2)),
            0,
            "1 is not committed"
        );
        assert_eq!(s.release(BatchNum(0), |_, _| true), 0, "1 is not durable");
        assert_eq!(s.release_unused(BatchNum(1)), 1, "now it is");
        assert_eq!(s.release(BatchNum(3), |_, _| true), 1, "3 is being filled");
        assert_eq!((s.free(), s.released_before(BatchNum(4))), (1, BatchNum(3)));
        s.free_below(BatchNum(2));
        assert_eq!(s.free(), 2, "the head that releases 1 is durable");
        s.free_below(BatchNum(3));
        assert_eq!(s.free(), 3);
        assert_eq!(batch(&mut s, 4, 20, Reserve::Keep), Some(96));
        assert_eq!(
            batch(&mut s, 5, 20, Reserve::Keep),
            None,
            "only the reserve is left"
        );
        assert_eq!(
            batch(&mut s, 5, 20, Reserve::Recovery),
            Some(0),
            "recycled in ring order"
        );
    }

    #[test]
    fn undurable_batches_move_to_a_fresh_segment() {
        let mut s = segments();
        batch(&mut s, 1, 4, Reserve::Keep).unwrap();
        batch(&mut s, 2, 4, Reserve::Keep).unwrap();
        let uses = s.withdraw_after(BatchNum(1));
        assert_eq!(uses.len(), 2, "whatever the segment held");
        assert_eq!(batch(&mut s, 2, 4, Reserve::Recovery), Some(32));
        assert_eq!(s.released_before(BatchNum(3)), BatchNum(1));
        assert_eq!(s.release(BatchNum(2), |_, _| true), 1);
        assert_eq!(s.released_before(BatchNum(3)), BatchNum(2));
    }
}

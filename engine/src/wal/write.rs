//! Writing of a shard's batches: order, durability, errors, and the log head that frees space.

use crate::identity::{BatchNum, Epoch, VolumeId};

use super::batch::State;
use super::format::{BatchHeader, LogHead};
use super::log::ShardLog;
use super::region::RegionLayout;
use super::segments::Reserve;
use crate::block::PAGE_BYTES;

/// Times in a row that writing a log head may fail.
const HEAD_FAILURES_MAX: u32 = 3;

/// A write to the shard's WAL file, page-aligned in memory and file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalWrite {
    /// The batch; 0 for a log head.
    pub batch: BatchNum,
    /// First byte in the arena.
    pub arena_offset: usize,
    /// Bytes.
    pub len: usize,
    /// First byte in the file.
    pub file_offset: u64,
    /// Must be durable on its own when it completes (RWF_DSYNC, or write and flush).
    pub dsync: bool,
}

/// What a flush barrier issued at one moment covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierMark {
    /// Writes completed before it.
    order: u64,
    /// Errors survived before it: a barrier says nothing about what was written before an error.
    round: u64,
}

/// A log's state with regard to I/O errors. Codes are errno values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No error, or it is overcome.
    Good,
    /// After an error: waits for writes in flight before writing once more.
    Draining {
        /// The error.
        code: i32,
    },
    /// All undurable batches are being written once more; over when `through` is durable.
    Rewriting {
        /// The error that caused it.
        code: i32,
        /// Last batch concerned.
        through: BatchNum,
    },
    /// Failed closed: no appends, no writes.
    Failed {
        /// The last error; 0 when no fresh segment was left.
        code: i32,
    },
}

/// The log head in preparation.
#[derive(Clone, Copy, Debug)]
struct HeadWrite {
    sequence: u64,
    wanted: bool,
    in_flight: Option<BatchNum>,
    failures: u32,
}

/// What [`ShardLog`] knows of its writes.
#[derive(Debug)]
pub(super) struct Writer {
    /// No queued batch is below.
    cursor: BatchNum,
    in_flight: u32,
    /// Completed writes.
    order: u64,
    written_through: BatchNum,
    health: Health,
    /// Errors so far.
    round: u64,
    /// Batches queued once more after an error.
    rewritten: u64,
    /// Segments released.
    released: u64,
    head: HeadWrite,
    /// Nothing is appended any more, and every log head says so.
    ended: bool,
}

impl Writer {
    /// The writer of a log whose last head was `head` and whose next batch is `next`.
    pub(super) fn new(head: &LogHead, next: BatchNum) -> Self {
        Self {
            cursor: next,
            in_flight: 0,
            order: 0,
            written_through: BatchNum(next.0 - 1),
            health: Health::Good,
            round: 0,
            rewritten: 0,
            released: 0,
            head: HeadWrite {
                sequence: head.sequence,
                wanted: true,
                in_flight: None,
                failures: 0,
            },
            ended: false,
        }
    }

    /// From now on log heads say that nothing follows; one is queued.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.head.wanted = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a log head is still to become durable.
    pub(super) fn is_head_pending(&self) -> bool {
        self.head.wanted || self.head.in_flight.is_some()
    }

    pub(super) fn failed(&self) -> Option<i32> {
        match self.health {
            Health::Failed { code } => Some(code),
            _ => None,
        }
    }
}

impl ShardLog {
    /// The batch that [`ShardLog::start_write`] would start, 0 for a log head; `None` when nothing
    /// waits. While an error is being drained it may wait without being started.
    pub fn next_queued(&self) -> Option<BatchNum> {
        if self.writer.failed().is_some() {
            return None;
        }
        if self.writer.head.wanted && self.writer.head.in_flight.is_none() {
            return Some(BatchNum(0));
        }
        let cursor = self.writer.cursor;
        self.batches
            .find(cursor)
            .is_some_and(|batch| batch.state == State::Queued)
            .then_some(cursor)
    }

    /// Starts the next write, a log head or the oldest queued batch. Several may be in flight and
    /// complete in any order. Each must be answered by [`ShardLog::write_finished`].
    pub fn start_write(&mut self, dsync: bool) -> Option<WalWrite> {
        let next = self.next_queued()?;
        if next.0 == 0 {
            return Some(self.start_head());
        }
        if matches!(self.writer.health, Health::Draining { .. }) {
            return None;
        }
        let batch = self.batches.get_mut(next);
        batch.state = State::Writing { dsync };
        self.writer.cursor = next.next();
        self.writer.in_flight += 1;
        Some(WalWrite {
            batch: next,
            arena_offset: batch.arena_offset,
            len: batch.bytes(),
            file_offset: batch.file_offset,
            dsync,
        })
    }

    fn start_head(&mut self) -> WalWrite {
        let released_before = self.released_before();
        let end = self.writer.ended.then(|| self.log_end());
        let head = &mut self.writer.head;
        head.sequence += 1;
        head.wanted = false;
        head.in_flight = Some(released_before);
        let log_head = LogHead {
            shard: self.identity.shard,
            wal: self.identity.wal,
            incarnation: self.identity.incarnation,
            first: self.first,
            sequence: head.sequence,
            segment_bytes: self.config.segment_bytes,
            segments: self.config.segments,
            durable_through: self.durable_through,
            released_before,
            end,
        };
        let arena_offset = self.layout.staging_page();
        log_head.encode(self.arena.bytes_mut(arena_offset, PAGE_BYTES));
        WalWrite {
            batch: BatchNum(0),
            arena_offset,
            len: PAGE_BYTES,
            file_offset: log_head.file_offset(),
            dsync: true,
        }
    }

    /// The write ended, wholly written or with an errno.
    ///
    /// # Panics
    /// When `write` is not in flight.
    pub fn write_finished(&mut self, write: &WalWrite, result: Result<(), i32>) {
        if write.batch.0 == 0 {
            return self.head_finished(result);
        }
        let batch = self.batches.get_mut(write.batch);
        let State::Writing { dsync } = batch.state else {
            panic!("a write that was not started has ended");
        };
        assert_eq!((batch.file_offset, dsync), (write.file_offset, write.dsync));
        self.writer.in_flight -= 1;
        self.writer.order += 1;
        let draining = matches!(self.writer.health, Health::Draining { .. });
        batch.state = match result {
            Ok(()) if dsync => State::Durable,
            Ok(()) if !draining => State::Written {
                order: self.writer.order,
            },
            // Written once more, whatever became of it.
            Ok(()) | Err(_) => State::Queued,
        };
        match result {
            Ok(()) => self.advance(),
            Err(code) => self.on_error(code),
        }
        self.rewrite_if_drained();
    }

    /// What a flush barrier issued now will make durable.
    pub fn barrier_mark(&self) -> BarrierMark {
        BarrierMark {
            order: self.writer.order,
            round: self.writer.round,
        }
    }

    /// The barrier issued when `mark` was taken ended, with an errno if it failed.
    pub fn barrier_finished(&mut self, mark: BarrierMark, result: Result<(), i32>) {
        if self.writer.failed().is_some() {
            return;
        }
        let earlier = mark.round != self.writer.round;
        match result {
            // An error is reported once; a barrier that was under way then proves nothing.
            Ok(()) if earlier => {}
            Ok(()) => {
                let mut number = self.durable_through.next();
                while number <= self.last() {
                    let batch = self.batches.get_mut(number);
                    if let State::Written { order } = batch.state
                        && order <= mark.order
                    {
                        batch.state = State::Durable;
                    }
                    number = number.next();
                }
                self.advance();
            }
            Err(code) => {
                // The barrier of the former attempt: it may have dropped what was rewritten since,
                // but the rewriting itself has not failed.
                if earlier && matches!(self.writer.health, Health::Rewriting { .. }) {
                    self.writer.health = Health::Good;
                }
                self.on_error(code);
                self.rewrite_if_drained();
            }
        }
    }

    /// Batches up to here are written, if not durable.
    pub fn written_through(&self) -> BatchNum {
        self.writer.written_through
    }

    /// Batch writes in flight.
    pub fn writes_in_flight(&self) -> u32 {
        self.writer.in_flight
    }

    /// Whether and how the log suffers from I/O errors.
    pub fn health(&self) -> Health {
        self.writer.health
    }

    /// The errno with which the log failed closed: reads go on, nothing is appended or written.
    pub fn failed(&self) -> Option<i32> {
        self.writer.failed()
    }

    /// I/O errors survived or not, so far.
    pub fn errors(&self) -> u64 {
        self.writer.round
    }

    /// Batches written once more to a fresh segment after an error, so far.
    pub fn rewritten_batches(&self) -> u64 {
        self.writer.rewritten
    }

    /// Segments released so far.
    pub fn released_segments(&self) -> u64 {
        self.writer.released
    }

    /// Releases the oldest segments whose every record is `committed` (or of a deleted volume).
    /// Segments that are not durable yet follow by themselves when they are. Released segments
    /// become free once the log head that is queued then is durable.
    pub fn release(&mut self, committed: impl Fn(VolumeId, Epoch) -> bool) -> u32 {
        let released = self.segments.release(self.durable_through, committed);
        self.note_released(released);
        released
    }

    fn note_released(&mut self, segments: u32) {
        self.writer.released += u64::from(segments);
        if segments > 0 {
            self.writer.head.wanted = true;
            self.batches.forget(self.released_before());
            self.headers.forget(self.released_before());
        }
    }

    fn head_finished(&mut self, result: Result<(), i32>) {
        let head = &mut self.writer.head;
        let released_before = head.in_flight.take().expect("a log head is in flight");
        match result {
            Ok(()) => {
                head.failures = 0;
                self.segments.free_below(released_before);
            }
            Err(code) => {
                head.failures += 1;
                head.wanted = true;
                if head.failures == HEAD_FAILURES_MAX {
                    self.fail(code);
                }
            }
        }
    }

    /// Moves `durable_through` and `written_through` as far as the states allow.
    fn advance(&mut self) {
        let before = self.durable_through;
        while let Some(batch) = self.batches.find(self.durable_through.next())
            && batch.state == State::Durable
        {
            self.undurable_pages -= batch.pages as usize;
            self.durable_through = self.durable_through.next();
        }
        let written = |state| matches!(state, State::Written { .. } | State::Durable);
        let mut through = self.writer.written_through.max(self.durable_through);
        while self
            .batches
            .find(through.next())
            .is_some_and(|batch| written(batch.state))
        {
            through = through.next();
        }
        self.writer.written_through = through;
        if self.durable_through != before {
            RegionLayout::note_durable(&mut self.arena, self.durable_through);
            let released = self.segments.release_unused(self.durable_through);
            self.note_released(released);
            if let Health::Rewriting { through, .. } = self.writer.health
                && self.durable_through >= through
            {
                self.writer.health = Health::Good;
            }
        }
    }

    fn on_error(&mut self, code: i32) {
        self.writer.round += 1;
        self.distrust_written();
        match self.writer.health {
            Health::Good => {
                self.close();
                self.writer.health = Health::Draining { code };
            }
            Health::Draining { .. } | Health::Failed { .. } => {}
            Health::Rewriting { .. } => self.fail(code),
        }
    }

    /// After an error a barrier that succeeds says nothing about what was written before: the
    /// failed one may have dropped it. So no barrier covers it any more.
    fn distrust_written(&mut self) {
        let mut number = self.durable_through.next();
        while number <= self.last() {
            let batch = self.batches.get_mut(number);
            if matches!(batch.state, State::Written { .. }) {
                batch.state = State::Queued;
            }
            number = number.next();
        }
        self.writer.written_through = self.durable_through;
    }

    fn fail(&mut self, code: i32) {
        self.writer.health = Health::Failed { code };
        self.close();
    }

    /// Once nothing is in flight, gives all undurable batches a place in a fresh segment and queues
    /// them again. Their number and the pages of their blocks stay the same.
    fn rewrite_if_drained(&mut self) {
        let Health::Draining { code } = self.writer.health else {
            return;
        };
        if self.writer.in_flight > 0 {
            return;
        }
        self.close();
        if self.durable_through == self.last() {
            self.writer.health = Health::Good;
            return;
        }
        let uses = self.segments.withdraw_after(self.durable_through);
        let released_before = self.released_before();
        let first = self.durable_through.next();
        let mut number = first;
        while number <= self.last() {
            let batch = self.batches.get_mut(number);
            let pages = batch.pages;
            let Some(run) = self.segments.plan(number, (pages, pages), Reserve::Rewrite) else {
                return self.fail(0);
            };
            self.segments.take(number, run, pages);
            for (volume, epoch) in &uses {
                self.segments.note_use(*volume, *epoch);
            }
            batch.state = State::Queued;
            batch.file_offset = run.file_offset;
            self.writer.rewritten += 1;
            let page = self.arena.bytes_mut(batch.arena_offset, PAGE_BYTES);
            let mut header = BatchHeader::decode(page).expect("a closed batch has its header");
            header.file_offset = run.file_offset;
            header.generation = run.generation;
            header.durable_through = self.durable_through;
            header.released_before = released_before;
            header.encode(page);
            number = number.next();
        }
        self.writer.cursor = first;
        self.writer.written_through = self.durable_through;
        self.writer.health = Health::Rewriting {
            code,
            through: self.last(),
        };
    }
}

//! When batches are written, when a flush barrier is due, and who waits for it (DESIGN §4.4–4.6).
//!
//! Written is not durable: a plainly written batch becomes durable only by a barrier issued after
//! its completion, a batch written with RWF_DSYNC by its own completion.

use std::collections::VecDeque;

use super::gathering::Gathering;
use super::request::{Failure, Needs, Origin, Progress, RequestKey};
use super::{Core, Io, PendingOp, Request};
use crate::block::SHARD_COUNT;
use crate::identity::BatchNum;
use crate::shard::{Shard, VolumeSlot};
use crate::wal::{BarrierMark, Health, ShardLog, WalWrite};

/// How a batch on which somebody waits is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// RWF_DSYNC on every write: for devices without a volatile cache, or with FUA.
    Dsync,
    /// RWF_DSYNC for a lone batch, else plain writes and one barrier for all.
    Mixed,
    /// Plain writes and a barrier, always.
    Fdatasync,
}

/// Limits and delays of the log writer.
#[derive(Clone, Copy, Debug)]
pub struct WritePolicy {
    /// How durability is reached.
    pub sync: SyncMode,
    /// An open batch with so many bytes is written at once.
    pub batch_bytes: usize,
    /// Largest run of one record, in bytes; at most a batch's payload.
    pub run_bytes_max: u64,
    /// Batches that nobody waits for are started only while fewer writes are in flight. Twice the
    /// shards: alike filled, these close all at once, and a device that answers its whole queue at
    /// once (virtio) stands idle from there to the core's next turn.
    pub writes_in_flight_max: usize,
    /// An open batch is written after so long at the latest if the device is not busy.
    pub write_delay_ms: u64,
    /// Nothing stays undurable for longer than about this.
    pub flush_interval_ms: u64,
    /// A barrier is issued in the background when so many bytes a shard, on average over the core's
    /// shards, are written and not durable, or half as many again in one shard. What is still to be
    /// written does not count: barriers slow the writes down, and each one covers all shards.
    pub undurable_bytes: usize,
}

impl Default for WritePolicy {
    fn default() -> Self {
        Self {
            sync: SyncMode::Mixed,
            batch_bytes: 256 << 10,
            run_bytes_max: 512 << 10,
            writes_in_flight_max: 32,
            write_delay_ms: 4,
            flush_interval_ms: 100,
            undurable_bytes: 2 << 20,
        }
    }
}

/// Consecutive write-then-FLUSH pairs after which a volume's writes start durable at arrival.
const SYNC_STREAK: u32 = 4;

/// What each shard had written when a barrier began.
pub(super) type BarrierMarks = Vec<(usize, BarrierMark)>;

struct Waiter {
    request: RequestKey,
    needs: Needs,
}

/// The log writer's state over all shards of a core.
pub(super) struct Durability {
    policy: WritePolicy,
    /// Shards with an open or queued batch.
    dirty: u16,
    /// Shards with batches that are not durable.
    undurable: u16,
    opened_ms: [u64; SHARD_COUNT],
    undurable_since_ms: [u64; SHARD_COUNT],
    /// What was durable when `undurable_since_ms` was set.
    durable_seen: [BatchNum; SHARD_COUNT],
    /// Batches up to here are written without delay.
    hurry: [BatchNum; SHARD_COUNT],
    writes_in_flight: usize,
    /// The shard whose batches are started first: the one after the last that started a write.
    first: u32,
    barrier_in_flight: bool,
    gathering: Gathering,
    /// The write now being appended starts durable at arrival.
    hurry_next: bool,
    /// A barrier is wanted although nobody waits.
    sync_now: bool,
    waiters: VecDeque<Waiter>,
}

impl Durability {
    pub(super) fn new(policy: WritePolicy) -> Self {
        Self {
            policy,
            dirty: 0,
            undurable: 0,
            opened_ms: [0; SHARD_COUNT],
            undurable_since_ms: [0; SHARD_COUNT],
            durable_seen: [BatchNum(0); SHARD_COUNT],
            hurry: [BatchNum(0); SHARD_COUNT],
            writes_in_flight: 0,
            first: 0,
            barrier_in_flight: false,
            gathering: Gathering::default(),
            hurry_next: false,
            sync_now: false,
            waiters: VecDeque::new(),
        }
    }

    pub(super) fn policy(&self) -> &WritePolicy {
        &self.policy
    }

    /// Whether a batch is not durable that still may become so.
    pub(super) fn has_undurable(&self, core: &Core) -> bool {
        core.shards
            .iter()
            .map(Shard::log)
            .any(|log| log.durable_through() < log.last() && log.failed().is_none())
    }

    /// Whether all needed batches are durable already.
    #[inline]
    pub(super) fn is_durable(&self, needs: &Needs, shards: &[Shard]) -> bool {
        needs
            .iter()
            .all(|(p, batch)| shards[p].log().durable_through() >= batch)
    }

    /// Whether a needed batch can never become durable: its log failed before.
    fn is_lost(needs: &Needs, shards: &[Shard]) -> bool {
        needs.iter().any(|(p, batch)| {
            let log = shards[p].log();
            log.failed().is_some() && log.durable_through() < batch
        })
    }

    /// Lets the request wait until `needs` are durable; `Some` when that is decided already.
    pub(super) fn wait(
        &mut self,
        request: RequestKey,
        needs: Needs,
        shards: &[Shard],
    ) -> Option<Result<(), Failure>> {
        if self.is_durable(&needs, shards) {
            return Some(Ok(()));
        }
        if Self::is_lost(&needs, shards) {
            return Some(Err(Failure::Io));
        }
        self.hurry_up(&needs);
        self.waiters.push_back(Waiter { request, needs });
        None
    }

    /// Makes the next barrier due at once.
    pub(super) fn sync_all(&mut self) {
        self.undurable_since_ms = [0; SHARD_COUNT];
        self.sync_now = true;
    }

    fn hurry_up(&mut self, needs: &Needs) {
        for (position, batch) in needs.iter() {
            self.hurry[position] = self.hurry[position].max(batch);
            self.dirty |= 1 << position;
        }
    }
}

impl Core {
    /// FLUSH: makes durable every write of the volume answered before now, on any connection.
    pub fn flush(&mut self, origin: Origin, slot: VolumeSlot) -> Progress {
        let remote = self.remote(slot);
        if self.cores == 1 && remote.is_none() {
            return self.flush_own(origin, slot);
        }
        if self.is_given_up(slot) {
            return Progress::Failed(Failure::Gone);
        }
        let mut request = Request::new(origin, true);
        request.parts = 1;
        request.remote = remote;
        request.flush_of = Some(slot);
        let key = self.requests.insert(request);
        let mask = ((1u32 << self.cores) - 1) as u16 & !(1 << self.index);
        self.ask_peers(key, mask, |request| super::PeerMessage::Flush {
            request,
            slot,
        });
        match self.flush_needs(slot) {
            Ok(needs) => self.requests.get(key).needs = needs,
            Err(failure) => self.requests.get(key).failure = Some(failure),
        }
        self.durability
            .hurry_up(&self.requests.get(key).needs.clone());
        self.part_done(key, Ok(()));
        Progress::Pending(key)
    }

    /// Makes durable what is answered in the own shards.
    pub(super) fn flush_own(&mut self, origin: Origin, slot: VolumeSlot) -> Progress {
        if self.is_given_up(slot) {
            return Progress::Failed(Failure::Gone);
        }
        let needs = match self.flush_needs(slot) {
            Ok(needs) if needs.is_empty() => return Progress::Done,
            Ok(needs) => needs,
            Err(failure) => return Progress::Failed(failure),
        };
        let mut request = Request::new(origin, true);
        request.needs = needs;
        request.flush_of = Some(slot);
        let key = self.requests.insert(request);
        self.finish_if_complete(key);
        Progress::Pending(key)
    }

    fn flush_needs(&mut self, slot: VolumeSlot) -> Result<Needs, Failure> {
        if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) {
            match std::mem::take(&mut volume.writes_since_flush) {
                0 => {}
                1 => volume.sync_streak = volume.sync_streak.saturating_add(1),
                _ => volume.sync_streak = 0,
            }
        }
        let mut needs = Needs::default();
        for (position, shard) in self.shards.iter().enumerate() {
            let log = shard.log();
            if log.failed().is_some() {
                return Err(Failure::Io);
            }
            if log.durable_through() < log.last() {
                needs.raise(position, log.last());
            }
        }
        Ok(needs)
    }

    /// Notes that a write of the volume begins.
    #[inline]
    pub(super) fn note_write(&mut self, slot: VolumeSlot) {
        if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) {
            volume.writes_since_flush = volume.writes_since_flush.saturating_add(1);
            if volume.sync_streak >= SYNC_STREAK && volume.writes_since_flush == 1 {
                self.durability.hurry_next = true;
            }
        }
    }

    /// Notes that something was appended to the shard at `position`.
    #[inline]
    pub(super) fn note_append(&mut self, position: usize) {
        let bit = 1 << position;
        let durability = &mut self.durability;
        if durability.dirty & bit == 0 {
            durability.dirty |= bit;
            durability.opened_ms[position] = self.now_ms;
        }
        if durability.undurable & bit == 0 {
            durability.undurable |= bit;
            durability.undurable_since_ms[position] = self.now_ms;
        }
        if durability.hurry_next {
            durability.hurry[position] = self.shards[position].log().last();
        }
    }

    /// Writes batches without delay up to the last one of every shard.
    pub(super) fn hurry_all(&mut self) {
        for (position, shard) in self.shards.iter().enumerate() {
            self.durability.hurry[position] = shard.log().last();
            self.durability.dirty |= 1 << position;
        }
    }

    /// Ends every log that is at rest, so that the next start need not search it: nothing is
    /// written from then on. [`Core::is_ending`] tells when that is durable.
    pub fn end_logs(&mut self) {
        for (position, shard) in self.shards.iter_mut().enumerate() {
            if shard.log_mut().end() {
                self.durability.dirty |= 1 << position;
            }
        }
    }

    /// Whether what says that a log has ended is still on its way.
    pub fn is_ending(&self) -> bool {
        self.shards.iter().any(|shard| shard.log().is_ending())
    }

    /// Starts what is due: batch writes, then a barrier.
    pub(super) fn pump_durability(&mut self) {
        self.durability.hurry_next = false;
        if self.durability.dirty != 0 {
            self.start_writes();
        }
        if self.durability.undurable != 0 && !self.durability.barrier_in_flight {
            self.start_barrier();
        }
    }

    /// Milliseconds after which [`Core::pump`] has something to do even without input.
    pub fn deadline_ms(&self) -> Option<u64> {
        let durability = &self.durability;
        let policy = &durability.policy;
        let mut next = self.next_pause_end_ms();
        for position in 0..self.shards.len() {
            let bit = 1 << position;
            let mut due = |at: u64| next = Some(next.map_or(at, |n: u64| n.min(at)));
            // What waits for a write or barrier under way is looked at when that ends, not before:
            // a time that has passed would make the driver turn without end.
            let log = self.shards[position].log();
            let drains = matches!(log.health(), Health::Draining { .. });
            if durability.dirty & bit != 0
                && durability.writes_in_flight < policy.writes_in_flight_max
                && !drains
            {
                due(durability.opened_ms[position] + policy.write_delay_ms);
            }
            if durability.undurable & bit != 0
                && !durability.barrier_in_flight
                && log.written_through() > log.durable_through()
            {
                due(durability.undurable_since_ms[position] + policy.flush_interval_ms);
            }
        }
        next.map(|at| at.saturating_sub(self.now_ms))
    }

    fn start_writes(&mut self) {
        let lone = self.is_lone_batch();
        // In turn: a shard that is always last falls behind, runs out of memory for undurable
        // batches and stops the clients of all.
        let first = self.durability.first;
        let mut mask = self.durability.dirty.rotate_right(first);
        while mask != 0 {
            let position = (mask.trailing_zeros() + first) as usize % SHARD_COUNT;
            mask &= mask - 1;
            self.close_if_due(position);
            let durability = &mut self.durability;
            let policy = durability.policy;
            loop {
                let log = self.shards[position].log_mut();
                let hurried = log
                    .next_queued()
                    .is_some_and(|b| b <= durability.hurry[position]);
                if !hurried && durability.writes_in_flight >= policy.writes_in_flight_max {
                    break;
                }
                let dsync = match policy.sync {
                    SyncMode::Dsync => true,
                    SyncMode::Mixed => hurried && lone,
                    SyncMode::Fdatasync => false,
                };
                let Some(write) = log.start_write(dsync) else {
                    break;
                };
                let slice = log.io_slice(&write);
                durability.writes_in_flight += 1;
                durability.first = (position as u32 + 1) % SHARD_COUNT as u32;
                self.counters.wal_writes += 1;
                self.counters.wal_bytes += write.len as u64;
                let op = self.ops.insert(PendingOp::WalWrite { position, write });
                let shard = self.shards[position].id();
                self.effects.io.push(Io::WalWrite {
                    op,
                    shard,
                    write,
                    slice,
                });
            }
            let log = self.shards[position].log();
            if !log.has_open() && log.next_queued().is_none() {
                self.durability.dirty &= !(1 << position);
            }
        }
    }

    /// Whether exactly one batch of this core is not durable: then RWF_DSYNC on it saves a barrier.
    fn is_lone_batch(&self) -> bool {
        if self.durability.undurable.count_ones() != 1 {
            return false;
        }
        let position = self.durability.undurable.trailing_zeros() as usize;
        let log = self.shards[position].log();
        log.last().0 == log.durable_through().0 + 1
    }

    fn close_if_due(&mut self, position: usize) {
        let durability = &self.durability;
        let log = self.shards[position].log_mut();
        if !log.has_open() {
            return;
        }
        let policy = &durability.policy;
        let age_ms = self.now_ms.saturating_sub(durability.opened_ms[position]);
        let idle = durability.writes_in_flight < policy.writes_in_flight_max;
        let due = log.last() <= durability.hurry[position]
            || log.open_bytes() >= policy.batch_bytes
            || (age_ms >= policy.write_delay_ms && idle)
            || age_ms >= policy.flush_interval_ms;
        if due {
            log.close();
            self.durability.opened_ms[position] = self.now_ms;
        }
    }

    /// Issues a barrier when batches that are waited for are written but not durable, or in the
    /// background.
    fn start_barrier(&mut self) {
        if !self.is_barrier_awaited() && !self.is_barrier_aged() && !self.is_much_undurable() {
            return;
        }
        let mut files = 0;
        let mut marks = Vec::new();
        for (position, shard) in self.shards.iter().enumerate() {
            let log = shard.log();
            // A flush that succeeds after one that failed proves nothing: failed logs stay out.
            if log.written_through() > log.durable_through() && log.failed().is_none() {
                files |= 1 << shard.id().index();
                marks.push((position, log.barrier_mark()));
            }
        }
        self.durability.barrier_in_flight = true;
        self.durability.gathering.end();
        self.durability.sync_now = false;
        self.counters.barriers += 1;
        debug_assert!(files != 0, "a barrier covers something");
        let op = self.ops.insert(PendingOp::Barrier(marks));
        self.effects.io.push(Io::Barrier { op, shards: files });
    }

    /// Whether somebody waits for nothing but a barrier, and those who shall share it do so, too.
    fn is_barrier_awaited(&mut self) -> bool {
        let (durability, shards) = (&mut self.durability, &self.shards);
        let is_written = |needs: &Needs| {
            needs
                .iter()
                .all(|(p, batch)| shards[p].log().written_through() >= batch)
        };
        let mut waiting = durability.waiters.iter().map(|waiter| &waiter.needs);
        let all = waiting.clone();
        waiting.any(is_written) && durability.gathering.is_complete(all, shards)
    }

    /// Whether something is written and was not durable for long enough.
    fn is_barrier_aged(&self) -> bool {
        let durability = &self.durability;
        self.shards.iter().enumerate().any(|(position, shard)| {
            let since_ms = durability.undurable_since_ms[position];
            let age_ms = self.now_ms.saturating_sub(since_ms);
            durability.undurable & 1 << position != 0
                && shard.log().written_through() > shard.log().durable_through()
                && (durability.sync_now || age_ms >= durability.policy.flush_interval_ms)
        })
    }

    /// Whether enough is written for a barrier that nobody waits for.
    fn is_much_undurable(&self) -> bool {
        let durability = &self.durability;
        let average_max = durability.policy.undurable_bytes;
        let reaches = |bytes: fn(&ShardLog) -> usize| {
            let (mut sum, mut one) = (0, false);
            for (position, shard) in self.shards.iter().enumerate() {
                let log = shard.log();
                // A log that failed stays undurable for good.
                if durability.undurable & 1 << position == 0
                    || log.written_through() <= log.durable_through()
                {
                    continue;
                }
                // Clients may wait for the memory.
                let waits = !self.parked[position].is_empty();
                let most = if waits {
                    average_max
                } else {
                    average_max / 2 * 3
                };
                one |= bytes(log) >= most;
                sum += bytes(log);
            }
            one || sum >= average_max * self.shards.len()
        };
        // The first sum costs little and is too small nearly always.
        reaches(ShardLog::undurable_bytes) && reaches(ShardLog::written_undurable_bytes)
    }

    /// A batch write ended.
    pub(super) fn wal_written(
        &mut self,
        position: usize,
        write: WalWrite,
        result: std::io::Result<()>,
    ) {
        self.durability.writes_in_flight -= 1;
        let code = result.map_err(|e| e.raw_os_error().unwrap_or(0));
        let log = self.shards[position].log_mut();
        log.write_finished(&write, code);
        self.after_progress(position);
    }

    /// A barrier ended.
    pub(super) fn barrier_done(&mut self, marks: &BarrierMarks, result: &std::io::Result<()>) {
        self.durability.barrier_in_flight = false;
        let code = match result {
            Ok(()) => Ok(()),
            Err(e) => Err(e.raw_os_error().unwrap_or(0)),
        };
        for (position, mark) in marks {
            self.shards[*position]
                .log_mut()
                .barrier_finished(*mark, code);
            self.after_progress(*position);
        }
    }

    fn after_progress(&mut self, position: usize) {
        let log = self.shards[position].log();
        let bit = 1 << position;
        if log.durable_through() >= log.last() || log.failed().is_some() {
            self.durability.undurable &= !bit;
        } else if log.durable_through() > self.durability.durable_seen[position] {
            // What is left is younger; without progress the age goes on.
            self.durability.undurable_since_ms[position] = self.now_ms;
        }
        self.durability.durable_seen[position] = log.durable_through();
        if log.has_open() || log.next_queued().is_some() {
            self.durability.dirty |= bit;
        }
        if !self.parked[position].is_empty() {
            self.retry |= bit;
        }
        self.answer_waiters();
    }

    fn answer_waiters(&mut self) {
        let mut index = 0;
        while index < self.durability.waiters.len() {
            let waiter = &self.durability.waiters[index];
            let failed = Durability::is_lost(&waiter.needs, &self.shards);
            let durable = self.durability.is_durable(&waiter.needs, &self.shards);
            if !durable && !failed {
                index += 1;
                continue;
            }
            let waiter = self
                .durability
                .waiters
                .remove(index)
                .expect("the index is in range");
            if !durable {
                self.requests
                    .get(waiter.request)
                    .failure
                    .get_or_insert(Failure::Io);
            }
            self.finish(waiter.request);
        }
    }
}

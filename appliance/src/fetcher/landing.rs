//! What becomes of bytes that arrive: every block is checked, those that are right are cached and
//! handed to whoever waits, those that are wrong are asked for once more, alone.

use std::time::Duration;

use bytes::Bytes;
use taipan_engine::cache::{Body, Flight, FlightId, SlotKey};
use taipan_engine::chunk::{SlotStamp, open_slot, slot_stride};
use taipan_engine::error::{Error, ErrorKind};
use taipan_engine::ring::AlignedBuf;

use super::cache_file::Write;
use super::queues::{Class, Source, Work};
use super::reads::{Landing, Reads};
use super::runs::runs;
use super::waiting::Waiter;

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A GET of a warm-up is given up after so many failures, about half an hour of outage.
const WARM_FAILURES_MAX: u32 = 900;

/// Waiters whose slot brought wrong bytes.
type Unlucky = Vec<(u32, Waiter)>;

impl Reads {
    pub(super) fn land(&mut self, landing: Landing) {
        match landing {
            Landing::Got(id, took, Ok(bytes)) => self.got(id, &bytes, took),
            Landing::Got(id, _, Err(error)) => self.failed(id, &error),
            Landing::FromFile(id, Ok(buffer)) => self.file_gave(id, &buffer),
            Landing::FromFile(id, Err(error)) => self.file_failed(id, &error),
            Landing::Head(volume, chunk, head) => self.head_landed(volume, chunk, head),
            Landing::Written(written) => {
                if self.file.as_mut().is_some_and(|file| file.written(written)) {
                    self.counters.file_failures.add(1);
                }
            }
        }
    }

    fn end(&mut self, id: FlightId) -> Option<Flight<Work, Waiter>> {
        let flight = self.flights.land(id)?;
        self.queues.ended(&flight.work);
        if flight.work.class == Class::Ahead {
            self.ahead_flying -= (flight.slots.len() * flight.work.block_size.bytes()) as u64;
        }
        Some(flight)
    }

    /// A GET brought bytes.
    fn got(&mut self, id: FlightId, bytes: &Bytes, took: Duration) {
        let Some(flight) = self.end(id) else {
            return;
        };
        let work = &flight.work;
        let stride = slot_stride(work.block_size);
        let slot_bytes = |index: usize| bytes.get(index * stride..(index + 1) * stride);
        let mut stamps: Vec<Option<SlotStamp>> = (0..flight.slots.len())
            .map(|index| Some(open_slot(slot_bytes(index)?, work.block_size).ok()?.1))
            .collect();
        self.counters.backend_blocks.add(stamps.len() as u64);
        self.counters.backend_bytes.add(bytes.len() as u64);
        if let (Some(stream), 0, Some(Some(first))) =
            (work.stream, flight.slots.start, stamps.first())
        {
            self.streams.landed(stream, &flight.chunk, first.number);
        }
        let block_of = |slot: u32| {
            let slot = slot_bytes((slot - flight.slots.start) as usize).unwrap_or_default();
            &slot[..work.block_size.bytes().min(slot.len())]
        };
        let mut awaited = vec![false; stamps.len()];
        let mut unlucky = Unlucky::new();
        for (slot, waiter) in &flight.waiters {
            let index = (slot - flight.slots.start) as usize;
            awaited[index] = true;
            if !self.serve_block(*waiter, stamps[index], block_of(*slot)) {
                stamps[index] = None;
                unlucky.push((*slot, *waiter));
            }
        }
        let wrong = stamps.iter().filter(|stamp| stamp.is_none()).count();
        self.counters.backend_mismatches.add(wrong as u64);
        if work.stream.is_some() {
            self.ram.insert_ahead(&Body {
                chunk: flight.chunk,
                first: flight.slots.start,
                block_size: work.block_size,
                bytes,
                stamps: &stamps,
                used: &awaited,
            });
        }
        self.keep(&flight, &stamps, &awaited, took, block_of);
        if let Some(volume) = work.warm {
            self.warmed(volume, (stamps.len() - wrong) as u64, wrong as u64);
        }
        if wrong > 0 {
            tracing::warn!(object = %flight.chunk, blocks = wrong, "the backend sent wrong bytes");
        }
        self.try_again(&flight, unlucky);
    }

    /// Gives a block to one who waits; false if these are not its bytes.
    fn serve_block(&mut self, waiter: Waiter, stamp: Option<SlotStamp>, block: &[u8]) -> bool {
        let Some(waiting) = self.waiting.get_mut(&waiter.read) else {
            // Its deadline has passed.
            return stamp.is_some();
        };
        let (_, number) = waiting.wanted(waiter.index as usize);
        if !stamp.is_some_and(|stamp| stamp.is_of(number)) {
            waiting.note_mismatch();
            return false;
        }
        waiting.fill(waiter.index as usize, block);
        self.answer_if_complete(waiter.read);
        true
    }

    fn answer_if_complete(&mut self, read: u64) {
        if self.waiting.get(&read).is_some_and(|w| w.is_complete())
            && let Some(waiting) = self.waiting.remove(&read)
        {
            waiting.answer();
        }
    }

    fn fail_waiter(&mut self, waiter: Waiter) {
        if let Some(waiting) = self.waiting.get_mut(&waiter.read) {
            waiting.fail();
            self.answer_if_complete(waiter.read);
        }
    }

    /// Caches the blocks that are right; what was read ahead is in memory already.
    fn keep<'a>(
        &mut self,
        flight: &Flight<Work, Waiter>,
        stamps: &[Option<SlotStamp>],
        awaited: &[bool],
        took: Duration,
        block_of: impl Fn(u32) -> &'a [u8],
    ) {
        let work = &flight.work;
        let key_of = |index: usize| SlotKey {
            chunk: flight.chunk,
            slot: flight.slots.start + index as u32,
        };
        let mut file = self.file.as_mut().filter(|file| file.is_on());
        if work.stream.is_some() {
            let bytes = (stamps.len() * work.block_size.bytes()) as u64;
            let worth = self.passing.is_worth_a_place(key_of(0), bytes, took);
            file = file.filter(|_| worth);
            if file.is_none() {
                return;
            }
        }
        let mut writes = Vec::new();
        for (index, stamp) in stamps.iter().enumerate() {
            let Some(stamp) = *stamp else { continue };
            let key = key_of(index);
            let block = block_of(key.slot);
            // A warm-up must not push out what is in use.
            let asked = work.warm.is_none() || awaited[index] || file.is_none();
            if work.stream.is_none() && asked {
                self.ram.insert(key, stamp, block);
            }
            let Some(file) = &mut file else { continue };
            if file.put(&key, work.block_size, stamp, block, &mut writes) {
                self.counters.file_writes.add(1);
            } else if !file.contains(&key) {
                self.counters.file_skipped.add(1);
            }
        }
        self.start_writes(writes);
    }

    /// Writes what is gathered for the cache file.
    pub(super) fn write_to_file(&mut self) {
        let mut writes = Vec::new();
        if let Some(file) = &mut self.file {
            file.flush(&mut writes);
        }
        self.start_writes(writes);
    }

    fn start_writes(&mut self, writes: Vec<Write>) {
        for write in writes {
            self.flying
                .push(Box::pin(async move { Landing::Written(write.run().await) }));
        }
    }

    /// Asks for slots with wrong bytes once more, then gives up on them.
    fn try_again(&mut self, flight: &Flight<Work, Waiter>, mut unlucky: Unlucky) {
        if unlucky.is_empty() {
            return;
        }
        if flight.work.again {
            let (object, slots) = (&flight.chunk, &flight.slots);
            tracing::error!(%object, ?slots, "read failed: the backend sent wrong bytes twice");
            return unlucky.into_iter().for_each(|(_, w)| self.fail_waiter(w));
        }
        unlucky.sort_by_key(|(slot, _)| *slot);
        let slots: Vec<u32> = unlucky.iter().map(|(slot, _)| *slot).collect();
        for slots in runs(&slots, 0, u32::MAX) {
            self.counters.refetches.add(1);
            let work = Work {
                class: Class::Foreground,
                source: Source::Backend,
                running: None,
                failures: 0,
                again: true,
                stream: None,
                warm: None,
                ..flight.work
            };
            self.start_get(slots, work);
        }
        for (slot, waiter) in unlucky {
            match self.flights.find(&flight.chunk, slot) {
                Some(id) => self.flights.wait(id, slot, waiter),
                None => self.fail_waiter(waiter),
            }
        }
    }

    /// A GET failed: it is repeated as long as somebody waits and there is hope.
    fn failed(&mut self, id: FlightId, error: &Error) {
        let Some(flight) = self.flights.get_mut(id) else {
            return;
        };
        let awaited = flight
            .waiters
            .iter()
            .any(|(_, waiter)| self.waiting.contains_key(&waiter.read));
        // A warm-up waits as well, but not for ever.
        let patient = flight.work.warm.is_some() && flight.work.failures < WARM_FAILURES_MAX;
        let hopeful = match error.kind() {
            ErrorKind::Transient | ErrorKind::Io => true,
            // The object is shorter than it must be: as wrong as wrong bytes.
            ErrorKind::Corrupt => !std::mem::replace(&mut flight.work.again, true),
            _ => false,
        };
        if error.kind() == ErrorKind::NotFound {
            self.counters.missing_objects.add(1);
        }
        if (awaited || patient) && hopeful {
            let doublings = flight.work.failures.min(10);
            flight.work.failures += 1;
            let backoff = (BACKOFF_FIRST * (1 << doublings)).min(BACKOFF_MAX);
            self.counters.retries.add(1);
            if doublings == 0 {
                tracing::warn!(%error, "a read of the backend is tried again");
            }
            return self.launch(id, backoff);
        }
        if awaited {
            tracing::error!(%error, "read failed");
        }
        if let Some(flight) = self.end(id) {
            if let Some(volume) = flight.work.warm {
                self.warmed(volume, 0, flight.slots.len() as u64);
            }
            for (_, waiter) in flight.waiters {
                if error.kind() == ErrorKind::NotFound
                    && let Some(waiting) = self.waiting.get(&waiter.read)
                {
                    self.tables.note_lacking(waiting.fetch.volume);
                }
                self.fail_waiter(waiter);
            }
        }
    }

    /// The cache file gave bytes: checked like any others.
    fn file_gave(&mut self, id: FlightId, buffer: &AlignedBuf) {
        let Some(flight) = self.end(id) else {
            return;
        };
        let Source::File(places) = &flight.work.source else {
            return;
        };
        let block_bytes = flight.work.block_size.bytes();
        let block_of = |index: usize| &buffer[index * block_bytes..(index + 1) * block_bytes];
        let mut stamps = Vec::with_capacity(places.len());
        for (index, at) in places.iter().enumerate() {
            let key = SlotKey {
                chunk: flight.chunk,
                slot: flight.slots.start + index as u32,
            };
            if at.stamp.fits(block_of(index)) {
                self.ram.insert(key, at.stamp, block_of(index));
                self.counters.file_blocks.add(1);
                self.counters.file_bytes.add(block_bytes as u64);
                stamps.push(Some(at.stamp));
                continue;
            }
            stamps.push(None);
            let file = self.file.as_mut();
            // Else its place was taken by another block meanwhile.
            if file.is_some_and(|file| file.map.remove(&key, at)) {
                self.counters.file_mismatches.add(1);
                tracing::warn!(object = %key.chunk, slot = key.slot, "the chunk cache has rotted");
            }
        }
        let mut missing = Unlucky::new();
        for (slot, waiter) in &flight.waiters {
            let index = (slot - flight.slots.start) as usize;
            match stamps[index] {
                Some(stamp) if self.serve_block(*waiter, Some(stamp), block_of(index)) => {}
                _ => missing.push((*slot, *waiter)),
            }
        }
        self.start_missing(flight.work.block_size, flight.work.chunk, sorted(missing));
    }

    /// The cache file cannot be read: the backend has everything.
    fn file_failed(&mut self, id: FlightId, error: &std::io::Error) {
        let Some(flight) = self.end(id) else {
            return;
        };
        if self.file.as_mut().is_some_and(|f| f.fail("read", error)) {
            self.counters.file_failures.add(1);
        }
        let (block_size, chunk) = (flight.work.block_size, flight.work.chunk);
        self.start_missing(block_size, chunk, sorted(flight.waiters));
    }
}

fn sorted(mut waiters: Unlucky) -> Unlucky {
    waiters.sort_by_key(|(slot, _)| *slot);
    waiters
}

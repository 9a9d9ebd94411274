//! Which GETs may run: reads that somebody waits for first, then read-ahead, then warm-up, each
//! with a bound of its own, so that a backlog of one never holds up the one before it.

use std::collections::VecDeque;

use taipan_engine::block::BlockSize;
use taipan_engine::cache::{FlightId, Flights, OnDisk, StreamId};
use taipan_engine::chunk::ChunkRef;
use taipan_engine::identity::VolumeId;

use super::waiting::Waiter;

/// Why a GET is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// A client waits.
    Foreground,
    /// A client is expected to ask.
    Ahead,
    /// An operator wants it cached.
    Warm,
}

/// GETs under way at once, by class.
const RUNNING_MAX: [usize; 3] = [64, 8, 4];

/// Where a read gets its blocks.
#[derive(Debug)]
pub(super) enum Source {
    /// A ranged GET.
    Backend,
    /// The cache file; the place of each slot.
    File(Vec<OnDisk>),
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) chunk: ChunkRef,
    pub(super) block_size: BlockSize,
    pub(super) class: Class,
    pub(super) source: Source,
    /// The class in which it counts while it runs.
    pub(super) running: Option<Class>,
    /// Attempts that failed.
    pub(super) failures: u32,
    /// Wrong bytes were seen: the next ones are the last chance.
    pub(super) again: bool,
    /// The reader for whom it was read ahead.
    pub(super) stream: Option<StreamId>,
    /// The volume whose warm-up wants it.
    pub(super) warm: Option<VolumeId>,
}

/// All reads under way.
pub(super) type AllFlights = Flights<Work, Waiter>;

/// The queues.
#[derive(Debug, Default)]
pub(super) struct Queues {
    queued: [VecDeque<FlightId>; 3],
    running: [usize; 3],
}

impl Queues {
    /// Queues a read in its class. One that was in another class before is not taken from there.
    pub(super) fn push(&mut self, class: Class, id: FlightId) {
        self.queued[class as usize].push_back(id);
    }

    /// The next read that may run now; it counts as running from here on.
    pub(super) fn next(&mut self, flights: &mut AllFlights) -> Option<FlightId> {
        for class in [Class::Foreground, Class::Ahead, Class::Warm] {
            let index = class as usize;
            while self.running[index] < RUNNING_MAX[index] {
                let Some(id) = self.queued[index].pop_front() else {
                    break;
                };
                let Some(flight) = flights.get_mut(id) else {
                    continue;
                };
                // It may have moved up since.
                if flight.work.class != class || flight.work.running.is_some() {
                    continue;
                }
                flight.work.running = Some(class);
                self.running[index] += 1;
                return Some(id);
            }
            if !self.queued[index].is_empty() {
                return None;
            }
        }
        None
    }

    /// A read ended.
    pub(super) fn ended(&mut self, work: &Work) {
        if let Some(class) = work.running {
            self.running[class as usize] -= 1;
        }
    }
}

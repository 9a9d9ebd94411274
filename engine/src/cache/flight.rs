//! Reads under way by the slots that they bring, so that whoever wants one of these slots waits for
//! that read instead of starting another one.

use std::ops::Range;

use hashbrown::HashMap;

use crate::object::ChunkKey;

/// Name of a read under way; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlightId(u64);

/// A read under way.
#[derive(Debug)]
pub struct Flight<F, W> {
    /// The object.
    pub chunk: ChunkKey,
    /// Slots that it brings.
    pub slots: Range<u32>,
    /// What the driver keeps of it.
    pub work: F,
    /// Who waits for which slot.
    pub waiters: Vec<(u32, W)>,
}

/// All reads under way. `F` is what the driver keeps of a read, `W` names who waits.
#[derive(Debug)]
pub struct Flights<F, W> {
    flights: HashMap<FlightId, Flight<F, W>>,
    by_chunk: HashMap<ChunkKey, Vec<(Range<u32>, FlightId)>>,
    next: u64,
}

impl<F, W> Default for Flights<F, W> {
    fn default() -> Self {
        Self {
            flights: HashMap::new(),
            by_chunk: HashMap::new(),
            next: 0,
        }
    }
}

impl<F, W> Flights<F, W> {
    /// Enters a read of `slots`; reads of the same slots found it from now on.
    pub fn start(&mut self, chunk: ChunkKey, slots: Range<u32>, work: F) -> FlightId {
        let id = FlightId(self.next);
        self.next += 1;
        self.by_chunk
            .entry(chunk)
            .or_default()
            .push((slots.clone(), id));
        let flight = Flight {
            chunk,
            slots,
            work,
            waiters: Vec::new(),
        };
        self.flights.insert(id, flight);
        id
    }

    /// The read that brings this slot, if there is one.
    pub fn find(&self, chunk: &ChunkKey, slot: u32) -> Option<FlightId> {
        let of_chunk = self.by_chunk.get(chunk)?;
        let found = of_chunk.iter().find(|(slots, _)| slots.contains(&slot));
        found.map(|(_, id)| *id)
    }

    /// Waits for a slot of a read under way.
    ///
    /// # Panics
    /// If there is no such read or it does not bring the slot.
    pub fn wait(&mut self, id: FlightId, slot: u32, waiter: W) {
        let flight = self.flights.get_mut(&id).expect("the read is under way");
        assert!(flight.slots.contains(&slot), "the read brings the slot");
        flight.waiters.push((slot, waiter));
    }

    /// A read under way.
    pub fn get(&self, id: FlightId) -> Option<&Flight<F, W>> {
        self.flights.get(&id)
    }

    /// A read under way; its slots must stay as they are.
    pub fn get_mut(&mut self, id: FlightId) -> Option<&mut Flight<F, W>> {
        self.flights.get_mut(&id)
    }

    /// Ends a read: whoever waited for it is the caller's to answer.
    pub fn land(&mut self, id: FlightId) -> Option<Flight<F, W>> {
        let flight = self.flights.remove(&id)?;
        if let Some(of_chunk) = self.by_chunk.get_mut(&flight.chunk) {
            of_chunk.retain(|(_, other)| *other != id);
            if of_chunk.is_empty() {
                self.by_chunk.remove(&flight.chunk);
            }
        }
        Some(flight)
    }

    /// Reads under way.
    pub fn len(&self) -> usize {
        self.flights.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }
}

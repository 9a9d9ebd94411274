//! Requests inside a core: who asked, what is outstanding, how it ended.

use std::collections::VecDeque;

use super::map::PendingMap;
use crate::block::{SHARD_COUNT, Span};
use crate::extents::Extent;
use crate::identity::BatchNum;
use crate::shard::VolumeSlot;

/// A client's name for one of its requests; opaque to the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Who waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A connection of this core.
    Client(Ticket),
    /// Another data core: its index, and its name for the part.
    Peer(usize, RequestKey),
}

/// Name of an unfinished request within its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey(pub u32);

/// How a call into the core ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Finished at once.
    Done,
    /// Refused at once.
    Failed(Failure),
    /// A [`Done`] follows.
    Pending(RequestKey),
}

/// Why a request failed; mapped to an errno by the front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The device or backend failed, or no good copy of a block is left.
    Io,
    /// No room and nobody making any.
    NoSpace,
    /// The volume may only be read.
    ReadOnly,
    /// The volume is not served any more.
    Gone,
}

/// A finished request.
#[derive(Debug)]
pub struct Done {
    /// The client's name for it.
    pub ticket: Ticket,
    /// The core's name for it, free for reuse from now on.
    pub key: RequestKey,
    /// How it ended.
    pub result: Result<(), Failure>,
    /// The bytes of a read; empty otherwise.
    pub data: Vec<u8>,
    /// The extents of a map; empty otherwise.
    pub extents: Vec<Extent>,
}

/// Batches, one a shard, that must be durable before an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    batches: [BatchNum; SHARD_COUNT],
}

impl Needs {
    /// Adds a batch of the shard at `position` among the core's own shards.
    pub fn raise(&mut self, position: usize, batch: BatchNum) {
        let slot = &mut self.batches[position];
        *slot = (*slot).max(batch);
    }

    /// Whether nothing is needed.
    pub fn is_empty(&self) -> bool {
        self.batches.iter().all(|batch| batch.0 == 0)
    }

    /// The needed (position, batch) pairs.
    pub fn iter(&self) -> impl Iterator<Item = (usize, BatchNum)> + '_ {
        self.batches
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, batch)| batch.0 != 0)
    }
}

/// An unfinished request. Panics when dropped unanswered, so that no reply can be lost.
pub(super) struct Request {
    pub(super) origin: Origin,
    /// Parts not yet done: parked writes, reads in flight, other cores.
    pub(super) parts: u32,
    pub(super) failure: Option<Failure>,
    /// The result of a read, filled part by part.
    pub(super) data: Vec<u8>,
    /// What a read covers.
    pub(super) span: Option<Span>,
    /// What is known of a map.
    pub(super) map: Option<Box<PendingMap>>,
    /// What must be durable before the answer (FUA, FLUSH, `ack = durable`).
    pub(super) durable: bool,
    pub(super) needs: Needs,
    /// The volume, if the bucket must hold everything before the answer.
    pub(super) remote: Option<VolumeSlot>,
    /// The volume that a FLUSH is of.
    pub(super) flush_of: Option<VolumeSlot>,
    /// The client is gone: what is not appended yet must never be.
    pub(super) cancelled: bool,
    answered: bool,
}

impl Request {
    pub(super) fn new(origin: Origin, durable: bool) -> Self {
        Self {
            origin,
            parts: 0,
            failure: None,
            data: Vec::new(),
            span: None,
            map: None,
            durable,
            needs: Needs::default(),
            remote: None,
            flush_of: None,
            cancelled: false,
            answered: false,
        }
    }

    /// Takes the outcome; the request may be dropped now.
    pub(super) fn answer(mut self) -> (Origin, Result<(), Failure>, Vec<u8>, Vec<Extent>) {
        self.answered = true;
        let result = self.failure.map_or(Ok(()), Err);
        let map = self.map.take().filter(|_| result.is_ok());
        let extents = map.map_or_else(Vec::new, |map| map.extents());
        (self.origin, result, std::mem::take(&mut self.data), extents)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered && !std::thread::panicking() {
            panic!("a request must be answered before it is dropped");
        }
    }
}

/// Bits of a key that name the slot; the others count how often the slot was used, so that the key
/// of a finished request whose end the client has not heard of yet names nothing.
const SLOT_BITS: u32 = 20;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// Unfinished requests by key, with a free list.
#[derive(Default)]
pub(super) struct Requests {
    slots: Vec<Slot>,
    free: VecDeque<u32>,
}

struct Slot {
    key: RequestKey,
    request: Option<Request>,
}

impl Requests {
    pub(super) fn insert(&mut self, request: Request) -> RequestKey {
        if let Some(index) = self.free.pop_front() {
            let slot = &mut self.slots[index as usize];
            slot.request = Some(request);
            return slot.key;
        }
        let index = self.slots.len() as u32;
        assert!(
            index <= SLOT_MASK,
            "connections bound the requests of a core"
        );
        let key = RequestKey(index);
        self.slots.push(Slot {
            key,
            request: Some(request),
        });
        key
    }

    /// The request, unless it has finished.
    pub(super) fn live(&mut self, key: RequestKey) -> Option<&mut Request> {
        let slot = &mut self.slots[(key.0 & SLOT_MASK) as usize];
        (slot.key == key).then_some(slot.request.as_mut()).flatten()
    }

    pub(super) fn get(&mut self, key: RequestKey) -> &mut Request {
        self.live(key).expect("a part names a live request")
    }

    pub(super) fn remove(&mut self, key: RequestKey) -> Request {
        let slot = &mut self.slots[(key.0 & SLOT_MASK) as usize];
        assert_eq!(slot.key, key, "a request finishes once");
        self.free.push_back(key.0 & SLOT_MASK);
        slot.key = RequestKey(key.0.wrapping_add(1 << SLOT_BITS));
        slot.request.take().expect("a request finishes once")
    }

    pub(super) fn find(&self, origin: Origin) -> Option<RequestKey> {
        let same = |slot: &&Slot| slot.request.as_ref().is_some_and(|r| r.origin == origin);
        self.slots.iter().find(same).map(|slot| slot.key)
    }

    pub(super) fn is_cancelled(&self, key: RequestKey) -> bool {
        let slot = &self.slots[(key.0 & SLOT_MASK) as usize];
        slot.key != key
            || slot
                .request
                .as_ref()
                .is_none_or(|request| request.cancelled)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Ends all requests without telling anybody; for the end of the process or of a simulation.
    pub(super) fn abandon(&mut self) {
        for request in self.slots.drain(..).filter_map(|slot| slot.request) {
            drop(request.answer());
        }
        self.free.clear();
    }
}

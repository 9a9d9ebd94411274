//! What was read ahead, as it came: whole bodies of slots, of which blocks are handed out. A reader
//! in order uses each block once, so a copy and an entry of its own for every block would cost more
//! than the reading.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use hashbrown::HashMap;

use super::{Holdings, SlotKey};
use crate::block::BlockSize;
use crate::chunk::{SlotStamp, slot_stride};
use crate::object::ChunkKey;

/// A shorter body is copied: it may be a small part of a large buffer, which it would keep.
const COPIED_BYTES_MAX: usize = 256 << 10;
/// What a body costs beside its bytes, and each slot of it.
const BODY_BYTES: u64 = 512;
const SLOT_BYTES: u64 = size_of::<Slot>() as u64;

/// Slots that were read ahead together.
#[derive(Clone, Debug)]
pub struct Body<'a> {
    /// The object.
    pub chunk: ChunkKey,
    /// Its first slot here.
    pub first: u32,
    /// Block size of the volume.
    pub block_size: BlockSize,
    /// The slots one after the other, each a block and its trailer.
    pub bytes: &'a Bytes,
    /// What each slot says about its block; `None`: these are not the block's bytes.
    pub stamps: &'a [Option<SlotStamp>],
    /// Which of them somebody waited for and has.
    pub used: &'a [bool],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Nothing that may be given out.
    Gone,
    /// Not used yet.
    Fresh,
    /// Used once, as it was read for.
    Once,
    /// Used again.
    Again,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    stamp: SlotStamp,
    state: Use,
}

#[derive(Debug)]
struct Held {
    chunk: ChunkKey,
    first: u32,
    block_bytes: usize,
    stride: usize,
    bytes: Bytes,
    slots: Vec<Slot>,
    /// Slots that were not used yet.
    fresh: u64,
    /// Slots that may be given out.
    there: u64,
}

impl Held {
    fn cost(&self) -> u64 {
        cost(self.bytes.len(), self.slots.len())
    }

    fn fresh_bytes(&self) -> u64 {
        self.fresh * self.block_bytes as u64
    }

    fn block(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.stride..][..self.block_bytes]
    }

    fn range(&self) -> Range<u32> {
        self.first..self.first + self.slots.len() as u32
    }

    /// Slots that may be given out.
    fn there_now(&self) -> impl Iterator<Item = u32> {
        let slots = self.range().zip(&self.slots);
        slots.filter_map(|(slot, of)| (of.state != Use::Gone).then_some(slot))
    }
}

fn cost(bytes: usize, slots: usize) -> u64 {
    bytes as u64 + slots as u64 * SLOT_BYTES + BODY_BYTES
}

/// What left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Blocks that were used more than the once for which they were read.
    pub(super) kept: Vec<(SlotKey, SlotStamp, Box<[u8]>)>,
    /// Blocks that were not used.
    pub(super) unused: u64,
    /// Blocks that are not kept.
    pub(super) gone: u64,
}

/// Bodies, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Scan {
    bodies: VecDeque<Held>,
    /// Number of the oldest body.
    oldest: u64,
    /// Numbers of the bodies of each object.
    by_chunk: HashMap<ChunkKey, Vec<u64>>,
    bytes: u64,
    fresh_bytes: u64,
    blocks: u64,
    used: u64,
    holdings: Holdings,
}

impl Scan {
    /// Nothing yet; what comes and leaves is told to `holdings`.
    pub(super) fn new(holdings: Holdings) -> Self {
        Self {
            holdings,
            ..Self::default()
        }
    }

    /// Bytes that are held, overhead included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of blocks that were not used yet.
    pub(super) fn fresh_bytes(&self) -> u64 {
        self.fresh_bytes
    }

    /// Blocks that were used, since the start.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Slots whose block may be given out.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn cost_of(body: &Body<'_>) -> u64 {
        cost(body.bytes.len(), body.stamps.len())
    }

    /// Keeps a body; slots for which `is_elsewhere` holds are not given out from here.
    pub(super) fn push(&mut self, body: &Body<'_>, is_elsewhere: impl Fn(&SlotKey) -> bool) {
        let stride = slot_stride(body.block_size);
        let whole = body.bytes.len() / stride;
        let slots = body.stamps.iter().zip(body.used).take(whole).enumerate();
        let slots = slots.map(|(index, (stamp, used))| {
            let key = SlotKey {
                chunk: body.chunk,
                slot: body.first + index as u32,
            };
            let state = match (stamp, used) {
                _ if is_elsewhere(&key) => Use::Gone,
                (None, _) => Use::Gone,
                (Some(_), true) => Use::Once,
                (Some(_), false) => Use::Fresh,
            };
            let stamp = stamp.unwrap_or(SlotStamp { crc: 0, number: 0 });
            Slot { stamp, state }
        });
        let slots: Vec<Slot> = slots.collect();
        let count = |state| slots.iter().filter(|slot| slot.state == state).count() as u64;
        let (fresh, once) = (count(Use::Fresh), count(Use::Once));
        let held = Held {
            chunk: body.chunk,
            first: body.first,
            block_bytes: body.block_size.bytes(),
            stride,
            bytes: match body.bytes.len() < COPIED_BYTES_MAX {
                true => Bytes::copy_from_slice(body.bytes),
                false => body.bytes.clone(),
            },
            slots,
            fresh,
            there: fresh + once,
        };
        self.holdings.add(&held.chunk, held.there_now());
        let number = self.oldest + self.bodies.len() as u64;
        self.by_chunk.entry(body.chunk).or_default().push(number);
        self.used += once;
        self.blocks += held.there;
        self.bytes += held.cost();
        self.fresh_bytes += held.fresh_bytes();
        self.bodies.push_back(held);
    }

    fn place(&self, key: &SlotKey) -> Option<(usize, usize)> {
        let numbers = self.by_chunk.get(&key.chunk)?;
        let places = numbers.iter().filter_map(|number| {
            let at = (number - self.oldest) as usize;
            let held = &self.bodies[at];
            let here = held.range().contains(&key.slot);
            here.then(|| (at, (key.slot - held.first) as usize))
        });
        let mut there =
            places.filter(|&(at, index)| self.bodies[at].slots[index].state != Use::Gone);
        there.next()
    }

    pub(super) fn contains(&self, key: &SlotKey) -> bool {
        self.place(key).is_some()
    }

    /// The block of a slot, which is used by this.
    pub(super) fn get(&mut self, key: &SlotKey) -> Option<(&[u8], SlotStamp)> {
        let (at, index) = self.place(key)?;
        let held = &mut self.bodies[at];
        let slot = &mut held.slots[index];
        match slot.state {
            Use::Fresh => {
                slot.state = Use::Once;
                held.fresh -= 1;
                self.fresh_bytes -= held.block_bytes as u64;
                self.used += 1;
            }
            _ => slot.state = Use::Again,
        }
        let stamp = slot.stamp;
        Some((self.bodies[at].block(index), stamp))
    }

    /// Does not give a slot out any more.
    pub(super) fn forget(&mut self, key: &SlotKey) {
        while let Some((at, index)) = self.place(key) {
            let held = &mut self.bodies[at];
            if held.slots[index].state == Use::Fresh {
                held.fresh -= 1;
                self.fresh_bytes -= held.block_bytes as u64;
            }
            held.slots[index].state = Use::Gone;
            held.there -= 1;
            self.blocks -= 1;
            self.holdings.remove(&key.chunk, [key.slot]);
        }
    }

    /// The oldest body leaves; `None` if there is none.
    pub(super) fn pop(&mut self) -> Option<Left> {
        let held = self.bodies.pop_front()?;
        let number = self.oldest;
        self.oldest += 1;
        if let Some(numbers) = self.by_chunk.get_mut(&held.chunk) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_chunk.remove(&held.chunk);
            }
        }
        self.bytes -= held.cost();
        self.fresh_bytes -= held.fresh_bytes();
        self.blocks -= held.there;
        // Another body may have some of the slots as well.
        let is_shared = self.by_chunk.contains_key(&held.chunk);
        let chunk = held.chunk;
        let gone = held
            .there_now()
            .filter(|slot| !(is_shared && self.contains(&SlotKey { chunk, slot: *slot })));
        self.holdings.remove(&chunk, gone);
        let mut left = Left::default();
        for (index, slot) in held.slots.iter().enumerate() {
            let key = SlotKey {
                chunk: held.chunk,
                slot: held.first + index as u32,
            };
            match slot.state {
                Use::Again => left.kept.push((key, slot.stamp, held.block(index).into())),
                Use::Once => left.gone += 1,
                Use::Fresh => {
                    left.gone += 1;
                    left.unused += 1;
                }
                Use::Gone => {}
            }
        }
        Some(left)
    }
}

//! Reads of blocks in chunk files of this machine, on the core's own ring: they change threads
//! nowhere. Reads in order, long ones and whatever is unusual are left to the fetcher, which reads
//! ahead, tries again and reports.

use taipan_engine::chunk::{ChunkRef, slot_stride, verify_slot};
use taipan_engine::core::{Core, Fetch};
use taipan_engine::failpoint;
use taipan_engine::object::ChunkKey;
use taipan_engine::ring::{AlignedBuf, Completed, Ring};

use super::token;
use crate::fetcher::Fetcher;
use crate::inbox::CoreAddress;

/// Longest read.
const BYTES_MAX: usize = 64 << 10;
/// Places in chunks that are remembered, to know who reads in order.
const PLACES: usize = 16;
/// A read that begins so many slots behind another one goes on in order: other cores have what is
/// between them.
const IN_ORDER_SLOTS: u32 = 32;

/// Where a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    chunk: ChunkKey,
    end: u32,
}

/// The last places that were read, the latest one at the end.
#[derive(Debug, Default)]
struct Places([Option<Place>; PLACES]);

impl Places {
    /// Notes a read; whether it goes on where another one ended.
    fn note(&mut self, chunk: ChunkKey, first: u32, slots: u32) -> bool {
        let goes_on = |place: &Option<Place>| {
            place.is_some_and(|place| {
                place.chunk == chunk && (place.end..place.end + IN_ORDER_SLOTS).contains(&first)
            })
        };
        let known = self.0.iter().position(goes_on);
        let end = first + slots;
        self.0[known.unwrap_or(0)..].rotate_left(1);
        self.0[PLACES - 1] = Some(Place { chunk, end });
        known.is_some()
    }
}

/// A read under way.
#[derive(Debug)]
struct Reading {
    fetch: Fetch,
    chunk: ChunkRef,
    bytes: usize,
}

/// Reads under way, by the number in their token.
pub(super) struct Nearby {
    fetcher: Fetcher,
    own: CoreAddress,
    reading: Vec<Option<Reading>>,
    free: Vec<usize>,
    places: Places,
    gathered: Vec<u8>,
}

impl Nearby {
    pub(super) fn new(fetcher: Fetcher, own: CoreAddress) -> Self {
        Self {
            fetcher,
            own,
            reading: Vec::new(),
            free: Vec::new(),
            places: Places::default(),
            gathered: Vec::new(),
        }
    }

    /// Starts a read of committed blocks, here or at the fetcher.
    pub(super) fn fetch(&mut self, fetch: Fetch, ring: &mut Ring, spare: &mut Vec<AlignedBuf>) {
        let chunk = self.fetcher.chunk_of(&fetch);
        if let Some(chunk) = chunk.filter(|chunk| self.suits(&fetch, chunk))
            && let Some(object) = self.fetcher.local_file(&chunk.key)
        {
            let range = chunk.slot_range(fetch.block_size, fetch.first_slot, fetch.slots);
            if range.end <= object.bytes && failpoint::hit("chunk.get").is_ok() {
                let bytes = (range.end - range.start) as usize;
                let buffer = match spare.pop() {
                    Some(buffer) if buffer.len() >= bytes => buffer,
                    _ => AlignedBuf::zeroed(bytes),
                };
                let reading = Reading {
                    fetch,
                    chunk,
                    bytes,
                };
                let token = token::NEARBY | self.enter(reading) as u64;
                return ring.read_from(object.file, buffer, bytes, range.start, token);
            }
        }
        self.fetcher.submit(fetch, chunk, self.own.clone());
    }

    /// Whether reads are under way.
    pub(super) fn is_reading(&self) -> bool {
        self.free.len() < self.reading.len()
    }

    /// Whether a read is short, of this chunk, and not one of many in order.
    fn suits(&mut self, fetch: &Fetch, chunk: &ChunkRef) -> bool {
        let in_order = self.places.note(chunk.key, fetch.first_slot, fetch.slots);
        let is_short = fetch.slots as usize * slot_stride(fetch.block_size) <= BYTES_MAX;
        is_short && !in_order && fetch.first_slot + fetch.slots <= chunk.slots
    }

    fn enter(&mut self, reading: Reading) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.reading.push(None);
            self.reading.len() - 1
        });
        self.reading[index] = Some(reading);
        index
    }

    /// A read ended: gives the core its blocks if they are right, or has the fetcher read the same
    /// slots. Returns how many blocks the core was given.
    pub(super) fn ended(&mut self, index: usize, completed: &Completed, core: &mut Core) -> u64 {
        let reading = self.reading[index].take();
        let reading = reading.expect("a read ends once");
        self.free.push(index);
        let Reading {
            fetch,
            chunk,
            bytes,
        } = reading;
        let read = completed.buffer.as_deref().map_or(&[][..], |b| &b[..bytes]);
        if completed.transferred(bytes).is_ok()
            && let Some(blocks) = gather(&fetch, read, &mut self.gathered)
        {
            core.fetched(fetch.op, Ok(blocks));
            return fetch.wanted.len() as u64;
        }
        self.fetcher.submit(fetch, Some(chunk), self.own.clone());
        0
    }
}

/// The wanted blocks one after the other, or `None` if one of them is not what it should be.
fn gather<'a>(fetch: &Fetch, read: &'a [u8], out: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let stride = slot_stride(fetch.block_size);
    let slot = |slot: u32| read.get(slot as usize * stride..(slot as usize + 1) * stride);
    if let [(only, block)] = fetch.wanted[..] {
        return verify_slot(slot(only)?, fetch.block_size, block).ok();
    }
    out.clear();
    for &(at, block) in &fetch.wanted {
        out.extend_from_slice(verify_slot(slot(at)?, fetch.block_size, block).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use taipan_engine::block::{BlockNum, BlockSize};
    use taipan_engine::checksum::crc32c;
    use taipan_engine::core::OpKey;
    use taipan_engine::identity::{Generation, VolumeId};
    use taipan_engine::index::ChunkOrdinal;

    use super::*;

    fn chunk(sequence: u64) -> ChunkKey {
        ChunkKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: 3,
        }
    }

    #[test]
    fn who_reads_in_order_is_known_among_others() {
        let mut places = Places::default();
        for round in 0..100 {
            let others = (0..6).any(|other| places.note(chunk(100 + other), round * 77 % 997, 1));
            assert!(!others, "{round}");
            assert_eq!(places.note(chunk(1), round * 2, 1), round > 0);
        }
        assert!(!places.note(chunk(1), 198 + 1 + IN_ORDER_SLOTS, 1));
        assert!(!places.note(chunk(2), 200, 1));
    }

    fn slot_of(block: u64, fill: u8) -> Vec<u8> {
        let mut slot = vec![fill; 4096];
        let crc = crc32c(&slot);
        slot.extend_from_slice(&crc.to_le_bytes());
        slot.extend_from_slice(&(block as u32).to_le_bytes());
        slot
    }

    fn fetch(wanted: &[(u32, u64)]) -> Fetch {
        Fetch {
            op: OpKey(0),
            volume: VolumeId(1),
            block_size: BlockSize::MIN,
            chunk: ChunkOrdinal(0),
            first_slot: 0,
            slots: 3,
            wanted: wanted
                .iter()
                .map(|&(slot, block)| (slot, BlockNum(block)))
                .collect(),
        }
    }

    #[test]
    fn only_blocks_that_are_right_are_given() {
        let mut out = Vec::new();
        let mut read: Vec<u8> = [(7, 1), (9, 2), (4, 3)]
            .iter()
            .flat_map(|&(block, fill)| slot_of(block, fill))
            .collect();
        let one = fetch(&[(1, 9)]);
        assert_eq!(gather(&one, &read, &mut out), Some(&[2; 4096][..]));
        let two = fetch(&[(0, 7), (2, 4)]);
        let both = gather(&two, &read, &mut out).unwrap();
        assert_eq!((both.len(), both[0], both[8191]), (8192, 1, 3));
        // Another block's slot, a short read, and one flipped bit.
        assert_eq!(gather(&fetch(&[(1, 8)]), &read, &mut out), None);
        assert_eq!(gather(&two, &read[..9000], &mut out), None);
        read[4104 * 2 + 100] ^= 1;
        assert_eq!(gather(&two, &read, &mut out), None);
        assert!(gather(&one, &read, &mut out).is_some());
    }
}

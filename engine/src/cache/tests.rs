//! The caches against models, and what read-ahead may waste.

use std::collections::HashMap;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::block::BlockSize;
use crate::chunk::{ChunkRef, SlotStamp, slot_stride};
use crate::identity::{Generation, VolumeId};

fn key(sequence: u64) -> ChunkKey {
    ChunkKey {
        volume: VolumeId(7),
        generation: Generation(1),
        sequence,
        random: 0,
    }
}

fn slot_key(chunk: u64, slot: u32) -> SlotKey {
    SlotKey {
        chunk: key(chunk),
        slot,
    }
}

fn stamp(number: u32) -> SlotStamp {
    SlotStamp { crc: 0, number }
}

/// Reads slots ahead whose blocks are full of `fill`.
fn put_ahead(cache: &mut RamCache, chunk: u64, slots: Range<u32>, fill: u8, used: bool) {
    let body = Body {
        chunk: key(chunk),
        first: slots.start,
        block_size: four_kib(),
        bytes: &vec![fill; slots.len() * slot_stride(four_kib())].into(),
        stamps: &vec![Some(stamp(u32::from(fill))); slots.len()],
        used: &vec![used; slots.len()],
    };
    cache.insert_ahead(&body);
}

fn four_kib() -> BlockSize {
    BlockSize::new(4096).unwrap()
}

/// Slots that are held, which other threads must see as the cache does.
fn agrees(
    holdings: &Holdings,
    contains: impl Fn(&SlotKey) -> bool,
    chunks: Range<u64>,
    slots: Range<u32>,
) -> u64 {
    let now = holdings.look();
    let mut count = 0;
    for chunk in chunks {
        let held = now.of(&key(chunk));
        for slot in slots.clone() {
            let is_held = held.is_some_and(|held| held.contains(slot));
            assert_eq!(is_held, contains(&slot_key(chunk, slot)), "{chunk} {slot}");
            count += u64::from(is_held);
        }
    }
    count
}

#[derive(Clone, Debug)]
enum Step {
    Get(u64, u32),
    Insert(u64, u32, u8, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..6u64, 0..12u32).prop_map(|(chunk, slot)| Step::Get(chunk, slot)),
        (0..6u64, 0..12u32, any::<u8>(), any::<bool>())
            .prop_map(|(chunk, slot, fill, ahead)| Step::Insert(chunk, slot, fill, ahead)),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #[test]
    fn memory_returns_what_was_put_last_and_stays_within_its_bound(steps in steps()) {
        const CAPACITY: u64 = 150_000;
        let mut cache = RamCache::new(CAPACITY);
        let holdings = cache.holdings();
        // What is read ahead replaces nothing: any of it may be there until somebody asks.
        let mut model: HashMap<SlotKey, Vec<u8>> = HashMap::new();
        for step in steps {
            match step {
                Step::Get(chunk, slot) => {
                    let key = slot_key(chunk, slot);
                    if let Some(hit) = cache.get(&key) {
                        prop_assert!(model[&key].contains(&hit.block[0]));
                        prop_assert!(hit.block.iter().all(|byte| *byte == hit.block[0]));
                        prop_assert_eq!(hit.stamp, stamp(u32::from(hit.block[0])));
                    }
                }
                Step::Insert(chunk, slot, fill, ahead) => {
                    let key = slot_key(chunk, slot);
                    if ahead {
                        // Bodies may overlap.
                        let slots = slot..slot + 1 + u32::from(fill % 4);
                        put_ahead(&mut cache, chunk, slots.clone(), fill, false);
                        for slot in slots {
                            model.entry(slot_key(chunk, slot)).or_default().push(fill);
                        }
                    } else {
                        cache.insert(key, stamp(u32::from(fill)), &[fill; 4096]);
                        model.insert(key, vec![fill]);
                    }
                    prop_assert!(cache.contains(&key), "what was just put is there");
                }
            }
            let held = agrees(&holdings, |key| cache.contains(key), 0..6, 0..16);
            prop_assert!(held <= cache.counts().blocks);
            let counts = cache.counts();
            prop_assert!(counts.bytes <= CAPACITY && counts.ahead_bytes <= counts.bytes);
        }
    }

    #[test]
    fn a_block_found_in_the_file_is_the_one_that_was_written_there(
        writes in prop::collection::vec((0..40u64, 0..300u32, any::<bool>()), 1..900)
    ) {
        let sizes = [4096, 16384, 65536].map(|bytes| BlockSize::new(bytes).unwrap());
        let mut map = DiskMap::new(3 << 20);
        let holdings = map.holdings();
        let mut pages: HashMap<u64, SlotKey> = HashMap::new();
        let mut late = Vec::new();
        for (chunk, slot, at_once) in writes {
            // A chunk has one block size.
            let size = sizes[chunk as usize % 3];
            let key = slot_key(chunk, slot);
            let stamp = SlotStamp { crc: slot, number: chunk as u32 };
            let Some(reserved) = map.reserve(&key, size, stamp) else { continue };
            prop_assert!(reserved.file_offset + size.bytes() as u64 <= 3 << 20);
            for page in 0..size.pages() as u64 {
                pages.insert(reserved.file_offset / 4096 + page, key);
            }
            if at_once { map.written(reserved, true) } else { late.push(reserved) }
            if late.len() > 5 { map.written(late.remove(0), slot % 7 != 0) }
            if at_once {
                let at = map.find(&key).expect("written and found");
                prop_assert_eq!(at.stamp, stamp);
            }
        }
        let held = agrees(&holdings, |key| map.contains(key), 0..40, 0..300);
        prop_assert_eq!(held, map.blocks());
        for chunk in 0..40 {
            for slot in 0..300 {
                let key = slot_key(chunk, slot);
                if let Some(at) = map.find(&key) {
                    for page in 0..sizes[chunk as usize % 3].pages() as u64 {
                        prop_assert_eq!(pages.get(&(at.file_offset / 4096 + page)), Some(&key));
                    }
                    prop_assert!(map.remove(&key, &at) && !map.contains(&key));
                    prop_assert!(!map.remove(&key, &at), "it is not there a second time");
                }
            }
        }
        prop_assert_eq!(map.blocks(), 0);
        prop_assert!(holdings.look().is_empty());
    }
}

#[test]
fn a_scan_does_not_push_out_what_is_used_again_and_again() {
    let mut cache = RamCache::new(1 << 20);
    let block = [1u8; 4096];
    for slot in 0..20 {
        cache.insert(slot_key(1, slot), stamp(slot), &block);
        assert!(cache.get(&slot_key(1, slot)).is_some());
    }
    for slot in 0..2000 {
        cache.insert(slot_key(2, slot), stamp(slot), &block);
    }
    let kept = (0..20).filter(|&slot| cache.contains(&slot_key(1, slot)));
    assert_eq!(kept.count(), 20);
}

#[test]
fn what_was_read_ahead_and_left_unused_is_counted() {
    let mut cache = RamCache::new(1 << 20);
    put_ahead(&mut cache, 1, 0..40, 1, false);
    for slot in 0..10 {
        cache.get(&slot_key(1, slot)).unwrap();
    }
    // Twice: it is no part of a scan.
    cache.get(&slot_key(1, 0)).unwrap();
    assert_eq!(cache.counts().ahead_used, 10);
    assert_eq!(cache.counts().ahead_bytes, 30 * 4096);
    let before = cache.counts().bytes;
    for first in (0..2000).step_by(10) {
        put_ahead(&mut cache, 2, first..first + 10, 1, false);
        for slot in first..first + 10 {
            cache.get(&slot_key(2, slot)).unwrap();
        }
    }
    let counts = cache.counts();
    assert_eq!((counts.ahead_wasted, counts.ahead_bytes), (30, 0));
    assert_eq!(counts.ahead_used, 2010);
    assert!(counts.bytes < before * 2, "a scan stays within its share");
    assert!(cache.contains(&slot_key(1, 0)));
    assert!(!cache.contains(&slot_key(1, 1)));
}

#[test]
fn what_somebody_waited_for_is_used_already() {
    let mut cache = RamCache::new(1 << 20);
    put_ahead(&mut cache, 1, 0..4, 1, true);
    let counts = cache.counts();
    assert_eq!((counts.ahead_used, counts.ahead_bytes), (4, 0));
    assert_eq!(counts.blocks, 4);
}

#[test]
fn wrong_bytes_of_a_body_are_never_given_out() {
    let mut cache = RamCache::new(1 << 20);
    let bytes = vec![1; 2 * slot_stride(four_kib()) + 100].into();
    let body = Body {
        chunk: key(1),
        first: 5,
        block_size: four_kib(),
        bytes: &bytes,
        stamps: &[None, Some(stamp(1)), Some(stamp(1))],
        used: &[false; 3],
    };
    cache.insert_ahead(&body);
    let there = |cache: &mut RamCache, slot| cache.get(&slot_key(1, slot)).is_some();
    assert!(!there(&mut cache, 5), "it failed its check");
    assert!(there(&mut cache, 6));
    assert!(!there(&mut cache, 7), "it is shorter than a slot");
    // What was read later for somebody takes its place.
    cache.insert(slot_key(1, 6), stamp(9), &[9; 4096]);
    assert_eq!(cache.get(&slot_key(1, 6)).unwrap().stamp, stamp(9));
    assert_eq!(cache.counts().blocks, 1);
}

#[test]
fn what_was_read_from_the_file_lives_one_more_round() {
    let mut map = DiskMap::new(4 << 20);
    let put = |map: &mut DiskMap, slot| {
        let reserved = map.reserve(&slot_key(1, slot), four_kib(), stamp(slot));
        map.written(reserved.expect("room"), true);
    };
    (0..4 * 256).for_each(|slot| put(&mut map, slot));
    for slot in 0..256 {
        assert!(map.find(&slot_key(1, slot)).is_some());
    }
    (0..256).for_each(|slot| put(&mut map, 10_000 + slot));
    assert!(map.contains(&slot_key(1, 0)), "it was read");
    assert!(!map.contains(&slot_key(1, 256)), "the one after it was not");
}

#[test]
fn every_waiter_of_a_read_is_given_back_once() {
    let mut flights: Flights<&str, u32> = Flights::default();
    let first = flights.start(key(1), 0..8, "first");
    let second = flights.start(key(1), 8..16, "second");
    assert_eq!(flights.find(&key(1), 7), Some(first));
    assert_eq!(flights.find(&key(1), 8), Some(second));
    assert_eq!(flights.find(&key(1), 16), None);
    assert_eq!(flights.find(&key(2), 7), None);
    flights.wait(first, 7, 100);
    flights.wait(first, 7, 101);
    flights.wait(first, 0, 102);
    let landed = flights.land(first).unwrap();
    assert_eq!(landed.waiters, [(7, 100), (7, 101), (0, 102)]);
    assert!(flights.land(first).is_none());
    assert_eq!(flights.find(&key(1), 7), None);
    assert!(flights.land(second).unwrap().waiters.is_empty());
    assert!(flights.is_empty());
}

/// A volume whose blocks lie in order in chunks of 1024 slots, and who reads it.
struct Reader {
    streams: Streams,
    /// Bytes read ahead so far.
    issued: u64,
    pieces: Vec<Ahead>,
}

const SLOTS: u32 = 1024;

fn chunk(sequence: u64) -> ChunkRef {
    ChunkRef {
        key: key(sequence),
        head_bytes: 160,
        slots: SLOTS,
        bytes: 160 + u64::from(SLOTS) * 4104,
    }
}

impl Reader {
    fn new() -> Self {
        Self {
            streams: Streams::new(16 << 20),
            issued: 0,
            pieces: Vec::new(),
        }
    }

    /// Reads blocks by their number.
    fn read(&mut self, blocks: Range<u64>) {
        let chunk_of = |block: u64| block / u64::from(SLOTS);
        assert_eq!(chunk_of(blocks.start), chunk_of(blocks.end - 1));
        let first = (blocks.start % u64::from(SLOTS)) as u32;
        let seen = ReadSeen {
            volume: VolumeId(7),
            block_size: four_kib(),
            chunk: &chunk(chunk_of(blocks.start)),
            slots: first..first + (blocks.end - blocks.start) as u32,
            wanted: blocks.end - blocks.start,
            blocks,
            missed: true,
        };
        let mut ahead = Vec::new();
        let after = |key: &ChunkKey| Some(chunk(key.sequence + 1));
        self.streams.note(&seen, 64 << 20, after, &mut ahead);
        self.issued += ahead.iter().map(bytes).sum::<u64>();
        self.pieces.extend(ahead);
    }
}

fn bytes(ahead: &Ahead) -> u64 {
    ahead.slots.len() as u64 * 4096
}

#[test]
fn reads_at_random_never_read_ahead() {
    let mut reader = Reader::new();
    let mut block: u64 = 1;
    for _ in 0..5000 {
        block = block
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = (block >> 33) % (1 << 20);
        reader.read(at..at + 1);
    }
    assert_eq!(reader.issued, 0);
    assert!(reader.streams.len() <= 64);
}

#[test]
fn a_reader_in_order_finds_everything_read_ahead_once_in_large_pieces() {
    let mut reader = Reader::new();
    let blocks = 40 * u64::from(SLOTS);
    for at in (0..blocks).step_by(32) {
        reader.read(at..at + 32);
    }
    // Pieces follow one another, within an object and from object to object.
    for pair in reader.pieces.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        if a.chunk == b.chunk {
            assert_eq!(a.slots.end, b.slots.start);
        } else {
            assert_eq!(a.chunk.key.sequence + 1, b.chunk.key.sequence);
            assert_eq!((a.slots.end, b.slots.start), (SLOTS, 0));
        }
    }
    let last = reader.pieces.last().unwrap();
    assert!(last.chunk.key.sequence >= 40, "it is ahead of the reader");
    let beyond: u64 = reader
        .pieces
        .iter()
        .filter(|piece| piece.chunk.key.sequence >= 40)
        .map(bytes)
        .sum();
    assert!(beyond <= 20 << 20, "never further than the window");
    let large = reader.pieces.iter().filter(|piece| bytes(piece) == 4 << 20);
    assert!(large.count() > 25, "most reads ahead are of a whole object");
}

#[test]
fn cores_that_share_a_reader_share_its_stream() {
    let mut reader = Reader::new();
    for at in (0..20 * u64::from(SLOTS)).step_by(32) {
        // Each of three cores asks for its blocks; after the first one they are found.
        for core in 0..3 {
            let mut ahead = Vec::new();
            let first = (at % u64::from(SLOTS)) as u32 + core;
            let seen = ReadSeen {
                volume: VolumeId(7),
                block_size: four_kib(),
                chunk: &chunk(at / u64::from(SLOTS)),
                slots: first..first + 30,
                blocks: at + u64::from(core)..at + u64::from(core) + 30,
                wanted: 10,
                missed: at < 64,
            };
            let after = |key: &ChunkKey| Some(chunk(key.sequence + 1));
            reader.streams.note(&seen, 64 << 20, after, &mut ahead);
            reader.pieces.extend(ahead);
        }
    }
    assert_eq!(reader.streams.len(), 1);
    let last = reader.pieces.last().expect("it is read ahead");
    assert!(last.chunk.key.sequence >= 20, "to the end");
}

#[test]
fn little_is_wasted_on_readers_that_stop_soon() {
    let mut reader = Reader::new();
    for run in 0..100u64 {
        let start = run * 50 * u64::from(SLOTS);
        (0..4).for_each(|i| reader.read(start + i * 32..start + i * 32 + 32));
    }
    // Each read 512 KiB in order and was given at most one first window.
    assert!(reader.issued <= 100 * (512 << 10), "{}", reader.issued);
}

#[test]
fn an_object_that_does_not_follow_is_left_alone() {
    let mut reader = Reader::new();
    let end = u64::from(SLOTS);
    for at in (0..end - 32).step_by(32) {
        reader.read(at..at + 32);
    }
    let next = reader
        .pieces
        .iter()
        .find(|p| p.chunk.key == key(1))
        .cloned();
    let next = next.expect("the next object is read ahead");
    assert!(
        reader.pieces.iter().all(|p| p.chunk.key != key(2)),
        "unproven"
    );
    reader.streams.landed(next.stream, &key(1), 900_000);
    let before = reader.issued;
    reader.read(end - 32..end);
    assert_eq!(reader.issued, before, "nothing more of the wrong object");
    // The reader goes on in another object: that one is read ahead.
    for at in (end..end + 128).step_by(32) {
        reader.read(at..at + 32);
    }
    assert!(reader.issued > before);
}

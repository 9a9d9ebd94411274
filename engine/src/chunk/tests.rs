//! Tests of the chunk format: golden bytes, round trips, hostile bytes.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::identity::{Generation, VolumeId};

const KEY: ChunkKey = ChunkKey {
    volume: VolumeId(0x0102_0304_0506_0708),
    generation: Generation(2),
    sequence: 7,
    random: 0xA1B2_C3D4_E5F6_0718,
};

fn spec(block_size: BlockSize) -> ChunkSpec {
    ChunkSpec {
        key: KEY,
        block_size,
        epoch: Epoch(9),
        salt: *b"sixteen bytes..!",
    }
}

/// The content of a block in these tests: depends on its number.
fn content(block: u64, block_size: BlockSize) -> Vec<u8> {
    let mut bytes = vec![block as u8 ^ 0x5A; block_size.bytes()];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes
}

fn build(blocks: &[u64], zeros: &[ZeroRun], block_size: BlockSize) -> (Vec<u8>, ChunkRef) {
    let numbers: Vec<BlockNum> = blocks.iter().map(|&b| BlockNum(b)).collect();
    let mut builder = ChunkBuilder::new(&spec(block_size), &numbers, zeros).unwrap();
    for &block in blocks {
        assert_eq!(builder.next_block(), Some(BlockNum(block)));
        let bytes = content(block, block_size);
        builder.push(&bytes, crc32c::crc32c(&bytes)).unwrap();
    }
    assert_eq!(builder.next_block(), None);
    let (bytes, reference) = builder.finish().unwrap();
    (bytes.to_vec(), reference)
}

fn zero(start: u64, count: u64) -> ZeroRun {
    ZeroRun::new(BlockNum(start), count)
}

/// Whole rows of which only these shards are zeroed.
fn zero_of(shards: u16, rows: Range<u64>) -> ZeroRun {
    ZeroRun {
        start: BlockNum(rows.start * 16),
        count: (rows.end - rows.start) * 16,
        spared: ShardSet(!shards),
    }
}

#[test]
fn golden_bytes() {
    let (bytes, reference) = build(&[5, 6, 0x1_0000_0010], &[zero(8, 3)], BlockSize::MIN);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let header = concat!(
        "54616970616e436b",                 // magic "TaipanCk"
        "0100",                             // version
        "0000",                             // flags
        "00100000",                         // block size
        "0807060504030201",                 // volume
        "0200000000000000",                 // generation
        "0700000000000000",                 // sequence
        "1807f6e5d4c3b2a1",                 // random
        "7369787465656e2062797465732e2e21", // salt
        "00000000",                         // key id
        "b0000000",                         // head bytes = 128 + 3 runs of 16
        "03000000",                         // slots
        "02000000",                         // data runs
        "01000000",                         // zero runs
    );
    assert_eq!(hex(&bytes[..84]), header);
    let table = concat!(
        "0500000000000000",
        "02000000",
        "00000000", // blocks 5..7 in slots 0..2
        "1000000001000000",
        "01000000",
        "02000000", // block 2^32 + 16 in slot 2
        "0800000000000000",
        "0300000000000000", // blocks 8..11 are zeros
    );
    assert_eq!(hex(&bytes[128..176]), table);
    assert_eq!(
        bytes[84..88],
        crc32c::crc32c(&bytes[128..176]).to_le_bytes()
    );
    assert_eq!(bytes[88..96], (176 + 3 * 4104u64).to_le_bytes());
    assert_eq!(bytes[96..104], 9u64.to_le_bytes());
    assert_eq!(bytes[104..124], [0; 20]);
    assert_eq!(bytes[124..128], crc32c::crc32c(&bytes[..124]).to_le_bytes());
    assert_eq!(bytes.len(), 176 + 3 * 4104);
    // The last slot: block, its CRC, low bits of its number.
    let slot = &bytes[176 + 2 * 4104..];
    let block = content(0x1_0000_0010, BlockSize::MIN);
    assert_eq!(slot[..4096], block);
    assert_eq!(slot[4096..4100], crc32c::crc32c(&block).to_le_bytes());
    assert_eq!(slot[4100..], 0x10u32.to_le_bytes());
    assert_eq!(reference.head_bytes, 176);
    assert_eq!((reference.slots, reference.bytes), (3, bytes.len() as u64));
}

#[test]
fn golden_bytes_of_zeros_that_spare_shards() {
    // Of rows 1 and 2 (blocks 16..48) all shards but 1 and 15; block 17 is data.
    let (bytes, reference) = build(&[17], &[zero(3, 2), zero_of(0x7FFD, 1..3)], BlockSize::MIN);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&bytes[8..12]), "02000000", "version, flags");
    let table = concat!(
        "1100000000000000",
        "01000000",
        "00000000", // block 17 in slot 0
        "0300000000000000",
        "0200000000000000", // blocks 3..5 are zeros
        "1000000000000000",
        "2000000000000280", // blocks 16..48 are, but not of shards 1 and 15
    );
    assert_eq!(hex(&bytes[128..176]), table);
    let view = ChunkView::parse(&bytes).unwrap();
    assert!(view.is(&reference));
    for (block, found) in [
        (16, Some(Found::Zero)),
        (17, Some(Found::Slot(0))),
        (30, Some(Found::Zero)),
        (31, None),
        (33, None),
        (46, Some(Found::Zero)),
        (48, None),
    ] {
        assert_eq!(view.find(BlockNum(block)), found, "block {block}");
    }
    assert_eq!(view.zeros[1].zeroed_blocks(), 28);
    let mut old = bytes;
    old[field::VERSION.start] = 1;
    assert!(
        ChunkView::parse(&resealed(old)).is_err(),
        "version 1 spares none"
    );
}

#[test]
fn every_block_is_read_back_with_one_range() {
    for block_size in [BlockSize::MIN, BlockSize::MAX] {
        let blocks = [0, 1, 2, 40, 41, 1000, BLOCK_NUM_END - 1];
        let (bytes, reference) = build(&blocks, &[zero(3, 37), zero(42, 1)], block_size);
        let view = ChunkView::parse(&bytes).unwrap();
        assert!(view.is(&reference));
        for &block in &blocks {
            let Some(Found::Slot(slot)) = view.find(BlockNum(block)) else {
                panic!("block {block} is not found");
            };
            let range = reference.slot_range(block_size, slot, 1);
            let stored = &bytes[range.start as usize..range.end as usize];
            let read = verify_slot(stored, block_size, BlockNum(block)).unwrap();
            assert_eq!(read, content(block, block_size));
        }
        for block in [3, 39, 42] {
            assert_eq!(view.find(BlockNum(block)), Some(Found::Zero));
        }
        for block in [43, 999, 1001, BLOCK_NUM_END] {
            assert_eq!(view.find(BlockNum(block)), None);
        }
    }
}

#[test]
fn a_chunk_may_hold_only_zeros() {
    let (bytes, reference) = build(&[], &[zero(0, BLOCK_NUM_END)], BlockSize::MIN);
    assert_eq!((reference.slots, bytes.len()), (0, 144));
    let view = ChunkView::parse(&bytes).unwrap();
    assert_eq!(view.find(BlockNum(77)), Some(Found::Zero));
}

#[test]
fn plans_that_break_a_rule_are_refused() {
    let blocks = |numbers: &[u64]| numbers.iter().map(|&b| BlockNum(b)).collect::<Vec<_>>();
    let too_many: Vec<u64> = (0..=u64::from(SLOTS_MAX)).collect();
    let zeros_too_many: Vec<ZeroRun> = (0..=u64::from(ZERO_RUNS_MAX))
        .map(|i| zero(i * 2, 1))
        .collect();
    for (data, zeros, why) in [
        (blocks(&[2, 1]), vec![], "descending"),
        (blocks(&[1, 1]), vec![], "repeated"),
        (blocks(&[BLOCK_NUM_END]), vec![], "beyond the end"),
        (
            blocks(&[BLOCK_NUM_END - 1, BLOCK_NUM_END]),
            vec![],
            "run beyond the end",
        ),
        (blocks(&too_many), vec![], "too many blocks"),
        (blocks(&[]), zeros_too_many, "too many zero runs"),
        (blocks(&[5]), vec![zero(4, 2)], "data and zero"),
        (blocks(&[5]), vec![zero(5, 1)], "data and zero"),
        (blocks(&[]), vec![zero(5, 0)], "empty run"),
        (
            blocks(&[]),
            vec![zero(5, 5), zero(9, 1)],
            "overlapping zeros",
        ),
        (blocks(&[]), vec![zero(5, u64::MAX)], "overflow"),
        (blocks(&[]), vec![zero_of(0, 0..1)], "spares all"),
        (blocks(&[35]), vec![zero_of(8, 2..3)], "data and zero"),
        (
            (30..46).map(BlockNum).collect(),
            vec![zero_of(8, 2..9)],
            "data and zero",
        ),
        (
            blocks(&[]),
            vec![ZeroRun {
                spared: ShardSet(1),
                ..zero(16, 24)
            }],
            "half a row",
        ),
    ] {
        let built = ChunkBuilder::new(&spec(BlockSize::MIN), &data, &zeros);
        assert_eq!(
            built.err().map(|e| e.kind()),
            Some(ErrorKind::Invalid),
            "{why}"
        );
    }
}

#[test]
fn a_block_that_differs_from_its_crc_is_not_packed_but_may_be_tried_again() {
    let mut builder = ChunkBuilder::new(&spec(BlockSize::MIN), &[BlockNum(3)], &[]).unwrap();
    let bytes = content(3, BlockSize::MIN);
    let crc = crc32c::crc32c(&bytes);
    let mut bad = bytes.clone();
    bad[4000] ^= 1;
    assert_eq!(
        builder.push(&bad, crc).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(builder.next_block(), Some(BlockNum(3)));
    let gone = builder.push_with(crc, |_| Err(crate::error::Error::corrupt("evicted")));
    assert!(gone.is_err());
    builder.push(&bytes, crc).unwrap();
    assert!(builder.push(&bytes, crc).is_err(), "no slot is left");
    let (object, reference) = builder.finish().unwrap();
    let range = reference.slot_range(BlockSize::MIN, 0, 1);
    let slot = &object[range.start as usize..range.end as usize];
    assert_eq!(
        verify_slot(slot, BlockSize::MIN, BlockNum(3)).unwrap(),
        bytes
    );
}

#[test]
fn an_unfilled_chunk_is_not_finished() {
    let builder = ChunkBuilder::new(&spec(BlockSize::MIN), &[BlockNum(3)], &[]).unwrap();
    assert_eq!(builder.finish().unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_damaged_or_misplaced_slot_is_refused() {
    let (bytes, reference) = build(&[3], &[], BlockSize::MIN);
    let range = reference.slot_range(BlockSize::MIN, 0, 1);
    let slot = &bytes[range.start as usize..range.end as usize];
    for at in [0, 2048, 4095, 4096, 4099, 4100, 4103] {
        let mut bad = slot.to_vec();
        bad[at] ^= 0x80;
        let error = verify_slot(&bad, BlockSize::MIN, BlockNum(3)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
    }
    assert!(verify_slot(slot, BlockSize::MIN, BlockNum(4)).is_err());
    assert!(verify_slot(&slot[..4103], BlockSize::MIN, BlockNum(3)).is_err());
}

#[test]
fn every_flipped_bit_of_the_head_is_noticed() {
    let (bytes, reference) = build(&[1, 2, 9], &[zero(4, 2)], BlockSize::MIN);
    for bit in 0..reference.head_bytes as usize * 8 {
        let mut bad = bytes[..reference.head_bytes as usize].to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = ChunkView::parse(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}");
    }
    for len in 0..reference.head_bytes as usize {
        assert!(ChunkView::parse(&bytes[..len]).is_err(), "{len} bytes");
    }
    assert_eq!(
        ChunkView::head_len(&bytes[..HEADER_BYTES]).unwrap(),
        reference.head_bytes as usize
    );
}

#[test]
#[should_panic(expected = "slots 2+2 of a chunk of 3 slots")]
fn a_range_beyond_the_last_slot_is_a_bug() {
    let (_, reference) = build(&[1, 2, 9], &[], BlockSize::MIN);
    reference.slot_range(BlockSize::MIN, 2, 2);
}

/// Seals a header and table whose fields were altered, so that the checks behind the CRCs are hit.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let head = u32::from_le_bytes(bytes[field::HEAD_BYTES].try_into().unwrap()) as usize;
    if let Some(table) = bytes.get(HEADER_BYTES..head) {
        let crc = crc32c::crc32c(table).to_le_bytes();
        bytes[field::TABLE_CRC].copy_from_slice(&crc);
    }
    let crc = crc32c::crc32c(&bytes[..field::HEADER_CRC.start]).to_le_bytes();
    bytes[field::HEADER_CRC].copy_from_slice(&crc);
    bytes
}

proptest! {
    #[test]
    fn chunks_round_trip(
        blocks in prop::collection::btree_set(0u64..600, 0..40),
        gaps in prop::collection::vec((600u64..700, 1u64..50), 0..20),
    ) {
        let blocks: Vec<u64> = blocks.into_iter().collect();
        let mut zeros = Vec::new();
        let mut end = 600;
        for (gap, count) in gaps {
            zeros.push(zero(end + gap - 600, count));
            end += gap - 600 + count;
        }
        let (bytes, reference) = build(&blocks, &zeros, BlockSize::MIN);
        let view = ChunkView::parse(&bytes).unwrap();
        prop_assert!(view.is(&reference));
        prop_assert_eq!(&view.zeros, &zeros);
        let read: Vec<u64> = view.blocks().map(|(block, _)| block.0).collect();
        prop_assert_eq!(read, blocks);
    }

    #[test]
    fn any_bytes_are_parsed_without_panic(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_chunk(&data);
    }

    #[test]
    fn altered_fields_with_right_crcs_do_not_panic(
        changes in prop::collection::vec((8usize..192, any::<u8>()), 1..6),
    ) {
        let zeros = [zero(8, 3), zero_of(0xF0, 1..3)];
        let (mut bytes, _) = build(&[5, 6, 70], &zeros, BlockSize::MIN);
        for (at, value) in changes {
            bytes[at] = value;
        }
        fuzz_chunk(&resealed(bytes));
    }
}

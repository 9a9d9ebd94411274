//! The bytes of batches, log heads and regions, as documented.

use crate::arena::Arena;
use crate::block::{BlockSize, LocalBlock, PAGE_BYTES, ShardId};
use crate::identity::{BatchNum, Epoch, Incarnation, Lsn, VolumeId};
use crate::wal::format::{
    BatchHeader, FIXED_BYTES, HEAD_SLOTS, LogEnd, LogHead, TABLE_START, seal,
};
use crate::wal::region::{RegionLayout, RegionPage};
use crate::wal::{MarkKind, RecordHead, WalId};

use super::world::{identity, new_log, small};

fn header() -> BatchHeader {
    let mut header = BatchHeader {
        shard: ShardId::new(3).unwrap(),
        wal: WalId(0x0102_0304_0506_0708),
        incarnation: Incarnation(2),
        first: BatchNum(5),
        number: BatchNum(9),
        generation: 4,
        file_offset: 0x1_0000,
        durable_through: BatchNum(8),
        released_before: BatchNum(3),
        payload_pages: 2,
        records: 1,
        table_bytes: 48,
        table_crc: crc32c::crc32c(&[0; 48]),
        previous_crc: 0xAABB_CCDD,
        content_crc: 0,
    };
    header.content_crc = header.compute_content_crc();
    header
}

#[test]
fn a_batch_header_has_these_bytes() {
    let mut page = [0u8; PAGE_BYTES];
    header().encode(&mut page);
    #[rustfmt::skip]
    let fixed: [u8; 100] = [
        b'T', b'A', b'I', b'P', b'W', b'A', b'L', b'B', 1, 0, 3, 1, 2, 0, 0, 0,
        8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0,
        5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
        8, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 48, 0, 0, 0, 0xB9, 0x3A, 0x8C, 0x28, 0xDD, 0xCC, 0xBB, 0xAA,
        0x75, 0x6B, 0xFC, 0xFA,
    ];
    assert_eq!(page[..100], fixed, "{:02x?}", &page[88..100]);
    assert_eq!(page[100..124], [0; 24]);
    assert_eq!(page[124..128], crc32c::crc32c(&page[..124]).to_le_bytes());
    assert_eq!(BatchHeader::decode(&page), Some(header()));
    assert_eq!(header().table(&page), Some(&[0; 48][..]));
    page[TABLE_START + 47] = 1;
    assert_eq!(header().table(&page), None);
}

#[test]
fn no_flipped_bit_of_a_header_is_accepted() {
    let mut page = [0u8; PAGE_BYTES];
    header().encode(&mut page);
    for bit in 0..FIXED_BYTES * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(BatchHeader::decode(&page), None, "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(BatchHeader::decode(&page).is_some());
    assert_eq!(BatchHeader::decode(&page[..100]), None);
}

#[test]
fn a_log_head_has_these_bytes() {
    let head = head_with(None);
    let mut page = [0xFFu8; PAGE_BYTES];
    head.encode(&mut page);
    #[rustfmt::skip]
    assert_eq!(page[..80], [
        b'T', b'A', b'I', b'P', b'W', b'A', b'L', b'H', 1, 0, 1, 0, 16, 0, 0, 0,
        6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        40, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 16, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0,
        50, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0,
    ]);
    assert!(page[80..124].iter().all(|&byte| byte == 0), "no end");
    assert_eq!(LogHead::decode(&page, HEAD_SLOTS[1]), Some(head));
    assert_eq!(
        LogHead::decode(&page, HEAD_SLOTS[0]),
        None,
        "not in its own slot"
    );
    for bit in 0..FIXED_BYTES * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(LogHead::decode(&page, HEAD_SLOTS[1]), None, "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A log head; with an end, if its writer ended in order.
fn head_with(end: Option<LogEnd>) -> LogHead {
    LogHead {
        shard: ShardId::new(1).unwrap(),
        wal: WalId(6),
        incarnation: Incarnation(7),
        first: BatchNum(40),
        sequence: 3,
        segment_bytes: 0x10_0000,
        segments: 16,
        durable_through: BatchNum(50),
        released_before: BatchNum(20),
        end,
    }
}

const END: LogEnd = LogEnd {
    next_lsn: Lsn(0x0102_0304),
    last_lsn: Lsn(0x0102_0301),
    max_epoch: Epoch(0x21),
    last_generation: 0x31,
    chain: 0x4142_4344,
};

#[test]
fn the_head_of_a_log_that_ended_in_order_has_these_bytes() {
    let head = head_with(Some(END));
    let mut page = [0u8; PAGE_BYTES];
    head.encode(&mut page);
    #[rustfmt::skip]
    assert_eq!(page[80..128], [
        4, 3, 2, 1, 0, 0, 0, 0, 1, 3, 2, 1, 0, 0, 0, 0,
        0x21, 0, 0, 0, 0, 0, 0, 0, 0x31, 0, 0, 0, 0, 0, 0, 0,
        0x44, 0x43, 0x42, 0x41, 1, 0, 0, 0, 0, 0, 0, 0, 0xB8, 0x10, 0xD8, 0x94,
    ]);
    assert_eq!(LogHead::decode(&page, HEAD_SLOTS[1]), Some(head));
    for bit in 80 * 8..FIXED_BYTES * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(LogHead::decode(&page, HEAD_SLOTS[1]), None, "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn an_end_that_no_log_has_is_none() {
    let most = u64::MAX;
    for bad in [
        LogEnd {
            next_lsn: Lsn(most),
            ..END
        },
        LogEnd {
            last_lsn: END.next_lsn,
            ..END
        },
        LogEnd {
            max_epoch: Epoch(most),
            ..END
        },
        LogEnd {
            last_generation: most,
            ..END
        },
    ] {
        let mut page = [0u8; PAGE_BYTES];
        head_with(Some(bad)).encode(&mut page);
        let read_back = LogHead::decode(&page, HEAD_SLOTS[1]).expect("the head is whole");
        assert_eq!(read_back.end, None, "{bad:?}");
    }
    let mut page = [0u8; PAGE_BYTES];
    head_with(Some(END)).encode(&mut page);
    page[116] = 2;
    seal(&mut page[..FIXED_BYTES]);
    let read_back = LogHead::decode(&page, HEAD_SLOTS[1]).expect("the head is whole");
    assert_eq!(read_back.end, None, "another kind of end");
}

#[test]
fn a_log_head_whose_numbers_no_file_can_have_is_refused() {
    let good = LogHead {
        shard: ShardId::new(1).unwrap(),
        wal: WalId(6),
        incarnation: Incarnation(7),
        first: BatchNum(40),
        sequence: 2,
        segment_bytes: 1 << 32,
        segments: (1 << 31) - 1,
        durable_through: BatchNum(50),
        released_before: BatchNum(20),
        end: None,
    };
    let read_back = |head: &LogHead| {
        let mut page = [0u8; PAGE_BYTES];
        head.encode(&mut page);
        LogHead::decode(&page, HEAD_SLOTS[0])
    };
    assert_eq!(read_back(&good), Some(good));
    assert!(
        good.file_bytes() <= i64::MAX as u64,
        "an offset of the kernel"
    );
    assert_eq!(good.segment_start(good.segments), good.file_bytes());
    let sized = |segments, segment_bytes| LogHead {
        segments,
        segment_bytes,
        ..good
    };
    for bad in [
        sized(u32::MAX, u64::MAX - 4095),
        sized(u32::MAX, 1 << 32),
        sized(1 << 31, 1 << 32),
        sized(2, 1 << 63),
        sized(1, (1 << 32) + 4096),
        sized(0, 1 << 20),
        sized(4, 4096),
        sized(4, 12 << 10 | 512),
    ] {
        assert_eq!(read_back(&bad), None, "{bad:?}");
    }
}

#[test]
fn a_region_has_these_bytes() {
    let layout = RegionLayout::new(1 << 20, 60 << 10);
    assert_eq!(
        (
            layout.descriptors(),
            layout.staging_page(),
            layout.ring_start()
        ),
        (16, 8192, 12288)
    );
    let mut arena = Arena::anonymous(1 << 20).unwrap();
    layout.format(&mut arena, &identity(9));
    RegionLayout::note_start(&mut arena, BatchNum(4));
    let live = layout.describe(&mut arena, BatchNum(5), 12288 + 2 * PAGE_BYTES, 7);
    arena.store_word(live, crate::wal::region::live_word(3, 4));
    let page = arena.bytes(0, 8192);
    #[rustfmt::skip]
    assert_eq!(page[..64], [
        b'T', b'A', b'I', b'P', b'R', b'E', b'G', b'N', 1, 0, 3, 0, 16, 0, 0, 0,
        0xED, 0xFE, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
        0, 0, 16, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0,
    ]);
    assert_eq!(
        page[128..144],
        [4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    );
    let descriptor = &page[4096 + 5 * 32..4096 + 6 * 32];
    assert_eq!(
        descriptor[..16],
        [5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0]
    );
    assert_eq!(descriptor[16..24], [4, 0, 0, 0, 3, 0, 0, 0]);
    let RegionPage::Header(header) = RegionPage::decode(page, 1 << 20) else {
        panic!("a region")
    };
    let found = header.undurable(&page[4096..]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].0, found[0].1.first_byte),
        (BatchNum(5), 12288 + 8192)
    );
    assert_eq!((found[0].1.records, found[0].1.payload_pages), (3, 4));
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let mut arena = Arena::anonymous(1 << 20).unwrap();
    let layout = RegionLayout::new(1 << 20, 60 << 10);
    assert_eq!(
        RegionPage::decode(arena.bytes(0, 4096), 1 << 20),
        RegionPage::Blank
    );
    layout.format(&mut arena, &identity(9));
    RegionLayout::note_start(&mut arena, BatchNum(4));
    let page = arena.bytes(0, 4096).to_vec();
    assert_eq!(
        RegionPage::decode(&page, 4096),
        RegionPage::Damaged,
        "longer than the file"
    );
    assert_eq!(
        RegionPage::decode(&page[..100], 1 << 20),
        RegionPage::Damaged
    );
    for at in 0..128 {
        let mut damaged = page.clone();
        damaged[at] ^= 1;
        assert_eq!(
            RegionPage::decode(&damaged, 1 << 20),
            RegionPage::Damaged,
            "byte {at}"
        );
    }
    let mut reordered = page;
    reordered[136] = 3;
    assert_eq!(
        RegionPage::decode(&reordered, 1 << 20),
        RegionPage::Damaged,
        "last < durable"
    );
}

/// What the log writes is what the tables say: one batch with a data record and a mark.
#[test]
fn a_closed_batch_is_laid_out_as_documented() {
    let mut log = new_log(small());
    let head = RecordHead {
        volume: VolumeId(0x11),
        epoch: Epoch(2),
        lsn: Lsn(1),
        start: LocalBlock(6),
        count: 2,
        block_size: BlockSize::new(8192).unwrap(),
    };
    let fill = |index: u32, block: &mut [u8]| {
        block.fill(0xA0 + index as u8);
        0x100 + index
    };
    let mut places = Vec::new();
    log.append_data(&head, fill, |_, place, _| places.push(place.page))
        .unwrap();
    log.append_mark(VolumeId(0x12), Epoch(2), Lsn(2), 0..7, MarkKind::Zero)
        .unwrap();
    assert_eq!(places, [1, 3]);
    log.close();
    let _head = log.start_write(false).unwrap();
    let write = log.start_write(false).unwrap();
    assert_eq!((write.len, write.file_offset), (5 * PAGE_BYTES, 0x1_0000));
    let bytes = log.arena.bytes(write.arena_offset, write.len);
    let header = BatchHeader::decode(bytes).unwrap();
    assert_eq!(
        (header.records, header.table_bytes, header.payload_pages),
        (2, 88, 4)
    );
    let table = header.table(bytes).unwrap();
    assert_eq!(
        table[32..48],
        [2, 0, 0, 0, 1, 13, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0]
    );
    assert_eq!(table[80..88], [7, 0, 0, 0, 2, 0, 0, 0]);
    assert!(bytes[TABLE_START + 88..PAGE_BYTES].iter().all(|&b| b == 0));
    assert!(bytes[PAGE_BYTES..3 * PAGE_BYTES].iter().all(|&b| b == 0xA0));
    assert!(bytes[3 * PAGE_BYTES..].iter().all(|&b| b == 0xA1));
}

//! Appending, closing, memory and space, without crashes.

use crate::block::{BlockSize, LocalBlock, PAGE_BYTES};
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId};
use crate::wal::{MarkKind, Place, RecordHead, ShardLog, Shortage};

use super::world::{new_log, small};

fn append(log: &mut ShardLog, lsn: u64, count: u32) -> Result<(BatchNum, Place), Shortage> {
    let head = RecordHead {
        volume: VolumeId(1),
        epoch: Epoch(1),
        lsn: Lsn(lsn),
        start: LocalBlock(0),
        count,
        block_size: BlockSize::MIN,
    };
    let mut first = None;
    let fill = |_, block: &mut [u8]| {
        block.fill(lsn as u8);
        crc32c::crc32c(block)
    };
    let batch = log.append_data(&head, fill, |_, place, _| {
        first.get_or_insert(place);
    })?;
    Ok((batch, first.expect("a run has a first block")))
}

fn write_all(log: &mut ShardLog, dsync: bool) -> usize {
    let mut writes = 0;
    while let Some(write) = log.start_write(dsync) {
        log.write_finished(&write, Ok(()));
        writes += 1;
    }
    writes
}

#[test]
fn records_share_a_batch_until_it_is_closed() {
    let mut log = new_log(small());
    assert_eq!(
        (log.last(), log.durable_through()),
        (BatchNum(0), BatchNum(0))
    );
    assert!(!log.has_open() && log.close().is_none());
    assert_eq!(append(&mut log, 1, 2).unwrap().0, BatchNum(1));
    assert_eq!(append(&mut log, 2, 1).unwrap().0, BatchNum(1));
    assert_eq!(log.open_bytes(), 4 * PAGE_BYTES);
    assert_eq!(log.close(), Some(BatchNum(1)));
    assert_eq!(append(&mut log, 3, 1).unwrap().0, BatchNum(2));
    assert_eq!(log.last(), BatchNum(2));
    assert_eq!(log.undurable_bytes(), (4 + 2) * PAGE_BYTES);
}

#[test]
fn a_full_header_page_or_payload_starts_the_next_batch() {
    let mut log = new_log(small());
    let (batch, _) = append(&mut log, 1, 10).unwrap();
    let (next, _) = append(&mut log, 2, 7).unwrap();
    assert_eq!(
        (batch, next),
        (BatchNum(1), BatchNum(2)),
        "17 pages are over the payload's limit"
    );
    let mut last = BatchNum(2);
    let per_page = (PAGE_BYTES - 128) / 40;
    for lsn in 3..3 + per_page as u64 + 1 {
        last = log
            .append_mark(VolumeId(1), Epoch(1), Lsn(lsn), 0..1, MarkKind::Zero)
            .unwrap();
    }
    assert_eq!(
        last,
        BatchNum(3),
        "the table is over the header page's limit"
    );
}

#[test]
fn written_is_not_durable() {
    let mut log = new_log(small());
    append(&mut log, 1, 1).unwrap();
    log.close();
    append(&mut log, 2, 1).unwrap();
    log.close();
    let head = log.start_write(false).unwrap();
    assert!(head.batch.0 == 0 && head.dsync, "the log head goes first");
    log.write_finished(&head, Ok(()));
    let plain = log.start_write(false).unwrap();
    let durable = log.start_write(true).unwrap();
    log.write_finished(&durable, Ok(()));
    assert_eq!(
        (log.written_through(), log.durable_through()),
        (BatchNum(0), BatchNum(0))
    );
    let early = log.barrier_mark();
    log.write_finished(&plain, Ok(()));
    assert_eq!(
        (log.written_through(), log.durable_through()),
        (BatchNum(2), BatchNum(0))
    );
    log.barrier_finished(early, Ok(()));
    assert_eq!(
        log.durable_through(),
        BatchNum(0),
        "the barrier began before the write ended"
    );
    log.barrier_finished(log.barrier_mark(), Ok(()));
    assert_eq!(
        (log.durable_through(), log.undurable_bytes()),
        (BatchNum(2), 0)
    );
}

#[test]
fn memory_is_a_cache_once_durable() {
    let mut log = new_log(small());
    let (_, first) = append(&mut log, 1, 4).unwrap();
    let mut lsn = 1;
    while log.memory(first, PAGE_BYTES).is_some() {
        assert_eq!(log.memory(first, PAGE_BYTES).unwrap(), [1; PAGE_BYTES]);
        lsn += 1;
        if append(&mut log, lsn, 8) == Err(Shortage::Memory) {
            assert!(
                log.memory(first, PAGE_BYTES).is_some(),
                "undurable batches stay"
            );
            assert!(write_all(&mut log, true) > 0);
        }
        assert!(lsn < 1000);
    }
    assert_eq!(log.file_offset(first), Some(0x1_0000 + PAGE_BYTES as u64));
    let map = log.places(log.last());
    assert_eq!(map.locate(first).unwrap().arena_offset, None);
    let unknown = Place {
        batch: log.last().next(),
        page: 1,
    };
    assert!(log.memory(unknown, 4096).is_none() && log.file_offset(unknown).is_none());
    assert!(map.locate(unknown).is_none());
}

#[test]
fn a_reader_holds_up_eviction() {
    let mut log = new_log(small());
    let (batch, place) = append(&mut log, 1, 1).unwrap();
    let location = log.places(batch).locate(place).unwrap();
    let reader = log.reader();
    let mut block = vec![0; PAGE_BYTES];
    assert!(reader.copy(batch, location.arena_offset.unwrap(), &mut block));
    assert_eq!(block, [1; PAGE_BYTES]);
    for lsn in 2..200 {
        if append(&mut log, lsn, 16).is_err() {
            write_all(&mut log, true);
            log.release(|_, _| true);
        }
    }
    assert!(!reader.copy(batch, location.arena_offset.unwrap(), &mut block));
}

#[test]
fn data_stops_at_the_reserve_and_marks_go_on() {
    let mut log = new_log(small());
    let mut lsn = 0;
    let shortage = loop {
        lsn += 1;
        match append(&mut log, lsn, 16) {
            Ok(_) => {}
            Err(Shortage::Memory) => {
                write_all(&mut log, true);
            }
            Err(shortage) => break shortage,
        }
    };
    assert_eq!(shortage, Shortage::Log);
    assert_eq!(log.stats().free_segments, log.config().reserve_segments);
    log.append_mark(VolumeId(1), Epoch(1), Lsn(lsn), 0..1, MarkKind::Trim)
        .unwrap();
    assert_eq!(
        append(&mut log, lsn + 1, 1).unwrap_err(),
        Shortage::Log,
        "marks open no door"
    );
    write_all(&mut log, true);
    assert_eq!(log.release(|_, _| false), 0);
    assert!(log.release(|_, _| true) > 0);
    assert_eq!(
        append(&mut log, lsn + 1, 1).unwrap_err(),
        Shortage::Log,
        "not yet recorded"
    );
    assert_eq!(log.next_queued(), Some(BatchNum(0)));
    write_all(&mut log, false);
    append(&mut log, lsn + 1, 1).unwrap();
    assert!(log.used_bytes() < log.total_bytes());
}

#[test]
fn a_committed_segment_is_released_when_it_is_durable() {
    let mut log = new_log(small());
    append(&mut log, 1, 16).unwrap();
    append(&mut log, 2, 16).unwrap();
    log.close();
    assert_eq!(log.release(|_, _| true), 0, "nothing is durable");
    write_all(&mut log, true);
    assert_eq!(
        log.released_before(),
        BatchNum(1),
        "the segment is being filled"
    );
    append(&mut log, 3, 16).unwrap();
    log.close();
    write_all(&mut log, true);
    assert_eq!(log.released_before(), BatchNum(3));
    append(&mut log, 4, 16).unwrap();
    append(&mut log, 5, 16).unwrap();
    log.close();
    write_all(&mut log, true);
    assert_eq!(log.released_before(), BatchNum(3), "4 is not committed");
}

#[test]
fn released_blocks_have_no_place_in_the_file() {
    let mut log = new_log(small());
    let (batch, first) = append(&mut log, 1, 16).unwrap();
    for lsn in 2..5 {
        append(&mut log, lsn, 16).unwrap_or((batch, first));
        log.close();
        write_all(&mut log, true);
    }
    assert!(log.release(|_, _| true) > 0);
    assert_eq!(log.file_offset(first), None);
    assert!(log.places(log.last()).locate(first).is_none());
}

#[test]
#[should_panic(expected = "order of their LSN")]
fn lsns_must_grow() {
    let mut log = new_log(small());
    append(&mut log, 2, 1).unwrap();
    append(&mut log, 2, 1).unwrap();
}

#[test]
#[should_panic(expected = "was not started")]
fn a_write_ends_once() {
    let mut log = new_log(small());
    append(&mut log, 1, 1).unwrap();
    log.close();
    let head = log.start_write(false).unwrap();
    log.write_finished(&head, Ok(()));
    let write = log.start_write(false).unwrap();
    log.write_finished(&write, Ok(()));
    log.write_finished(&write, Ok(()));
}

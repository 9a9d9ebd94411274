//! Reads: every source, checked, and looked up again when something moved.

use super::rig::{BLOCK, Rig, is_read};
use crate::core::Failure;

#[test]
fn from_the_wal_file_after_eviction() {
    let mut rig = Rig::new(1);
    rig.write(5, 0x55);
    rig.evict(5);
    let read = rig.read_on(0, 5 * BLOCK + 7, 100);
    assert_eq!(rig.end_some(is_read, None), 1);
    assert_eq!(rig.done[&read].data, [0x55; 100]);
}

#[test]
fn a_block_whose_checksum_fails_is_an_error_and_counted() {
    let mut rig = Rig::new(1);
    rig.write(5, 0x55);
    rig.evict(5);
    let read = rig.read_on(0, 5 * BLOCK, BLOCK);
    let (core, io) = rig.io.pop().unwrap();
    let crate::core::Io::WalRead { op, len, .. } = io else {
        panic!("a read");
    };
    rig.cores[core].io_done(op, Ok(()), &vec![0x54; len]);
    rig.turn();
    assert_eq!(rig.result(read), Some(Err(Failure::Io)));
    assert_eq!(rig.cores[0].counters().crc_mismatches, 1);
    assert_eq!(rig.byte(5), 0x55, "the next try reads right");
}

#[test]
fn a_read_overtaken_by_a_write_returns_the_newer_bytes() {
    let mut rig = Rig::new(1);
    rig.write(5, 1);
    rig.evict(5);
    let read = rig.read_on(0, 5 * BLOCK, BLOCK);
    rig.write(5, 2);
    rig.end_some(is_read, None);
    assert_eq!(rig.done[&read].data, [2; BLOCK as usize]);
    assert_eq!(rig.cores[0].counters().crc_mismatches, 0);
}

#[test]
fn a_commit_while_reading_leads_to_the_chunk() {
    let mut rig = Rig::new(1);
    rig.write(5, 1);
    let cut = rig.cut();
    rig.evict(5);
    let read = rig.read_on(0, 5 * BLOCK, BLOCK);
    let asked = rig.io.pop().unwrap();
    rig.commit(cut, 3, &[5]);
    rig.end(asked, Some(5));
    rig.turn();
    assert_eq!(
        rig.result(read),
        None,
        "the log's error does not count any more"
    );
    let (core, fetch) = rig.fetches.pop().expect("a fetch of the chunk");
    assert_eq!((fetch.chunk.0, fetch.first_slot, fetch.slots), (3, 0, 1));
    rig.cores[core].fetched(fetch.op, Ok(&[1; BLOCK as usize]));
    rig.turn();
    assert_eq!(rig.done[&read].data, [1; BLOCK as usize]);
}

#[test]
fn neighbours_in_a_chunk_are_fetched_together() {
    let mut rig = Rig::new(1);
    for block in 0..32 {
        rig.write(block, block as u8);
    }
    let cut = rig.cut();
    rig.commit(cut, 0, &(0..32).collect::<Vec<_>>());
    for shard in 0..16 {
        rig.evict(shard);
        rig.evict(shard + 16);
    }
    let read = rig.read_on(0, 0, 32 * BLOCK);
    assert_eq!(rig.fetches.len(), 1);
    let (core, fetch) = rig.fetches.pop().unwrap();
    assert_eq!((fetch.slots, fetch.wanted.len()), (32, 32));
    let mut bytes = Vec::new();
    for (_, block) in &fetch.wanted {
        bytes.extend([block.0 as u8; BLOCK as usize]);
    }
    rig.cores[core].fetched(fetch.op, Ok(&bytes));
    rig.turn();
    let data = &rig.done[&read].data;
    assert!(
        data.chunks(BLOCK as usize)
            .enumerate()
            .all(|(i, b)| b[0] == i as u8)
    );
}

#[test]
fn what_is_in_memory_can_be_taken_from_there() {
    let mut rig = Rig::new(1);
    (4..8).for_each(|block| _ = rig.write(block, block as u8));
    let slot = crate::shard::VolumeSlot(0);
    let range = (4 * BLOCK + 9, 3 * BLOCK);
    let content = rig.data(range.0, range.1);
    let resident = |rig: &Rig, range| {
        let mut pieces = vec![&b"before"[..]];
        let is_there = rig.cores[0].resident(slot, range, &mut pieces);
        assert_eq!(is_there, pieces.len() > 1, "all of it or nothing");
        is_there.then(|| pieces[1..].concat())
    };
    assert_eq!(resident(&rig, range), Some(content));
    assert_eq!(
        resident(&rig, (4 * BLOCK, 5 * BLOCK)),
        None,
        "block 8 is nowhere"
    );
    assert_eq!(resident(&rig, (4 * BLOCK, 0)), None);
    rig.evict(6);
    assert_eq!(resident(&rig, range), None, "block 6 is in the log alone");
    let mut rig = Rig::new(2);
    rig.write(0, 1);
    assert_eq!(
        resident(&rig, (0, BLOCK)),
        None,
        "another core may have some"
    );
}

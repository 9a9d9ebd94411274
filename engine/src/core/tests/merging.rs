//! Writes of any alignment: merged with the block's old content wherever that is.

use super::rig::{BLOCK, Rig, is_read};
use crate::core::Failure;
use crate::wal::MarkKind;

fn expect(rig: &mut Rig, block: u64, parts: &[(usize, usize, u8)], rest: u8) {
    let mut wanted = vec![rest; BLOCK as usize];
    for (from, len, byte) in parts {
        wanted[*from..from + len].fill(*byte);
    }
    assert!(rig.data(block * BLOCK, BLOCK) == wanted, "block {block}");
}

#[test]
fn over_nothing_and_over_memory() {
    let mut rig = Rig::new(1);
    rig.write_on(0, 100, &[1; 50], false);
    expect(&mut rig, 0, &[(100, 50, 1)], 0);
    rig.write_on(0, 120, &[2; 4], false);
    expect(&mut rig, 0, &[(100, 50, 1), (120, 4, 2)], 0);
}

#[test]
fn over_the_wal_file_with_later_writes_behind_it() {
    let mut rig = Rig::new(1);
    rig.write(3, 9);
    rig.evict(3);
    let first = rig.write_on(0, 3 * BLOCK + 10, &[1; 10], false);
    let second = rig.write_on(0, 3 * BLOCK + 15, &[2; 10], false);
    let other = rig.write(3 + 16, 5);
    assert_eq!(rig.io.iter().filter(|(_, io)| is_read(io)).count(), 1);
    assert_eq!(rig.result(first), None);
    assert_eq!(rig.result(second), None, "the block is locked");
    rig.settle();
    for ticket in [first, second, other] {
        assert_eq!(rig.result(ticket), Some(Ok(())));
    }
    expect(&mut rig, 3, &[(10, 10, 1), (15, 10, 2)], 9);
}

#[test]
fn over_a_chunk_and_a_failed_fetch_changes_nothing() {
    let mut rig = Rig::new(1);
    rig.write(3, 9);
    let cut = rig.cut();
    rig.commit(cut, 0, &[3]);
    rig.evict(3);
    let merge = rig.write_on(0, 3 * BLOCK, &[1; 10], false);
    let (core, fetch) = rig.fetches.pop().expect("the old content is fetched");
    rig.cores[core].fetched(fetch.op, Err(Failure::Io));
    rig.turn();
    assert_eq!(rig.result(merge), Some(Err(Failure::Io)));
    let merge = rig.write_on(0, 3 * BLOCK, &[1; 10], false);
    let (core, fetch) = rig.fetches.pop().expect("the old content is fetched");
    rig.cores[core].fetched(fetch.op, Ok(&[9; BLOCK as usize]));
    rig.turn();
    assert_eq!(rig.result(merge), Some(Ok(())));
    expect(&mut rig, 3, &[(0, 10, 1)], 9);
}

#[test]
fn a_merge_whose_old_content_moved_meanwhile_starts_again() {
    let mut rig = Rig::new(1);
    rig.write(3, 9);
    let cut = rig.cut();
    rig.evict(3);
    let merge = rig.write_on(0, 3 * BLOCK + 1, &[1; 10], false);
    assert_eq!(rig.io.len(), 1);
    let read = rig.io.pop().unwrap();
    rig.commit(cut, 0, &[3]);
    rig.end(read, None);
    rig.turn();
    let (core, fetch) = rig.fetches.pop().expect("the block is in a chunk now");
    rig.cores[core].fetched(fetch.op, Ok(&[9; BLOCK as usize]));
    rig.turn();
    assert_eq!(rig.result(merge), Some(Ok(())));
    expect(&mut rig, 3, &[(1, 10, 1)], 9);
}

#[test]
fn zeroes_of_any_alignment_read_as_zeros_and_trims_round_inward() {
    let mut rig = Rig::new(1);
    for block in 0..40 {
        rig.write(block, 7);
    }
    rig.settle();
    rig.mark(BLOCK + 100, 20 * BLOCK, MarkKind::Zero);
    rig.settle();
    expect(&mut rig, 0, &[], 7);
    expect(&mut rig, 1, &[(100, BLOCK as usize - 100, 0)], 7);
    for block in 2..21 {
        assert_eq!(rig.byte(block), 0);
    }
    expect(&mut rig, 21, &[(0, 100, 0)], 7);
    rig.mark(22 * BLOCK + 1, 3 * BLOCK, MarkKind::Trim);
    rig.settle();
    let bytes: Vec<u8> = (22..26).map(|block| rig.byte(block)).collect();
    assert_eq!(bytes, [7, 0, 0, 7]);
}

#[test]
fn a_durable_merge_waits_for_its_own_batch() {
    let mut rig = Rig::new(1);
    rig.write(3, 9);
    rig.evict(3);
    let merge = rig.write_on(0, 3 * BLOCK, &[1; 10], true);
    rig.end_some(is_read, None);
    assert_eq!(rig.result(merge), None, "merged, not durable");
    rig.settle();
    assert_eq!(rig.result(merge), Some(Ok(())));
}

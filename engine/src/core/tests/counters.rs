//! The counters tell what happened.

use super::rig::{BLOCK, Rig, is_read};

#[test]
fn reads_are_counted_by_source() {
    let mut rig = Rig::new(1);
    rig.write(0, 1);
    rig.write(1, 1);
    let cut = rig.cut();
    rig.commit(cut, 0, &[0, 1]);
    rig.evict(1);
    rig.write(2, 1);
    rig.evict(2);
    let before = rig.cores[0].counters();
    rig.read_on(0, 0, 4 * BLOCK);
    rig.end_some(is_read, None);
    let (core, fetch) = rig.fetches.pop().expect("block 1 is in a chunk");
    rig.cores[core].fetched(fetch.op, Ok(&[1; BLOCK as usize]));
    rig.turn();
    let after = rig.cores[0].counters();
    let counts = [
        after.memory_blocks - before.memory_blocks,
        after.wal_blocks - before.wal_blocks,
        after.chunk_blocks - before.chunk_blocks,
        after.hole_blocks - before.hole_blocks,
    ];
    assert_eq!(
        counts,
        [1, 1, 1, 1],
        "0 in memory, 2 in the log, 1 in a chunk, 3 nowhere"
    );
}

#[test]
fn parked_parts_are_counted_with_their_cause_and_time() {
    let mut rig = Rig::new(1);
    let mut parked = 0;
    for i in 0..45 {
        let ticket = rig.write(16 * i, 1);
        parked += u64::from(rig.result(ticket).is_none());
    }
    assert!(parked > 1);
    rig.pass_ms(50);
    rig.settle();
    let counters = rig.cores[0].counters();
    assert_eq!(
        (counters.parked, counters.parked_for_memory),
        (parked, parked)
    );
    assert_eq!(counters.parked_for_log, 0);
    assert_eq!(counters.parked_ms, parked * 50);
}

#[test]
fn log_writes_and_barriers_are_counted() {
    let mut rig = Rig::new(1);
    let before = rig.cores[0].counters();
    rig.write(0, 1);
    rig.flush_on(0);
    rig.settle();
    let after = rig.cores[0].counters();
    assert_eq!(after.wal_writes - before.wal_writes, 1);
    assert_eq!(after.wal_bytes - before.wal_bytes, 2 * BLOCK);
    assert_eq!(after.barriers - before.barriers, 1);
}

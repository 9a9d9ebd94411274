//! Cuts: what is in them, when they are handed over, and what a commit lets go.

use super::rig::{BLOCK, Rig, is_write};
use crate::block::BlockNum;
use crate::index::Hit;
use crate::wal::MarkKind;

/// Whether the cut handed over last holds data of `block`.
fn holds(rig: &Rig, block: u64) -> bool {
    let block = BlockNum(block);
    let shards = rig.sealed.iter().flat_map(|core| &core.shards);
    let mut layers = shards
        .filter(|shard| shard.shard == block.shard())
        .flat_map(|shard| &shard.volumes);
    layers.any(|(_, _, layer)| matches!(layer.lookup(block.local()), Some(Hit::Data(_))))
}

#[test]
fn a_core_that_looks_at_the_clock_late_stamps_nothing_with_the_old_epoch() {
    let mut rig = Rig::new(2);
    rig.write_on(0, 0, &[1; BLOCK as usize], false);
    rig.clock.advance();
    // Core 1 has not turned since; its first write is of the new epoch.
    let ticket = rig.write_on(1, BLOCK, &[2; BLOCK as usize], false);
    assert_eq!(rig.result(ticket), Some(Ok(())));
    rig.settle();
    assert!(holds(&rig, 0));
    assert!(!holds(&rig, 1), "answered after the cut began");
    assert_eq!((rig.byte(0), rig.byte(1)), (1, 2));
}

#[test]
fn a_cut_is_handed_over_once_its_batches_are_durable() {
    let mut rig = Rig::new(1);
    rig.write(3, 1);
    rig.write(4, 1);
    rig.clock.advance();
    rig.turn();
    assert_eq!(rig.end_some(is_write, None), 2);
    assert!(rig.sealed.is_empty(), "a power loss may still take them");
    rig.turn();
    assert_eq!(rig.end_some(|io| !is_write(io), None), 1, "a barrier");
    assert_eq!(rig.sealed.len(), 1);
    assert_eq!(rig.sealed[0].shards.len(), 16);
    assert!(holds(&rig, 3) && holds(&rig, 4));
}

#[test]
fn a_cut_of_nothing_is_handed_over_at_once() {
    let mut rig = Rig::new(1);
    rig.clock.advance();
    rig.turn();
    assert_eq!(rig.sealed.len(), 1);
    assert!(rig.sealed[0].shards.iter().all(|s| s.volumes.is_empty()));
}

#[test]
fn a_commit_keeps_what_was_written_after_its_cut() {
    let mut rig = Rig::new(1);
    rig.write(3, 1);
    rig.write(4, 1);
    let cut = rig.cut();
    rig.write(3, 2);
    rig.mark(4 * BLOCK, BLOCK, MarkKind::Zero);
    rig.commit(cut, 0, &[3, 4]);
    assert_eq!(rig.applied, 1);
    assert_eq!((rig.byte(3), rig.byte(4)), (2, 0));
    let next = rig.cut();
    assert!(next > cut);
    rig.commit(next, 1, &[3]);
    assert_eq!(rig.byte(3), 2, "still in batch memory");
}

#[test]
fn log_space_is_released_by_the_commit_alone() {
    let mut rig = Rig::new(1);
    for i in 0..60 {
        rig.write(16 * i, 1);
        rig.flush_on(0);
        rig.settle();
    }
    let used = rig.cores[0].shards()[0].log().used_bytes();
    let cut = rig.cut();
    assert_eq!(rig.cores[0].shards()[0].log().used_bytes(), used);
    rig.write(16, 2);
    rig.commit(cut, 0, &(0..60).map(|i| 16 * i).collect::<Vec<_>>());
    assert!(rig.cores[0].shards()[0].log().used_bytes() < used);
    assert!(rig.cores[0].counters().wal_released > 0);
    assert_eq!(rig.byte(16), 2);
}

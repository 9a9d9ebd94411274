//! FUA and FLUSH: what they wait for, and that they do.

use super::rig::{BLOCK, Rig, is_barrier, is_write, lazy};
use crate::core::{Io, SyncMode, WritePolicy};

#[test]
fn a_flush_waits_for_the_write_and_for_a_barrier_after_it() {
    let mut rig = Rig::new(1);
    let write = rig.write(3, 1);
    assert_eq!(rig.result(write), Some(Ok(())), "answered from memory");
    assert!(rig.io.is_empty(), "nobody waits");
    let flush = rig.flush_on(0);
    assert_eq!(rig.end_some(is_write, None), 1);
    assert_eq!(rig.result(flush), None, "written is not durable");
    assert_eq!(rig.end_some(is_barrier, None), 1);
    assert_eq!(rig.result(flush), Some(Ok(())));
}

#[test]
fn a_barrier_issued_before_a_write_ended_does_not_cover_it() {
    let mut rig = Rig::new(1);
    rig.write(0, 1);
    let first = rig.flush_on(0);
    rig.end_some(is_write, None);
    assert!(rig.io.iter().any(|(_, io)| is_barrier(io)));
    rig.write(1, 2);
    let second = rig.flush_on(0);
    assert_eq!(rig.end_some(is_write, None), 1);
    assert_eq!(rig.end_some(is_barrier, None), 1);
    assert_eq!(rig.result(first), Some(Ok(())));
    assert_eq!(
        rig.result(second),
        None,
        "the late one joins the next barrier"
    );
    assert_eq!(rig.end_some(is_barrier, None), 1);
    assert_eq!(rig.result(second), Some(Ok(())));
}

#[test]
fn all_that_wait_share_one_barrier() {
    let mut rig = Rig::new(1);
    let fua: Vec<u64> = (0..8)
        .map(|block| rig.write_on(0, block * BLOCK, &[9; BLOCK as usize], true))
        .collect();
    let flush = rig.flush_on(0);
    while rig.end_some(is_write, None) > 0 {}
    assert!(fua.iter().all(|ticket| rig.result(*ticket).is_none()));
    let mut barriers = 0;
    while rig.result(flush).is_none() {
        barriers += rig.end_some(is_barrier, None);
    }
    assert!(barriers <= 2, "{barriers} barriers");
    assert!(fua.iter().all(|ticket| rig.result(*ticket) == Some(Ok(()))));
}

/// Whether something is a write of one shard's log.
fn of_shard(wanted: usize) -> impl Fn(&Io) -> bool {
    move |io| matches!(io, Io::WalWrite { shard, .. } if shard.index() == wanted)
}

#[test]
fn who_is_about_to_be_written_shares_the_barrier_and_who_is_later_cannot_delay_it() {
    let mut rig = Rig::new(1);
    // The barrier that the rig's start has asked for.
    rig.write(0, 0);
    rig.flush_on(0);
    rig.settle();
    rig.write(0, 1);
    let first = rig.flush_on(0);
    rig.write(1, 2);
    let second = rig.flush_on(0);
    assert_eq!(rig.end_some(of_shard(0), None), 1);
    assert_eq!(rig.end_some(is_barrier, None), 0, "the second is awaited");
    rig.write(2, 3);
    let third = rig.flush_on(0);
    assert_eq!(rig.end_some(of_shard(1), None), 1);
    assert_eq!(rig.end_some(is_barrier, None), 1, "but not the third");
    assert_eq!(rig.result(first), Some(Ok(())));
    assert_eq!(rig.result(second), Some(Ok(())));
    assert_eq!(rig.result(third), None);
    assert_eq!(rig.end_some(of_shard(2), None), 1);
    assert_eq!(rig.end_some(is_barrier, None), 1);
    assert_eq!(rig.result(third), Some(Ok(())));
}

#[test]
fn a_lone_fua_write_is_durable_by_itself_where_the_device_can() {
    let policy = WritePolicy {
        sync: SyncMode::Mixed,
        ..lazy()
    };
    let mut rig = Rig::with_policy(1, policy);
    let fua = rig.write_on(0, 0, &[1; BLOCK as usize], true);
    assert_eq!(rig.end_some(is_write, None), 1);
    assert_eq!(rig.result(fua), Some(Ok(())));
    assert!(rig.io.is_empty(), "no barrier");
}

#[test]
fn a_flush_of_nothing_is_answered_at_once() {
    let mut rig = Rig::new(1);
    let flush = rig.flush_on(0);
    assert_eq!(rig.result(flush), Some(Ok(())));
    rig.write(0, 1);
    rig.flush_on(0);
    rig.settle();
    let again = rig.flush_on(0);
    assert_eq!(rig.result(again), Some(Ok(())));
    assert!(rig.io.is_empty());
}

#[test]
fn nothing_stays_undurable_for_longer_than_the_interval_under_a_steady_trickle() {
    let policy = WritePolicy {
        write_delay_ms: 4,
        flush_interval_ms: 100,
        ..lazy()
    };
    let mut rig = Rig::with_policy(1, policy);
    let mut barriers = 0;
    for i in 0..25 {
        rig.write(16 * i, 1);
        rig.pass_ms(10);
        rig.end_some(is_write, None);
        barriers += rig.end_some(is_barrier, None);
    }
    assert!(barriers >= 2, "{barriers} barriers in 250 ms");
}

/// Fills `blocks` of every shard of `shards`, in order of block numbers.
fn fill(rig: &mut Rig, shards: u64, blocks: std::ops::Range<u64>) {
    for local in blocks {
        for shard in 0..shards {
            rig.write(local * 16 + shard, 1);
        }
    }
}

/// A core that writes a batch when it has 32 KiB, and wants a barrier at 64 KiB a shard.
fn eager(writes_in_flight_max: usize) -> Rig {
    let policy = WritePolicy {
        batch_bytes: 32 << 10,
        undurable_bytes: 64 << 10,
        writes_in_flight_max,
        ..lazy()
    };
    let mut rig = Rig::with_policy(1, policy);
    // The barrier that the rig's start has asked for.
    rig.write(0, 1);
    rig.flush_on(0);
    rig.settle();
    rig
}

#[test]
fn shards_that_fill_alike_share_one_barrier_in_the_background() {
    let mut rig = eager(32);
    fill(&mut rig, 16, 0..14);
    assert_eq!(rig.io.len(), 32, "two batches a shard");
    for _ in 0..32 {
        assert!(!rig.io.iter().any(|(_, io)| is_barrier(io)), "too early");
        let oldest = rig.io.remove(0);
        rig.end(oldest, None);
        rig.turn();
    }
    assert_eq!(rig.end_some(is_barrier, None), 1, "for 64 KiB of each");
    assert!(rig.io.is_empty());
    let logs = || rig.cores[0].shards().iter().map(|shard| shard.log());
    assert!(logs().all(|log| log.durable_through() == log.last()));
}

#[test]
fn a_shard_that_fills_alone_gets_its_barrier_before_its_memory_is_full() {
    let mut rig = eager(32);
    fill(&mut rig, 1, 0..14);
    assert_eq!(rig.end_some(is_write, None), 2);
    assert!(rig.io.is_empty(), "64 KiB of one shard are little");
    fill(&mut rig, 1, 14..21);
    assert_eq!(rig.end_some(is_write, None), 1);
    assert_eq!(rig.end_some(is_barrier, None), 1, "96 KiB are not");
    assert_eq!(rig.cores[0].counters().parked, 0);
}

#[test]
fn shards_take_turns_when_not_all_may_write() {
    let mut rig = eager(2);
    fill(&mut rig, 4, 0..14);
    let mut order = Vec::new();
    while let Some((_, Io::WalWrite { shard, .. })) = rig.io.first() {
        order.push(shard.index());
        let oldest = rig.io.remove(0);
        rig.end(oldest, None);
        rig.turn();
    }
    assert_eq!(order.len(), 8, "{order:?}");
    let mut half = order[..4].to_vec();
    half.sort_unstable();
    assert_eq!(half, [0, 1, 2, 3], "{order:?}");
}

#[test]
fn a_stop_makes_everything_durable() {
    let mut rig = Rig::new(2);
    for block in 0..32 {
        rig.write(block, 5);
    }
    assert!(!rig.cores.iter().all(|core| core.is_quiet()));
    for core in &mut rig.cores {
        core.make_durable();
    }
    rig.settle();
    assert!(rig.cores.iter().all(|core| core.is_quiet()));
}

#[test]
fn a_core_whose_device_is_slow_sleeps_until_something_ends() {
    let policy = WritePolicy {
        write_delay_ms: 4,
        flush_interval_ms: 100,
        ..lazy()
    };
    let mut rig = Rig::with_policy(1, policy);
    assert_eq!(rig.cores[0].deadline_ms(), None, "nothing to do");
    rig.write(0, 1);
    assert_eq!(rig.cores[0].deadline_ms(), Some(4), "the batch");
    rig.pass_ms(4);
    assert!(rig.io.iter().any(|(_, io)| is_write(io)));
    rig.pass_ms(500);
    assert_eq!(rig.cores[0].deadline_ms(), None, "the write is under way");
    rig.end_some(is_write, None);
    assert!(rig.io.iter().any(|(_, io)| is_barrier(io)), "long due");
    rig.pass_ms(500);
    assert_eq!(rig.cores[0].deadline_ms(), None, "the barrier is under way");
    rig.write(16, 2);
    assert_eq!(rig.cores[0].deadline_ms(), Some(4), "a new batch is not");
    rig.pass_ms(4);
    rig.settle();
    rig.pass_ms(100);
    rig.settle();
    assert!(rig.cores[0].is_quiet());
    assert_eq!(rig.cores[0].deadline_ms(), None);
}

#[test]
fn a_core_whose_device_fails_sleeps_until_what_is_under_way_has_ended() {
    let policy = WritePolicy {
        write_delay_ms: 4,
        flush_interval_ms: 100,
        ..lazy()
    };
    let mut rig = Rig::with_policy(1, policy);
    for round in 0..2u8 {
        rig.write(0, round);
        rig.pass_ms(4);
    }
    assert_eq!(rig.io.len(), 2, "two writes of one shard");
    let failed = rig.io.remove(0);
    rig.end(failed, Some(5));
    rig.turn();
    rig.write(0, 9);
    rig.pass_ms(500);
    assert_eq!(rig.cores[0].deadline_ms(), None, "the other write drains");
    rig.settle();
    rig.pass_ms(104);
    rig.settle();
    assert!(rig.cores[0].is_quiet());
}

//! Failing devices: one error is overcome, a lasting one fails the shard closed, and nothing that
//! waits on it hangs.

use super::rig::{BLOCK, Rig, is_barrier, is_write};
use crate::core::Failure;

const EIO: i32 = 5;

/// Fails every write and barrier until nothing is asked for.
fn fail_everything(rig: &mut Rig) {
    rig.turn();
    for _ in 0..20 {
        if rig.end_some(|_| true, Some(EIO)) == 0 {
            return;
        }
    }
    panic!("a failed device is asked again and again");
}

#[test]
fn one_write_error_is_overcome_in_a_fresh_segment() {
    let mut rig = Rig::new(1);
    rig.write(4, 1);
    let flush = rig.flush_on(0);
    assert_eq!(rig.end_some(is_write, Some(EIO)), 1);
    rig.settle();
    assert_eq!(rig.result(flush), Some(Ok(())));
    assert_eq!(rig.cores[0].counters().wal_rewrites, 1);
    assert_eq!(rig.byte(4), 1);
}

#[test]
fn one_barrier_error_is_overcome() {
    let mut rig = Rig::new(1);
    rig.write(4, 1);
    let flush = rig.flush_on(0);
    rig.end_some(is_write, None);
    assert_eq!(rig.end_some(is_barrier, Some(EIO)), 1);
    assert_eq!(rig.result(flush), None, "nothing is proved");
    assert_eq!(rig.end_some(is_write, None), 1, "written once more");
    assert_eq!(rig.end_some(is_barrier, None), 1);
    assert_eq!(rig.result(flush), Some(Ok(())));
}

#[test]
fn a_lasting_error_fails_the_shard_closed_and_reads_go_on() {
    let mut rig = Rig::new(1);
    rig.write(4, 1);
    rig.write(5, 2);
    rig.flush_on(0);
    rig.settle();
    rig.write(4, 3);
    let fua = rig.write_on(0, 5 * BLOCK, &[4; BLOCK as usize], true);
    let flush = rig.flush_on(0);
    fail_everything(&mut rig);
    assert_eq!(rig.result(flush), Some(Err(Failure::Io)));
    assert_eq!(rig.result(fua), Some(Err(Failure::Io)));
    let write = rig.write(4, 5);
    assert_eq!(rig.result(write), Some(Err(Failure::Io)));
    let flush = rig.flush_on(0);
    assert_eq!(rig.result(flush), Some(Err(Failure::Io)));
    assert_eq!(rig.byte(4), 3, "the answered write, from memory");
    assert!(rig.cores[0].is_quiet(), "nothing more can become durable");
}

#[test]
fn a_failed_log_is_left_alone() {
    let mut rig = Rig::new(1);
    rig.write(4, 1);
    rig.flush_on(0);
    rig.end_some(is_write, None);
    // The barrier fails, then that of the rewritten batch: written, and never to be trusted.
    rig.end_some(is_barrier, Some(EIO));
    rig.end_some(is_write, None);
    rig.end_some(is_barrier, Some(EIO));
    assert!(rig.cores[0].shards()[4].log().failed().is_some());
    for _ in 0..5 {
        rig.pass_ms(5000);
        assert!(rig.io.is_empty(), "a barrier of a failed log");
    }
    assert_eq!(rig.cores[0].deadline_ms(), None, "nothing to wake up for");
}

#[test]
fn a_write_that_is_placed_in_a_log_which_then_fails_is_answered_though_its_rest_waits() {
    let mut rig = Rig::new(1);
    // Block 5 is only in the file: merging with it takes a read, which keeps the request open.
    rig.write(5, 1);
    rig.evict(5);
    let mut data = vec![7; BLOCK as usize];
    data.extend([8; 100]);
    let request = rig.write_on(0, 4 * BLOCK, &data, true);
    assert_eq!(rig.result(request), None);
    let flush = rig.flush_on(0);
    // The log of shard 4 fails while the other part of the request reads.
    for _ in 0..10 {
        rig.end_some(|io| !super::rig::is_read(io), Some(EIO));
    }
    assert!(rig.cores[0].shards()[4].log().failed().is_some());
    assert_eq!(rig.result(flush), Some(Err(Failure::Io)));
    rig.settle();
    assert_eq!(
        rig.result(request),
        Some(Err(Failure::Io)),
        "it must not wait for ever"
    );
}

#[test]
fn parked_writes_of_a_log_that_fails_are_answered() {
    let mut rig = Rig::new(1);
    let writes: Vec<u64> = (0..60).map(|i| rig.write(16 * i, 1)).collect();
    assert!(rig.cores[0].parked(0) > 0, "memory is full");
    fail_everything(&mut rig);
    let failed = |ticket: &&u64| rig.result(**ticket) == Some(Err(Failure::Io));
    assert!(writes.iter().filter(failed).count() > 0);
    assert!(writes.iter().all(|ticket| rig.result(*ticket).is_some()));
    assert_eq!(rig.cores[0].unanswered(), 0);
}

//! Writes that wait: in order, cancellable, and not for ever.

use super::rig::{BLOCK, Rig, SLOT, VOLUME, is_read};
use crate::core::{Failure, Progress};
use crate::identity::Epoch;
use crate::wal::MarkKind;

/// Fills the memory of shard 0; the tickets, the last of them parked.
fn fill(rig: &mut Rig) -> Vec<u64> {
    let writes = (0..45).map(|i| rig.write(16 * i, 1)).collect();
    assert!(rig.cores[0].parked(0) > 0);
    writes
}

/// Fills the log of shard 0 until a write parks; that write's ticket.
fn fill_log(rig: &mut Rig) -> u64 {
    for i in 0..2000 {
        let ticket = rig.write(16 * i, 2);
        rig.flush_on(0);
        rig.settle();
        if rig.result(ticket).is_none() {
            return ticket;
        }
    }
    panic!("the log does not fill up");
}

#[test]
fn parked_writes_land_in_order_and_are_answered() {
    let mut rig = Rig::new(1);
    let writes = fill(&mut rig);
    let older = rig.write(0, 2);
    let newer = rig.write(0, 3);
    assert_eq!((rig.result(older), rig.result(newer)), (None, None));
    rig.settle();
    assert_eq!(rig.byte(0), 3, "the newest landed last");
    assert!(
        writes
            .iter()
            .all(|ticket| rig.result(*ticket) == Some(Ok(())))
    );
    assert_eq!(rig.result(newer), Some(Ok(())));
    assert_eq!(rig.cores[0].unanswered(), 0);
}

#[test]
fn other_shards_reads_and_flushes_do_not_wait_behind_a_parked_write() {
    let mut rig = Rig::new(1);
    let parked = fill_log(&mut rig);
    let other = rig.write(1, 7);
    assert_eq!(rig.result(other), Some(Ok(())));
    assert_eq!(rig.byte(0), 2);
    let flush = rig.flush_on(0);
    rig.settle();
    assert_eq!(rig.result(flush), Some(Ok(())));
    assert_eq!(rig.result(parked), None);
}

#[test]
fn a_full_log_asks_for_a_cut_and_goes_on_after_its_commit() {
    let mut rig = Rig::new(1);
    rig.loads.clear();
    let parked = fill_log(&mut rig);
    let told = rig.loads.last().expect("the load is told");
    assert!(told.wal_percent >= 50 && told.pending_bytes > 0, "{told:?}");
    let cut = rig.cut();
    rig.commit(cut, 0, &[]);
    assert_eq!(rig.result(parked), Some(Ok(())));
}

#[test]
fn a_full_backend_turns_waiting_into_enospc_until_it_has_room() {
    let mut rig = Rig::new(1);
    let parked = fill_log(&mut rig);
    rig.cores[0].set_backend_full(true);
    rig.turn();
    assert_eq!(rig.result(parked), Some(Err(Failure::NoSpace)));
    let refused = rig.write(16, 9);
    assert_eq!(rig.result(refused), Some(Err(Failure::NoSpace)));
    let trim = rig.mark(0, BLOCK, MarkKind::Trim);
    assert_eq!(rig.result(trim), Some(Ok(())), "from the reserve");
    rig.cores[0].set_backend_full(false);
    let waits = rig.write(16, 9);
    assert_eq!(rig.result(waits), None);
    let cut = rig.cut();
    rig.commit(cut, 0, &[]);
    assert_eq!(rig.result(waits), Some(Ok(())));
}

#[test]
fn a_full_backend_slows_writes_before_it_refuses_them_and_lets_trims_pass() {
    let mut rig = Rig::new(1);
    rig.cores[0].set_backend_full(true);
    let (mut waited, mut longest_ms) = (0, 0);
    for i in 0..2000 {
        let ticket = rig.write(16 * i, 2);
        let mut waited_ms = 0;
        while rig.result(ticket).is_none() {
            let pause_ms = rig.cores[0].deadline_ms().expect("something is due");
            waited_ms += pause_ms.max(1);
            assert!(waited_ms < 2000, "write {i} is stuck");
            rig.pass_ms(pause_ms.max(1));
            rig.settle();
        }
        waited += u32::from(waited_ms > 0);
        longest_ms = longest_ms.max(waited_ms);
        rig.flush_on(0);
        rig.settle();
        if rig.result(ticket) == Some(Err(Failure::NoSpace)) {
            assert!(i > 20, "the first writes are not touched");
            assert!(
                waited >= 10 && longest_ms >= 20,
                "{waited}, {longest_ms} ms"
            );
            let trim = rig.mark(0, BLOCK, MarkKind::Trim);
            assert_eq!(rig.result(trim), Some(Ok(())));
            return;
        }
        assert_eq!(rig.result(ticket), Some(Ok(())));
    }
    panic!("the log does not fill up");
}

#[test]
fn a_cancelled_write_never_lands() {
    let mut rig = Rig::new(1);
    fill_log(&mut rig);
    let (ticket, origin) = rig.origin();
    let data = [0xAA; BLOCK as usize];
    let Progress::Pending(key) = rig.cores[0].write(origin, SLOT, 0, &data, false) else {
        panic!("there is room");
    };
    let successor = rig.write(0, 0xBB);
    rig.cores[0].cancel(key);
    rig.turn();
    assert_eq!(rig.result(ticket), Some(Err(Failure::Gone)));
    let cut = rig.cut();
    rig.commit(cut, 0, &[]);
    assert_eq!(rig.result(successor), Some(Ok(())));
    assert_eq!(rig.byte(0), 0xBB);
}

#[test]
fn the_key_of_a_finished_request_cancels_nobody_else() {
    let mut rig = Rig::new(1);
    let (first, origin) = rig.origin();
    let data = [1; BLOCK as usize];
    let Progress::Pending(old) = rig.cores[0].write(origin, SLOT, 0, &data, true) else {
        panic!("a FUA write waits");
    };
    rig.settle();
    assert_eq!(rig.result(first), Some(Ok(())));
    fill_log(&mut rig);
    let victim = rig.write(32, 4);
    assert_eq!(rig.result(victim), None);
    rig.cores[0].cancel(old);
    let cut = rig.cut();
    rig.commit(cut, 0, &[]);
    assert_eq!(rig.result(victim), Some(Ok(())));
}

#[test]
fn a_fenced_volume_answers_what_is_parked_and_takes_no_more() {
    let mut rig = Rig::new(1);
    let parked = fill_log(&mut rig);
    rig.cores[0].fence_volume(SLOT);
    rig.turn();
    assert_eq!(rig.result(parked), Some(Err(Failure::Gone)));
    let write = rig.write(0, 1);
    assert_eq!(rig.result(write), Some(Err(Failure::ReadOnly)));
}

#[test]
fn a_fenced_volumes_flush_fails_and_so_does_one_under_way() {
    for cores in [1, 3] {
        let mut rig = Rig::new(cores);
        let write = rig.write(3, 1);
        let early = rig.flush_on(0);
        assert_eq!(rig.result(write), Some(Ok(())));
        for core in &mut rig.cores {
            core.fence_volume(SLOT);
        }
        let late = rig.flush_on(0);
        rig.settle();
        for flush in [early, late] {
            assert_eq!(rig.result(flush), Some(Err(Failure::Gone)), "{cores} cores");
        }
        assert_eq!(rig.cores[0].unanswered(), 0);
    }
}

#[test]
fn the_log_keeps_the_records_of_a_volume_that_is_opened_anew() {
    let mut rig = Rig::new(1);
    fill_log(&mut rig);
    let released = |rig: &Rig| rig.cores[0].counters().wal_released;
    let before = released(&rig);
    assert_eq!(rig.cores[0].detach_volume(SLOT), Some(VOLUME));
    rig.settle();
    assert_eq!(released(&rig), before);
    rig.cores[0].forget_volume(VOLUME);
    rig.settle();
    assert!(released(&rig) > before);
    assert_eq!(rig.cores[0].detach_volume(SLOT), None);
}

#[test]
fn a_deleted_volumes_reads_and_merges_do_not_touch_the_next_one_in_its_slot() {
    let mut rig = Rig::new(1);
    rig.write(2, 0xCC);
    rig.evict(2);
    let merge = rig.write_on(0, 2 * BLOCK + 10, &[1; 10], false);
    let read = rig.read_on(0, 2 * BLOCK, BLOCK);
    assert_eq!(rig.io.iter().filter(|(_, io)| is_read(io)).count(), 2);
    rig.cores[0].remove_volume(SLOT);
    rig.add_volume(SLOT, crate::identity::VolumeId(VOLUME.0 + 1));
    rig.settle();
    assert_eq!(rig.result(merge), Some(Err(Failure::Gone)));
    assert_eq!(rig.result(read), Some(Err(Failure::Gone)));
    assert_eq!(rig.byte(2), 0);
    assert_eq!(rig.clock.now(), Epoch(1));
}

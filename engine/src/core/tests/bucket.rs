//! What waits for the bucket: FLUSH and FUA of remote volumes, and writes beyond what may be lost.

use super::rig::{BLOCK, Rig, SLOT, VOLUME};
use crate::core::{CutScope, Failure};
use crate::identity::Epoch;
use crate::volume::{Durability, VolumeSettings};

fn configure(rig: &mut Rig, change: impl Fn(&mut VolumeSettings)) {
    let mut settings = VolumeSettings::with_size(1 << 30);
    change(&mut settings);
    for core in &mut rig.cores {
        core.configure_volume(SLOT, &settings, false);
    }
    rig.turn();
}

fn remote(cores: usize) -> Rig {
    let mut rig = Rig::new(cores);
    configure(&mut rig, |s| s.durability = Durability::Remote);
    rig
}

#[test]
fn a_remote_flush_is_answered_after_the_commit_of_a_cut_that_covers_it() {
    for cores in [1, 3] {
        let mut rig = remote(cores);
        let write = rig.write(3, 1);
        rig.settle();
        assert_eq!(rig.result(write), Some(Ok(())), "writes do not wait");
        let flush = rig.flush_on(0);
        rig.settle();
        assert_eq!(rig.result(flush), None, "durable here only");
        assert_eq!(rig.wants, [(VOLUME, Epoch(1))]);
        let cut = rig.cut();
        assert_eq!(rig.result(flush), None, "cut, not committed");
        rig.commit(cut, 0, &[3]);
        assert_eq!(rig.result(flush), Some(Ok(())));
    }
}

#[test]
fn flushes_share_a_cut_and_a_late_one_waits_for_the_next() {
    let mut rig = remote(2);
    rig.write_on(0, 0, &[1; BLOCK as usize], false);
    let early: Vec<u64> = (0..4).map(|i| rig.flush_on(i % 2)).collect();
    rig.settle();
    let asked = rig.wants.len();
    assert!(asked <= 2, "each core asks once for an epoch: {asked}");
    let cut = rig.cut();
    rig.write_on(1, BLOCK, &[2; BLOCK as usize], false);
    let late = rig.flush_on(0);
    rig.settle();
    rig.commit(cut, 0, &[0]);
    assert!(early.iter().all(|flush| rig.result(*flush) == Some(Ok(()))));
    assert_eq!(rig.result(late), None);
    assert_eq!(rig.wants.last(), Some(&(VOLUME, cut.next())));
    let next = rig.cut();
    rig.commit(next, 1, &[1]);
    assert_eq!(rig.result(late), Some(Ok(())));
}

#[test]
fn fua_waits_for_the_bucket_too_and_a_clean_volume_is_told_when_it_is_covered() {
    let mut rig = remote(2);
    let fua = rig.write_on(0, 0, &[1; 2 * BLOCK as usize], true);
    rig.settle();
    assert_eq!(rig.result(fua), None);
    let cut = rig.cut();
    rig.commit(cut, 0, &[0, 1]);
    assert_eq!(rig.result(fua), Some(Ok(())));
    let flush = rig.flush_on(1);
    rig.settle();
    assert_eq!(rig.result(flush), None);
    let cut = rig.cut();
    for core in &mut rig.cores {
        core.covered(SLOT, VOLUME, cut);
    }
    rig.turn();
    assert_eq!(rig.result(flush), Some(Ok(())));
}

#[test]
fn waiting_for_the_bucket_ends_with_the_setting_the_volume_or_the_client() {
    let mut rig = remote(1);
    rig.write(0, 1);
    let flush = rig.flush_on(0);
    rig.settle();
    configure(&mut rig, |_| {});
    assert_eq!(rig.result(flush), Some(Ok(())), "durable here is enough");

    let mut rig = remote(1);
    rig.write(0, 1);
    let flush = rig.flush_on(0);
    rig.settle();
    rig.cores[0].fence_volume(SLOT);
    rig.turn();
    assert_eq!(rig.result(flush), Some(Err(Failure::Gone)));
    assert_eq!(rig.cores[0].unanswered(), 0);

    let mut rig = remote(1);
    rig.write(0, 1);
    let (ticket, origin) = rig.origin();
    let crate::core::Progress::Pending(key) = rig.cores[0].flush(origin, SLOT) else {
        panic!("it waits");
    };
    rig.settle();
    rig.cores[0].cancel(key);
    rig.turn();
    assert_eq!(rig.result(ticket), Some(Err(Failure::Gone)));
}

#[test]
fn writes_beyond_rpo_bytes_wait_for_a_commit_and_reads_and_flushes_do_not() {
    let mut rig = Rig::new(1);
    configure(&mut rig, |s| s.rpo_bytes = 8 * BLOCK);
    rig.loads.clear();
    let first: Vec<u64> = (0..9).map(|block| rig.write(block, 1)).collect();
    rig.settle();
    assert!(
        first
            .iter()
            .all(|ticket| rig.result(*ticket) == Some(Ok(())))
    );
    let older = rig.write(0, 2);
    let newer = rig.write(0, 3);
    let flush = rig.flush_on(0);
    rig.settle();
    assert_eq!((rig.result(older), rig.result(newer)), (None, None));
    assert_eq!(rig.result(flush), Some(Ok(())));
    assert_eq!(rig.byte(0), 1);
    let told = rig.loads.last().expect("a cut is asked for");
    assert_eq!(told.volumes, [(VOLUME, 9 * BLOCK)]);
    let cut = rig.cut();
    assert_eq!(rig.result(older), None, "cut is not committed");
    rig.commit(cut, 0, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        (rig.result(older), rig.result(newer)),
        (Some(Ok(())), Some(Ok(())))
    );
    assert_eq!(rig.byte(0), 3, "in order");
    assert_eq!(rig.cores[0].counters().parked_for_bucket, 2);
}

#[test]
fn writes_wait_while_the_oldest_uncommitted_one_is_too_old() {
    let mut rig = Rig::new(2);
    configure(&mut rig, |s| s.rpo_seconds = 2);
    rig.write_on(0, 0, &[1; BLOCK as usize], false);
    rig.settle();
    rig.pass_ms(2000);
    let young = rig.write_on(1, BLOCK, &[1; BLOCK as usize], false);
    assert_eq!(rig.result(young), Some(Ok(())), "not older than that yet");
    rig.pass_ms(1);
    let held = rig.write_on(1, 3 * BLOCK, &[1; BLOCK as usize], false);
    rig.settle();
    assert_eq!(rig.result(held), None, "of a shard of the other core, too");
    let exposure = rig.clock.exposures().of(VOLUME);
    assert_eq!(exposure.oldest_ms(), Some(0));
    assert_eq!(exposure.bytes(), 2 * BLOCK);
    let cut = rig.cut();
    rig.commit(cut, 0, &[0, 1]);
    assert_eq!(rig.result(held), Some(Ok(())));
    assert_eq!(exposure.bytes(), BLOCK);
    rig.cores[0].fence_volume(SLOT);
}

#[test]
fn held_writes_end_with_their_client_and_hold_up_no_other_volume() {
    let mut rig = Rig::new(1);
    let other = crate::shard::VolumeSlot(1);
    rig.add_volume(other, crate::identity::VolumeId(VOLUME.0 + 1));
    configure(&mut rig, |s| s.rpo_bytes = BLOCK);
    rig.write(0, 1);
    rig.write(16, 1);
    let data = [9; BLOCK as usize];
    let (ticket, origin) = rig.origin();
    let crate::core::Progress::Pending(key) = rig.cores[0].write(origin, SLOT, 0, &data, false)
    else {
        panic!("the limit is reached");
    };
    assert_eq!(rig.cores[0].parked(0), 1);
    let (_, origin) = rig.origin();
    let beside = rig.cores[0].write(origin, other, 0, &data, false);
    assert_eq!(beside, crate::core::Progress::Done);
    rig.cores[0].cancel(key);
    rig.turn();
    assert_eq!(rig.result(ticket), Some(Err(Failure::Gone)));
    assert_eq!(rig.cores[0].parked(0), 0);
}

#[test]
fn a_cut_of_some_volumes_leaves_the_others_as_they_are() {
    let mut rig = Rig::new(1);
    let (other, id) = (
        crate::shard::VolumeSlot(1),
        crate::identity::VolumeId(VOLUME.0 + 1),
    );
    rig.add_volume(other, id);
    rig.write(0, 1);
    let (_, origin) = rig.origin();
    rig.cores[0].write(origin, other, 0, &[2; BLOCK as usize], false);
    let only = CutScope::Only(std::sync::Arc::new([id].into()));
    rig.clock.advance_of(only);
    rig.settle();
    let sealed = rig.sealed.last().expect("sealed");
    let volumes: Vec<_> = sealed.shards.iter().flat_map(|s| &s.volumes).collect();
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0].1, id);
    assert_eq!(sealed.load.volumes, [(VOLUME, BLOCK)]);
    rig.write(16, 1);
    let cut = rig.cut();
    let sealed = rig.sealed.last().expect("sealed");
    assert_eq!(cut, Epoch(2));
    assert_eq!(sealed.load.pending_bytes, 0);
    let layers = sealed.shards.iter().flat_map(|s| &s.volumes);
    let points: usize = layers
        .filter(|(_, v, _)| *v == VOLUME)
        .map(|(.., l)| l.points_len())
        .sum();
    assert_eq!(
        points, 2,
        "stamped before and after the cut of the other one"
    );
}

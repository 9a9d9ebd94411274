//! The error policy: undurable batches are written once more elsewhere, then the log fails closed.

use crate::block::{BlockSize, PAGE_BYTES};
use crate::identity::BatchNum;
use crate::wal::{Health, Shortage};

use super::world::{Crash, World};

const EIO: i32 = 5;

/// Three batches, the head written.
fn three() -> World {
    let mut world = World::new(3);
    world.start_write(false);
    world.finish_write(0, None);
    for _ in 0..3 {
        world.append(2, BlockSize::MIN).unwrap();
        world.log.close();
    }
    world
}

fn health(world: &World) -> Health {
    world.log.health()
}

#[test]
fn a_failed_write_is_repeated_in_a_fresh_segment() {
    let mut world = three();
    while world.start_write(false) {}
    let before = world.log.places(BatchNum(3));
    world.append(1, BlockSize::MIN).unwrap();
    world.finish_write(1, Some(EIO));
    assert_eq!(health(&world), Health::Draining { code: EIO });
    assert!(
        !world.start_write(false),
        "not before the others have ended"
    );
    assert!(!world.log.has_open(), "what was open is moved too");
    world.finish_write(0, None);
    world.finish_write(0, None);
    assert_eq!(
        health(&world),
        Health::Rewriting {
            code: EIO,
            through: BatchNum(4)
        }
    );
    let after = world.log.places(BatchNum(4));
    let at = |map: &crate::wal::PlaceMap, n| {
        map.locate(crate::wal::Place {
            batch: BatchNum(n),
            page: 1,
        })
        .unwrap()
    };
    for number in 1..=3 {
        let (before, after) = (at(&before, number), at(&after, number));
        assert_eq!(before.arena_offset, after.arena_offset);
        assert_eq!(after.file_offset - before.file_offset, 160 << 10);
    }
    world.settle();
    assert_eq!(health(&world), Health::Good);
    assert_eq!(
        (world.log.durable_through(), world.log.errors()),
        (BatchNum(4), 1)
    );
    world.crash(Crash::Power);
}

#[test]
fn a_failed_flush_is_repeated_with_all_it_covered() {
    let mut world = three();
    while world.start_write(false) {}
    while world.finish_write(0, None) {}
    world.start_barrier();
    world.finish_barrier(Some(EIO));
    assert_eq!(
        health(&world),
        Health::Rewriting {
            code: EIO,
            through: BatchNum(3)
        }
    );
    assert_eq!(world.log.written_through(), BatchNum(0));
    world.settle();
    assert_eq!(world.log.durable_through(), BatchNum(3));
    world.crash(Crash::Power);
}

#[test]
fn a_flush_under_way_during_an_error_proves_nothing() {
    let mut world = three();
    world.start_write(false);
    world.start_write(false);
    world.finish_write(0, None);
    let mark = world.log.barrier_mark();
    world.finish_write(0, Some(EIO));
    world.log.barrier_finished(mark, Ok(()));
    assert_eq!(world.log.durable_through(), BatchNum(0));
}

#[test]
fn a_flush_that_succeeds_after_one_that_failed_proves_nothing() {
    let mut world = three();
    world.start_write(false);
    world.finish_write(0, None);
    world.start_write(false);
    world.start_barrier();
    world.finish_barrier(Some(EIO));
    assert_eq!(health(&world), Health::Draining { code: EIO });
    world.start_barrier();
    world.finish_barrier(None);
    assert_eq!(
        world.log.durable_through(),
        BatchNum(0),
        "the first flush dropped batch 1"
    );
    world.finish_write(0, None);
    world.settle();
    assert_eq!(world.log.durable_through(), BatchNum(3));
    world.crash(Crash::Power);
}

#[test]
fn a_second_error_fails_closed_and_reads_go_on() {
    let mut world = three();
    world.start_write(false);
    world.finish_write(0, Some(EIO));
    world.start_write(false);
    world.finish_write(0, Some(EIO));
    assert_eq!(world.log.failed(), Some(EIO));
    assert_eq!(world.append(1, BlockSize::MIN), Err(Shortage::Failed));
    assert_eq!(world.mark(1), Err(Shortage::Failed));
    assert!(!world.start_write(false));
    assert_eq!(
        world.log.durable_through(),
        BatchNum(0),
        "nothing is durable that is not"
    );
    let place = crate::wal::Place {
        batch: BatchNum(2),
        page: 1,
    };
    assert!(world.log.memory(place, PAGE_BYTES).is_some());
    // What was answered is still in the region.
    world.crash(Crash::Kill);
    world.append(1, BlockSize::MIN).unwrap();
    assert!(world.log.failed().is_none());
}

#[test]
fn no_flush_makes_up_for_a_failed_log() {
    let mut world = three();
    world.start_barrier();
    world.finish_barrier(Some(EIO));
    while world.start_write(false) {}
    while world.finish_write(0, None) {}
    world.start_barrier();
    world.finish_barrier(Some(EIO));
    assert_eq!(world.log.failed(), Some(EIO));
    world.start_barrier();
    world.finish_barrier(None);
    assert_eq!(world.log.durable_through(), BatchNum(0));
    world.crash(Crash::Kill);
}

#[test]
fn a_log_head_is_tried_in_the_other_slot() {
    let mut world = World::new(4);
    world.append(1, BlockSize::MIN).unwrap();
    for _ in 0..2 {
        world.start_write(false);
        world.finish_write(0, Some(EIO));
        assert!(world.log.failed().is_none());
    }
    world.settle();
    let mut world = World::new(4);
    for _ in 0..3 {
        world.start_write(false);
        world.finish_write(0, Some(EIO));
    }
    assert_eq!(world.log.failed(), Some(EIO));
}

/// A full log that has used up what marks may take survives an error, and then a kill: each has its
/// part of the reserve.
#[test]
fn a_full_log_survives_an_error_and_a_kill() {
    let mut world = World::new(5);
    loop {
        match world.append(16, BlockSize::MIN) {
            Ok(()) => {}
            Err(Shortage::Memory) => world.settle(),
            Err(_) => break,
        }
    }
    world.settle();
    while world.mark(1).is_ok() {
        world.log.close();
        if world.log.undurable_bytes() > 100 << 10 {
            world.settle();
        }
    }
    assert_eq!(world.mark(1), Err(Shortage::Log));
    let reserve = world.log.config().reserve_segments;
    assert_eq!(world.log.stats().free_segments, reserve - 1);
    assert!(world.start_write(false));
    world.finish_write(0, Some(EIO));
    assert!(matches!(health(&world), Health::Rewriting { .. }));
    world.crash(Crash::Kill);
    while !world.is_recovered() {
        world
            .mark(1)
            .expect("what is left of the reserve is for recovery");
        world.settle();
    }
}

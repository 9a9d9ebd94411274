//! Random histories of appends, writes, errors and crashes against the model.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use crate::block::BlockSize;

use super::world::{Crash, World};

const EIO: i32 = 5;

#[derive(Clone, Debug)]
enum Step {
    Append { count: u32, shift: u32 },
    Mark { count: u32 },
    Close,
    Start { dsync: bool },
    Finish { which: usize },
    FailWrite { which: usize },
    BarrierStart,
    BarrierFinish,
    FailBarrier,
    Commit,
    Settle,
    Crash(Crash),
    End { written: bool, crash: Crash },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (1u32..8, 12u32..15).prop_map(|(count, shift)| Step::Append { count, shift }),
        3 => (1u32..100).prop_map(|count| Step::Mark { count }),
        6 => Just(Step::Close),
        10 => any::<bool>().prop_map(|dsync| Step::Start { dsync }),
        10 => (0usize..8).prop_map(|which| Step::Finish { which }),
        1 => (0usize..8).prop_map(|which| Step::FailWrite { which }),
        5 => Just(Step::BarrierStart),
        5 => Just(Step::BarrierFinish),
        2 => Just(Step::FailBarrier),
        2 => Just(Step::Commit),
        3 => Just(Step::Settle),
        2 => Just(Step::Crash(Crash::Power)),
        2 => Just(Step::Crash(Crash::Kill)),
        3 => end(),
    ]
}

/// A process that ends in order, most of the time; the host or the process may go at any step.
fn end() -> impl Strategy<Value = Step> {
    let crash = prop_oneof![Just(Crash::Power), Just(Crash::Kill)];
    (prop::bool::weighted(0.8), crash).prop_map(|(written, crash)| Step::End { written, crash })
}

/// Mostly large appends, made durable and committed, so that segments are recycled all the time.
fn busy_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (8u32..17).prop_map(|count| Step::Append { count, shift: 12 }),
        1 => Just(Step::Mark { count: 3 }),
        8 => Just(Step::Close),
        8 => any::<bool>().prop_map(|dsync| Step::Start { dsync }),
        6 => (0usize..8).prop_map(|which| Step::Finish { which }),
        2 => Just(Step::BarrierStart),
        2 => Just(Step::BarrierFinish),
        8 => Just(Step::Settle),
        4 => Just(Step::Commit),
        1 => Just(Step::FailWrite { which: 0 }),
        1 => Just(Step::Crash(Crash::Power)),
        1 => Just(Step::Crash(Crash::Kill)),
        2 => end(),
    ]
}

fn run(world: &mut World, step: &Step) {
    // A shortage is no failure: the model holds only what was answered.
    match *step {
        Step::Append { count, shift } => {
            let count = count.min((64 << 10) >> shift);
            let _ = world.append(count, BlockSize::new(1 << shift).unwrap());
        }
        Step::Mark { count } => {
            let _ = world.mark(count);
        }
        Step::Close => {
            world.log.close();
        }
        Step::Start { dsync } => {
            world.start_write(dsync);
        }
        Step::Finish { which } => {
            world.finish_write(which, None);
        }
        Step::FailWrite { which } => {
            world.finish_write(which, Some(EIO));
        }
        Step::BarrierStart => world.start_barrier(),
        Step::BarrierFinish => world.finish_barrier(None),
        Step::FailBarrier => world.finish_barrier(Some(EIO)),
        Step::Commit => world.commit(),
        Step::Settle => {
            if world.log.failed().is_none() {
                world.settle();
            }
        }
        Step::Crash(crash) => world.crash(crash),
        Step::End { written, crash } => {
            if world.log.failed().is_none() {
                world.settle();
            }
            world.end(written);
            world.crash(crash);
        }
    }
}

fn config(cases: u32, seed: u64) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config(400, 1))]

    #[test]
    fn nothing_durable_is_lost_and_nothing_else_appears(
        steps in proptest::collection::vec(step(), 1..150),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(seed);
        for step in &steps {
            run(&mut world, step);
        }
        world.crash(Crash::Kill);
        world.crash(Crash::Power);
        world.crash(Crash::Power);
    }
}

proptest! {
    #![proptest_config(config(60, 2))]

    #[test]
    fn nothing_durable_is_lost_while_segments_are_recycled(
        steps in proptest::collection::vec(busy_step(), 300..600),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(seed);
        for step in &steps {
            run(&mut world, step);
        }
        world.crash(Crash::Power);
        world.crash(Crash::Power);
    }
}

/// Fills the log many times over, so that every segment is recycled and batches are evicted.
#[test]
fn recycled_segments_hold_no_ghosts() {
    let mut dice = super::dice::Dice(42);
    let mut world = World::new(7);
    for round in 0..400u64 {
        let mut full = false;
        for _ in 0..dice.roll(30) {
            full |= world
                .append(1 + dice.roll(12) as u32, BlockSize::MIN)
                .is_err();
        }
        if full || dice.roll(3) == 0 {
            world.settle();
        }
        if dice.roll(4) == 0 {
            world.commit();
        }
        world.release();
        if round % 10 == 9 {
            if dice.roll(3) == 0 {
                world.settle();
                assert!(world.end(dice.roll(4) > 0));
            }
            world.crash(if dice.roll(2) == 0 {
                Crash::Power
            } else {
                Crash::Kill
            });
        }
    }
    assert_eq!(world.recoveries, 40);
    assert!(world.unsearched >= 5, "{} ended in order", world.unsearched);
    assert!(world.from_notes >= 2, "{} from notes", world.from_notes);
    let generation = world.log.segments.last_generation();
    assert!(
        generation > 80,
        "segments were used over and over: {generation}"
    );
}

//! A few hundred seeds, reach, and determinism.

use super::{Coverage, EVENTS, RACE_EVENTS, run, run_race};

const SEEDS: u64 = 200;
const RACES: u64 = 100;

#[test]
fn seeds_keep_every_promise_and_reach_everything() {
    let mut reached = Coverage::default();
    for seed in 0..SEEDS {
        match run(seed) {
            Ok(outcome) => reached.merge(&outcome.coverage),
            Err(violation) => panic!("{violation}"),
        }
    }
    assert_eq!(
        reached.missing(EVENTS),
        Vec::<&str>::new(),
        "never reached in {SEEDS} seeds"
    );
}

/// Seed 930 was the first to show it: the bucket had blocks that a power loss took from the disk, a
/// start without the backend served what was before, and a later one what the bucket had. Seed
/// 1680: of two starts without the backend one after the other, the second stamped what the first
/// had stamped and lost, and a late commit of the first seemed to hold the records of the second.
#[test]
fn a_start_without_the_backend_never_lets_a_block_go_back_in_time() {
    for seed in [930, 1680] {
        if let Err(violation) = run(seed) {
            panic!("{violation}");
        }
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 7, 42] {
        let (first, second) = (run(seed).unwrap(), run(seed).unwrap());
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.events, second.events);
        assert_eq!(first.coverage, second.coverage);
    }
    assert_ne!(run(1).unwrap().trace_hash, run(2).unwrap().trace_hash);
}

#[test]
fn races_of_two_appliances_keep_every_promise_and_reach_everything() {
    let mut reached = Coverage::default();
    for seed in 0..RACES {
        match run_race(seed) {
            Ok(outcome) => reached.merge(&outcome.coverage),
            Err(violation) => panic!("{violation}"),
        }
    }
    let missing = reached.missing(RACE_EVENTS);
    assert_eq!(
        missing,
        Vec::<&str>::new(),
        "never reached in {RACES} races"
    );
}

//! The writer dies after any effect, reported or not; the next one finds a cut and loses nothing.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::rig::{Rig, World, eager};
use crate::backend::{Fault, FaultRule, Operation};
use crate::error::ErrorKind;
use crate::identity::Epoch;

/// Commits cuts with overwrites and zeros, so that checkpoints and deletes happen too.
fn prepare(world: &mut World, rounds: u64) -> Rig {
    let mut rig = world.open(eager());
    for round in 0..rounds {
        world.write((round * 10)..(round * 10 + 60));
        world.zero(20..25);
        rig.commit_and_verify(world);
    }
    world.write(0..50);
    world.zero(100..120);
    rig.trace.clear();
    rig
}

/// Whatever was not committed is still in the WAL: committing it again brings the newest content.
fn recover(world: &mut World, before: Epoch, during: Epoch) {
    let found = world.verify();
    assert!(
        found == before || found == during,
        "the image is cut {found}"
    );
    if found == during {
        // The new manifest is there, so the records up to it are skipped at replay.
        world.note_committed();
    }
    let mut rig = world.open(eager());
    rig.check_shards();
    rig.commit_and_verify(world);
}

/// Crashes after `steps` effects and the beginning of one more; `None` if there is none.
fn crash_after(steps: usize, reported: bool, rounds: u64) -> Option<&'static str> {
    let mut world = World::new();
    let mut rig = prepare(&mut world, rounds);
    let before = Epoch(world.epoch.0 - 1);
    rig.start(&mut world);
    for _ in 0..steps {
        rig.step(&mut world);
    }
    let effect = rig.next_effect()?;
    let event = rig.perform(&mut world, effect);
    if let (true, Some(event)) = (reported, event) {
        rig.commit.handle(event, rig.now_ms);
    }
    let last = rig.trace.last().copied();
    drop(rig);
    recover(&mut world, before, before.next());
    last
}

#[test]
fn a_crash_after_every_effect_leaves_one_cut_or_the_other() {
    let mut seen = BTreeSet::new();
    for (rounds, reported) in (2..6).flat_map(|rounds| [(rounds, false), (rounds, true)]) {
        let crashes = (0..).map_while(|steps| crash_after(steps, reported, rounds));
        seen.extend(crashes);
    }
    let all = ["chunk", "delete", "head", "index", "manifest", "publish"];
    assert!(seen.iter().eq(&all), "{seen:?}");
}

#[test]
fn two_crashes_in_a_row_leave_one_cut_or_the_other() {
    for (first, second) in (0..10).flat_map(|first| (0..10).map(move |second| (first, second))) {
        let mut world = World::new();
        let mut rig = prepare(&mut world, 3);
        let before = Epoch(world.epoch.0 - 1);
        let mut during = before;
        for steps in [first, second] {
            rig.start(&mut world);
            during = Epoch(world.epoch.0 - 1);
            for _ in 0..steps {
                rig.step(&mut world);
            }
            if world.verify() > before {
                break;
            }
            rig = world.open(eager());
        }
        drop(rig);
        recover(&mut world, before, during);
    }
}

/// What happens next to a volume.
#[derive(Clone, Debug)]
enum Act {
    Write {
        start: u64,
        count: u64,
        step: u64,
    },
    Zero {
        start: u64,
        count: u64,
    },
    Commit,
    /// Commit, but die after so many effects.
    Crash {
        effects: u8,
        reported: bool,
    },
    Fault {
        on: u8,
        times: u8,
        lost: bool,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..2000u64, 1..120u64, 1..20u64)
            .prop_map(|(start, count, step)| Act::Write { start, count, step }),
        2 => (0..2000u64, 1..900u64).prop_map(|(start, count)| Act::Zero { start, count }),
        4 => Just(Act::Commit),
        2 => (0..25u8, any::<bool>())
            .prop_map(|(effects, reported)| Act::Crash { effects, reported }),
        2 => (0..4u8, 1..4u8, any::<bool>())
            .prop_map(|(on, times, lost)| Act::Fault { on, times, lost }),
    ];
    prop::collection::vec(act, 1..40)
}

fn script(world: &World, on: u8, times: u8, lost: bool) {
    let (operation, key) = [
        (Operation::PutIfAbsent, "chunks/"),
        (Operation::PutIfAbsent, "index/"),
        (Operation::PutIfAbsent, "manifests/"),
        (Operation::Delete, ""),
    ][usize::from(on)];
    let fault = match lost {
        true => Fault::FailAfter(ErrorKind::Transient),
        false => Fault::FailBefore(ErrorKind::Full),
    };
    let mut rule = FaultRule::once(operation, key, fault);
    rule.times = u32::from(times);
    world.backend.script(rule);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_history_of_writes_faults_and_crashes_keeps_every_cut(acts in acts()) {
        let mut world = World::new();
        let mut rig = world.open(eager());
        for act in acts {
            match act {
                Act::Write { start, count, step } => {
                    world.write((0..count).map(|i| start + i * step));
                }
                Act::Zero { start, count } => world.zero(start..start + count),
                Act::Commit => rig.commit_and_verify(&mut world),
                Act::Fault { on, times, lost } => script(&world, on, times, lost),
                Act::Crash { effects, reported } => {
                    rig.start(&mut world);
                    for _ in 0..effects {
                        rig.step(&mut world);
                    }
                    if let Some(effect) = rig.next_effect() {
                        let event = rig.perform(&mut world, effect);
                        if let (true, Some(event)) = (reported, event) {
                            rig.commit.handle(event, rig.now_ms);
                        }
                    }
                    world.backend.clear_script();
                    if world.verify() == Epoch(world.epoch.0 - 1) {
                        world.note_committed();
                    }
                    rig = world.open(eager());
                    rig.check_shards();
                }
            }
        }
        world.backend.clear_script();
        rig.commit_and_verify(&mut world);
        prop_assert!(!world.is_dirty());
    }
}

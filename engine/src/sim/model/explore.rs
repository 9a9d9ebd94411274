//! Depth first through every state that can be reached. Futures cannot be copied, so going back
//! means going there again from the beginning.

use std::collections::HashSet;

use super::{Broken, Mutation, Scenario, Step, World};

/// What an exploration found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Most steps in a row.
    pub depth: usize,
    /// The first broken rule that was met, and the way there.
    pub broken: Option<(Broken, Vec<Step>)>,
}

/// Explores a scenario wholly, or until a rule is broken. `states_max` bounds it; an exploration
/// that reaches the bound is a bug of the scenario.
///
/// # Panics
/// When the bound is reached.
pub fn explore(scenario: &Scenario, mutation: Option<Mutation>, states_max: usize) -> Explored {
    let mut found = Explored {
        states: 0,
        steps: 0,
        depth: 0,
        broken: None,
    };
    let mut seen = HashSet::new();
    let mut world = match World::new(scenario, mutation) {
        Ok(world) => world,
        Err(broken) => {
            found.broken = Some((broken, scenario.script.clone()));
            return found;
        }
    };
    seen.insert(world.canon());
    let mut path: Vec<Step> = Vec::new();
    let mut open = vec![world.steps()];
    // How much of the path the world has gone.
    let mut gone = 0;
    while let Some(steps) = open.last_mut() {
        let Some(step) = steps.pop() else {
            open.pop();
            path.pop();
            continue;
        };
        if gone != path.len() {
            world = again(scenario, mutation, &path);
        }
        path.push(step);
        gone = path.len();
        found.steps += 1;
        found.depth = found.depth.max(gone);
        if let Err(broken) = world.step(step) {
            found.broken = Some((broken, path));
            break;
        }
        if seen.insert(world.canon()) {
            let name = scenario.name;
            assert!(seen.len() <= states_max, "{name}: more states than meant");
            open.push(world.steps());
        } else {
            path.pop();
        }
    }
    found.states = seen.len();
    found
}

/// The world at the end of a path that was gone before.
fn again(scenario: &Scenario, mutation: Option<Mutation>, path: &[Step]) -> World {
    let gone_before = "the same steps lead to the same state";
    let mut world = World::new(scenario, mutation).expect(gone_before);
    for step in path {
        world.step(*step).expect(gone_before);
    }
    world
}

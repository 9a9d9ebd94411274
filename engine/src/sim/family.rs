//! Families of volumes that nobody serves: written, cloned to any depth, rolled back, compacted,
//! swept, deleted and freed in random order, by writers that die before any step. Each volume and
//! each snapshot is a map of its bytes.

use super::world::{Outcome, Violation, World};

/// Everything that a range of families has to reach: every step of a compaction, a deletion and a
/// sweep before which a process can die among it.
pub const FAMILY_EVENTS: &[&str] = &[
    "a clone went back to a point in time",
    "a point of a clone left its window",
    "a point of a clone was kept for its reader",
    "a clone was cloned",
    "a clone was compacted",
    "a clone was deleted",
    "a clone was rolled back",
    "a clone was swept",
    "a clone was written",
    "a deleted volume was freed",
    "a deletion died before its mark",
    "a deletion died before its name was free",
    "a deletion died before its pin was released",
    "a deletion died before its tombstone",
    "a freeing died before a delete",
    "a freeing died before its mark was gone",
    "a paused writer's delete landed after a clone elsewhere",
    "a paused writer's delete landed after a rollback elsewhere",
    "a tombstone fenced a paused writer",
    "a writer died before a chunk's put",
    "a writer died before a compaction's manifest",
    "a writer died before a compaction's put",
    "a writer died before a compaction's reads",
    "a writer died before a delete",
    "a writer died before a manifest's put",
    "a writer died before a rollback's index",
    "a writer died before a rollback's manifest",
    "a writer died before a sweep's delete",
];

/// Runs one seed.
pub fn run_family(seed: u64) -> Result<Outcome, Box<Violation>> {
    World::new(seed).be_family(seed)
}

/// Runs one seed and prints every event when it happens.
pub fn run_family_aloud(seed: u64) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(seed);
    world.aloud = true;
    world.be_family(seed)
}

impl World {
    fn be_family(mut self, seed: u64) -> Result<Outcome, Box<Violation>> {
        match self.live_as_family(seed) {
            Ok(()) => Ok(Outcome {
                trace_hash: self.trace_hash,
                events: self.events,
                coverage: self.coverage.clone(),
            }),
            Err(what) => {
                let trace = self.trace.drain(..).collect();
                Err(Box::new(Violation { seed, what, trace }))
            }
        }
    }
}

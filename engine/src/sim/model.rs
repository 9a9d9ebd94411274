//! An exhaustive model of two writers on one volume: every order of their requests, with crashes,
//! pauses of any length, lost answers, and puts and deletes that land late, over the code that
//! ships (`open_for_writing`, `append`, `rebuild`, `LocalHead::fate`, `VolumeCommit` with its
//! garbage).
//!
//! A pause is a writer whose next step comes late, so every order of steps is every pause. After
//! each step the rules of [`crate::invariant`] and of `truth` are checked. States that were reached
//! before (up to random tokens) are not explored again. `docs/internals/testing-simulator.md`.

mod desk;
mod disk;
mod explore;
mod truth;
mod writer;

pub use explore::{Explored, explore};
pub use truth::Broken;

use desk::Ask;
use disk::DiskCopy;
use truth::{Truth, Verdict, hash_of};
use writer::{Names, Writer};

/// Blocks that are written: one by both, one by each.
const BLOCKS: u64 = 3;

/// A deliberate bug, to show that the rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The bucket replaces manifests instead of refusing to.
    UnconditionalManifests,
    /// What a manifest condemns is deleted before it is stored.
    DeleteBeforeCommit,
    /// Records of a lost lineage are merged at replay.
    ReplayQuarantined,
    /// New records are stamped without regard to those that were copied out.
    StampsTooLow,
    /// A manifest that is there is taken for one's own, without looking.
    ExistsIsOurs,
    /// Manifests before the last checkpoint are removed, but the first of each generation.
    PrunesManifests,
}

/// What may happen, and how often.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For reports.
    pub name: &'static str,
    /// Steps before the exploration.
    script: Vec<Step>,
    /// Times that each writer starts.
    starts: [u32; 2],
    /// Cuts of each session of a writer, those of the script included.
    cuts: [u32; 2],
    /// Compactions of each session of a writer.
    compactions: [u32; 2],
    /// Answers lost and requests that hang.
    faults: u32,
    crashes: u32,
    /// Crashes after which the disk is new.
    disks_lost: u32,
    /// The log forgets what it may at once; else it keeps everything for ever.
    releases: bool,
    /// Crashes after which the disk is as it was when the copy was made.
    restores: u32,
    /// Lists that show the bucket as it was after the first opening.
    behind: u32,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A writer starts to open the volume.
    Start(usize),
    /// A request of a writer is decided: the `usize`th of those under way.
    Serve(usize, usize, Happens),
    /// A writer's cut begins.
    Cut(usize),
    /// A compaction of a writer begins, if there is anything to be rewritten.
    Compact(usize),
    /// It copies out what it must not merge.
    CopyOut(usize),
    /// Its process ends.
    Crash(usize, After),
    /// A request of the past is carried out.
    Land(usize),
    /// Both disks are copied (only in scripts).
    Copy,
    /// A writer gets the copy of the other's disk (only in scripts).
    Clone(usize),
    /// A writer starts and leaves the volume to its new owner (only in scripts).
    GiveUp(usize),
    /// All requests of a writer are answered until there are none (only in scripts).
    Finish(usize),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happens {
    /// It is carried out and answered.
    Fine,
    /// It is carried out, the answer is lost.
    Lost,
    /// It fails, and is carried out later or never.
    Hangs,
    /// A list that shows what there was long ago.
    Behind,
}

/// What becomes of the disk of a process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum After {
    /// It stays.
    Stays,
    /// It is replaced by an empty one.
    Lost,
    /// The log stays, its head record is gone.
    RecordLost,
    /// It is restored from the copy.
    Restored,
}

/// Two writers and their bucket.
struct World {
    scenario: Scenario,
    truth: Truth,
    writers: [Writer; 2],
    names: Names,
    /// Requests of which nobody hears any more.
    late: Vec<Ask>,
    copies: [DiskCopy; 2],
}

impl World {
    fn new(scenario: &Scenario, mutation: Option<Mutation>) -> Result<Self, Broken> {
        let mut world = Self {
            scenario: scenario.clone(),
            truth: Truth::new(mutation),
            writers: [Writer::new(0), Writer::new(1)],
            names: Names::new(),
            late: Vec::new(),
            copies: [DiskCopy::default(), DiskCopy::default()],
        };
        for writer in &mut world.writers {
            writer.disk.releases = scenario.releases;
        }
        for step in &scenario.script {
            world.step(*step)?;
        }
        // The script used nothing up.
        world.scenario = scenario.clone();
        Ok(world)
    }

    /// What may happen next.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, writer) in self.writers.iter().enumerate() {
            let requests = writer.requests();
            for (at, asks) in requests.iter().enumerate() {
                // What one opening reads is read in order.
                if at > 0 && !asks[0].changes() {
                    continue;
                }
                steps.push(Step::Serve(index, at, Happens::Fine));
                if asks[0].changes() && self.scenario.faults > 0 {
                    steps.push(Step::Serve(index, at, Happens::Lost));
                    steps.push(Step::Serve(index, at, Happens::Hangs));
                }
                if asks[0].is_list() && self.scenario.behind > 0 {
                    steps.push(Step::Serve(index, at, Happens::Behind));
                }
            }
            if writer.may_start() && self.scenario.starts[index] > 0 {
                steps.push(Step::Start(index));
            }
            if writer.may_copy_out() {
                steps.push(Step::CopyOut(index));
            }
            if writer.may_cut(self.scenario.cuts[index]) {
                steps.push(Step::Cut(index));
            }
            if writer.may_compact(self.scenario.compactions[index]) {
                steps.push(Step::Compact(index));
            }
            // A process that is not started again need not end: it may pause for ever.
            if writer.may_crash() && self.scenario.starts[index] > 0 {
                let ends = [
                    (self.scenario.crashes, After::Stays),
                    (self.scenario.disks_lost, After::Lost),
                    (self.scenario.disks_lost, After::RecordLost),
                    (self.scenario.restores, After::Restored),
                ];
                let left = ends.iter().filter(|(left, _)| *left > 0);
                steps.extend(left.map(|(_, after)| Step::Crash(index, *after)));
            }
        }
        steps.extend((0..self.late.len()).map(Step::Land));
        steps
    }

    /// Takes a step, and everything that follows from it without a decision.
    fn step(&mut self, step: Step) -> Verdict {
        match step {
            Step::Start(writer) => {
                self.scenario.starts[writer] = self.scenario.starts[writer].saturating_sub(1);
                self.writers[writer].start();
            }
            Step::Serve(writer, at, happens) => self.serve(writer, at, happens)?,
            Step::Cut(writer) => self.writers[writer].cut(&mut self.truth, &mut self.names),
            Step::Compact(writer) => self.writers[writer].compact(&self.truth),
            Step::CopyOut(writer) => self.writers[writer].copy_out(),
            Step::Crash(writer, disk) => self.crash(writer, disk),
            Step::Land(at) => {
                let ask = self.late.remove(at);
                let _nobody_hears = self.truth.carry_out(&ask)?;
            }
            Step::Copy => {
                self.copies = [0, 1].map(|writer: usize| self.writers[writer].disk.copy());
            }
            Step::Clone(writer) => {
                let copy = self.copies[1 - writer].clone();
                self.writers[writer].disk.restore(copy);
            }
            Step::GiveUp(writer) => self.writers[writer].give_up(),
            Step::Finish(writer) => {
                while !self.writers[writer].requests().is_empty() {
                    self.step(Step::Serve(writer, 0, Happens::Fine))?;
                }
            }
        }
        for writer in &mut self.writers {
            writer.settle(&mut self.truth, &mut self.names)?;
        }
        Ok(())
    }

    fn serve(&mut self, writer: usize, at: usize, happens: Happens) -> Verdict {
        match happens {
            Happens::Fine => {}
            Happens::Behind => self.scenario.behind -= 1,
            Happens::Lost | Happens::Hangs => self.scenario.faults -= 1,
        }
        let late = self.writers[writer].serve(at, happens, &mut self.truth)?;
        self.late.extend(late);
        Ok(())
    }

    fn crash(&mut self, writer: usize, after: After) {
        let late = self.writers[writer].crash();
        self.late.extend(late);
        let copy = match after {
            After::Stays => {
                self.scenario.crashes = self.scenario.crashes.saturating_sub(1);
                return;
            }
            After::Lost => {
                self.scenario.disks_lost -= 1;
                DiskCopy::default()
            }
            After::RecordLost => {
                self.scenario.disks_lost -= 1;
                self.writers[writer].disk.copy().without_head()
            }
            After::Restored => {
                self.scenario.restores -= 1;
                self.copies[writer].clone()
            }
        };
        self.writers[writer].disk.restore(copy);
    }

    /// The state, without what is random.
    fn canon(&self) -> u64 {
        let writers: Vec<u64> = self
            .writers
            .iter()
            .map(|writer| writer.canon(&self.truth, &self.names))
            .collect();
        let mut late: Vec<u64> = self
            .late
            .iter()
            .map(|ask| self.truth.canon_ask(ask))
            .collect();
        late.sort_unstable();
        let budget = &self.scenario;
        hash_of(&(
            self.truth.canon_bucket(),
            writers,
            late,
            budget.starts,
            budget.faults,
            budget.crashes,
            (budget.disks_lost, budget.restores, budget.behind),
        ))
    }
}

impl Scenario {
    /// All of them; `deep` ones take minutes, the others seconds.
    pub fn all(deep: bool) -> Vec<Self> {
        let more = 2 * u32::from(deep);
        let mut all = Self::takeovers(more);
        all.extend(Self::disks(more));
        all.extend(Self::old_lists(more));
        all.extend(deep.then(|| Self::compactor(more)));
        all
    }

    fn base(name: &'static str, steps: &[&[Step]]) -> Self {
        Self {
            name,
            script: steps.concat(),
            starts: [1, 1],
            cuts: [1, 0],
            compactions: [0, 0],
            faults: 0,
            crashes: 0,
            disks_lost: 0,
            restores: 0,
            behind: 0,
            releases: false,
        }
    }

    /// The second writer compacts what the first one left, and the first one comes back.
    fn compactor(more: u32) -> Self {
        let cut = [Step::Cut(0), Step::Finish(0)];
        let other = [Step::Start(1), Step::Finish(1)];
        let theirs = [Step::Cut(1), Step::Finish(1)];
        let crash = [Step::Crash(0, After::Stays)];
        let name = "a compactor is taken over while requests hang";
        Self {
            starts: [1, u32::from(more > 0)],
            cuts: [more.min(1), 2 + more.min(1)],
            compactions: [more.min(1), 1],
            faults: 1,
            ..Self::base(name, &[&SERVED, &cut, &crash, &other, &theirs])
        }
    }

    fn takeovers(more: u32) -> Vec<Self> {
        let fresh = "two writers open a fresh volume";
        let again = "a serving writer is taken over and starts again";
        let garbage = "a writer with garbage is taken over while requests hang";
        let aged = [Step::Cut(0), Step::Finish(0), Step::Cut(0), Step::Finish(0)];
        vec![
            Self {
                cuts: [1, more],
                faults: 1,
                crashes: 1,
                ..Self::base(fresh, &[])
            },
            Self {
                cuts: [1, more],
                crashes: 1,
                ..Self::base(again, &[&SERVED])
            },
            Self {
                starts: [0, 1],
                cuts: [3, more],
                faults: 1,
                ..Self::base(garbage, &[&SERVED, &aged])
            },
        ]
    }

    /// Lists behind by more than a checkpoint: on a new machine, and on one that was the owner.
    fn old_lists(more: u32) -> [Self; 2] {
        let aged = [Step::Cut(0), Step::Finish(0), Step::Cut(0), Step::Finish(0)];
        let crash = [Step::Crash(0, After::Stays)];
        let other = [Step::Start(1), Step::Finish(1)];
        let theirs = [Step::Cut(1), Step::Finish(1), Step::Cut(1), Step::Finish(1)];
        let new = "a new machine opens and is shown old lists";
        let owner = "a former owner opens and is shown old lists";
        [
            Self {
                starts: [0, 1],
                cuts: [2 + more, more],
                faults: 1,
                behind: 3,
                ..Self::base(new, &[&SERVED, &aged])
            },
            Self {
                starts: [1, 0],
                cuts: [1, 2 + more],
                behind: 3,
                disks_lost: 1,
                ..Self::base(owner, &[&SERVED, &aged, &crash, &other, &theirs])
            },
        ]
    }

    fn disks(more: u32) -> Vec<Self> {
        let lost = "a disk, or its head record, is lost";
        let old = "a disk is restored from an old copy";
        let twins = "two machines run on copies of one disk";
        let forgets = "a log forgets what was copied out";
        let cut = [Step::Cut(0), Step::Finish(0)];
        let crash = [Step::Crash(0, After::Stays)];
        let other = [Step::Start(1), Step::Finish(1)];
        vec![
            Self {
                cuts: [1, more],
                disks_lost: 1,
                ..Self::base(lost, &[&SERVED])
            },
            Self {
                cuts: [1 + more, 0],
                restores: 1,
                ..Self::base(old, &[&SERVED, &[Step::Copy], &cut])
            },
            Self {
                cuts: [1, 1],
                crashes: more,
                ..Self::base(twins, &[&SERVED, &[Step::Copy, Step::Clone(1)]])
            },
            Self {
                starts: [1, 0],
                cuts: [more, 0],
                crashes: 1,
                releases: true,
                ..Self::base(
                    forgets,
                    &[&SERVED, &cut, &other, &crash, &[Step::GiveUp(0)], &SERVED],
                )
            },
        ]
    }
}

/// The first writer opens.
const SERVED: [Step; 2] = [Step::Start(0), Step::Finish(0)];

#[cfg(test)]
mod tests;

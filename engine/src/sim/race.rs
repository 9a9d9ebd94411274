//! Two whole appliances on one bucket: takeovers of paused, crashed and living ones, lost disks,
//! old copies of data directories. Each appliance is a [`World`] with its own time; they meet in
//! the bucket only, and take turns in slices.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use futures::executor::block_on;

use super::dice::Dice;
use super::disk::WalFile;
use super::heads_dir::HeadsDir;
use super::image::read_image;
use super::oracle::Oracle;
use super::plan::{Faults, MS};
use super::world::{Crash, Outcome, Started, Violation, World};
use crate::identity::{Generation, ManifestNum};
use crate::registry::{LocalHead, read_head};

/// Everything that a range of races has to reach.
pub const RACE_EVENTS: &[&str] = &[
    "race: a copy of an old data directory was restored",
    "race: a data directory was lost",
    "race: a fenced appliance stopped",
    "race: a snapshot outlived its writer",
    "race: a restart left a volume to its new owner",
    "race: a start without the backend was fenced when it was back",
    "race: a group was settled by the other appliance",
    "race: a living appliance was taken over",
    "race: a paused appliance was taken over and went on",
    "race: a takeover died right after its fencing put",
    "race: a volume changed hands",
    "race: records of a lost lineage were not merged",
];

/// The longest slice of one appliance's time.
const SLICE_US: u64 = 4 * MS;

/// What a data directory and its WAL were.
struct Copy {
    heads: Vec<LocalHead>,
    files: Vec<WalFile>,
    wal_id: crate::wal::WalId,
    incarnation: u64,
    /// Copies of metadata.
    metadata: Vec<(PathBuf, Vec<u8>)>,
    /// What clients knew, and could not be sure of.
    oracle: Oracle,
}

struct Race {
    dice: Dice,
    nodes: [World; 2],
    /// Who fenced each volume last.
    owners: Vec<usize>,
    generations: Vec<Generation>,
    copies: [Option<Copy>; 2],
    /// The disk of an appliance does not continue what it had before.
    strange: [bool; 2],
}

/// Runs one seeded race.
pub fn run_race(seed: u64) -> Result<Outcome, Box<Violation>> {
    Race::new(seed, false).run(seed)
}

/// Runs one and prints every event when it happens.
pub fn run_race_aloud(seed: u64) -> Result<Outcome, Box<Violation>> {
    Race::new(seed, true).run(seed)
}

impl Race {
    fn new(seed: u64, aloud: bool) -> Self {
        let mut dice = Dice::new(seed ^ 0x7261_6365);
        let mut nodes = [World::new(seed), World::new(seed)];
        let ids = Rc::new(Cell::new(1));
        let [first, second] = &mut nodes;
        second.share_bucket(first, dice.fork());
        for (index, node) in nodes.iter_mut().enumerate() {
            node.oracle.share_ids(Rc::clone(&ids));
            node.enter_race(index, aloud);
        }
        let volumes = nodes[0].ids.len();
        Self {
            dice,
            nodes,
            owners: vec![0; volumes],
            generations: vec![Generation(0); volumes],
            copies: [None, None],
            strange: [false; 2],
        }
    }

    fn run(mut self, seed: u64) -> Result<Outcome, Box<Violation>> {
        let result = self.live();
        let mut coverage = super::Coverage::default();
        let (mut trace_hash, mut events) = (0_u64, 0);
        let mut broken = result.err();
        let mut trace = Vec::new();
        for node in &mut self.nodes {
            let (hash, lines) = node.end_race();
            coverage.merge(&node.coverage);
            trace_hash = trace_hash.rotate_left(1) ^ hash;
            events += node.events;
            trace.extend(lines);
            broken = broken.or_else(|| node.broken_promise.take());
        }
        match broken {
            None => Ok(Outcome {
                trace_hash,
                events,
                coverage,
            }),
            Some(what) => Err(Box::new(Violation { seed, what, trace })),
        }
    }

    fn live(&mut self) -> Result<(), String> {
        self.open(0)?;
        let life_us = self.dice.range(10..=80) * MS;
        self.go_on(&[0], life_us)?;
        for _ in 0..self.dice.range(2..=4) {
            let other = 1 - self.owners[0];
            self.prepare(other)?;
            self.take_over(other)?;
            if self.nodes[1 - other].node.is_none() && self.dice.chance(600) {
                self.come_back(1 - other)?;
            }
            let life_us = self.dice.range(20..=100) * MS;
            self.go_on(&[0, 1], life_us)?;
            self.check_fenced(1 - other)?;
        }
        let owner = self.owners[0];
        let others = self.owners.iter().any(|of| *of != owner);
        if others || self.nodes[owner].node.is_none() {
            self.take_over(owner)?;
        }
        self.stop(1 - owner, Crash::Kill);
        self.nodes[owner].calm_down()?;
        self.nodes[owner].check_images(true)?;
        self.nodes[owner].settle_space()
    }

    /// What happens before a takeover: to the one that is taken over, and to the disk of the other.
    fn prepare(&mut self, other: usize) -> Result<(), String> {
        let owner = 1 - other;
        if self.nodes[other].node.is_some() && self.dice.chance(700) {
            let crash = self.a_crash();
            self.stop(other, crash);
        }
        if self.nodes[other].node.is_none() {
            self.change_disk(other)?;
        }
        if self.dice.chance(400) {
            self.copies[owner] = self.copy_of(owner);
        }
        match self.dice.below(3) {
            0 => {
                let crash = self.a_crash();
                self.stop(owner, crash);
            }
            1 => self.hit(owner, "race: a paused appliance was taken over and went on"),
            _ => self.hit(owner, "race: a living appliance was taken over"),
        }
        Ok(())
    }

    fn change_disk(&mut self, index: usize) -> Result<(), String> {
        match self.dice.below(4) {
            0 => {
                self.hit(index, "race: a data directory was lost");
                self.nodes[index].lose_disk();
                self.strange[index] = true;
            }
            1 if self.is_overtaken(index)? => {
                self.restore(index)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The data directory and the WAL become what they were when the copy was made.
    fn restore(&mut self, index: usize) -> Result<(), String> {
        let copy = self.copies[index].take().expect("it was looked at");
        self.hit(index, "race: a copy of an old data directory was restored");
        let world = &mut self.nodes[index];
        world.lose_disk();
        world.takes_all = false;
        (world.files, world.wal_id) = (copy.files, copy.wal_id);
        world.incarnation = copy.incarnation;
        world.oracle = copy.oracle;
        for head in &copy.heads {
            world.heads.save(head).map_err(|e| e.to_string())?;
        }
        if let Some(copies) = &world.copies_dir {
            copies.restore(&copy.metadata);
        }
        self.strange[index] = true;
        Ok(())
    }

    /// An appliance that was taken over starts again by itself: it leaves what is another's alone;
    /// while the backend is away it serves what it last knew, until its next commit.
    fn come_back(&mut self, index: usize) -> Result<(), String> {
        if self.dice.chance(300) && self.is_overtaken(index)? {
            self.restore(index)?;
        }
        let world = &mut self.nodes[index];
        world.faults = faults(&mut world.dice, true);
        if world.copies_dir.is_some() && !world.takes_all && world.dice.chance(500) {
            world.faults.away_at_boot = true;
            world.faults.away_us = (0, world.dice.range(1..=15) * MS);
            world.faults.full = false;
        }
        self.try_open(index)
    }

    /// Whether every volume was opened anew since the copy was made.
    fn is_overtaken(&self, index: usize) -> Result<bool, String> {
        let Some(copy) = &self.copies[index] else {
            return Ok(false);
        };
        let mut all = true;
        for head in &copy.heads {
            all &= self.head_of(head.id)?.0 > head.generation;
        }
        Ok(all)
    }

    fn head_of(&self, id: crate::identity::VolumeId) -> Result<(Generation, ManifestNum), String> {
        let head = block_on(read_head(&self.nodes[0].objects, id, None));
        let head = head.map_err(|error| format!("the head cannot be read: {error}"))?;
        Ok((head.generation, head.number))
    }

    fn copy_of(&mut self, index: usize) -> Option<Copy> {
        let world = &mut self.nodes[index];
        // A copy of a running one is what a power loss at this moment would leave at best.
        let heads: Option<Vec<LocalHead>> = world
            .ids
            .iter()
            .map(|id| world.heads.load(*id).expect("head records can be read"))
            .collect();
        let mut oracle = world.oracle.clone();
        oracle.crashed(true);
        Some(Copy {
            heads: heads?,
            files: world.files.iter().map(WalFile::copy_settled).collect(),
            wal_id: world.wal_id,
            incarnation: world.incarnation,
            metadata: world.copies_dir.iter().flat_map(HeadsDir::files).collect(),
            oracle,
        })
    }

    fn a_crash(&mut self) -> Crash {
        match self.dice.chance(500) {
            true => Crash::Kill,
            false => Crash::Power,
        }
    }

    fn stop(&mut self, index: usize, crash: Crash) {
        if self.nodes[index].node.is_some() {
            self.nodes[index].crash(crash);
        }
    }

    /// The other appliance starts; it may die right after it has fenced some volumes, and the first
    /// one may have come back before it tries again.
    fn take_over(&mut self, index: usize) -> Result<(), String> {
        if self.nodes[index].node.is_some() {
            let crash = self.a_crash();
            self.stop(index, crash);
        }
        // The operator wants all of them.
        self.nodes[index].takes_all = true;
        if self.dice.chance(300) {
            self.nodes[index].faults.boot = 150;
            self.try_open(index)?;
            let owner = 1 - index;
            if self.nodes[index].node.is_none() {
                self.go_on(&[owner], 20 * MS)?;
                if self.dice.chance(400) {
                    self.stop(owner, Crash::Kill);
                    self.open(owner)?;
                    self.go_on(&[owner], 20 * MS)?;
                }
            }
        }
        if self.nodes[index].node.is_none() {
            self.open(index)?;
        }
        Ok(())
    }

    fn open(&mut self, index: usize) -> Result<(), String> {
        for attempt in 0.. {
            let world = &mut self.nodes[index];
            world.faults = faults(&mut world.dice, attempt < 6);
            self.try_open(index)?;
            if self.nodes[index].node.is_some() {
                return Ok(());
            }
            assert!(attempt < 50, "the appliance does not start any more");
        }
        Ok(())
    }

    /// One attempt to start. Whatever became of it, the bucket tells which volumes it has fenced.
    fn try_open(&mut self, index: usize) -> Result<(), String> {
        let up = self.nodes[index].start_once()? == Started::Up;
        let mut changed = false;
        for volume in 0..self.owners.len() {
            let id = self.nodes[index].ids[volume];
            let (generation, _) = self.head_of(id)?;
            if generation == self.generations[volume] {
                continue;
            }
            self.generations[volume] = generation;
            let before = std::mem::replace(&mut self.owners[volume], index);
            if before == index && !self.strange[index] {
                continue;
            }
            changed = true;
            self.hand_over(volume, before, index)?;
        }
        if !up {
            if changed {
                self.hit(index, "race: a takeover died right after its fencing put");
            }
            return Ok(());
        }
        self.strange[index] = false;
        if changed {
            // All that the new owner has is the image: nothing of its own log is merged.
            self.nodes[index].audit(true)?;
        }
        let world = &mut self.nodes[index];
        let lost = world.racing().lost_records;
        let event = "race: records of a lost lineage were not merged";
        world.coverage.add(event, lost);
        world.clients.begin_life(&mut world.dice, false);
        world.schedule_clients();
        Ok(())
    }

    /// A volume's image is a cut of its old owner's history, and the beginning of the new one's.
    fn hand_over(&mut self, volume: usize, from: usize, to: usize) -> Result<(), String> {
        self.hit(to, "race: a volume changed hands");
        let lattice = self.nodes[from].oracle.lattices[volume];
        let id = self.nodes[from].ids[volume];
        let image = read_image(&self.nodes[from].objects, id, lattice)
            .map_err(|error| format!("the image of volume {volume} cannot be read: {error}"))?;
        self.nodes[from].oracle.image(volume, &image, false)?;
        self.nodes[from].check_snapshots(volume)?;
        if self.nodes[from].snapshots.has_any(volume) {
            self.hit(to, "race: a snapshot outlived its writer");
        }
        let before = self.nodes[from].oracle.clone();
        self.nodes[to].oracle.adopt(&before, volume, &image)
    }

    /// Lets appliances run side by side.
    fn go_on(&mut self, running: &[usize], life_us: u64) -> Result<(), String> {
        let mut left = [life_us; 2];
        // One of them may pause for most of the time.
        let pause = self.dice.chance(500).then(|| self.dice.below(2) as usize);
        loop {
            let able = |index: &usize| left[*index] > 0 && self.nodes[*index].node.is_some();
            let able: Vec<usize> = running.iter().copied().filter(able).collect();
            if able.is_empty() {
                return Ok(());
            }
            let mut index = self.dice.pick(&able);
            if Some(index) == pause && able.len() > 1 && self.dice.chance(950) {
                index = 1 - index;
            }
            let slice_us = self.dice.range(1..=SLICE_US).min(left[index]);
            left[index] -= slice_us;
            self.nodes[index].run_for(slice_us)?;
        }
    }

    /// An appliance that was taken over stops at its next commit attempt.
    fn check_fenced(&mut self, index: usize) -> Result<(), String> {
        if self.nodes[index].node.is_none() {
            return Ok(());
        }
        let lost: Vec<usize> = (0..self.owners.len())
            .filter(|volume| self.owners[*volume] != index)
            .collect();
        let world = &mut self.nodes[index];
        world.faults = Faults::default();
        world.racing().answered.clear();
        let mut early = BTreeMap::new();
        for round in 0..20 {
            let fenced = &world.fenced.volumes;
            if lost.iter().all(|volume| fenced.contains(volume)) {
                break;
            }
            if round == 10 {
                early = world.racing().answered.clone();
            }
            world.demand_cut();
            world.run_for(20 * MS)?;
        }
        let fenced = world.fenced.volumes.clone();
        for volume in lost {
            if fenced.contains(&volume) {
                world.coverage.hit("race: a fenced appliance stopped");
            } else if early.contains_key(&volume) {
                return Err(format!("volume {volume} was taken over and goes on"));
            }
        }
        Ok(())
    }

    fn hit(&mut self, index: usize, event: &'static str) {
        self.nodes[index].coverage.hit(event);
    }
}

/// Faults of the bucket and of boots; disks are sound here.
fn faults(dice: &mut Dice, boot: bool) -> Faults {
    let wild = Faults::new(dice, 100 * MS);
    Faults {
        wal_write: 0,
        wal_barrier: 0,
        wal_read: 0,
        rot: 0,
        broken: None,
        fatal: None,
        boot: if boot { wild.boot } else { 0 },
        ..wild
    }
}

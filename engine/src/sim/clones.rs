//! Clones made at random moments, some of them interrupted and repeated much later: each begins as
//! its snapshot and is written from there, whatever becomes of its parent, until it is deleted;
//! then its objects are freed, whatever interrupts that.

use std::collections::{BTreeMap, BTreeSet};

use futures::executor::block_on;

use super::dice::Dice;
use super::freeing::Freeings;
use super::world::World;
use super::written::{Haunting, Writer, Written, haunt, script};
use crate::error::ErrorKind;
use crate::failpoint;
use crate::identity::{VolumeId, WriterToken};
use crate::manifest::ManifestKind;
use crate::registry::{
    CloneLayout, VolumeSeed, create_clone, delete_volume, finish_deletion, mark_again, read_head,
    resolve_name,
};
use crate::snapshot::{Snapshot, SnapshotId};
use crate::volume::VolumeName;

/// Clones and unfinished creations at a time.
const CLONES_MAX: usize = 6;
/// Steps of a deletion before which it is cut short, and what is counted then.
pub(super) const DEATHS: [(&str, &str); 4] = [
    ("delete.put", "a deletion died before its tombstone"),
    (
        "clone.release",
        "a deletion died before its pin was released",
    ),
    ("delete.mark", "a deletion died before its mark"),
    ("delete.name", "a deletion died before its name was free"),
];

/// Everything known of the clones of all appliances. None of these serves them.
pub(super) struct Clones {
    dice: Dice,
    last: u64,
    /// Whether their writers pause while others have the volume.
    pauses: bool,
    living: BTreeMap<VolumeId, Clone>,
    /// Creations that were interrupted.
    unfinished: Vec<Creation>,
    /// Deletions that were interrupted.
    dying: BTreeSet<VolumeId>,
    /// Deleted wholly: their objects are freed, or will be.
    gone: BTreeSet<VolumeId>,
    /// Writers of volumes that others have, or that are gone.
    zombies: Vec<(VolumeId, Writer)>,
    freeings: Freeings,
}

/// A clone that exists; in a family also a volume that is none.
struct Clone {
    of: usize,
    snapshot: Option<SnapshotId>,
    written: Written,
}

/// A creation, with all that a repeat needs.
#[derive(Clone)]
struct Creation {
    seed: VolumeSeed,
    of: usize,
    /// The volume of the snapshot: served, or a clone itself.
    parent: VolumeId,
    snapshot: Snapshot,
    image: Vec<u8>,
    /// A repeat stores the same bytes.
    layout: CloneLayout,
}

impl Creation {
    fn name(&self) -> VolumeName {
        let text = format!("clone-{}", self.seed.id);
        VolumeName::parse(&text).expect("a good name")
    }
}

impl Clones {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed ^ 0x636C_6F6E),
            last: 0,
            pauses: false,
            living: BTreeMap::new(),
            unfinished: Vec::new(),
            dying: BTreeSet::new(),
            gone: BTreeSet::new(),
            zombies: Vec::new(),
            freeings: Freeings::default(),
        }
    }

    fn pick_living(&mut self) -> Option<VolumeId> {
        let ids: Vec<VolumeId> = self.living.keys().copied().collect();
        (!ids.is_empty()).then(|| self.dice.pick(&ids))
    }

    /// Whether a clone needs the snapshot.
    pub(super) fn need(&self, snapshot: SnapshotId) -> bool {
        self.living
            .values()
            .any(|clone| clone.snapshot == Some(snapshot))
    }

    /// Whether a clone of the snapshot was begun: it can be gone on with, so it keeps it as well.
    pub(super) fn have_begun(&self, snapshot: SnapshotId) -> bool {
        let mut unfinished = self.unfinished.iter();
        unfinished.any(|creation| creation.snapshot.id == snapshot)
    }
}

impl World {
    /// At a turn of the uploader: makes a clone, goes on with an interrupted one, deletes one.
    /// `known`: what a committed snapshot of the volume holds.
    pub(super) fn may_clone(
        &mut self,
        clones: &mut Clones,
        (of, snapshot): (usize, &Snapshot),
        image: &[u8],
    ) {
        if clones.living.len() + clones.unfinished.len() < CLONES_MAX && clones.dice.chance(400) {
            let served = ((of, self.ids[of]), snapshot.clone(), image.to_vec());
            let other = clones.dice.chance(300).then(|| self.pick_snapshot(clones));
            let (parent, snapshot, image) = other.flatten().unwrap_or(served);
            let creation = self.creation(clones, parent, snapshot, image);
            self.create(clones, creation);
        }
        self.live_on(clones, 150);
    }

    /// Something is done to those that there are; one is deleted in so many of 1000 cases.
    fn live_on(&mut self, clones: &mut Clones, deletions: u32) {
        if clones.dice.chance(200)
            && let Some(creation) = clones.unfinished.pop()
        {
            self.create(clones, creation);
        }
        if clones.dice.chance(500) {
            self.write_clone(clones);
        }
        if clones.dice.chance(deletions) {
            self.delete_clone(clones);
        }
        self.go_on_deleting(clones);
    }

    /// A life of the volumes of this world as a family: nobody serves them, all are written,
    /// cloned, rolled back, compacted, swept, deleted and freed in random order.
    pub(super) fn live_as_family(&mut self, seed: u64) -> Result<(), String> {
        let mut clones = Clones::new(seed);
        // Only some, so that the others stay what they were.
        clones.pauses = seed % 3 == 1;
        let window_ms = self.snapshots.points.window_seconds() * 1000;
        for (of, id) in self.ids.iter().enumerate() {
            let lattice = self.oracle.lattices[of];
            let zeros = vec![0; lattice.size_bytes() as usize];
            let root = Clone {
                of,
                snapshot: None,
                written: Written::new(*id, lattice, zeros, (window_ms, clones.pauses)),
            };
            clones.living.insert(*id, root);
        }
        for _ in 0..clones.dice.range(60..=160) {
            self.events += 1;
            if clones.living.len() < CLONES_MAX && clones.dice.chance(150) {
                self.clone_a_clone(&mut clones);
            }
            self.live_on(&mut clones, 40);
            if let Some(what) = self.broken_promise.take() {
                return Err(what);
            }
        }
        self.settle_clones(&mut clones)
    }

    fn clone_a_clone(&mut self, clones: &mut Clones) {
        let Some((parent, snapshot, image)) = self.pick_snapshot(clones) else {
            return;
        };
        let creation = self.creation(clones, parent, snapshot, image);
        self.create(clones, creation);
    }

    fn creation(
        &self,
        clones: &mut Clones,
        (of, parent): (usize, VolumeId),
        snapshot: Snapshot,
        image: Vec<u8>,
    ) -> Creation {
        clones.last += 1;
        let seed = VolumeSeed {
            id: VolumeId(0xC10_0000_0000 + clones.last),
            token: WriterToken(clones.dice.number()),
        };
        let layout = CloneLayout {
            part_bytes: 200,
            share_above_bytes: clones.dice.pick(&[0, 1 << 20]),
        };
        Creation {
            seed,
            of,
            parent,
            snapshot,
            image,
            layout,
        }
    }

    /// A snapshot of a clone, and what it holds.
    fn pick_snapshot(&self, clones: &mut Clones) -> Option<((usize, VolumeId), Snapshot, Vec<u8>)> {
        let id = clones.pick_living()?;
        let clone = clones.living.get(&id)?;
        let (snapshot, image) = clone.written.snapshot(&mut clones.dice)?;
        Some(((clone.of, id), snapshot, image))
    }

    fn write_clone(&mut self, clones: &mut Clones) {
        let Some(id) = clones.pick_living() else {
            return;
        };
        let clone = clones.living.get_mut(&id).expect("it lives");
        let stepped = clone
            .written
            .step(&self.objects, &mut clones.dice, &mut self.coverage);
        if let Err(what) = stepped {
            self.violate(format!("clone {id}: {what}"));
        }
        self.coverage.hit("a clone was written");
    }

    fn create(&mut self, clones: &mut Clones, creation: Creation) {
        let interrupted = clones.dice.chance(500);
        if interrupted {
            script(&self.objects, &mut clones.dice);
        }
        let layout = creation.layout;
        let id = creation.seed.id;
        let (name, of) = (creation.name(), (creation.parent, &creation.snapshot));
        let created = create_clone(&self.objects, creation.seed, &name, of, layout);
        let created = block_on(created);
        self.objects.clear_script();
        let snapshot = creation.snapshot.id;
        match created {
            Ok(_) => {
                self.note(format_args!("clone {id} of {snapshot} is there"));
                self.coverage.hit("a snapshot was cloned");
                if creation.parent != self.ids[creation.of] {
                    self.coverage.hit("a clone was cloned");
                }
                let lattice = self.oracle.lattices[creation.of];
                let window_ms = self.snapshots.points.window_seconds() * 1000;
                let clone = Clone {
                    of: creation.of,
                    snapshot: Some(snapshot),
                    written: Written::new(id, lattice, creation.image, (window_ms, clones.pauses)),
                };
                if let Some(parent) = clones.living.get_mut(&creation.parent) {
                    parent.written.paused_see_clone();
                }
                clones.living.insert(id, clone);
            }
            Err(error) if error.kind() == ErrorKind::Transient => {
                self.note(format_args!("clone {id} of {snapshot} is interrupted"));
                clones.unfinished.push(creation);
            }
            // The snapshot was deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.note(format_args!("clone {id} of {snapshot}: {error}"));
                clones.gone.insert(id);
            }
            // With the volume of the snapshot, perhaps.
            Err(error) if clones.gone.contains(&creation.parent) => {
                self.note(format_args!("clone {id} of what is gone: {error}"));
            }
            Err(error) => self.violate(format!("clone {id} of {snapshot}: {error}")),
        }
    }

    /// Deletes one that has no snapshots. Its writer may pause in the middle of a commit, and not
    /// know.
    fn delete_clone(&mut self, clones: &mut Clones) {
        let Some(id) = clones.pick_living() else {
            return;
        };
        let clone = clones.living.get_mut(&id).expect("it lives");
        if clone.written.has_snapshots() {
            return;
        }
        let paused = clone.written.take_paused();
        clones.zombies.extend(paused.map(|writer| (id, writer)));
        if clones.dice.chance(400) {
            let zombie = clone.written.abandon(&self.objects, &mut clones.dice);
            clones.zombies.extend(zombie.map(|zombie| (id, zombie)));
        }
        clones.living.remove(&id);
        clones.dying.insert(id);
        self.delete_or_finish(clones, id);
    }

    /// Deletes the volume as its next writer does, or goes on with what is left to be done.
    fn delete_or_finish(&mut self, clones: &mut Clones, id: VolumeId) {
        let died = clones.dice.chance(400).then(|| clones.dice.pick(&DEATHS));
        if let Some((point, _)) = died {
            failpoint::fail_next(point);
        } else if clones.dice.chance(300) {
            script(&self.objects, &mut clones.dice);
        }
        let token = WriterToken(clones.dice.number());
        let done = block_on(async {
            let objects = &self.objects;
            let head = read_head(objects, id, None).await?;
            if head.kind == ManifestKind::Tombstone {
                return finish_deletion(objects, &head).await;
            }
            let opened = head.opened_by(token);
            let opened = crate::registry::append(objects, &opened).await?;
            let crate::registry::Appended::Ours(head) = opened else {
                unreachable!("nobody else opens it");
            };
            failpoint::pass("delete.put")?;
            delete_volume(objects, &head).await.map(drop)
        });
        let fired = failpoint::has_fired();
        failpoint::fail_none();
        self.objects.clear_script();
        if let Some((_, event)) = died.filter(|_| fired) {
            self.coverage.hit(event);
        }
        if done.is_ok() {
            clones.dying.remove(&id);
            clones.gone.insert(id);
            self.coverage.hit("a clone was deleted");
            self.note(format_args!("clone {id} is deleted"));
        }
    }

    /// Somebody goes on with deletions, and with what follows them; zombies go on, too.
    fn go_on_deleting(&mut self, clones: &mut Clones) {
        if clones.dice.chance(200)
            && let Some(id) = clones.dying.first().copied()
        {
            self.delete_or_finish(clones, id);
        }
        if clones.dice.chance(100) && !clones.zombies.is_empty() {
            let effects = clones.dice.range(1..=3) as usize;
            self.haunt_one(clones, effects);
        }
        if clones.dice.chance(300) {
            let freed = clones
                .freeings
                .step(&self.objects, &mut clones.dice, &mut self.coverage);
            if let Err(what) = freed {
                self.violate(what);
            }
        }
    }

    fn haunt_one(&mut self, clones: &mut Clones, effects: usize) {
        let (id, mut zombie) = clones.zombies.remove(0);
        match haunt(&mut zombie, &self.objects, effects) {
            Haunting::GoesOn => return clones.zombies.push((id, zombie)),
            Haunting::Rests => return,
            Haunting::Fenced => {}
        }
        let head = block_on(read_head(&self.objects, id, None)).expect("its chain is there");
        if head.kind == ManifestKind::Tombstone {
            self.coverage.hit("a tombstone fenced a paused writer");
            block_on(mark_again(&self.objects, &head)).expect("nothing is scripted");
        }
    }

    /// Goes on with all deletions until they are done.
    pub(super) fn finish_deletions(&mut self, clones: &mut Clones) {
        while let Some(id) = clones.dying.first().copied() {
            self.delete_or_finish(clones, id);
        }
    }

    /// At the end of everything: what was begun is finished, and nothing is left of those that are
    /// gone.
    pub(super) fn settle_clones(&mut self, clones: &mut Clones) -> Result<(), String> {
        self.finish_deletions(clones);
        while !clones.zombies.is_empty() {
            self.haunt_one(clones, 1000);
        }
        clones.freeings.finish(&self.objects)?;
        for id in &clones.gone {
            Freeings::check(&self.objects, *id)?;
        }
        let mut all = clones.living.values_mut();
        all.try_for_each(|clone| clone.written.check(&self.objects, &mut self.coverage))
    }

    /// All clones of the volume read as they were written.
    pub(super) fn check_clones(
        &mut self,
        clones: &mut Clones,
        volume: usize,
    ) -> Result<(), String> {
        for (id, clone) in clones.living.iter_mut().filter(|(_, c)| c.of == volume) {
            clone.written.check(&self.objects, &mut self.coverage)?;
            let name = VolumeName::parse(&format!("clone-{id}")).expect("a good name");
            let named = block_on(resolve_name(&self.objects, &name));
            if named.map_err(|error| error.to_string())? != Some(*id) {
                return Err(format!("clone {id} has lost its name"));
            }
        }
        Ok(())
    }
}

//! Snapshots taken at random moments: each is the cut that it should be when it comes to the
//! bucket, and the same to the byte whenever it is read again, until it is deleted.

mod groups;
mod rollback;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures::executor::block_on;

use super::bucket::Late;
use super::clones::Clones;
use super::dice::Dice;
use super::image::read_all;
use super::points::Points;
use super::world::World;
use crate::error::Result;
use crate::identity::VolumeId;
use crate::index::rebuild::rebuild;
use crate::manifest::Manifest;
use crate::registry::{delete_snapshot, read_history, read_snapshot};
use crate::snapshot::{Snapshot, SnapshotId, SnapshotName, SnapshotWish};

use groups::Groups;

/// Only some seeds take snapshots, so that the others stay the runs that they were.
const SEEDS_WITH: u64 = 4;
/// Snapshots of a volume at a time.
const HELD_MAX: usize = 5;

/// Everything known of the snapshots of all appliances.
pub(super) struct Snapshots {
    is_on: bool,
    book: RefCell<Book>,
    clones: RefCell<Clones>,
    groups: Groups,
    pub(super) points: Points,
}

struct Book {
    dice: Dice,
    last: u64,
    asked: BTreeMap<SnapshotId, Asked>,
    /// What is in the bucket.
    known: BTreeMap<SnapshotId, Known>,
    /// Somebody began to delete them.
    deleted: BTreeSet<SnapshotId>,
}

/// A snapshot that was asked for, by whom and when.
#[derive(Clone, Copy)]
struct Asked {
    appliance: usize,
    life: u32,
    asked: u64,
    sealed: Option<u64>,
}

struct Known {
    volume: usize,
    life: u32,
    image: Vec<u8>,
}

impl Snapshots {
    pub(super) fn new(seed: u64) -> Self {
        let book = Book {
            dice: Dice::new(seed ^ 0x736E_6170),
            last: 0,
            asked: BTreeMap::new(),
            known: BTreeMap::new(),
            deleted: BTreeSet::new(),
        };
        Self {
            is_on: seed % SEEDS_WITH == SEEDS_WITH - 1,
            book: RefCell::new(book),
            clones: RefCell::new(Clones::new(seed)),
            groups: Groups::new(seed),
            points: Points::new(seed),
        }
    }

    /// Whether the bucket has a snapshot of the volume.
    pub(super) fn has_any(&self, volume: usize) -> bool {
        let book = self.book.borrow();
        let mut known = book.known.iter();
        known.any(|(id, known)| known.volume == volume && !book.deleted.contains(id))
    }

    fn chance(&self, per_mille: u32) -> bool {
        self.is_on && self.book.borrow_mut().dice.chance(per_mille)
    }

    fn pick<T: Copy>(&self, items: &[T]) -> T {
        self.book.borrow_mut().dice.pick(items)
    }
}

impl World {
    fn appliance(&self) -> usize {
        self.racing.as_ref().map_or(0, |racing| racing.label)
    }

    /// At a turn of the uploader: takes one, deletes one, notes which are sealed.
    pub(super) fn may_snapshot(&mut self) {
        if self.snapshots.chance(20) && self.now_us < self.life_ends_us {
            let id = self.snapshots.pick(&self.ids);
            self.ask_snapshot(id);
        }
        if self.snapshots.chance(8) && self.now_us < self.life_ends_us {
            let id = self.snapshots.pick(&self.ids);
            self.may_delete(id);
        }
        if self.snapshots.chance(80) && self.now_us < self.life_ends_us {
            let id = self.snapshots.pick(&self.ids);
            self.clone_one_of(id);
        }
        self.may_group();
        self.note_sealed();
    }

    /// Something is done to clones, of a snapshot of the volume if any.
    fn clone_one_of(&mut self, id: VolumeId) {
        let Some(volume) = self.node_ref().uploader.volumes.get(&id) else {
            return;
        };
        let all: Vec<_> = volume.commit.snapshots().iter().cloned().collect();
        if all.is_empty() {
            return;
        }
        let snapshots = Rc::clone(&self.snapshots);
        let snapshot = snapshots.pick(&all.iter().collect::<Vec<_>>());
        let book = snapshots.book.borrow();
        let Some(known) = book.known.get(&snapshot.id) else {
            return;
        };
        let mut clones = snapshots.clones.borrow_mut();
        self.may_clone(&mut clones, (known.volume, snapshot), &known.image);
    }

    /// At the end of the run: what was begun of groups and clones is finished.
    pub(super) fn settle_space(&mut self) -> std::result::Result<(), String> {
        let snapshots = Rc::clone(&self.snapshots);
        // One whose deletion was interrupted still keeps its snapshot.
        self.finish_deletions(&mut snapshots.clones.borrow_mut());
        self.settle_groups(&snapshots)?;
        self.settle_clones(&mut snapshots.clones.borrow_mut())
    }

    fn ask_snapshot(&mut self, id: VolumeId) {
        if !self.may_ask(id) {
            return;
        }
        let wish = self.next_wish(id);
        let snapshot = wish.id;
        self.note_asked(snapshot);
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        uploader.coordinator.snapshot(id, wish);
        self.note(format_args!("snapshot {snapshot} of {id} is asked for"));
    }

    /// Whether the volume is served here and has room for a snapshot.
    fn may_ask(&self, id: VolumeId) -> bool {
        let uploader = &self.node_ref().uploader;
        let Some(volume) = uploader.volumes.get(&id) else {
            return false;
        };
        let pending = uploader.coordinator.pending_snapshots(id).count();
        let held = volume.commit.snapshots().len() + pending;
        held < HELD_MAX && volume.commit.fenced_by().is_none()
    }

    /// A wish for a snapshot of the volume, under a new name.
    fn next_wish(&mut self, id: VolumeId) -> SnapshotWish {
        let uploader = &self.node.as_ref().expect("it runs").uploader;
        let commit = &uploader.volumes[&id].commit;
        let mut book = self.snapshots.book.borrow_mut();
        book.last += 1;
        let name = SnapshotName::parse(&format!("s{}", book.last)).expect("a good name");
        let pending = uploader.coordinator.pending_snapshots(id).count();
        commit.may_take(&name, pending).expect("the name is new");
        if !commit.is_idle() {
            self.coverage
                .hit("a snapshot was cut beside a commit under way");
        }
        SnapshotWish {
            id: SnapshotId(book.last),
            name,
            taken_ms: self.now_us / 1000,
            group: None,
        }
    }

    fn note_asked(&mut self, snapshot: SnapshotId) {
        let asked = Asked {
            appliance: self.appliance(),
            life: self.life,
            asked: self.oracle.tick(),
            sealed: None,
        };
        self.snapshots
            .book
            .borrow_mut()
            .asked
            .insert(snapshot, asked);
    }

    /// From here on nothing that a client begins is in a snapshot that is taken.
    fn note_sealed(&mut self) {
        if !self.snapshots.is_on {
            return;
        }
        let coordinator = &self.node_ref().uploader.coordinator;
        let pending = self
            .ids
            .iter()
            .flat_map(|id| coordinator.pending_snapshots(*id));
        let taken: Vec<SnapshotId> = pending.filter(|(_, t)| *t).map(|(w, _)| w.id).collect();
        let now = self.oracle.tick();
        let mut book = self.snapshots.book.borrow_mut();
        for id in taken {
            let asked = book.asked.get_mut(&id).expect("it was asked for");
            asked.sealed.get_or_insert(now);
        }
    }

    /// The operator deletes a snapshot.
    fn may_delete(&mut self, id: VolumeId) {
        let Some(volume) = self.node_ref().uploader.volumes.get(&id) else {
            return;
        };
        let all: Vec<_> = volume.commit.snapshots().iter().cloned().collect();
        if !all.is_empty() {
            let snapshot = self.snapshots.pick(&all.iter().collect::<Vec<_>>());
            self.delete(id, snapshot);
        }
    }

    /// Deletes a snapshot while nothing of the volume is under way. Whether it did.
    fn delete(&mut self, id: VolumeId, snapshot: &Snapshot) -> bool {
        let is_away = self.is_away();
        if is_away || self.node_ref().uploader.volumes[&id].unverified || !self.settle(id) {
            return false;
        }
        let commit = &self.node_ref().uploader.volumes[&id].commit;
        let head = commit.head().clone();
        let mut book = self.snapshots.book.borrow_mut();
        book.deleted.insert(snapshot.id);
        drop(book);
        let deleted = match &self.copies {
            Some(copies) => block_on(delete_snapshot(copies, &head, snapshot)),
            None => block_on(delete_snapshot(&self.objects, &head, snapshot)),
        };
        let is_needed = self.snapshots.clones.borrow().need(snapshot.id);
        let next = match deleted {
            Ok(_) if is_needed => {
                let what = format!("snapshot {} was deleted, a clone needs it", snapshot.id);
                self.violate(what);
                return false;
            }
            Ok(next) => next,
            Err(_) => {
                if is_needed {
                    self.snapshots
                        .book
                        .borrow_mut()
                        .deleted
                        .remove(&snapshot.id);
                    self.coverage
                        .hit("a snapshot was kept because it has a clone");
                }
                // Of another writer's volume it fails; the next commit is fenced.
                return false;
            }
        };
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        let volume = uploader.volumes.get_mut(&id).expect("an open volume");
        volume.local.advance(&next);
        let local = volume.local.clone();
        volume.commit.adopt_head(next);
        self.heads.save(&local).expect("head records can be saved");
        self.coverage.hit("a snapshot was deleted");
        self.note(format_args!("snapshot {} of {id} is deleted", snapshot.id));
        true
    }

    /// A request has reached the bucket. If it was a manifest that takes snapshots, they are judged
    /// at once, while the history is what it was.
    pub(super) fn snapshots_landed(&mut self, late: &Late) {
        self.points_landed(late);
        let Late::Put(_, body) = late else { return };
        let Ok(manifest) = Manifest::decode(body) else {
            return;
        };
        if manifest.snapshots.is_empty() {
            return;
        }
        let volume = self.ids.iter().position(|id| *id == manifest.volume);
        if let Err(what) = self.check_snapshots(volume.expect("a volume of its own")) {
            self.violate(what);
        }
    }

    /// All snapshots of the volume that the bucket names can be read, and are what they were.
    pub(super) fn check_snapshots(&mut self, volume: usize) -> std::result::Result<(), String> {
        self.check_points(volume)?;
        if !self.snapshots.is_on {
            return Ok(());
        }
        let snapshots = Rc::clone(&self.snapshots);
        self.check_clones(&mut snapshots.clones.borrow_mut(), volume)?;
        let found = self.read_snapshots(volume);
        let found = found.map_err(|error| format!("a snapshot cannot be read: {error}"))?;
        let (appliance, life) = (self.appliance(), self.life);
        let mut book = snapshots.book.borrow_mut();
        let Book {
            asked,
            known,
            deleted,
            ..
        } = &mut *book;
        for (id, known) in known.iter() {
            let is_gone = known.volume == volume && !found.contains_key(id);
            if is_gone && !deleted.contains(id) {
                return Err(format!("snapshot {id} of volume {volume} is gone"));
            }
        }
        let mut fresh = Vec::new();
        for (id, image) in found {
            if let Some(known) = known.get(&id) {
                if known.image != image {
                    return Err(format!("snapshot {id} of volume {volume} has changed"));
                }
                if known.life < life {
                    self.coverage.hit("a snapshot of a life before was read");
                }
                continue;
            }
            let asked = asked.get(&id).expect("somebody asked for it");
            if (asked.appliance, asked.life) == (appliance, life) {
                let times = (asked.asked, asked.sealed);
                self.oracle.snapshot(volume, &image, times)?;
            }
            let entry = Known {
                volume,
                life,
                image,
            };
            known.insert(id, entry);
            fresh.push(id);
        }
        let lost = |id: &SnapshotId, a: &Asked| {
            a.life < life
                && a.appliance == appliance
                && a.sealed.is_some()
                && !known.contains_key(id)
        };
        if asked.iter().any(|(id, asked)| lost(id, asked)) {
            self.coverage
                .hit("a taken snapshot was lost with its process");
        }
        drop(book);
        let mut fresh = fresh.into_iter();
        fresh.try_for_each(|id| self.check_group_of(&snapshots, id))
    }

    fn read_snapshots(&self, volume: usize) -> Result<BTreeMap<SnapshotId, Vec<u8>>> {
        let (id, lattice) = (self.ids[volume], self.oracle.lattices[volume]);
        block_on(async {
            let history = read_history(&self.objects, id, None).await?;
            let head = rebuild(&self.objects, &history.manifests).await?;
            let mut images = BTreeMap::new();
            for snapshot in head.snapshots.iter() {
                let (_, rebuilt) = read_snapshot(&self.objects, id, snapshot).await?;
                let image = read_all(&self.objects, &rebuilt.base, lattice).await?;
                images.insert(snapshot.id, image);
            }
            Ok(images)
        })
    }
}

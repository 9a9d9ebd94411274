//! Groups of snapshots at random moments: one cut over several volumes, settled by whoever has them
//! open, through crashes and lost responses at each step. A group is all or nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::executor::block_on;

use super::{Snapshots, World};
use crate::backend::Backend;
use crate::commit::Member;
use crate::identity::VolumeId;
use crate::object::ObjectKey;
use crate::registry::{GroupVerdict, settle_group};
use crate::sim::bucket::Bucket;
use crate::sim::dice::Dice;
use crate::sim::plan::MS;
use crate::snapshot::{Group, Snapshot, SnapshotId, SnapshotName, SnapshotWish};

type Verdict = Result<(), String>;

/// Everything known of the groups of all appliances.
pub(super) struct Groups(RefCell<Ledger>);

struct Ledger {
    dice: Dice,
    all: BTreeMap<SnapshotId, Entry>,
}

/// A group that was asked for, by its lead.
struct Entry {
    members: Vec<(usize, SnapshotId)>,
    asked_by: (usize, u32),
    /// What the bucket says, once somebody has learnt it.
    verdict: Option<GroupVerdict>,
}

impl Groups {
    pub(super) fn new(seed: u64) -> Self {
        Self(RefCell::new(Ledger {
            dice: Dice::new(seed ^ 0x6772_6F75),
            all: BTreeMap::new(),
        }))
    }

    fn chance(&self, per_mille: u32) -> bool {
        self.0.borrow_mut().dice.chance(per_mille)
    }
}

/// Committed snapshots of this life's volumes that are of groups.
fn grouped(world: &World) -> Vec<(VolumeId, Snapshot, Group)> {
    let volumes = world.node_ref().uploader.volumes.iter();
    let all = volumes.flat_map(|(id, volume)| {
        let grouped = |s: &Snapshot| Some((*id, s.clone(), s.group.clone()?));
        volume.commit.snapshots().iter().filter_map(grouped)
    });
    all.collect()
}

impl World {
    /// At a turn of the uploader: asks for a group, or goes on with those that there are.
    pub(super) fn may_group(&mut self) {
        let snapshots = Rc::clone(&self.snapshots);
        if !snapshots.is_on || self.now_us >= self.life_ends_us {
            return;
        }
        if snapshots.groups.chance(25) {
            self.ask_group(&snapshots);
        }
        if snapshots.groups.chance(300) && !self.within(self.faults.away_us) {
            let fails = self.faults.put_fails.max(100);
            self.tend_groups(&snapshots, fails);
        }
    }

    fn ask_group(&mut self, snapshots: &Snapshots) {
        let able = self.ids.iter().copied();
        let able: Vec<VolumeId> = able.filter(|id| self.may_ask(*id)).collect();
        if able.len() < 2 {
            return;
        }
        let first = usize::from(able.len() > 2 && snapshots.groups.chance(500));
        let singles = able[first..].iter().map(|id| (*id, self.next_wish(*id)));
        let mut wishes: Vec<(VolumeId, SnapshotWish)> = singles.collect();
        let members = wishes.iter().map(|(id, wish)| (*id, wish.id));
        let group = Group::new(members.collect()).expect("several volumes, each once");
        let name = wishes[0].1.name.clone();
        for (_, wish) in &mut wishes {
            wish.name = name.clone();
            wish.group = Some(group.clone());
            self.note_asked(wish.id);
        }
        let index = |id: &VolumeId| self.ids.iter().position(|known| known == id);
        let members = wishes
            .iter()
            .map(|(id, wish)| (index(id).expect("one of ours"), wish.id));
        let entry = Entry {
            members: members.collect(),
            asked_by: (self.appliance(), self.life),
            verdict: None,
        };
        let mut ledger = snapshots.groups.0.borrow_mut();
        ledger.all.insert(group.lead(), entry);
        drop(ledger);
        self.note(format_args!("group {} is asked for", group.lead()));
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        uploader.coordinator.snapshot_group(wishes);
        self.may_die_soon(snapshots, 40 * MS);
    }

    /// The process may end within so many microseconds.
    fn may_die_soon(&mut self, snapshots: &Snapshots, within_us: u64) {
        if snapshots.groups.chance(150) {
            let wait = snapshots.groups.0.borrow_mut().dice.below(within_us);
            self.life_ends_us = self.life_ends_us.min(self.now_us + wait);
        }
    }

    /// Settles a group that is whole or broken, or removes something that a broken one left, as the
    /// appliance does. Whether there was anything to do.
    fn tend_groups(&mut self, snapshots: &Snapshots, fails: u32) -> bool {
        if let Some((name, group, verdict)) = self.unsettled_group() {
            self.settle_one(snapshots, &name, &group, (verdict, fails));
            return true;
        }
        let verdicts = &self.node_ref().uploader.verdicts;
        let given_up = |g: &Group| verdicts.get(&g.lead()) == Some(&GroupVerdict::GivenUp);
        let mut remains = grouped(self);
        remains.retain(|(_, _, group)| given_up(group));
        let mut remains = remains.iter();
        let deleted = remains.any(|(id, snapshot, _)| self.delete(*id, snapshot));
        if deleted {
            self.coverage.hit("what a broken group left was deleted");
        }
        deleted
    }

    fn unsettled_group(&self) -> Option<(SnapshotName, Group, GroupVerdict)> {
        let verdicts = &self.node_ref().uploader.verdicts;
        let mut open = grouped(self).into_iter();
        open.find_map(|(_, snapshot, group)| {
            if verdicts.contains_key(&group.lead()) {
                return None;
            }
            let verdict = self.least_member(&group).verdict()?;
            Some((snapshot.name, group, verdict))
        })
    }

    fn least_member(&self, group: &Group) -> Member {
        let uploader = &self.node_ref().uploader;
        let member = |id: &VolumeId| match uploader.volumes.get(id) {
            Some(volume) => {
                let open = (&uploader.coordinator, &volume.commit);
                Member::of(open, group.lead(), volume.unverified)
            }
            None => Member::Away,
        };
        let members = group.volumes().iter().map(member);
        members.min().expect("a group has volumes")
    }

    fn settle_one(
        &mut self,
        snapshots: &Snapshots,
        name: &SnapshotName,
        group: &Group,
        (wanted, fails): (GroupVerdict, u32),
    ) {
        let lead = group.lead();
        let dice = snapshots.groups.0.borrow_mut().dice.fork();
        let bucket = Bucket::new(self.objects.clone(), dice, fails, Vec::new());
        let settled = block_on(settle_group(&bucket, name, group, wanted));
        let Ok(verdict) = settled else {
            let stored = block_on(self.objects.head(&ObjectKey::group(lead)));
            if matches!(stored, Ok(Some(_))) {
                self.coverage.hit("a verdict on a group was not answered");
            }
            if fails == 0 {
                self.violate(format!("group {lead} cannot be settled"));
            }
            return self.may_die_soon(snapshots, MS);
        };
        self.note(format_args!("group {lead}: {verdict:?}"));
        let uploader = &mut self.node.as_mut().expect("it runs").uploader;
        uploader.verdicts.insert(lead, verdict);
        self.coverage.hit(match verdict {
            GroupVerdict::Complete => "a group of snapshots was complete",
            GroupVerdict::GivenUp => "a group of snapshots was given up",
        });
        if let Err(what) = self.check_verdict(snapshots, lead, verdict) {
            self.violate(what);
        }
        self.may_die_soon(snapshots, MS);
    }

    /// A verdict never changes, and a group is complete only with all its snapshots.
    fn check_verdict(
        &mut self,
        snapshots: &Snapshots,
        lead: SnapshotId,
        verdict: GroupVerdict,
    ) -> Verdict {
        if verdict == GroupVerdict::Complete {
            // What landed late, during a start, nobody has looked at yet.
            for volume in 0..self.ids.len() {
                self.check_snapshots(volume)?;
            }
        }
        let mut ledger = snapshots.groups.0.borrow_mut();
        let entry = ledger.all.get_mut(&lead).expect("it was asked for");
        let (by, life) = entry.asked_by;
        if by != self.appliance() {
            self.coverage
                .hit("race: a group was settled by the other appliance");
        } else if life < self.life {
            self.coverage.hit("a group was settled by a later life");
        }
        if *entry.verdict.get_or_insert(verdict) != verdict {
            return Err(format!("group {lead} was decided twice"));
        }
        let book = snapshots.book.borrow();
        let there = |id: &SnapshotId| book.known.contains_key(id) || book.deleted.contains(id);
        let missing = |(_, id): &&(usize, SnapshotId)| !there(id);
        match entry.members.iter().find(missing) {
            Some((volume, id)) if verdict == GroupVerdict::Complete => {
                let text = format!("group {lead} is complete without {id} of volume {volume}");
                Err(text)
            }
            _ => Ok(()),
        }
    }

    /// A snapshot has come to the bucket: what there is of its group, if it is of one, is one cut.
    pub(super) fn check_group_of(&mut self, snapshots: &Snapshots, id: SnapshotId) -> Verdict {
        let ledger = snapshots.groups.0.borrow();
        let is_of = |entry: &&Entry| entry.members.iter().any(|(_, member)| *member == id);
        let Some(entry) = ledger.all.values().find(is_of) else {
            return Ok(());
        };
        // Of others, and of lives before, it is not known any more when what was outdone.
        if entry.asked_by != (self.appliance(), self.life) {
            return Ok(());
        }
        let book = snapshots.book.borrow();
        let known = |(volume, id): &(usize, SnapshotId)| {
            let known = book.known.get(id)?;
            Some((*volume, known.image.as_slice()))
        };
        let images: Vec<(usize, &[u8])> = entry.members.iter().filter_map(known).collect();
        self.oracle.one_cut(&images)?;
        if images.len() == entry.members.len() {
            self.coverage.hit("a whole group was one cut");
        }
        Ok(())
    }

    /// At the end of everything: no group is half there.
    pub(super) fn settle_groups(&mut self, snapshots: &Snapshots) -> Verdict {
        while self.tend_groups(snapshots, 0) && self.broken_promise.is_none() {}
        if let Some(what) = self.broken_promise.take() {
            return Err(what);
        }
        let mut ledger = snapshots.groups.0.borrow_mut();
        let book = snapshots.book.borrow();
        for (id, snapshot, group) in grouped(self) {
            let lead = group.lead();
            let is_unverified = self.node_ref().uploader.volumes[&id].unverified;
            if is_unverified || self.least_member(&group) == Member::Away {
                continue;
            }
            let entry = ledger.all.get_mut(&lead).expect("it was asked for");
            match entry.verdict {
                None => return Err(format!("nobody has settled group {lead}")),
                Some(GroupVerdict::GivenUp) => {
                    // Only a clone of it keeps what is left.
                    let clones = snapshots.clones.borrow();
                    if !clones.need(snapshot.id) && !clones.have_begun(snapshot.id) {
                        return Err(format!("volume {id} has a snapshot of broken group {lead}"));
                    }
                }
                Some(GroupVerdict::Complete) => {
                    let there =
                        |id: &SnapshotId| book.known.contains_key(id) || book.deleted.contains(id);
                    if !entry.members.iter().all(|(_, id)| there(id)) {
                        return Err(format!("complete group {lead} is not whole"));
                    }
                }
            }
        }
        Ok(())
    }
}

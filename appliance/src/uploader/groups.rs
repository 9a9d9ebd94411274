//! Groups of snapshots: taken by one cut of several volumes, complete once all are committed and
//! the group's object says so. What a crash left of one is given up. See
//! `docs/internals/groups.md`.

use std::collections::HashMap;
use std::rc::Rc;

use crossbeam_channel::{Sender, bounded};
use taipan_engine::api::SnapshotWait;
use taipan_engine::commit::Member;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::registry::{self, GroupVerdict, random_u64};
use taipan_engine::snapshot::{Group, Snapshot, SnapshotId, SnapshotName, SnapshotWish};
use taipan_engine::volume::VolumeName;

use super::Uploader;
use super::changes::Change;
use super::control::Request;
use super::effects::Means;
use super::patience::while_answering;

/// Groups are looked at so often.
const LOOK_EVERY_MS: u64 = 500;
/// What was refused is tried again after so long: a verdict, a deletion of what it leaves.
const AGAIN_MS: u64 = 10_000;

/// A group that somebody wants.
pub struct GroupWish {
    /// Its volumes.
    pub volumes: Vec<VolumeName>,
    /// The name of each snapshot.
    pub name: SnapshotName,
    /// When it was asked for: milliseconds since 1970.
    pub taken_ms: u64,
    /// When to answer.
    pub wait: SnapshotWait,
}

/// Somebody waits for a group.
struct Waiter {
    group: Group,
    wait: SnapshotWait,
    reply: Sender<Result<()>>,
}

/// What is known of groups.
#[derive(Default)]
pub(super) struct Groups {
    /// What became of those that were settled, by their lead.
    verdicts: HashMap<SnapshotId, GroupVerdict>,
    waiters: Vec<Waiter>,
    /// A verdict is being stored.
    is_settling: bool,
    /// The last verdict could not be stored.
    has_failed: bool,
    next_ms: u64,
}

impl Groups {
    fn is_awaited(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Whether the group exists.
    pub(super) fn is_complete(&self, lead: SnapshotId) -> bool {
        self.verdicts.get(&lead) == Some(&GroupVerdict::Complete)
    }
}

async fn settle(
    means: Rc<Means>,
    name: SnapshotName,
    group: Group,
    verdict: GroupVerdict,
) -> Change {
    let stored = registry::settle_group(&*means.backend, &name, &group, verdict);
    let what = "settle a group of snapshots";
    let result = while_answering(&*means.backend, what, stored).await;
    let lead = group.lead();
    Change::GroupSettled { lead, result }
}

impl Uploader {
    /// Has one cut of all the volumes be their snapshots.
    pub(super) fn take_group(&mut self, wish: &GroupWish, reply: Sender<Result<()>>) {
        let wait = wish.wait;
        let wishes = match self.group_wishes(wish) {
            Ok(wishes) => wishes,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let group = wishes.first().and_then(|(_, wish)| wish.group.clone());
        let group = group.expect("they are of a group");
        self.coordinator.snapshot_group(wishes);
        self.groups.waiters.push(Waiter { group, wait, reply });
    }

    fn group_wishes(&self, wish: &GroupWish) -> Result<Vec<(VolumeId, SnapshotWish)>> {
        let mut members = Vec::new();
        for volume in &wish.volumes {
            let single = SnapshotWish {
                id: SnapshotId(random_u64()?),
                name: wish.name.clone(),
                taken_ms: wish.taken_ms,
                group: None,
            };
            let id = self
                .ask_for(volume, &single)
                .map_err(|e| Error::new(e.kind(), format!("volume {:?}: {e}", volume.as_str())))?;
            members.push((id, single));
        }
        let all = members.iter().map(|(id, single)| (*id, single.id));
        let group = Group::new(all.collect())?;
        for (_, single) in &mut members {
            single.group = Some(group.clone());
        }
        Ok(members)
    }

    /// Settles groups that are whole or broken, and removes what broken ones left.
    pub(super) fn tend_groups(&mut self, now_ms: u64) {
        self.answer_group_waiters();
        let groups = &self.groups;
        let looks = now_ms >= groups.next_ms || (groups.is_awaited() && !groups.has_failed);
        if groups.is_settling || !looks {
            return;
        }
        self.groups.next_ms = now_ms + LOOK_EVERY_MS;
        let Some((name, group, verdict)) = self.unsettled() else {
            return self.remove_remains(now_ms);
        };
        self.groups.is_settling = true;
        let means = Rc::clone(&self.means);
        self.spawn_change(settle(means, name, group, verdict));
    }

    /// Committed snapshots that are of groups.
    fn grouped(&self) -> impl Iterator<Item = (VolumeId, &Snapshot, &Group)> {
        self.volumes.iter().flat_map(|(id, upload)| {
            let all = upload.commit.snapshots().iter();
            all.filter_map(|snapshot| Some((*id, snapshot, snapshot.group.as_ref()?)))
        })
    }

    /// A group whose verdict is clear and not known to be stored.
    fn unsettled(&self) -> Option<(SnapshotName, Group, GroupVerdict)> {
        self.grouped().find_map(|(_, snapshot, group)| {
            if self.groups.verdicts.contains_key(&group.lead()) {
                return None;
            }
            let members = group.volumes().iter();
            let worst = members.map(|id| self.member(*id, group.lead())).min()?;
            Some((snapshot.name.clone(), group.clone(), worst.verdict()?))
        })
    }

    fn member(&self, volume: VolumeId, lead: SnapshotId) -> Member {
        match self.volumes.get(&volume) {
            Some(upload) => {
                let open = (&self.coordinator, &upload.commit);
                Member::of(open, lead, upload.is_unverified())
            }
            None => Member::Away,
        }
    }

    /// A verdict is stored, or could not be.
    pub(super) fn group_settled(&mut self, lead: SnapshotId, result: Result<GroupVerdict>) {
        self.groups.is_settling = false;
        self.groups.has_failed = result.is_err();
        match result {
            Ok(verdict) => {
                tracing::info!(group = %lead, ?verdict, "group of snapshots");
                self.groups.verdicts.insert(lead, verdict);
                self.groups.next_ms = 0;
            }
            Err(error) => {
                tracing::warn!(group = %lead, %error, "a group of snapshots cannot be settled");
                self.groups.next_ms = self.now_ms() + AGAIN_MS;
            }
        }
    }

    /// Deletes a snapshot of a group that was given up, if there is one.
    fn remove_remains(&mut self, now_ms: u64) {
        let Some((name, snapshot)) = self.remains() else {
            return;
        };
        tracing::info!(volume = %name, %snapshot, "a snapshot of a broken group is deleted");
        // Nobody waits for the answer; if it is refused, because somebody reads it, again later.
        let (reply, _) = bounded(1);
        self.groups.next_ms = now_ms + AGAIN_MS;
        self.request(Request::DeleteSnapshot {
            name,
            snapshot,
            reply,
        });
    }

    fn remains(&self) -> Option<(VolumeName, SnapshotName)> {
        let verdicts = &self.groups.verdicts;
        let given_up = |group: &Group| verdicts.get(&group.lead()) == Some(&GroupVerdict::GivenUp);
        let mut remains = self.grouped().filter(|(_, _, group)| given_up(group));
        let (id, snapshot, _) = remains.next()?;
        let volume = self.volumes[&id].volume.name.clone();
        Some((volume, snapshot.name.clone()))
    }

    /// Answers those whose groups are as far as they wait for, or never will be.
    fn answer_group_waiters(&mut self) {
        for waiter in std::mem::take(&mut self.groups.waiters) {
            match self.group_outcome(&waiter) {
                Some(result) => _ = waiter.reply.send(result),
                None => self.groups.waiters.push(waiter),
            }
        }
    }

    fn group_outcome(&self, waiter: &Waiter) -> Option<Result<()>> {
        let (members, lead) = (waiter.group.volumes().iter(), waiter.group.lead());
        let worst = members.map(|id| self.member(*id, lead)).min()?;
        if self.groups.verdicts.get(&lead) == Some(&GroupVerdict::GivenUp) {
            let text = "the group was given up by another appliance";
            return Some(Err(Error::new(ErrorKind::Fenced, text)));
        }
        match (worst, waiter.wait) {
            (Member::Lost | Member::Away, _) => {
                let text = "a volume is not served any more; the group was not taken";
                Some(Err(Error::new(ErrorKind::Fenced, text)))
            }
            (Member::Taken | Member::Committed, SnapshotWait::Taken) => Some(Ok(())),
            (Member::Committed, SnapshotWait::Committed) => {
                let complete = self.groups.is_complete(lead);
                complete.then_some(Ok(()))
            }
            (Member::Asked | Member::Taken, _) => None,
        }
    }
}

//! What is to become of a group of snapshots, as far as the process that has its volumes open can
//! tell. Rules: `docs/internals/groups.md`.

use super::coordinator::Coordinator;
use super::volume::VolumeCommit;
use crate::mutation::{Mutation, is_in};
use crate::registry::GroupVerdict;
use crate::snapshot::{Group, SnapshotId};

/// How far one snapshot of a group is. The least of all is how far the group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// It never will be committed.
    Lost,
    /// Its volume is not open here, or what its head is has still to be seen.
    Away,
    /// It is asked for.
    Asked,
    /// Its cut is sealed.
    Taken,
    /// It is committed.
    Committed,
}

impl Member {
    /// How far an open volume's snapshot of the group `lead` is. `is_unverified`: the volume is
    /// served without having asked the backend for its head.
    pub fn of(
        (coordinator, commit): (&Coordinator, &VolumeCommit),
        lead: SnapshotId,
        is_unverified: bool,
    ) -> Self {
        let is_of = |group: Option<&Group>| group.is_some_and(|group| group.lead() == lead);
        let mut committed = commit.snapshots().iter();
        if committed.any(|snapshot| is_of(snapshot.group.as_ref())) {
            return Self::Committed;
        }
        let mut pending = coordinator.pending_snapshots(commit.volume());
        match pending.find(|(wish, _)| is_of(wish.group.as_ref())) {
            Some((_, true)) => Self::Taken,
            Some((_, false)) => Self::Asked,
            None if is_unverified => Self::Away,
            None => Self::Lost,
        }
    }

    /// The verdict that is due once this is the least of all members; `None` while it is in doubt.
    pub fn verdict(self) -> Option<GroupVerdict> {
        match self {
            Self::Committed => Some(GroupVerdict::Complete),
            Self::Lost if is_in(Mutation::HalfIsComplete) => Some(GroupVerdict::Complete),
            Self::Lost => Some(GroupVerdict::GivenUp),
            Self::Away | Self::Asked | Self::Taken => None,
        }
    }
}

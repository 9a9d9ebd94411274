//! What one of two appliances on one bucket is beside an appliance of its own.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::dice::Dice;
use super::world::World;
use crate::wal::WalId;

/// What one of two appliances knows of the race.
#[derive(Default)]
pub(super) struct Racing {
    pub(super) label: usize,
    /// Writes answered, by volume.
    pub(super) answered: BTreeMap<usize, u64>,
    /// Records found in the last boot that are of a lost lineage.
    pub(super) lost_records: u64,
}

/// For two appliances on one bucket.
impl World {
    pub(super) fn enter_race(&mut self, label: usize, aloud: bool) {
        self.aloud = aloud;
        self.racing = Some(Racing {
            label,
            ..Racing::default()
        });
    }

    pub(super) fn racing(&mut self) -> &mut Racing {
        self.racing.as_mut().expect("it is one of two")
    }

    /// Uses the bucket and the volumes of another one.
    pub(super) fn share_bucket(&mut self, other: &Self, dice: Dice) {
        self.objects = other.objects.clone();
        self.keep_copies();
        self.ids.clone_from(&other.ids);
        self.snapshots = Rc::clone(&other.snapshots);
        self.dice = dice;
        self.wal_id = WalId(self.dice.number());
        self.make_files();
    }

    /// Ends the run; the hash and the last lines of its trace.
    pub(super) fn end_race(&mut self) -> (u64, Vec<String>) {
        if let Some(node) = &mut self.node {
            node.abandon();
        }
        (self.trace_hash, self.trace.drain(..).collect())
    }
}

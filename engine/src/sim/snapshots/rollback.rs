//! Rollbacks of served volumes: before clients come, a volume takes the image of a snapshot, and
//! the process ends. What the next one serves is that image to the byte, whatever its log still
//! has.

use std::rc::Rc;

use futures::executor::block_on;

use super::{Snapshots, World};
use crate::identity::Epoch;
use crate::registry::{RollbackWish, prepare_rollback, put_rollback, read_head};
use crate::sim::bucket::Bucket;
use crate::sim::world::Crash;
use crate::snapshot::{KeptImage, Snapshot};
use crate::timestamp::UnixMs;

/// As the appliance: more cuts than are made while a rollback is under way.
const EPOCHS_MAX: u64 = 1 << 20;

impl World {
    /// Before clients come: the operator may take volumes back.
    pub(in crate::sim) fn may_roll_back(&mut self) -> Result<(), String> {
        let snapshots = Rc::clone(&self.snapshots);
        // Without the backend, from copies, it is served what was known before.
        if self.copies.is_some() || self.faults.away_at_boot || !snapshots.chance(500) {
            return Ok(());
        }
        let mut images = Vec::new();
        for volume in 0..self.ids.len() {
            let image = self.roll_back(&snapshots, volume);
            images.extend(image.map(|image| (volume, image)));
        }
        if images.is_empty() {
            return Ok(());
        }
        let crash = snapshots.pick(&[Crash::Kill, Crash::Power]);
        self.crash(crash);
        self.start()?;
        for (volume, image) in &images {
            self.coverage.hit("a served volume was rolled back");
            let before = self.oracle.clone();
            self.oracle.adopt(&before, *volume, image)?;
        }
        self.audit(true)
    }

    /// Takes a volume back to one of its snapshots. The image that it has now, if that came to be.
    fn roll_back(&mut self, snapshots: &Snapshots, volume: usize) -> Option<Vec<u8>> {
        let id = self.ids[volume];
        let node = self.node_ref();
        let served = node.uploader.volumes.get(&id)?;
        let is_settled = served.commit.is_idle() && served.publishing.is_none();
        if served.unverified || !is_settled || !snapshots.chance(700) {
            return None;
        }
        let (to, image) = known_snapshot(snapshots, served.commit.snapshots().iter())?;
        let (head, mut local) = (served.commit.head().clone(), served.local.clone());
        let epoch = Epoch(node.clock.now().max(head.epoch).0 + EPOCHS_MAX);
        let wish = RollbackWish {
            to: KeptImage::Snapshot(to),
            epoch,
            now: UnixMs(0),
            seed: self.dice.number(),
        };
        let fails = self.faults.put_fails;
        let bucket = Bucket::new(self.objects.clone(), self.dice.fork(), fails, Vec::new());
        let stored = block_on(async {
            let next = prepare_rollback(&bucket, &head, &wish).await?;
            put_rollback(&bucket, &next).await
        });
        match stored {
            Ok(next) if snapshots.chance(500) => {
                local.advance(&next);
                self.heads.save(&local).expect("head records can be saved");
            }
            Ok(_) => self
                .coverage
                .hit("a rollback was stored and not noted locally"),
            Err(error) => self.note(format_args!("a rollback of {id} fails: {error}")),
        }
        let now = block_on(read_head(&self.objects, id, None)).expect("its chain can be read");
        (now.epoch == epoch).then_some(image)
    }
}

/// One of these of which it is known what it holds.
fn known_snapshot<'a>(
    snapshots: &Snapshots,
    all: impl Iterator<Item = &'a Snapshot>,
) -> Option<(Snapshot, Vec<u8>)> {
    let known = |s: &&Snapshot| snapshots.book.borrow().known.contains_key(&s.id);
    let known: Vec<&Snapshot> = all.filter(known).collect();
    let picked = (!known.is_empty()).then(|| snapshots.pick(&known))?;
    let image = snapshots.book.borrow().known[&picked.id].image.clone();
    Some((picked.clone(), image))
}

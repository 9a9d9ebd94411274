//! Clones made at random moments, some of them interrupted and repeated much later: each reads as
//! the snapshot that it began as, whatever becomes of its parent, until it is deleted.

use std::collections::BTreeMap;

use futures::executor::block_on;

use super::dice::Dice;
use super::image::read_image;
use super::world::World;
use crate::backend::{Fault, FaultRule};
use crate::error::{ErrorKind, Result};
use crate::identity::{VolumeId, WriterToken};
use crate::registry::{
    CloneLayout, VolumeSeed, create_clone, delete_volume, read_history, resolve_name,
};
use crate::snapshot::{Snapshot, SnapshotId};
use crate::volume::VolumeName;

/// Clones and unfinished creations at a time.
const CLONES_MAX: usize = 6;
/// Requests of a creation, about.
const REQUESTS: u64 = 16;

/// Everything known of the clones of all appliances. Nobody writes them.
pub(super) struct Clones {
    dice: Dice,
    last: u64,
    living: BTreeMap<VolumeId, Clone>,
    /// Creations that were interrupted.
    unfinished: Vec<Creation>,
}

/// A clone that exists.
struct Clone {
    of: usize,
    snapshot: SnapshotId,
    image: Vec<u8>,
}

/// A creation, with all that a repeat needs.
#[derive(Clone)]
struct Creation {
    seed: VolumeSeed,
    of: usize,
    snapshot: Snapshot,
    image: Vec<u8>,
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
            living: BTreeMap::new(),
            unfinished: Vec::new(),
        }
    }

    /// Whether a clone needs the snapshot.
    pub(super) fn need(&self, snapshot: SnapshotId) -> bool {
        self.living.values().any(|clone| clone.snapshot == snapshot)
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
        if clones.living.len() + clones.unfinished.len() < CLONES_MAX && clones.dice.chance(300) {
            clones.last += 1;
            let seed = VolumeSeed {
                id: VolumeId(0xC10_0000_0000 + clones.last),
                token: WriterToken(clones.dice.number()),
            };
            let (snapshot, image) = (snapshot.clone(), image.to_vec());
            let creation = Creation {
                seed,
                of,
                snapshot,
                image,
            };
            self.create(clones, creation);
        }
        if clones.dice.chance(200)
            && let Some(creation) = clones.unfinished.pop()
        {
            self.create(clones, creation);
        }
        if clones.dice.chance(60) {
            self.delete_clone(clones);
        }
    }

    fn create(&mut self, clones: &mut Clones, creation: Creation) {
        let interrupted = clones.dice.chance(500);
        if interrupted {
            let kind = ErrorKind::Transient;
            let fault = match clones.dice.chance(500) {
                true => Fault::FailBefore(kind),
                false => Fault::FailAfter(kind),
            };
            self.objects.script(FaultRule {
                operation: None,
                key_contains: String::new(),
                skip: clones.dice.below(REQUESTS) as u32,
                times: 1,
                fault,
            });
        }
        let layout = CloneLayout {
            part_bytes: 200,
            share_above_bytes: clones.dice.pick(&[0, 1 << 20]),
        };
        let id = creation.seed.id;
        let parent = self.ids[creation.of];
        let (name, of) = (creation.name(), (parent, &creation.snapshot));
        let created = create_clone(&self.objects, creation.seed, &name, of, layout);
        let created = block_on(created);
        self.objects.clear_script();
        let snapshot = creation.snapshot.id;
        match created {
            Ok(_) => {
                self.note(format_args!("clone {id} of {snapshot} is there"));
                self.coverage.hit("a snapshot was cloned");
                let Creation { of, image, .. } = creation;
                let clone = Clone {
                    of,
                    snapshot,
                    image,
                };
                clones.living.insert(id, clone);
            }
            Err(error) if error.kind() == ErrorKind::Transient => {
                self.note(format_args!("clone {id} of {snapshot} is interrupted"));
                clones.unfinished.push(creation);
            }
            // The snapshot was deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.note(format_args!("clone {id} of {snapshot}: {error}"));
            }
            Err(error) => self.violate(format!("clone {id} of {snapshot}: {error}")),
        }
    }

    fn delete_clone(&mut self, clones: &mut Clones) {
        let ids: Vec<VolumeId> = clones.living.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = clones.dice.pick(&ids);
        let deleted: Result<_> = block_on(async {
            let history = read_history(&self.objects, id, None).await?;
            delete_volume(&self.objects, history.head()).await
        });
        deleted.expect("nobody else writes it");
        clones.living.remove(&id);
        self.coverage.hit("a clone was deleted");
        self.note(format_args!("clone {id} is deleted"));
    }

    /// All clones of the volume read as the snapshots that they began as.
    pub(super) fn check_clones(
        &self,
        clones: &Clones,
        volume: usize,
    ) -> std::result::Result<(), String> {
        for (id, clone) in clones.living.iter().filter(|(_, c)| c.of == volume) {
            let image = read_image(&self.objects, *id, self.oracle.lattices[volume]);
            let image = image.map_err(|error| format!("clone {id} cannot be read: {error}"))?;
            if image != clone.image {
                return Err(format!("clone {id} of {} has changed", clone.snapshot));
            }
            let name = VolumeName::parse(&format!("clone-{id}")).expect("a good name");
            let named = block_on(resolve_name(&self.objects, &name));
            if named.map_err(|error| error.to_string())? != Some(*id) {
                return Err(format!("clone {id} has lost its name"));
            }
        }
        Ok(())
    }
}

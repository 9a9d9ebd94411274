//! A reader found that an object of its volume is not there: the head tells why. Another appliance
//! may have taken the volume over and deleted what it replaced; then it is not served here any
//! more, even if nobody writes and so no commit finds out. So may the reader of a snapshot or of a
//! point in time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use taipan_engine::error::Result;
use taipan_engine::identity::VolumeId;
use taipan_engine::registry;
use taipan_engine::volume::VolumeName;

use super::Caretaker;
use crate::directory::Volume;

/// A volume's head is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Volumes whose head is to be looked at.
#[derive(Default)]
pub(crate) struct Lacking {
    due: BTreeSet<VolumeId>,
    looked: HashMap<VolumeId, Instant>,
}

impl Lacking {
    /// Which volumes are looked at now, of those that are `served`.
    fn take_due(&mut self, served: &[VolumeId], now: Instant) -> Vec<VolumeId> {
        self.due.retain(|id| served.contains(id));
        self.looked.retain(|id, _| served.contains(id));
        let is_ripe = |at: &Instant| now.duration_since(*at) >= LOOK_EVERY;
        let ripe = |id: &&VolumeId| self.looked.get(*id).is_none_or(is_ripe);
        let due: Vec<VolumeId> = self.due.iter().filter(ripe).copied().collect();
        for id in &due {
            self.due.remove(id);
            self.looked.insert(*id, now);
        }
        due
    }
}

/// The volume that has the image `id`, if it is an image that is open for reading; else `id`.
fn owner_of(id: VolumeId, views: &[Named<'_>], volumes: &[Named<'_>]) -> VolumeId {
    let view = views.iter().find(|(of, _)| *of == id);
    let owner = view.and_then(|(_, name)| volumes.iter().find(|(_, of)| of == name));
    owner.map_or(id, |(owner, _)| *owner)
}

/// A volume, or an image of it, with the volume's name.
type Named<'a> = (VolumeId, &'a VolumeName);

fn named(all: &[Arc<Volume>]) -> Vec<Named<'_>> {
    all.iter().map(|volume| (volume.id, &volume.name)).collect()
}

impl Caretaker {
    /// Looks at the heads of volumes that lack an object.
    pub(super) fn look_at_heads(&mut self, volumes: &[Arc<Volume>]) {
        let lacking = self.tables.take_lacking().into_iter();
        let views = self.directory.views();
        let (views, all) = (named(&views), named(volumes));
        self.lacking
            .due
            .extend(lacking.map(|id| owner_of(id, &views, &all)));
        let served = volumes.iter().filter(|volume| volume.is_served());
        let served: Vec<VolumeId> = served.map(|volume| volume.id).collect();
        for id in self.lacking.take_due(&served, Instant::now()) {
            let Some(volume) = volumes.iter().find(|volume| volume.id == id) else {
                continue;
            };
            if let Err(error) = self.look_at_head(volume) {
                tracing::warn!(volume = %volume.name, %error, "its head cannot be looked at");
                self.lacking.due.insert(id);
            }
        }
    }

    fn look_at_head(&self, volume: &Volume) -> Result<()> {
        let head = self.ask(registry::read_head(&*self.backend, volume.id, None))?;
        let local = self.heads.load(volume.id)?;
        if local.is_some_and(|local| local.is_own(&head)) {
            // The core has looked again before its reader got an error.
            tracing::error!(
                volume = %volume.name,
                "an object that the volume needs is not in the backend: restore it, see failures.md"
            );
            return Ok(());
        }
        // The put of the next manifest fences it, as a commit would.
        let asked = self.put_unchanged(volume);
        if let Err(error) = asked {
            tracing::warn!(volume = %volume.name, %error, "a reader missed an object");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_of_a_snapshot_lacks_its_volume_lacks() {
        let (one, other) = (
            VolumeName::parse("one").unwrap(),
            VolumeName::parse("other").unwrap(),
        );
        let volumes = [(VolumeId(1), &one), (VolumeId(2), &other)];
        let views = [(VolumeId(100), &other)];
        let owner = |id| owner_of(VolumeId(id), &views, &volumes);
        assert_eq!(owner(100), VolumeId(2));
        assert_eq!(owner(1), VolumeId(1));
        // Closed, or of a volume that is gone: not looked at later.
        assert_eq!(owner(101), VolumeId(101));
        assert_eq!(
            owner_of(VolumeId(100), &views, &volumes[..1]),
            VolumeId(100)
        );
    }

    #[test]
    fn a_head_is_looked_at_once_in_ten_seconds_and_only_of_served_volumes() {
        let (one, other) = (VolumeId(1), VolumeId(2));
        let mut lacking = Lacking::default();
        lacking.due.extend([one, other]);
        let now = Instant::now();
        assert_eq!(lacking.take_due(&[one], now), [one]);
        lacking.due.insert(one);
        assert_eq!(lacking.take_due(&[one, other], now + LOOK_EVERY / 2), []);
        assert_eq!(lacking.take_due(&[one, other], now + LOOK_EVERY), [one]);
        assert_eq!(lacking.take_due(&[one, other], now + 2 * LOOK_EVERY), []);
    }
}

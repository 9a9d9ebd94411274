//! Clones, as the control plane asks for them.

use futures::executor::block_on;
use taipan_engine::api::{CloneInfo, FlattenStatus, SnapshotState};
use taipan_engine::error::Result;
use taipan_engine::registry;
use taipan_engine::volume::VolumeName;

use super::{Shared, no_volume};
use crate::uploader::Request;

impl Shared {
    pub(super) fn flatten_clone(&self, name: &VolumeName) -> Result<FlattenStatus> {
        let wanted = name.clone();
        self.ask(|reply| Request::Flatten {
            name: wanted,
            reply,
        })?;
        self.flatten_progress(name)
    }

    pub(super) fn flatten_progress(&self, name: &VolumeName) -> Result<FlattenStatus> {
        let name = name.clone();
        self.await_answer(|reply| Request::FlattenStatus { name, reply })
    }

    /// All clones of the volume, by snapshot.
    pub(super) fn clones_by_snapshot(&self, name: &VolumeName) -> Result<Vec<CloneInfo>> {
        let parts = &self.parts;
        let volume = parts.directory.get(name).ok_or_else(|| no_volume(name))?;
        let mut all = Vec::new();
        for snapshot in self.snapshots(name)? {
            if snapshot.state != SnapshotState::Committed {
                continue;
            }
            let clones = registry::clones_of(&*parts.backend, volume.id, snapshot.id);
            all.extend(block_on(clones)?.into_iter().map(|clone| CloneInfo {
                snapshot: snapshot.name.clone(),
                name: clone.name,
                id: clone.id,
            }));
        }
        Ok(all)
    }
}

//! What operators see of space that comes back, and ask for.

use std::sync::atomic::Ordering;

use crossbeam_channel::bounded;
use taipan_engine::api::{SpaceStatus, SweepReport};
use taipan_engine::error::Result;
use taipan_engine::volume::VolumeName;

use super::{Shared, stopping};
use crate::uploader::Request;

impl Shared {
    pub(super) fn space_status(&self) -> SpaceStatus {
        let totals = self.parts.metrics.uploader().totals();
        let to_free = &self.parts.state.volumes_to_free;
        SpaceStatus {
            volumes_to_free: to_free.load(Ordering::Relaxed),
            freed_objects: totals.freed_objects,
            freed_bytes: totals.freed_bytes,
            sweeps: totals.sweeps,
            swept_objects: totals.swept_objects,
            swept_bytes: totals.swept_bytes,
        }
    }

    pub(super) fn sweep_orphans(&self, name: &VolumeName, dry_run: bool) -> Result<SweepReport> {
        let (reply, answer) = bounded(1);
        self.parts.uploader.request(Request::Sweep {
            name: name.clone(),
            dry_run,
            reply,
        });
        // It takes as long as the volume is large, and the caller chose to wait for it.
        answer.recv().unwrap_or_else(|_| Err(stopping()))
    }
}

//! Points in time of open volumes: what is kept, what is in use, and what time it is.

use std::time::SystemTime;

use taipan_engine::api::VolumeHistory;
use taipan_engine::commit::Reading;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::snapshot::{ImageName, KeptImage};
use taipan_engine::timestamp::UnixMs;
use taipan_engine::volume::{VolumeName, VolumeSettings};

use super::Uploader;
use crate::quarantine::unix_ms;

/// What the clock on the wall says.
pub(super) fn wall_clock() -> UnixMs {
    UnixMs(unix_ms(SystemTime::now()))
}

impl Uploader {
    /// Tells the volume's commits the time, and which points clients read.
    pub(super) fn tell_time(&mut self, id: VolumeId) {
        let now = Reading {
            wall: wall_clock(),
            steady_ms: self.now_ms(),
        };
        let held = self.views.oldest_point(id);
        if let Some(upload) = self.volumes.get_mut(&id) {
            upload.commit.note_time(now, held);
        }
    }

    /// The points in time of a volume.
    pub(super) fn history(&self, name: &VolumeName) -> Result<VolumeHistory> {
        let (_, id) = self.find(name)?;
        let commit = &self.volumes[&id].commit;
        Ok(VolumeHistory {
            volume: name.clone(),
            window_seconds: commit.head().settings.pitr_window_seconds,
            points: commit.points().iter().copied().collect(),
        })
    }

    /// The volume of that name, and its committed image of that name.
    pub(super) fn find_image(
        &self,
        volume: &VolumeName,
        image: &ImageName,
    ) -> Result<(VolumeId, KeptImage)> {
        let (_, id) = self.find(volume)?;
        Ok((id, self.kept(id, image)?))
    }

    /// A committed image of the volume.
    pub(super) fn kept(&self, id: VolumeId, name: &ImageName) -> Result<KeptImage> {
        match name {
            ImageName::Snapshot(name) => self.committed(id, name).cloned().map(KeptImage::Snapshot),
            ImageName::Point(name) => {
                let points = self.volumes[&id].commit.points();
                points.find(*name).map(KeptImage::Point)
            }
        }
    }

    /// Refuses settings under which points would be given up that clients read.
    pub(super) fn may_set(&self, id: VolumeId, settings: &VolumeSettings) -> Result<()> {
        if settings.pitr_window_seconds == 0 && self.views.oldest_point(id).is_some() {
            let text = "clients read points in time of the volume; disconnect them first";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        Ok(())
    }
}

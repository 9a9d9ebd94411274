//! A full backend: a cut that waits for room steps aside for whatever makes some (the deletion of a
//! snapshot or of its volume, a compaction, a sweep), and goes on after it.

use std::sync::atomic::Ordering;

use taipan_engine::identity::VolumeId;

use super::{UploadVolume, Uploader};

/// So long a cut waits at most for what compaction may free; others may have made room meanwhile.
const ASIDE_MS_MAX: u64 = 10_000;

impl Uploader {
    /// Whether the backend says that it is full.
    pub(super) fn needs_room(&self) -> bool {
        self.state.full.load(Ordering::Acquire)
    }

    /// Has cuts go on that stepped aside, once nothing more is to be done before them.
    pub(super) fn resume_cuts(&mut self, now_ms: u64) {
        let aside = |(id, volume): (&VolumeId, &UploadVolume)| {
            volume.aside_since_ms().map(|since_ms| (*id, since_ms))
        };
        let asides: Vec<(VolumeId, u64)> = self.volumes.iter().filter_map(aside).collect();
        for (id, since_ms) in asides {
            let is_asked = self.waiting.iter().any(|waiting| waiting.is_for(id));
            let is_due = now_ms.saturating_sub(since_ms) >= ASIDE_MS_MAX;
            let is_done = self.compactor.is_done(id, self.looked(id, now_ms));
            if !is_asked && (is_due || is_done) {
                let volume = self.volumes.get_mut(&id).expect("it was listed");
                volume.go_on();
            }
        }
    }
}

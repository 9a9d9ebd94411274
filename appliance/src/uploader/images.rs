//! Images of snapshots that stay in memory with their index for a while: clones are made of what
//! was just taken, and many of the same. Then no index is read, however large the volume is.

use taipan_engine::identity::VolumeId;
use taipan_engine::index::IndexedImage;
use taipan_engine::snapshot::SnapshotId;

/// Images kept at a time.
const IMAGES_MAX: usize = 8;
/// Bytes of their indexes at most, as if nothing was shared with the volume itself.
const BYTES_MAX: usize = 64 << 20;
/// An image that nobody asks for is let go after so long.
const KEPT_MS: u64 = 300_000;

struct Recent {
    of: (VolumeId, SnapshotId),
    image: IndexedImage,
    used_ms: u64,
}

/// The images, the one used last at the end.
#[derive(Default)]
pub(super) struct RecentImages(Vec<Recent>);

impl RecentImages {
    /// Keeps an image; older ones make room for it.
    pub(super) fn keep(&mut self, of: (VolumeId, SnapshotId), image: IndexedImage, now_ms: u64) {
        self.0.retain(|recent| recent.of != of);
        let used_ms = now_ms;
        self.0.push(Recent { of, image, used_ms });
        let bytes = |recent: &Recent| recent.image.base.heap_bytes();
        while self.0.len() > IMAGES_MAX || self.0.iter().map(bytes).sum::<usize>() > BYTES_MAX {
            self.0.remove(0);
        }
    }

    /// The image of a snapshot, if it is here.
    pub(super) fn find(&mut self, of: (VolumeId, SnapshotId), now_ms: u64) -> Option<IndexedImage> {
        let at = self.0.iter().position(|recent| recent.of == of)?;
        let mut recent = self.0.remove(at);
        recent.used_ms = now_ms;
        let image = recent.image.clone();
        self.0.push(recent);
        Some(image)
    }

    /// Lets go of what nobody has asked for.
    pub(super) fn expire(&mut self, now_ms: u64) {
        self.0.retain(|recent| recent.used_ms + KEPT_MS > now_ms);
    }
}

#[cfg(test)]
mod tests {
    use taipan_engine::identity::WriterToken;
    use taipan_engine::index::VolumeBase;
    use taipan_engine::manifest::Manifest;
    use taipan_engine::volume::{VolumeName, VolumeSettings};

    use super::*;

    fn image() -> IndexedImage {
        let (name, settings) = (
            VolumeName::parse("v").unwrap(),
            VolumeSettings::with_size(1 << 20),
        );
        IndexedImage {
            manifest: Manifest::first(VolumeId(1), name, settings, WriterToken(1)),
            base: VolumeBase::new(),
            parts: Vec::new(),
        }
    }

    #[test]
    fn few_images_are_kept_and_not_for_long() {
        let mut images = RecentImages::default();
        let of = |snapshot| (VolumeId(1), SnapshotId(snapshot));
        for snapshot in 0..IMAGES_MAX as u64 {
            images.keep(of(snapshot), image(), snapshot);
        }
        assert!(images.find(of(0), 100).is_some());
        images.keep(of(100), image(), 100);
        assert!(images.find(of(1), 100).is_none(), "it was used longest ago");
        assert!(images.find(of(0), 100).is_some());
        images.expire(2 + KEPT_MS);
        assert!(images.find(of(2), 100).is_none() && images.find(of(3), 100).is_some());
        images.expire(100 + KEPT_MS);
        assert!(images.0.is_empty());
    }
}

//! JSON of what changed in a volume between two images of it.

use serde::{Deserialize, Serialize};

use super::volume_path;
use crate::error::{Error, Result};
use crate::identity::VolumeId;
use crate::index::Changed;
use crate::registry::{Image, changed_ranges};
use crate::snapshot::{SnapshotId, SnapshotName};
use crate::volume::VolumeName;

/// Most ranges of one answer of the daemon.
pub const RANGES_MAX: usize = 500_000;

/// Path of what changed since a snapshot: up to another one, or to the last committed cut.
pub fn changes_path(volume: &VolumeName, from: &SnapshotName, to: Option<&SnapshotName>) -> String {
    let since = format!("{}/changes/{}", volume_path(volume), from.encoded());
    match to {
        Some(to) => format!("{since}/{}", to.encoded()),
        None => since,
    }
}

/// Answer of `GET /v1/volumes/{name}/changes/{from}[/{to}]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeChanges {
    /// The volume.
    pub volume: VolumeName,
    /// Its identity.
    pub id: VolumeId,
    /// The earlier image: a snapshot.
    pub from: ImagePoint,
    /// The later one.
    pub to: ImagePoint,
    /// The grain of what is told.
    pub block_size_bytes: u32,
    /// Bytes of ranges that hold data now.
    pub data_bytes: u64,
    /// Bytes of ranges that read as zeros now.
    pub zero_bytes: u64,
    /// What may differ, ascending.
    pub ranges: Vec<ChangedSpan>,
}

/// One of two images of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePoint {
    /// The snapshot; none: the last committed cut.
    pub snapshot: Option<SnapshotName>,
    /// Identity of the snapshot.
    pub id: Option<SnapshotId>,
    /// The manifest whose image it is.
    pub manifest: u64,
    /// Its cut.
    pub epoch: u64,
    /// Size of the volume then.
    pub size_bytes: u64,
}

/// A byte range that may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSpan {
    /// First byte.
    pub offset: u64,
    /// Bytes, above zero.
    pub length: u64,
    /// What the later image has there.
    pub now: Changed,
}

impl ImagePoint {
    fn of(image: &Image) -> Self {
        let snapshot = image.snapshot.as_ref();
        Self {
            snapshot: snapshot.map(|s| s.name.clone()),
            id: snapshot.map(|s| s.id),
            manifest: image.manifest.number.0,
            epoch: image.manifest.epoch.0,
            size_bytes: image.manifest.settings.size_bytes,
        }
    }
}

impl VolumeChanges {
    /// What differs in `to` from what is in `from`. `Invalid` if that is more than `ranges_max`
    /// ranges.
    pub fn between(from: &Image, to: &Image, ranges_max: usize) -> Result<Self> {
        let manifest = &to.manifest;
        let mut changes = Self {
            volume: manifest.name.clone(),
            id: manifest.volume,
            from: ImagePoint::of(from),
            to: ImagePoint::of(to),
            block_size_bytes: manifest.settings.block_size_bytes,
            data_bytes: 0,
            zero_bytes: 0,
            ranges: Vec::new(),
        };
        let mut more = 0;
        changed_ranges(from, to, &mut |range| {
            let sum = match range.what {
                Changed::Data => &mut changes.data_bytes,
                Changed::Zeros => &mut changes.zero_bytes,
            };
            *sum += range.len;
            if changes.ranges.len() < ranges_max {
                changes.ranges.push(ChangedSpan {
                    offset: range.offset,
                    length: range.len,
                    now: range.what,
                });
            } else {
                more += 1;
            }
        });
        if more > 0 {
            let count = ranges_max + more;
            let text = format!(
                "{count} ranges have changed, more than the {ranges_max} of one answer; read them \
                 from the backend instead (--backend URL)"
            );
            return Err(Error::invalid(text));
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockNum;
    use crate::chunk::{ChunkRef, DataRun};
    use crate::identity::{Generation, WriterToken};
    use crate::index::{AddedChunk, VolumeBase};
    use crate::manifest::Manifest;
    use crate::object::ChunkKey;
    use crate::volume::VolumeSettings;

    const VOLUME: VolumeId = VolumeId(1);

    /// The image of a volume of three and a half blocks of 4 KiB, some of which hold data.
    fn image(sequence: u64, blocks: &[u64]) -> Image {
        let key = ChunkKey {
            volume: VOLUME,
            generation: Generation(1),
            sequence,
            random: 0,
        };
        let runs = (0..).zip(blocks).map(|(slot, &block)| DataRun {
            start: BlockNum(block),
            count: 1,
            slot,
        });
        let mut base = VolumeBase::new();
        base.apply(&[AddedChunk {
            reference: ChunkRef {
                key,
                head_bytes: 128,
                slots: blocks.len() as u32,
                bytes: 128 + 4104 * blocks.len() as u64,
            },
            runs: runs.collect(),
            zeros: Vec::new(),
        }]);
        let settings = VolumeSettings::with_size(7 * 2048);
        let name = VolumeName::parse("v").unwrap();
        Image {
            manifest: Manifest::first(VOLUME, name, settings, WriterToken(1)),
            snapshot: None,
            base,
        }
    }

    #[test]
    fn the_last_block_ends_with_the_volume() {
        let (from, to) = (image(1, &[0, 1]), image(2, &[0, 3]));
        let changes = VolumeChanges::between(&from, &to, 3).unwrap();
        let span = |offset, length, now| ChangedSpan {
            offset,
            length,
            now,
        };
        let expected = [
            span(0, 4096, Changed::Data),
            span(4096, 4096, Changed::Zeros),
            span(3 * 4096, 2048, Changed::Data),
        ];
        assert_eq!(changes.ranges, expected);
        assert_eq!((changes.data_bytes, changes.zero_bytes), (6144, 4096));
        let text = serde_json::to_string(&changes.ranges[1]).unwrap();
        assert_eq!(text, r#"{"offset":4096,"length":4096,"now":"zeros"}"#);
    }

    #[test]
    fn more_ranges_than_an_answer_holds_are_refused() {
        let (from, to) = (image(1, &[0, 1]), image(2, &[0, 3]));
        let error = VolumeChanges::between(&from, &to, 2).unwrap_err();
        assert!(error.to_string().contains("3 ranges"), "{error}");
    }
}

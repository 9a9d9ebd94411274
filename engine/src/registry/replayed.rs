//! What the WAL holds of volumes that no manifest does, as their overlays.

use std::collections::HashMap;

use crate::identity::{Epoch, VolumeId};
use crate::index::{Overlay, Point};
use crate::wal::{Content, Recovered};

/// The overlays of all volumes in one shard: of the records that are to be replayed, as `wanted`
/// says. A volume without any has none.
pub fn replayed_overlays(
    found: &Recovered,
    wanted: impl Fn(VolumeId, Epoch) -> bool,
) -> HashMap<VolumeId, Overlay> {
    let mut overlays: HashMap<VolumeId, Overlay> = HashMap::new();
    for record in found.records() {
        if !wanted(record.volume, record.epoch) {
            continue;
        }
        let overlay = overlays.entry(record.volume).or_default();
        let lsn = record.lsn;
        match &record.content {
            Content::Data { .. } => {
                for (block, place, crc) in record.points() {
                    overlay.insert_point(block, Point { lsn, place, crc });
                }
            }
            Content::Mark(_) => overlay.insert_zero(record.blocks.clone(), lsn),
        }
    }
    overlays
}

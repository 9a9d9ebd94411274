//! What the WAL holds of a volume that no manifest does, as the volume's overlay.

use super::RecordFate;
use crate::identity::{Epoch, VolumeId};
use crate::index::{Overlay, Point};
use crate::wal::{Content, Recovered};

/// The overlay of `volume` in one shard: those of its records that are to be replayed, as `fate`
/// says of their epochs.
pub fn replayed_overlay(
    found: &Recovered,
    volume: VolumeId,
    fate: impl Fn(Epoch) -> RecordFate,
) -> Overlay {
    let mut overlay = Overlay::new();
    for record in found.records() {
        if record.volume != volume || fate(record.epoch) != RecordFate::Replay {
            continue;
        }
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
    overlay
}

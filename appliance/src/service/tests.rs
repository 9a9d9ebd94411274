//! What the control plane is told of volumes.

use super::*;
use taipan_engine::api::Lineage;

#[test]
fn lineage_is_part_of_what_an_operator_sees() {
    let local = registry::LocalHead::named(
        VolumeId(1),
        VolumeName::parse("v").unwrap(),
        VolumeSettings::with_size(4096),
    );
    let slot = taipan_engine::shard::VolumeSlot(0);
    assert_eq!(Volume::serving(slot, &local, true).lineage, Lineage::Intact);
    assert_eq!(
        Volume::serving(slot, &local, false).lineage,
        Lineage::Broken
    );
}

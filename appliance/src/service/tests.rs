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
    let lineage = |volume: &Volume| volume.lineage();
    assert_eq!(
        lineage(&Volume::serving(slot, &local, true)),
        Lineage::Intact
    );
    let broken = Volume::serving(slot, &local, false);
    assert_eq!(lineage(&broken), Lineage::Broken);
    // That the backend was reached again decides nothing about it.
    broken.set_state(VolumeState::Unverified, Some("no backend".to_owned()));
    broken.verified();
    let (state, cause) = broken.state();
    assert_eq!(state, VolumeState::Online);
    assert_eq!(cause.as_deref(), Some(crate::directory::LOST_CACHE));
    broken.accept_loss();
    assert_eq!(lineage(&broken), Lineage::Intact);
}

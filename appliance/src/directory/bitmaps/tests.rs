//! Which bitmaps there are, and that none is given up while a client uses it or comes.

use taipan_engine::identity::{Epoch, Generation, VolumeId};
use taipan_engine::registry::LocalHead;
use taipan_engine::volume::{VolumeName, VolumeSettings};
use taipan_nbd::ExportDirectory;

use super::*;
use crate::directory::View;

fn snapshot(name: &str, manifest: u64) -> Snapshot {
    Snapshot {
        id: SnapshotId(manifest * 100),
        name: SnapshotName::parse(name).unwrap(),
        manifest: ManifestNum(manifest),
        generation: Generation(1),
        sequence: manifest,
        epoch: Epoch(manifest),
        taken_ms: 0,
        group: None,
    }
}

fn volume(slot: u32) -> Volume {
    let name = VolumeName::parse("v").unwrap();
    let local = LocalHead::named(VolumeId(1), name, VolumeSettings::with_size(4096));
    Volume::serving(taipan_engine::shard::VolumeSlot(slot), &local, true)
}

/// A volume with snapshots in the manifests 3, 5 and 7, the second of them open.
fn directory() -> Directory {
    let directory = Directory::default();
    let snapshots = [snapshot("mon", 3), snapshot("a b:", 5), snapshot("wed", 7)];
    let live = volume(0);
    live.bitmaps.set_bookmarks(snapshots.iter());
    directory.insert(Arc::new(live));
    let mut view = volume(1);
    view.view = Some(View::new("a b:".parse().unwrap(), ManifestNum(5)));
    directory.insert_view("v@a b:".parse().unwrap(), Arc::new(view));
    directory
}

fn contexts(directory: &Directory, name: &str) -> Vec<String> {
    let mut contexts = Vec::new();
    let mut visit = |context: &str| contexts.push(context.to_owned());
    directory.contexts(name, &mut visit).unwrap();
    contexts.retain(|context| is_since(context));
    contexts
}

#[test]
fn a_volume_has_a_bitmap_since_each_snapshot_and_a_snapshot_since_earlier_ones() {
    let directory = directory();
    let all = [
        "qemu:dirty-bitmap:since-mon",
        "qemu:dirty-bitmap:since-a%20b%3A",
        "qemu:dirty-bitmap:since-wed",
    ];
    assert_eq!(contexts(&directory, "v"), all);
    assert_eq!(contexts(&directory, "v@a b:"), all[..1]);
    for (export, context, found) in [
        ("v", all[1], true),
        ("v@a b:", all[0], true),
        ("v@a b:", all[1], false),
        ("v@a b:", all[2], false),
        ("v@mon", all[0], false),
        ("none", all[0], false),
        ("v", "qemu:dirty-bitmap:since-a b:", false),
        ("v", "qemu:dirty-bitmap:since-", false),
        ("v", "qemu:dirty-bitmap:mon", false),
        ("v", "base:allocation", false),
    ] {
        let awaited = directory.awaits_context(export, context);
        assert_eq!(awaited, found, "{export} {context}");
    }
}

#[test]
fn a_bitmap_is_not_given_up_while_a_client_uses_it_or_comes() {
    let directory = directory();
    let context = "qemu:dirty-bitmap:since-mon";
    let (volume, bookmark) = directory.bitmap_named("v", context).unwrap();
    assert!(volume.bitmaps.hold(context, "a").is_none(), "not loaded");
    let seat = Seat::free(taipan_engine::extents::Seats::NONE).unwrap();
    let bitmap = Arc::new(Bitmap::new(bookmark.clone(), seat));
    volume.bitmaps.add(Arc::clone(&bitmap));
    assert!(!bitmap.close_unless_wanted(), "just loaded, for somebody");
    assert!(bitmap.take_wanted());
    assert!(!directory.awaits_context("v", context), "it stays");
    assert!(bitmap.take_wanted(), "named again");
    let held = volume.bitmaps.hold(context, "a").unwrap();
    let other = volume.bitmaps.hold(context, "a").unwrap();
    assert!(!bitmap.close_unless_wanted() && !bitmap.close_unless_used());
    drop(held);
    assert_eq!(bitmap.peers(), ["a"]);
    assert!(bitmap.take_wanted());
    drop(other);
    assert!(!bitmap.take_wanted() && bitmap.close_unless_wanted());
    assert!(volume.bitmaps.hold(context, "a").is_none(), "too late");
    assert!(directory.awaits_context("v", context), "to be loaded again");
    volume.bitmaps.remove(bookmark.id);
    assert!(directory.awaits_context("v", context));
}

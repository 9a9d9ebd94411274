//! Tests of giving up what a damaged WAL lost.

use std::os::unix::fs::FileExt;

use taipan_engine::block::BlockSize;
use taipan_engine::identity::{Epoch, Lsn, VolumeId};
use taipan_engine::wal::files::shard_path;
use taipan_engine::wal::{BootId, MarkKind, RegionRecord, recover_shard};

use super::*;

fn shard() -> ShardId {
    ShardId::new(3).unwrap()
}

fn record(lsn: u64) -> RegionRecord {
    RegionRecord {
        volume: VolumeId(5),
        epoch: Epoch(1),
        lsn: Lsn(lsn),
        blocks: lsn..lsn + 1,
        block_size: BlockSize::MIN,
        mark: Some(MarkKind::Zero),
        payload: Vec::new(),
        crcs: Vec::new(),
    }
}

/// A WAL whose shard 3 has ten durable batches of one mark each.
fn written(dir: &Path) {
    let wanted = LogConfig::for_wal(8 << 20, 8 << 20).unwrap();
    let files = WalFiles::open(dir, &wanted).unwrap();
    let identity = files.identity(shard(), BootId([1; 16]));
    let arena = Arena::anonymous(wanted.arena_bytes).unwrap();
    let blank = Recovered::blank(&identity, &wanted);
    let mut log = ShardLog::resume(identity, wanted, arena, &blank).unwrap();
    let file = files.file(shard());
    for lsn in 1..=10 {
        append(&mut log, file, &record(lsn)).unwrap();
        log.close();
        write_out(&mut log, file).unwrap();
    }
}

fn lsns(rescue: &Rescue) -> Vec<u64> {
    let identity = rescue.identity(shard()).unwrap();
    let media = rescue.files.media(shard()).unwrap();
    let found = recover_shard(&identity, &media, &[]).unwrap();
    found.records().map(|record| record.lsn.0).collect()
}

#[test]
fn what_is_left_is_served_again_and_the_damaged_file_is_kept() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let (wal, runtime) = (dir.path().join("wal"), dir.path().join("run"));
    fs::create_dir(&runtime).unwrap();
    written(&wal);
    let rescue = Rescue::open(&wal, &runtime).unwrap();
    assert!(rescue.look_at(shard()).unwrap().is_none(), "intact");
    assert_eq!(lsns(&rescue), (1..=10).collect::<Vec<_>>());
    // Batches of one page: the fourth.
    let media = rescue.files.media(shard()).unwrap();
    let batch_at = |number: u64| 0x1_0000 + (number - 1) * 4096;
    let mut page = vec![0; 4096];
    media.read_at(batch_at(4), &mut page).unwrap();
    page[20] ^= 1;
    let path = shard_path(&wal, shard());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&page, batch_at(4)).unwrap();
    let damaged = fs::read(&path).unwrap();

    let salvage = rescue.look_at(shard()).unwrap().expect("damaged");
    let text = describe(shard(), &salvage, &dir.path().join("volumes"));
    assert!(text.contains("records 4 to 4"), "{text}");
    assert_eq!(text.matches("is damaged").count(), 1, "said once: {text}");
    let kept = rescue.replace(shard(), &salvage).unwrap();
    assert_eq!(fs::read(kept).unwrap(), damaged);
    drop(rescue);
    let rescue = Rescue::open(&wal, &runtime).unwrap();
    assert!(rescue.look_at(shard()).unwrap().is_none(), "whole again");
    assert_eq!(lsns(&rescue), [1, 2, 3, 5, 6, 7, 8, 9, 10]);
}

#[test]
fn shards_are_numbers_up_to_15() {
    let parsed = parse_shards("3, 15").unwrap();
    assert_eq!(
        parsed.iter().map(|s| s.index()).collect::<Vec<_>>(),
        [3, 15]
    );
    for bad in ["", "16", "a", "3,,4"] {
        assert!(parse_shards(bad).is_err(), "{bad}");
    }
}

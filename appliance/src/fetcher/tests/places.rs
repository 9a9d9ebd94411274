//! What maps are told of the caches: what comes, what is pushed out, what fails.

use taipan_engine::extents::{Residence, Stretch};
use taipan_engine::index::ChunkLoc;

use super::*;

/// Where all blocks are: `m` in memory, `f` in the cache file, `.` in the backend.
fn places(rig: &Rig, chunks: u32) -> String {
    let stretch = |chunk: u32| Stretch {
        first: u64::from(chunk * rig.slots),
        count: rig.slots,
        at: ChunkLoc {
            chunk: ChunkOrdinal(chunk),
            slot: 0,
        },
        step: 1,
    };
    let stretches: Vec<_> = (0..chunks).map(stretch).collect();
    let mut told = vec![b'.'; (chunks * rig.slots) as usize];
    let mut tell = |blocks: Range<u64>, residence| {
        told[blocks.start as usize..blocks.end as usize].fill(match residence {
            Residence::Memory => b'm',
            Residence::Local => b'f',
            Residence::Backend => panic!("told without a need"),
        });
    };
    rig.fetcher.caches().tell(VOLUME, &stretches, &mut tell);
    String::from_utf8(told).expect("letters")
}

/// Waits until it is so: a block is cached behind its answer.
fn until(rig: &Rig, chunks: u32, expected: &str) {
    let mut told = String::new();
    for _ in 0..6000 {
        told = places(rig, chunks);
        if told == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(told, expected);
}

#[test]
fn maps_are_told_what_memory_and_the_file_hold() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ReadSettings {
        ram_bytes: 1 << 20,
        ..with_file(&dir)
    };
    let rig = Rig::new(2, 16, settings);
    assert_eq!(places(&rig, 2), ".".repeat(32));
    rig.read(3..6);
    until(&rig, 2, "...mmm..........................");
    warmed(&rig, None);
    until(&rig, 2, "fffmmmffffffffffffffffffffffffff");
    rig.read(20..21);
    until(&rig, 2, "fffmmmffffffffffffffmfffffffffff");
    // Recycled, the number is another object's, of which nothing is here.
    rig.tables
        .set(VOLUME, ChunkOrdinal(0), Some(chunk(7, 16).1));
    until(&rig, 2, "................ffffmfffffffffff");
    rig.tables.forget(VOLUME);
    assert_eq!(places(&rig, 2), ".".repeat(32));
}

#[test]
fn maps_are_told_what_was_pushed_out_of_memory_and_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = ReadSettings {
        // About 60 blocks, and one segment.
        ram_bytes: 256 << 10,
        ..with_file(&dir)
    };
    settings.file.as_mut().unwrap().bytes = 1 << 20;
    let rig = Rig::new(1, 600, settings);
    rig.read(5..6);
    // Backwards, which nobody takes for reading in order.
    (0..100).for_each(|at| rig.read(500 - at..501 - at));
    rig.until(|totals| totals.file_blocks_held == 101);
    let told = places(&rig, 1);
    assert_eq!(&told[5..6], "f", "pushed out of memory");
    assert_eq!(told.matches('f').count() + told.matches('m').count(), 101);
    assert!((20..80).contains(&told.matches('m').count()), "{told}");
    assert_eq!(&told[401..402], "m", "read last");
    // The file goes round: what was written first is gone.
    for at in (0..20_000).map(|at| 390 - at % 380) {
        rig.read(at..at + 1);
        if places(&rig, 1).as_bytes()[5] == b'.' {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("block 5 stays: {}", places(&rig, 1));
}

#[test]
fn maps_are_told_that_a_file_that_failed_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(1, 16, with_file(&dir));
    rig.read(0..8);
    until(&rig, 1, "ffffffff........");
    let path = dir.path().join("blocks");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(0).unwrap();
    rig.read(0..8);
    rig.until(|totals| totals.file_failures == 1);
    assert_eq!(places(&rig, 1), ".".repeat(16));
}

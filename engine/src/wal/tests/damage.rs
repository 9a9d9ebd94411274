//! What replay makes of bytes that no crash explains, and of those that one does.

use std::io;

use crate::arena::Arena;
use crate::block::{BlockSize, PAGE_BYTES};
use crate::error::{Error, ErrorKind};
use crate::identity::{BatchNum, Incarnation, Lsn};
use crate::wal::format::{BatchHeader, HEAD_SLOTS, LogHead};
use crate::wal::replay::ProblemKind;
use crate::wal::{
    BootId, Damage, ReadMedia, Recovered, ShardLog, WalId, recover_shard, salvage_shard,
};

use super::world::{World, blank_file, identity, small};

const FIRST: usize = 0x1_0000;

/// A file of `batches` durable batches of three pages each, one block of two pages in each.
fn file(batches: u64) -> Vec<u8> {
    let mut world = World::new(1);
    for _ in 0..batches {
        world.append(1, BlockSize::new(8192).unwrap()).unwrap();
        world.settle();
    }
    world.disk.view()
}

/// First byte of a batch of [`file`]; a segment holds 9.
fn at(number: u64) -> usize {
    let (segment, index) = ((number - 1) / 9, (number - 1) % 9);
    FIRST + segment as usize * (160 << 10) + index as usize * 3 * PAGE_BYTES
}

fn replay(file: &[u8]) -> Result<Recovered, Damage> {
    recover_shard(&identity(9), &file.to_vec(), &[])
}

fn kinds(file: &[u8]) -> Vec<ProblemKind> {
    let damage = replay(file).unwrap_err();
    damage
        .problems
        .into_iter()
        .map(|problem| problem.kind)
        .collect()
}

fn missing(first: u64, last: u64) -> ProblemKind {
    ProblemKind::Missing {
        first: BatchNum(first),
        last: BatchNum(last),
    }
}

#[test]
fn an_intact_file_replays_whole() {
    let recovered = replay(&file(30)).unwrap();
    assert_eq!(recovered.batches().len(), 30);
    assert_eq!(
        (recovered.next_batch, recovered.next_lsn),
        (BatchNum(31), Lsn(31))
    );
    assert_eq!(recovered.torn, None);
    assert_eq!(recovered.batches()[14].file_offset, at(15) as u64);
}

#[test]
fn a_torn_tail_is_cut_off() {
    // Nothing says that the last batch was durable.
    for byte in [0, 20, 130, 4096, 4096 + 8191] {
        let mut file = file(5);
        file[at(5) + byte] ^= 1;
        let recovered = replay(&file).unwrap();
        assert_eq!(recovered.next_batch, BatchNum(5), "byte {byte}");
    }
    let mut file = file(5);
    file[at(5) + 5000] ^= 1;
    let torn = replay(&file).unwrap().torn.unwrap();
    assert_eq!((torn.first, torn.void_batches), (BatchNum(5), 1));
}

#[test]
fn a_bad_header_before_durable_batches_is_damage() {
    for byte in [0, 100, 127, 130] {
        let mut file = file(30);
        file[at(8) + byte] ^= 1;
        assert_eq!(kinds(&file), [missing(8, 8)], "byte {byte}");
    }
    let mut file = file(30);
    file[at(10)..at(19)].fill(0);
    assert_eq!(kinds(&file), [missing(10, 18)], "a whole segment");
    let damage = replay(&file).unwrap_err();
    assert!(damage.to_string().contains("batches 10 to 18"), "{damage}");
    assert_eq!(Error::from(damage).kind(), ErrorKind::Corrupt);
}

/// Behind an unreadable first header of a segment, the later ones are still found.
#[test]
fn a_later_batch_in_the_same_segment_gives_damage_away() {
    let mut file = file(16);
    file[at(10)] ^= 1;
    assert_eq!(kinds(&file), [missing(10, 10)]);
    let mut file = self::file(16);
    file[at(10)..at(10) + PAGE_BYTES].fill(0);
    assert_eq!(
        kinds(&file),
        [missing(10, 10)],
        "the segment seems unused at first"
    );
}

#[test]
fn a_durable_block_is_not_checked_at_replay() {
    let mut file = file(5);
    file[at(2) + 5000] ^= 1;
    assert_eq!(
        replay(&file).unwrap().batches().len(),
        5,
        "its CRC is checked when it is read"
    );
}

#[test]
fn a_copied_batch_is_not_believed() {
    let mut file = file(10);
    let copy = file[at(3)..at(4)].to_vec();
    file[at(11)..at(12)].copy_from_slice(&copy);
    assert_eq!(replay(&file).unwrap().next_batch, BatchNum(11));
    file.copy_within(at(3)..at(4), at(5));
    assert_eq!(kinds(&file), [missing(5, 5)]);
}

/// After an error a batch may be there twice, and its second writing may be the torn one.
#[test]
fn a_torn_copy_of_a_durable_batch_is_not_preferred() {
    let mut file = file(5);
    let (from, to) = (at(5), FIRST + 3 * (160 << 10));
    let copy = file[from..at(6)].to_vec();
    file[to..to + copy.len()].copy_from_slice(&copy);
    let mut header = BatchHeader::decode(&file[to..]).unwrap();
    (header.file_offset, header.generation) = (to as u64, 99);
    header.encode(&mut file[to..]);
    // The head knows that all five were durable.
    let slot = HEAD_SLOTS[0] as usize;
    let mut head = LogHead::decode(&file[slot..slot + PAGE_BYTES], HEAD_SLOTS[0]).unwrap();
    head.durable_through = BatchNum(5);
    head.encode(&mut file[slot..slot + PAGE_BYTES]);
    let fifth = |file: &[u8]| replay(file).unwrap().batches()[4].file_offset;
    assert_eq!(fifth(&file), to as u64, "the newest that is whole");
    file[to + 5000] ^= 1;
    assert_eq!(fifth(&file), from as u64, "not the torn one");
    file[from + 5000] ^= 1;
    assert_eq!(fifth(&file), to as u64, "a read finds that it is rotten");
}

/// A batch that is not durable does not count at its old place once the one before has moved on.
#[test]
fn an_old_copy_behind_a_rewritten_batch_is_void() {
    let mut file = file(5);
    let to = FIRST + 3 * (160 << 10);
    file.copy_within(at(4)..at(5), to);
    let mut header = BatchHeader::decode(&file[to..]).unwrap();
    (header.file_offset, header.generation) = (to as u64, 99);
    header.encode(&mut file[to..]);
    forge(&mut file, 5, |header| header.durable_through = BatchNum(3));
    let recovered = replay(&file).unwrap();
    assert_eq!(recovered.batches()[3].file_offset, to as u64);
    assert_eq!(recovered.next_batch, BatchNum(5));
}

#[test]
fn another_wal_or_shard_is_not_believed() {
    let file = file(3);
    let foreign = crate::wal::LogIdentity {
        wal: WalId(1),
        ..identity(9)
    };
    let damage = recover_shard(&foreign, &file, &[]).unwrap_err();
    assert_eq!(damage.problems[0].kind, ProblemKind::NoHead);
    let mut other = file;
    let mut header = BatchHeader::decode(&other[at(3)..]).unwrap();
    header.wal = WalId(1);
    header.content_crc = header.compute_content_crc();
    header.encode(&mut other[at(3)..]);
    assert_eq!(replay(&other).unwrap().next_batch, BatchNum(3));
}

#[test]
fn one_log_head_suffices() {
    for (slot, batches) in [(0, 5), (1, 5)] {
        let mut file = file(batches);
        file[HEAD_SLOTS[slot] as usize + 9] ^= 1;
        assert_eq!(replay(&file).unwrap().batches().len(), 5);
    }
    let mut file = file(2);
    file[HEAD_SLOTS[0] as usize] ^= 1;
    file[HEAD_SLOTS[1] as usize] ^= 1;
    assert_eq!(kinds(&file), [ProblemKind::NoHead]);
}

#[test]
fn a_short_file_is_damage() {
    let mut file = file(2);
    let expected = file.len() as u64;
    file.truncate(file.len() - 1);
    assert_eq!(
        kinds(&file),
        [ProblemKind::Length {
            expected,
            found: expected - 1
        }]
    );
    assert_eq!(
        replay(&[]).unwrap_err().problems.len(),
        3,
        "two slots and no head"
    );
}

/// Changes a header and makes it whole again.
fn forge(file: &mut [u8], number: u64, change: impl FnOnce(&mut BatchHeader)) {
    let mut header = BatchHeader::decode(&file[at(number)..]).unwrap();
    change(&mut header);
    header.content_crc = header.compute_content_crc();
    header.encode(&mut file[at(number)..]);
}

#[test]
fn a_broken_chain_is_damage_or_a_torn_tail() {
    let mut file = file(6);
    forge(&mut file, 6, |header| header.previous_crc ^= 1);
    assert_eq!(replay(&file).unwrap().next_batch, BatchNum(6));
    let mut file = self::file(6);
    forge(&mut file, 3, |header| header.previous_crc ^= 1);
    let broken = |batch| ProblemKind::BrokenChain {
        batch: BatchNum(batch),
    };
    assert_eq!(kinds(&file), [broken(3)]);
}

#[test]
fn impossible_records_are_damage_or_a_torn_tail() {
    let worse = |file: &mut Vec<u8>, number| {
        let table = at(number) + 128;
        file[table + 36] = 77;
        let crc = crc32c::crc32c(&file[table..table + 44]);
        forge(file, number, |header| header.table_crc = crc);
    };
    let mut file = file(6);
    worse(&mut file, 6);
    assert_eq!(replay(&file).unwrap().next_batch, BatchNum(6));
    worse(&mut file, 3);
    assert!(kinds(&file).contains(&ProblemKind::Records { batch: BatchNum(3) }));
}

#[test]
fn a_writer_from_the_future_is_refused() {
    let mut file = file(3);
    forge(&mut file, 3, |header| header.incarnation = Incarnation(9));
    assert!(kinds(&file).contains(&ProblemKind::FromTheFuture { incarnation: 9 }));
}

/// A batch of a newer writer voids those of the older from its first on, even intact ones.
#[test]
fn a_newer_writer_voids_the_torn_tail_of_the_older() {
    let mut disk = file(8);
    // The older writer's tail: 6 torn, 7 and 8 whole, and nothing of its says 6 was durable.
    disk[at(6) + 5000] ^= 1;
    for number in [6, 7, 8] {
        forge(&mut disk, number, |header| {
            header.durable_through = BatchNum(5)
        });
    }
    let recovered = recover_shard(&identity(2), &disk, &[]).unwrap();
    assert_eq!(recovered.next_batch, BatchNum(6));
    assert_eq!(recovered.next_lsn, Lsn(9), "void LSNs are not used again");
    let config = small();
    let arena = Arena::anonymous(config.arena_bytes).unwrap();
    let mut log = ShardLog::resume(identity(2), config, arena, &recovered).unwrap();
    let mark = crate::wal::MarkKind::Zero;
    let volume = crate::identity::VolumeId(1);
    log.append_mark(volume, crate::identity::Epoch(9), Lsn(9), 0..1, mark)
        .unwrap();
    log.close();
    let mut writes = 0;
    while let Some(write) = log.start_write(false) {
        let bytes = log.arena.bytes(write.arena_offset, write.len);
        let start = write.file_offset as usize;
        disk[start..start + write.len].copy_from_slice(bytes);
        log.write_finished(&write, Ok(()));
        writes += 1;
    }
    assert_eq!(writes, 2);
    let again = recover_shard(&identity(3), &disk, &[]).unwrap();
    assert_eq!(
        again.next_batch,
        BatchNum(7),
        "6 of the newer, then nothing"
    );
    assert_eq!(again.records().last().unwrap().lsn, Lsn(9));
    // Without any batch of the newer writer its head is enough, even if the torn one had healed.
    let start = again.batches().last().unwrap().file_offset as usize;
    disk[start..start + PAGE_BYTES].fill(0);
    disk[at(6) + 5000] ^= 1;
    let third = recover_shard(&identity(3), &disk, &[]).unwrap();
    assert_eq!(third.next_batch, BatchNum(6));
}

/// A file some of whose pages cannot be read.
struct Failing {
    bytes: Vec<u8>,
    bad: std::ops::Range<u64>,
}

impl ReadMedia for Failing {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset < self.bad.end && self.bad.start < offset + out.len() as u64 {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.bytes.read_at(offset, out)
    }
}

#[test]
fn a_read_error_is_damage_and_never_a_torn_tail() {
    for bad in [at(3), at(5), at(5) + 4096, at(10)] {
        let bad = bad as u64..bad as u64 + 1;
        let media = Failing {
            bytes: file(5),
            bad: bad.clone(),
        };
        let damage = recover_shard(&identity(9), &media, &[]).unwrap_err();
        let unreadable = damage.problems.iter().any(|problem| {
            matches!(problem.kind, ProblemKind::Unreadable { .. })
                && problem.file_offset == Some(bad.start)
        });
        assert!(unreadable, "{damage}");
    }
    let media = Failing {
        bytes: file(5),
        bad: at(4) as u64 + 5000..at(4) as u64 + 5001,
    };
    assert_eq!(
        recover_shard(&identity(9), &media, &[])
            .unwrap()
            .batches()
            .len(),
        5
    );
}

/// The region of a killed process with one batch in memory only.
fn region() -> (Vec<u8>, Vec<u8>) {
    let mut world = World::new(1);
    world.append(1, BlockSize::MIN).unwrap();
    world.settle();
    world.append(2, BlockSize::MIN).unwrap();
    world.mark(4).unwrap();
    let region = world.log.arena.bytes(0, small().arena_bytes).to_vec();
    (world.disk.view(), region)
}

#[test]
fn a_region_gives_back_what_was_answered() {
    let (file, region) = region();
    let recovered = recover_shard(&identity(2), &file, &[&region]).unwrap();
    assert_eq!(recovered.batches().len(), 1);
    let lsns: Vec<_> = recovered
        .region_only
        .iter()
        .map(|record| record.lsn.0)
        .collect();
    assert_eq!(lsns, [2, 3]);
    assert_eq!(recovered.region_only[0].payload.len(), 8192);
    assert_eq!(recovered.next_lsn, Lsn(4));
}

#[test]
fn a_region_of_another_boot_or_wal_is_ignored() {
    let (file, region) = region();
    for other in [
        crate::wal::LogIdentity {
            boot: BootId([8; 16]),
            ..identity(2)
        },
        crate::wal::LogIdentity {
            wal: WalId(0xFEED),
            boot: BootId([0; 16]),
            ..identity(2)
        },
    ] {
        let recovered = recover_shard(&other, &file, &[&region]).unwrap();
        assert!(recovered.region_only.is_empty());
    }
    let blank = vec![0; region.len()];
    assert!(
        recover_shard(&identity(2), &file, &[&blank])
            .unwrap()
            .region_only
            .is_empty()
    );
}

#[test]
fn a_region_that_knows_better_than_the_file_gives_damage_away() {
    let (_, region) = region();
    // The file lost batch 1, which the region knows to be durable.
    let damage = recover_shard(&identity(2), &blank_file(&small()), &[&region]).unwrap_err();
    assert_eq!(damage.problems[0].kind, missing(1, 1));
}

#[test]
fn a_damaged_region_is_reported() {
    let (file, region) = region();
    let ring = crate::wal::region::RegionLayout::new(200 << 10, 160 << 10).ring_start();
    let second = ring + 2 * PAGE_BYTES;
    for byte in [50, second + 128 + 36, second + PAGE_BYTES + 9] {
        let mut bad = region.clone();
        bad[byte] ^= 0x40;
        let damage = recover_shard(&identity(2), &file, &[&bad]).unwrap_err();
        assert!(
            matches!(damage.problems[0].kind, ProblemKind::Region { .. }),
            "{byte}: {damage}"
        );
    }
}

/// Many segments: only what may have been written last is searched page by page.
#[test]
fn a_large_log_is_not_read_whole() {
    struct Counting(Vec<u8>, std::cell::Cell<u64>);
    impl ReadMedia for Counting {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.1.set(self.1.get() + out.len() as u64);
            self.0.read_at(offset, out)
        }
    }
    let config = crate::wal::LogConfig {
        segments: 800,
        ..small()
    };
    let media = Counting(blank_file(&config), std::cell::Cell::new(0));
    let recovered = recover_shard(&identity(2), &media, &[]).unwrap();
    assert_eq!(recovered.next_batch, BatchNum(1));
    assert!(
        media.1.get() < config.file_bytes() / 2,
        "{} bytes",
        media.1.get()
    );
}

#[test]
fn what_is_left_of_a_damaged_file_can_be_kept() {
    let mut file = file(30);
    // The headers of batches 12 and 13, and a block of batch 20.
    for at in [at(12), at(13), at(20) + 5000] {
        file[at] ^= 1;
    }
    assert_eq!(kinds(&file), [missing(12, 13)]);
    let salvage = salvage_shard(&identity(9), &small(), &file, &[]).expect("it is damaged");
    assert!(!salvage.is_from_the_future());
    assert!(!salvage.volumes().is_empty());
    let lost = salvage.lost();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!((lost[0].first, lost[0].last), (Lsn(12), Lsn(13)));
    let records: Vec<_> = salvage.records(&file).collect();
    assert_eq!((records.len(), salvage.kept()), (28, 28));
    for record in &records {
        let whole = crc32c::crc32c(&record.payload) == record.crcs[0];
        assert_eq!(
            whole,
            record.lsn != Lsn(20),
            "reading {} stays an error",
            record.lsn
        );
    }
    assert!(records.windows(2).all(|pair| pair[0].lsn < pair[1].lsn));
}

#[test]
fn a_file_without_heads_gives_up_its_batches_too() {
    let mut file = file(30);
    for slot in HEAD_SLOTS {
        file[slot as usize] ^= 1;
    }
    assert_eq!(kinds(&file), [ProblemKind::NoHead]);
    let salvage = salvage_shard(&identity(9), &small(), &file, &[]).unwrap();
    assert_eq!(salvage.kept(), 30);
    assert!(salvage.lost().is_empty());
}

#[test]
fn an_intact_file_has_nothing_to_give_up() {
    assert!(salvage_shard(&identity(9), &small(), &file(30), &[]).is_none());
    let newer = salvage_shard(&identity(1), &small(), &file(3), &[]).unwrap();
    assert!(newer.is_from_the_future(), "wal/state is older");
}

//! A log that ended in order is replayed by what its head says, and a head that is older than what
//! it speaks of, or wrong, is not believed.

use std::cell::Cell;

use crate::arena::Arena;
use crate::block::{BlockSize, PAGE_BYTES};
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId};
use crate::wal::format::{BatchHeader, HEAD_SLOTS, LogEnd, LogHead};
use crate::wal::replay::ProblemKind;
use crate::wal::{LogConfig, MarkKind, Recovered, ShardLog, Shortage, recover_shard};

use super::world::{Counting, World, blank_file, identity, small, without_end};

/// A world of `batches` durable batches of three pages each, whose log has ended; a segment holds
/// nine of them.
fn ended(batches: u64) -> World {
    let mut world = World::new(1);
    fill(&mut world, batches);
    assert!(world.end(true));
    world
}

fn fill(world: &mut World, batches: u64) {
    for _ in 0..batches {
        world.append(1, BlockSize::new(8192).unwrap()).unwrap();
        world.settle();
    }
}

fn replay(file: &[u8], incarnation: u64) -> Recovered {
    recover_shard(&identity(incarnation), &file.to_vec(), &[]).unwrap()
}

/// The newer head of a file.
fn head_of(file: &[u8]) -> LogHead {
    let heads = HEAD_SLOTS.map(|slot| {
        let page = &file[slot as usize..slot as usize + PAGE_BYTES];
        LogHead::decode(page, slot).expect("whole heads")
    });
    heads.into_iter().max_by_key(|head| head.sequence).unwrap()
}

fn put_head(file: &mut [u8], head: &LogHead) {
    let at = head.file_offset() as usize;
    head.encode(&mut file[at..at + PAGE_BYTES]);
}

/// Writes everything that is queued.
fn write_out(log: &mut ShardLog, file: &mut [u8]) {
    while let Some(write) = log.start_write(true) {
        let bytes = log.arena.bytes(write.arena_offset, write.len);
        let start = write.file_offset as usize;
        file[start..start + write.len].copy_from_slice(bytes);
        log.write_finished(&write, Ok(()));
    }
}

fn resume(file: &[u8], incarnation: u64, config: LogConfig) -> ShardLog {
    let found = replay(file, incarnation);
    let arena = Arena::anonymous(config.arena_bytes).unwrap();
    ShardLog::resume(identity(incarnation), config, arena, &found).unwrap()
}

fn mark(log: &mut ShardLog, lsn: u64) -> Result<BatchNum, Shortage> {
    log.append_mark(VolumeId(1), Epoch(9), Lsn(lsn), 0..1, MarkKind::Zero)
}

#[test]
fn a_log_ends_only_at_rest_and_takes_nothing_more() {
    let mut world = World::new(1);
    // More than a segment holds.
    fill(&mut world, 10);
    world.append(1, BlockSize::MIN).unwrap();
    assert!(!world.log.end(), "a batch is open");
    world.log.close();
    assert!(!world.log.end(), "a batch is not durable");
    world
        .append(1, BlockSize::MIN)
        .expect("nothing has changed");
    world.settle();
    assert!(world.log.end());
    assert!(world.log.is_ending(), "its head is not durable");
    assert_eq!(world.append(1, BlockSize::MIN), Err(Shortage::Failed));
    assert_eq!(world.mark(1), Err(Shortage::Failed));
    assert!(world.end(true) && !world.log.is_ending());
    world.commit();
    assert!(world.log.is_ending(), "the head that releases is another");
    assert!(world.end(true));
    assert!(!replay(&world.disk.view(), 2).searched, "it says so too");
}

#[test]
fn a_log_that_ended_is_not_searched() {
    let config = LogConfig {
        segments: 40,
        segment_bytes: 16 << 20,
        ..small()
    };
    let mut file = blank_file(&config);
    let mut log = resume(&file, 1, config);
    for lsn in 1..=5 {
        mark(&mut log, lsn).unwrap();
        log.close();
    }
    write_out(&mut log, &mut file);
    assert!(log.end());
    write_out(&mut log, &mut file);
    let media = Counting(file, Cell::new(0));
    let found = recover_shard(&identity(2), &media, &[]).unwrap();
    assert_eq!((found.batches().len(), found.searched), (5, false));
    assert!(media.1.get() <= 50, "{} reads", media.1.get());
}

/// The next start may be cut short, and the one after finds the same head: it searches.
#[test]
fn only_the_very_next_start_believes_the_end() {
    let file = ended(12).disk.view();
    assert!(!replay(&file, 2).searched);
    assert!(replay(&file, 3).searched);
    let live = recover_shard(&identity(1), &file, &[]).unwrap_err();
    let future = |kind: &ProblemKind| matches!(kind, ProblemKind::FromTheFuture { .. });
    assert!(live.problems.iter().any(|problem| future(&problem.kind)));
}

/// A writer came after the end, and of all that it wrote its head alone was torn.
#[test]
fn what_was_written_after_the_end_is_found_though_its_head_is_torn() {
    let mut file = ended(12).disk.view();
    let before = file.clone();
    let mut log = resume(&file, 2, small());
    let next = replay(&file, 2).next_lsn;
    mark(&mut log, next.0).unwrap();
    log.close();
    write_out(&mut log, &mut file);
    for slot in HEAD_SLOTS {
        let slot = slot as usize;
        file[slot..slot + PAGE_BYTES].copy_from_slice(&before[slot..slot + PAGE_BYTES]);
    }
    assert!(head_of(&file).end.is_some());
    let found = replay(&file, 3);
    assert_eq!(found.next_batch, BatchNum(14));
    assert!(found.searched);
}

#[test]
fn an_end_that_does_not_fit_is_searched_for() {
    let file = ended(12).disk.view();
    let head = head_of(&file);
    let end = head.end.unwrap();
    let ends = |end| LogHead {
        end: Some(end),
        ..head
    };
    for wrong in [
        ends(LogEnd {
            chain: end.chain ^ 1,
            ..end
        }),
        ends(LogEnd {
            last_lsn: Lsn(end.last_lsn.0 - 1),
            ..end
        }),
        ends(LogEnd {
            next_lsn: Lsn(11),
            last_lsn: Lsn(10),
            ..end
        }),
        ends(LogEnd {
            last_generation: 0,
            ..end
        }),
        ends(LogEnd {
            max_epoch: Epoch(0),
            ..end
        }),
        LogHead {
            durable_through: BatchNum(11),
            ..head
        },
    ] {
        let mut file = file.clone();
        put_head(&mut file, &wrong);
        let found = replay(&file, 2);
        assert!(found.searched, "{wrong:?}");
        assert_eq!(found.next_batch, BatchNum(13));
        assert_eq!(found.next_lsn, Lsn(13));
    }
}

/// Everything that is damage is damage whatever the head says of the end.
#[test]
fn damage_before_the_end_is_told_as_without_it() {
    let first = 0x1_0000;
    let batch = 3 * PAGE_BYTES;
    let whole = ended(30).disk.view();
    for at in [
        first + 4 * batch,
        first + 4 * batch + 130,
        first + (160 << 10),
    ] {
        let mut file = whole.clone();
        file[at] ^= 1;
        let told = |file: &[u8]| {
            let damage = recover_shard(&identity(2), &file.to_vec(), &[]).unwrap_err();
            damage.problems
        };
        assert_eq!(told(&file), told(&without_end(&file)), "byte {at}");
    }
    let mut file = whole;
    let mut head = head_of(&file);
    head.durable_through = BatchNum(31);
    put_head(&mut file, &head);
    let damage = recover_shard(&identity(2), &file, &[]).unwrap_err();
    let (first, last) = (BatchNum(31), BatchNum(31));
    assert_eq!(
        damage.problems[0].kind,
        ProblemKind::Missing { first, last }
    );
}

/// Whatever starts a segment behind the end is looked for: the end is wrong then.
#[test]
fn a_batch_behind_the_end_is_found() {
    let mut longer = World::new(1);
    fill(&mut longer, 13);
    let mut file = ended(12).disk.view();
    let (fresh, old) = (
        0x1_0000 + 3 * (160 << 10),
        0x1_0000 + (160 << 10) + 9 * PAGE_BYTES,
    );
    let view = longer.disk.view();
    let behind = &view[old..old + 3 * PAGE_BYTES];
    let mut header = BatchHeader::decode(behind).unwrap();
    assert_eq!(header.number, BatchNum(13));
    file[fresh..fresh + behind.len()].copy_from_slice(behind);
    (header.file_offset, header.generation) = (fresh as u64, 9);
    header.encode(&mut file[fresh..]);
    let found = replay(&file, 2);
    assert_eq!((found.next_batch, found.searched), (BatchNum(14), true));
}

#[test]
fn a_region_that_knows_more_than_the_head_is_believed() {
    let ended_file = ended(3).disk.view();
    let mut world = World::new(1);
    fill(&mut world, 4);
    let region = world.log.arena.bytes(0, small().arena_bytes).to_vec();
    let damage = recover_shard(&identity(2), &ended_file, &[&region]).unwrap_err();
    let (first, last) = (BatchNum(4), BatchNum(4));
    assert_eq!(
        damage.problems[0].kind,
        ProblemKind::Missing { first, last }
    );
}

/// Numbers of batches that were never durable and are gone from the file are not used again.
#[test]
fn void_numbers_stay_used_over_an_end() {
    let mut world = ended(8);
    world.crash(super::world::Crash::Power);
    let before = replay(&world.disk.view(), 3);
    assert!(world.end(true));
    let after = replay(&world.disk.view(), 3);
    assert!(!after.searched);
    assert_eq!(after.next_lsn, before.next_lsn);
    assert_eq!(after.max_epoch, before.max_epoch);
    assert_eq!(after.last_generation, before.last_generation);
}

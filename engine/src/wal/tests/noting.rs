//! Headers that a log noted at its end spare the next start the reading of the file, and are taken
//! only if they are exactly what the file has.

use std::cell::Cell;

use crate::block::{BlockSize, PAGE_BYTES};
use crate::identity::BatchNum;
use crate::wal::format::FIXED_BYTES;
use crate::wal::record::RECORD_BYTES;
use crate::wal::{Recovered, recover_noted_shard, recover_shard};

use super::world::{Counting, Crash, World, identity};

/// Bytes of a noted header of a batch of one record with one block.
const NOTED_BYTES: usize = FIXED_BYTES + RECORD_BYTES + 4;

/// A world of so many durable batches of three pages, whose log has ended, and what it noted.
fn ended(batches: u64) -> (World, Vec<u8>) {
    let mut world = World::new(1);
    for _ in 0..batches {
        world.append(1, BlockSize::new(8192).unwrap()).unwrap();
        world.settle();
    }
    assert!(world.end(true));
    let noted = notes(&world);
    (world, noted)
}

fn notes(world: &World) -> Vec<u8> {
    let mut noted = Vec::new();
    assert!(world.log.note_headers(&mut noted));
    noted
}

fn replay(file: &[u8], noted: &[u8]) -> Recovered {
    recover_noted_shard(&identity(2), &file.to_vec(), Some(noted), &[]).unwrap()
}

/// Numbers and places of the batches.
fn batches(found: &Recovered) -> Vec<(BatchNum, u64, u32)> {
    let batches = found.batches().iter();
    batches
        .map(|b| (b.number, b.file_offset, b.pages))
        .collect()
}

#[test]
fn no_batch_is_read_whose_header_was_noted() {
    let (world, noted) = ended(30);
    let media = Counting(world.disk.view(), Cell::new(0));
    let read = recover_shard(&identity(2), &media, &[]).unwrap();
    assert_eq!((read.searched, read.noted), (false, false));
    media.1.set(0);
    let found = recover_noted_shard(&identity(2), &media, Some(&noted), &[]).unwrap();
    assert_eq!((found.searched, found.noted), (false, true));
    // Two heads, and the first page of every segment.
    assert!(media.1.get() <= 10, "{} reads", media.1.get());
    assert_eq!(batches(&found), batches(&read));
    assert_eq!(batches(&found).len(), 30);
    assert_eq!(found.records().count(), read.records().count());
    assert_eq!((found.next_lsn, found.chain), (read.next_lsn, read.chain));
}

/// Batches leave memory long before they are released; those of the process before never were
/// there.
#[test]
fn headers_are_noted_though_their_batches_are_not_in_memory() {
    let (mut world, noted) = ended(30);
    assert_eq!(noted.len(), 30 * NOTED_BYTES);
    assert!(world.log.batches.evicted_below() > BatchNum(1));
    world.crash(Crash::Power);
    assert!(world.end(true));
    assert_eq!(notes(&world), noted);
    world.commit();
    assert!(world.end(true));
    assert!(notes(&world).is_empty(), "nothing is left to be replayed");
}

#[test]
fn a_log_that_has_not_ended_notes_nothing() {
    let mut world = World::new(1);
    world.append(1, BlockSize::MIN).unwrap();
    world.settle();
    assert!(!world.log.note_headers(&mut Vec::new()));
}

/// A few bytes of data for each batch: then the file is as quickly read.
#[test]
fn too_many_headers_are_not_noted() {
    let marked = |rounds| {
        let mut world = World::new(1);
        for _ in 0..rounds {
            for _ in 0..90 {
                world.mark(1).unwrap();
            }
            world.settle();
        }
        assert!(world.end(true));
        world
    };
    notes(&marked(3));
    let world = marked(13);
    let mut noted = Vec::new();
    assert!(!world.log.note_headers(&mut noted) && noted.is_empty());
}

#[test]
fn notes_that_do_not_fit_are_not_believed() {
    let (world, noted) = ended(12);
    let file = world.disk.view();
    let whole = batches(&replay(&file, &noted));
    let (_, shorter) = ended(11);
    let (_, longer) = ended(13);
    let mut wrong = vec![Vec::new(), shorter, longer, [0; 500].to_vec()];
    wrong.push(noted[NOTED_BYTES..].to_vec());
    wrong.push([&noted[..], &noted[..NOTED_BYTES]].concat());
    wrong.push([&noted[NOTED_BYTES..], &noted[..NOTED_BYTES]].concat());
    wrong.push([&noted[..], &[0]].concat());
    for at in 0..noted.len() {
        let mut changed = noted.clone();
        changed[at] ^= 1;
        wrong.push(changed);
        wrong.push(noted[..at].to_vec());
    }
    for notes in wrong {
        let found = replay(&file, &notes);
        assert_eq!((found.searched, found.noted), (false, false));
        assert_eq!(batches(&found), whole);
    }
    assert!(replay(&file, &noted).noted);
}

/// What was noted is of one end: a later writer's batches are not in it.
#[test]
fn notes_of_an_earlier_end_are_not_believed() {
    let (mut world, noted) = ended(12);
    world.crash(Crash::Power);
    world.append(1, BlockSize::new(8192).unwrap()).unwrap();
    world.settle();
    assert!(world.end(true));
    let file = world.disk.view();
    let found = recover_noted_shard(&identity(3), &file, Some(&noted), &[]).unwrap();
    assert_eq!((found.searched, found.noted), (false, false));
    assert_eq!(found.batches().len(), 13);
}

/// The first batch of a segment is looked at: if it is not what was noted, the file is read, and
/// tells of the damage.
#[test]
fn damage_at_the_start_of_a_segment_is_told_in_spite_of_notes() {
    let (world, noted) = ended(30);
    let mut file = world.disk.view();
    file[0x1_0000 + (160 << 10) + FIXED_BYTES] ^= 1;
    let damage = recover_noted_shard(&identity(2), &file, Some(&noted), &[]).unwrap_err();
    let read = recover_shard(&identity(2), &file, &[]).unwrap_err();
    assert_eq!(damage.problems, read.problems);
}

/// A header that rotted is not needed: its blocks are found and have their checksums.
#[test]
fn what_was_noted_replaces_a_damaged_header() {
    let (world, noted) = ended(30);
    let mut file = world.disk.view();
    file[0x1_0000 + 3 * PAGE_BYTES] ^= 1;
    recover_shard(&identity(2), &file, &[]).unwrap_err();
    let found = replay(&file, &noted);
    assert!(found.noted);
    assert_eq!(found.batches().len(), 30);
}

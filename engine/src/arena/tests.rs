//! Tests of the arena.

use super::hazard::Hazards;
use super::*;

#[test]
fn a_file_mapping_outlives_its_arena() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let mut arena = Arena::map_file(&file, 8192).unwrap();
    arena.bytes_mut(4096, 3).copy_from_slice(b"abc");
    arena.store_word(8, 7);
    drop(arena);
    let again = Arena::map_file(&file, 8192).unwrap();
    assert_eq!(again.bytes(4096, 3), b"abc");
    assert_eq!(again.bytes(8, 8), 7u64.to_le_bytes());
}

#[test]
fn memory_that_was_put_into_huge_pages_holds_what_it_held() {
    // On tmpfs, as in production.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    let bytes = 3 * HUGE_PAGE_BYTES;
    file.set_len(bytes as u64).unwrap();
    let mut arena = Arena::map_file(&file, bytes).unwrap();
    let pattern = |page: usize| [page as u8, (page >> 8) as u8, 0xA5];
    for page in 0..bytes / PAGE_BYTES {
        arena
            .bytes_mut(page * PAGE_BYTES, 3)
            .copy_from_slice(&pattern(page));
    }
    let reader = arena.reader();
    for offset in (0..bytes).step_by(HUGE_PAGE_BYTES) {
        // A kernel may have none.
        let _ = reader.collapse(offset);
    }
    for page in 0..bytes / PAGE_BYTES {
        assert_eq!(arena.bytes(page * PAGE_BYTES, 3), pattern(page));
    }
    let aligned = arena.io_slice(0, 1).as_ptr() as usize;
    assert!(aligned.is_multiple_of(HUGE_PAGE_BYTES), "{aligned:x}");
}

#[test]
fn a_short_file_or_odd_length_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    assert!(Arena::map_file(&file, 8192).is_err());
    assert!(Arena::anonymous(4095).is_err());
    assert!(Arena::anonymous(0).is_err());
}

#[test]
fn a_slice_keeps_the_memory_alive() {
    let mut arena = Arena::anonymous(4096).unwrap();
    arena.bytes_mut(0, 1)[0] = 9;
    let slice = arena.io_slice(0, 4096);
    drop(arena);
    assert_eq!((slice.len(), slice.is_empty()), (4096, false));
}

#[test]
fn readers_copy_until_the_batch_is_evicted() {
    let mut arena = Arena::anonymous(8192).unwrap();
    arena.bytes_mut(4096, 2).copy_from_slice(b"xy");
    let reader = arena.reader();
    let mut out = [0; 2];
    assert!(reader.copy(BatchNum(5), 4096, &mut out));
    assert_eq!(&out, b"xy");
    assert!(arena.evict_below(BatchNum(6)));
    assert!(!reader.copy(BatchNum(5), 4096, &mut out));
    assert!(reader.copy(BatchNum(6), 4096, &mut out));
}

#[test]
#[should_panic(expected = "outside of")]
fn a_range_beyond_the_mapping_panics() {
    Arena::anonymous(4096).unwrap().bytes(4095, 2);
}

#[test]
fn an_eviction_waits_for_the_reader_and_shuts_out_the_next() {
    let hazards = Hazards::new();
    let guard = hazards.protect(BatchNum(3)).unwrap();
    assert!(hazards.evict_below(BatchNum(3)), "3 itself is not evicted");
    assert!(!hazards.evict_below(BatchNum(4)));
    assert!(
        hazards.protect(BatchNum(3)).is_none(),
        "evicted although memory is in use"
    );
    drop(guard);
    assert!(hazards.evict_below(BatchNum(4)));
}

#[test]
fn all_slots_can_be_used_at_once() {
    let hazards = Hazards::new();
    let guards: Vec<_> = (0..sync::SLOTS as u64)
        .map(|n| hazards.protect(BatchNum(n)))
        .collect();
    assert!(guards.iter().all(Option::is_some));
    assert!(!hazards.evict_below(BatchNum(1)));
    drop(guards);
    assert!(hazards.evict_below(BatchNum(sync::SLOTS as u64)));
}

//! Gathers slots into ranges that are read at once.

use std::ops::Range;

use taipan_engine::cache::OnDisk;

/// Ranges that cover the ascending `slots`; up to `gap_max` slots between two of them are read
/// along, and no range is longer than `len_max`.
pub(super) fn runs(slots: &[u32], gap_max: u32, len_max: u32) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for &slot in slots {
        match runs.last_mut() {
            Some(run) if slot < run.end => {}
            Some(run) if slot - run.end <= gap_max && slot - run.start < len_max => {
                run.end = slot + 1;
            }
            _ => runs.push(slot..slot + 1),
        }
    }
    runs
}

/// Splits ascending places of slots in the cache file where either is not the next one.
pub(super) fn file_runs(
    places: Vec<(u32, OnDisk)>,
    block_bytes: usize,
    len_max: usize,
) -> Vec<(u32, Vec<OnDisk>)> {
    let mut runs: Vec<(u32, Vec<OnDisk>)> = Vec::new();
    for (slot, at) in places {
        let next = runs.last_mut().filter(|(first, run)| {
            let last = run.last().map_or(0, |last| last.file_offset);
            first + run.len() as u32 == slot
                && last + block_bytes as u64 == at.file_offset
                && run.len() < len_max
        });
        match next {
            Some((_, run)) => run.push(at),
            None => runs.push((slot, vec![at])),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use taipan_engine::chunk::SlotStamp;

    #[test]
    fn near_slots_are_read_at_once_and_far_ones_are_not() {
        assert_eq!(runs(&[5, 90], 4, 100), [5..6, 90..91]);
        assert_eq!(runs(&[1, 2, 2, 6, 12], 4, 100), [1..7, 12..13]);
        assert_eq!(runs(&[0, 1, 2, 3], 4, 2), [0..2, 2..4]);
        assert!(runs(&[], 4, 100).is_empty());
    }

    #[test]
    fn places_are_read_at_once_where_slots_and_offsets_both_follow() {
        let at = |page: u64| OnDisk {
            file_offset: page * 4096,
            stamp: SlotStamp { crc: 0, number: 0 },
        };
        let places = vec![(1, at(9)), (2, at(10)), (3, at(20)), (5, at(21))];
        let found = file_runs(places, 4096, 100);
        let short: Vec<_> = found.iter().map(|(s, run)| (*s, run.len())).collect();
        assert_eq!(short, [(1, 2), (3, 1), (5, 1)]);
    }
}

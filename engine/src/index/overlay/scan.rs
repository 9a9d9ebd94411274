//! What an overlay knows of a range of blocks, in order: the table itself has none.

use std::ops::Range;

use super::{Entry, Overlay, Point, hash, key_of};
use crate::block::LocalBlock;
use crate::identity::Lsn;

/// Blocks are looked up one by one if the table has so many times more points; else it is gone
/// through once.
const PROBE_FACTOR: u64 = 16;

/// What an overlay knows of the blocks from the beginning of a range on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// One beyond the last block of which all is told.
    pub end: u64,
    /// Blocks with data that are not zeroed since, ascending.
    pub points: Vec<(LocalBlock, Point)>,
    /// Ranges zeroed, ascending, not overlapping; they may cover blocks of `points`.
    pub zeros: Vec<Range<u64>>,
}

impl Overlay {
    /// What is known of `range`: at most `most` (1 or more) points and as many zeroed ranges, so
    /// that the answer may end before the range, but never at its beginning. Takes time in the
    /// number of points of the overlay, or of blocks if they are much fewer; of these only the ones
    /// with a point nearby count.
    pub fn scan(&self, range: Range<u64>, most: usize) -> Scan {
        let mut scan = Scan {
            end: range.end,
            ..Scan::default()
        };
        if range.is_empty() {
            return scan;
        }
        let mut found = self.first_points(&range, most + 1);
        if let Some(beyond) = found.get(most) {
            scan.end = u64::from(beyond.local);
            found.truncate(most);
        }
        let before = self.zeros.range(..range.start).next_back();
        let inside = self.zeros.range(range.start..scan.end);
        for (&start, zero) in before.into_iter().chain(inside) {
            let zeroed = start.max(range.start)..zero.end.min(range.end);
            if zeroed.is_empty() {
                continue;
            }
            if scan.zeros.len() == most {
                scan.end = zeroed.start;
                break;
            }
            scan.zeros.push(zeroed);
        }
        let visible = |entry: &Entry| {
            let zero = self.zero_at(u64::from(entry.local));
            u64::from(entry.local) < scan.end && zero.is_none_or(|lsn| lsn <= Lsn(entry.lsn))
        };
        let told = found.into_iter().filter(visible);
        scan.points = told
            .map(|entry| (LocalBlock(u64::from(entry.local)), entry.point()))
            .collect();
        scan
    }

    /// The first `most` points of `range`, ascending.
    fn first_points(&self, range: &Range<u64>, most: usize) -> Vec<Entry> {
        let mut found: Vec<Entry> = Vec::new();
        let parts = || self.regions.within(range.clone());
        let blocks: u64 = parts().map(|part| part.end - part.start).sum();
        if blocks == 0 {
            return found;
        }
        if blocks.saturating_mul(PROBE_FACTOR) < self.points.len() as u64 {
            let at = |local| {
                let key = key_of(LocalBlock(local));
                self.points.find(hash(key), |entry| entry.local == key)
            };
            found.extend(parts().flatten().filter_map(at).take(most));
            return found;
        }
        let mut end = range.end;
        for entry in &self.points {
            if !(range.start..end).contains(&u64::from(entry.local)) {
                continue;
            }
            found.push(*entry);
            if found.len() >= most.saturating_mul(2) {
                let (_, last, _) = found.select_nth_unstable_by_key(most - 1, |e| e.local);
                end = u64::from(last.local);
                found.truncate(most);
            }
        }
        found.sort_unstable_by_key(|entry| entry.local);
        found.truncate(most);
        found
    }
}

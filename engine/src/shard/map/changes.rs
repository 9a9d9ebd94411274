//! What has changed in a range of one shard since an earlier image: base against base, and the
//! overlays over that.

use std::ops::Range;

use super::{LOOKS_PER_LEAF, Layers, committed, leaves_of, part_of};
use crate::extents::{BlockState, Runs, Seat, Seats};
use crate::index::{Baseline, LeafKey, Scan, ShardBase};

/// Entries of leaves that are compared for the effort of one look.
const ENTRIES_PER_LOOK: usize = 16;

impl Layers<'_> {
    /// Which blocks of `range` differ from the baseline, from its first block on, at least that
    /// one; uses up `looks`. `scans`: what the overlays say of the range.
    ///
    /// What an overlay holds is newer than any snapshot, so it has changed; but zeros over what was
    /// not mapped then have not.
    pub(super) fn changes(
        &self,
        (seat, baseline): &(Seat, Baseline),
        mut range: Range<u64>,
        scans: &[Scan],
        looks: &mut usize,
    ) -> Runs {
        let changed = BlockState {
            changed: Seats::from(*seat),
            ..BlockState::HOLE
        };
        let mut mapped = Runs::new(range.start);
        if scans.iter().any(|scan| !scan.zeros.is_empty()) {
            mapped = committed(baseline.base(), range.clone(), changed, looks);
            range.end = mapped.range().end;
        }
        let mut runs = compared(self.base, baseline, range, changed, looks);
        for Scan { points, zeros, .. } in scans {
            if !zeros.is_empty() {
                runs = runs.painted(zeros.iter().flat_map(|zero| mapped.within(zero.clone())));
            }
            if !points.is_empty() {
                runs = runs.painted(points.iter().map(|(at, _)| (at.0..at.0 + 1, changed)));
            }
        }
        runs
    }
}

/// What the base says of `range`: `changed` where it is not as in the baseline. Ends early, but not
/// before the first leaf was looked at, when `looks` are used up.
fn compared(
    base: &ShardBase,
    baseline: &Baseline,
    range: Range<u64>,
    changed: BlockState,
    looks: &mut usize,
) -> Runs {
    let mut runs = Runs::new(range.start);
    let keys = keys_of(base, baseline.base(), &range);
    for (nth, key) in keys.enumerate() {
        let first = key.first().0;
        if *looks == 0 && nth > 0 {
            // Up to here all is known: between leaves nothing is mapped in either.
            runs.push(first, BlockState::HOLE);
            return runs;
        }
        let mut used = LOOKS_PER_LEAF;
        let part = part_of(&range, key);
        let end = first + u64::from(part.end);
        let entries = baseline.changed(key, base.leaf(key), part, |part| {
            used += 1;
            runs.push(first + u64::from(part.start), BlockState::HOLE);
            runs.push(first + u64::from(part.end), changed);
        });
        *looks = looks.saturating_sub(used + entries / ENTRIES_PER_LOOK);
        runs.push(end, BlockState::HOLE);
    }
    runs.push(range.end, BlockState::HOLE);
    runs
}

/// The leaves of either that `range` touches, ascending.
fn keys_of<'a>(
    a: &'a ShardBase,
    b: &'a ShardBase,
    range: &Range<u64>,
) -> impl Iterator<Item = LeafKey> + use<'a> {
    let (from, to) = leaves_of(range);
    let keys = |base: &'a ShardBase| base.leaves_between(from, to).map(|(key, _)| key);
    let (mut a, mut b) = (keys(a).peekable(), keys(b).peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if x == y => {
            a.next();
            b.next()
        }
        (Some(x), Some(y)) if y < x => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

//! Whether what was read ahead gets a place in the cache file.
//!
//! A reader in order who passes once would push out of the file what others come back for, and its
//! writes would cost it more than the reading. So where the backend is about as quick as the file,
//! a place is given only to what is read ahead for the second time; from a backend that is far away
//! everything is kept, as each byte of it is dear.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use taipan_engine::cache::SlotKey;

/// A GET of a near backend is done so soon …
const NEAR_FIXED: Duration = Duration::from_millis(10);
/// … and one nanosecond later for each so many bytes: 100 MB/s.
const NEAR_NANOS_PER_BYTE: u64 = 10;
/// Names remembered of what passed: 64 GiB in GETs of whole objects.
const NAMES_MAX: usize = 16 << 10;

/// What passed. A name is that of the first slot of a GET.
#[derive(Debug, Default)]
pub(super) struct Passing {
    names: HashSet<SlotKey>,
    order: VecDeque<SlotKey>,
}

impl Passing {
    /// Whether a GET that brought so many bytes from `first` on, in this time, is worth keeping.
    pub(super) fn is_worth_a_place(&mut self, first: SlotKey, bytes: u64, took: Duration) -> bool {
        let near = NEAR_FIXED + Duration::from_nanos(NEAR_NANOS_PER_BYTE.saturating_mul(bytes));
        if took > near || self.names.contains(&first) {
            return true;
        }
        self.names.insert(first);
        self.order.push_back(first);
        while self.order.len() > NAMES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taipan_engine::identity::{Generation, VolumeId};
    use taipan_engine::object::ChunkKey;

    const QUICK: Duration = Duration::from_millis(12);
    const BYTES: u64 = 4 << 20;

    fn name(sequence: u64) -> SlotKey {
        let chunk = ChunkKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: 0,
        };
        SlotKey { chunk, slot: 0 }
    }

    #[test]
    fn what_is_near_is_kept_the_second_time_and_what_is_far_at_once() {
        let mut passing = Passing::default();
        assert!(!passing.is_worth_a_place(name(1), BYTES, QUICK));
        assert!(passing.is_worth_a_place(name(1), BYTES, QUICK));
        assert!(passing.is_worth_a_place(name(2), BYTES, Duration::from_millis(60)));
        // The same time is long for a few bytes.
        assert!(passing.is_worth_a_place(name(3), 4104, QUICK));
    }

    #[test]
    fn names_are_bounded() {
        let mut passing = Passing::default();
        for sequence in 0..2 * NAMES_MAX as u64 {
            assert!(!passing.is_worth_a_place(name(sequence), BYTES, QUICK));
        }
        assert_eq!(
            (passing.names.len(), passing.order.len()),
            (NAMES_MAX, NAMES_MAX)
        );
        assert!(!passing.is_worth_a_place(name(0), BYTES, QUICK));
    }
}

//! Which parts of a shard an overlay has points in: the table itself has no order.

use std::ops::Range;

/// Blocks that one bit stands for. The bits of the largest volume take 128 KiB.
const REGION_BLOCKS: u64 = 1024;
const WORD_REGIONS: u64 = u64::BITS as u64;

/// A bit for each region, set with the first point in it.
#[derive(Default)]
pub(super) struct Regions {
    words: Vec<u64>,
}

impl Regions {
    /// There is a point at the block `local`.
    #[inline]
    pub(super) fn note(&mut self, local: u32) {
        let region = u64::from(local) / REGION_BLOCKS;
        let word = (region / WORD_REGIONS) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (region % WORD_REGIONS);
    }

    /// The parts of `range` outside of which there is no point: ascending, disjoint, not empty.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        const WORD_BLOCKS: u64 = REGION_BLOCKS * WORD_REGIONS;
        let end = range.end.div_ceil(WORD_BLOCKS).min(self.words.len() as u64);
        let words = range.start / WORD_BLOCKS..end;
        let regions = words.flat_map(|word| {
            let first = word * WORD_REGIONS;
            bits_of(self.words[word as usize]).map(move |bit| first + bit)
        });
        regions
            .map(move |region| {
                let (from, to) = (region * REGION_BLOCKS, (region + 1) * REGION_BLOCKS);
                from.max(range.start)..to.min(range.end)
            })
            .filter(|part| !part.is_empty())
    }

    /// Heap memory in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

/// The set bits of a word, ascending.
fn bits_of(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.checked_sub(1)?;
        Some(u64::from(bit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_point_of_the_range_and_skip_empty_regions() {
        let mut regions = Regions::default();
        assert_eq!(regions.within(0..u64::MAX).count(), 0);
        for local in [0, 1023, 5000, 70_000, 70_001, u32::MAX] {
            regions.note(local);
        }
        let parts = |range| regions.within(range).collect::<Vec<_>>();
        let last = u64::from(u32::MAX) + 1;
        let all = [0..1024, 4096..5120, 69_632..70_656, last - 1024..last];
        assert_eq!(parts(0..last), all);
        assert_eq!(parts(7..5000), [7..1024, 4096..5000]);
        assert_eq!(parts(1024..4096), []);
        assert_eq!(parts(5120..69_632), []);
        assert_eq!(
            parts(70_655..70_700),
            std::slice::from_ref(&(70_655..70_656))
        );
    }
}

//! Which slots of which objects a cache holds, told to other threads than the cache's own.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashMap;

use crate::object::ChunkKey;

const WORD_BITS: u32 = u64::BITS;

/// Slots of one object: a bitmap from the first word that was ever needed to the last.
#[derive(Debug, Default)]
pub struct HeldSlots {
    first_word: u32,
    words: Vec<u64>,
    count: u32,
}

impl HeldSlots {
    /// Whether the slot is one of them.
    pub fn contains(&self, slot: u32) -> bool {
        let word = (slot / WORD_BITS).checked_sub(self.first_word);
        let word = word.and_then(|at| self.words.get(at as usize));
        word.is_some_and(|word| word >> (slot % WORD_BITS) & 1 == 1)
    }

    fn insert(&mut self, slot: u32) {
        let at = slot / WORD_BITS;
        if self.words.is_empty() {
            self.first_word = at;
        }
        let lacking = self.first_word.saturating_sub(at);
        if lacking > 0 {
            self.words
                .splice(0..0, std::iter::repeat_n(0, lacking as usize));
            self.first_word = at;
        }
        let at = (at - self.first_word) as usize;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (slot % WORD_BITS);
        self.count += u32::from(self.words[at] & bit == 0);
        self.words[at] |= bit;
    }

    fn remove(&mut self, slot: u32) {
        if self.contains(slot) {
            let at = slot / WORD_BITS - self.first_word;
            self.words[at as usize] &= !(1 << (slot % WORD_BITS));
            self.count -= 1;
        }
    }
}

type Chunks = HashMap<ChunkKey, HeldSlots>;

/// What a cache holds; clones are of the same cache. The cache's thread keeps it up to date, block
/// by block and body by body; who maps a volume looks at it.
#[derive(Clone, Debug, Default)]
pub struct Holdings(Arc<RwLock<Chunks>>);

impl Holdings {
    /// Slots came.
    pub(super) fn add(&self, chunk: &ChunkKey, slots: impl IntoIterator<Item = u32>) {
        let mut slots = slots.into_iter().peekable();
        if slots.peek().is_some() {
            let mut chunks = self.0.write().unwrap_or_else(PoisonError::into_inner);
            let held = chunks.entry(*chunk).or_default();
            slots.for_each(|slot| held.insert(slot));
        }
    }

    /// Slots left.
    pub(super) fn remove(&self, chunk: &ChunkKey, slots: impl IntoIterator<Item = u32>) {
        let mut chunks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = chunks.get_mut(chunk) else {
            return;
        };
        slots.into_iter().for_each(|slot| held.remove(slot));
        if held.count == 0 {
            chunks.remove(chunk);
        }
    }

    /// Nothing of it can be used any more.
    pub fn clear(&self) {
        let mut chunks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *chunks = Chunks::default();
    }

    /// What is held right now. The cache waits while somebody looks.
    pub fn look(&self) -> HeldNow<'_> {
        HeldNow(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A look at what a cache holds.
#[derive(Debug)]
pub struct HeldNow<'a>(RwLockReadGuard<'a, Chunks>);

impl HeldNow<'_> {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What it holds of an object; `None`: nothing.
    pub fn of(&self, chunk: &ChunkKey) -> Option<&HeldSlots> {
        self.0.get(chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::identity::{Generation, VolumeId};
    use crate::lcg::Lcg;

    #[test]
    fn slots_are_held_from_when_they_come_until_they_leave() {
        let chunk = |sequence| ChunkKey {
            volume: VolumeId(7),
            generation: Generation(1),
            sequence,
            random: 0,
        };
        let (holdings, mut dice) = (Holdings::default(), Lcg(3));
        let mut model = BTreeSet::new();
        for _ in 0..4000 {
            let (sequence, slot) = (dice.below(3), dice.below(16384) as u32 & !0x3f8);
            let slots = slot..slot + 1 + dice.below(100) as u32;
            let named = slots.clone().map(|slot| (sequence, slot));
            match dice.below(2) {
                0 => {
                    holdings.add(&chunk(sequence), slots.clone());
                    model.extend(named);
                }
                _ => {
                    holdings.remove(&chunk(sequence), slots.clone());
                    named.for_each(|name| _ = model.remove(&name));
                }
            }
            let now = holdings.look();
            for slot in slots.start.saturating_sub(130)..slots.end + 130 {
                let held = now.of(&chunk(sequence));
                let held = held.is_some_and(|held| held.contains(slot));
                assert_eq!(held, model.contains(&(sequence, slot)));
            }
        }
        model.iter().for_each(|(sequence, slot)| {
            holdings.remove(&chunk(*sequence), [*slot]);
        });
        assert!(
            holdings.look().is_empty(),
            "an object without slots has no entry"
        );
        holdings.add(&chunk(1), [5]);
        holdings.clear();
        assert!(holdings.look().of(&chunk(1)).is_none());
    }
}

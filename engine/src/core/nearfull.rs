//! A backend that is full lets the log fill up, and a full log refuses writes. So that clients feel
//! the end coming, each shard takes data ever more slowly on the way there.

use super::Core;
use crate::block::SHARD_COUNT;
use crate::shard::Shard;

/// Used share of the log's room for data at which slowing down begins, in percent.
const SLOW_FROM_PERCENT: u64 = 50;
/// Pause of a shard after each part of a write when hardly anything is left.
const PAUSE_MS_MAX: u64 = 100;

/// When each shard takes data again, by position.
#[derive(Default)]
pub(super) struct Nearfull {
    paused_until_ms: [u64; SHARD_COUNT],
}

impl Core {
    /// Whether data must wait because the shard at `position` took some just now.
    #[inline]
    pub(super) fn is_paused(&self, position: usize) -> bool {
        self.backend_full && self.now_ms < self.nearfull.paused_until_ms[position]
    }

    /// Data was placed in the shard at `position`.
    #[inline]
    pub(super) fn note_placed(&mut self, position: usize) {
        if self.backend_full {
            let pause_ms = pause_ms(used_percent(&self.shards[position]));
            self.nearfull.paused_until_ms[position] = self.now_ms + pause_ms;
        }
    }

    /// Parts that waited out their shard's pause are tried again.
    pub(super) fn end_pauses(&mut self) {
        for position in self.pausing() {
            if self.now_ms >= self.nearfull.paused_until_ms[position] {
                self.nearfull.paused_until_ms[position] = 0;
                self.retry |= 1 << position;
            }
        }
    }

    /// When the next pause ends for which a part waits.
    pub(super) fn next_pause_end_ms(&self) -> Option<u64> {
        let ends = self.pausing();
        ends.map(|position| self.nearfull.paused_until_ms[position])
            .min()
    }

    fn pausing(&self) -> impl Iterator<Item = usize> + use<> {
        let pausing = |position: &usize| {
            self.backend_full
                && self.nearfull.paused_until_ms[*position] > 0
                && !self.parked[*position].is_empty()
        };
        let found: u16 = (0..self.shards.len())
            .filter(pausing)
            .fold(0, |mask, position| mask | 1 << position);
        (0..SHARD_COUNT).filter(move |position| found & 1 << position != 0)
    }
}

/// Used share of what data may use of the log.
fn used_percent(shard: &Shard) -> u64 {
    let log = shard.log();
    let stats = log.stats();
    let count = u64::from(log.config().segments);
    let for_data = count - u64::from(stats.reserve_segments);
    let used = count - u64::from(stats.free_segments);
    used * 100 / for_data.max(1)
}

fn pause_ms(used_percent: u64) -> u64 {
    let over = used_percent.clamp(SLOW_FROM_PERCENT, 100) - SLOW_FROM_PERCENT;
    let range = 100 - SLOW_FROM_PERCENT;
    PAUSE_MS_MAX * over * over / (range * range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_nothing_to_a_tenth_of_a_second() {
        let paused: Vec<u64> = [0, 50, 60, 75, 90, 100, 120].map(pause_ms).to_vec();
        assert_eq!(paused, [0, 0, 4, 25, 64, 100, 100]);
    }
}

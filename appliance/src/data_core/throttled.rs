//! Connections whose next request has its turn later, because their volume has limits.

use std::time::Duration;

use super::DataCore;

/// Limits that change, or are taken away, are noticed within this time.
const LOOK_NS: u64 = 50_000_000;
/// Sooner is not worth the wake-up: turns that are late are made up for.
const NAP_NS_MIN: u64 = 200_000;

impl DataCore {
    /// Connections whose time has come are served in this turn.
    pub(super) fn wake_throttled(&mut self) {
        let look = self.now_ns >= self.looked_throttled_ns + LOOK_NS;
        if look {
            self.looked_throttled_ns = self.now_ns;
        }
        for index in std::mem::take(&mut self.throttled) {
            let connection = self.slots[index as usize].connection.as_ref();
            match connection.and_then(|connection| connection.turn_ns()) {
                None => {}
                Some(turn_ns) if look || turn_ns <= self.now_ns => self.queue(index),
                Some(_) => self.throttled.push(index),
            }
        }
    }

    /// How long the core may sleep for their sake.
    pub(super) fn nap(&self) -> Option<Duration> {
        let connections = self.throttled.iter().filter_map(|index| {
            let connection = self.slots[*index as usize].connection.as_ref();
            connection.and_then(|connection| connection.turn_ns())
        });
        let first_ns = connections.min()?.min(self.now_ns + LOOK_NS);
        let nap_ns = first_ns.saturating_sub(self.now_ns).max(NAP_NS_MIN);
        Some(Duration::from_nanos(nap_ns))
    }
}

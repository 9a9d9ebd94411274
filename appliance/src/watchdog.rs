//! Ends the process when a data core no longer turns: answered data outlives the process, a stuck
//! core would hold its clients for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A core turns once a second at least; a disk that blocks it for longer than this is dead.
const STUCK_MS: u64 = 60_000;

/// The heartbeats that are looked at.
pub struct Watchdog {
    started: Instant,
    watched: Vec<(String, Arc<AtomicU64>)>,
}

impl Watchdog {
    /// A watchdog on the daemon's clock.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            watched: Vec::new(),
        }
    }

    /// Watches a thread that stores the time in milliseconds at every turn.
    pub fn watch(&mut self, name: String, heartbeat: Arc<AtomicU64>) {
        let now_ms = self.started.elapsed().as_millis() as u64;
        heartbeat.store(now_ms, Ordering::Relaxed);
        self.watched.push((name, heartbeat));
    }

    /// Looks until the process ends.
    pub fn start(self) -> std::io::Result<()> {
        let look = move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                let now_ms = self.started.elapsed().as_millis() as u64;
                if let Some(name) = self.stuck(now_ms) {
                    tracing::error!(core = name, "stuck for a minute: the process ends itself");
                    std::process::abort();
                }
            }
        };
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(look)
            .map(drop)
    }

    fn stuck(&self, now_ms: u64) -> Option<&str> {
        let late = |heartbeat: &AtomicU64| {
            now_ms.saturating_sub(heartbeat.load(Ordering::Relaxed)) > STUCK_MS
        };
        let found = self.watched.iter().find(|(_, heartbeat)| late(heartbeat));
        found.map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_core_that_stopped_turning_is_stuck() {
        let mut watchdog = Watchdog::new(Instant::now());
        let (alive, dead) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        watchdog.watch("alive".into(), Arc::clone(&alive));
        watchdog.watch("dead".into(), Arc::clone(&dead));
        assert_eq!(watchdog.stuck(STUCK_MS), None);
        alive.store(STUCK_MS, Ordering::Relaxed);
        assert_eq!(watchdog.stuck(STUCK_MS + 1000), Some("dead"));
    }
}

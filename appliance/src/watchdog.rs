//! Ends the process when a data core no longer turns: answered data outlives the process, a stuck
//! core would hold its clients for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A core turns once a second at least; a disk that blocks it for longer than this is dead.
const STUCK: Duration = Duration::from_secs(60);

/// The heartbeats that are looked at.
pub struct Watchdog {
    started: Instant,
    watched: Vec<Watched>,
    /// How long this process ran, as far as the watchdog noticed. A process that is stopped, or its
    /// machine, and goes on later, is not stuck.
    awake: Duration,
}

struct Watched {
    name: String,
    heartbeat: Arc<AtomicU64>,
    /// Its last value, and since when it has it.
    seen: u64,
    since: Duration,
}

impl Watchdog {
    /// A watchdog on the daemon's clock.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            watched: Vec::new(),
            awake: Duration::ZERO,
        }
    }

    /// Watches a thread that stores the time in milliseconds at every turn.
    pub fn watch(&mut self, name: String, heartbeat: Arc<AtomicU64>) {
        let now_ms = self.started.elapsed().as_millis() as u64;
        heartbeat.store(now_ms, Ordering::Relaxed);
        self.watched.push(Watched {
            name,
            heartbeat,
            seen: now_ms,
            since: self.awake,
        });
    }

    /// Looks until the process ends.
    pub fn start(mut self) -> std::io::Result<()> {
        let look = move || {
            loop {
                let slept = Instant::now();
                std::thread::sleep(LOOK_EVERY);
                if let Some(name) = self.stuck(slept.elapsed()) {
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

    /// A thread that does not turn, `passed` after the last look.
    fn stuck(&mut self, passed: Duration) -> Option<&str> {
        self.awake += passed.min(2 * LOOK_EVERY);
        let awake = self.awake;
        for watched in &mut self.watched {
            let beat = watched.heartbeat.load(Ordering::Relaxed);
            if std::mem::replace(&mut watched.seen, beat) != beat {
                watched.since = awake;
            }
        }
        let is_stuck = |watched: &&Watched| awake - watched.since > STUCK;
        let found = self.watched.iter().find(is_stuck);
        found.map(|watched| watched.name.as_str())
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
        for look in 1..=30 {
            alive.store(1_000_000 + look, Ordering::Relaxed);
            assert_eq!(watchdog.stuck(LOOK_EVERY), None, "{look}");
        }
        alive.store(2_000_000, Ordering::Relaxed);
        assert_eq!(watchdog.stuck(LOOK_EVERY), Some("dead"));
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_goes_on() {
        let mut watchdog = Watchdog::new(Instant::now());
        watchdog.watch("core".into(), Arc::new(AtomicU64::new(0)));
        // The watchdog may be the first to run again.
        assert_eq!(watchdog.stuck(Duration::from_secs(3600)), None);
        assert_eq!(watchdog.stuck(LOOK_EVERY), None);
    }
}

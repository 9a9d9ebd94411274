//! The live line on standard error while jobs run.

use std::io::{IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::When;
use crate::tally::Live;

/// How often the line is renewed.
const RENEWAL: Duration = Duration::from_millis(500);
/// How often the end of the jobs is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Whether and how progress is shown.
pub(crate) struct Progress {
    shown: bool,
}

impl Progress {
    /// Progress as the command line asks for it.
    pub(crate) fn new(when: When) -> Self {
        let shown = match when {
            When::Always => true,
            When::Never => false,
            When::Auto => std::io::stderr().is_terminal(),
        };
        Self { shown }
    }
}

/// Shows the line until `finished`; `total` bytes are to be moved, if that is known.
pub(crate) fn watch(
    progress: &Progress,
    lives: &[Live],
    total: Option<u64>,
    finished: impl Fn() -> bool,
) {
    let start = Instant::now();
    let mut last = (start, 0, 0);
    while !finished() {
        thread::sleep(LOOK);
        if !progress.shown || last.0.elapsed() < RENEWAL {
            continue;
        }
        let now = Instant::now();
        let (requests, bytes) = sum(lives);
        let seconds = (now - last.0).as_secs_f64();
        let line = line(
            (now - start).as_secs_f64(),
            (requests - last.1) as f64 / seconds,
            (bytes - last.2) as f64 / seconds,
            total.map(|total| bytes as f64 / total as f64),
        );
        last = (now, requests, bytes);
        // A terminal that went away is no reason to end the run.
        let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
    }
    if progress.shown {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

fn sum(lives: &[Live]) -> (u64, u64) {
    lives
        .iter()
        .map(Live::read)
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

fn line(elapsed: f64, iops: f64, bytes_per_second: f64, share: Option<f64>) -> String {
    let share = share.map_or(String::new(), |share| format!("  {:3.0} %", share * 100.0));
    format!(
        "{elapsed:6.1} s  {iops:9.0} IOPS  {:9.1} MB/s{share}",
        bytes_per_second / 1e6
    )
}

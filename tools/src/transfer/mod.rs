//! `taipan import` and `taipan export`: copies between files and volumes over NBD, and of
//! snapshots from the backend.

mod export;
mod import;
mod incremental;
mod session;
mod sink;
mod snapshot;
mod source;
mod sparse;

use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use taipan_engine::size::human;

use crate::cli::Pace;
use crate::output::{human_rate, human_seconds};

pub(crate) use export::export;
pub(crate) use import::import;

/// Bytes of one request; the server's largest payload may make it less.
const PIECE_BYTES: usize = 256 << 10;

/// What a copy did; also its JSON output.
#[derive(Debug, Serialize)]
struct Report {
    /// Volume, or volume and snapshot.
    volume: String,
    file: String,
    /// Bytes copied, zeros included.
    bytes: u64,
    /// Bytes that were data.
    data_bytes: u64,
    /// Bytes that were zeros or holes.
    zero_bytes: u64,
    seconds: f64,
}

impl Report {
    fn new(
        volume: &impl Display,
        file: String,
        bytes: u64,
        data_bytes: u64,
        since: Instant,
    ) -> Self {
        Self {
            volume: volume.to_string(),
            file,
            bytes,
            data_bytes,
            zero_bytes: bytes - data_bytes,
            seconds: since.elapsed().as_secs_f64(),
        }
    }

    /// `4 GiB (812 MiB data, 3.2 GiB zeros) in 3.2 s, 1.2 GiB/s`.
    fn amounts(&self) -> String {
        format!(
            "{} ({} data, {} zeros) in {}, {}",
            human(self.bytes),
            human(self.data_bytes),
            human(self.zero_bytes),
            human_seconds(self.seconds),
            human_rate(self.bytes, Duration::from_secs_f64(self.seconds)),
        )
    }
}

/// A progress bar on standard error; hidden if that is no terminal, or when asked to be quiet.
fn progress(pace: &Pace, total_bytes: Option<u64>) -> ProgressBar {
    if pace.quiet {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total_bytes {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:32} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  \
             {binary_bytes_per_sec}  {eta} left",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {elapsed}",
        ),
    };
    // The templates are constants; a wrong one shows the default bar.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

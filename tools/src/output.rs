//! Where results go: aligned text or JSON on standard output, and times and rates as text.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// Which form results take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Aligned text.
    Human,
    /// JSON.
    Json,
}

impl Form {
    /// Prints `value` as JSON, or what `human` makes of it.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Outcome<()> {
        match self {
            Self::Human => print_text(&human(value)),
            Self::Json => {
                let mut text = serde_json::to_string_pretty(value)
                    .map_err(|e| Failure::io("cannot write JSON", &e.into()))?;
                text.push('\n');
                print_text(&text)
            }
        }
    }

    /// The same on standard error, in one line: standard output is the data itself.
    pub(crate) fn note<T: Serialize>(self, value: &T, human: impl FnOnce(&T) -> String) {
        match self {
            Self::Human => note(human(value).trim_end()),
            Self::Json => note(&serde_json::json!(value).to_string()),
        }
    }
}

/// Writes `text` to standard output. A reader that went away (`| head`) is no failure.
pub(crate) fn print_text(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("cannot write to standard output", &e))
        }
        _ => Ok(()),
    }
}

/// A line on standard error; nothing can be done if that fails.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A span of time for people: `0.8 s`, `42 s`, `3 min 5 s`, `2 h 7 min`, `5 d 3 h`.
pub(crate) fn human_seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "unknown".to_owned();
    }
    let whole = seconds as u64;
    match whole {
        0..=9 => format!("{seconds:.1} s"),
        10..=59 => format!("{whole} s"),
        60..=3599 => format!("{} min {} s", whole / 60, whole % 60),
        3600..=86_399 => format!("{} h {} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

/// Bytes per second for people; `elapsed` of zero counts as a microsecond.
pub(crate) fn human_rate(bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-6);
    format!(
        "{}/s",
        taipan_engine::size::human((bytes as f64 / seconds) as u64)
    )
}

/// A share in percent; of nothing it is nothing.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_short() {
        for (seconds, text) in [
            (0.84, "0.8 s"),
            (42.9, "42 s"),
            (185.0, "3 min 5 s"),
            (7_620.0, "2 h 7 min"),
            (442_800.0, "5 d 3 h"),
            (f64::NAN, "unknown"),
        ] {
            assert_eq!(human_seconds(seconds), text);
        }
    }

    #[test]
    fn shares_and_rates_survive_zero() {
        assert_eq!(percent(1, 0), "-");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(human_rate(0, Duration::ZERO), "0 B/s");
        assert_eq!(human_rate(3 << 20, Duration::from_secs(2)), "1.5 MiB/s");
    }
}

//! When orphans were swept last, over restarts. Nothing but the time of a sweep goes by it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Says when it is time for a sweep.
pub struct Calendar {
    path: PathBuf,
    interval: Option<Duration>,
}

impl Calendar {
    /// `path`: a file that holds the time of the last sweep, in seconds since 1970.
    pub fn new(path: PathBuf, interval: Option<Duration>) -> Self {
        Self { path, interval }
    }

    /// Whether the interval has passed since it was last time; then it is time from now on. The
    /// first one begins when there is no record, or one that cannot be (the clock was set back).
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        let Some(interval) = self.interval else {
            return false;
        };
        let now_seconds = now.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let text = std::fs::read_to_string(&self.path).ok();
        let last = text.and_then(|text| text.trim().parse::<u64>().ok());
        let last = last.filter(|last| *last <= now_seconds);
        let is_due = last.is_some_and(|last| now_seconds - last >= interval.as_secs());
        if is_due || last.is_none() {
            let noted = std::fs::write(&self.path, format!("{now_seconds}\n"));
            if let Err(error) = noted {
                tracing::warn!(path = %self.path.display(), %error, "the time of sweeps is lost");
                // Rather no sweep than one every minute.
                return false;
            }
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn it_is_time_once_in_each_interval_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let calendar = || Calendar::new(dir.path().join("last-sweep"), Some(30 * DAY));
        let at = |days: u32| UNIX_EPOCH + 20_000 * DAY + days * DAY;
        assert!(!calendar().is_due(at(0)), "the first interval begins");
        assert!(!calendar().is_due(at(29)));
        assert!(calendar().is_due(at(30)));
        assert!(!calendar().is_due(at(31)), "it was just swept");
        // Set back: it begins anew.
        assert!(!calendar().is_due(at(5)) && !calendar().is_due(at(34)));
        assert!(calendar().is_due(at(35)));
    }

    #[test]
    fn it_is_never_time_without_an_interval_or_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-sweep");
        std::fs::write(&path, "1").unwrap();
        assert!(!Calendar::new(path, None).is_due(SystemTime::now()));
        let nowhere = dir.path().join("missing/last-sweep");
        assert!(!Calendar::new(nowhere, Some(DAY)).is_due(SystemTime::now()));
    }
}

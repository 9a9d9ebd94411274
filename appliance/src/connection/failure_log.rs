//! Says in the log that requests of a connection fail, without a line for each: a full disk makes
//! thousands a second.

use super::errors::Cause;

/// After a line, so long without one for the same cause.
const QUIET_NS: u64 = 5_000_000_000;

/// What was said of failed requests, by cause: a new one is said at once.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    /// The causes that there were, of which there are few.
    said: Vec<Said>,
}

#[derive(Debug)]
struct Said {
    cause: Cause,
    at_ns: u64,
    /// Failures since then.
    unsaid: u64,
}

impl FailureLog {
    /// A request failed: `Some` if that is to be said, with the number of those of the same cause
    /// that were not said before it.
    pub(super) fn note(&mut self, cause: Cause, now_ns: u64) -> Option<u64> {
        let Some(said) = self.said.iter_mut().find(|said| said.cause == cause) else {
            self.said.push(Said {
                cause,
                at_ns: now_ns,
                unsaid: 0,
            });
            return Some(0);
        };
        if now_ns < said.at_ns + QUIET_NS {
            said.unsaid += 1;
            return None;
        }
        said.at_ns = now_ns;
        Some(std::mem::take(&mut said.unsaid))
    }

    /// Failures of which nothing was said.
    pub(super) fn unsaid(&self) -> u64 {
        self.said.iter().map(|said| said.unsaid).sum()
    }
}

#[cfg(test)]
mod tests {
    use taipan_engine::core::Failure;
    use taipan_nbd::Errno;

    use super::*;

    const FULL: Cause = Cause::Engine(Failure::NoSpace);

    #[test]
    fn a_flood_of_failures_is_one_line_in_five_seconds_with_their_number() {
        let mut log = FailureLog::default();
        assert_eq!(log.note(FULL, 7), Some(0), "the first at once");
        let said = (8..1008).filter_map(|now_ns| log.note(FULL, now_ns));
        assert_eq!(said.count(), 0);
        assert_eq!(log.unsaid(), 1000);
        assert_eq!(log.note(FULL, 7 + QUIET_NS), Some(1000));
        assert_eq!(log.unsaid(), 0);
    }

    #[test]
    fn a_flood_of_one_cause_hides_no_other() {
        let mut log = FailureLog::default();
        let others = [
            Cause::Engine(Failure::Io),
            Cause::Refused(Errno::NoSpc),
            Cause::Beyond,
        ];
        assert_eq!(log.note(FULL, 7), Some(0));
        for cause in others {
            assert_eq!(log.note(FULL, 8), None);
            assert_eq!(log.note(cause, 8), Some(0), "{cause:?}");
            assert_eq!(log.note(cause, 9), None, "{cause:?}");
        }
        assert_eq!(log.unsaid(), 6);
        assert_eq!(log.note(FULL, 8 + QUIET_NS), Some(3));
    }
}

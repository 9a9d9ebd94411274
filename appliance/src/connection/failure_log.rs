//! Says in the log that requests of a connection fail, without a line for each: a full disk makes
//! thousands a second.

/// After a line, so long without one.
const QUIET_NS: u64 = 5_000_000_000;

/// What was said of failed requests.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    said_ns: Option<u64>,
    unsaid: u64,
}

impl FailureLog {
    /// A request failed: `Some` if that is to be said, with the number of those not said before it.
    pub(super) fn note(&mut self, now_ns: u64) -> Option<u64> {
        let quiet = |said_ns| now_ns < said_ns + QUIET_NS;
        if self.said_ns.is_some_and(quiet) {
            self.unsaid += 1;
            return None;
        }
        self.said_ns = Some(now_ns);
        Some(std::mem::take(&mut self.unsaid))
    }

    /// Failures of which nothing was said.
    pub(super) fn unsaid(&self) -> u64 {
        self.unsaid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_one_line_in_five_seconds_with_their_number() {
        let mut log = FailureLog::default();
        assert_eq!(log.note(7), Some(0), "the first at once");
        let said = (8..1008).filter_map(|now_ns| log.note(now_ns));
        assert_eq!(said.count(), 0);
        assert_eq!(log.unsaid(), 1000);
        assert_eq!(log.note(7 + QUIET_NS), Some(1000));
        assert_eq!(log.unsaid(), 0);
    }
}

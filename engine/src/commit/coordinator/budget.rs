//! What a volume asks of the backend: how many requests lately, and whether its budget of them
//! lets a cut wait that time alone makes due.

use std::collections::VecDeque;

/// An hour, over which budgets are counted, in milliseconds.
const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;
const MINUTES: u64 = HOUR_MS / MINUTE_MS;

/// Requests of one volume's commits.
#[derive(Debug, Default)]
pub(super) struct Spending {
    /// Minute and requests in it, of the last hour, oldest first.
    minutes: VecDeque<(u64, u64)>,
    /// The budget has paid for everything asked so far at this time.
    paid_ms: u64,
}

impl Spending {
    /// Notes requests of a volume that may make `per_hour`; 0: as many as it likes. However many
    /// they are, the next commit that its interval makes due waits an hour at most.
    pub(super) fn spend(&mut self, requests: u64, per_hour: u64, now_ms: u64) {
        let minute = now_ms / MINUTE_MS;
        match self.minutes.back_mut() {
            Some((last, count)) if *last == minute => *count += requests,
            _ => self.minutes.push_back((minute, requests)),
        }
        while self.minutes.len() as u64 > MINUTES {
            self.minutes.pop_front();
        }
        let price_ms = match per_hour {
            0 => 0,
            _ => requests.saturating_mul(HOUR_MS) / per_hour,
        };
        let paid_ms = self.paid_ms.max(now_ms).saturating_add(price_ms);
        self.paid_ms = paid_ms.min(now_ms.saturating_add(HOUR_MS));
    }

    /// Before this time no cut is made only because of the interval.
    pub(super) fn paid_ms(&self) -> u64 {
        self.paid_ms
    }

    /// Requests within the last hour, to the minute.
    pub(super) fn last_hour(&self, now_ms: u64) -> u64 {
        let first = (now_ms / MINUTE_MS).saturating_sub(MINUTES - 1);
        let recent = self.minutes.iter().filter(|(minute, _)| *minute >= first);
        recent.map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_paid_for_one_after_the_other_within_an_hour() {
        let mut spending = Spending::default();
        spending.spend(2, 360, 1000);
        assert_eq!(spending.paid_ms(), 1000 + 20_000);
        spending.spend(1, 360, 2000);
        assert_eq!(spending.paid_ms(), 1000 + 30_000);
        spending.spend(1, 360, 100_000);
        assert_eq!(
            spending.paid_ms(),
            110_000,
            "what was not used is not saved"
        );
        spending.spend(100_000, 1, 100_000);
        assert_eq!(spending.paid_ms(), 100_000 + HOUR_MS);
        let mut free = Spending::default();
        free.spend(100_000, 0, 5);
        assert_eq!(free.paid_ms(), 5);
    }

    #[test]
    fn an_hour_of_requests_is_remembered() {
        let mut spending = Spending::default();
        for minute in 0..100 {
            spending.spend(3, 0, minute * MINUTE_MS);
            spending.spend(1, 0, minute * MINUTE_MS + 59_999);
        }
        assert_eq!(spending.last_hour(99 * MINUTE_MS), 240);
        assert_eq!(spending.last_hour(100 * MINUTE_MS), 236);
        assert_eq!(spending.last_hour(99 * MINUTE_MS + HOUR_MS), 0);
        assert_eq!(spending.minutes.len() as u64, MINUTES);
    }
}

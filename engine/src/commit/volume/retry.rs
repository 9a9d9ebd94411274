//! Waiting after failures: exponential, with jitter, bounded, without end.

use super::CommitConfig;
use crate::commit::random::Random;
use crate::error::{Error, ErrorKind};

/// Failures in a row of one kind of work, and when to try again.
#[derive(Default)]
pub(super) struct Retry {
    pub(super) failures: u32,
    /// The last failure of this row.
    pub(super) last: Option<(ErrorKind, String)>,
    at_ms: u64,
    /// Work was held back the last time it was asked for.
    held: bool,
}

impl Retry {
    /// Whether work has to wait at `now_ms`.
    pub(super) fn holds(&mut self, now_ms: u64) -> bool {
        self.held = now_ms < self.at_ms;
        self.held
    }

    /// No work is due, so nothing is held back.
    pub(super) fn let_go(&mut self) {
        self.held = false;
    }

    /// When held work may go on.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.held.then_some(self.at_ms)
    }

    /// Whether it waits because the backend is full.
    pub(super) fn is_for_room(&self) -> bool {
        self.last
            .as_ref()
            .is_some_and(|(kind, _)| *kind == ErrorKind::Full)
    }

    /// The same row of failures, without a wait.
    pub(super) fn at_once(self) -> Self {
        Self { at_ms: 0, ..self }
    }

    /// Ends a row of failures. A wait that another failure has begun stays, so that one piece of
    /// work that succeeds beside a failing one does not make that one spin.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.last = None;
    }

    pub(super) fn failed(
        &mut self,
        error: &Error,
        now_ms: u64,
        config: &CommitConfig,
        random: &mut Random,
    ) {
        let doublings = self.failures.min(32);
        let wait = config.backoff_min_ms.saturating_mul(1 << doublings);
        let wait = random.jittered(wait.min(config.backoff_max_ms));
        *self = Self {
            failures: self.failures.saturating_add(1),
            last: Some((error.kind(), error.to_string())),
            at_ms: now_ms.saturating_add(wait),
            held: true,
        };
    }
}

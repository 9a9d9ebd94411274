//! How long the backend may take for one operation, and how operations of operators are repeated
//! until their outcome is known.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use futures::future::{Either, select};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::registry::random_u64;

/// An operation that moves little is given up after so long.
const DEADLINE: Duration = Duration::from_secs(30);
/// Slowest transfer that is waited for.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// When an operator is told that the outcome is not known yet.
const ANSWER_AFTER: Duration = Duration::from_secs(60);

/// How long the transfer of so many bytes may take.
pub(super) fn deadline(bytes: u64) -> Duration {
    DEADLINE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Awaits `work` for at most `limit`. After that its outcome is unknown: it may still happen.
pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let timer = pin!(glommio::timer::sleep(limit));
    match select(pin!(work), timer).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => {
            let text = format!("{what}: no answer within {} s", limit.as_secs());
            Err(Error::new(ErrorKind::Transient, text))
        }
    }
}

/// The way back to an operator, used once.
pub(crate) struct Answer {
    reply: Option<Sender<Result<()>>>,
    /// What is told when it takes too long.
    pending: &'static str,
    started: Instant,
}

impl Answer {
    pub(super) fn new(reply: Sender<Result<()>>, pending: &'static str) -> Self {
        Self {
            reply: Some(reply),
            pending,
            started: Instant::now(),
        }
    }

    /// Tells the outcome, unless the operator was told already that it takes longer.
    pub(super) fn give(&mut self, result: Result<()>) {
        if let Some(reply) = self.reply.take() {
            // An operator who does not wait any more misses nothing.
            let _ = reply.send(result);
        }
    }

    /// The way back itself, if nothing was told yet.
    pub(super) fn into_reply(self) -> Option<Sender<Result<()>>> {
        self.reply
    }

    /// Tells after a while that the outcome is not known yet, and why.
    fn give_when_late(&mut self, error: &Error) {
        if self.started.elapsed() >= ANSWER_AFTER {
            let text = format!("{}: {error}", self.pending);
            self.give(Err(Error::new(ErrorKind::Transient, text)));
        }
    }
}

/// Whether trying again cannot change anything.
pub(super) fn is_final(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::AlreadyExists
            | ErrorKind::Busy
            | ErrorKind::Fenced
            | ErrorKind::Invalid
            | ErrorKind::NotFound
            | ErrorKind::ReadOnly
    )
}

/// Repeats `attempt` until its outcome is known. An operation that is repeated with the same
/// arguments has one effect; one that is given up half way could have it later, against another.
pub(super) async fn until_known<T, F: Future<Output = Result<T>>>(
    what: &str,
    answer: &mut Answer,
    mut attempt: impl FnMut() -> F,
) -> Result<T> {
    let mut backoff = BACKOFF_FIRST;
    let mut failures = 0u32;
    loop {
        let error = match within(DEADLINE, what, attempt()).await {
            Err(error) if !is_final(error.kind()) => error,
            known => return known,
        };
        // The first failure and then fewer and fewer are worth a line.
        failures += 1;
        if failures.is_power_of_two() {
            tracing::warn!(operation = what, failures, %error, "tried again until it is known");
        }
        answer.give_when_late(&error);
        glommio::timer::sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Between half and whole of `wait`.
fn jittered(wait: Duration) -> Duration {
    let share = random_u64().unwrap_or(0) % 512;
    wait * (512 + share as u32) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_objects_may_take_longer() {
        assert_eq!(deadline(0), DEADLINE);
        assert_eq!(deadline(4 << 20), DEADLINE + Duration::from_secs(32));
    }

    #[test]
    fn what_may_have_happened_is_repeated_until_it_is_known() {
        let (reply, answered) = crossbeam_channel::bounded(1);
        let mut answer = Answer::new(reply, "pending");
        let outcomes = std::cell::RefCell::new(vec![
            Ok(7),
            Err(Error::new(ErrorKind::Full, "full")),
            Err(Error::new(ErrorKind::Transient, "lost")),
        ]);
        let executor = glommio::LocalExecutorBuilder::default().make().unwrap();
        let known = executor.run(until_known("test", &mut answer, || {
            let next = outcomes.borrow_mut().pop().expect("not asked for more");
            async move { next }
        }));
        assert_eq!(known.unwrap(), 7);
        assert!(answered.try_recv().is_err(), "nothing was late");
        let refused: Result<()> = executor.run(until_known("test", &mut answer, || async {
            Err(Error::new(ErrorKind::Fenced, "another writer"))
        }));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    }

    #[test]
    fn a_hung_operation_is_given_up() {
        let executor = glommio::LocalExecutorBuilder::default().make().unwrap();
        let limit = Duration::from_millis(1);
        let hung = within(limit, "put", std::future::pending::<Result<()>>());
        let error = executor.run(hung).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
    }
}

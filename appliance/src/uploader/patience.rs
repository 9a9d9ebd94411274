//! How long the backend may take for one request, and how operations that ask it much are waited
//! for ([`crate::patience`]) and repeated until their outcome is known.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use futures::future::{Either, select};
use taipan_engine::backend::Backend;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::registry::random_u64;

use crate::patience::{Limits, Watch, silent_for};

/// A request that moves little is given up after so long.
const DEADLINE: Duration = Duration::from_secs(30);
/// Slowest transfer that is waited for.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The log tells so often that an operation waits.
const LOG_EVERY: Duration = Duration::from_secs(15);

/// How long the transfer of so many bytes may take.
pub(super) fn deadline(bytes: u64) -> Duration {
    DEADLINE + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Awaits `work`, one request or a known number of them, for at most `limit`. After that its
/// outcome is unknown: it may still happen.
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
}

impl Answer {
    pub(super) fn new(reply: Sender<Result<()>>, pending: &'static str) -> Self {
        Self {
            reply: Some(reply),
            pending,
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

    /// Tells that the outcome is not known yet, and how it stands.
    fn give_pending(&mut self, how: &str) {
        let text = format!("{}: {how}", self.pending);
        self.give(Err(Error::new(ErrorKind::Transient, text)));
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

/// What becomes of an operation that a backend keeps from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeal {
    /// It is repeated until its outcome is known, also after its operator has heard that it takes
    /// longer: given up half way, it could have its effect later, against another.
    UntilKnown,
    /// It is given up when it is late, and can be begun anew: that goes on where this one stopped.
    UntilLate,
}

impl Zeal {
    /// Of somebody who does not ask again.
    pub(super) fn of(insists: bool) -> Self {
        if insists {
            Self::UntilKnown
        } else {
            Self::UntilLate
        }
    }
}

/// One operation that asks the backend, while it is waited for.
struct Attention<'a, A> {
    /// How often the backend has answered.
    answers: A,
    what: &'a str,
    watch: Watch,
    logged: Duration,
}

impl<'a, A: Fn() -> u64> Attention<'a, A> {
    fn new(answers: A, what: &'a str, limits: Limits) -> Self {
        Self {
            watch: Watch::begin(limits, answers(), Instant::now()),
            answers,
            what,
            logged: Duration::ZERO,
        }
    }

    /// Awaits `work` as long as the backend answers; `late` hears after a while how it stands.
    async fn pay<T>(
        &mut self,
        work: impl Future<Output = Result<T>>,
        mut late: impl FnMut(&str),
    ) -> Result<T> {
        self.watch.try_again(Instant::now());
        let mut work = pin!(work);
        loop {
            let timer = pin!(glommio::timer::sleep(self.watch.look_every()));
            if let Either::Left((result, _)) = select(work.as_mut(), timer).await {
                return result;
            }
            let now = Instant::now();
            self.watch.look((self.answers)(), now);
            self.log(now);
            if now >= self.watch.gives_up_at() {
                let what = self.what;
                let silent = silent_for(self.watch.silent(now));
                return Err(Error::new(silent.kind(), format!("{what}: {silent}")));
            }
            if self.watch.is_long(now) {
                late(&self.told(now));
            }
        }
    }

    fn log(&mut self, now: Instant) {
        let waited = self.watch.waited(now);
        if waited >= self.logged + LOG_EVERY {
            self.logged = waited;
            tracing::info!("{}", self.told(now));
        }
    }

    fn told(&self, now: Instant) -> String {
        format!(
            "{}: waiting for the backend, {} s so far, {} s since its last answer",
            self.what,
            self.watch.waited(now).as_secs(),
            self.watch.silent(now).as_secs()
        )
    }
}

/// Awaits `work`, which asks the backend, as long as that answers. After an error its outcome may
/// be unknown.
pub(super) async fn while_answering<T>(
    backend: &dyn Backend,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut attention = Attention::new(|| backend.answers(), what, Limits::default());
    attention.pay(work, |_| {}).await
}

/// Repeats `attempt` until its outcome is known. An operation that is repeated with the same
/// arguments has one effect. Who waits hears after a while that it is still to come.
pub(super) async fn until_known<T>(
    backend: &dyn Backend,
    what: &str,
    answer: &mut Answer,
    attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    with_zeal(backend, what, Zeal::UntilKnown, answer, attempt).await
}

/// The same, with the choice to give it up.
pub(super) async fn with_zeal<T>(
    backend: &dyn Backend,
    what: &str,
    zeal: Zeal,
    answer: &mut Answer,
    attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let attention = Attention::new(|| backend.answers(), what, Limits::default());
    repeat(attention, zeal, answer, attempt).await
}

async fn repeat<T>(
    mut attention: Attention<'_, impl Fn() -> u64>,
    zeal: Zeal,
    answer: &mut Answer,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let mut backoff = BACKOFF_FIRST;
    let mut failures = 0u32;
    loop {
        let attended = attention.pay(attempt(), |how| answer.give_pending(how));
        let error = match attended.await {
            Err(error) if !is_final(error.kind()) => error,
            known => return known,
        };
        // The first failure and then fewer and fewer are worth a line.
        failures += 1;
        if failures.is_power_of_two() {
            let operation = attention.what;
            tracing::warn!(operation, failures, %error, "tried again");
        }
        let now = Instant::now();
        attention.watch.look((attention.answers)(), now);
        if attention.watch.is_late(now) {
            if zeal == Zeal::UntilLate {
                return Err(error);
            }
            answer.give_pending(&error.to_string());
        }
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
mod tests;

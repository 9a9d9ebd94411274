//! How often and how fast a request is repeated, and how long an attempt may take.

use std::future::Future;
use std::time::{Duration, Instant};

use super::failure::{Failure, Remedy};
use super::tally::{Tally, Verb};
use crate::error::{Error, ErrorKind, Result};

/// Bounds on the attempts of one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retries {
    /// Most attempts.
    pub(super) attempts: u32,
    /// No attempt begins so long after the first one began.
    pub(super) total: Duration,
    /// The pause before the second attempt is up to this; it doubles.
    pub(super) pause_first: Duration,
    /// No pause is longer.
    pub(super) pause_max: Duration,
    /// An attempt without a body may take so long.
    pub(super) attempt: Duration,
    /// … and so much longer for each MiB of its body.
    pub(super) attempt_per_mib: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 4,
            total: Duration::from_secs(30),
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(3),
            attempt: Duration::from_secs(15),
            attempt_per_mib: Duration::from_secs(1),
        }
    }
}

/// What may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Happening twice is as good as once.
    Freely,
    /// Only what had no effect for certain: another attempt of a conditional request could not
    /// tell its own earlier effect from somebody else's.
    OnlyIfUnsent,
}

impl Repeat {
    fn allows(self, remedy: Remedy) -> bool {
        match remedy {
            Remedy::Unsent => true,
            Remedy::Again => self == Self::Freely,
            Remedy::Final | Remedy::Exists => false,
        }
    }
}

impl Retries {
    /// Runs `attempt` under its time limit, again while that is allowed and may help.
    pub(super) async fn run<T, F>(
        &self,
        tally: &Tally,
        verb: Verb,
        repeat: Repeat,
        body_bytes: usize,
        mut attempt: impl FnMut() -> F,
    ) -> std::result::Result<T, Failure>
    where
        F: Future<Output = std::result::Result<T, Failure>>,
    {
        let began = Instant::now();
        let mut made = 0;
        loop {
            made += 1;
            let failure = match self.limited(tally, body_bytes, attempt()).await {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            if !failure.is_not_found() && failure.remedy != Remedy::Exists {
                tally.error(verb);
            }
            let pause = self.pause(made);
            let is_late = began.elapsed() + pause >= self.total;
            if made >= self.attempts || is_late || !repeat.allows(failure.remedy) {
                return Err(failure);
            }
            tracing::debug!(error = %failure.error, attempt = made, "a request is repeated");
            tokio::time::sleep(pause).await;
            tally.retry(verb);
        }
    }

    /// One attempt under its time limit.
    pub(super) async fn limited<T>(
        &self,
        tally: &Tally,
        body_bytes: usize,
        attempt: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        let mib = (body_bytes >> 20) as u32;
        let limit = self.attempt + self.attempt_per_mib * mib;
        match tokio::time::timeout(limit, attempt).await {
            Ok(result) => {
                if result.as_ref().err().is_none_or(Failure::is_answer) {
                    tally.answered();
                }
                result
            }
            Err(_) => Err(Failure::unknown(format!(
                "no answer of the bucket within {} s",
                limit.as_secs()
            ))),
        }
    }

    /// The pause after `made` attempts: half of it fixed, half by chance.
    pub(super) fn pause(&self, made: u32) -> Duration {
        let doubled = self.pause_first * (1 << (made - 1).min(16));
        let longest = doubled.min(self.pause_max);
        longest / 2 + longest.mul_f64(chance()) / 2
    }
}

/// A number of 0 to 1 by chance.
fn chance() -> f64 {
    let mut bytes = [0; 2];
    // Without chance everybody pauses alike, which is no harm.
    getrandom::fill(&mut bytes).unwrap_or_default();
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}

/// The result for the caller: an unmet condition is an error here.
pub(super) fn finished<T>(result: std::result::Result<T, Failure>) -> Result<T> {
    result.map_err(|failure| match failure.remedy {
        Remedy::Exists => {
            let message = "the server refused a request without a condition as one";
            Error::new(ErrorKind::Io, message).with_source(failure.error)
        }
        _ => failure.error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick() -> Retries {
        Retries {
            pause_first: Duration::from_millis(1),
            pause_max: Duration::from_millis(2),
            ..Retries::default()
        }
    }

    /// Runs attempts that fail with these remedies and then succeed; gives the attempts made.
    fn attempts(repeat: Repeat, remedies: &[Remedy]) -> (u32, bool) {
        let tally = Tally::default();
        let mut made = 0;
        let attempt = || {
            let remedy = remedies.get(made as usize).copied();
            made += 1;
            async move {
                match remedy {
                    Some(remedy) => Err(Failure::new(remedy, ErrorKind::Transient, "scripted")),
                    None => Ok(()),
                }
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        let result = runtime.block_on(quick().run(&tally, Verb::Put, repeat, 0, attempt));
        let counted = tally
            .counts()
            .iter()
            .map(|count| count.retries)
            .sum::<u64>();
        assert_eq!(counted, u64::from(made - 1));
        (made, result.is_ok())
    }

    #[test]
    fn conditional_requests_are_repeated_only_if_they_had_no_effect() {
        use Remedy::{Again, Exists, Final, Unsent};
        assert_eq!(attempts(Repeat::Freely, &[Again, Unsent, Again]), (4, true));
        assert_eq!(attempts(Repeat::Freely, &[Again; 9]), (4, false));
        assert_eq!(attempts(Repeat::Freely, &[Final]), (1, false));
        assert_eq!(attempts(Repeat::OnlyIfUnsent, &[Again]), (1, false));
        assert_eq!(attempts(Repeat::OnlyIfUnsent, &[Unsent, Unsent]), (3, true));
        assert_eq!(attempts(Repeat::OnlyIfUnsent, &[Unsent, Again]), (2, false));
        assert_eq!(attempts(Repeat::OnlyIfUnsent, &[Exists]), (1, false));
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let retries = Retries::default();
        for made in 1..40 {
            let longest = (retries.pause_first * (1 << (made - 1).min(10))).min(retries.pause_max);
            let pause = retries.pause(made);
            assert!(
                pause >= longest / 2 && pause <= longest,
                "{made}: {pause:?}"
            );
        }
    }

    #[test]
    fn an_attempt_without_an_answer_ends() {
        let retries = Retries {
            attempt: Duration::from_millis(5),
            ..quick()
        };
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        let tally = Tally::default();
        let never = std::future::pending::<std::result::Result<(), Failure>>();
        let limited = retries.limited(&tally, 0, never);
        let failure = runtime.block_on(limited).unwrap_err();
        assert_eq!(failure.remedy, Remedy::Again);
        assert_eq!(failure.error.kind(), ErrorKind::Transient);
        assert_eq!(tally.answers(), 0);
    }

    #[test]
    fn no_is_an_answer_and_a_refusal_to_work_is_none() {
        use Remedy::{Again, Exists, Final, Unsent};
        let tally = Tally::default();
        let mut answers = Vec::new();
        let mut note = |outcome: std::result::Result<(), Failure>| {
            let ready = std::future::ready(outcome);
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_time().build().unwrap();
            // What it was is counted, and of no interest here.
            let _ = runtime.block_on(quick().limited(&tally, 0, ready));
            answers.push(tally.answers());
        };
        let failed = |remedy, kind| Err(Failure::new(remedy, kind, "scripted"));
        note(Ok(()));
        note(failed(Final, ErrorKind::NotFound));
        note(failed(Exists, ErrorKind::AlreadyExists));
        note(failed(Again, ErrorKind::Transient));
        note(failed(Unsent, ErrorKind::Transient));
        note(failed(Final, ErrorKind::Io));
        assert_eq!(answers, [1, 2, 3, 3, 3, 3]);
    }
}

//! How long whatever asks the backend waits for it: as long as it answers. A slow backend is not
//! away, and an operation of many requests takes many times as long as one of them.

use std::future::Future;
use std::time::{Duration, Instant};

use taipan_engine::backend::Backend;
use taipan_engine::error::{Error, ErrorKind, Result};

use crate::deadline::block_on_while;

/// A backend that has answered nothing for so long is taken for away. Longer than any request with
/// its repetitions.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// … and so soon by a start, which can go on without it, and by whoever asks it a first question.
/// Longer than one request of a slow one may take.
pub(crate) const QUESTION_SILENCE_MAX: Duration = Duration::from_secs(20);
/// However it answers: who waits for the outcome of an operation hears of it by then, if only that
/// it is still to come.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(240);
/// What waits is looked after so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bounds on waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For a backend that does not answer.
    pub(crate) silence: Duration,
    /// For the outcome, whoever answers.
    pub(crate) wait: Duration,
    /// Between two looks at them.
    pub(crate) look_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silence: SILENCE_MAX,
            wait: WAIT_MAX,
            look_every: LOOK_EVERY,
        }
    }
}

/// Looks on while something waits for the backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    limits: Limits,
    began: Instant,
    /// When the attempt under way began.
    tried: Instant,
    heard: Instant,
    answers: u64,
}

impl Watch {
    /// Begins now, the backend having answered so often ([`Backend::answers`]).
    pub(crate) fn begin(limits: Limits, answers: u64, now: Instant) -> Self {
        Self {
            limits,
            began: now,
            tried: now,
            heard: now,
            answers,
        }
    }

    /// By now the backend has answered so often.
    pub(crate) fn look(&mut self, answers: u64, now: Instant) {
        if answers > self.answers {
            (self.answers, self.heard) = (answers, now);
        }
    }

    /// Another attempt begins.
    pub(crate) fn try_again(&mut self, now: Instant) {
        self.tried = now;
    }

    /// How long it waits.
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// For how long the backend has answered nothing.
    pub(crate) fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    /// When the attempt under way is given up, unless the backend answers before.
    pub(crate) fn gives_up_at(&self) -> Instant {
        self.heard.max(self.tried) + self.limits.silence
    }

    /// Whether it waits for so long that who waits should hear how it stands.
    pub(crate) fn is_long(&self, now: Instant) -> bool {
        self.waited(now) >= self.limits.wait
    }

    /// The same, or the backend is taken for away.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.silent(now) >= self.limits.silence || self.is_long(now)
    }

    /// When to look again.
    pub(crate) fn look_every(&self) -> Duration {
        self.limits.look_every
    }
}

/// That a backend has not answered for so long.
pub(crate) fn silent_for(silence: Duration) -> Error {
    let seconds = silence.as_secs();
    let text = format!("the backend did not answer within {seconds} s");
    Error::new(ErrorKind::Transient, text)
}

/// Waits on this thread for what `question` brings, as long as the backend is never silent for
/// `silence`. After that the outcome is unknown: it may still happen.
pub(crate) fn block_while_answering<T>(
    backend: &dyn Backend,
    silence: Duration,
    question: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limits = Limits {
        silence,
        ..Limits::default()
    };
    let mut watch = Watch::begin(limits, backend.answers(), Instant::now());
    let deadline = || {
        watch.look(backend.answers(), Instant::now());
        watch.gives_up_at()
    };
    block_on_while(question, deadline).unwrap_or_else(|| Err(silent_for(silence)))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use taipan_engine::backend::MemBackend;

    use super::*;

    #[test]
    fn a_backend_that_answers_is_waited_for_and_the_operator_hears_of_it() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut watch = Watch::begin(Limits::default(), 7, began);
        // An answer every half a minute, as of a request that takes 10 s and is repeated.
        for turn in 0..8 {
            watch.look(8 + turn, at(30 * turn));
            assert!(!watch.is_late(at(30 * turn + 29)), "{turn}");
        }
        assert!(
            watch.is_late(at(240)),
            "it answers still, after four minutes"
        );
        assert_eq!(watch.silent(at(240)), Duration::from_secs(30));
        assert_eq!(watch.waited(at(240)), Duration::from_secs(240));
    }

    #[test]
    fn a_silent_backend_is_away_after_a_minute_however_often_it_is_looked_at() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut watch = Watch::begin(Limits::default(), 7, began);
        watch.look(8, at(5));
        for seconds in 6..65 {
            watch.look(8, at(seconds));
            assert!(!watch.is_late(at(seconds)), "{seconds}");
        }
        watch.look(8, at(65));
        assert!(watch.is_late(at(65)));
        assert_eq!(watch.gives_up_at(), at(65));
        // Who waits still knows; the next attempt has as much time as the first.
        watch.try_again(at(70));
        assert!(watch.is_late(at(70)));
        assert_eq!(watch.gives_up_at(), at(130));
    }

    #[test]
    fn a_question_without_an_answer_ends() {
        let silence = Duration::from_millis(1);
        let question = pending::<Result<()>>();
        let asked = block_while_answering(&MemBackend::new(), silence, question);
        assert_eq!(asked.unwrap_err().kind(), ErrorKind::Transient);
    }
}

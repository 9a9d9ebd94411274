//! Tests of waiting for a slow backend, and for one that is away.

use std::cell::{Cell, RefCell};
use std::future::pending;

use crossbeam_channel::{Receiver, bounded};

use super::*;

/// Limits that a test reaches.
const SHORT: Limits = Limits {
    silence: Duration::from_millis(20),
    wait: Duration::from_secs(3600),
    look_every: Duration::from_millis(2),
};

fn answer() -> (Answer, Receiver<Result<()>>) {
    let (reply, answered) = bounded(1);
    (Answer::new(reply, "it is pending"), answered)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let executor = glommio::LocalExecutorBuilder::default().make().unwrap();
    executor.run(work)
}

fn lost() -> Error {
    Error::new(ErrorKind::Transient, "lost")
}

#[test]
fn larger_objects_may_take_longer() {
    assert_eq!(deadline(0), DEADLINE);
    assert_eq!(deadline(4 << 20), DEADLINE + Duration::from_secs(32));
}

#[test]
fn what_may_have_happened_is_repeated_until_it_is_known() {
    let (mut answer, answered) = answer();
    let outcomes = RefCell::new(vec![
        Ok(7),
        Err(Error::new(ErrorKind::Full, "full")),
        Err(lost()),
    ]);
    let attention = Attention::new(|| 0, "test", Limits::default());
    let known = run(repeat(
        attention,
        Zeal::UntilKnown,
        &mut answer,
        async || outcomes.borrow_mut().pop().expect("not asked for more"),
    ));
    assert_eq!(known.unwrap(), 7);
    assert!(answered.try_recv().is_err(), "nothing was late");
    let attention = Attention::new(|| 0, "test", Limits::default());
    let fenced = async || Err(Error::new(ErrorKind::Fenced, "another writer"));
    let refused: Result<()> = run(repeat(attention, Zeal::UntilKnown, &mut answer, fenced));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn a_hung_request_is_given_up() {
    let limit = Duration::from_millis(1);
    let error = run(within(limit, "put", pending::<Result<()>>())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
}

#[test]
fn a_slow_backend_is_waited_for_while_it_answers() {
    let looks = Cell::new(0u64);
    // One answer between two looks, for longer than it may be silent.
    let answers = || {
        looks.set(looks.get() + 1);
        looks.get()
    };
    let enough = 4 * SHORT.silence.as_millis() as u64 / SHORT.look_every.as_millis() as u64;
    let (mut answer, answered) = answer();
    let attempts = Cell::new(0);
    let attention = Attention::new(answers, "test", SHORT);
    let known = run(repeat(
        attention,
        Zeal::UntilLate,
        &mut answer,
        async || {
            attempts.set(attempts.get() + 1);
            while looks.get() < enough {
                glommio::timer::sleep(Duration::from_millis(1)).await;
            }
            Ok(7)
        },
    ));
    assert_eq!((known.unwrap(), attempts.get()), (7, 1));
    assert!(answered.try_recv().is_err(), "nothing was late");
}

#[test]
fn an_operation_that_lasts_is_told_of_and_goes_on() {
    let (mut answer, answered) = answer();
    let limits = Limits {
        wait: Duration::ZERO,
        silence: Duration::from_secs(3600),
        ..SHORT
    };
    let attention = Attention::new(|| 0, "make a test", limits);
    let known = run(repeat(
        attention,
        Zeal::UntilKnown,
        &mut answer,
        async || {
            while answered.is_empty() {
                glommio::timer::sleep(Duration::from_millis(1)).await;
            }
            Ok(7)
        },
    ));
    assert_eq!(known.unwrap(), 7);
    let told = answered.recv().unwrap().unwrap_err().to_string();
    let begin = "it is pending: make a test: waiting for the backend, ";
    assert!(told.starts_with(begin), "{told}");
}

#[test]
fn a_silent_backend_is_asked_again_or_given_up() {
    for zeal in [Zeal::UntilKnown, Zeal::UntilLate] {
        let (mut answer, answered) = answer();
        let attempts = Cell::new(0);
        let attention = Attention::new(|| 0, "test", SHORT);
        let known = run(repeat(attention, zeal, &mut answer, async || {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                1 => pending().await,
                _ => Ok(7),
            }
        }));
        let told = answered.try_recv().is_ok_and(|told| told.is_err());
        match zeal {
            Zeal::UntilKnown => assert_eq!((known.unwrap(), told), (7, true)),
            Zeal::UntilLate => {
                assert_eq!(known.unwrap_err().kind(), ErrorKind::Transient);
                assert_eq!((attempts.get(), told), (1, false));
            }
        }
    }
}

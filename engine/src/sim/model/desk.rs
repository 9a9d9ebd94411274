//! A backend whose requests wait until the explorer decides what becomes of each.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::executor::block_on;

use crate::backend::{Backend, BoxFuture, Listed, MemBackend, Probe, Put};
use crate::error::Result;
use crate::object::ObjectKey;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Create(ObjectKey, Bytes),
    Replace(ObjectKey, Bytes),
    Get(ObjectKey),
    Range(ObjectKey, u64, u64),
    Length(ObjectKey),
    List(String, Option<String>, usize),
    Delete(ObjectKey),
}

/// What the backend says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Put(Put),
    Bytes(Bytes),
    Length(Option<u64>),
    Listed(Vec<Listed>),
    Done,
}

impl Ask {
    /// Whether it changes the bucket.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self,
            Self::Create(..) | Self::Replace(..) | Self::Delete(..)
        )
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(..))
    }

    /// Carries it out. `unconditional`: creations replace what is there, in a bad store.
    pub(super) fn carry_out(&self, bucket: &MemBackend, unconditional: bool) -> Result<Answer> {
        block_on(async {
            Ok(match self {
                Self::Create(key, body) if unconditional => {
                    bucket.put(key, body.clone()).await?;
                    Answer::Put(Put::Created)
                }
                Self::Create(key, body) => {
                    Answer::Put(bucket.put_if_absent(key, body.clone()).await?)
                }
                Self::Replace(key, body) => {
                    bucket.put(key, body.clone()).await?;
                    Answer::Done
                }
                Self::Get(key) => Answer::Bytes(bucket.get(key).await?),
                Self::Range(key, offset, len) => {
                    Answer::Bytes(bucket.get_range(key, *offset, *len).await?)
                }
                Self::Length(key) => Answer::Length(bucket.head(key).await?),
                Self::List(prefix, after, max) => {
                    Answer::Listed(bucket.list(prefix, after.as_deref(), *max).await?)
                }
                Self::Delete(key) => {
                    bucket.delete(key).await?;
                    Answer::Done
                }
            })
        })
    }
}

struct Waiting {
    number: u64,
    ask: Ask,
    waker: Option<Waker>,
    answer: Option<Result<Answer>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    waiting: Vec<Waiting>,
}

/// One process's connection to the bucket. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Desk(Arc<Mutex<Open>>);

impl Desk {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests without an answer, oldest first.
    pub(super) fn asked(&self) -> Vec<Ask> {
        let open = self.open();
        let unanswered = open.waiting.iter().filter(|w| w.answer.is_none());
        unanswered.map(|waiting| waiting.ask.clone()).collect()
    }

    /// Answers the `at`th of [`Desk::asked`].
    pub(super) fn answer(&self, at: usize, answer: Result<Answer>) {
        let mut open = self.open();
        let mut unanswered = open.waiting.iter_mut().filter(|w| w.answer.is_none());
        let waiting = unanswered.nth(at).expect("an open request");
        waiting.answer = Some(answer);
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }

    fn ask(&self, ask: Ask) -> Asked {
        let mut open = self.open();
        open.next += 1;
        let number = open.next;
        open.waiting.push(Waiting {
            number,
            ask,
            waker: None,
            answer: None,
        });
        Asked {
            desk: self.clone(),
            number,
        }
    }
}

/// A request under way; dropping it withdraws the interest in the answer.
struct Asked {
    desk: Desk,
    number: u64,
}

impl Future for Asked {
    type Output = Result<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut open = self.desk.open();
        let mut all = open.waiting.iter_mut();
        let waiting = all
            .find(|waiting| waiting.number == self.number)
            .expect("it stays until it is dropped");
        match waiting.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                waiting.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let number = self.number;
        self.desk.open().waiting.retain(|w| w.number != number);
    }
}

impl Backend for Desk {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            match self.ask(Ask::Create(key.clone(), body)).await? {
                Answer::Put(put) => Ok(put),
                other => unreachable!("{other:?}"),
            }
        })
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.ask(Ask::Replace(key.clone(), body)).await.map(|_| ()) })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move { bytes_of(self.ask(Ask::Get(key.clone())).await?) })
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move { bytes_of(self.ask(Ask::Range(key.clone(), offset, len)).await?) })
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async move {
            match self.ask(Ask::Length(key.clone())).await? {
                Answer::Length(length) => Ok(length),
                other => unreachable!("{other:?}"),
            }
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(async move {
            let ask = Ask::List(prefix.to_owned(), after.map(str::to_owned), max);
            match self.ask(ask).await? {
                Answer::Listed(listed) => Ok(listed),
                other => unreachable!("{other:?}"),
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.ask(Ask::Delete(key.clone())).await.map(|_| ()) })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        Box::pin(async { MemBackend::new().probe().await })
    }

    fn describe(&self) -> String {
        "the model's bucket".to_owned()
    }
}

fn bytes_of(answer: Answer) -> Result<Bytes> {
    match answer {
        Answer::Bytes(bytes) => Ok(bytes),
        other => unreachable!("{other:?}"),
    }
}

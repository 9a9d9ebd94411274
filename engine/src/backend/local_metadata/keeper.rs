//! The thread that writes copies: an fsync takes its time, and no executor is to wait for it.

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use futures::channel::oneshot;

use super::copies::Copies;

type Job = Box<dyn FnOnce(&Copies) + Send>;

/// Changes copies on a thread of its own, in the order in which it was asked. The thread ends when
/// all that it was asked is done and the keeper is dropped.
pub(super) struct Keeper {
    jobs: Sender<Job>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Panics
    /// If the system has no thread left: that is a start that cannot go on.
    pub(super) fn of(copies: Copies) -> Self {
        let (jobs, asked) = unbounded::<Job>();
        std::thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || work(&asked, &copies))
            .expect("a thread for the copies of metadata");
        Self { jobs }
    }

    /// Changes copies; done, and durable if the change says so, when this returns. It is done even
    /// if nobody waits for it any more. Who asks waits, so the queue is as long as requests are in
    /// flight.
    pub(super) async fn change(&self, change: impl FnOnce(&Copies) + Send + 'static) {
        let (tell, done) = oneshot::channel();
        let job: Job = Box::new(move |copies| {
            change(copies);
            // Whoever asked may have gone.
            let _ = tell.send(());
        });
        self.jobs
            .send(job)
            .expect("the thread runs while it is asked");
        done.await.expect("the thread does not panic");
    }
}

/// Does what is asked; with nothing to do, makes durable what will have to be.
fn work(asked: &Receiver<Job>, copies: &Copies) {
    loop {
        let job = match asked.try_recv() {
            Ok(job) => Ok(job),
            Err(TryRecvError::Empty) if copies.sync_ahead() => continue,
            Err(_) => asked.recv(),
        };
        match job {
            Ok(job) => job(copies),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::FutureExt;
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn changes_are_done_in_order_on_another_thread_even_if_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::of(Copies::of(dir.path()));
        let (hold, held) = crossbeam_channel::bounded::<()>(0);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = |number| {
            let seen = Arc::clone(&seen);
            move |_: &Copies| {
                let thread = std::thread::current().name().map(ToOwned::to_owned);
                seen.lock().unwrap().push((number, thread));
            }
        };
        let first = note(1);
        let waits = keeper.change(move |copies| {
            held.recv().unwrap();
            first(copies);
        });
        let mut waits = Box::pin(waits);
        assert!(waits.as_mut().now_or_never().is_none(), "it is held up");
        assert!(keeper.change(note(2)).now_or_never().is_none());
        drop(waits);
        hold.send(()).unwrap();
        block_on(keeper.change(note(3)));
        let seen = seen.lock().unwrap();
        let own = |number| (number, Some("metadata".to_owned()));
        assert_eq!(*seen, [own(1), own(2), own(3)]);
    }
}

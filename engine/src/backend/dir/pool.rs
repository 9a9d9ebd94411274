//! A bounded pool of threads that turns blocking work into futures of any executor.

use crossbeam_channel::{Receiver, Sender, TrySendError};
use futures::channel::oneshot;

use crate::backend::BoxFuture;
use crate::error::{Error, ErrorKind, Result};

type Job = Box<dyn FnOnce() + Send>;

const STACK_BYTES: usize = 512 << 10;

/// Threads and the bounded queue before them. They end when the pool is dropped and the queue is
/// empty; nobody waits for them, because one may hang on a dead mount.
pub(super) struct Pool {
    name: &'static str,
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts the threads; `nice` lowers their priority by so much.
    pub(super) fn start(
        name: &'static str,
        threads: usize,
        queue: usize,
        nice: i32,
    ) -> Result<Self> {
        let (jobs, waiting) = crossbeam_channel::bounded::<Job>(queue.max(1));
        for index in 0..threads.max(1) {
            let waiting: Receiver<Job> = waiting.clone();
            std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    // Refused at worst, and then the work is done at full priority.
                    let _ = rustix::process::setpriority_process(None, nice);
                    waiting.iter().for_each(|job| job());
                })
                .map_err(|e| Error::io(format!("starting thread {name}-{index}"), e))?;
        }
        Ok(Self { name, jobs })
    }

    /// Queues `work` when first polled. Dropping the future later does not undo it.
    pub(super) fn run<'a, T: Send + 'static>(
        &'a self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            let job = Box::new(move || {
                // Nobody may wait for the result any more.
                let _unwanted = sender.send(work());
            });
            match self.jobs.try_send(job) {
                Ok(()) => receiver.await.unwrap_or_else(|_| {
                    let message = format!("a {} thread ended within an operation", self.name);
                    Err(Error::new(ErrorKind::Io, message))
                }),
                Err(TrySendError::Full(_)) => Err(Error::new(
                    ErrorKind::Transient,
                    format!("the queue of the {} threads is full; try again", self.name),
                )),
                Err(TrySendError::Disconnected(_)) => Err(Error::new(
                    ErrorKind::Io,
                    format!("all {} threads have ended", self.name),
                )),
            }
        })
    }
}

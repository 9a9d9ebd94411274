//! A thread that runs requests on a tokio runtime of its own, and hands results to any executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::channel::oneshot;
use rustix::thread::CpuSet;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::backend::BoxFuture;
use crate::error::{Error, ErrorKind, Result};

/// Threads beside the lane's own that look host names up.
const RESOLVER_THREADS: usize = 2;

/// A thread with a runtime. It ends when the lane is dropped; requests under way end with it.
pub(super) struct Lane {
    handle: Handle,
    // Dropped with the lane, and so tells the thread to end.
    _running: oneshot::Sender<()>,
}

impl Lane {
    /// Starts the thread, on `cpu` if one is given, its priority lowered by `nice`.
    pub(super) fn start(name: &'static str, cpu: Option<usize>, nice: i32) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(RESOLVER_THREADS)
            .build()
            .map_err(|e| Error::io(format!("making the runtime of {name}"), e))?;
        let handle = runtime.handle().clone();
        let (_running, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                settle(name, cpu, nice);
                // An error says that the lane is gone, which is what is waited for.
                let _gone = runtime.block_on(ended);
                runtime.shutdown_background();
            })
            .map_err(|e| Error::io(format!("starting thread {name}"), e))?;
        Ok(Self { handle, _running })
    }

    /// Runs `task` on the lane's thread until it ends or the lane is dropped.
    pub(super) fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(task));
    }

    /// Whether the caller is a task of this lane.
    fn is_here(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.handle.id())
    }

    /// Runs `work` on the lane's thread when first polled and the class has a place; dropping the
    /// future cancels it. On that thread it is a part of the caller's task.
    pub(super) fn run<'a, T: Send + 'static>(
        &'a self,
        class: &'a Class,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let place = class.enter()?;
            let permits = Arc::clone(&class.permits);
            let task = async move {
                let _place = place;
                // Never closed, so this only waits.
                let _permit = permits.acquire_owned().await;
                work.await
            };
            match self.is_here() {
                true => task.await,
                false => CancelledOnDrop(self.handle.spawn(task)).await,
            }
        })
    }
}

/// Pins the thread and lowers its priority; both are wishes.
fn settle(name: &str, cpu: Option<usize>, nice: i32) {
    if let Some(cpu) = cpu.filter(|&cpu| cpu < CpuSet::MAX_CPU) {
        let mut set = CpuSet::new();
        set.set(cpu);
        if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
            tracing::warn!(name, cpu, %error, "a thread could not be pinned");
        }
    }
    // Refused at worst, and then the work is done at full priority.
    let _ = rustix::process::setpriority_process(None, nice);
}

/// A kind of request: how many at once, and how many may wait.
pub(super) struct Class {
    name: &'static str,
    permits: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    inside_max: usize,
}

impl Class {
    /// `at_once` requests run, `waiting` more may wait.
    pub(super) fn new(name: &'static str, at_once: usize, waiting: usize) -> Self {
        Self {
            name,
            permits: Arc::new(Semaphore::new(at_once)),
            inside: Arc::default(),
            inside_max: at_once + waiting,
        }
    }

    fn enter(&self) -> Result<Place> {
        let place = Place(Arc::clone(&self.inside));
        if self.inside.fetch_add(1, Ordering::Relaxed) < self.inside_max {
            return Ok(place);
        }
        Err(Error::new(
            ErrorKind::Transient,
            format!(
                "too many {} of the bucket are waiting; try again",
                self.name
            ),
        ))
    }
}

/// A request that runs or waits; gives its place back when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct CancelledOnDrop<T>(JoinHandle<Result<T>>);

impl<T> Future for CancelledOnDrop<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        Pin::new(&mut self.0).poll(context).map(|joined| {
            joined.unwrap_or_else(|error| {
                let message = "a request of the bucket ended without a result";
                Err(Error::new(ErrorKind::Io, message).with_source(error))
            })
        })
    }
}

impl<T> Drop for CancelledOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::executor::block_on;
    use futures::future::{FutureExt, pending};

    use super::*;

    #[test]
    fn work_runs_on_the_lane_and_its_result_arrives_in_any_executor() {
        let lane = Lane::start("s3-test", None, 0).unwrap();
        let class = Class::new("tests", 1, 0);
        let work = async {
            // Needs tokio's timer, which block_on does not have.
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(std::thread::current().name().map(ToOwned::to_owned))
        };
        let name = block_on(lane.run(&class, work)).unwrap();
        assert_eq!(name.as_deref(), Some("s3-test"));
    }

    #[test]
    fn work_of_the_lane_s_own_tasks_starts_no_other_task() {
        let lane = Arc::new(Lane::start("s3-test", None, 0).unwrap());
        let (sender, ids) = oneshot::channel();
        let own = Arc::clone(&lane);
        lane.spawn(Box::pin(async move {
            let class = Class::new("tests", 1, 0);
            let inner = own.run(&class, async { Ok(tokio::task::id()) }).await;
            sender.send((tokio::task::id(), inner.unwrap())).unwrap();
        }));
        let (outer, inner) = block_on(ids).unwrap();
        assert_eq!(outer, inner);
    }

    #[test]
    fn a_full_class_refuses_and_a_dropped_future_frees_its_place() {
        let lane = Lane::start("s3-test", None, 0).unwrap();
        let class = Class::new("tests", 1, 1);
        let mut first = lane.run(&class, pending::<Result<()>>());
        let mut second = lane.run(&class, pending::<Result<()>>());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        let third = block_on(lane.run(&class, async { Ok(()) })).unwrap_err();
        assert_eq!(third.kind(), ErrorKind::Transient);
        drop((first, second));
        // The places come free on the lane's thread.
        while block_on(lane.run(&class, async { Ok(()) })).is_err() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_panic_is_an_error_of_that_request_only() {
        let lane = Lane::start("s3-test", None, 0).unwrap();
        let class = Class::new("tests", 1, 1);
        let failed = block_on(lane.run(&class, async { panic!("on purpose") as Result<()> }));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
        block_on(lane.run(&class, async { Ok(()) })).unwrap();
    }
}

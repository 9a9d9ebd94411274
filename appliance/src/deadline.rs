//! Waits for a future on this thread, but not for ever.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` here until it is done or `deadline` has passed; then it is dropped, and `None`
/// returned. What it asked of others may still happen.
pub fn block_on_until<T>(future: impl Future<Output = T>, deadline: Instant) -> Option<T> {
    block_on_while(future, || deadline)
}

/// As [`block_on_until`], with a deadline that may move while the future makes progress.
pub fn block_on_while<T>(
    future: impl Future<Output = T>,
    mut deadline: impl FnMut() -> Instant,
) -> Option<T> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return Some(done);
        }
        let left = deadline().saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_done_in_time_is_returned_and_what_hangs_is_given_up() {
        let late = Instant::now() + Duration::from_secs(60);
        let (sender, receiver) = futures::channel::oneshot::channel();
        let other = thread::spawn(move || sender.send(7));
        assert_eq!(block_on_until(receiver, late), Some(Ok(7)));
        other.join().unwrap().unwrap();
        let hangs = std::future::pending::<()>();
        assert_eq!(block_on_until(hangs, Instant::now()), None);
        // Moved on twice, then no more.
        let mut moved = 0;
        let moves = || {
            moved += 1;
            Instant::now() + Duration::from_millis(if moved < 3 { 1 } else { 0 })
        };
        assert_eq!(block_on_while(std::future::pending::<()>(), moves), None);
        assert!(moved >= 3);
    }
}

//! Bodies on their way: received whole, sent whole, cut short, or at a limited rate.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::locked;
use super::reply::Refusal;

/// Largest body that is taken.
const BODY_BYTES_MAX: usize = 1 << 30;
/// Memory that is set aside on the word of a Content-Length.
const AHEAD_BYTES_MAX: usize = 64 << 20;
/// Pieces in which a rate is kept.
const PIECE_BYTES: usize = 64 << 10;
/// Time for what was sent so far to leave before a connection is cut.
const BEFORE_CUT: Duration = Duration::from_millis(50);

/// Bytes that one piece of [`Prepared`] memory takes: a chunk with its header and checksums.
const PREPARED_BYTES: usize = (4 << 20) + (64 << 10);

/// Memory for bodies that was touched before anything is measured. Pages that a process touches
/// first take the kernel, and below it the host of a virtual machine, some microseconds each: a
/// server elsewhere would not take those from what is measured on this machine.
#[derive(Debug)]
pub(crate) struct Prepared(Mutex<Vec<Vec<u8>>>);

impl Prepared {
    /// At least so many bytes.
    pub(crate) fn of(bytes: usize) -> Self {
        // Anything but zeros, which the allocator has without touching them.
        let piece = || vec![1; PREPARED_BYTES];
        let pieces = (0..bytes.div_ceil(PREPARED_BYTES)).map(|_| piece());
        Self(Mutex::new(pieces.collect()))
    }

    /// An empty vector with room for `len` bytes, touched before as long as there is some.
    fn take(&self, len: usize) -> Vec<u8> {
        let small = len <= PREPARED_BYTES / 2;
        let piece = match small || len > PREPARED_BYTES {
            true => None,
            false => locked(&self.0).pop(),
        };
        let mut room = piece.unwrap_or_else(|| Vec::with_capacity(len));
        room.clear();
        room
    }
}

/// The server cuts the connection here.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut by a scripted fault")
    }
}

impl std::error::Error for Cut {}

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A link of so many bytes per second, shared by all that go through it.
#[derive(Debug)]
pub(crate) struct Limiter {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Limiter {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Mutex::new(None),
        }
    }

    /// Takes the link for so many bytes; when they are through.
    fn reserve(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        let mut free_at = locked(&self.free_at);
        let begin = free_at.map_or(now, |free| free.max(now));
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let end = begin + takes;
        *free_at = Some(end);
        end
    }
}

fn reserve_all(limits: &[Arc<Limiter>], bytes: usize) -> Option<Instant> {
    limits.iter().map(|limit| limit.reserve(bytes)).max()
}

/// Receives a request's body.
///
/// The outer error is a connection that ended; the inner one refuses a body that is too large.
pub(crate) async fn receive(
    mut incoming: Incoming,
    limits: &[Arc<Limiter>],
    prepared: &Prepared,
) -> Result<Result<Bytes, Refusal>, Cut> {
    let told = incoming.size_hint().lower();
    if told > BODY_BYTES_MAX as u64 {
        return Ok(Err(Refusal::too_large()));
    }
    let mut body = prepared.take((told as usize).min(AHEAD_BYTES_MAX));
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(|_| Cut)?.into_data() else {
            continue;
        };
        if body.len() + data.len() > BODY_BYTES_MAX {
            return Ok(Err(Refusal::too_large()));
        }
        body.extend_from_slice(&data);
        if let Some(through) = reserve_all(limits, data.len()) {
            sleep_until(through).await;
        }
    }
    // Not cut to its length first, which would touch all of it again.
    Ok(Ok(Bytes::from_owner(body)))
}

/// The body of a reply.
pub(crate) struct ReplyBody {
    rest: Bytes,
    /// Bytes that are told but never sent.
    missing: usize,
    limits: Vec<Arc<Limiter>>,
    wait: Option<Pin<Box<Sleep>>>,
    cut: bool,
}

impl ReplyBody {
    /// All of `body`.
    pub(crate) fn whole(body: Bytes) -> Self {
        Self {
            rest: body,
            missing: 0,
            limits: Vec::new(),
            wait: None,
            cut: false,
        }
    }

    /// At most as fast as the limits say.
    #[must_use]
    pub(crate) fn limited(mut self, limits: Vec<Arc<Limiter>>) -> Self {
        self.limits = limits;
        self
    }

    /// Only the first `bytes`; then the connection is cut.
    #[must_use]
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        let sent = bytes.min(self.rest.len());
        self.missing = self.rest.len() - sent;
        self.rest.truncate(sent);
        self.cut = true;
        self
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(wait) = &mut self.wait {
            if wait.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.wait = None;
            if self.rest.is_empty() && self.cut {
                return Poll::Ready(Some(Err(Cut)));
            }
        }
        if self.rest.is_empty() {
            if !self.cut {
                return Poll::Ready(None);
            }
            let mut wait = Box::pin(sleep_until(Instant::now() + BEFORE_CUT));
            // Registers the waker; the time has not come.
            let _ = wait.as_mut().poll(context);
            self.wait = Some(wait);
            return Poll::Pending;
        }
        let piece = if self.limits.is_empty() {
            self.rest.len()
        } else {
            PIECE_BYTES.min(self.rest.len())
        };
        let piece = self.rest.split_to(piece);
        if let Some(through) = reserve_all(&self.limits, piece.len()) {
            self.wait = Some(Box::pin(sleep_until(through)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && !self.cut
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.rest.len() + self.missing) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_memory_is_taken_for_large_bodies_until_there_is_none() {
        let prepared = Prepared::of(PREPARED_BYTES + 1);
        assert_eq!(prepared.take(100).capacity(), 100);
        for _ in 0..2 {
            let room = prepared.take(4 << 20);
            assert!(room.is_empty());
            assert_eq!(room.capacity(), PREPARED_BYTES);
        }
        assert_eq!(prepared.take(4 << 20).capacity(), 4 << 20);
        assert!(prepared.take(PREPARED_BYTES + 1).capacity() > PREPARED_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_shared_in_order() {
        let link = Limiter::new(1000);
        let begin = Instant::now();
        assert_eq!(link.reserve(500) - begin, Duration::from_millis(500));
        assert_eq!(link.reserve(500) - begin, Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(link.reserve(1000) - begin, Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limited_body_takes_its_time_and_comes_whole() {
        let body = Bytes::from(vec![7; 200_000]);
        let limit = Arc::new(Limiter::new(100_000));
        let begin = Instant::now();
        let sent = ReplyBody::whole(body.clone()).limited(vec![limit]);
        let got = sent.collect().await.expect("a body").to_bytes();
        assert_eq!(got, body);
        assert!(
            begin.elapsed() >= Duration::from_millis(1300),
            "{:?}",
            begin.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_body_tells_its_whole_length() {
        let body = ReplyBody::whole(Bytes::from_static(b"0123456789")).cut_after(4);
        assert_eq!(body.size_hint().exact(), Some(10));
        let mut body = Box::pin(body);
        let first = body.frame().await.expect("a frame").expect("data");
        assert_eq!(first.into_data().expect("data"), "0123");
        assert!(body.frame().await.expect("a frame").is_err());
    }
}

//! One ranged GET: its time limit, and what it counts.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use taipan_engine::backend::Backend;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::failpoint;
use taipan_engine::object::ObjectKey;

use crate::metrics::{BackendCounters, BackendOp};

/// An attempt is given up after this share of the deadline, so that a connection that went silent
/// leaves time for another one. A backend that needs ten seconds for an answer must stay usable.
const ATTEMPTS_WITHIN_DEADLINE: u32 = 3;
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

/// What all GETs need.
#[derive(Clone)]
pub(super) struct Gets {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) counters: Arc<BackendCounters>,
    /// How long a read may wait in all.
    pub(super) deadline: Duration,
}

impl Gets {
    /// Waits `delay`, then reads `range` of an object, once, and says how long that took. A silent
    /// backend is `Transient`.
    pub(super) async fn get(
        self,
        object: ObjectKey,
        range: Range<u64>,
        delay: Duration,
    ) -> (Duration, Result<Bytes>) {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let started = Instant::now();
        let limit = (self.deadline / ATTEMPTS_WITHIN_DEADLINE).max(ATTEMPT_MIN);
        let result = match failpoint::hit("chunk.get") {
            Ok(()) => {
                let get = self
                    .backend
                    .get_range(&object, range.start, range.end - range.start);
                tokio::time::timeout(limit, get)
                    .await
                    .unwrap_or_else(|_| Err(silent(limit)))
            }
            Err(error) => Err(Error::io("read a chunk (failpoint)", error)),
        };
        let bytes = result.as_ref().ok().map(|bytes| bytes.len() as u64);
        let took = started.elapsed();
        self.counters.done(BackendOp::Get, bytes, took);
        let result = result.map_err(|error| error.with_path(object.as_str()));
        (took, result)
    }
}

fn silent(limit: Duration) -> Error {
    let text = format!("the backend did not answer within {limit:?}");
    Error::new(ErrorKind::Transient, text)
}

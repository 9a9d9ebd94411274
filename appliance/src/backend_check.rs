//! Whether the backend keeps conditional writes, on which the fencing of two writers rests: tried
//! at start, and until it is known nothing is put or deleted.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::Shared;
use taipan_engine::backend::{
    self, Backend, BoxFuture, ConditionalWrites, Listed, LocalFile, OpenOptions, Probe, Put,
    VerbCounts,
};
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::object::{ChunkKey, ObjectKey};

use crate::config::{Config, Fencing};

/// How long a start waits for the result; a backend that is away is tried again later.
const START_PATIENCE: Duration = Duration::from_secs(3);

/// A backend whose abilities are found out before anything in it is changed.
pub(crate) struct CheckedBackend {
    inner: Arc<dyn Backend>,
    fencing: Fencing,
    found: OnceLock<Probe>,
    /// The probe under way. Those who wait for it may give up: it goes on.
    probing: Mutex<Option<Probing>>,
    mismatches: AtomicU64,
}

/// A probe that several wait for.
type Probing = Shared<BoxFuture<'static, std::result::Result<Probe, (ErrorKind, String)>>>;

/// Opens the configured backend and checks it.
pub(crate) fn open_checked(config: &Config, data_dir: &Path) -> Result<Arc<CheckedBackend>> {
    let options = OpenOptions {
        default_dir: &data_dir.join("objects"),
        cpu: config.cores.pin.then_some(config.cores.uploader),
    };
    let backend = backend::open_with(&config.backend, &options)?;
    backend_check(backend, config.fencing)
}

/// Probes `inner`. Refuses one that cannot keep two writers apart, unless `fencing` allows it. One
/// that does not answer is no reason not to start: what was flushed is served without it.
fn backend_check(inner: Arc<dyn Backend>, fencing: Fencing) -> Result<Arc<CheckedBackend>> {
    let checked = Arc::new(CheckedBackend {
        inner,
        fencing,
        found: OnceLock::new(),
        probing: Mutex::default(),
        mismatches: AtomicU64::new(0),
    });
    let probed = Arc::clone(&checked);
    let (sender, result) = crossbeam_channel::bounded(1);
    std::thread::Builder::new()
        .name("backend-check".to_owned())
        .spawn(move || {
            // Nobody may wait any more.
            let _late = sender.send(block_on(probed.ready()));
        })
        .map_err(|e| Error::io("starting the check of the backend", e))?;
    match result.recv_timeout(START_PATIENCE) {
        Ok(Err(error)) if checked.is_refused() => return Err(error),
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let what = "the backend could not be checked; tried again before it is changed";
            tracing::error!(%error, "{what}");
        }
        Err(_) => {
            tracing::warn!("the backend does not answer; it is checked before it is changed");
        }
    }
    Ok(checked)
}

impl CheckedBackend {
    fn is_refused(&self) -> bool {
        let found = self.known_conditional_writes();
        self.fencing == Fencing::Required && found == Some(ConditionalWrites::None)
    }

    /// Waits until it is known what the backend can do; an error if that is not enough.
    async fn ready(&self) -> Result<()> {
        if self.found.get().is_none() {
            let probing = self.under_way();
            let ended = probing.clone().await;
            self.forget(&probing);
            let probe = ended.map_err(|(kind, text)| Error::new(kind, text))?;
            let found = probe.clone();
            if self.found.set(found).is_ok() {
                self.announce(&probe);
            }
        }
        if !self.is_refused() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Io,
            "the backend does not keep conditional writes, so two appliances could overwrite each \
             other; use another one, or set fencing = \"none\" if there is only ever one appliance",
        ))
    }

    /// The probe under way, or a new one. Sixteen requests to a slow server take longer than those
    /// who want to put something wait.
    fn under_way(&self) -> Probing {
        let mut probing = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || {
            let inner = Arc::clone(&self.inner);
            let probe = async move {
                let probed = inner.probe().await;
                probed.map_err(|error| (error.kind(), error.to_string()))
            };
            (Box::pin(probe) as BoxFuture<'static, _>).shared()
        };
        probing.get_or_insert_with(begin).clone()
    }

    /// It has ended: the next one asks anew, if it failed.
    fn forget(&self, ended: &Probing) {
        let mut probing = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        probing.take_if(|probing| probing.ptr_eq(ended));
    }

    fn announce(&self, probe: &Probe) {
        let (backend, notes) = (self.inner.describe(), probe.notes.join("; "));
        let writes = probe.conditional_writes;
        if writes == ConditionalWrites::None {
            tracing::error!(
                backend,
                notes,
                "the backend does not keep conditional writes"
            );
        } else if notes.is_empty() {
            tracing::info!(backend, conditional_writes = ?writes, "backend checked");
        } else {
            tracing::warn!(backend, conditional_writes = ?writes, notes, "backend checked");
        }
    }
}

impl Backend for CheckedBackend {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            self.ready().await?;
            self.inner.put_if_absent(key, body).await
        })
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.ready().await?;
            self.inner.put(key, body).await
        })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        self.inner.get(key)
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        self.inner.get_range(key, offset, len)
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        self.inner.head(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        self.inner.list(prefix, after, max)
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.ready().await?;
            self.inner.delete(key).await
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.ready().await?;
            self.inner.delete_many(keys).await
        })
    }

    fn room_for_data(&self, bytes: u64) -> BoxFuture<'_, Result<()>> {
        self.inner.room_for_data(bytes)
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        self.inner.probe()
    }

    fn local_file(&self, key: &ChunkKey) -> Option<LocalFile> {
        self.inner.local_file(key)
    }

    fn run_beside_reads(&self, task: BoxFuture<'static, ()>) -> Option<BoxFuture<'static, ()>> {
        self.inner.run_beside_reads(task)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn known_conditional_writes(&self) -> Option<ConditionalWrites> {
        self.found.get().map(|probe| probe.conditional_writes)
    }

    fn counts(&self) -> Vec<VerbCounts> {
        self.inner.counts()
    }

    fn answers(&self) -> u64 {
        self.inner.answers()
    }

    fn note_mismatch(&self) {
        self.mismatches.fetch_add(1, Ordering::Relaxed);
    }

    fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use taipan_engine::backend::{Fault, FaultRule, MemBackend, Operation};

    use super::*;

    /// Says of itself what it is told; fails to say anything so many times first.
    struct Pretender {
        inner: MemBackend,
        writes: ConditionalWrites,
        silent: std::sync::atomic::AtomicU32,
        /// Each probe waits for a word here, if there is one; how many there were.
        gate: Option<crossbeam_channel::Receiver<()>>,
        probes: std::sync::atomic::AtomicU32,
    }

    impl Pretender {
        fn new(writes: ConditionalWrites, silent: u32) -> Arc<Self> {
            Arc::new(Self::with_gate(writes, silent, None))
        }

        fn with_gate(
            writes: ConditionalWrites,
            silent: u32,
            gate: Option<crossbeam_channel::Receiver<()>>,
        ) -> Self {
            Self {
                inner: MemBackend::new(),
                writes,
                silent: silent.into(),
                gate,
                probes: 0.into(),
            }
        }
    }

    impl Backend for Pretender {
        fn put_if_absent<'a>(
            &'a self,
            key: &'a ObjectKey,
            body: Bytes,
        ) -> BoxFuture<'a, Result<Put>> {
            self.inner.put_if_absent(key, body)
        }

        fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
            self.inner.put(key, body)
        }

        fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
            self.inner.get(key)
        }

        fn get_range<'a>(
            &'a self,
            key: &'a ObjectKey,
            offset: u64,
            len: u64,
        ) -> BoxFuture<'a, Result<Bytes>> {
            self.inner.get_range(key, offset, len)
        }

        fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
            self.inner.head(key)
        }

        fn list<'a>(
            &'a self,
            prefix: &'a str,
            after: Option<&'a str>,
            max: usize,
        ) -> BoxFuture<'a, Result<Vec<Listed>>> {
            self.inner.list(prefix, after, max)
        }

        fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
            self.inner.delete(key)
        }

        fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
            use std::sync::atomic::Ordering::Relaxed;
            let less = |n: u32| n.checked_sub(1);
            let is_silent = self.silent.fetch_update(Relaxed, Relaxed, less).is_ok();
            self.probes.fetch_add(1, Relaxed);
            Box::pin(async move {
                let is_closed = |gate: &crossbeam_channel::Receiver<()>| gate.try_recv().is_err();
                while !is_silent && self.gate.as_ref().is_some_and(is_closed) {
                    yields_once().await;
                }
                match is_silent {
                    true => Err(Error::new(ErrorKind::Transient, "away")),
                    false => Ok(Probe {
                        conditional_writes: self.writes,
                        notes: Vec::new(),
                    }),
                }
            })
        }

        fn describe(&self) -> String {
            "a pretender".to_owned()
        }
    }

    /// Pending at the first look.
    async fn yields_once() {
        let mut looked = false;
        futures::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            match std::mem::replace(&mut looked, true) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }

    fn key() -> ObjectKey {
        ObjectKey::parse("v1/x").unwrap()
    }

    #[test]
    fn a_probe_goes_on_when_nobody_waits_for_it_any_more() {
        let (open, gate) = crossbeam_channel::bounded(1);
        let pretender = Pretender::with_gate(ConditionalWrites::Full, 1, Some(gate));
        let pretender = Arc::new(pretender);
        let asked: Arc<dyn Backend> = Arc::clone(&pretender) as Arc<dyn Backend>;
        // The start's own probe fails at once.
        let checked = backend_check(asked, Fencing::Required).unwrap();
        let (key, body) = (key(), Bytes::new);
        // A slow server: the commit gives up, and the next one finds the same probe.
        assert!(checked.put(&key, body()).now_or_never().is_none());
        assert!(checked.put(&key, body()).now_or_never().is_none());
        open.send(()).unwrap();
        block_on(checked.put(&key, body())).unwrap();
        block_on(checked.put(&key, body())).unwrap();
        let probes = pretender.probes.load(Ordering::Relaxed);
        assert_eq!(probes, 2);
    }

    #[test]
    fn a_backend_without_conditional_writes_needs_permission() {
        let backend = || Pretender::new(ConditionalWrites::None, 0);
        let error = backend_check(backend(), Fencing::Required).err().unwrap();
        assert!(error.to_string().contains("fencing = \"none\""), "{error}");
        let allowed = backend_check(backend(), Fencing::None).unwrap();
        block_on(allowed.put(&key(), Bytes::new())).unwrap();
    }

    #[test]
    fn a_backend_that_is_away_is_checked_before_the_first_change() {
        let backend = Pretender::new(ConditionalWrites::None, 2);
        let inner = backend.inner.clone();
        let checked = backend_check(backend, Fencing::Required).unwrap();
        assert_eq!(checked.known_conditional_writes(), None);
        // Reads do not ask.
        assert!(block_on(checked.list("", None, 1)).unwrap().is_empty());
        let put = || block_on(checked.put_if_absent(&key(), Bytes::new()));
        assert_eq!(put().unwrap_err().kind(), ErrorKind::Transient);
        // It answers now, and is found to be no good.
        assert_eq!(put().unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(
            block_on(checked.delete(&key())).unwrap_err().kind(),
            ErrorKind::Io
        );
        assert_eq!(inner.count(Operation::PutIfAbsent), 0);
        assert_eq!(inner.count(Operation::Delete), 0);
    }

    #[test]
    fn a_good_backend_is_probed_once() {
        let backend = Pretender::new(ConditionalWrites::CreateOnly, 0);
        let inner = backend.inner.clone();
        let checked = backend_check(backend, Fencing::Required).unwrap();
        let writes = checked.known_conditional_writes();
        assert_eq!(writes, Some(ConditionalWrites::CreateOnly));
        inner.script(FaultRule::once(
            Operation::Put,
            "",
            Fault::FailBefore(ErrorKind::Full),
        ));
        let error = block_on(checked.put(&key(), Bytes::new())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
        block_on(checked.put(&key(), Bytes::new())).unwrap();
    }
}

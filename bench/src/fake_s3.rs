//! An S3 server in memory with real conditional writes and scripted faults, for tests and benches.
//!
//! In a test: [`FakeS3::start`], then [`FakeS3::endpoint`], [`FakeS3::faults`] and
//! [`FakeS3::stats`]; dropping it stops it. As a process: `taipan-bench fake-s3`. Both have an
//! admin endpoint, on a port of its own (it answers also while the server plays dead) and under
//! `/-/` of the S3 port:
//!
//! | request | does |
//! |---|---|
//! | `GET /-/faults` | the [`Script`], with how often each rule matched and fired |
//! | `PUT /-/faults` | replaces it; counters begin anew |
//! | `POST /-/faults` | appends one [`Rule`] |
//! | `DELETE /-/faults` | no faults any more, not `down` either |
//! | `GET /-/stats`, `DELETE /-/stats` | [`Stats`]; sets them to zero |
//! | `GET /-/log` | the latest requests as a list of [`Seen`] |
//! | `GET /-/objects?prefix=P` | keys, sizes and ETags, and the open multipart uploads |

mod accept;
mod admin;
mod body;
mod call;
mod checksum;
mod conditions;
pub mod dates;
mod faults;
mod listing;
mod multipart;
mod object_calls;
mod reply;
mod serve;
mod stats;
mod store;
mod xml;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

pub use self::call::Verb;
pub use self::checksum::checksum_header;
pub use self::conditions::ConditionalWrites;
pub use self::faults::{Action, Down, Faults, Rule, RuleCounts, Script};
pub use self::stats::{Seen, Stats};
pub use self::store::Listed;

/// What a fake server is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where S3 is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin endpoint is served; port 0 takes a free one.
    pub admin: SocketAddr,
    /// The one bucket there is.
    pub bucket: String,
    /// Added to every request, faults or not.
    pub delay: Duration,
    /// Faults from the start.
    pub script: Script,
    /// Which conditional writes are honoured.
    pub conditional_writes: ConditionalWrites,
    /// Whether a wrong `x-amz-checksum-crc32c` is refused.
    pub checksums_verified: bool,
    /// Whether DeleteObjects exists.
    pub batch_delete: bool,
    /// Smallest part but the last of a multipart upload, in bytes.
    pub part_bytes_min: usize,
    /// Bytes of memory for bodies that are touched at the start.
    pub prepared_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: any,
            admin: any,
            bucket: "taipan".to_owned(),
            delay: Duration::ZERO,
            script: Script::default(),
            conditional_writes: ConditionalWrites::Full,
            checksums_verified: true,
            batch_delete: true,
            part_bytes_min: 5 << 20,
            prepared_bytes: 0,
        }
    }
}

/// Everything the requests of one server share.
pub(crate) struct World {
    config: Config,
    store: Mutex<store::Store>,
    faults: Faults,
    stats: stats::Recorder,
    prepared: body::Prepared,
}

impl World {
    fn store(&self) -> MutexGuard<'_, store::Store> {
        locked(&self.store)
    }
}

/// A lock whose holder may have panicked: a test that failed must not hide behind another failure.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server; it stops when this is dropped.
pub struct FakeS3 {
    address: SocketAddr,
    admin: SocketAddr,
    world: Arc<World>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeS3 {
    /// Binds both addresses and serves from a thread of its own.
    ///
    /// # Errors
    /// When an address cannot be bound or the thread cannot be started.
    pub fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen)?;
        let admin_listener = TcpListener::bind(config.admin)?;
        for listener in [&listener, &admin_listener] {
            listener.set_nonblocking(true)?;
        }
        let (address, admin) = (listener.local_addr()?, admin_listener.local_addr()?);
        let (down, _) = watch::channel(None);
        let world = Arc::new(World {
            store: Mutex::new(store::Store::default()),
            faults: Faults::new(config.script.clone(), down),
            stats: stats::Recorder::default(),
            prepared: body::Prepared::of(config.prepared_bytes),
            config,
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&world);
        let thread = std::thread::Builder::new()
            .name("fake-s3".to_owned())
            .spawn(move || {
                let listeners = (listener, admin_listener);
                runtime.block_on(accept::serve_until(shared, listeners, stopped));
            })?;
        Ok(Self {
            address,
            admin,
            world,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where S3 is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin endpoint is served.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// `http://HOST:PORT`, as S3 clients take it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.world.config.bucket
    }

    /// The faults, to be changed while it runs.
    pub fn faults(&self) -> Faults {
        self.world.faults.clone()
    }

    /// Requests and bytes so far.
    pub fn stats(&self) -> Stats {
        self.world.stats.stats()
    }

    /// Sets the statistics to zero and forgets the log.
    pub fn reset_stats(&self) {
        self.world.stats.reset();
    }

    /// The latest requests, oldest first.
    pub fn log(&self) -> Vec<Seen> {
        self.world.stats.log()
    }

    /// All objects whose key begins with `prefix`, by key.
    pub fn objects(&self, prefix: &str) -> Vec<Listed> {
        self.world.store().listed(prefix)
    }

    /// Ids of multipart uploads neither completed nor aborted.
    pub fn open_uploads(&self) -> Vec<String> {
        self.world.store().open_uploads()
    }

    /// Content of one object.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.world
            .store()
            .get(key)
            .map(|object| object.body.clone())
    }

    /// Stores an object from outside, as another writer or a bit flip at rest would.
    pub fn put_object(&self, key: &str, body: impl Into<Bytes>) {
        self.world.store().put(key, store::Object::of(body.into()));
    }

    /// Lets an object look as if it had been stored so much earlier.
    pub fn age_object(&self, key: &str, by: Duration) {
        let mut store = self.world.store();
        let found = store.get(key).cloned();
        let mut object = found.unwrap_or_else(|| panic!("{key} is not there"));
        object.modified -= by;
        store.put(key, object);
    }

    /// Removes an object from outside.
    pub fn remove_object(&self, key: &str) {
        self.world.store().delete(key);
    }
}

impl Drop for FakeS3 {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server's thread shows in its own message.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;

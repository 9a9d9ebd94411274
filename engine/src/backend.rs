//! Where sealed objects live: one trait over immutable objects, and its implementations.

mod checked_read;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod dir;
mod local_metadata;
mod mem;
#[cfg(feature = "s3")]
mod s3;

use std::borrow::Cow;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::object::{ChunkKey, ObjectKey};

pub(crate) use checked_read::{Portion, read_checked};
pub use dir::{DirBackend, DirOptions, LocalFile};
pub use local_metadata::{LocalMetadata, OfflineMetadata};
pub use mem::{Fault, FaultRule, MemBackend, Operation};
#[cfg(feature = "s3")]
pub use s3::{S3Backend, S3Location};

/// A boxed future, bound to no runtime.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Largest object in bytes that [`Backend::get`] reads whole.
pub const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// What became of a conditional put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object did not exist and now holds the body, durably.
    Created,
    /// An object of that name was there. After an earlier attempt whose response was lost it may
    /// be the caller's own: read it to know.
    Exists,
}

/// One listed object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Which conditional writes a backend keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionalWrites {
    /// Creation and replacement.
    Full,
    /// Creation only; all that Taipan needs.
    CreateOnly,
    /// None: two writers could overwrite each other.
    None,
}

/// What [`Backend::probe`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Conditional writes.
    pub conditional_writes: ConditionalWrites,
    /// What else an operator should know, one sentence each.
    pub notes: Vec<String>,
}

/// How often a backend made one kind of request, and what the requests carried, since it was
/// opened: what a provider bills.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerbCounts {
    /// The kind: `delete`, `delete_many`, `get`, `head`, `list`, `multipart`, `put`.
    pub verb: Cow<'static, str>,
    /// Requests made, repeated ones included.
    pub requests: u64,
    /// Requests that failed. An absent object or an unmet condition is an answer, not a failure.
    pub errors: u64,
    /// Requests that repeated a failed one.
    pub retries: u64,
    /// Bytes of request bodies.
    pub sent_bytes: u64,
    /// Bytes of response bodies.
    pub received_bytes: u64,
}

/// A store of immutable objects. Any method may fail with a result that is unknown to the caller
/// (the effect may have happened, or may still happen); every caller must be safe under that.
///
/// No key may be another one's folder (`a` beside `a/b`): a directory cannot hold both.
///
/// Kinds of error: `Transient` and `Io` may pass, `Full` waits for room, `NotFound`, `Corrupt`
/// (fewer bytes than asked for), `Invalid`. A missing permission or bucket is `Io`: it may pass,
/// and must never be taken for an absent object.
pub trait Backend: Send + Sync {
    /// Creates an object unless its key exists. Durable when it returns, also for `Exists`.
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>>;

    /// Creates or replaces an object. Durable when it returns.
    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>>;

    /// The whole object.
    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>>;

    /// Exactly `len` bytes from `offset`; `Corrupt` if the object is shorter.
    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>>;

    /// Length of the object in bytes, `None` if there is none.
    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>>;

    /// Up to `max` objects whose key starts with `prefix` and comes after `after`, in order. Fewer
    /// than `max` means that there are no more.
    ///
    /// The order is that of keys, or (SeaweedFS) that of their parts: `a/b` before `a-c`. It is the
    /// same for all lists of a backend, and within one folder there is no difference.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>>;

    /// Removes an object; an absent one is fine.
    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>>;

    /// Removes objects; absent ones are fine. After an error some may be removed.
    fn delete_many<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for key in keys {
                self.delete(key).await?;
            }
            Ok(())
        })
    }

    /// Fails as `Full` if so many bytes more would take what is reserved for index parts, manifests
    /// and compaction. Asked before chunks of a cut are put; whoever frees space does not ask.
    /// Only a backend that knows how much room it has reserves any.
    fn room_for_data(&self, _bytes: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Tries what the backend can do, leaving nothing behind.
    fn probe(&self) -> BoxFuture<'_, Result<Probe>>;

    /// The backend in one line, for people.
    fn describe(&self) -> String;

    /// The chunk's file, if it lies on a disk of this machine and is open: for whoever reads it
    /// himself and checks what he reads. Does not block.
    fn local_file(&self, key: &ChunkKey) -> Option<LocalFile> {
        let _ = key;
        None
    }

    /// Runs `task` on the thread of this backend's reads, if there is one: reads that it asks for
    /// then change threads nowhere. Else the task is given back. The thread has tokio's timers.
    fn run_beside_reads(&self, task: BoxFuture<'static, ()>) -> Option<BoxFuture<'static, ()>> {
        Some(task)
    }

    /// Which conditional writes it keeps, if that was found out already.
    fn known_conditional_writes(&self) -> Option<ConditionalWrites> {
        None
    }

    /// Requests made so far, by kind; none where requests cost nothing.
    fn counts(&self) -> Vec<VerbCounts> {
        Vec::new()
    }

    /// How often it answered so far, be it with no: tells a slow one from one that is away. Always
    /// 0 where that is not counted.
    fn answers(&self) -> u64 {
        0
    }

    /// A reader found what it got of an object to be wrong. Counted where an operator can look.
    fn note_mismatch(&self) {}

    /// How often that was so.
    fn mismatches(&self) -> u64 {
        0
    }
}

/// What a URL does not say.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions<'a> {
    /// Directory of `dir:` without a path.
    pub default_dir: &'a Path,
    /// CPU on which the backend's own threads run, if they are pinned.
    pub cpu: Option<usize>,
}

/// As [`open_with`], with threads that run anywhere.
pub fn open(url: &str, default_dir: &Path) -> Result<Arc<dyn Backend>> {
    let cpu = None;
    open_with(url, &OpenOptions { default_dir, cpu })
}

/// Opens the backend of `url`: `mem:`, `dir:/path`, `dir:` for the default directory, or
/// `s3://bucket/prefix?endpoint=…` (see `docs/operations/backends.md`).
pub fn open_with(url: &str, options: &OpenOptions<'_>) -> Result<Arc<dyn Backend>> {
    match url.split_once(':') {
        Some(("mem", "")) => Ok(Arc::new(MemBackend::new())),
        Some(("dir", "")) => Ok(Arc::new(DirBackend::open(options.default_dir)?)),
        Some(("dir", path)) => Ok(Arc::new(DirBackend::open(Path::new(path))?)),
        Some(("s3", _)) => open_s3(url, options.cpu),
        _ => Err(Error::invalid(format!(
            "backend {url:?} is not known; use 's3://bucket/prefix?…', 'dir:/path' or 'mem:'"
        ))),
    }
}

#[cfg(feature = "s3")]
fn open_s3(url: &str, cpu: Option<usize>) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(S3Backend::open(url, cpu)?))
}

#[cfg(not(feature = "s3"))]
fn open_s3(_url: &str, _cpu: Option<usize>) -> Result<Arc<dyn Backend>> {
    Err(Error::invalid(
        "this program was built without the s3 backend (cargo feature 's3')",
    ))
}

/// The error of a range that an object does not have.
fn too_short(key: &str, offset: u64, len: u64, object_bytes: u64) -> Error {
    Error::corrupt(format!(
        "{len} bytes of object {key} are wanted, it has {object_bytes} in all"
    ))
    .with_offset(offset)
}

#[cfg(test)]
mod tests;

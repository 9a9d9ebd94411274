//! Where sealed objects live: one trait over immutable objects, and its implementations.

mod dir;
mod mem;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::object::ObjectKey;

pub use dir::{DirBackend, DirOptions};
pub use mem::{Fault, FaultRule, MemBackend, Operation};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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

/// A store of immutable objects. Any method may fail with a result that is unknown to the caller
/// (the effect may have happened, or may still happen); every caller must be safe under that.
///
/// No key may be another one's folder (`a` beside `a/b`): a directory cannot hold both.
///
/// Kinds of error: `Transient` and `Io` may pass, `Full` waits for room, `NotFound`, `Corrupt`
/// (fewer bytes than asked for), `Invalid`.
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

    /// Up to `max` objects whose key starts with `prefix` and is above `after`, in key order.
    /// Fewer than `max` means that there are no more.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>>;

    /// Removes an object; an absent one is fine.
    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>>;

    /// Tries what the backend can do, leaving nothing behind.
    fn probe(&self) -> BoxFuture<'_, Result<Probe>>;

    /// The backend in one line, for people.
    fn describe(&self) -> String;
}

/// Opens the backend of `url`: `mem:`, `dir:/path`, or `dir:` for `default_dir`.
pub fn open(url: &str, default_dir: &Path) -> Result<Arc<dyn Backend>> {
    match url.split_once(':') {
        Some(("mem", "")) => Ok(Arc::new(MemBackend::new())),
        Some(("dir", "")) => Ok(Arc::new(DirBackend::open(default_dir)?)),
        Some(("dir", path)) => Ok(Arc::new(DirBackend::open(Path::new(path))?)),
        _ => Err(Error::invalid(format!(
            "backend {url:?} is not known; use 'dir:/path' or 'mem:'"
        ))),
    }
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

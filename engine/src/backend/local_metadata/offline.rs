//! Local copies of metadata as a backend that can only be read: what a start knows without the
//! real one.

use bytes::Bytes;

use super::copies::Copies;
use crate::backend::{Backend, BoxFuture, Listed, Probe, Put};
use crate::error::{Error, ErrorKind, Result};
use crate::object::ObjectKey;

/// The copies alone. Whoever reads checks the objects' own checksums. What is read is durable: the
/// local head record may name it next, and a process that was killed may have left it in the page
/// cache only.
pub struct OfflineMetadata {
    copies: Copies,
}

impl OfflineMetadata {
    pub(super) fn new(copies: Copies) -> Self {
        Self { copies }
    }

    fn read(&self, key: &ObjectKey) -> Result<Bytes> {
        let copy = self.copies.read(key);
        if copy.is_some() {
            self.copies.sync_one(key);
        }
        copy.ok_or_else(|| {
            let text = format!("there is no local copy of {key}");
            Error::new(ErrorKind::NotFound, text)
        })
    }
}

fn unreachable<T>() -> Result<T> {
    let text = "only local copies of metadata are there, the backend cannot be reached";
    Err(Error::new(ErrorKind::Transient, text))
}

impl Backend for OfflineMetadata {
    fn put_if_absent<'a>(&'a self, _: &'a ObjectKey, _: Bytes) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async { unreachable() })
    }

    fn put<'a>(&'a self, _: &'a ObjectKey, _: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { unreachable() })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async { self.read(key) })
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move {
            let bytes = self.read(key)?;
            let start = usize::try_from(offset).ok();
            let end = start.and_then(|start| start.checked_add(usize::try_from(len).ok()?));
            match (start, end) {
                (Some(start), Some(end)) if end <= bytes.len() => Ok(bytes.slice(start..end)),
                _ => Err(Error::corrupt(format!(
                    "the local copy of {key} has {} bytes, {len} from {offset} are wanted",
                    bytes.len()
                ))),
            }
        })
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async { Ok(self.copies.read(key).map(|bytes| bytes.len() as u64)) })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(async move {
            let names = self.copies.names(prefix).into_iter();
            let above = names.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
            let listed = above.map(|(key, bytes)| Listed { key, bytes });
            Ok(listed.take(max).collect())
        })
    }

    fn delete<'a>(&'a self, _: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { unreachable() })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        Box::pin(async { unreachable() })
    }

    fn describe(&self) -> String {
        "local copies of metadata".to_owned()
    }
}

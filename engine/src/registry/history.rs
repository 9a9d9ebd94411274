//! Reading a volume's chain of manifests, and appending to it exactly once.

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use crate::backend::{Backend, Portion, Put, read_checked};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{ManifestNum, VolumeId};
use crate::manifest::Manifest;
use crate::mutation::{Mutation, is_in};
use crate::object::{ObjectKey, number_of};

const PAGE: usize = 1000;
const PARALLEL_GETS: usize = 16;

/// The manifests from which the image is rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Oldest first, consecutive, never empty. The first one is number 1 or has a checkpoint (which
    /// covers it too).
    pub manifests: Vec<Manifest>,
}

impl History {
    /// The newest manifest.
    pub fn head(&self) -> &Manifest {
        self.manifests.last().expect("a history has a head")
    }
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// A manifest of the same writer is stored under that number: this one, or, after a lost
    /// response, the one of an earlier attempt, which counts.
    Ours(Box<Manifest>),
    /// Another writer has that number: this writer is fenced.
    Foreign(Box<Manifest>),
}

/// Stores `next` under its number unless another is there. A lost response is resolved by reading
/// back. After an error the outcome is open: it may be stored later. Repeat with the same manifest.
pub async fn append(backend: &dyn Backend, next: &Manifest) -> Result<Appended> {
    let key = next.object();
    let put = backend.put_if_absent(&key, next.encode()).await;
    let stored = match put {
        Ok(Put::Created) => return Ok(Appended::Ours(Box::new(next.clone()))),
        Ok(Put::Exists) if is_in(Mutation::ExistsIsOurs) => {
            return Ok(Appended::Ours(Box::new(next.clone())));
        }
        Ok(Put::Exists) => read_manifest(backend, next.volume, next.number).await?,
        Err(error) => match read_manifest(backend, next.volume, next.number).await {
            Ok(stored) => {
                // It is there, but the failed put did not say that it is durable.
                match backend.put_if_absent(&key, next.encode()).await {
                    Ok(_) => stored,
                    Err(_) => return Err(error),
                }
            }
            Err(_) => return Err(error),
        },
    };
    if stored.same_writer(next) {
        Ok(Appended::Ours(Box::new(stored)))
    } else {
        Ok(Appended::Foreign(Box::new(stored)))
    }
}

/// One manifest of a volume.
pub async fn read_manifest(
    backend: &dyn Backend,
    volume: VolumeId,
    number: ManifestNum,
) -> Result<Manifest> {
    let key = ObjectKey::manifest(volume, number);
    let read = read_as(backend, &key, |manifest, _| manifest).await;
    read.map_err(|e| match e.kind() {
        ErrorKind::Corrupt => e.with_volume(volume),
        _ => e,
    })
}

/// The manifest of this name as it is stored, for who has to know whether it is his own.
pub async fn read_manifest_bytes(backend: &dyn Backend, key: &ObjectKey) -> Result<Bytes> {
    read_as(backend, key, |_, bytes| bytes.clone()).await
}

async fn read_as<T>(
    backend: &dyn Backend,
    key: &ObjectKey,
    wanted: impl Fn(Manifest, &Bytes) -> T,
) -> Result<T> {
    let parse = |bytes: &Bytes| {
        let manifest = Manifest::decode(bytes)?;
        match manifest.object() == *key {
            true => Ok(wanted(manifest, bytes)),
            false => Err(Error::corrupt("another manifest is stored here")),
        }
    };
    let located = |e: Error| match e.kind() {
        ErrorKind::Corrupt => e.with_path(key.as_str()),
        _ => e,
    };
    let read = read_checked(backend, key, Portion::Whole, parse).await;
    read.map_err(located)
}

/// The newest manifest. `hint` is one known to exist (or to have existed), from which to search.
pub async fn read_head(
    backend: &dyn Backend,
    volume: VolumeId,
    hint: Option<ManifestNum>,
) -> Result<Manifest> {
    let number = find_head(backend, volume, hint).await?;
    read_manifest(backend, volume, number).await
}

/// The newest manifest and its predecessors back to the last checkpoint.
pub async fn read_history(
    backend: &dyn Backend,
    volume: VolumeId,
    hint: Option<ManifestNum>,
) -> Result<History> {
    let head = read_head(backend, volume, hint).await?;
    with_predecessors(backend, head).await
}

/// The manifest `number` and its predecessors back to the checkpoint before it: the image of a
/// snapshot, which is rebuilt from them as that of the head is.
pub async fn read_history_at(
    backend: &dyn Backend,
    volume: VolumeId,
    number: ManifestNum,
) -> Result<History> {
    let last = read_manifest(backend, volume, number).await?;
    with_predecessors(backend, last).await
}

async fn with_predecessors(backend: &dyn Backend, head: Manifest) -> Result<History> {
    let volume = head.volume;
    let is_start = |m: &Manifest| m.checkpoint.is_some() || m.number.0 == 1;
    let older = (1..head.number.0).rev();
    let mut manifests = vec![head];
    // Predecessors are fetched ahead; what is fetched beyond the start is not needed.
    let mut fetched = stream::iter(older)
        .map(|number| read_manifest(backend, volume, ManifestNum(number)))
        .buffered(PARALLEL_GETS);
    while let Some(newer) = manifests.last()
        && !is_start(newer)
    {
        let manifest = fetched.next().await.unwrap_or_else(|| {
            Err(Error::corrupt("the chain of manifests has no start").with_volume(volume))
        });
        let manifest = manifest.map_err(|e| missing(e, newer))?;
        newer.check_follows(&manifest)?;
        manifests.push(manifest);
    }
    drop(fetched);
    manifests.reverse();
    Ok(History { manifests })
}

/// A needed predecessor that is not there is damage, not absence of the volume.
fn missing(error: Error, newer: &Manifest) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::corrupt(format!(
            "manifest {} names a predecessor that is not there",
            newer.number
        ))
        .with_volume(newer.volume)
        .with_source(error),
        _ => error,
    }
}

/// The greatest manifest number. Few manifests: one list. Many: a search by lists of one object.
///
/// A list may be behind, and the answer a manifest that others followed. That is safe as long as no
/// manifest is ever removed: whoever follows it puts a number that is taken, and learns of them.
async fn find_head(
    backend: &dyn Backend,
    volume: VolumeId,
    hint: Option<ManifestNum>,
) -> Result<ManifestNum> {
    let prefix = ObjectKey::manifest_prefix(volume);
    let from = hint.map_or(0, |hint| hint.0);
    let page = list_after(backend, volume, &prefix, from, PAGE).await?;
    let Some(&newest) = page.last() else {
        return match hint {
            // Nothing is above the hint, so it is the head, if it is there (its reader sees).
            Some(hint) => Ok(hint),
            None => Err(no_volume(volume)),
        };
    };
    if page.len() < PAGE {
        return Ok(ManifestNum(newest));
    }
    let (mut newest, mut step, mut growing) = (newest, PAGE as u64, true);
    loop {
        let above = newest.saturating_add(step);
        let found = list_after(backend, volume, &prefix, above, 1).await?;
        match found.first() {
            Some(&number) if growing => (newest, step) = (number, step.saturating_mul(2)),
            Some(&number) => newest = number,
            None if step == 0 => return Ok(ManifestNum(newest)),
            None => (step, growing) = (step / 2, false),
        }
    }
}

async fn list_after(
    backend: &dyn Backend,
    volume: VolumeId,
    prefix: &str,
    number: u64,
    max: usize,
) -> Result<Vec<u64>> {
    let after = ObjectKey::manifest(volume, ManifestNum(number));
    let page = backend.list(prefix, Some(after.as_str()), max).await?;
    page.iter()
        .map(|object| {
            number_of(&object.key).ok_or_else(|| {
                let message = format!("{} is no manifest's name", object.key);
                Error::corrupt(message).with_volume(volume)
            })
        })
        .collect()
}

fn no_volume(volume: VolumeId) -> Error {
    let message = "the backend has no manifest of this volume";
    Error::new(ErrorKind::NotFound, message).with_volume(volume)
}

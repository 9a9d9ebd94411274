//! Local copies of the small immutable objects from which a volume's index is rebuilt, so that a
//! start is possible while the backend cannot be reached.
//!
//! Copied are manifests, index parts, and chunks' headers with their extent tables, under
//! `<data>/metadata/` by their keys. Copies of a manifest and of all that it needs are durable
//! before the put of the manifest returns, or the get that finds it after a lost answer: so before
//! any local head record names it. That holds for what an earlier process wrote, too. A copy that
//! is missing or damaged costs a request to the backend, or a start without it; nothing else. A
//! thread of its own writes them, because an fsync takes its time.

mod copies;
mod keeper;
mod offline;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Backend, BoxFuture, ConditionalWrites, Listed, LocalFile, Probe, Put, VerbCounts};
use crate::chunk::ChunkView;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::VolumeId;
use crate::index::part::IndexPart;
use crate::manifest::{Manifest, ManifestKind};
use crate::object::{ChunkKey, IndexKey, ObjectKey, number_of};

use copies::Copies;
use keeper::Keeper;
pub use offline::OfflineMetadata;

/// A backend that keeps local copies of metadata.
pub struct LocalMetadata {
    inner: Arc<dyn Backend>,
    copies: Copies,
    keeper: Keeper,
    answers: AtomicU64,
    /// Of each volume the manifest whose put was not answered with "created", if there is one: what
    /// is found under its number may be named by the local head record next.
    asked: Mutex<BTreeMap<VolumeId, ObjectKey>>,
}

/// What an object is, as its key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Manifest(VolumeId),
    Index(IndexKey),
    Chunk(ChunkKey),
    Other,
}

impl Class {
    fn of(key: &ObjectKey) -> Self {
        let text = key.as_str();
        if let Some(chunk) = ChunkKey::parse(text) {
            return Self::Chunk(chunk);
        }
        if let Some(index) = IndexKey::parse(text) {
            return Self::Index(index);
        }
        let volume = || {
            let (volume, name) = text.strip_prefix("v1/")?.split_once("/manifests/")?;
            number_of(name)?;
            VolumeId::parse(volume)
        };
        volume().map_or(Self::Other, Self::Manifest)
    }
}

impl LocalMetadata {
    /// Keeps copies of what passes to and from `inner` in `dir`, which is created when needed.
    pub fn new(inner: Arc<dyn Backend>, dir: &Path) -> Self {
        let copies = Copies::of(dir);
        Self {
            inner,
            keeper: Keeper::of(copies.clone()),
            copies,
            answers: AtomicU64::new(0),
            asked: Mutex::default(),
        }
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<VolumeId, ObjectKey>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, answer: Result<T>) -> Result<T> {
        let silent = |e: &Error| matches!(e.kind(), ErrorKind::Transient | ErrorKind::Io);
        if !answer.as_ref().is_err_and(silent) {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// The copies alone, as a backend that can only be read.
    pub fn offline(&self) -> OfflineMetadata {
        OfflineMetadata::new(self.copies.clone())
    }

    /// Forgets the copies of every volume but these.
    pub fn retain(&self, volumes: &[VolumeId]) {
        self.copies.retain(volumes);
    }

    /// The start of a chunk that holds exactly its header and extent table.
    fn head_of(key: &ObjectKey, bytes: &[u8]) -> Option<usize> {
        let view = ChunkView::parse(bytes).ok()?;
        let len = view.head_bytes as usize;
        (view.key.object() == *key && len <= bytes.len()).then_some(len)
    }

    fn is_part(key: &ObjectKey, bytes: &[u8]) -> bool {
        IndexPart::decode(bytes).is_ok_and(|part| part.key.object() == *key)
    }

    /// Copies what was stored. A manifest's copy, and all before it, is durable when this returns.
    async fn note_stored(&self, key: &ObjectKey, body: &Bytes, put: Put) {
        match Class::of(key) {
            Class::Chunk(_) => {
                if let Some(len) = Self::head_of(key, body) {
                    self.write(key, body.slice(..len)).await;
                }
            }
            Class::Index(_) => self.write(key, body.clone()).await,
            // What exists may be another writer's: it is copied when it is read.
            Class::Manifest(volume) if put == Put::Created => {
                self.asked().remove(&volume);
                let (key, body) = (key.clone(), body.clone());
                let note = move |copies: &Copies| note_manifest(copies, volume, &key, &body);
                self.keeper.change(note).await;
            }
            Class::Manifest(_) | Class::Other => {}
        }
    }

    async fn write(&self, key: &ObjectKey, bytes: Bytes) {
        let key = key.clone();
        let write = move |copies: &Copies| copies.write(&key, &bytes);
        self.keeper.change(write).await;
    }
}

fn note_manifest(copies: &Copies, volume: VolumeId, key: &ObjectKey, body: &Bytes) {
    copies.write(key, body);
    copies.sync();
    let Ok(manifest) = Manifest::decode(body) else {
        return;
    };
    if manifest.kind == ManifestKind::Tombstone {
        copies.forget(volume);
    } else if let Some(root) = manifest.checkpoint {
        let part = copies.read(&root.key.object());
        let root_part = part.and_then(|bytes| IndexPart::decode(&bytes).ok()?.root);
        if let Some(root_part) = root_part {
            let mut parts: Vec<ObjectKey> =
                root_part.parts.iter().map(|p| p.key.object()).collect();
            parts.push(root.key.object());
            copies.begin_at(volume, manifest.number, &parts);
        }
    }
}

impl Backend for LocalMetadata {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            if let Class::Manifest(volume) = Class::of(key) {
                self.asked().insert(volume, key.clone());
            }
            let put = self.note(self.inner.put_if_absent(key, body.clone()).await)?;
            self.note_stored(key, &body, put).await;
            Ok(put)
        })
    }

    fn room_for_data(&self, bytes: u64) -> BoxFuture<'_, Result<()>> {
        self.inner.room_for_data(bytes)
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        self.inner.put(key, body)
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(async move {
            match Class::of(key) {
                Class::Index(_) => {
                    let copy = self.copies.read_kept(key);
                    if let Some(copy) = copy.filter(|copy| Self::is_part(key, copy)) {
                        return Ok(copy);
                    }
                    let bytes = self.note(self.inner.get(key).await)?;
                    if Self::is_part(key, &bytes) {
                        self.write(key, bytes.clone()).await;
                    }
                    Ok(bytes)
                }
                Class::Manifest(volume) => {
                    // Always the backend's word: a copy says nothing about who owns the volume.
                    let bytes = self.note(self.inner.get(key).await)?;
                    if Manifest::decode(&bytes).is_ok_and(|found| found.object() == *key) {
                        let is_asked = self.asked().get(&volume) == Some(key);
                        let (key, bytes) = (key.clone(), bytes.clone());
                        let write = move |copies: &Copies| {
                            copies.write_once(&key, &bytes);
                            // Ours, it may be, of a put whose answer was lost.
                            if is_asked {
                                copies.sync();
                            }
                        };
                        self.keeper.change(write).await;
                    }
                    Ok(bytes)
                }
                Class::Chunk(_) | Class::Other => self.note(self.inner.get(key).await),
            }
        })
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        if offset > 0 || !matches!(Class::of(key), Class::Chunk(_)) {
            return self.inner.get_range(key, offset, len);
        }
        Box::pin(async move {
            let is_head = |bytes: &[u8]| {
                bytes.len() as u64 == len && Self::head_of(key, bytes) == Some(bytes.len())
            };
            let copy = self.copies.read_kept(key);
            if let Some(copy) = copy.filter(|copy| is_head(copy)) {
                return Ok(copy);
            }
            let bytes = self.note(self.inner.get_range(key, offset, len).await)?;
            if is_head(&bytes) {
                self.write(key, bytes.clone()).await;
            }
            Ok(bytes)
        })
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
        Box::pin(async move { self.note(self.inner.list(prefix, after, max).await) })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.inner.delete(key).await?;
            let key = key.clone();
            let remove = move |copies: &Copies| copies.remove(&key);
            self.keeper.change(remove).await;
            Ok(())
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [ObjectKey]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.inner.delete_many(keys).await?;
            let keys = keys.to_vec();
            let remove = move |copies: &Copies| keys.iter().for_each(|key| copies.remove(key));
            self.keeper.change(remove).await;
            Ok(())
        })
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
        self.inner.known_conditional_writes()
    }

    fn counts(&self) -> Vec<VerbCounts> {
        self.inner.counts()
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed) + self.inner.answers()
    }

    fn note_mismatch(&self) {
        self.inner.note_mismatch();
    }

    fn mismatches(&self) -> u64 {
        self.inner.mismatches()
    }
}

#[cfg(test)]
mod tests;

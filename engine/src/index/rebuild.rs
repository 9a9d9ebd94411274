//! Rebuilds a volume's base from the bucket: the last checkpoint, then the extent tables of the
//! chunks that later manifests added.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use hashbrown::HashMap;

use super::leaf::ChunkOrdinal;
use super::part::read_part;
use super::volume::{AddedChunk, VolumeBase};
use crate::backend::{Backend, Portion, read_checked};
use crate::chunk::{ChunkRef, ChunkView, HEADER_BYTES, SLOTS_MAX, ZERO_RUNS_MAX};
use crate::error::{Error, Result};
use crate::identity::ManifestNum;
use crate::invariant::check_chain;
use crate::manifest::{CheckpointRef, Manifest};
use crate::object::{ChunkKey, SealedRef};
use crate::point::PointTable;
use crate::snapshot::SnapshotTable;

/// Extent tables fetched at a time.
const FETCHES: usize = 16;
/// The largest header and extent table of a chunk.
const HEAD_BYTES_MAX: usize = HEADER_BYTES + 16 * (SLOTS_MAX + ZERO_RUNS_MAX) as usize;

/// A volume's base, and what its next commit must know of earlier ones.
#[derive(Clone, Default)]
pub struct Rebuilt {
    /// The base index at the head manifest.
    pub base: VolumeBase,
    /// Parts of the last checkpoint, oldest first; the last is its root.
    pub parts: Vec<CheckpointRef>,
    /// Objects condemned whose deletion is not known to be done, and the manifest that did it.
    pub condemned: BTreeMap<SealedRef, ManifestNum>,
    /// Index parts that only snapshots and points need, and the manifest that replaced each.
    pub retained: BTreeMap<SealedRef, ManifestNum>,
    /// The snapshots.
    pub snapshots: SnapshotTable,
    /// The points in time.
    pub points: PointTable,
    /// What came after the last checkpoint.
    pub since_checkpoint: SinceCheckpoint,
}

/// How much a rebuild would have to read beside the last checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinceCheckpoint {
    /// Manifests that added chunks.
    pub commits: u32,
    /// Chunks added.
    pub chunks: u32,
    /// Bytes of these chunks.
    pub bytes: u64,
}

impl SinceCheckpoint {
    /// Counts a commit.
    pub fn note(&mut self, added: &[ChunkRef]) {
        self.commits += 1;
        self.chunks += added.len() as u32;
        self.bytes += added.iter().map(|chunk| chunk.bytes).sum::<u64>();
    }
}

/// Rebuilds the base from `chain`: manifests of one volume with consecutive numbers up to the head,
/// from the last one with a checkpoint, or from the first.
pub async fn rebuild(backend: &dyn Backend, chain: &[Manifest]) -> Result<Rebuilt> {
    let mut rebuilt = Rebuilt::default();
    let first = chain
        .first()
        .ok_or_else(|| Error::invalid("a volume has a manifest"))?;
    let rest = match &first.checkpoint {
        Some(checkpoint) => {
            load_checkpoint(backend, checkpoint, first.number, &mut rebuilt)
                .await
                .map_err(|e| e.with_volume(first.volume))?;
            &chain[1..]
        }
        None if first.number == ManifestNum(1) => chain,
        None => {
            return Err(Error::invalid(format!(
                "manifest {} is neither the first nor has it a checkpoint",
                first.number
            ))
            .with_volume(first.volume));
        }
    };
    check_chain(chain)?;
    follow(backend, rebuilt, rest).await
}

/// Takes up manifests that follow the one as of which the base was rebuilt.
pub async fn follow(
    backend: &dyn Backend,
    rebuilt: Rebuilt,
    manifests: &[Manifest],
) -> Result<Rebuilt> {
    let mut replay = Replay::new(rebuilt);
    for manifest in manifests {
        replay.take(backend, manifest).await?;
    }
    Ok(replay.rebuilt)
}

/// A base that takes up one manifest after the other.
pub(crate) struct Replay {
    pub(crate) rebuilt: Rebuilt,
    ordinals: HashMap<ChunkKey, ChunkOrdinal>,
}

impl Replay {
    pub(crate) fn new(rebuilt: Rebuilt) -> Self {
        let chunks = rebuilt.base.chunks();
        let ordinals = chunks.map(|(ordinal, entry)| (entry.reference.key, ordinal));
        Self {
            ordinals: ordinals.collect(),
            rebuilt,
        }
    }

    /// Takes up the manifest that follows. After an error the base is of no use.
    pub(crate) async fn take(&mut self, backend: &dyn Backend, manifest: &Manifest) -> Result<()> {
        replay(backend, manifest, &mut self.rebuilt, &mut self.ordinals)
            .await
            .map_err(|e| e.with_volume(manifest.volume))
    }

    /// Whether a block of the image is in that chunk.
    pub(crate) fn needs(&self, chunk: &ChunkKey) -> bool {
        let ordinal = self.ordinals.get(chunk);
        let entry = ordinal.and_then(|ordinal| self.rebuilt.base.chunk(*ordinal));
        entry.is_some_and(|entry| entry.live > 0)
    }
}

async fn load_checkpoint(
    backend: &dyn Backend,
    root: &CheckpointRef,
    number: ManifestNum,
    rebuilt: &mut Rebuilt,
) -> Result<()> {
    let mut root_part = read_part(backend, root).await?;
    let Some(head) = root_part.root.take() else {
        return Err(Error::corrupt(format!(
            "index part {} is no root",
            root.key
        )));
    };
    if root_part.manifest != number {
        return Err(Error::corrupt(format!(
            "index part {} belongs to manifest {}, not {number}",
            root.key, root_part.manifest
        )));
    }
    let fetches = head.parts.iter().map(|part| read_part(backend, part));
    let mut parts = stream::iter(fetches).buffered(2);
    while let Some(part) = parts.try_next().await? {
        rebuilt.base.load_part(part)?;
    }
    drop(parts);
    rebuilt.base.load_part(root_part)?;
    rebuilt.base.finish_load()?;
    rebuilt.parts = head.parts;
    rebuilt.parts.push(*root);
    rebuilt.condemned = head
        .condemned
        .into_iter()
        .map(|object| (object, number))
        .collect();
    let retained = head.retained.into_iter();
    rebuilt.retained = retained
        .map(|(key, by)| (SealedRef::Index(key), by))
        .collect();
    rebuilt.snapshots = SnapshotTable::new(head.snapshots)?;
    rebuilt.points = head.points;
    Ok(())
}

async fn replay(
    backend: &dyn Backend,
    manifest: &Manifest,
    rebuilt: &mut Rebuilt,
    ordinals: &mut HashMap<ChunkKey, ChunkOrdinal>,
) -> Result<()> {
    let fetches = manifest
        .added
        .iter()
        .map(|chunk| fetch_extents(backend, chunk));
    let added: Vec<AddedChunk> = stream::iter(fetches)
        .buffered(FETCHES)
        .try_collect()
        .await?;
    for reference in manifest.added.iter().map(|chunk| chunk.key) {
        if ordinals.contains_key(&reference) {
            return Err(Error::corrupt(format!("chunk {reference} is added twice")));
        }
    }
    let applied = rebuilt.base.apply(&added);
    ordinals.extend(
        added
            .iter()
            .map(|chunk| chunk.reference.key)
            .zip(applied.ordinals),
    );
    if !added.is_empty() {
        rebuilt.since_checkpoint.note(&manifest.added);
    }
    rebuilt.snapshots.follow(manifest)?;
    rebuilt.points.follow(manifest)?;
    for object in &manifest.condemned {
        rebuilt.condemned.insert(*object, manifest.number);
        rebuilt.retained.remove(object);
        let SealedRef::Chunk(key) = object else {
            continue;
        };
        let Some(ordinal) = ordinals.remove(key) else {
            return Err(Error::corrupt(format!(
                "chunk {key} is condemned but not known"
            )));
        };
        let named = rebuilt
            .base
            .chunk(ordinal)
            .is_none_or(|entry| entry.live > 0);
        if named {
            return Err(Error::corrupt(format!(
                "chunk {key} is condemned but in use"
            )));
        }
        rebuilt.base.condemn(ordinal);
        rebuilt.base.recycle(ordinal);
    }
    for object in &manifest.dropped {
        rebuilt.condemned.remove(object);
    }
    Ok(())
}

/// Reads header and extent table of a chunk.
pub(crate) async fn fetch_extents(backend: &dyn Backend, chunk: &ChunkRef) -> Result<AddedChunk> {
    let len = chunk.head_bytes as usize;
    if len > HEAD_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "chunk {}: a head of {len} bytes",
            chunk.key
        )));
    }
    let parse = |head: &Bytes| {
        let view = ChunkView::parse(head)?;
        match view.is(chunk) {
            true => Ok(AddedChunk {
                reference: *chunk,
                runs: view.runs,
                zeros: view.zeros,
            }),
            false => Err(Error::corrupt(format!(
                "chunk {} is not what its manifest says",
                chunk.key
            ))),
        }
    };
    let head = Portion::Range(0, len as u64);
    read_checked(backend, &chunk.key.object(), head, parse).await
}

//! Checks what a backend holds of a volume: its chain of manifests, its index, its chunks, and
//! those of every snapshot and point in time. Needs no daemon and no local state; writes nothing.
//! See `docs/internals/verify.md`.

mod objects;
mod points;
mod report;

use futures::stream::{self, StreamExt};
use hashbrown::HashMap;

use crate::backend::Backend;
use crate::block::BlockSize;
use crate::chunk::ChunkRef;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::ManifestNum;
use crate::index::rebuild::{Rebuilt, rebuild};
use crate::index::{ChunkOrdinal, VolumeBase};
use crate::manifest::Manifest;
use crate::object::{ChunkKey, ObjectKey};
use crate::registry::{NamedVolume, read_head, read_history, read_history_at, read_snapshot};

pub use report::{Affected, ByteRange, Finding, Severity, VolumeReport};

use objects::{Bad, check_chunk};
use report::{ImageSize, Report};

/// Objects that are looked at at the same time.
const HEADS_AT_ONCE: usize = 16;
/// Chunks that are read at the same time; bounds the memory to so many chunks.
const GETS_AT_ONCE: usize = 4;
/// So often a volume is looked at again because its writer went on meanwhile.
const LOOKS_MAX: usize = 4;

/// What is wrong with an object of the index that is not there.
const NO_INDEX: &str = "it is missing, and with it the index of the image";

/// How far a check has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Volume, or volume and snapshot.
    pub image: &'a str,
    /// Objects of the image that are checked.
    pub done: u64,
    /// Objects of the image that were not known to be good before.
    pub total: u64,
}

/// What is checked, and who hears how far it is.
pub struct Options<'a> {
    /// Read every chunk and check the CRC of each of its blocks, instead of only asking for its
    /// length.
    pub deep: bool,
    /// Called now and then.
    pub progress: &'a dyn Fn(Progress<'_>),
}

/// Checks one volume with all its snapshots and points in time. An error says that the check could
/// not be made; what the check found is in the report.
pub async fn verify_volume(
    backend: &dyn Backend,
    volume: &NamedVolume,
    options: &Options<'_>,
) -> Result<VolumeReport> {
    let mut look = 1;
    loop {
        let mut check = Check {
            backend,
            volume,
            options,
            checked: HashMap::new(),
            has_bad: false,
            report: Report::new(volume, options.deep),
        };
        let head = check.volume().await?;
        let report = check.report.finish();
        let is_lost = report.findings.iter().any(|f| f.severity >= Severity::Lost);
        // What the image that we looked at named may be deleted since: readers look again.
        let went_on = match head {
            Some(head) if is_lost && look < LOOKS_MAX => {
                let now = read_head(backend, volume.id, Some(head)).await?;
                now.number > head
            }
            _ => false,
        };
        if !went_on {
            return Ok(report);
        }
        look += 1;
    }
}

struct Check<'a> {
    backend: &'a dyn Backend,
    volume: &'a NamedVolume,
    options: &'a Options<'a>,
    /// What was found out of each chunk; `None` is good.
    checked: HashMap<ChunkKey, Option<Bad>>,
    /// Something is wrong with one of them.
    has_bad: bool,
    report: Report,
}

impl Check<'_> {
    /// The number of the head, if it can be read.
    async fn volume(&mut self) -> Result<Option<ManifestNum>> {
        let name = self.volume.name.to_string();
        let history = match read_history(self.backend, self.volume.id, None).await {
            Ok(history) => history,
            Err(error) => {
                let chain = ObjectKey::manifest_prefix(self.volume.id);
                self.whole(&name, None, &chain, error)?;
                return Ok(None);
            }
        };
        let head = history.head().clone();
        self.report.head(&head);
        let size = ImageSize::of(&head);
        let rebuilt = match rebuild(self.backend, &history.manifests).await {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                self.no_index(&name, size, &history.manifests, error)
                    .await?;
                return Ok(Some(head.number));
            }
        };
        self.report.index(&rebuilt, size.block_size);
        self.image(&name, size, &rebuilt.base).await?;
        self.snapshots(&name, &rebuilt).await?;
        self.points(&name, size, &rebuilt.points).await?;
        Ok(Some(head.number))
    }

    async fn snapshots(&mut self, volume: &str, head: &Rebuilt) -> Result<()> {
        for snapshot in head.snapshots.iter() {
            let image = format!("{volume}@{}", snapshot.name.as_str());
            match read_snapshot(self.backend, self.volume.id, snapshot).await {
                Ok((manifest, rebuilt)) => {
                    let size = ImageSize::of(&manifest);
                    self.image(&image, size, &rebuilt.base).await?;
                }
                Err(error) => {
                    let id = self.volume.id;
                    match read_history_at(self.backend, id, snapshot.manifest).await {
                        Ok(history) => {
                            let size = ImageSize::of(history.head());
                            self.no_index(&image, size, &history.manifests, error)
                                .await?;
                        }
                        Err(_) => {
                            let key = ObjectKey::manifest(id, snapshot.manifest);
                            self.whole(&image, None, key.as_str(), error)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks the table, and the chunks that the image needs.
    async fn image(&mut self, image: &str, size: ImageSize, base: &VolumeBase) -> Result<()> {
        for wrong in base.recount() {
            let what = format!(
                "the table has {:?} live blocks of chunk {}, the index names {}",
                wrong.kept, wrong.ordinal.0, wrong.counted
            );
            let key = ObjectKey::manifest_prefix(self.volume.id);
            let all = Some(size.whole(image));
            self.report.finding(Severity::Corrupt, &key, &what, all);
        }
        self.check_chunks(image, size.block_size, needed(base))
            .await?;
        let bad = self.bad_chunks(base);
        let mut blocks = bad_blocks(base, &bad);
        for (ordinal, (reference, found)) in bad {
            let blocks = blocks.remove(&ordinal).unwrap_or_default();
            let affected = size.affected(image, blocks);
            let key = reference.key.to_string();
            self.report
                .finding(found.severity, &key, &found.what, affected);
        }
        Ok(())
    }

    /// Chunks that the image needs, and with which something is wrong.
    fn bad_chunks(&self, base: &VolumeBase) -> BadChunks {
        let mut bad = BadChunks::new();
        if !self.has_bad {
            return bad;
        }
        for (ordinal, entry) in base.chunks().filter(|(_, entry)| entry.live > 0) {
            if let Some(Some(found)) = self.checked.get(&entry.reference.key) {
                bad.insert(ordinal, (entry.reference, found.clone()));
            }
        }
        bad
    }

    /// Looks at those of the chunks that were not looked at yet.
    async fn check_chunks(
        &mut self,
        image: &str,
        block_size: BlockSize,
        chunks: impl Iterator<Item = ChunkRef>,
    ) -> Result<()> {
        let due: Vec<ChunkRef> = chunks
            .filter(|reference| !self.checked.contains_key(&reference.key))
            .collect();
        let total = due.len() as u64;
        let (backend, deep) = (self.backend, self.options.deep);
        let at_once = if deep { GETS_AT_ONCE } else { HEADS_AT_ONCE };
        let checks = due.into_iter().map(|reference| async move {
            let found = check_chunk(backend, &reference, block_size, deep).await;
            (reference, found)
        });
        let mut checks = stream::iter(checks).buffer_unordered(at_once);
        let mut done = 0;
        while let Some((reference, found)) = checks.next().await {
            let found = found?;
            self.has_bad |= found.is_some();
            self.checked.insert(reference.key, found);
            done += 1;
            self.report.checked(&reference);
            (self.options.progress)(Progress { image, done, total });
        }
        Ok(())
    }

    /// The index cannot be rebuilt, so that nothing of the image can be read. Says what is missing.
    async fn no_index(
        &mut self,
        image: &str,
        size: ImageSize,
        chain: &[Manifest],
        error: Error,
    ) -> Result<()> {
        let missing = self.missing(chain).await?;
        for key in &missing {
            let all = size.whole(image);
            self.report
                .finding(Severity::Lost, key.as_str(), NO_INDEX, Some(all));
        }
        match missing.is_empty() {
            false => Ok(()),
            true => {
                let head = chain.last().map(Manifest::object);
                let key = head.as_ref().map_or("", ObjectKey::as_str);
                self.whole(image, Some(size), key, error)
            }
        }
    }

    /// What these manifests name for the index, and is not there.
    async fn missing(&self, chain: &[Manifest]) -> Result<Vec<ObjectKey>> {
        let parts = chain.iter().filter_map(|manifest| manifest.checkpoint);
        let parts = parts.map(|root| root.key.object());
        let chunks = chain.iter().flat_map(|manifest| &manifest.added);
        let dead = |key: &ChunkKey| {
            let condemned = chain.iter().flat_map(|manifest| &manifest.condemned);
            let mut condemned = condemned.map(crate::object::SealedRef::object);
            condemned.any(|object| object == key.object())
        };
        let chunks = chunks.map(|chunk| chunk.key).filter(|key| !dead(key));
        let mut missing = Vec::new();
        for key in parts.chain(chunks.map(|key| key.object())) {
            if self.backend.head(&key).await?.is_none() {
                missing.push(key);
            }
        }
        Ok(missing)
    }

    /// Nothing of the image can be read, because of `error`; which may also be that of a backend
    /// that does not answer, and then nothing was found out.
    fn whole(
        &mut self,
        image: &str,
        size: Option<ImageSize>,
        key: &str,
        error: Error,
    ) -> Result<()> {
        let Some(severity) = severity_of(&error) else {
            return Err(error);
        };
        let what = format!("the image cannot be read: {error}");
        let all = size.map(|size| size.whole(image));
        let all = all.unwrap_or_else(|| Affected::unknown(image));
        self.report.finding(severity, key, &what, Some(all));
        Ok(())
    }
}

/// Chunks with which something is wrong, by their ordinals in one image.
type BadChunks = HashMap<ChunkOrdinal, (ChunkRef, Bad)>;

/// Chunks with live blocks.
fn needed(base: &VolumeBase) -> impl Iterator<Item = ChunkRef> {
    let live = base.chunks().filter(|(_, entry)| entry.live > 0);
    live.map(|(_, entry)| entry.reference)
}

/// Blocks of the image that cannot be read of each of these chunks.
fn bad_blocks(base: &VolumeBase, bad: &BadChunks) -> HashMap<ChunkOrdinal, Vec<u64>> {
    let mut blocks: HashMap<ChunkOrdinal, Vec<u64>> = HashMap::new();
    if !bad.is_empty() {
        base.for_each_block(|block, loc| {
            let found = bad.get(&loc.chunk);
            if found.is_some_and(|(_, bad)| bad.affects(loc.slot)) {
                blocks.entry(loc.chunk).or_default().push(block.0);
            }
        });
    }
    blocks
}

/// How bad it is that something cannot be read; `None` if that may pass.
fn severity_of(error: &Error) -> Option<Severity> {
    match error.kind() {
        ErrorKind::NotFound => Some(Severity::Lost),
        ErrorKind::Corrupt | ErrorKind::Invalid => Some(Severity::Corrupt),
        _ => None,
    }
}

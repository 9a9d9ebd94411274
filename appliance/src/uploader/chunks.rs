//! Builds chunk objects: blocks come out of arena memory if they are still there, else out of the
//! WAL file, read with direct I/O on the uploader's executor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use glommio::io::{DmaFile, ReadResult};
use taipan_engine::arena::ArenaReader;
use taipan_engine::block::{SHARD_COUNT, ShardId};
use taipan_engine::chunk::ChunkRef;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::pack::{ChunkJob, PackBlock};
use taipan_engine::wal::{Location, PlaceMap};

/// WAL reads in flight for one chunk.
const READS_AT_ONCE: usize = 64;
/// Bytes of blocks that are read before they are copied.
const WINDOW_BYTES: usize = 4 << 20;
/// Longest read.
const READ_BYTES_MAX: usize = 256 << 10;
/// Blocks of one file with no more than this between them are read together: between two batches
/// there is a header.
const GAP_BYTES_MAX: u64 = 4 << 10;
/// Blocks copied between two looks at whether something more urgent waits.
const BLOCKS_PER_YIELD: usize = 128;

/// Where each shard's batches of a cut are.
pub(super) type CutPlaces = [Option<Arc<PlaceMap>>; SHARD_COUNT];

/// Reads blocks of all shards.
pub(super) struct BlockSource {
    arenas: Vec<ArenaReader>,
    paths: Vec<PathBuf>,
    files: RefCell<HashMap<usize, Rc<DmaFile>>>,
}

impl BlockSource {
    /// `arenas` and `paths` by shard.
    pub(super) fn new(arenas: Vec<ArenaReader>, paths: Vec<PathBuf>) -> Self {
        assert!(arenas.len() == SHARD_COUNT && paths.len() == SHARD_COUNT);
        Self {
            arenas,
            paths,
            files: RefCell::default(),
        }
    }

    /// Bytes of memory that [`BlockSource::build`] takes at most, the object included.
    pub(super) fn bytes_needed(job: &ChunkJob) -> u64 {
        let bytes = job.blocks().len() * job.spec.block_size.bytes();
        // Half of what is read may be gaps.
        (bytes + 2 * bytes.min(WINDOW_BYTES)) as u64
    }

    /// Builds one chunk object; every block is checked against the CRC of its WAL record.
    pub(super) async fn build(
        &self,
        job: &ChunkJob,
        places: &CutPlaces,
    ) -> Result<(Bytes, ChunkRef)> {
        if let Some(built) = job.build_copied() {
            return built;
        }
        let mut builder = job.builder()?;
        let block_bytes = job.spec.block_size.bytes();
        let blocks = job.blocks();
        let window_blocks = (WINDOW_BYTES / block_bytes).max(1);
        let mut ahead = ReadAhead::default();
        for (index, block) in blocks.iter().enumerate() {
            let shard = block.block.shard();
            let location = locate(places, shard, block)?;
            let copied = location.arena_offset.is_some_and(|offset| {
                let from_memory = |slot: &mut [u8]| {
                    if self.arenas[shard.index()].copy(block.place.batch, offset, slot) {
                        Ok(())
                    } else {
                        Err(Error::new(ErrorKind::NotFound, "evicted from memory"))
                    }
                };
                builder.push_with(block.crc, from_memory).is_ok()
            });
            if !copied {
                if ahead.bytes(index, block_bytes).is_none() {
                    if index >= ahead.end {
                        let end = blocks.len().min(index + window_blocks);
                        ahead = ReadAhead::until(end);
                    }
                    let window = &blocks[index..ahead.end];
                    let wanted = self.evicted(index, window, places, &ahead)?;
                    self.read_ahead(&wanted, block_bytes, &mut ahead).await?;
                }
                let bytes = ahead.bytes(index, block_bytes).ok_or_else(|| {
                    Error::new(ErrorKind::Transient, "a block was not read").with_shard(shard)
                })?;
                builder.push(bytes, block.crc)?;
            }
            if index % BLOCKS_PER_YIELD == BLOCKS_PER_YIELD - 1 {
                glommio::yield_if_needed().await;
            }
        }
        builder.finish()
    }

    /// The blocks of `window` that are neither in memory nor read ahead, in the order of the files;
    /// the first one was asked for in vain already.
    fn evicted(
        &self,
        first: usize,
        window: &[PackBlock],
        places: &CutPlaces,
        ahead: &ReadAhead,
    ) -> Result<Vec<Wanted>> {
        let mut wanted = Vec::new();
        for (at, block) in window.iter().enumerate() {
            let shard = block.block.shard();
            let location = locate(places, shard, block)?;
            let mut probe = [0u8; 8];
            let resident = at > 0
                && location.arena_offset.is_some_and(|offset| {
                    self.arenas[shard.index()].copy(block.place.batch, offset, &mut probe)
                });
            if !resident && !ahead.places.contains_key(&(first + at)) {
                wanted.push(Wanted {
                    shard,
                    offset: location.file_offset,
                    index: first + at,
                });
            }
        }
        wanted.sort_unstable();
        Ok(wanted)
    }

    /// Reads blocks, neighbours together and many at a time.
    async fn read_ahead(
        &self,
        wanted: &[Wanted],
        block_bytes: usize,
        ahead: &mut ReadAhead,
    ) -> Result<()> {
        let spans = spans_of(wanted, block_bytes);
        let reads = spans.into_iter().map(|span| async move {
            let bytes = self.read(span.shard, span.offset, span.bytes).await?;
            Ok::<_, Error>((span, bytes))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
        while let Some(read) = reads.next().await {
            let (span, bytes) = read?;
            for one in &wanted[span.blocks.clone()] {
                let place = (ahead.reads.len(), (one.offset - span.offset) as usize);
                ahead.places.insert(one.index, place);
            }
            ahead.reads.push(bytes);
        }
        Ok(())
    }

    async fn read(&self, shard: ShardId, offset: u64, len: usize) -> Result<ReadResult> {
        let path = &self.paths[shard.index()];
        let failed = |e: String| {
            Error::new(ErrorKind::Io, format!("read the WAL to pack it: {e}"))
                .with_path(path)
                .with_shard(shard)
                .with_offset(offset)
        };
        let known = self.files.borrow().get(&shard.index()).cloned();
        let file = match known {
            Some(file) => file,
            None => {
                let file = DmaFile::open(path)
                    .await
                    .map_err(|e| failed(e.to_string()))?;
                let file = Rc::new(file);
                self.files
                    .borrow_mut()
                    .insert(shard.index(), Rc::clone(&file));
                file
            }
        };
        let read = file
            .read_at_aligned(offset, len)
            .await
            .map_err(|e| failed(e.to_string()))?;
        if read.len() != len {
            return Err(failed(format!("{} of {len} bytes", read.len())));
        }
        Ok(read)
    }
}

/// A block to be read from the file of its shard; ordered as the files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    shard: ShardId,
    /// In the file.
    offset: u64,
    /// In the chunk.
    index: usize,
}

/// What is read at once: neighbours in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    shard: ShardId,
    offset: u64,
    bytes: usize,
    /// Which of the wanted blocks it holds.
    blocks: Range<usize>,
}

/// Joins ordered blocks to spans.
fn spans_of(wanted: &[Wanted], block_bytes: usize) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, one) in wanted.iter().enumerate() {
        let end = one.offset + block_bytes as u64;
        if let Some(span) = spans.last_mut() {
            let joined = (end - span.offset.min(end)) as usize;
            let near = one.offset <= span.offset + span.bytes as u64 + GAP_BYTES_MAX;
            if span.shard == one.shard && near && joined <= READ_BYTES_MAX {
                span.bytes = joined;
                span.blocks.end = at + 1;
                continue;
            }
        }
        spans.push(Span {
            shard: one.shard,
            offset: one.offset,
            bytes: block_bytes,
            blocks: at..at + 1,
        });
    }
    spans
}

/// Blocks that were read before they are needed.
#[derive(Default)]
struct ReadAhead {
    /// Of blocks of the chunk before this one.
    end: usize,
    reads: Vec<ReadResult>,
    /// By the block's index in the chunk: which read, and where in it.
    places: HashMap<usize, (usize, usize)>,
}

impl ReadAhead {
    fn until(end: usize) -> Self {
        Self {
            end,
            ..Self::default()
        }
    }

    fn bytes(&self, index: usize, block_bytes: usize) -> Option<&[u8]> {
        let (read, at) = *self.places.get(&index)?;
        self.reads[read].get(at..at + block_bytes)
    }
}

fn locate(places: &CutPlaces, shard: ShardId, block: &PackBlock) -> Result<Location> {
    places[shard.index()]
        .as_ref()
        .and_then(|map| map.locate(block.place))
        .ok_or_else(|| {
            Error::corrupt(format!(
                "batch {} of a sealed block is unknown",
                block.place.batch
            ))
            .with_shard(shard)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(places: &[(u8, u64)]) -> Vec<Wanted> {
        let one = |(index, (shard, page)): (usize, &(u8, u64))| Wanted {
            shard: ShardId::all().nth(usize::from(*shard)).expect("a shard"),
            offset: page * 4096,
            index,
        };
        places.iter().enumerate().map(one).collect()
    }

    #[test]
    fn neighbours_of_one_file_are_read_together_over_a_header() {
        let blocks = wanted(&[(0, 1), (0, 2), (0, 4), (0, 7), (1, 8), (1, 8)]);
        let spans = spans_of(&blocks, 4096);
        let found = spans.iter().map(|span| (span.offset / 4096, span.bytes));
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(1, 4 * 4096), (7, 4096), (8, 4096)]);
        let held: Vec<_> = spans.iter().map(|span| span.blocks.clone()).collect();
        assert_eq!(held, [0..3, 3..4, 4..6]);
    }

    #[test]
    fn a_read_has_a_limit() {
        let pages: Vec<(u8, u64)> = (0..200).map(|page| (3, page)).collect();
        let spans = spans_of(&wanted(&pages), 4096);
        assert!(spans.iter().all(|span| span.bytes <= READ_BYTES_MAX));
        let read: usize = spans.iter().map(|span| span.bytes).sum();
        assert_eq!((spans.len(), read), (4, 200 * 4096));
        let large = spans_of(&wanted(&[(0, 0), (0, 16), (0, 128)]), 64 << 10);
        let found: Vec<usize> = large.iter().map(|span| span.bytes).collect();
        assert_eq!(found, [128 << 10, 64 << 10]);
    }
}

//! Rewriting chunks of which little is live: what was chosen, and reading it. Which chunks, and the
//! commit of what was read: [`VolumeCommit`](super::VolumeCommit). See
//! `docs/internals/compaction.md`.

use std::ops::Range;

use bytes::Bytes;

use crate::backend::{Backend, Portion, read_checked};
use crate::block::{BlockNum, BlockSize, SHARD_COUNT};
use crate::chunk::{ChunkRef, SlotStamp, open_slot, slot_stride};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::VolumeId;
use crate::index::rebuild::fetch_extents;
use crate::index::{ChunkLoc, ChunkOrdinal, ShardBase};
use crate::object::ChunkKey;

/// Bytes of dead slots that are read along rather than asked around.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Longest read of live slots.
const READ_BYTES_MAX: u64 = 1 << 20;

/// When chunks are worth rewriting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionPolicy {
    /// A chunk of which less than this share of the blocks is live is rewritten.
    pub threshold_percent: u8,
    /// A compaction frees blocks worth at least this share of a full chunk.
    pub freed_percent: u8,
    /// Full chunks that one compaction writes at most.
    pub chunks_max: u32,
}

/// A chunk that is to be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its ordinal when it was chosen.
    pub ordinal: ChunkOrdinal,
    /// The object, which says what the ordinal meant.
    pub reference: ChunkRef,
    /// Live blocks when it was chosen.
    pub live: u32,
}

/// Chunks of one volume to be rewritten together, and which of their blocks are live.
pub struct CompactionJob {
    /// The volume.
    pub volume: VolumeId,
    pub(super) block_size: BlockSize,
    pub(super) sources: Vec<Source>,
    /// The index when they were chosen; shares its leaves.
    pub(super) shards: Box<[ShardBase; SHARD_COUNT]>,
}

/// A live block of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) block: BlockNum,
    pub(super) from: ChunkLoc,
    pub(super) crc: u32,
    /// Which block of the bytes read it is.
    pub(super) at: u32,
}

/// What was read of a [`CompactionJob`]; goes to
/// [`start_compaction`](super::VolumeCommit::start_compaction).
pub struct CompactionRead {
    /// The volume.
    pub volume: VolumeId,
    pub(super) sources: Vec<Source>,
    pub(super) blocks: Vec<Copied>,
    pub(super) bytes: Bytes,
    /// Sources that are missing or damaged, and what was found: left out, and set aside from now
    /// on.
    pub unreadable: Vec<(ChunkKey, Error)>,
    /// Bytes that were asked of the backend.
    pub read_bytes: u64,
    /// Requests that were made of it.
    pub requests: u64,
}

impl CompactionJob {
    /// Chunks that are rewritten.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Bytes of blocks that reading it takes in memory.
    pub fn bytes_needed(&self) -> u64 {
        let live: u64 = self.sources.iter().map(|s| u64::from(s.live)).sum();
        live * self.block_size.bytes() as u64
    }

    /// Reads all live blocks, each checked against its CRC. Sources that are missing or damaged are
    /// left out; any other error ends it.
    pub async fn read(mut self, backend: &dyn Backend) -> Result<CompactionRead> {
        let mut read = CompactionRead {
            volume: self.volume,
            sources: Vec::new(),
            blocks: Vec::new(),
            bytes: Bytes::new(),
            unreadable: Vec::new(),
            read_bytes: 0,
            requests: 0,
        };
        let mut bytes = Vec::with_capacity(self.bytes_needed() as usize);
        for source in std::mem::take(&mut self.sources) {
            let before = (read.blocks.len(), bytes.len());
            match self
                .read_source(backend, &source, &mut read, &mut bytes)
                .await
            {
                Ok(()) => read.sources.push(source),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                    read.blocks.truncate(before.0);
                    bytes.truncate(before.1);
                    read.unreadable.push((source.reference.key, error));
                }
                Err(error) => return Err(error),
            }
        }
        read.blocks.sort_unstable_by_key(|copied| copied.block);
        read.bytes = Bytes::from(bytes);
        Ok(read)
    }

    async fn read_source(
        &self,
        backend: &dyn Backend,
        source: &Source,
        read: &mut CompactionRead,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        read.requests += 1;
        read.read_bytes += u64::from(source.reference.head_bytes);
        let extents = fetch_extents(backend, &source.reference).await?;
        let slots = extents.runs.iter().flat_map(|run| {
            (0..run.count).map(|i| (BlockNum(run.start.0 + u64::from(i)), run.slot + i))
        });
        let live = slots.filter(|(block, slot)| self.is_live(*block, source, *slot));
        let live: Vec<(BlockNum, u32)> = live.collect();
        for span in self.spans(&live) {
            read.requests += 1;
            read.read_bytes += self
                .read_span(backend, source, &live[span], &mut read.blocks, bytes)
                .await?;
        }
        Ok(())
    }

    fn is_live(&self, block: BlockNum, source: &Source, slot: u32) -> bool {
        let chunk = source.ordinal;
        let place = self.shards[block.shard().index()].lookup(block.local());
        place == Some(ChunkLoc { chunk, slot })
    }

    /// Which of these are read together; slots ascend as blocks do.
    fn spans(&self, live: &[(BlockNum, u32)]) -> Vec<Range<usize>> {
        let stride = slot_stride(self.block_size) as u64;
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (at, (_, slot)) in live.iter().enumerate() {
            if let Some(span) = spans.last_mut() {
                let bytes = |from: u32| u64::from(slot - from) * stride;
                let is_near = bytes(live[at - 1].1) <= GAP_BYTES_MAX + stride;
                if is_near && bytes(live[span.start].1) < READ_BYTES_MAX {
                    span.end = at + 1;
                    continue;
                }
            }
            spans.push(at..at + 1);
        }
        spans
    }

    async fn read_span(
        &self,
        backend: &dyn Backend,
        source: &Source,
        live: &[(BlockNum, u32)],
        blocks: &mut Vec<Copied>,
        bytes: &mut Vec<u8>,
    ) -> Result<u64> {
        let (size, chunk) = (self.block_size, source.ordinal);
        let (first, last) = (live[0].1, live[live.len() - 1].1);
        let range = source.reference.slot_range(size, first, last - first + 1);
        let (key, len) = (source.reference.key.object(), range.end - range.start);
        let stride = slot_stride(size);
        let open = |read: &Bytes| -> Result<Vec<(Bytes, SlotStamp)>> {
            let opened = live.iter().map(|(block, slot)| {
                let at = (slot - first) as usize * stride;
                let (content, stamp) = open_slot(&read[at..at + stride], size)?;
                match stamp.is_of(*block) {
                    true => Ok((read.slice_ref(content), stamp)),
                    false => {
                        let text = format!("slot {slot} of chunk {key} holds another block");
                        Err(Error::corrupt(text).with_volume(self.volume))
                    }
                }
            });
            opened.collect()
        };
        let span = Portion::Range(range.start, len);
        let opened = read_checked(backend, &key, span, open).await?;
        for ((block, slot), (content, stamp)) in live.iter().zip(opened) {
            blocks.push(Copied {
                block: *block,
                from: ChunkLoc { chunk, slot: *slot },
                crc: stamp.crc,
                at: blocks.len() as u32,
            });
            bytes.extend_from_slice(&content);
        }
        Ok(len)
    }
}

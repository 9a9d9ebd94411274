//! Builds chunk objects: blocks come out of arena memory if they are still there, else out of the
//! WAL file, read with direct I/O on the uploader's executor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use glommio::io::DmaFile;
use taipan_engine::arena::ArenaReader;
use taipan_engine::block::{SHARD_COUNT, ShardId};
use taipan_engine::chunk::ChunkRef;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::pack::{ChunkJob, PackBlock};
use taipan_engine::wal::{Location, PlaceMap};

/// WAL reads in flight for one chunk.
const READ_AHEAD: usize = 64;
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

    /// Builds one chunk object; every block is checked against the CRC of its WAL record.
    pub(super) async fn build(
        &self,
        job: &ChunkJob,
        places: &CutPlaces,
    ) -> Result<(Bytes, ChunkRef)> {
        let mut builder = job.builder()?;
        let block_bytes = job.spec.block_size.bytes();
        let blocks = job.blocks();
        let mut ahead: HashMap<usize, Vec<u8>> = HashMap::new();
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
                if !ahead.contains_key(&index) {
                    let window = &blocks[index..blocks.len().min(index + READ_AHEAD)];
                    self.read_ahead(index, window, places, block_bytes, &mut ahead)
                        .await?;
                }
                let bytes = ahead.remove(&index).ok_or_else(|| {
                    Error::new(ErrorKind::Transient, "a block was not read").with_shard(shard)
                })?;
                builder.push(&bytes, block.crc)?;
            }
            if index % BLOCKS_PER_YIELD == BLOCKS_PER_YIELD - 1 {
                glommio::yield_if_needed().await;
            }
        }
        builder.finish()
    }

    /// Reads the blocks of `window` that are not in memory, many at a time.
    async fn read_ahead(
        &self,
        first: usize,
        window: &[PackBlock],
        places: &CutPlaces,
        block_bytes: usize,
        out: &mut HashMap<usize, Vec<u8>>,
    ) -> Result<()> {
        let mut wanted = Vec::new();
        for (at, block) in window.iter().enumerate() {
            let shard = block.block.shard();
            let location = locate(places, shard, block)?;
            let mut probe = [0u8; 8];
            let resident = at > 0
                && location.arena_offset.is_some_and(|offset| {
                    self.arenas[shard.index()].copy(block.place.batch, offset, &mut probe)
                });
            if !resident && !out.contains_key(&(first + at)) {
                wanted.push((first + at, shard, location.file_offset));
            }
        }
        let reads = wanted.into_iter().map(|(index, shard, offset)| async move {
            self.read(shard, offset, block_bytes)
                .await
                .map(|bytes| (index, bytes))
        });
        for read in join_all(reads).await {
            let (index, bytes) = read?;
            out.insert(index, bytes);
        }
        Ok(())
    }

    async fn read(&self, shard: ShardId, offset: u64, len: usize) -> Result<Vec<u8>> {
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
        Ok(read.to_vec())
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

//! Chunks of a cut, built as the uploader does, and read as the fetcher does.

use bytes::Bytes;
use futures::executor::block_on;

use super::uploader::CutPlaces;
use super::world::World;
use crate::backend::Backend;
use crate::block::ShardId;
use crate::chunk::{ChunkRef, slot_stride, verify_slot};
use crate::core::Fetch;
use crate::error::{Error, ErrorKind, Result};
use crate::pack::{ChunkJob, PackBlock};

impl World {
    /// Packs a chunk: blocks out of memory if they are still there, else out of the WAL file.
    pub(super) fn build(
        &mut self,
        job: &ChunkJob,
        places: &CutPlaces,
    ) -> Result<(Bytes, ChunkRef)> {
        if let Some(built) = job.build_copied() {
            return built;
        }
        let mut bytes = vec![0; job.spec.block_size.bytes()];
        let mut builder = job.builder()?;
        for block in job.blocks() {
            self.read_block(block, places, &mut bytes)?;
            builder.push(&bytes, block.crc)?;
        }
        builder.finish()
    }

    fn read_block(
        &mut self,
        block: &PackBlock,
        places: &CutPlaces,
        bytes: &mut [u8],
    ) -> Result<()> {
        let shard: ShardId = block.block.shard();
        let location = places[shard.index()]
            .as_ref()
            .and_then(|map| map.locate(block.place))
            .ok_or_else(|| Error::corrupt("a sealed block's batch is unknown"))?;
        let reader = &self.node_ref().readers[shard.index()];
        if location
            .arena_offset
            .is_some_and(|at| reader.copy(block.place.batch, at, bytes))
        {
            return Ok(());
        }
        self.coverage.hit("a cut packed blocks from the WAL file");
        self.read_wal(shard, location.file_offset, bytes)
            .map_err(|_| Error::new(ErrorKind::Io, "the simulated disk does not read"))
    }

    /// What the fetcher returns for a read: the wanted blocks, verified.
    pub(super) fn fetch_blocks(&mut self, fetch: &Fetch, chunk: &ChunkRef) -> Result<Vec<u8>> {
        let range = chunk.slot_range(fetch.block_size, fetch.first_slot, fetch.slots);
        let key = chunk.key.object();
        let bytes = block_on(
            self.objects
                .get_range(&key, range.start, range.end - range.start),
        )?;
        let stride = slot_stride(fetch.block_size);
        let mut blocks = Vec::new();
        for (slot, block) in &fetch.wanted {
            let slot = &bytes[*slot as usize * stride..][..stride];
            blocks.extend_from_slice(verify_slot(slot, fetch.block_size, *block)?);
        }
        Ok(blocks)
    }
}

//! Reads of the cores that wait for some of their blocks.

use std::time::Instant;

use taipan_engine::block::BlockNum;
use taipan_engine::chunk::ChunkRef;
use taipan_engine::core::{Failure, Fetch};

use super::buffers::{Blocks, Buffers};
use crate::inbox::{CoreAddress, CoreMessage};

/// Who waits for a slot: the read, and which of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) read: u64,
    pub(super) index: u32,
}

/// A read of a core.
pub(super) struct Waiting {
    pub(super) fetch: Fetch,
    pub(super) chunk: ChunkRef,
    pub(super) deadline: Instant,
    reply: CoreAddress,
    blocks: Blocks,
    /// Blocks that are still missing.
    left: usize,
    failed: bool,
    mismatches: u64,
}

impl Waiting {
    pub(super) fn new(
        fetch: Fetch,
        chunk: ChunkRef,
        reply: CoreAddress,
        deadline: Instant,
        buffers: &Buffers,
    ) -> Self {
        let left = fetch.wanted.len();
        Self {
            blocks: buffers.take(left * fetch.block_size.bytes()),
            fetch,
            chunk,
            deadline,
            reply,
            left,
            failed: false,
            mismatches: 0,
        }
    }

    /// Slot and number of the block at `index`.
    pub(super) fn wanted(&self, index: usize) -> (u32, BlockNum) {
        let (slot, block) = self.fetch.wanted[index];
        (self.fetch.first_slot + slot, block)
    }

    /// A block is there.
    pub(super) fn fill(&mut self, index: usize, block: &[u8]) {
        let bytes = self.fetch.block_size.bytes();
        self.blocks.as_mut()[index * bytes..][..bytes].copy_from_slice(block);
        self.left -= 1;
    }

    /// A block will not come.
    pub(super) fn fail(&mut self) {
        self.failed = true;
        self.left -= 1;
    }

    /// Bytes from the backend were not the block's.
    pub(super) fn note_mismatch(&mut self) {
        self.mismatches += 1;
    }

    /// Whether no block is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Tells the core.
    pub(super) fn answer(self) {
        let blocks = if self.failed || self.left > 0 {
            Err(Failure::Io)
        } else {
            Ok(self.blocks)
        };
        self.reply.send(CoreMessage::Fetched {
            op: self.fetch.op,
            blocks,
            mismatches: self.mismatches,
        });
    }
}

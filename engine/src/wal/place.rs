//! Where a block's bytes lie in its shard's write-ahead log.

use crate::identity::BatchNum;

/// Position of a block inside its shard's log: stable from append until the batch's segment is
/// released, whether the bytes are still in memory or only in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The batch that holds the block.
    pub batch: BatchNum,
    /// Page (4 KiB) of the block's first byte inside its batch; page 0 is the batch's header.
    pub page: u16,
}

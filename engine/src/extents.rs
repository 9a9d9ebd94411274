//! Which parts of a volume hold data, and where that is: the answer to a map of a byte range.
//!
//! Each shard answers [`Runs`] over its own blocks, [`interleave`] makes [`Extent`]s of those of
//! all shards. See `docs/internals/extent-index.md`.

mod caches;
mod interleave;
mod runs;
mod seats;

pub use caches::{Caches, Stretch};
pub use interleave::{ShardRuns, interleave};
pub use runs::{Run, Runs};
pub use seats::{Seat, Seats};

/// Most runs that one shard answers.
pub const RUNS_MAX: usize = 2048;
/// Most extents of an answer.
pub const EXTENTS_MAX: usize = 16 << 10;

/// What a range reads as, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Zeros: it was never written, or is committed as zeroed.
    Hole,
    /// Zeros: an uncommitted record says so. Told only to who asks for [`View::stored`].
    Zero,
    /// What was written.
    Data,
}

/// How far the newest version of a block has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stored {
    /// Answered at most: a power loss takes it. Zeroed ranges count as this until nothing of their
    /// shard is undurable.
    Undurable,
    /// Durable, but only in the local log.
    Local,
    /// In a committed manifest; so is every hole.
    Committed,
}

/// Where the newest version of a block is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Residence {
    /// The backend: no cache has it.
    Backend,
    /// This machine: the log, or the file of the cache of chunks.
    Local,
    /// Memory: of the log, or a cache of chunks. Zeros are read from nowhere and count as this.
    Memory,
}

/// What is told of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockState {
    /// What it reads as.
    pub content: Content,
    /// How far it has come.
    pub stored: Stored,
    /// Where it is read from.
    pub residence: Residence,
    /// Since which baselines it has changed, of those that were asked about.
    pub changed: Seats,
}

impl BlockState {
    /// A block that nothing is known of.
    pub const HOLE: Self = Self {
        content: Content::Hole,
        stored: Stored::Committed,
        residence: Residence::Memory,
        changed: Seats::NONE,
    };
}

/// Neighbouring bytes of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, above zero.
    pub len: u64,
    /// What they are.
    pub state: BlockState,
}

/// Which differences between blocks matter; fewer make longer extents. Of the others the answer
/// says what it says of a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// [`BlockState::content`].
    pub content: bool,
    /// [`BlockState::stored`].
    pub stored: bool,
    /// [`BlockState::residence`].
    pub residence: bool,
    /// [`BlockState::changed`]: since these baselines.
    pub since: Seats,
}

impl Default for View {
    /// Content alone.
    fn default() -> Self {
        Self {
            content: true,
            stored: false,
            residence: false,
            since: Seats::NONE,
        }
    }
}

impl View {
    /// `state` without the differences that do not matter. A zeroed range differs from a hole in
    /// [`BlockState::stored`] alone.
    pub(crate) fn of(self, state: BlockState) -> BlockState {
        BlockState {
            content: match state.content {
                _ if !self.content => Content::Hole,
                Content::Zero if !self.stored => Content::Hole,
                content => content,
            },
            stored: if self.stored {
                state.stored
            } else {
                Stored::Committed
            },
            residence: if self.residence {
                state.residence
            } else {
                Residence::Memory
            },
            changed: state.changed,
        }
    }
}

/// A question for the map of a byte range, which lies inside the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapQuery {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What matters.
    pub view: View,
    /// Most extents wanted, at least 1; never more than [`EXTENTS_MAX`] come.
    pub extents_max: usize,
}

#[cfg(test)]
mod tests;

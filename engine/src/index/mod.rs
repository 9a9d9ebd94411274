//! The extent index: where the newest version of every block is.
//!
//! A lookup asks the overlay of uncommitted records first ([`overlay`]), then the base of committed
//! leaves ([`base`], [`leaf`]); a block in neither is zeros. The format of leaves and of index
//! parts, and the reasons, are in `docs/internals/extent-index.md`.

pub mod base;
mod baseline;
mod diff;
mod indexed;
pub mod leaf;
pub mod overlay;
pub mod part;
pub mod rebuild;
pub mod volume;

pub use base::{LeafChanges, ShardBase};
pub use baseline::{Baseline, Comparison, Reassigned};
pub use diff::{Changed, ChangedRun, changed_runs};
pub use indexed::IndexedImage;
pub use leaf::{ChunkLoc, ChunkOrdinal, LEAF_BLOCKS, Leaf, LeafEntry, LeafKey};
pub use overlay::{Hit, Overlay, Point, Scan, Winners};
pub use volume::{AddedChunk, Applied, ChunkEntry, Miscount, PartItems, VolumeBase, VolumeChanges};

//! Images with their index in memory, from which clones are made without reading it again.

use super::VolumeBase;
use crate::manifest::{CheckpointRef, Manifest};

/// An image of a volume with its index. Cloning it shares the leaves, whatever their number.
#[derive(Clone)]
pub struct IndexedImage {
    /// The manifest whose image it is.
    pub manifest: Manifest,
    /// Where its blocks are, and what came after the last checkpoint.
    pub base: VolumeBase,
    /// Parts of the last checkpoint by then, oldest first.
    pub parts: Vec<CheckpointRef>,
}

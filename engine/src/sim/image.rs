//! A volume's image as the bucket alone gives it.

use futures::executor::block_on;

use super::pattern::Lattice;
use crate::backend::MemBackend;
use crate::block::BlockNum;
use crate::error::Result;
use crate::identity::VolumeId;
use crate::index::VolumeBase;
use crate::index::rebuild::rebuild;
use crate::registry::{read_blocks, read_history};

/// Reads the whole volume from its head manifest.
pub(super) fn read_image(objects: &MemBackend, id: VolumeId, lattice: Lattice) -> Result<Vec<u8>> {
    block_on(async {
        let history = read_history(objects, id, None).await?;
        let base = rebuild(objects, &history.manifests).await?.base;
        read_all(objects, &base, lattice).await
    })
}

/// Reads the whole volume as an index says.
pub(super) async fn read_all(
    objects: &MemBackend,
    base: &VolumeBase,
    lattice: Lattice,
) -> Result<Vec<u8>> {
    let all = (BlockNum(0), u64::from(lattice.blocks));
    read_blocks(objects, base, lattice.block_size, all).await
}

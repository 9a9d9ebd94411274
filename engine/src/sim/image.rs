//! A volume's image as the bucket alone gives it.

use futures::executor::block_on;
use hashbrown::HashMap;

use super::pattern::Lattice;
use crate::backend::{Backend, MemBackend};
use crate::block::BlockNum;
use crate::chunk::verify_slot;
use crate::error::{Error, Result};
use crate::identity::VolumeId;
use crate::index::VolumeBase;
use crate::index::rebuild::rebuild;
use crate::registry::read_history;

/// Reads the whole volume from its head manifest.
pub(super) fn read_image(objects: &MemBackend, id: VolumeId, lattice: Lattice) -> Result<Vec<u8>> {
    block_on(async {
        let history = read_history(objects, id, None).await?;
        let base = rebuild(objects, &history.manifests).await?.base;
        read_blocks(objects, &base, lattice).await
    })
}

/// Reads the whole volume as an index says.
pub(super) async fn read_blocks(
    objects: &MemBackend,
    base: &VolumeBase,
    lattice: Lattice,
) -> Result<Vec<u8>> {
    let block_bytes = lattice.block_size.bytes();
    let mut image = vec![0; lattice.size_bytes() as usize];
    let mut bodies = HashMap::new();
    for number in 0..lattice.blocks {
        let block = BlockNum(u64::from(number));
        let Some(loc) = base.lookup(block) else {
            continue;
        };
        let chunk = base
            .chunk(loc.chunk)
            .ok_or_else(|| Error::corrupt("a location without its chunk"))?
            .reference;
        if !bodies.contains_key(&loc.chunk) {
            bodies.insert(loc.chunk, objects.get(&chunk.key.object()).await?);
        }
        let range = chunk.slot_range(lattice.block_size, loc.slot, 1);
        let slot = bodies[&loc.chunk]
            .get(range.start as usize..range.end as usize)
            .ok_or_else(|| Error::corrupt("a chunk is too short"))?;
        let bytes = verify_slot(slot, lattice.block_size, block)?;
        image[number as usize * block_bytes..][..block_bytes].copy_from_slice(bytes);
    }
    Ok(image)
}

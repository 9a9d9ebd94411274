//! Opens a volume for writing: takeover in the backend, then the index from its manifests.

use taipan_engine::backend::Backend;
use taipan_engine::commit::{CommitConfig, Random, VolumeCommit};
use taipan_engine::error::Result;
use taipan_engine::identity::{Epoch, VolumeId};
use taipan_engine::index::rebuild::rebuild;
use taipan_engine::registry::{LocalHead, LocalHeads, open_for_writing, random_u64};

/// A volume that this process may write.
pub struct Opened {
    /// Its commits, with the committed index.
    pub commit: VolumeCommit,
    /// Its local head record; tells what becomes of WAL records.
    pub local: LocalHead,
    /// Whether it was closed in order before.
    pub was_clean: bool,
}

/// Opens the volume. `stamped_through`: the greatest epoch this appliance ever stamped.
pub async fn open_volume(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
) -> Result<Opened> {
    let opened = open_for_writing(backend, heads, id, stamped_through).await?;
    let rebuilt = rebuild(backend, &opened.history.manifests).await?;
    let seed = [random_u64()?, random_u64()?, random_u64()?, random_u64()?];
    let head = opened.history.head().clone();
    let commit = VolumeCommit::new(head, rebuilt, CommitConfig::default(), Random::new(seed));
    Ok(Opened {
        commit,
        local: opened.local,
        was_clean: opened.was_clean,
    })
}

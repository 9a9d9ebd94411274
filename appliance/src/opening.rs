//! Opens volumes for writing: takeover in the backend, then the index from its manifests.

use taipan_engine::backend::Backend;
use taipan_engine::commit::{CommitConfig, Random, VolumeCommit};
use taipan_engine::error::Result;
use taipan_engine::identity::{Epoch, Generation, VolumeId};
use taipan_engine::index::rebuild::{Rebuilt, follow, rebuild};
use taipan_engine::manifest::Manifest;
use taipan_engine::registry::{
    self, History, LocalHead, LocalHeads, OpenedVolume, Opening, begin_serving, open_for_writing,
    open_own, random_u64, read_head,
};

/// A volume that this process may write.
pub struct Opened {
    /// Its commits, with the committed index.
    pub commit: VolumeCommit,
    /// Its local head record; tells what becomes of WAL records.
    pub local: LocalHead,
    /// Whether it was closed in order before.
    pub was_clean: bool,
    /// Served under its old generation, because the backend could not be asked.
    pub unverified: bool,
}

impl Opened {
    /// What the first epoch of a start goes by. Above what was copied out, too: its stamps may be
    /// gone from the WAL, the verdict stays.
    pub fn used(&self) -> (Epoch, bool) {
        let used = self.commit.head().epoch.max(self.local.begins_above());
        (used, self.unverified)
    }
}

/// What a start finds of a volume.
pub enum Found {
    /// It is open for writing.
    Opened(Box<Opened>),
    /// Another appliance owns it: its newest manifest.
    Elsewhere(Box<Manifest>),
}

/// Opens a volume of a running daemon, whoever owned it, and notes that it is served.
/// `stamped_through`: the greatest epoch this appliance ever stamped.
pub async fn open_volume(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
) -> Result<Opened> {
    let opened = open_for_writing(backend, heads, id, stamped_through).await?;
    let mut opened = build(backend, opened).await?;
    begin_serving(heads, &mut opened.local, stamped_through)?;
    Ok(opened)
}

/// Opens a volume that was just created, whose first manifest and its index are known.
pub async fn open_created(
    backend: &dyn Backend,
    heads: &LocalHeads,
    (first, index): (&Manifest, Rebuilt),
    stamped_through: Epoch,
) -> Result<Opened> {
    let opened = open_for_writing(backend, heads, first.volume, stamped_through).await?;
    let history = &opened.history;
    let commit = match history.manifests.split_first() {
        Some((oldest, later)) if oldest == first => {
            commit_from(history, follow(backend, index, later).await?)?
        }
        _ => commit_after(backend, history).await?,
    };
    let mut opened = Opened {
        commit,
        local: opened.local,
        was_clean: opened.was_clean,
        unverified: false,
    };
    begin_serving(heads, &mut opened.local, stamped_through)?;
    Ok(opened)
}

/// Opens a volume at start, whoever owned it if `takes_all`, else only if it is our own. The caller
/// notes that it is served once the memory that outlives the process is there.
pub async fn open_at_start(
    backend: &dyn Backend,
    heads: &LocalHeads,
    id: VolumeId,
    stamped_through: Epoch,
    takes_all: bool,
) -> Result<Found> {
    if takes_all {
        let opened = open_for_writing(backend, heads, id, stamped_through).await?;
        return Ok(Found::Opened(Box::new(build(backend, opened).await?)));
    }
    if heads.load(id)?.is_none() {
        // Another's, most likely: one look at its head is enough to know.
        let head = read_head(backend, id, None).await?;
        if head.generation != Generation(0) {
            return Ok(Found::Elsewhere(Box::new(head)));
        }
    }
    match open_own(backend, heads, id, stamped_through).await? {
        Opening::Opened(opened) => Ok(Found::Opened(Box::new(build(backend, *opened).await?))),
        Opening::Elsewhere(head) => Ok(Found::Elsewhere(head)),
    }
}

/// Opens a volume of ours from local copies, while the backend cannot be reached; see
/// [`registry::open_unverified`].
pub async fn open_unverified(
    copies: &dyn Backend,
    heads: &LocalHeads,
    local: LocalHead,
) -> Result<Opened> {
    let (opened, rebuilt) = registry::open_unverified(copies, heads, local).await?;
    Ok(Opened {
        commit: commit_from(&opened.history, rebuilt)?,
        local: opened.local,
        was_clean: opened.was_clean,
        unverified: true,
    })
}

async fn build(backend: &dyn Backend, opened: OpenedVolume) -> Result<Opened> {
    Ok(Opened {
        commit: commit_after(backend, &opened.history).await?,
        local: opened.local,
        was_clean: opened.was_clean,
        unverified: false,
    })
}

/// The commits that follow a history, with the index rebuilt.
pub async fn commit_after(backend: &dyn Backend, history: &History) -> Result<VolumeCommit> {
    commit_from(history, rebuild(backend, &history.manifests).await?)
}

fn commit_from(history: &History, rebuilt: Rebuilt) -> Result<VolumeCommit> {
    let seed = [random_u64()?, random_u64()?, random_u64()?, random_u64()?];
    let config = CommitConfig::default();
    let head = history.head().clone();
    Ok(VolumeCommit::new(head, rebuilt, config, Random::new(seed)))
}

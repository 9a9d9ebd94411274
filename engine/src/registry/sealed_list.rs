//! All chunks and index parts that are stored under one volume, page by page, whether or not
//! anything names them.

use crate::backend::Backend;
use crate::error::Result;
use crate::identity::VolumeId;
use crate::object::{ChunkKey, IndexKey, SealedRef};

/// Where a walk through the objects of a volume is. Index parts come last, and of them the newest:
/// the root of the last checkpoint, which tells of the snapshots.
pub(super) struct SealedList {
    volume: VolumeId,
    folder: Folder,
    after: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Folder {
    Chunks,
    Index,
    Over,
}

/// Some of them.
pub(super) struct SealedPage {
    /// Each with its length in bytes.
    pub(super) objects: Vec<(SealedRef, u64)>,
    /// Objects of other names: not ours, and left alone.
    pub(super) strange: u64,
    last: Option<String>,
    is_last: bool,
}

impl SealedList {
    pub(super) fn of(volume: VolumeId) -> Self {
        Self {
            volume,
            folder: Folder::Chunks,
            after: None,
        }
    }

    /// Up to `max` objects; the same again until it is [passed](Self::pass). `None` at the end.
    pub(super) async fn page(
        &self,
        backend: &dyn Backend,
        max: usize,
    ) -> Result<Option<SealedPage>> {
        let prefix = match self.folder {
            Folder::Chunks => ChunkKey::prefix(self.volume),
            Folder::Index => IndexKey::prefix(self.volume),
            Folder::Over => return Ok(None),
        };
        let listed = backend.list(&prefix, self.after.as_deref(), max).await?;
        let is_last = listed.len() < max;
        let last = listed.last().map(|object| object.key.clone());
        let count = listed.len() as u64;
        let parsed = |object: crate::backend::Listed| {
            let sealed = SealedRef::parse(&object.key)?;
            (sealed.owner().0 == self.volume).then_some((sealed, object.bytes))
        };
        let objects: Vec<_> = listed.into_iter().filter_map(parsed).collect();
        Ok(Some(SealedPage {
            strange: count - objects.len() as u64,
            objects,
            last,
            is_last,
        }))
    }

    /// Goes on behind a page.
    pub(super) fn pass(&mut self, page: SealedPage) {
        self.after = page.last;
        if page.is_last {
            self.after = None;
            self.folder = match self.folder {
                Folder::Chunks => Folder::Index,
                Folder::Index | Folder::Over => Folder::Over,
            };
        }
    }
}

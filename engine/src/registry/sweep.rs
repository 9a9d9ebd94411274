//! The orphan sweep of a volume: what is stored under it and named by nothing, left behind by
//! writers that died, gave up or lost the volume.
//!
//! Objects are listed first and judged after that by the volume's writer, at a moment when nothing
//! of it is under way ([`orphans_among`]). So nothing that is listed can come to be named later.
//! Rules: `docs/internals/space.md`.
//!
//! [`orphans_among`]: crate::commit::VolumeCommit::orphans_among

use super::deletion::Freed;
use super::sealed_list::{SealedList, SealedPage};
use crate::backend::Backend;
use crate::error::Result;
use crate::failpoint::pass;
use crate::identity::VolumeId;
use crate::object::{ObjectKey, SealedRef};

/// What a sweep has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepSum {
    /// Objects looked at, and their bytes.
    pub listed: Freed,
    /// Those that nothing names.
    pub orphans: Freed,
    /// Objects whose names are not of our making: left alone.
    pub strange: u64,
}

/// A sweep under way.
pub struct Sweep {
    list: SealedList,
    page: Option<SealedPage>,
    deletes: bool,
    sum: SweepSum,
}

impl Sweep {
    /// A sweep of a volume, which deletes what it finds or only counts it.
    pub fn of(volume: VolumeId, deletes: bool) -> Self {
        Self {
            list: SealedList::of(volume),
            page: None,
            deletes,
            sum: SweepSum::default(),
        }
    }

    /// What was found so far.
    pub fn sum(&self) -> &SweepSum {
        &self.sum
    }

    /// Lists the next objects, up to `max`; `None` at the end. They are to be judged now, and
    /// [`judged`](Self::judged) said of them.
    pub async fn look(
        &mut self,
        backend: &dyn Backend,
        max: usize,
    ) -> Result<Option<Vec<SealedRef>>> {
        let Some(page) = self.list.page(backend, max).await? else {
            return Ok(None);
        };
        let objects = page.objects.iter().map(|(object, _)| *object).collect();
        self.page = Some(page);
        Ok(Some(objects))
    }

    /// Deletes those of the listed objects that were judged to be orphans, in one request where the
    /// backend can. To be repeated with the same ones after an error.
    ///
    /// # Panics
    /// If one was not listed by the last [`look`](Self::look), or there was none.
    pub async fn judged(&mut self, backend: &dyn Backend, orphans: &[SealedRef]) -> Result<()> {
        let page = self.page.as_ref().expect("something was listed");
        let bytes = |wanted: &SealedRef| {
            let listed = page.objects.iter().find(|(object, _)| object == wanted);
            listed.expect("an orphan was listed").1
        };
        let found = Freed {
            objects: orphans.len() as u64,
            bytes: orphans.iter().map(bytes).sum(),
        };
        if self.deletes && !orphans.is_empty() {
            let keys: Vec<ObjectKey> = orphans.iter().map(SealedRef::object).collect();
            pass("sweep.delete")?;
            backend.delete_many(&keys).await?;
        }
        let page = self.page.take().expect("looked at above");
        self.sum.listed.objects += page.objects.len() as u64;
        self.sum.listed.bytes += page.objects.iter().map(|(_, bytes)| bytes).sum::<u64>();
        self.sum.strange += page.strange;
        self.sum.orphans.objects += found.objects;
        self.sum.orphans.bytes += found.bytes;
        self.list.pass(page);
        Ok(())
    }
}

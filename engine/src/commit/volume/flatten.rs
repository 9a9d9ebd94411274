//! What a clone has of other volumes, and making that its own: chunks by compactions of them, index
//! parts by a full checkpoint. Rules: `docs/internals/snapshots.md`.

use super::VolumeCommit;
use crate::commit::compaction::{CompactionJob, Source};
use crate::identity::ManifestNum;
use crate::index::ChunkEntry;
use crate::snapshot::Snapshot;

/// Chunks that one step takes over at most: each takes a few requests.
const SOURCES_MAX: usize = 256;

/// What the committed image has of other volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Chunks with live blocks.
    pub chunks: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Index parts.
    pub parts: u64,
}

impl VolumeCommit {
    /// What the committed image has of other volumes.
    pub fn foreign(&self) -> Foreign {
        let mut foreign = Foreign::default();
        for (_, entry) in self.base.chunks().filter(|(_, e)| self.is_foreign(e)) {
            foreign.chunks += u64::from(entry.live > 0);
            foreign.bytes += u64::from(entry.live) * self.block_size().bytes() as u64;
        }
        let parts = self.parts.iter();
        foreign.parts = parts.filter(|p| p.key.volume != self.volume()).count() as u64;
        foreign
    }

    /// The manifest from which on no image of this chain needs anything of other volumes, as far as
    /// this writer has seen; `None` if the present one does.
    pub fn independent_since(&self) -> Option<ManifestNum> {
        self.independent_since
    }

    /// Snapshots whose images may need something of other volumes, though the present one does not.
    pub fn dependent_snapshots(&self) -> Vec<Snapshot> {
        let since = self
            .independent_since
            .unwrap_or_else(|| self.head.number.next());
        let all = self.snapshots.iter();
        all.filter(|s| s.manifest < since).cloned().collect()
    }

    /// The oldest point in time, if that one may need something of other volumes.
    pub fn dependent_point(&self) -> Option<ManifestNum> {
        let since = self
            .independent_since
            .unwrap_or_else(|| self.head.number.next());
        let oldest = self.head.moment.map(|moment| moment.since);
        oldest.filter(|oldest| *oldest < since)
    }

    /// Chunks of other volumes to be rewritten as own ones, `chunks_max` full ones at most (or one
    /// source, if that is more), in the order of their names; `None` if there are none, or while a
    /// commit is under way. To be read and started as a compaction.
    pub fn choose_foreign(&self, chunks_max: u32) -> Option<CompactionJob> {
        if !self.is_idle() {
            return None;
        }
        let chunks = self.base.chunks();
        let foreign = chunks.filter(|(_, e)| e.live > 0 && self.is_foreign(e));
        let mut sources: Vec<Source> = foreign
            .map(|(ordinal, entry)| Source {
                ordinal,
                reference: entry.reference,
                live: entry.live,
            })
            .collect();
        sources.sort_unstable_by_key(|source| source.reference.key);
        let room = u64::from(self.chunk_slots()) * u64::from(chunks_max.max(1));
        let mut taken = 0;
        let mut fits = |source: &Source| {
            let is_first = taken == 0;
            taken += u64::from(source.live);
            is_first || taken <= room
        };
        let count = sources.iter().take(SOURCES_MAX).take_while(|s| fits(s));
        let count = count.count();
        sources.truncate(count);
        (count > 0).then(|| self.job_of(sources))
    }

    /// Begins a commit that changes nothing and stores the whole index as the volume's own.
    ///
    /// # Panics
    /// While a commit is under way.
    pub fn start_full_checkpoint(&mut self) {
        self.wants_full_checkpoint = true;
        self.begin_rewrite(&[], bytes::Bytes::new());
    }

    /// Notes whether the image just committed, or opened, is the volume's own.
    pub(super) fn note_independence(&mut self) {
        let volume = self.volume();
        let is_own = || {
            let mut chunks = self.base.chunks();
            let parts = self.parts.iter().all(|part| part.key.volume == volume);
            parts && chunks.all(|(_, entry)| entry.reference.key.volume == volume)
        };
        if self.independent_since.is_none() && is_own() {
            self.independent_since = Some(self.head.number);
        }
    }

    pub(super) fn is_foreign(&self, entry: &ChunkEntry) -> bool {
        entry.reference.key.volume != self.volume()
    }
}

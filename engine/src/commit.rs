//! The commit protocol: when to cut ([`Coordinator`]), and how the cut of one volume becomes
//! chunks, a manifest and new leaves ([`VolumeCommit`]). Both are sans-IO; see
//! `docs/internals/commit.md`.

mod compaction;
mod coordinator;
mod group;
mod outcome;
mod random;
mod volume;

pub use compaction::{CompactionJob, CompactionPolicy, CompactionRead, Source};
pub use coordinator::{Coordinator, Cut, CutPolicy, CutReason, Load, SealedVolume, VolumePace};
pub use group::Member;
pub use outcome::{CommitStatus, Effect, Event, HeadUpdate, Publication};
pub use random::Random;
pub use volume::{CommitConfig, Foreign, Reading, Usage, VolumeCommit};

//! Geometry and identity of one shard's log.

use std::fmt;

use crate::block::{BlockSize, PAGE_BYTES, ShardId};
use crate::error::{Error, Result};
use crate::identity::Incarnation;

use super::format::HEAD_AREA_BYTES;
use super::region::RegionLayout;

/// Random identity of one data directory's WAL: pages of any other WAL are not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalId(pub u64);

impl fmt::Display for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Identity of one boot of the host: a region of another boot is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

/// Whose log this is and who writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The data directory's WAL.
    pub wal: WalId,
    /// The shard.
    pub shard: ShardId,
    /// The writer: greater than that of everything in the file when it starts.
    pub incarnation: Incarnation,
    /// The host's boot.
    pub boot: BootId,
}

/// Sizes of one shard's log; see [`LogConfig::for_wal`] for sensible ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes of the arena: control area and ring of batch pages.
    pub arena_bytes: usize,
    /// Appends are refused while so many bytes are not durable.
    pub undurable_bytes_max: usize,
    /// Most payload bytes of one batch, and so of one append.
    pub batch_payload_max: usize,
    /// Bytes of one segment of the file, a multiple of a page.
    pub segment_bytes: u64,
    /// Segments of the file.
    pub segments: u32,
    /// Segments kept free of data appends: one for TRIM/ZERO marks, then those for rewriting after
    /// an error, the rest for re-appending at recovery. See [`LogConfig::reserve_for_all`].
    pub reserve_segments: u32,
}

/// Smallest number of segments of a log.
const SEGMENTS_MIN: u64 = 6;
const SEGMENT_BYTES_MIN: u64 = 512 << 10;
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
/// Most undurable bytes of a shard, so that replay knows how far behind a gap to look.
pub(super) const UNDURABLE_BYTES_MAX: usize = 16 << 20;
/// Undurable bytes of a shard unless somebody asks for others.
const UNDURABLE_BYTES_DEFAULT: usize = 4 << 20;
const BATCH_PAYLOAD_MAX: usize = 1 << 20;

impl LogConfig {
    /// The geometry for a WAL file of at most `wal_bytes` and a region of at most `arena_bytes`,
    /// both of one shard.
    ///
    /// # Errors
    /// `Invalid` when either is too small.
    pub fn for_wal(wal_bytes: u64, arena_bytes: usize) -> Result<Self> {
        let target = (wal_bytes / 32).max(1);
        let segment_bytes = (1 << target.ilog2()).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let segments = wal_bytes.saturating_sub(HEAD_AREA_BYTES) / segment_bytes;
        if segments < SEGMENTS_MIN {
            return Err(Error::invalid(format!(
                "a WAL of {wal_bytes} bytes a shard is too small, at least {} are needed",
                HEAD_AREA_BYTES + SEGMENTS_MIN * SEGMENT_BYTES_MIN
            )));
        }
        let batch_payload_max = BATCH_PAYLOAD_MAX.min(segment_bytes as usize / 4);
        let config = Self {
            arena_bytes: arena_bytes / PAGE_BYTES * PAGE_BYTES,
            undurable_bytes_max: 0,
            batch_payload_max,
            segment_bytes,
            segments: u32::try_from(segments).unwrap_or(u32::MAX),
            reserve_segments: 0,
        };
        config.with_undurable_max(UNDURABLE_BYTES_DEFAULT)
    }

    /// The same sizes with at most so many undurable bytes of this shard, and batches that fit:
    /// less if a sixteenth of the file, half of the region or 16 MiB are less.
    ///
    /// # Errors
    /// `Invalid` when the parts do not fit each other.
    pub fn with_undurable_max(mut self, bytes: usize) -> Result<Self> {
        let share = (self.file_bytes() / 16) as usize;
        let most = share.min(self.arena_bytes / 2).min(UNDURABLE_BYTES_MAX);
        self.undurable_bytes_max = bytes.min(most);
        let payload = self.undurable_bytes_max.saturating_sub(PAGE_BYTES) / PAGE_BYTES * PAGE_BYTES;
        self.batch_payload_max = self.batch_payload_max.min(payload);
        self.reserve_segments = self.reserve_for_all();
        self.validate()?;
        Ok(self)
    }

    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// `Invalid`, with all problems.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        let batch = self.batch_bytes_max();
        if !self.batch_payload_max.is_multiple_of(PAGE_BYTES)
            || self.batch_payload_max < BlockSize::MAX.bytes()
            || self.batch_payload_max / PAGE_BYTES >= usize::from(u16::MAX)
        {
            problems.push(format!("batch payload of {} bytes", self.batch_payload_max));
        }
        if !self.segment_bytes.is_multiple_of(PAGE_BYTES as u64)
            || self.segment_bytes < 2 * batch as u64
        {
            problems.push(format!("segments of {} bytes", self.segment_bytes));
        }
        if self.undurable_bytes_max < batch {
            problems.push(format!("{} undurable bytes", self.undurable_bytes_max));
        }
        let layout = RegionLayout::new(self.arena_bytes, self.undurable_bytes_max);
        if layout.ring_pages() * PAGE_BYTES < 2 * batch {
            problems.push(format!("a region of {} bytes", self.arena_bytes));
        }
        if self.reserve_segments < self.rewrite_segments() || self.reserve_segments >= self.segments
        {
            problems.push(format!(
                "{} of {} segments in reserve, {} are needed",
                self.reserve_segments,
                self.segments,
                self.rewrite_segments()
            ));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "WAL sizes do not fit each other: {}",
            problems.join("; ")
        )))
    }

    /// Bytes of the WAL file.
    pub fn file_bytes(&self) -> u64 {
        HEAD_AREA_BYTES + u64::from(self.segments) * self.segment_bytes
    }

    /// Bytes of the largest batch, header included.
    pub fn batch_bytes_max(&self) -> usize {
        self.batch_payload_max + PAGE_BYTES
    }

    /// The reserve with which marks, one rewriting after an error and then a recovery fit into a
    /// full log, and a recovery that is itself cut short.
    pub fn reserve_for_all(&self) -> u32 {
        1 + self.rewrite_segments() + self.rewrite_segments() + 1
    }

    /// Segments that hold all undurable batches, each segment losing less than a batch at its end.
    pub(super) fn rewrite_segments(&self) -> u32 {
        let batch = self.batch_bytes_max() as u64;
        let usable = self.segment_bytes.saturating_sub(batch).max(1);
        (self.undurable_bytes_max as u64).div_ceil(usable) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_from_small_to_large_fit() {
        for (wal, arena) in [
            (4u64 << 20, 2usize << 20),
            (16 << 20, 4 << 20),
            (256 << 20, 64 << 20),
            (4 << 30, 1 << 30),
            (5_000_000, 3_000_000),
        ] {
            let config = LogConfig::for_wal(wal, arena).unwrap();
            assert!(config.file_bytes() <= wal, "{config:?}");
            assert!(config.arena_bytes <= arena);
            assert!(config.segments >= config.reserve_segments + 2, "{config:?}");
        }
    }

    #[test]
    fn the_undurable_bytes_are_as_asked_within_the_file_and_the_region() {
        let config = LogConfig::for_wal(512 << 20, 64 << 20).unwrap();
        for (asked, got) in [(1, 1), (4, 4), (14, 14), (64, 16)] {
            let config = config.with_undurable_max(asked << 20).unwrap();
            assert_eq!(config.undurable_bytes_max, got << 20);
            assert!(config.batch_bytes_max() <= config.undurable_bytes_max);
            assert!(config.segments >= config.reserve_segments + 2, "{config:?}");
        }
        assert!(
            config.with_undurable_max(64 << 10).is_err(),
            "less than a block and its header"
        );
    }

    #[test]
    fn sizes_too_small_are_refused() {
        assert!(LogConfig::for_wal(1 << 20, 64 << 20).is_err());
        assert!(LogConfig::for_wal(64 << 20, 256 << 10).is_err());
        assert!(LogConfig::for_wal(0, 0).is_err());
        let mut config = LogConfig::for_wal(16 << 20, 4 << 20).unwrap();
        config.reserve_segments = 0;
        config.segment_bytes += 1;
        let text = config.validate().unwrap_err().to_string();
        assert!(
            text.contains("reserve") && text.contains("segments of"),
            "{text}"
        );
    }
}

//! Headers of batches that are no longer in memory and not released: kept, so that the end of the
//! log can note them all without reading the file.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::identity::BatchNum;

use super::config::LogConfig;
use super::format::{BatchHeader, FIXED_BYTES};

/// Bytes that the noted headers of a log have at most, and these kept in memory. Those of batches
/// with data take less than half of it; more are not noted.
pub(super) fn noted_bytes_max(segments: u32, segment_bytes: u64) -> u64 {
    u64::from(segments) * segment_bytes / 32
}

/// Headers by number, without gaps.
#[derive(Debug)]
pub(super) struct Headers {
    /// Number of the first.
    first: BatchNum,
    kept: VecDeque<(BatchHeader, Arc<[u8]>)>,
    bytes: u64,
    bytes_max: u64,
}

impl Headers {
    /// None yet.
    pub(super) fn new(config: &LogConfig) -> Self {
        Self {
            first: BatchNum(0),
            kept: VecDeque::new(),
            bytes: 0,
            bytes_max: noted_bytes_max(config.segments, config.segment_bytes),
        }
    }

    /// Keeps the next one. If that is too much, none is kept.
    pub(super) fn keep(&mut self, header: BatchHeader, table: Arc<[u8]>) {
        let next = BatchNum(self.first.0 + self.kept.len() as u64);
        self.bytes += noted_bytes(&header);
        if header.number != next || self.bytes > self.bytes_max {
            self.kept.clear();
            self.first = header.number;
            self.bytes = noted_bytes(&header);
        }
        self.kept.push_back((header, table));
    }

    /// Batches below this number are released.
    pub(super) fn forget(&mut self, released_before: BatchNum) {
        while self.first < released_before
            && let Some((header, _)) = self.kept.pop_front()
        {
            self.bytes -= noted_bytes(&header);
            self.first = self.first.next();
        }
    }

    pub(super) fn find(&self, number: BatchNum) -> Option<&(BatchHeader, Arc<[u8]>)> {
        let index = number.0.checked_sub(self.first.0)?;
        self.kept.get(usize::try_from(index).ok()?)
    }
}

/// Bytes of a header that is noted: without the zeros behind its table.
pub(super) fn noted_bytes(header: &BatchHeader) -> u64 {
    FIXED_BYTES as u64 + u64::from(header.table_bytes)
}

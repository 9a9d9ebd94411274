//! Finds every batch header of a WAL file.
//!
//! Whole batches are hopped over. Where a header cannot be read, and in the segments that may have
//! been written last, every page is looked at, so that no later batch's word on what was durable is
//! missed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::block::PAGE_BYTES;
use crate::identity::{BatchNum, Incarnation};

use super::super::config::{LogIdentity, UNDURABLE_BYTES_MAX};
use super::super::format::{BatchHeader, HEAD_SLOTS, LogHead};
use super::super::media::ReadMedia;
use super::damage::{ProblemKind, Problems};

const PAGE: u64 = PAGE_BYTES as u64;
const WINDOW_BYTES_MIN: usize = PAGE_BYTES;
const WINDOW_BYTES_MAX: usize = 1 << 20;
/// To read what lies between costs no more than another read.
const DENSE_BYTES: u64 = 16 << 10;
/// Bytes of file behind the newest batch that are looked at page by page: twice what can be
/// undurable at once.
const TAIL_BYTES: u64 = 2 * UNDURABLE_BYTES_MAX as u64;
const TAIL_SEGMENTS_MIN: u64 = 3;

/// A batch header found in the file, at its own place and of this WAL.
pub(super) struct Candidate {
    pub(super) header: BatchHeader,
    /// Its record table; `None` if that does not have its CRC.
    pub(super) table: Option<Arc<[u8]>>,
}

/// All candidates by file offset.
pub(super) type Candidates = BTreeMap<u64, Candidate>;

/// Reads the newer of the two log heads; reports when there is none to believe.
pub(super) fn read_head(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    problems: &mut Problems,
) -> Option<LogHead> {
    let mut newest: Option<LogHead> = None;
    for slot in HEAD_SLOTS {
        let mut page = vec![0; PAGE_BYTES];
        if let Err(error) = file.read_at(slot, &mut page) {
            problems.add(
                Some(slot),
                ProblemKind::Unreadable {
                    error: error.to_string(),
                },
            );
            continue;
        }
        let head = LogHead::decode(&page, slot)
            .filter(|head| head.wal == identity.wal && head.shard == identity.shard);
        if let Some(head) = head
            && newest.is_none_or(|newest| head.sequence > newest.sequence)
        {
            newest = Some(head);
        }
    }
    let Some(head) = newest else {
        problems.add(None, ProblemKind::NoHead);
        return None;
    };
    if head.incarnation >= identity.incarnation {
        let incarnation = head.incarnation.0;
        problems.add(
            Some(head.file_offset()),
            ProblemKind::FromTheFuture { incarnation },
        );
    }
    if file.len() < head.file_bytes() {
        let (expected, found) = (head.file_bytes(), file.len());
        problems.add(None, ProblemKind::Length { expected, found });
        return None;
    }
    Some(head)
}

/// Finds the candidates of a file with this head.
pub(super) fn scan(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    head: &LogHead,
    problems: &mut Problems,
) -> Candidates {
    let mut scanner = Scanner {
        identity,
        head,
        reader: Window::new(file),
        found: Candidates::new(),
        released_before: head.released_before,
        newest: None,
        problems,
    };
    for segment in 0..head.segments {
        scanner.hop(segment);
    }
    scanner.search_tail();
    scanner.found
}

struct Scanner<'a, 'p> {
    identity: &'a LogIdentity,
    head: &'a LogHead,
    reader: Window<'a>,
    found: Candidates,
    /// The greatest seen.
    released_before: BatchNum,
    /// The greatest (incarnation, batch), and its segment.
    newest: Option<(Incarnation, BatchNum, u32)>,
    problems: &'p mut Problems,
}

impl Scanner<'_, '_> {
    /// Goes from batch to batch, page by page where there is none. A segment that starts with an
    /// empty page was never used, as far as this pass is concerned.
    fn hop(&mut self, segment: u32) {
        let start = self.head.segment_start(segment);
        let end = start + self.head.segment_bytes;
        let mut at = start;
        while at < end {
            let Some(page) = self.reader.page(at, self.problems) else {
                at += PAGE;
                continue;
            };
            if at == start && page.iter().all(|&byte| byte == 0) {
                return;
            }
            match candidate(self.identity, page, at, end) {
                Some(candidate) => {
                    at += candidate.header.batch_bytes();
                    self.add(candidate);
                }
                None => at += PAGE,
            }
        }
    }

    /// Looks at every page of the segment that holds the newest batch and of those that are next
    /// in turn, until nothing newer turns up.
    fn search_tail(&mut self) {
        let tail = TAIL_SEGMENTS_MIN.max(TAIL_BYTES.div_ceil(self.head.segment_bytes));
        let tail = tail.min(u64::from(self.head.segments)) as u32;
        let mut searched = vec![false; self.head.segments as usize];
        let mut newest = None;
        loop {
            let now = self.newest_segment();
            if now == newest && newest.is_some() {
                return;
            }
            newest = now;
            // An empty log starts with its first segment.
            let first = now.unwrap_or(0);
            let mut left = tail + 1;
            for step in 0..self.head.segments {
                let segment = (first + step) % self.head.segments;
                if left == 0 {
                    break;
                }
                if step > 0 && self.is_live(segment) {
                    continue;
                }
                left -= 1;
                if !std::mem::replace(&mut searched[segment as usize], true) {
                    self.search(segment);
                }
            }
            if newest.is_none() && self.newest_segment().is_none() {
                return;
            }
        }
    }

    fn search(&mut self, segment: u32) {
        let start = self.head.segment_start(segment);
        let end = start + self.head.segment_bytes;
        let mut at = start;
        while at < end {
            let Some(page) = self.reader.page(at, self.problems) else {
                at += PAGE;
                continue;
            };
            let found = candidate(self.identity, page, at, end);
            // A batch of the segment's former use may hide a newer one behind its first page.
            let step = match &found {
                Some(found) if found.header.number >= self.released_before => {
                    found.header.batch_bytes()
                }
                _ => PAGE,
            };
            if let Some(found) = found {
                self.add(found);
            }
            at += step;
        }
    }

    fn add(&mut self, candidate: Candidate) {
        let header = &candidate.header;
        if header.incarnation >= self.identity.incarnation {
            let incarnation = header.incarnation.0;
            let kind = ProblemKind::FromTheFuture { incarnation };
            self.problems.add(Some(header.file_offset), kind);
        }
        self.released_before = self.released_before.max(header.released_before);
        let behind = header.file_offset - self.head.segment_start(0);
        let segment = (behind / self.head.segment_bytes) as u32;
        let place = (header.incarnation, header.number, segment);
        if self.newest.is_none_or(|newest| place > newest) {
            self.newest = Some(place);
        }
        self.found.insert(header.file_offset, candidate);
    }

    fn newest_segment(&self) -> Option<u32> {
        self.newest.map(|(_, _, segment)| segment)
    }

    /// Whether batches that are not released lie in the segment.
    fn is_live(&self, segment: u32) -> bool {
        let start = self.head.segment_start(segment);
        self.found
            .range(start..start + self.head.segment_bytes)
            .any(|(_, found)| found.header.number >= self.released_before)
    }
}

/// The batch whose header `page` is, if it is one of this WAL at its own place.
pub(super) fn candidate(
    identity: &LogIdentity,
    page: &[u8],
    at: u64,
    end: u64,
) -> Option<Candidate> {
    let header = BatchHeader::decode(page)?;
    let ours = header.wal == identity.wal
        && header.shard == identity.shard
        && header.file_offset == at
        && at + header.batch_bytes() <= end;
    ours.then(|| Candidate {
        table: header.table(page).map(Into::into),
        header,
    })
}

/// Reads pages through a window that grows while reading is dense.
pub(super) struct Window<'a> {
    file: &'a dyn ReadMedia,
    bytes: Vec<u8>,
    start: u64,
    len: usize,
    next_len: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a dyn ReadMedia) -> Self {
        let bytes = vec![0; WINDOW_BYTES_MAX];
        Self {
            file,
            bytes,
            start: 0,
            len: 0,
            next_len: WINDOW_BYTES_MIN,
        }
    }

    /// The page at `at`; `None` if it cannot be read, which is reported.
    pub(super) fn page(&mut self, at: u64, problems: &mut Problems) -> Option<&[u8]> {
        let end = self.start + self.len as u64;
        if at < self.start || at + PAGE > end {
            let near = DENSE_BYTES.max(self.next_len as u64);
            let dense = self.len > 0 && at >= end && at - end < near;
            self.next_len = if dense {
                (self.next_len * 2).min(WINDOW_BYTES_MAX)
            } else {
                WINDOW_BYTES_MIN
            };
            let left = self.file.len().saturating_sub(at);
            self.load(
                at,
                self.next_len
                    .min(usize::try_from(left).unwrap_or(usize::MAX)),
            );
            if self.len == 0 {
                self.load(at, PAGE_BYTES);
            }
            if self.len == 0 {
                let error = self.file.read_at(at, &mut [0; PAGE_BYTES]).err();
                let error = error.map_or_else(|| "unsteady".to_owned(), |e| e.to_string());
                problems.add(Some(at), ProblemKind::Unreadable { error });
                return None;
            }
        }
        let from = (at - self.start) as usize;
        self.bytes.get(from..from + PAGE_BYTES)
    }

    fn load(&mut self, at: u64, len: usize) {
        let read = self.file.read_at(at, &mut self.bytes[..len]);
        self.start = at;
        self.len = if read.is_ok() { len } else { 0 };
    }
}

//! The headers that a writer noted when it ended in order, one behind the other, as it had written
//! them into the file: [`ShardLog::note_headers`](super::super::ShardLog::note_headers).
//!
//! What is read here says nothing by itself: the chain must lead to what the log head names.

use super::super::config::LogIdentity;
use super::super::format::{BatchHeader, LogHead};
use super::super::headers::noted_bytes;
use super::scan::{Candidate, Candidates, candidate};

/// All batches that the head says are there; `None` unless exactly these are noted, at places that
/// they can have.
pub(super) fn noted_batches(
    identity: &LogIdentity,
    noted: &[u8],
    head: &LogHead,
) -> Option<Candidates> {
    let mut found = Candidates::new();
    let mut used = vec![false; head.segments as usize];
    let (mut rest, mut number) = (noted, head.released_before);
    let mut before: Option<BatchHeader> = None;
    while !rest.is_empty() {
        let (next, bytes) = one(identity, rest, head)?;
        let header = next.header;
        if header.number != number || !follows(&header, before.as_ref(), head, &mut used) {
            return None;
        }
        (number, before) = (number.next(), Some(header));
        found.insert(header.file_offset, next);
        rest = &rest[bytes..];
    }
    (number == head.durable_through.next()).then_some(found)
}

/// The first of these headers, and its bytes.
fn one(identity: &LogIdentity, bytes: &[u8], head: &LogHead) -> Option<(Candidate, usize)> {
    let header = BatchHeader::decode(bytes)?;
    let segment = head.segment_of(header.file_offset)?;
    let end = head.segment_start(segment) + head.segment_bytes;
    let next = candidate(identity, bytes, header.file_offset, end)?;
    next.table.as_ref()?;
    Some((next, noted_bytes(&header) as usize))
}

/// Whether a batch can lie behind the one before: further on in its segment, or in one that none
/// was in, taken later.
fn follows(
    header: &BatchHeader,
    before: Option<&BatchHeader>,
    head: &LogHead,
    used: &mut [bool],
) -> bool {
    let Some(segment) = head.segment_of(header.file_offset) else {
        return false;
    };
    let is_used = std::mem::replace(&mut used[segment as usize], true);
    match before {
        Some(before) if is_used => {
            header.generation == before.generation
                && head.segment_of(before.file_offset) == Some(segment)
                && header.file_offset >= before.file_offset + before.batch_bytes()
        }
        Some(before) => header.generation > before.generation,
        None => true,
    }
}

//! Replay of a log that ended in order: its head says where, so that only segments which are not
//! released are read, and nothing behind the last batch is searched for. If the headers of those
//! were noted at the end, only the first page of each segment is read.
//!
//! The head is believed only by the very next start, and only if everything found says the same.
//! Whenever something does not fit, this finds nothing, and the whole file is searched.

use crate::identity::{BatchNum, Lsn};

use super::super::config::LogIdentity;
use super::super::format::{BatchHeader, LogEnd, LogHead};
use super::super::media::ReadMedia;
use super::accept::{Accepted, accept};
use super::damage::Problems;
use super::noted::noted_batches;
use super::scan::{Candidate, Candidates, Window, candidate};

/// Everything that counts of a log that ended in order, and whether that is as it was noted; `None`
/// if it did not, or may have been written since, or is not all there. `floor` is durable as far as
/// regions know.
pub(super) fn accept_ended(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    noted: Option<&[u8]>,
    head: &LogHead,
    floor: BatchNum,
) -> Option<(Accepted, bool)> {
    let end = head.end?;
    // `wal/state` counts every start, before it writes anything: a writer that came in between and
    // whose head is torn is noticed.
    let is_next = identity.incarnation.0.checked_sub(1) == Some(head.incarnation.0);
    if !is_next || floor > head.durable_through {
        return None;
    }
    let mut problems = Problems::new(identity.shard);
    let mut window = Window::new(file);
    let firsts = first_batches(identity, &mut window, head, &mut problems)?;
    let judge = |found, mut problems| {
        let accepted = accept(file, head, found, floor, &mut problems);
        (!problems.any() && fits(&accepted, head, &end)).then(|| Accepted {
            chain: end.chain,
            last_lsn: end.last_lsn,
            max_lsn: Lsn(end.next_lsn.0 - 1),
            max_epoch: end.max_epoch,
            last_generation: end.last_generation,
            ..accepted
        })
    };
    let noted = noted
        .and_then(|noted| noted_batches(identity, noted, head))
        .filter(|found| is_as_in_file(found, head, &firsts))
        .and_then(|found| judge(found, Problems::new(identity.shard)));
    if let Some(accepted) = noted {
        return Some((accepted, true));
    }
    let found = live_batches(identity, &mut window, head, &firsts, &mut problems);
    Some((judge(found, problems)?, false))
}

/// Whether what was found is what the head says.
fn fits(accepted: &Accepted, head: &LogHead, end: &LogEnd) -> bool {
    let first = accepted.batches.first();
    let to_the_end = match first {
        Some(_) => accepted.chain == end.chain && accepted.last_lsn == end.last_lsn,
        None => accepted.last_lsn <= end.last_lsn,
    };
    to_the_end
        && accepted.torn.is_none()
        && accepted.next_batch == head.durable_through.next()
        && first.map_or(accepted.next_batch, |first| first.number) == head.released_before
        && accepted.max_lsn < end.next_lsn
        && accepted.max_epoch <= end.max_epoch
        && accepted.last_generation <= end.last_generation
}

/// The batches with which segments begin. `None` if one of a later writer turns up, or one behind
/// the end.
fn first_batches(
    identity: &LogIdentity,
    window: &mut Window<'_>,
    head: &LogHead,
    problems: &mut Problems,
) -> Option<Vec<Candidate>> {
    let mut firsts = Vec::new();
    for segment in 0..head.segments {
        let at = head.segment_start(segment);
        let page = window.page(at, problems)?;
        firsts.extend(candidate(identity, page, at, at + head.segment_bytes));
    }
    let is_behind = |first: &Candidate| {
        let header = &first.header;
        (header.incarnation, header.number) > (head.incarnation, head.durable_through)
    };
    (!firsts.iter().any(is_behind)).then_some(firsts)
}

/// Whether the segments begin as what was noted says.
fn is_as_in_file(noted: &Candidates, head: &LogHead, firsts: &[Candidate]) -> bool {
    let mut live = firsts
        .iter()
        .filter(|first| first.header.number >= head.released_before)
        .peekable();
    (0..head.segments).all(|segment| {
        let at = head.segment_start(segment);
        let first = live.next_if(|first| first.header.file_offset == at);
        // A table that is not whole in the file never is what was noted.
        let parts = |batch: &Candidate| (batch.header, batch.table.clone());
        first.map(parts) == noted.get(&at).map(parts)
    })
}

/// The batches of the segments that are not released.
fn live_batches(
    identity: &LogIdentity,
    window: &mut Window<'_>,
    head: &LogHead,
    firsts: &[Candidate],
    problems: &mut Problems,
) -> Candidates {
    let mut found = Candidates::new();
    // The segment used last comes first: what one holds from the first batch of a later one on is
    // void, or was written again there.
    let mut firsts: Vec<BatchHeader> = firsts.iter().map(|first| first.header).collect();
    firsts.sort_by_key(|first| std::cmp::Reverse(first.generation));
    let mut later = BatchNum(u64::MAX);
    for first in firsts {
        if later > head.released_before {
            hop(identity, window, head, &first, &mut found, problems);
        }
        later = later.min(first.number);
    }
    found
}

/// Goes from batch to batch through one use of a segment.
fn hop(
    identity: &LogIdentity,
    window: &mut Window<'_>,
    head: &LogHead,
    first: &BatchHeader,
    found: &mut Candidates,
    problems: &mut Problems,
) {
    let end = first.file_offset + head.segment_bytes;
    let mut at = first.file_offset;
    while at < end {
        let batch = window
            .page(at, problems)
            .and_then(|page| candidate(identity, page, at, end));
        let Some(batch) = batch.filter(|batch| batch.header.generation == first.generation) else {
            return;
        };
        at += batch.header.batch_bytes();
        found.insert(batch.header.file_offset, batch);
    }
}

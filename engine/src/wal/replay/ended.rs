//! Replay of a log that ended in order: its head says where, so that only segments which are not
//! released are read, and nothing behind the last batch is searched for.
//!
//! The head is believed only by the very next start, and only if everything found says the same.
//! Whenever something does not fit, this finds nothing, and the whole file is searched.

use crate::identity::{BatchNum, Lsn};

use super::super::config::LogIdentity;
use super::super::format::{BatchHeader, LogEnd, LogHead};
use super::super::media::ReadMedia;
use super::accept::{Accepted, accept};
use super::damage::Problems;
use super::scan::{Candidates, Window, candidate};

/// Everything that counts of a log that ended in order; `None` if it did not, or may have been
/// written since, or is not all there. `floor` is durable as far as regions know.
pub(super) fn accept_ended(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    head: &LogHead,
    floor: BatchNum,
) -> Option<Accepted> {
    let end = head.end?;
    // `wal/state` counts every start, before it writes anything: a writer that came in between and
    // whose head is torn is noticed.
    let is_next = identity.incarnation.0.checked_sub(1) == Some(head.incarnation.0);
    if !is_next || floor > head.durable_through {
        return None;
    }
    let mut problems = Problems::new(identity.shard);
    let found = live_batches(identity, file, head, &mut problems)?;
    let accepted = accept(file, head, found, floor, &mut problems);
    (!problems.any() && fits(&accepted, head, &end)).then(|| Accepted {
        chain: end.chain,
        last_lsn: end.last_lsn,
        max_lsn: Lsn(end.next_lsn.0 - 1),
        max_epoch: end.max_epoch,
        last_generation: end.last_generation,
        ..accepted
    })
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

/// The batches of the segments that are not released. `None` if one of a later writer turns up, or
/// one behind the end.
fn live_batches(
    identity: &LogIdentity,
    file: &dyn ReadMedia,
    head: &LogHead,
    problems: &mut Problems,
) -> Option<Candidates> {
    let mut window = Window::new(file);
    let (mut firsts, mut found) = (Vec::new(), Candidates::new());
    for segment in 0..head.segments {
        let at = head.segment_start(segment);
        let page = window.page(at, problems)?;
        let first = candidate(identity, page, at, at + head.segment_bytes);
        firsts.extend(first.map(|first| first.header));
    }
    let is_behind = |first: &BatchHeader| {
        (first.incarnation, first.number) > (head.incarnation, head.durable_through)
    };
    if firsts.iter().any(is_behind) {
        return None;
    }
    // The segment used last comes first: what one holds from the first batch of a later one on is
    // void, or was written again there.
    firsts.sort_by_key(|first| std::cmp::Reverse(first.generation));
    let mut later = BatchNum(u64::MAX);
    for first in firsts {
        if later > head.released_before {
            hop(identity, &mut window, head, &first, &mut found, problems);
        }
        later = later.min(first.number);
    }
    Some(found)
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

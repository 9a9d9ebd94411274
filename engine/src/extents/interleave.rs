//! Extents of a volume out of the runs of its shards, whose blocks take turns.

use super::{BlockState, EXTENTS_MAX, Extent, Run, Runs};
use crate::block::{BlockNum, LocalBlock, SHARD_COUNT, ShardId, Span};

/// What one shard answers.
pub type ShardRuns = (ShardId, Runs);

/// The part of a shard's runs that is still ahead.
type Ahead<'a> = &'a [Run];

/// The extents of `span`, in order, from its first byte on: at most `extents_max`, and as far as
/// every shard of the span has answered.
pub fn interleave(span: Span, answers: &[ShardRuns], extents_max: usize) -> Vec<Extent> {
    let mut ahead: [Ahead<'_>; SHARD_COUNT] = [&[]; SHARD_COUNT];
    let mut end = span.last().0 + 1;
    for (shard, runs) in answers {
        let wanted = span.local_range(*shard);
        let covered = runs.range();
        if covered.end < wanted.end {
            end = end.min(LocalBlock(covered.end).global(*shard).0);
        }
        ahead[shard.index()] = runs.as_slice();
    }
    let mut extents = Extents::new(span, extents_max.clamp(1, EXTENTS_MAX));
    let mut at = span.first().0;
    let mut reached = None;
    while at < end {
        let block = BlockNum(at);
        let row = block.local();
        if reached != Some(row) {
            for runs in &mut ahead {
                let over = runs.iter().take_while(|run| run.end <= row.0).count();
                *runs = &runs[over..];
            }
            reached = Some(row);
        }
        let Some(own) = ahead[block.shard().index()].first() else {
            // A shard of the span that nobody answered for.
            break;
        };
        let is_row = block == row.global(FIRST_SHARD);
        let next = match is_row.then(|| uniform_until(&ahead)).flatten() {
            Some(row) => row.global(FIRST_SHARD).0.min(end),
            None => at + 1,
        };
        if !extents.push(next, own.state) {
            break;
        }
        at = next;
    }
    extents.list.shrink_to_fit();
    extents.list
}

/// The first shard, whose blocks begin the rows.
const FIRST_SHARD: ShardId = ShardId::FIRST;

/// The row where the first shard changes, if all are in the same state until then.
fn uniform_until(ahead: &[Ahead<'_>; SHARD_COUNT]) -> Option<LocalBlock> {
    let state = ahead[0].first()?.state;
    let mut until = u64::MAX;
    for runs in ahead {
        let run = runs.first().filter(|run| run.state == state)?;
        until = until.min(run.end);
    }
    Some(LocalBlock(until))
}

/// Extents in the making.
struct Extents {
    span: Span,
    most: usize,
    /// Bytes of the span covered.
    covered: u64,
    list: Vec<Extent>,
}

impl Extents {
    fn new(span: Span, most: usize) -> Self {
        Self {
            span,
            most,
            covered: 0,
            list: Vec::new(),
        }
    }

    /// Goes on with `state` up to the volume's block `end`; false if that takes an extent too many.
    fn push(&mut self, end: u64, state: BlockState) -> bool {
        let end = end << self.span.block_size.shift();
        let covered = (end - self.span.offset).min(self.span.len);
        let len = covered - self.covered;
        let is_full = self.list.len() == self.most;
        match self.list.last_mut() {
            Some(last) if last.state == state => last.len += len,
            _ if is_full => return false,
            _ => self.list.push(Extent { len, state }),
        }
        self.covered = covered;
        true
    }
}

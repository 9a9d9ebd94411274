//! Zeroed ranges of 16 shards as runs of the volume's blocks.

use std::ops::Range;

use super::PackBlock;
use crate::block::{BlockNum, SHARD_COUNT};
use crate::chunk::ZeroRun;

const ALL_SHARDS: u16 = u16::MAX;
const _: () = assert!(SHARD_COUNT == u16::BITS as usize);

/// Runs, ascending and maximal, of the blocks that lie in their shard's zeroed ranges (shard-local,
/// ascending, disjoint).
///
/// Where all shards zeroed a row of 16 blocks (all but the ends of any TRIM) the cost is one run
/// however many rows; a cut that caught only some shards of a TRIM costs runs per row.
pub(super) fn across_shards(zeroed: &[Vec<Range<u64>>; SHARD_COUNT]) -> Vec<ZeroRun> {
    let mut edges: Vec<(u64, u16)> = Vec::new();
    for (shard, ranges) in zeroed.iter().enumerate() {
        for range in ranges {
            edges.extend([(range.start, 1 << shard), (range.end, 1 << shard)]);
        }
    }
    edges.sort_unstable();
    let mut runs = Vec::new();
    let mut mask = 0u16;
    let mut row = 0;
    for (edge, shard) in edges {
        if edge > row {
            push_rows(&mut runs, row..edge, mask);
            row = edge;
        }
        mask ^= shard;
    }
    debug_assert_eq!(mask, 0, "every range ends");
    runs
}

/// Adds the blocks of `rows` whose shard is in `mask`.
fn push_rows(runs: &mut Vec<ZeroRun>, rows: Range<u64>, mask: u16) {
    let shards = SHARD_COUNT as u64;
    match mask {
        0 => {}
        ALL_SHARDS => push(runs, rows.start * shards, (rows.end - rows.start) * shards),
        _ => {
            for row in rows {
                for shard in (0..shards).filter(|shard| mask >> shard & 1 == 1) {
                    push(runs, row * shards + shard, 1);
                }
            }
        }
    }
}

/// Appends a run, or lengthens the last one.
fn push(runs: &mut Vec<ZeroRun>, start: u64, count: u64) {
    match runs.last_mut() {
        Some(last) if last.start.0 + last.count == start => last.count += count,
        _ => runs.push(ZeroRun {
            start: BlockNum(start),
            count,
        }),
    }
}

/// The runs without the blocks that have data (ascending).
pub(super) fn without_data(runs: Vec<ZeroRun>, blocks: &[PackBlock]) -> Vec<ZeroRun> {
    if runs.is_empty() {
        return runs;
    }
    let mut out = Vec::with_capacity(runs.len());
    for run in runs {
        let end = run.start.0 + run.count;
        let mut at = run.start.0;
        let from = blocks.partition_point(|block| block.block < run.start);
        for block in blocks[from..]
            .iter()
            .take_while(|block| block.block.0 < end)
        {
            if block.block.0 > at {
                push(&mut out, at, block.block.0 - at);
            }
            at = block.block.0 + 1;
        }
        if at < end {
            push(&mut out, at, end - at);
        }
    }
    out
}

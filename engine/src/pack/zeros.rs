//! Zeroed ranges of 16 shards as runs of the volume's blocks.

use std::ops::Range;

use super::PackBlock;
use crate::block::{BlockNum, SHARD_COUNT, ShardSet};
use crate::chunk::ZeroRun;

const SHARDS: u64 = SHARD_COUNT as u64;

/// Runs, ascending and disjoint, of the blocks that lie in their shard's zeroed ranges
/// (shard-local, ascending, disjoint).
///
/// They are as many as there are ranges, give or take a row of 16 blocks, however long the ranges
/// are: of rows that only some shards zeroed (a cut, or a crash, caught a part of a TRIM) one run
/// spares the others.
pub(super) fn across_shards(zeroed: &[Vec<Range<u64>>; SHARD_COUNT]) -> Vec<ZeroRun> {
    let mut edges: Vec<(u64, u16)> = Vec::new();
    for (shard, ranges) in zeroed.iter().enumerate() {
        for range in ranges {
            edges.extend([(range.start, 1 << shard), (range.end, 1 << shard)]);
        }
    }
    edges.sort_unstable();
    let mut runs = Vec::new();
    let mut shards = ShardSet::NONE;
    let mut row = 0;
    for (edge, shard) in edges {
        if edge > row {
            push_rows(&mut runs, row..edge, shards);
            row = edge;
        }
        shards.0 ^= shard;
    }
    debug_assert!(shards.is_empty(), "every range ends");
    runs
}

/// Adds the blocks of `rows` whose shard is in `shards`.
fn push_rows(runs: &mut Vec<ZeroRun>, rows: Range<u64>, shards: ShardSet) {
    if rows.is_empty() || shards.is_empty() {
        return;
    }
    let (start, count) = (rows.start * SHARDS, (rows.end - rows.start) * SHARDS);
    // One row costs at most 8 runs, and most often joins its neighbours: the ends of a TRIM.
    if count == SHARDS && shards != ShardSet::ALL {
        let blocks = (start..start + SHARDS).map(BlockNum);
        return blocks
            .filter(|block| shards.contains(block.shard()))
            .for_each(|block| push(runs, ZeroRun::new(block, 1)));
    }
    push(
        runs,
        ZeroRun {
            start: BlockNum(start),
            count,
            spared: ShardSet(!shards.0),
        },
    );
}

/// Appends a run, or lengthens the last one.
fn push(runs: &mut Vec<ZeroRun>, run: ZeroRun) {
    match runs.last_mut() {
        Some(last) if last.start.0 + last.count == run.start.0 && last.spared == run.spared => {
            last.count += run.count;
        }
        _ => runs.push(run),
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
        let from = blocks.partition_point(|block| block.block < run.start);
        let data = blocks[from..].iter().map(|block| block.block);
        let data = data
            .take_while(|block| block.0 < end)
            .filter(|block| run.covers(*block));
        match run.spared.is_empty() {
            true => push_around(&mut out, run.start.0..end, data),
            false => push_rows_around(&mut out, &run, data),
        }
    }
    out
}

/// Adds the blocks of `run` but `data`, which it covers.
fn push_around(out: &mut Vec<ZeroRun>, run: Range<u64>, data: impl Iterator<Item = BlockNum>) {
    let mut at = run.start;
    for block in data {
        if block.0 > at {
            push(out, ZeroRun::new(BlockNum(at), block.0 - at));
        }
        at = block.0 + 1;
    }
    if at < run.end {
        push(out, ZeroRun::new(BlockNum(at), run.end - at));
    }
}

/// Adds the blocks of `run`, which is of whole rows and spares shards, but `data`.
fn push_rows_around(out: &mut Vec<ZeroRun>, run: &ZeroRun, data: impl Iterator<Item = BlockNum>) {
    let shards = ShardSet(!run.spared.0);
    let rows = run.start.0 / SHARDS..(run.start.0 + run.count) / SHARDS;
    let mut at = rows.start;
    // The row `at` without its data so far.
    let mut left = shards;
    for block in data {
        let row = block.local().0;
        if row > at && left != shards {
            push_rows(out, at..at + 1, left);
            at += 1;
            left = shards;
        }
        if row > at {
            push_rows(out, at..row, shards);
            at = row;
        }
        left.0 &= !(1 << block.shard().index());
    }
    if left != shards {
        push_rows(out, at..at + 1, left);
        at += 1;
    }
    push_rows(out, at..rows.end, shards);
}

//! Painting and interleaving against a list of every block.

use std::ops::Range;

use super::*;
use crate::block::{BlockNum, BlockSize, ShardId, Span};
use crate::lcg::Lcg;

const STATES: [BlockState; 3] = [
    BlockState::HOLE,
    BlockState {
        content: Content::Zero,
        stored: Stored::Local,
        residence: Residence::Memory,
        changed: Seats::NONE,
    },
    BlockState {
        content: Content::Data,
        stored: Stored::Committed,
        residence: Residence::Backend,
        changed: Seats::NONE,
    },
];

impl Lcg {
    fn state(&mut self) -> BlockState {
        STATES[self.below(3) as usize]
    }
}

fn runs_of(start: u64, states: &[BlockState]) -> Runs {
    let mut runs = Runs::new(start);
    for (end, state) in (start + 1..).zip(states) {
        runs.push(end, *state);
    }
    runs
}

fn states_of(runs: &Runs) -> Vec<BlockState> {
    let mut states = Vec::new();
    let mut at = runs.range().start;
    for run in runs.as_slice() {
        assert!(run.end > at, "no run is empty");
        states.extend((at..run.end).map(|_| run.state));
        at = run.end;
    }
    let neighbours = runs.as_slice().windows(2);
    assert!(
        neighbours
            .into_iter()
            .all(|two| two[0].state != two[1].state)
    );
    states
}

#[test]
fn painting_agrees_with_a_list_of_blocks() {
    let mut dice = Lcg(1);
    for _ in 0..500 {
        let (start, len) = (dice.below(50), dice.below(40));
        let mut list: Vec<_> = (0..len).map(|_| dice.state()).collect();
        let under = runs_of(start, &list);
        let mut over: Vec<(Range<u64>, BlockState)> = Vec::new();
        let mut at = start;
        while at < start + len + 5 {
            let from = at + dice.below(6);
            at = from + 1 + dice.below(6);
            over.push((from..at, dice.state()));
        }
        for (range, state) in &over {
            for block in range.clone().filter(|block| *block < start + len) {
                list[(block - start) as usize] = *state;
            }
        }
        let painted = under.painted(over);
        assert_eq!(painted.range(), start..start + len);
        assert_eq!(states_of(&painted), list);
    }
}

/// What the extents say of every block of the span; the span's ends count as blocks.
fn blocks_of(span: Span, extents: &[Extent]) -> Vec<BlockState> {
    let shift = span.block_size.shift();
    let mut states = Vec::new();
    let mut at = span.offset;
    for extent in extents {
        let end = at + extent.len;
        let beyond = end == span.offset + span.len;
        assert!(extent.len > 0 && (beyond || end.is_multiple_of(1 << shift)));
        let last = (end - 1) >> shift;
        states.extend((at >> shift..=last).map(|_| extent.state));
        at = end;
    }
    let neighbours = extents.windows(2);
    assert!(
        neighbours
            .into_iter()
            .all(|two| two[0].state != two[1].state)
    );
    states
}

/// States in stretches, as real volumes have them.
fn stretches(dice: &mut Lcg, blocks: u64) -> Vec<BlockState> {
    let mut list = Vec::new();
    while (list.len() as u64) < blocks {
        let (state, count) = (dice.state(), 1 + dice.below(60));
        list.extend((0..count).map(|_| state));
    }
    list.truncate(blocks as usize);
    list
}

#[test]
fn interleaving_agrees_with_a_list_of_blocks() {
    let mut dice = Lcg(2);
    for block_size in [BlockSize::MIN, BlockSize::MAX] {
        for round in 0..600 {
            let bytes = block_size.bytes() as u64;
            let (offset, len) = (dice.below(40 * bytes), 1 + dice.below(300 * bytes));
            let span = Span {
                offset,
                len,
                block_size,
            };
            let list = stretches(&mut dice, span.blocks());
            let mut covered = list.len() as u64;
            let mut answers = Vec::new();
            for shard in ShardId::all() {
                let range = span.local_range(shard);
                let global = |local| crate::block::LocalBlock(local).global(shard).0;
                let states: Vec<_> = range
                    .clone()
                    .map(|local| list[(global(local) - span.first().0) as usize])
                    .collect();
                let mut runs = runs_of(range.start, &states);
                if round % 3 == 0 && !range.is_empty() {
                    runs.truncate(1 + dice.below(4) as usize);
                    if runs.range().end < range.end {
                        covered = covered.min(global(runs.range().end) - span.first().0);
                    }
                }
                answers.push((shard, runs));
            }
            let most = 1 + dice.below(20) as usize;
            let all = interleave(span, &answers, EXTENTS_MAX);
            assert_eq!(blocks_of(span, &all), list[..covered as usize]);
            let some = interleave(span, &answers, most);
            assert_eq!(some, all[..most.min(all.len())]);
            assert!(!some.is_empty(), "every shard answers at least a block");
        }
    }
}

#[test]
fn a_shard_that_nobody_answered_for_ends_the_answer() {
    let span = Span {
        offset: 0,
        len: 64 << 12,
        block_size: BlockSize::MIN,
    };
    let mut all = Runs::new(0);
    all.push(4, BlockState::HOLE);
    let but_five = ShardId::all().filter(|shard| *shard != BlockNum(5).shard());
    let answers: Vec<_> = but_five.map(|shard| (shard, all.clone())).collect();
    let told = interleave(span, &answers, 10);
    assert_eq!(told.iter().map(|extent| extent.len).sum::<u64>(), 5 << 12);
}

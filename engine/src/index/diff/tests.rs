//! What differs, against a comparison block by block.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::chunk::{ChunkRef, DataRun, ZeroRun};
use crate::identity::{Generation, VolumeId};
use crate::index::AddedChunk;
use crate::lcg::Lcg;

const BLOCKS: u64 = 200_000;

fn reference(sequence: u64, slots: u32) -> ChunkRef {
    ChunkRef {
        key: ChunkKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: sequence,
        },
        head_bytes: 128,
        slots,
        bytes: u64::from(slots) * 4104 + 128,
    }
}

/// Block → (chunk's sequence, slot).
type Model = BTreeMap<u64, (u64, u32)>;

/// A chunk with scattered blocks or a range of them, or zeros.
fn chunk(sequence: u64, random: &mut Lcg, model: &mut Model) -> AddedChunk {
    let (start, len) = (random.below(BLOCKS), 1 + random.below(3000));
    let end = (start + len).min(BLOCKS);
    let (blocks, zeros): (BTreeSet<u64>, Vec<ZeroRun>) = match random.below(4) {
        0 => (
            BTreeSet::new(),
            vec![ZeroRun::new(BlockNum(start), end - start)],
        ),
        1 => ((start..end).collect(), Vec::new()),
        _ => ((0..50).map(|_| random.below(BLOCKS)).collect(), Vec::new()),
    };
    if !zeros.is_empty() {
        model.retain(|block, _| !(start..end).contains(block));
    }
    let runs = (0..).zip(&blocks).map(|(slot, &block)| {
        model.insert(block, (sequence, slot));
        let start = BlockNum(block);
        let count = 1;
        DataRun { start, count, slot }
    });
    let runs: Vec<DataRun> = runs.collect();
    AddedChunk {
        reference: reference(sequence, runs.len() as u32),
        runs,
        zeros,
    }
}

/// Everything that differs, checked to ascend and to be joined.
fn runs(from: &VolumeBase, to: &VolumeBase) -> Vec<ChangedRun> {
    let mut runs: Vec<ChangedRun> = Vec::new();
    changed_runs(from, to, &mut |run| runs.push(run));
    for pair in runs.windows(2) {
        let end = pair[0].start.0 + pair[0].count;
        assert!(end < pair[1].start.0 || end == pair[1].start.0 && pair[0].what != pair[1].what);
    }
    runs
}

fn check(from: (&VolumeBase, &Model), to: (&VolumeBase, &Model)) {
    let mut found = BTreeMap::new();
    for run in runs(from.0, to.0) {
        found.extend((run.start.0..run.start.0 + run.count).map(|block| (block, run.what)));
    }
    let mut expected = BTreeMap::new();
    for block in from.1.keys().chain(to.1.keys()) {
        match (from.1.get(block), to.1.get(block)) {
            (old, new) if old == new => {}
            (_, Some(_)) => _ = expected.insert(*block, Changed::Data),
            (_, None) => _ = expected.insert(*block, Changed::Zeros),
        }
    }
    assert!(found == expected);
}

#[test]
fn what_differs_is_what_a_comparison_of_every_block_finds() {
    for seed in 0..20 {
        let mut random = Lcg(seed);
        let mut model = Model::new();
        let before = random.below(6);
        let chunks: Vec<AddedChunk> = (1..=before)
            .map(|sequence| chunk(sequence, &mut random, &mut model))
            .collect();
        let mut from = VolumeBase::new();
        from.apply(&chunks);
        let old = model.clone();
        let later: Vec<AddedChunk> = (before + 1..before + 4)
            .map(|sequence| chunk(sequence, &mut random, &mut model))
            .collect();
        // Rebuilt on its own: the same chunks have other ordinals.
        let mut to = VolumeBase::new();
        to.add_chunk(reference(1000, 1));
        to.apply(&chunks);
        to.apply(&later);
        check((&from, &old), (&to, &model));
        check((&to, &model), (&from, &old));
        assert_eq!(runs(&to, &to), []);
        assert_eq!(runs(&from, &from), []);
    }
}

#[test]
fn a_block_that_was_moved_to_another_object_differs() {
    let added = |sequence| AddedChunk {
        reference: reference(sequence, 1),
        runs: vec![DataRun {
            start: BlockNum(70_000),
            count: 1,
            slot: 0,
        }],
        zeros: Vec::new(),
    };
    let mut from = VolumeBase::new();
    from.apply(&[added(1)]);
    let mut to = from.clone();
    to.apply(&[added(2)]);
    let moved = ChangedRun {
        start: BlockNum(70_000),
        count: 1,
        what: Changed::Data,
    };
    assert_eq!(runs(&from, &to), [moved]);
}

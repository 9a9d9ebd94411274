//! What has changed since a baseline, against a comparison block by block.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::block::{BlockNum, LocalBlock};
use crate::chunk::{ChunkRef, DataRun, ZeroRun};
use crate::identity::{Generation, VolumeId};
use crate::index::{AddedChunk, LEAF_BLOCKS};
use crate::lcg::Lcg;
use crate::object::ChunkKey;

const BLOCKS: u64 = 200_000;

/// Block → (chunk's number, slot).
type Model = BTreeMap<u64, (u64, u32)>;

fn added(number: u64, blocks: &[u64], zeros: Vec<ZeroRun>) -> AddedChunk {
    let runs = (0..).zip(blocks).map(|(slot, &block)| DataRun {
        start: BlockNum(block),
        count: 1,
        slot,
    });
    let slots = blocks.len() as u32;
    AddedChunk {
        reference: ChunkRef {
            key: ChunkKey {
                volume: VolumeId(1),
                generation: Generation(1),
                sequence: number,
                random: number,
            },
            head_bytes: 128,
            slots,
            bytes: u64::from(slots) * 4104 + 128,
        },
        runs: runs.collect(),
        zeros,
    }
}

/// A chunk with scattered blocks or a range of them, or zeros.
fn chunk(number: u64, dice: &mut Lcg, model: &mut Model) -> AddedChunk {
    let start = dice.below(BLOCKS);
    let end = (start + 1 + dice.below(3000)).min(BLOCKS);
    if dice.below(4) == 0 {
        model.retain(|block, _| !(start..end).contains(block));
        let zeros = vec![ZeroRun::new(BlockNum(start), end - start)];
        return added(number, &[], zeros);
    }
    let blocks: BTreeSet<u64> = match dice.below(2) {
        0 => (start..end).collect(),
        _ => (0..50).map(|_| dice.below(BLOCKS)).collect(),
    };
    let blocks: Vec<u64> = blocks.into_iter().collect();
    model.extend((0..).zip(&blocks).map(|(slot, b)| (*b, (number, slot))));
    added(number, &blocks, Vec::new())
}

/// Every shard's baseline `from`, in terms of `to`, and what is noted of its chunk table.
fn baselines(from: &VolumeBase, to: &VolumeBase) -> (Vec<Baseline>, Arc<Reassigned>) {
    let reassigned = Arc::new(Reassigned::new(to));
    let comparison = Comparison::new(from, to, Arc::clone(&reassigned));
    let shards = ShardId::all().map(|shard| comparison.shard(shard));
    (shards.collect(), reassigned)
}

/// All blocks that have changed.
fn changed(baselines: &[Baseline], to: &VolumeBase) -> BTreeSet<u64> {
    let mut changed = BTreeSet::new();
    for (shard, baseline) in ShardId::all().zip(baselines) {
        for key in 0..(BLOCKS / 16).div_ceil(LEAF_BLOCKS) as u32 {
            let (key, all) = (LeafKey(key), 0..LEAF_BLOCKS as u16);
            let mut last = None;
            baseline.changed(key, to.shard(shard).leaf(key), all, |part| {
                assert!(!part.is_empty() && last.is_none_or(|last| last < part.start));
                last = Some(part.end);
                let local = |index| LocalBlock(key.first().0 + u64::from(index));
                changed.extend(part.map(|index| local(index).global(shard).0));
            });
        }
    }
    changed
}

fn differing(from: &Model, to: &Model) -> BTreeSet<u64> {
    let blocks = from.keys().chain(to.keys());
    let differs = |block: &u64| from.get(block) != to.get(block);
    blocks.copied().filter(differs).collect()
}

#[test]
fn what_has_changed_is_what_a_comparison_of_every_block_finds() {
    for seed in 0..20 {
        let (mut dice, mut model) = (Lcg(seed), Model::new());
        let before = 1 + dice.below(6);
        let chunks: Vec<_> = (1..=before)
            .map(|number| chunk(number, &mut dice, &mut model))
            .collect();
        let mut from = VolumeBase::new();
        from.apply(&chunks);
        let then = model.clone();
        // Rebuilt on its own: with an even seed the same chunks have other ordinals.
        let mut to = VolumeBase::new();
        if seed % 2 == 0 {
            to.add_chunk(added(1000, &[], Vec::new()).reference);
        }
        to.apply(&chunks);
        let (same, _) = baselines(&from, &to);
        assert!(changed(&same, &to).is_empty());
        to.apply(&[chunk(before + 1, &mut dice, &mut model)]);
        // Made in the middle of the changes, told of the others.
        let (since, reassigned) = baselines(&from, &to);
        assert!(changed(&since, &to) == differing(&then, &model));
        to.apply(&[chunk(before + 2, &mut dice, &mut model)]);
        reassigned.note(&to);
        assert!(changed(&since, &to) == differing(&then, &model));
        // And the way back.
        let (back, _) = baselines(&to, &from);
        assert!(changed(&back, &from) == differing(&then, &model));
    }
}

#[test]
fn leaves_that_did_not_change_are_shared() {
    let all: Vec<u64> = (0..4 * 16 * LEAF_BLOCKS).step_by(5).collect();
    let mut from = VolumeBase::new();
    from.add_chunk(added(9, &[], Vec::new()).reference);
    let mut to = VolumeBase::new();
    from.apply(&[added(1, &all, Vec::new())]);
    to.apply(&[added(1, &all, Vec::new()), added(2, &[3], Vec::new())]);
    let (since, _) = baselines(&from, &to);
    for (shard, baseline) in ShardId::all().zip(&since) {
        for (key, now) in to.shard(shard).leaves() {
            let is_shared = baseline.base().leaf(key).is_some_and(|then| then.is(now));
            let is_changed = (shard, key) == (BlockNum(3).shard(), LeafKey(0));
            assert_ne!(is_shared, is_changed, "{shard:?} {key:?}");
        }
    }
}

#[test]
fn a_chunk_under_the_ordinal_of_one_that_was_forgotten_is_no_match() {
    let mut to = VolumeBase::new();
    to.apply(&[added(1, &[70_000], Vec::new())]);
    let from = to.clone();
    let (since, reassigned) = baselines(&from, &to);
    // As a clone does with a chunk of its parent.
    to.apply(&[added(2, &[70_000], Vec::new())]);
    reassigned.note(&to);
    assert_eq!(changed(&since, &to), BTreeSet::from([70_000]));
    to.condemn(ChunkOrdinal(0));
    to.recycle(ChunkOrdinal(0));
    to.apply(&[added(3, &[70_000], Vec::new())]);
    let place = to.lookup(BlockNum(70_000));
    assert_eq!(place, from.lookup(BlockNum(70_000)), "nothing tells them");
    assert!(changed(&since, &to).is_empty());
    reassigned.note(&to);
    assert_eq!(changed(&since, &to), BTreeSet::from([70_000]));
}

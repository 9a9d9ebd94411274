//! Leaves against a map, and their bytes against golden ones.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn loc(chunk: u32, slot: u32) -> ChunkLoc {
    ChunkLoc {
        chunk: ChunkOrdinal(chunk),
        slot,
    }
}

type Model = BTreeMap<u16, ChunkLoc>;

fn entries(model: &Model) -> Vec<LeafEntry> {
    model.iter().map(|(&index, &loc)| (index, loc)).collect()
}

fn build(model: &Model) -> Option<Leaf> {
    Leaf::build(&entries(model))
}

fn check(model: &Model, leaf: Option<&Leaf>) {
    let Some(leaf) = leaf else {
        assert!(model.is_empty());
        return;
    };
    for index in 0..LEAF_BLOCKS as u16 {
        assert_eq!(
            leaf.lookup(index),
            model.get(&index).copied(),
            "index {index}"
        );
    }
    let mut seen = Vec::new();
    leaf.for_each(|index, loc| seen.push((index, loc)));
    assert_eq!(seen, entries(model));
    assert_eq!(leaf.mapped(), model.len() as u64);
    for range in [0..LEAF_BLOCKS as u16, 63..64, 100..2500, 4000..4096] {
        let mut mapped = Vec::new();
        leaf.mapped_ranges(range.clone(), |part| mapped.extend(part));
        assert!(
            mapped
                .iter()
                .eq(model.range(range.clone()).map(|(index, _)| index))
        );
        let mut part = Vec::new();
        leaf.entries_in(range.clone(), |index, loc| part.push((index, loc)));
        assert!(
            part.into_iter()
                .eq(model.range(range).map(|(i, loc)| (*i, *loc)))
        );
    }
    assert_eq!(Leaf::decode(leaf.encode()).unwrap(), *leaf);
    assert!(leaf.encode().len() <= LEAF_BYTES_MAX);
}

/// Contents that make each kind of leaf likely: runs, scattered blocks, much and little.
fn model() -> impl Strategy<Value = Model> {
    let run = (
        0..LEAF_BLOCKS as u16,
        1..600u16,
        0..5u32,
        0..1000u32,
        1..40u32,
    );
    let runs = prop::collection::vec(run, 0..20);
    let chunk_limit = prop_oneof![Just(3u32), Just(1 << 14), Just(1 << 22), Just(u32::MAX)];
    let scattered = (chunk_limit, 0..LEAF_BLOCKS as usize).prop_flat_map(|(chunks, most)| {
        let entry = (0..LEAF_BLOCKS as u16, 0..=chunks, 0..1u32 << 14);
        prop::collection::vec(entry, 0..=most)
    });
    (runs, prop_oneof![Just(Vec::new()), scattered]).prop_map(|(runs, scattered)| {
        let mut model = Model::new();
        for (first, count, chunk, slot, step) in runs {
            for k in 0..count.min(LEAF_BLOCKS as u16 - first) {
                model.insert(first + k, loc(chunk, slot + u32::from(k) * step));
            }
        }
        for (index, chunk, slot) in scattered {
            model.insert(index, loc(chunk, slot));
        }
        model
    })
}

fn zero_ranges() -> impl Strategy<Value = Vec<Range<u16>>> {
    prop::collection::btree_set(0..=LEAF_BLOCKS as u16, 0..12).prop_map(|edges| {
        let edges: Vec<_> = edges.into_iter().collect();
        edges.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_leaf_is_its_entries(model in model()) {
        check(&model, build(&model).as_ref());
    }

    #[test]
    fn merging_unmaps_zeros_then_maps_points(
        old in model(),
        zeros in zero_ranges(),
        points in model(),
    ) {
        let old_leaf = build(&old);
        let mut expected = old.clone();
        let mut gone = Vec::new();
        for (&index, &place) in &old {
            if zeros.iter().any(|zero| zero.contains(&index)) || points.contains_key(&index) {
                gone.push(place);
                expected.remove(&index);
            }
        }
        expected.extend(&points);
        let (mut scratch, mut displaced) = (Vec::new(), Vec::new());
        let merged = Leaf::merged(
            old_leaf.as_ref(),
            &zeros,
            &entries(&points),
            &mut scratch,
            &mut |place| displaced.push(place),
        );
        check(&expected, merged.as_ref());
        prop_assert_eq!(displaced, gone);
    }

    #[test]
    fn garbage_is_refused_or_harmless(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        exercise(&bytes);
    }

    #[test]
    fn damaged_leaves_are_refused_or_harmless(
        model in model(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let Some(leaf) = build(&model) else { return Ok(()) };
        let mut bytes = leaf.encode().to_vec();
        exercise(&bytes[..cut.index(bytes.len())]);
        for (at, value) in flips {
            // Half of the damage goes to the header, where it does most harm.
            let len = if value & 1 == 0 { bytes.len() } else { field::HEADER_BYTES };
            bytes[at.index(len)] = value;
        }
        exercise(&bytes);
    }
}

/// Bytes that decode must answer everything without a panic.
fn exercise(bytes: &[u8]) {
    let Ok(leaf) = Leaf::decode(bytes) else {
        return;
    };
    let mut model = Model::new();
    leaf.for_each(|index, loc| assert!(model.insert(index, loc).is_none()));
    check(&model, Some(&leaf));
}

fn random(model_len: u32, chunks: u32) -> Model {
    let mut state = 0x1234_5678_9ABC_DEF1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut model = Model::new();
    while model.len() < model_len as usize {
        let index = (next() % LEAF_BLOCKS) as u16;
        model.insert(index, loc(next() as u32 % chunks, next() as u32 % 1024));
    }
    model
}

#[test]
fn each_content_takes_its_smallest_kind() {
    let sequential =
        (0..LEAF_BLOCKS as u16).map(|i| (i, loc(u32::from(i / 64), u32::from(i % 64) * 16)));
    let sequential = build(&sequential.collect()).unwrap();
    assert_eq!(sequential.kind(), LeafKind::Runs);
    assert_eq!(sequential.encode().len(), 8 + 64 * 12);
    let sparse = build(&random(40, 1 << 22)).unwrap();
    assert_eq!(sparse.kind(), LeafKind::Sparse);
    assert_eq!(sparse.encode().len(), 8 + 40 * (2 + 4));
    let dense = build(&random(4096, 1 << 22)).unwrap();
    assert_eq!(dense.kind(), LeafKind::Dense);
    assert_eq!(dense.encode().len(), 8 + 32 + 512 + 4096 * 4);
    let few_chunks = build(&random(4096, 1 << 14)).unwrap();
    assert_eq!(few_chunks.encode().len(), 8 + 32 + 512 + 4096 * 3);
    let many_chunks = build(&random(4096, u32::MAX)).unwrap();
    assert_eq!(many_chunks.encode().len(), LEAF_BYTES_MAX);
}

#[test]
fn an_empty_leaf_does_not_exist() {
    assert_eq!(Leaf::build(&[]), None);
    let leaf = build(&random(10, 7)).unwrap();
    let all = 0..LEAF_BLOCKS as u16;
    let all = std::slice::from_ref(&all);
    let mut count = 0;
    let merged = Leaf::merged(Some(&leaf), all, &[], &mut Vec::new(), &mut |_| count += 1);
    assert_eq!((merged, count), (None, 10));
}

#[test]
fn golden_bytes() {
    let runs = build(
        &(10..20)
            .map(|i| (i, loc(0x0403_0201, u32::from(i) * 16)))
            .collect(),
    );
    #[rustfmt::skip]
    assert_eq!(runs.unwrap().encode(), [
        1, 0, 0, 0, 1, 0, 10, 0,
        10, 0, 10, 0, 1, 2, 3, 4, 160, 0, 16, 0,
    ]);
    let sparse = build(&Model::from([(3, loc(5, 2)), (4000, loc(0x123, 7))]));
    #[rustfmt::skip]
    assert_eq!(sparse.unwrap().encode(), [
        2, 3, 2, 0, 2, 0, 2, 0,
        3, 0, 0xA0, 0x0F,
        (5 << 3) | 2, 0, 0x1F, 0x09,
    ]);
    let dense = build(
        &(0..4096)
            .step_by(2)
            .map(|i| (i, loc(u32::from(i % 100), 1)))
            .collect(),
    );
    let dense = dense.unwrap();
    let bytes = dense.encode();
    assert_eq!(bytes[..8], [3, 1, 1, 0, 0, 8, 0, 8]);
    assert_eq!(bytes[8..14], [0, 0, 128, 0, 0, 1]);
    assert_eq!(bytes[40..44], [0x55; 4]);
    assert_eq!(bytes[552..556], [1, 5, 9, 13]);
}

#[test]
fn each_broken_rule_is_named() {
    let runs = build(&(0..10).map(|i| (i, loc(1, u32::from(i)))).collect()).unwrap();
    let sparse = build(&random(20, 1 << 22)).unwrap();
    let dense = build(&random(4000, 1 << 22)).unwrap();
    let damaged = |leaf: &Leaf, at: usize, value: u8| {
        let mut bytes = leaf.encode().to_vec();
        bytes[at] = value;
        Leaf::decode(&bytes).unwrap_err().to_string()
    };
    for (error, rule) in [
        (damaged(&runs, field::KIND, 9), "unknown kind"),
        (damaged(&runs, field::ZERO, 1), "reserved"),
        (damaged(&runs, field::ITEMS.start, 0), "impossible number"),
        (damaged(&runs, field::ITEMS.start, 2), "number of runs"),
        (damaged(&runs, field::SLOT_BITS, 1), "value shape"),
        (
            damaged(&runs, field::MAPPED.start, 9),
            "mapped blocks differ",
        ),
        (
            damaged(&runs, field::HEADER_BYTES + field::RUN_STEP.start, 0),
            "wrong step",
        ),
        (
            damaged(&runs, field::HEADER_BYTES + field::RUN_FIRST.start + 1, 16),
            "leave the leaf",
        ),
        (
            damaged(&runs, field::HEADER_BYTES + field::RUN_STEP.start + 1, 255),
            "beyond any chunk",
        ),
        (damaged(&sparse, field::SLOT_BITS, 17), "value shape"),
        (damaged(&sparse, field::VALUE_BYTES, 3), "number of values"),
        (damaged(&sparse, field::MAPPED.start, 9), "differ"),
        (
            damaged(&sparse, field::HEADER_BYTES + 1, 200),
            "order of indices",
        ),
        (
            damaged(&dense, field::HEADER_BYTES + 3, 200),
            "rank and bitmap",
        ),
        (
            damaged(&dense, field::DENSE_VALUES - 1, 0),
            "bitmap and entries",
        ),
    ] {
        assert!(error.contains(rule), "{rule}: {error}");
    }
}

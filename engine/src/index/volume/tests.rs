//! A volume's base against a map of blocks, and what it costs in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::block::ShardSet;
use crate::identity::ManifestNum;
use crate::identity::{Generation, VolumeId};
use crate::index::leaf::LEAVES_MAX;
use crate::index::part::IndexPart;
use crate::object::{ChunkKey, IndexKey};

pub(super) fn reference(sequence: u64, slots: u32) -> ChunkRef {
    ChunkRef {
        key: ChunkKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence,
            random: sequence * 77,
        },
        head_bytes: 128,
        slots,
        bytes: u64::from(slots) * 4104 + 128,
    }
}

/// A chunk of these blocks (ascending) and zeros.
fn chunk(sequence: u64, blocks: &[u64], zeros: &[Range<u64>]) -> AddedChunk {
    let run = |(slot, &block): (usize, &u64)| DataRun {
        start: BlockNum(block),
        count: 1,
        slot: slot as u32,
    };
    AddedChunk {
        reference: reference(sequence, blocks.len() as u32),
        runs: blocks.iter().enumerate().map(run).collect(),
        zeros: zeros
            .iter()
            .map(|zero| ZeroRun::new(BlockNum(zero.start), zero.end - zero.start))
            .collect(),
    }
}

/// Block → (chunk's sequence, slot).
type Model = BTreeMap<u64, (u64, u32)>;

fn note(model: &mut Model, chunk: &AddedChunk) {
    for zero in &chunk.zeros {
        model.retain(|block, _| !zero.covers(BlockNum(*block)));
    }
    for run in &chunk.runs {
        for i in 0..run.count {
            let place = (chunk.reference.key.sequence, run.slot + i);
            model.insert(run.start.0 + u64::from(i), place);
        }
    }
}

fn check(model: &Model, base: &VolumeBase, probes: impl IntoIterator<Item = u64>) {
    for block in probes.into_iter().chain(model.keys().copied()) {
        let found = base.lookup(BlockNum(block)).map(|loc| {
            let entry = base
                .chunk(loc.chunk)
                .expect("named chunks are in the table");
            (entry.reference.key.sequence, loc.slot)
        });
        assert_eq!(found, model.get(&block).copied(), "block {block}");
    }
    assert_eq!(base.mapped_blocks(), model.len() as u64);
    let mut live: BTreeMap<u64, u32> = BTreeMap::new();
    model
        .values()
        .for_each(|(chunk, _)| *live.entry(*chunk).or_default() += 1);
    for (ordinal, entry) in base.chunks() {
        let expected = live
            .get(&entry.reference.key.sequence)
            .copied()
            .unwrap_or(0);
        assert_eq!(entry.live, expected);
        assert_eq!(base.empty.contains(&ordinal), expected == 0);
    }
}

const BLOCKS: u64 = 200_000;

/// Blocks with data, and a range (start, length) to be zeroed up to the first of them.
type Content = (BTreeSet<u64>, Option<(u64, u64)>);

/// Chunks with scattered and sequential blocks, and zeros that avoid them.
fn chunks() -> impl Strategy<Value = Vec<AddedChunk>> {
    let blocks = prop_oneof![
        prop::collection::btree_set(0..BLOCKS, 0..60),
        (0..BLOCKS - 2000, 1..2000u64).prop_map(|(start, len)| (start..start + len).collect()),
    ];
    let zero = (0..BLOCKS, 1..BLOCKS / 2);
    let zeros = prop::option::weighted(0.4, zero);
    prop::collection::vec((blocks, zeros), 1..8).prop_map(|chunks| {
        let build = |(i, (blocks, zero)): (usize, Content)| {
            let zero = zero.map(|(start, len)| start..start + len);
            let first = blocks
                .iter()
                .find(|block| zero.as_ref().is_some_and(|z| z.contains(block)));
            let zero = zero.map(|zero| zero.start..first.copied().unwrap_or(zero.end));
            let zeros: Vec<_> = zero.into_iter().filter(|zero| !zero.is_empty()).collect();
            chunk(
                i as u64 + 1,
                &blocks.into_iter().collect::<Vec<_>>(),
                &zeros,
            )
        };
        chunks.into_iter().enumerate().map(build).collect()
    })
}

/// Writes a checkpoint of `base` and applies it to `loaded`.
fn save_parts(base: &VolumeBase, full: bool, loaded: &mut VolumeBase) {
    for items in base.checkpoint_plan(full, 20_000) {
        let key = IndexKey {
            volume: VolumeId(1),
            generation: Generation(1),
            sequence: 1,
            random: 1,
        };
        let part = base.checkpoint_part(key, ManifestNum(2), &items, None);
        loaded
            .load_part(IndexPart::decode(&part.encode()).unwrap())
            .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_base_is_its_chunks_in_order(chunks in chunks(), together in any::<bool>()) {
        let (mut model, mut base) = (Model::new(), VolumeBase::new());
        let mut shards = vec![ShardBase::new(); SHARD_COUNT];
        let size = if together { chunks.len() } else { 1 };
        for batch in chunks.chunks(size) {
            let applied = base.apply(batch);
            prop_assert_eq!(applied.ordinals.len(), batch.len());
            for (shard, leaves) in shards.iter_mut().zip(applied.leaves) {
                shard.install(leaves);
            }
            batch.iter().for_each(|chunk| note(&mut model, chunk));
        }
        check(&model, &base, (0..BLOCKS).step_by(97));
        // What was handed to the shards is what the uploader has.
        for (shard, ours) in ShardId::all().zip(&shards) {
            prop_assert!(ours.leaves().eq(base.shard(shard).leaves()));
            prop_assert_eq!(ours.mapped_blocks(), base.shard(shard).mapped_blocks());
            // A leaf that came and went within one step leaves its directory behind.
            prop_assert!(ours.heap_bytes() <= base.shard(shard).heap_bytes());
        }
    }

    #[test]
    fn checkpoints_of_changes_add_up_to_the_whole(chunks in chunks()) {
        let (mut model, mut base) = (Model::new(), VolumeBase::new());
        let mut by_changes = VolumeBase::new();
        for chunk in &chunks {
            base.apply(std::slice::from_ref(chunk));
            note(&mut model, chunk);
            save_parts(&base, false, &mut by_changes);
            base.checkpoint_committed();
            prop_assert_eq!(base.dirty_bytes(), 0);
            let gone: Vec<_> = base.condemnable().map(|(ordinal, _)| ordinal).collect();
            for ordinal in gone {
                base.condemn(ordinal);
                base.recycle(ordinal);
            }
        }
        save_parts(&base, false, &mut by_changes);
        by_changes.finish_load().unwrap();
        let mut from_whole = VolumeBase::new();
        save_parts(&base, true, &mut from_whole);
        from_whole.finish_load().unwrap();
        for loaded in [&by_changes, &from_whole] {
            check(&model, loaded, (0..BLOCKS).step_by(97));
            let references = |base: &VolumeBase| -> Vec<_> {
                base.chunks().map(|(_, entry)| entry.reference).collect()
            };
            prop_assert_eq!(references(loaded), references(&base));
        }
    }
}

#[test]
fn a_chunk_is_condemnable_when_nothing_names_it_and_no_rebuild_needs_it() {
    let mut base = VolumeBase::new();
    base.apply(&[chunk(1, &[1, 2, 3], &[])]);
    base.apply(&[chunk(2, &[1, 2], &[])]);
    base.apply(&[chunk(3, &[], std::slice::from_ref(&(3..4)))]);
    assert_eq!(base.condemnable().count(), 0, "a rebuild reads all three");
    base.checkpoint_committed();
    let gone: Vec<_> = base
        .condemnable()
        .map(|(o, e)| (o, e.reference.key.sequence))
        .collect();
    assert_eq!(gone, [(ChunkOrdinal(0), 1), (ChunkOrdinal(2), 3)]);
    base.condemn(ChunkOrdinal(0));
    assert_eq!(base.condemnable().count(), 1);
    // Until it is recycled, the ordinal names nothing else.
    assert_eq!(
        base.apply(&[chunk(4, &[9], &[])]).ordinals,
        [ChunkOrdinal(3)]
    );
    base.recycle(ChunkOrdinal(0));
    assert_eq!(
        base.apply(&[chunk(5, &[10], &[])]).ordinals,
        [ChunkOrdinal(0)]
    );
}

#[test]
#[should_panic(expected = "condemned a chunk in use")]
fn a_chunk_in_use_cannot_be_condemned() {
    let mut base = VolumeBase::new();
    let ordinals = base.apply(&[chunk(1, &[1], &[])]).ordinals;
    base.condemn(ordinals[0]);
}

#[test]
fn parts_that_contradict_each_other_are_corrupt() {
    let mut base = VolumeBase::new();
    base.apply(&[chunk(1, &[1, 2, 3], &[])]);
    let key = IndexKey {
        volume: VolumeId(1),
        generation: Generation(1),
        sequence: 1,
        random: 1,
    };
    let whole = base.checkpoint_part(
        key,
        ManifestNum(2),
        &base.checkpoint_plan(true, 1 << 20)[0],
        None,
    );
    let load = |part: IndexPart| {
        let mut loaded = VolumeBase::new();
        loaded.load_part(part)?;
        loaded.finish_load()
    };
    load(whole.clone()).unwrap();
    let mut without_chunk = whole.clone();
    without_chunk.chunks.clear();
    assert!(
        load(without_chunk)
            .unwrap_err()
            .to_string()
            .contains("chunk table")
    );
    let mut short_chunk = whole.clone();
    short_chunk.chunks[0].1 = Some(reference(1, 2));
    assert!(load(short_chunk).is_err());
    let mut huge_ordinal = whole;
    huge_ordinal.chunks[0].0 = ChunkOrdinal(u32::MAX);
    assert!(
        load(huge_ordinal)
            .unwrap_err()
            .to_string()
            .contains("ordinal")
    );
}

#[test]
fn a_small_part_cannot_make_a_huge_table() {
    let key = IndexKey {
        volume: VolumeId(1),
        generation: Generation(1),
        sequence: 1,
        random: 1,
    };
    let load = |ordinals: &[u32]| {
        let chunks = ordinals
            .iter()
            .map(|&o| (ChunkOrdinal(o), Some(reference(u64::from(o), 1))));
        let part = IndexPart {
            key,
            manifest: ManifestNum(2),
            leaves: Vec::new(),
            chunks: chunks.collect(),
            root: None,
        };
        let part = IndexPart::decode(&part.encode()).unwrap();
        let mut loaded = VolumeBase::new();
        loaded.load_part(part)?;
        loaded.finish_load().map(|()| loaded)
    };
    let error = load(&[0, (1 << 26) - 1])
        .err()
        .expect("5 GiB for two chunks");
    assert!(error.to_string().contains("ordinal 67108863"), "{error}");
    // What shrank to little keeps its high ordinals.
    let shrunk = load(&[7, 100_000]).unwrap();
    assert_eq!(shrunk.chunks().count(), 2);
}

#[test]
fn zeros_over_the_largest_volume_touch_only_what_is_mapped() {
    let mut base = VolumeBase::new();
    let end = u64::from(LEAVES_MAX) * LEAF_BLOCKS * SHARD_COUNT as u64;
    base.apply(&[chunk(1, &[5, end / 2, end - 1], &[])]);
    assert!(base.may_map(&ZeroRun::new(BlockNum(end - 1), 1)));
    assert!(!base.may_map(&ZeroRun::new(BlockNum(end / 4), 1000)));
    let applied = base.apply(&[chunk(2, &[], std::slice::from_ref(&(0..end)))]);
    let removed: usize = applied.leaves.iter().map(Vec::len).sum();
    assert_eq!((removed, base.mapped_blocks()), (3, 0));
    assert!(
        applied
            .leaves
            .iter()
            .flatten()
            .all(|(_, leaf)| leaf.is_none())
    );
    assert!(!base.may_map(&ZeroRun::new(BlockNum(0), end)));
}

#[test]
fn zeros_leave_the_blocks_of_spared_shards_alone() {
    let mut base = VolumeBase::new();
    base.apply(&[chunk(1, &[16, 17, 35, 36, 53], &[])]);
    // Rows 1 to 3, only the shards 1 and 3.
    let zeros = ZeroRun {
        spared: ShardSet(!0b1010),
        ..ZeroRun::new(BlockNum(16), 48)
    };
    assert!(base.may_map(&zeros));
    let mut zeroing = chunk(2, &[], &[]);
    zeroing.zeros.push(zeros);
    base.apply(&[zeroing]);
    let mapped = (0..64).filter(|block| base.lookup(BlockNum(*block)).is_some());
    assert_eq!(mapped.collect::<Vec<_>>(), [16, 36, 53]);
    let all_but = ZeroRun {
        spared: ShardSet(0b110001),
        ..zeros
    };
    assert!(!base.may_map(&all_but));
}

/// Bytes per mapped block of all shards' leaves and directories.
fn bytes_per_block(base: &VolumeBase) -> f64 {
    let heap: usize = ShardId::all()
        .map(|shard| base.shard(shard).heap_bytes())
        .sum();
    heap as f64 / base.mapped_blocks() as f64
}

/// A base of `leaves` leaves per shard, one block in `one_in` mapped at random, every block in a
/// chunk of its own choosing out of `chunks`: the worst content there is.
fn random_base(leaves: u32, fill_percent: u64, chunks: u32) -> VolumeBase {
    let mut state = 0x9E37_79B9_97F4_A7C1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut base = VolumeBase::new();
    for shard in 0..SHARD_COUNT {
        for key in (0..leaves).map(LeafKey) {
            let mut entries = Vec::new();
            for index in 0..LEAF_BLOCKS as u16 {
                if next() % 100 < fill_percent {
                    let chunk = ChunkOrdinal((next() % u64::from(chunks)) as u32);
                    let slot = (next() % 1024) as u32;
                    entries.push((index, ChunkLoc { chunk, slot }));
                }
            }
            base.shards[shard].install([(key, Leaf::build(&entries))]);
        }
    }
    base
}

/// The bar is 8 bytes per block at any random fill, directory and allocator included; 4 Mi chunks
/// are 16 TiB of data in chunks of 4 MiB.
#[test]
fn random_fills_cost_at_most_8_bytes_a_block() {
    for fill_percent in [1, 2, 3, 5, 10, 25, 50, 75, 100] {
        for chunks in [1 << 14, 1 << 22] {
            let base = random_base(64, fill_percent, chunks);
            let cost = bytes_per_block(&base);
            let bar = if fill_percent >= 10 { 6.0 } else { 8.0 };
            println!("{fill_percent:>3} % random, {chunks:>7} chunks: {cost:.2} bytes per block");
            assert!(
                cost <= bar,
                "{fill_percent} %, {chunks} chunks: {cost:.2} bytes per block"
            );
        }
    }
}

/// Sequentially written data of 4 MiB chunks costs far below one byte a block.
#[test]
fn sequential_data_costs_a_quarter_byte_a_block() {
    let mut base = VolumeBase::new();
    for i in 0..1024u64 {
        let run = DataRun {
            start: BlockNum(i * 1024),
            count: 1024,
            slot: 0,
        };
        base.apply(&[AddedChunk {
            reference: reference(i, 1024),
            runs: vec![run],
            zeros: Vec::new(),
        }]);
    }
    assert_eq!(base.mapped_blocks(), 1 << 20);
    let cost = bytes_per_block(&base);
    println!("sequential: {cost:.3} bytes per block");
    assert!(cost <= 0.25, "{cost:.3} bytes per block");
}

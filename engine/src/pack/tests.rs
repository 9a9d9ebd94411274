//! Plans against the newest version of every block of the cut.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::chunk::ChunkView;
use crate::error::Error;
use crate::identity::{BatchNum, Generation, Lsn, VolumeId};
use crate::index::Point;
use crate::object::ChunkKey;

const BLOCKS: u64 = 512;

/// A write or zeroing of global blocks, as shards split it; LSNs ascend by position.
#[derive(Clone, Debug)]
struct Request {
    zero: bool,
    start: u64,
    count: u64,
    /// Shards that had sealed already: for them the request is in the next cut.
    missed: u16,
    layer: usize,
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let missed = prop_oneof![3 => Just(0u16), 1 => any::<u16>()];
    let request = (any::<bool>(), 0..BLOCKS, 1..BLOCKS / 2, missed, 0..3usize);
    let build = |(zero, start, count, missed, layer)| Request {
        zero,
        start,
        count: if zero { count } else { count % 40 + 1 },
        missed,
        layer,
    };
    prop::collection::vec(request.prop_map(build), 0..24)
}

type Layers = Vec<(ShardId, Overlay)>;
/// Newest version: `Some(lsn)` of data, `None` for zeros.
type Model = BTreeMap<u64, Option<u64>>;

fn crc_of(block: u64, lsn: u64) -> u32 {
    (block * 1000 + lsn) as u32
}

/// Three layers a shard; the LSN alone says which version is the newest.
fn replay(requests: &[Request]) -> (Layers, Model) {
    let mut layers: Layers = Vec::new();
    for _ in 0..3 {
        layers.extend(ShardId::all().map(|shard| (shard, Overlay::new())));
    }
    let mut model = Model::new();
    for (request, lsn) in requests.iter().zip(1..) {
        let blocks = (request.start..request.start + request.count).map(BlockNum);
        for block in blocks.filter(|block| request.missed >> block.shard().index() & 1 == 0) {
            let layer = &mut layers[request.layer * SHARD_COUNT + block.shard().index()].1;
            let local = block.local();
            if request.zero {
                layer.insert_zero(local.0..local.0 + 1, Lsn(lsn));
            } else {
                let place = Place {
                    batch: BatchNum(lsn),
                    page: 1,
                };
                let crc = crc_of(block.0, lsn);
                let lsn = Lsn(lsn);
                layer.insert_point(local, Point { lsn, place, crc });
            }
            model.insert(block.0, (!request.zero).then_some(lsn));
        }
    }
    (layers, model)
}

fn plan(layers: &Layers, chunk_slots: u32) -> PackPlan {
    let layers = layers.iter().map(|(shard, layer)| (*shard, layer));
    PackPlan::new(Epoch(7), BlockSize::MIN, chunk_slots, layers)
}

proptest! {
    #[test]
    fn a_plan_is_the_newest_version_of_every_block(requests in requests(), slots in 1..100u32) {
        let (layers, model) = replay(&requests);
        let plan = plan(&layers, slots);
        let mut found = Model::new();
        let mut last_data = None;
        for chunk in 0..plan.chunks() {
            prop_assert!(plan.chunk_blocks(chunk).len() <= slots as usize);
            for block in plan.chunk_blocks(chunk) {
                prop_assert!(last_data < Some(block.block), "blocks ascend");
                last_data = Some(block.block);
                let lsn = block.place.batch.0;
                prop_assert_eq!(block.crc, crc_of(block.block.0, lsn));
                prop_assert!(found.insert(block.block.0, Some(lsn)).is_none());
            }
            let mut end = None;
            for zero in plan.chunk_zeros(chunk) {
                prop_assert!(
                    end.is_none_or(|(end, spared)| {
                        end < zero.start.0 || end == zero.start.0 && spared != zero.spared
                    }),
                    "runs are maximal"
                );
                end = Some((zero.start.0 + zero.count, zero.spared));
                let blocks = (zero.start.0..zero.start.0 + zero.count).map(BlockNum);
                for block in blocks.filter(|block| zero.covers(*block)) {
                    prop_assert!(found.insert(block.0, None).is_none(), "{:?} twice", block);
                }
            }
        }
        prop_assert_eq!(found, model);
    }

    #[test]
    fn built_chunks_hold_what_the_index_is_told(requests in requests(), slots in 1..100u32) {
        let (layers, _) = replay(&requests);
        let plan = Arc::new(with_real_crcs(plan(&layers, slots)));
        for index in 0..plan.chunks() {
            let job = job(&plan, index);
            let (bytes, reference) = job.build(fill).unwrap();
            prop_assert_eq!(&job.build(fill).unwrap().0, &bytes, "a retry puts the same bytes");
            let view = ChunkView::parse(&bytes).unwrap();
            let added = plan.added(index, reference);
            prop_assert!(view.is(&reference));
            prop_assert_eq!(view.runs, added.runs);
            prop_assert_eq!(view.zeros, added.zeros);
        }
    }
}

fn job(plan: &Arc<PackPlan>, index: usize) -> ChunkJob {
    let key = ChunkKey {
        volume: VolumeId(1),
        generation: Generation(1),
        sequence: index as u64,
        random: 9,
    };
    let spec = ChunkSpec {
        key,
        block_size: BlockSize::MIN,
        epoch: plan.epoch(),
        salt: [3; 16],
    };
    ChunkJob {
        index,
        spec,
        plan: Arc::clone(plan),
    }
}

/// Each block is filled with the low byte of its LSN.
fn fill(block: &PackBlock, out: &mut [u8]) -> Result<()> {
    out.fill(block.place.batch.0 as u8);
    Ok(())
}

fn with_real_crcs(mut plan: PackPlan) -> PackPlan {
    let mut bytes = vec![0; 4096];
    for block in &mut plan.blocks {
        bytes.fill(block.place.batch.0 as u8);
        block.crc = crc32c::crc32c(&bytes);
    }
    plan
}

fn write(layers: &mut Layers, block: u64, lsn: u64) {
    let block = BlockNum(block);
    let place = Place {
        batch: BatchNum(lsn),
        page: 1,
    };
    let point = Point {
        lsn: Lsn(lsn),
        place,
        crc: 0,
    };
    layers[block.shard().index()]
        .1
        .insert_point(block.local(), point);
}

fn empty_layers() -> Layers {
    ShardId::all()
        .map(|shard| (shard, Overlay::new()))
        .collect()
}

#[test]
fn a_source_with_wrong_bytes_is_refused() {
    let mut layers = empty_layers();
    write(&mut layers, 5, 1);
    let plan = Arc::new(with_real_crcs(plan(&layers, 8)));
    let job = job(&plan, 0);
    let wrong = job.build(|_, out| {
        out.fill(99);
        Ok(())
    });
    assert_eq!(wrong.unwrap_err().kind(), crate::error::ErrorKind::Corrupt);
    let gone = job.build(|_, _| Err(Error::corrupt("the log has released it")));
    assert!(gone.unwrap_err().to_string().contains("released"));
    assert!(job.build(fill).is_ok());
}

#[test]
fn an_empty_cut_has_no_chunks() {
    assert_eq!(plan(&empty_layers(), 8).chunks(), 0);
}

#[test]
fn a_trim_of_everything_is_one_run_whatever_its_size() {
    let mut layers = empty_layers();
    for (_, layer) in &mut layers {
        layer.insert_zero(0..1 << 30, Lsn(1));
    }
    let whole = plan(&layers, 8);
    assert_eq!((whole.chunks(), whole.chunk_zeros(0).len()), (1, 1));
    assert_eq!(whole.chunk_zeros(0)[0].count, 1 << 34);
    write(&mut layers, 1000, 2);
    let holed = plan(&layers, 8);
    assert_eq!((holed.chunks(), holed.chunk_zeros(0).len()), (1, 2));
}

#[test]
fn a_trim_that_a_cut_fell_into_costs_no_memory_by_its_length() {
    let mut layers = empty_layers();
    // Every second shard had sealed before the TRIM of everything came; one wrote since.
    for (shard, layer) in layers
        .iter_mut()
        .filter(|(shard, _)| shard.index() % 2 == 0)
    {
        let first = u64::from(shard.index() > 4);
        layer.insert_zero(first..1 << 30, Lsn(1));
    }
    for block in [1 << 20, (1 << 20) + 2, (1 << 20) + 32, (1 << 30) + 1] {
        write(&mut layers, block, 2);
    }
    let plan = plan(&layers, 8);
    let zeros = plan.chunk_zeros(0);
    assert_eq!(plan.chunks(), 1);
    assert!(zeros.len() < 30 && plan.heap_bytes() < 4096, "{zeros:?}");
    let zeroed: u64 = zeros.iter().map(ZeroRun::zeroed_blocks).sum();
    assert_eq!(zeroed, (1 << 33) - 5 - 3);
    let covers = |block| zeros.iter().any(|zero| zero.covers(BlockNum(block)));
    for block in [0, 4, 16, 22, (1 << 20) + 4, (1 << 20) + 16, (1 << 34) - 2] {
        assert!(covers(block), "block {block}");
    }
    for block in [
        1,
        6,
        8,
        17,
        1 << 20,
        (1 << 20) + 2,
        (1 << 20) + 32,
        (1 << 30) + 1,
    ] {
        assert!(!covers(block), "block {block}");
    }
    let bytes = Arc::new(with_real_crcs(plan));
    let (bytes, reference) = job(&bytes, 0).build(fill).unwrap();
    assert!(ChunkView::parse(&bytes).unwrap().is(&reference));
}

#[test]
fn more_zero_runs_than_a_chunk_takes_go_to_further_chunks() {
    let mut layers = empty_layers();
    for row in 0..u64::from(ZERO_RUNS_MAX) + 80 {
        layers[3].1.insert_zero(row * 2..row * 2 + 1, Lsn(1));
    }
    let plan = plan(&layers, 8);
    assert_eq!(plan.chunks(), 2);
    assert_eq!(plan.chunk_zeros(0).len(), ZERO_RUNS_MAX as usize);
    assert_eq!(plan.chunk_zeros(1).len(), 80);
    assert!(job(&Arc::new(plan), 1).build(fill).is_ok());
}

#[test]
fn zeros_of_what_is_not_mapped_are_dropped() {
    let mut layers = empty_layers();
    for (_, layer) in &mut layers {
        layer.insert_zero(0..10, Lsn(1));
        layer.insert_zero(1 << 20..1 << 21, Lsn(2));
    }
    let mut base = VolumeBase::new();
    let mut one = empty_layers();
    write(&mut one, 3, 1);
    let one = Arc::new(with_real_crcs(plan(&one, 8)));
    let (_, reference) = job(&one, 0).build(fill).unwrap();
    let mut fresh = plan(&layers, 8);
    fresh.drop_idle_zeros(&base);
    assert_eq!(fresh.chunks(), 0);
    base.apply(&[one.added(0, reference)]);
    let mut used = plan(&layers, 8);
    used.drop_idle_zeros(&base);
    assert_eq!(used.chunk_zeros(0).len(), 1);
    assert_eq!(used.chunk_zeros(0)[0].start, BlockNum(0));
}

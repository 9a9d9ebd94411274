//! `taipan-bench index-lookup`: what a lookup in the committed index costs, and what the index
//! takes, for volumes of which much is mapped. Nothing is stored, so a machine with a small disk
//! can ask for a large volume.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use taipan_engine::block::{BlockNum, SHARD_COUNT};
use taipan_engine::index::{
    ChunkLoc, ChunkOrdinal, LEAF_BLOCKS, Leaf, LeafEntry, LeafKey, ShardBase,
};
use taipan_engine::size::{ByteSize, exact, human};
use taipan_engine::volume::SIZE_BYTES_MAX;

use crate::compare::statistics::Spread;
use crate::machine::memory_available;
use crate::random::SplitMix64;

const BLOCK: u64 = 4096;
const SHARDS: u64 = SHARD_COUNT as u64;
/// Blocks of a chunk of 4 MiB.
const CHUNK_SLOTS: u64 = 1021;
/// Most memory of the index for a mapped block.
const BYTES_PER_BLOCK_MAX: u64 = 8;
const SIZE_BYTES_MIN: u64 = SHARDS * LEAF_BLOCKS * BLOCK;
const PASSES: usize = 5;
const SEED: u64 = 1;

/// Options of `taipan-bench index-lookup`.
#[derive(Debug, Args)]
pub(crate) struct IndexLookupArgs {
    /// Mapped bytes of the volumes; each is a multiple of 256MiB, and takes up to 8 bytes of memory
    /// for every 4 KiB
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SIZES",
        default_value = "1GiB,32GiB,1TiB"
    )]
    mapped: Vec<ByteSize>,

    /// Lookups of one of five passes
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    lookups: u64,

    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// How the blocks of a volume lie in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    /// Written in order: neighbours lie side by side.
    Ordered,
    /// Written at random: each somewhere else.
    Scattered,
}

/// What was found of one volume.
#[derive(Clone, Debug, Serialize)]
struct Row {
    mapped_bytes: u64,
    written: Order,
    index_bytes: usize,
    bytes_per_block: f64,
    /// Of one lookup after the other, at random places; the median of the passes.
    lookup_ns: f64,
}

/// Measures, and prints a row for each size and order.
pub(crate) fn run(args: &IndexLookupArgs) -> Result<()> {
    for size in &args.mapped {
        let fits = size.0.is_multiple_of(SIZE_BYTES_MIN) && (1..=SIZE_BYTES_MAX).contains(&size.0);
        let (least, most) = (exact(SIZE_BYTES_MIN), exact(SIZE_BYTES_MAX));
        ensure!(
            fits,
            "--mapped {size}: it is a multiple of {least}, and at most {most}"
        );
        let needed = size.0 / BLOCK * BYTES_PER_BLOCK_MAX;
        let there = memory_available();
        ensure!(
            needed < there,
            "--mapped {size} needs up to {} of memory, and {} are free",
            human(needed),
            human(there)
        );
    }
    if !args.json {
        println!("  mapped  written      index  bytes per block  ns per lookup");
    }
    let mut rows = Vec::new();
    for size in &args.mapped {
        for written in [Order::Ordered, Order::Scattered] {
            let row = row(size.0 / BLOCK, written, args.lookups);
            if !args.json {
                println!(
                    "{:>8}  {:9}  {:>9}  {:>15.3}  {:>13.1}",
                    exact(row.mapped_bytes),
                    format!("{:?}", row.written).to_lowercase(),
                    human(row.index_bytes as u64),
                    row.bytes_per_block,
                    row.lookup_ns
                );
            }
            rows.push(row);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn row(blocks: u64, written: Order, lookups: u64) -> Row {
    let shards: Vec<ShardBase> = (0..SHARDS)
        .map(|shard| base(shard, blocks, written))
        .collect();
    let index_bytes = shards.iter().map(ShardBase::heap_bytes).sum();
    let passes = (0..PASSES).map(|pass| lookup_ns(&shards, blocks, lookups, pass as u64));
    let lookup_ns = Spread::of(passes).map_or(0.0, |spread| spread.median);
    Row {
        mapped_bytes: blocks * BLOCK,
        written,
        index_bytes,
        bytes_per_block: index_bytes as f64 / blocks as f64,
        lookup_ns,
    }
}

/// The index of one shard of a volume in which each of so many blocks is mapped.
fn base(shard: u64, blocks: u64, written: Order) -> ShardBase {
    let mut random = SplitMix64::of(&[SEED, shard]);
    let chunks = blocks.div_ceil(CHUNK_SLOTS);
    let mut entries: Vec<LeafEntry> = Vec::with_capacity(LEAF_BLOCKS as usize);
    let mut base = ShardBase::new();
    for leaf in 0..blocks / SHARDS / LEAF_BLOCKS {
        entries.clear();
        entries.extend((0..LEAF_BLOCKS).map(|index| {
            let place = match written {
                Order::Ordered => (leaf * LEAF_BLOCKS + index) * SHARDS + shard,
                Order::Scattered => random.below(chunks * CHUNK_SLOTS),
            };
            let loc = ChunkLoc {
                chunk: ChunkOrdinal((place / CHUNK_SLOTS) as u32),
                slot: (place % CHUNK_SLOTS) as u32,
            };
            (index as u16, loc)
        }));
        base.install([(LeafKey(leaf as u32), Leaf::build(&entries))]);
    }
    base
}

/// Nanoseconds of a lookup. The place of each depends on what the one before found: none begins
/// before that is known.
fn lookup_ns(shards: &[ShardBase], blocks: u64, lookups: u64, pass: u64) -> f64 {
    let mut random = SplitMix64::of(&[SEED, blocks, pass]);
    let mut found = 0;
    let begin = Instant::now();
    for _ in 0..lookups {
        let block = BlockNum(random.below(blocks) & !1 | found);
        let loc = shards[block.shard().index()].lookup(block.local());
        found = u64::from(loc.expect("every block is mapped").slot & 1);
    }
    begin.elapsed().as_nanos() as f64 / lookups as f64
}

#[cfg(test)]
mod tests {
    use taipan_engine::block::LocalBlock;

    use super::*;

    #[test]
    fn every_block_is_where_it_was_put() {
        let blocks = 2 * SIZE_BYTES_MIN / BLOCK;
        for shard in [0, 15] {
            let base = base(shard, blocks, Order::Ordered);
            assert_eq!(base.mapped_blocks(), blocks / SHARDS);
            for local in [0, 1, 4095, 4096, blocks / SHARDS - 1] {
                let place = local * SHARDS + shard;
                let loc = base.lookup(LocalBlock(local)).expect("it is mapped");
                let found = u64::from(loc.chunk.0) * CHUNK_SLOTS + u64::from(loc.slot);
                assert_eq!(found, place);
            }
        }
        assert_eq!(
            base(3, blocks, Order::Scattered).mapped_blocks(),
            blocks / SHARDS
        );
    }

    #[test]
    fn order_spares_memory_and_no_index_takes_more_than_its_bound() {
        let blocks = SIZE_BYTES_MIN / BLOCK;
        let [ordered, scattered] =
            [Order::Ordered, Order::Scattered].map(|written| row(blocks, written, 10));
        assert!(ordered.bytes_per_block < 0.5 && scattered.bytes_per_block > 2.0);
        assert!(scattered.bytes_per_block < BYTES_PER_BLOCK_MAX as f64);
        assert!(ordered.lookup_ns > 0.0);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for (size, why) in [(1 << 20, "a multiple of 256MiB"), (64 << 40, "of memory")] {
            let args = IndexLookupArgs {
                mapped: vec![ByteSize(size)],
                lookups: 1,
                json: false,
            };
            let error = run(&args).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

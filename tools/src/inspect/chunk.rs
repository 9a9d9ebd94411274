//! Decodes a chunk object and checks every block in it.

use serde_json::json;
use taipan_engine::block::{ShardId, ShardSet};
use taipan_engine::chunk::{ChunkView, ZeroRun, slot_stride, verify_slot};
use taipan_engine::size::{exact, human};

use super::{Decoded, Subject, plain, unreadable};
use crate::failure::Outcome;
use crate::table::{Align, Fields, Table};

/// Most damaged blocks that are named one by one.
const NAMED_MAX: usize = 8;

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let bytes = subject.read_all()?;
    let chunk = ChunkView::parse(&bytes).map_err(|e| unreadable(subject, &e))?;
    if is_copy_of_head(subject, &chunk) {
        return Ok(Decoded {
            kind: "copy of a chunk's head",
            json: plain(&chunk),
            fields: fields(&chunk, "none: its blocks are in the backend".to_owned()),
            tables: tables(subject, &chunk),
            damage: subject.misplaced(&chunk.key.object()).into_iter().collect(),
        });
    }
    let bad = bad_blocks(&chunk, &bytes);
    let mut damage: Vec<String> = bad.iter().take(NAMED_MAX).map(|b| b.1.clone()).collect();
    if bad.len() > NAMED_MAX {
        damage.push(format!("{} damaged blocks in all", bad.len()));
    }
    if bytes.len() as u64 != chunk.object_bytes {
        let (have, need) = (bytes.len(), chunk.object_bytes);
        damage.push(format!("it has {have} bytes, its header says {need}"));
    }
    damage.extend(subject.misplaced(&chunk.key.object()));

    let mut json = plain(&chunk);
    json["damaged_blocks"] = json!(bad.iter().map(|b| b.0).collect::<Vec<u64>>());
    Ok(Decoded {
        kind: "chunk",
        json,
        fields: fields(&chunk, checked(&chunk, bad.len())),
        tables: tables(subject, &chunk),
        damage,
    })
}

/// Whether this is one of the copies of heads that an appliance keeps in `<data>/metadata`, to
/// start without its backend. Anywhere else an object of that length lacks its blocks.
fn is_copy_of_head(subject: &Subject<'_>, chunk: &ChunkView) -> bool {
    let kept = subject.path.iter().any(|part| part == "metadata");
    kept && subject.len == u64::from(chunk.head_bytes)
}

/// The blocks that fail their check: number and reason.
fn bad_blocks(chunk: &ChunkView, bytes: &[u8]) -> Vec<(u64, String)> {
    let stride = slot_stride(chunk.block_size());
    let check = |(block, slot): (taipan_engine::block::BlockNum, u32)| {
        let start = chunk.head_bytes as usize + slot as usize * stride;
        let Some(bytes) = bytes.get(start..start + stride) else {
            return Some((block.0, format!("block {} is cut off", block.0)));
        };
        let failed = verify_slot(bytes, chunk.block_size(), block).err()?;
        Some((
            block.0,
            format!("block {} in slot {slot}: {failed}", block.0),
        ))
    };
    chunk.blocks().filter_map(check).collect()
}

/// What came of the checks of all blocks.
fn checked(chunk: &ChunkView, bad: usize) -> String {
    match bad {
        0 => format!("all {} blocks pass their CRC32C", chunk.slots),
        bad => format!("{bad} of {} blocks are damaged", chunk.slots),
    }
}

fn fields(chunk: &ChunkView, check: String) -> Fields {
    let zero_blocks: u64 = chunk.zeros.iter().map(ZeroRun::zeroed_blocks).sum();
    let payload = u64::from(chunk.slots) * u64::from(chunk.block_size_bytes);
    let mut fields = Fields::default();
    fields
        .add("name", chunk.key.object().to_string())
        .add("volume", chunk.key.volume.to_string())
        .add("generation", chunk.key.generation.to_string())
        .add("epoch", chunk.epoch.to_string())
        .add("block size", exact(u64::from(chunk.block_size_bytes)))
        .add(
            "data",
            format!(
                "{} blocks ({}) in {} runs",
                chunk.slots,
                human(payload),
                chunk.runs.len()
            ),
        )
        .add(
            "zeros",
            format!("{zero_blocks} blocks in {} runs", chunk.zeros.len()),
        )
        .add(
            "object",
            format!(
                "{} bytes, of which header and table {}",
                chunk.object_bytes, chunk.head_bytes
            ),
        )
        .add(
            "encryption",
            match chunk.key_id {
                0 => "none".to_owned(),
                id => format!("key {id}"),
            },
        )
        .add("check", check);
    fields
}

fn tables(subject: &Subject<'_>, chunk: &ChunkView) -> Vec<String> {
    let block = u64::from(chunk.block_size_bytes);
    let mut tables = Vec::new();
    if !chunk.runs.is_empty() {
        let mut table = Table::new(&[
            ("FIRST BLOCK", Align::Right),
            ("BLOCKS", Align::Right),
            ("SLOT", Align::Right),
            ("VOLUME BYTE", Align::Right),
        ]);
        for run in chunk.runs.iter().take(subject.rows(chunk.runs.len())) {
            table.row([
                run.start.0.to_string(),
                run.count.to_string(),
                run.slot.to_string(),
                (run.start.0 * block).to_string(),
            ]);
        }
        tables.push(subject.table("Data", &table, chunk.runs.len()));
    }
    if !chunk.zeros.is_empty() {
        let mut table = Table::new(&[
            ("FIRST BLOCK", Align::Right),
            ("BLOCKS", Align::Right),
            ("OF SHARDS", Align::Left),
            ("VOLUME BYTE", Align::Right),
        ]);
        for run in chunk.zeros.iter().take(subject.rows(chunk.zeros.len())) {
            table.row([
                run.start.0.to_string(),
                run.zeroed_blocks().to_string(),
                shards_of(run.spared),
                (run.start.0 * block).to_string(),
            ]);
        }
        tables.push(subject.table("Zeros", &table, chunk.zeros.len()));
    }
    tables
}

/// The shards whose blocks a zero run zeroes.
fn shards_of(spared: ShardSet) -> String {
    if spared.is_empty() {
        return "all".to_owned();
    }
    let zeroed = ShardId::all().filter(|shard| !spared.contains(*shard));
    let names: Vec<String> = zeroed.map(|shard| shard.index().to_string()).collect();
    names.join(",")
}

//! Decodes a part of an index checkpoint.

use serde_json::{Value, json};
use taipan_engine::index::part::IndexPart;

use super::manifest::objects;
use super::{Decoded, Subject, plain, unreadable};
use crate::failure::Outcome;
use crate::table::{Align, Fields, Table};

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let bytes = subject.read_all()?;
    let part = IndexPart::decode(&bytes).map_err(|e| unreadable(subject, &e))?;
    Ok(Decoded {
        kind: "index part",
        json: to_json(&part),
        fields: fields(&part),
        tables: tables(subject, &part),
        damage: subject.misplaced(&part.key.object()).into_iter().collect(),
    })
}

fn mapped(part: &IndexPart) -> u64 {
    let leaves = part.leaves.iter().filter_map(|(_, _, leaf)| leaf.as_ref());
    leaves.map(|leaf| leaf.mapped()).sum()
}

fn to_json(part: &IndexPart) -> Value {
    let leaves: Vec<Value> = part
        .leaves
        .iter()
        .map(|(shard, key, leaf)| {
            json!({
                "shard": shard.index(),
                "leaf": key.0,
                "removed": leaf.is_none(),
                "mapped_blocks": leaf.as_ref().map_or(0, |l| l.mapped()),
                "bytes": leaf.as_ref().map_or(0, |l| l.encode().len()),
            })
        })
        .collect();
    let chunks: Vec<Value> = part
        .chunks
        .iter()
        .map(|(ordinal, chunk)| json!({ "ordinal": ordinal.0, "chunk": chunk }))
        .collect();
    json!({
        "key": part.key,
        "manifest": part.manifest,
        "root": part.root.as_ref().map(|root| json!({
            "parts": root.parts,
            "condemned": root.condemned,
            "retained": root.retained,
            "snapshots": root.snapshots,
        })),
        "mapped_blocks": mapped(part),
        "leaves": leaves,
        "chunks": chunks,
    })
}

fn fields(part: &IndexPart) -> Fields {
    let removed = part.leaves.iter().filter(|l| l.2.is_none()).count();
    let freed = part.chunks.iter().filter(|c| c.1.is_none()).count();
    let role = match &part.root {
        None => "an inner part".to_owned(),
        Some(root) => format!(
            "the root; {} parts before it, {} retained for {} snapshots",
            root.parts.len(),
            root.retained.len(),
            root.snapshots.len()
        ),
    };
    let mut fields = Fields::default();
    fields
        .add("name", part.key.object().to_string())
        .add("volume", part.key.volume.to_string())
        .add("of manifest", part.manifest.to_string())
        .add("role", role)
        .add(
            "leaves",
            format!(
                "{} ({removed} removed), mapping {} blocks",
                part.leaves.len(),
                mapped(part)
            ),
        )
        .add("chunks", format!("{} ({freed} freed)", part.chunks.len()));
    fields
}

fn tables(subject: &Subject<'_>, part: &IndexPart) -> Vec<String> {
    let mut tables = Vec::new();
    if let Some(root) = &part.root {
        if !root.parts.is_empty() {
            let mut table = Table::new(&[("PART", Align::Left), ("BYTES", Align::Right)]);
            for earlier in root.parts.iter().take(subject.rows(root.parts.len())) {
                table.row([earlier.key.to_string(), earlier.bytes.to_string()]);
            }
            tables.push(subject.table("Earlier parts", &table, root.parts.len()));
        }
        tables.extend(objects(subject, "Condemned", &root.condemned));
    }
    tables.push(leaves(subject, part));
    tables.push(chunks(subject, part));
    tables
}

fn leaves(subject: &Subject<'_>, part: &IndexPart) -> String {
    let mut table = Table::new(&[
        ("SHARD", Align::Right),
        ("LEAF", Align::Right),
        ("MAPPED", Align::Right),
        ("BYTES", Align::Right),
    ]);
    for (shard, key, leaf) in part.leaves.iter().take(subject.rows(part.leaves.len())) {
        let (mapped, bytes) = match leaf {
            Some(leaf) => (leaf.mapped().to_string(), leaf.encode().len()),
            None => ("removed".to_owned(), 0),
        };
        table.row([
            shard.to_string(),
            key.0.to_string(),
            mapped,
            bytes.to_string(),
        ]);
    }
    subject.table("Leaves", &table, part.leaves.len())
}

fn chunks(subject: &Subject<'_>, part: &IndexPart) -> String {
    let mut table = Table::new(&[
        ("ORDINAL", Align::Right),
        ("BLOCKS", Align::Right),
        ("CHUNK", Align::Left),
    ]);
    for (ordinal, chunk) in part.chunks.iter().take(subject.rows(part.chunks.len())) {
        let (slots, name) = match chunk {
            Some(chunk) => (chunk.slots.to_string(), plain(chunk.key)),
            None => ("-".to_owned(), json!("freed")),
        };
        let name = name.as_str().unwrap_or_default().to_owned();
        table.row([ordinal.0.to_string(), slots, name]);
    }
    subject.table("Chunks", &table, part.chunks.len())
}

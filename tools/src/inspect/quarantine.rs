//! Decodes a quarantine file: answered writes that a takeover kept out of the image.

use std::io::BufReader;

use serde_json::json;
use taipan_engine::registry::quarantine::{QuarantineReader, QuarantineRecord};
use taipan_engine::size::{exact, human};

use super::{Decoded, Subject, plain, unreadable};
use crate::failure::Outcome;
use crate::output::human_seconds;
use crate::table::{Align, Fields, Table};

/// Shards of an appliance: a volume's block is its shard-local number times this plus its shard.
const SHARDS: u64 = taipan_engine::block::SHARD_COUNT as u64;

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let file = BufReader::new(&subject.file);
    let mut reader = QuarantineReader::new(file).map_err(|e| unreadable(subject, &e))?;
    let mut table = Table::new(&[
        ("SHARD", Align::Right),
        ("LSN", Align::Right),
        ("EPOCH", Align::Right),
        ("KIND", Align::Left),
        ("FIRST BLOCK", Align::Right),
        ("BLOCKS", Align::Right),
    ]);
    let (mut count, mut json_records, mut damage) = (0, Vec::new(), Vec::new());
    loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                if count < subject.rows(usize::MAX) {
                    table.row(row(&record));
                    json_records.push(shown(&record));
                }
                if record.damaged {
                    damage.push(format!("record {}: a block rotted in the WAL", record.lsn));
                }
                count += 1;
            }
            Ok(None) => break,
            Err(error) => {
                damage.push(error.to_string());
                break;
            }
        }
    }
    let header = reader.header();
    let since_ms = Some(header.since_ms).filter(|since| *since > 0);
    let seconds = since_ms.map(|since| header.until_ms.saturating_sub(since) as f64 / 1000.0);
    let mut fields = Fields::default();
    fields
        .add("volume", format!("{} ({})", header.name, header.volume))
        .add("generation", header.generation.to_string())
        .add("on top of manifest", header.head.to_string())
        .add(
            "epochs",
            format!("after {} to {}", header.after, header.through),
        )
        .add_some("written within", seconds.map(human_seconds))
        .add("block size", exact(u64::from(header.block_size_bytes)))
        .add("records", count.to_string())
        .add("data", human(reader.sum().payload_bytes));
    let mut json = plain(header);
    json["seconds"] = json!(seconds);
    json["sum"] = plain(reader.sum());
    json["records"] = json!(json_records);
    Ok(Decoded {
        kind: "quarantine file",
        json,
        fields,
        tables: vec![subject.table("Records", &table, count)],
        damage,
    })
}

fn first_block(record: &QuarantineRecord) -> u64 {
    record
        .start
        .saturating_mul(SHARDS)
        .saturating_add(u64::from(record.shard))
}

fn row(record: &QuarantineRecord) -> [String; 6] {
    [
        record.shard.to_string(),
        record.lsn.to_string(),
        record.epoch.to_string(),
        crate::volume::word(record.kind),
        format!("{} (every {SHARDS}th)", first_block(record)),
        record.count.to_string(),
    ]
}

fn shown(record: &QuarantineRecord) -> serde_json::Value {
    json!({
        "shard": record.shard,
        "lsn": record.lsn.0,
        "epoch": record.epoch.0,
        "kind": record.kind,
        "first_block": first_block(record),
        "block_step": SHARDS,
        "blocks": record.count,
    })
}

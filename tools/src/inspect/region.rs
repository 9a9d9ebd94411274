//! Decodes a shard's memory region: what a killed process had answered and not made durable.

use serde_json::{Value, json};
use taipan_engine::block::PAGE_BYTES;
use taipan_engine::identity::BatchNum;
use taipan_engine::size::human;
use taipan_engine::wal::format::TABLE_START;
use taipan_engine::wal::region::{RegionHeader, RegionPage};

use super::batch::{Batch, record_table, volume_table};
use super::{Decoded, Subject};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::{Align, Fields, Table};

/// A batch of the region.
struct Found {
    number: BatchNum,
    first_byte: u64,
    payload_pages: u32,
    batch: Batch,
}

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let mut page = [0; PAGE_BYTES];
    subject.read_at(&mut page, 0)?;
    let RegionPage::Header(header) = RegionPage::decode(&page, subject.len) else {
        let what = format!(
            "{} is damaged: it is a memory region, but its control page fails its checks",
            subject.path.display()
        );
        return Err(Failure::new(Exit::Damaged, what));
    };
    let mut table = vec![0; header.descriptors_bytes()];
    subject.read_at(&mut table, header.descriptors_start())?;
    let mut damage = Vec::new();
    let described = header.undurable(&table).unwrap_or_else(|batch| {
        damage.push(format!("batch {batch} should be described and is not"));
        Vec::new()
    });
    let mut found = Vec::new();
    for (number, place) in described {
        let mut page = [0; PAGE_BYTES];
        subject.read_at(&mut page, place.first_byte)?;
        let table = &page[TABLE_START..];
        let batch = Batch::read(subject, place.first_byte, number, table, place.records)?;
        if batch.malformed {
            damage.push(format!("batch {number}: its records do not parse"));
        }
        if let Some(first) = batch.bad_blocks.first() {
            let count = batch.bad_blocks.len();
            damage.push(format!(
                "batch {number}: damaged blocks: {count}, the first is shard block {first}"
            ));
        }
        found.push(Found {
            number,
            first_byte: place.first_byte,
            payload_pages: place.payload_pages,
            batch,
        });
    }
    let mut tables = vec![
        volume_table(found.iter().map(|f| &f.batch)),
        batches(subject, &found),
    ];
    if subject.all {
        tables.push(record_table(found.iter().map(|f| (f.number, &f.batch))));
    }
    Ok(Decoded {
        kind: "memory region of a shard",
        json: to_json(subject, &header, &found),
        fields: fields(&header, &found),
        tables,
        damage,
    })
}

/// The boot's identity as `/proc/sys/kernel/random/boot_id` spells it, without hyphens.
fn boot(header: &RegionHeader) -> String {
    header.boot.0.iter().map(|b| format!("{b:02x}")).collect()
}

fn fields(header: &RegionHeader, found: &[Found]) -> Fields {
    let pages: u64 = found.iter().map(|f| u64::from(f.payload_pages)).sum();
    let mut fields = Fields::default();
    fields
        .add("shard", header.shard.to_string())
        .add("WAL", header.wal.to_string())
        .add("writer", format!("incarnation {}", header.incarnation))
        .add("boot of host", boot(header))
        .add("last batch", header.last_batch.to_string())
        .add(
            "durable through",
            format!("batch {}", header.durable_through),
        )
        .add(
            "not durable",
            format!(
                "{} batches with {} of blocks",
                found.len(),
                human(pages * PAGE_BYTES as u64)
            ),
        );
    fields
}

fn batches(subject: &Subject<'_>, found: &[Found]) -> String {
    let mut table = Table::new(&[
        ("BATCH", Align::Right),
        ("BYTE", Align::Right),
        ("PAGES", Align::Right),
        ("RECORDS", Align::Right),
        ("LSN", Align::Right),
        ("EPOCH", Align::Right),
    ]);
    for one in found.iter().take(subject.rows(found.len())) {
        table.row([
            one.number.to_string(),
            one.first_byte.to_string(),
            (1 + one.payload_pages).to_string(),
            one.batch.entries.len().to_string(),
            one.batch.lsns(),
            one.batch.epochs(),
        ]);
    }
    subject.table("Batches that may not be durable", &table, found.len())
}

fn to_json(subject: &Subject<'_>, header: &RegionHeader, found: &[Found]) -> Value {
    let batches: Vec<Value> = found
        .iter()
        .map(|f| {
            json!({
                "number": f.number,
                "first_byte": f.first_byte,
                "payload_pages": f.payload_pages,
                "content": f.batch.to_json(subject.all),
            })
        })
        .collect();
    json!({
        "shard": header.shard.index(),
        "wal": header.wal.to_string(),
        "incarnation": header.incarnation,
        "boot": boot(header),
        "last_batch": header.last_batch,
        "durable_through": header.durable_through,
        "batches": batches,
    })
}

//! Decodes the batch headers that a shard's log noted when it ended in order.

use serde_json::{Value, json};
use taipan_engine::wal::format::{BatchHeader, TABLE_START};

use super::batch::{Batch, record_table, volume_table};
use super::{Decoded, Subject};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::{Align, Fields, Table};

/// A batch that is noted. Its blocks are in the WAL file.
struct Noted {
    header: BatchHeader,
    batch: Batch,
}

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let bytes = subject.read_all()?;
    let (noted, damage) = headers(&bytes);
    let Some(first) = noted.first() else {
        let what = format!("{} is damaged: {}", subject.path.display(), damage.join(""));
        return Err(Failure::new(Exit::Damaged, what));
    };
    let fields = fields(first, &noted);
    let mut tables = vec![
        volume_table(noted.iter().map(|one| &one.batch)),
        batches(subject, &noted),
    ];
    if subject.all {
        let records = noted.iter().map(|one| (one.header.number, &one.batch));
        tables.push(record_table(records));
    }
    Ok(Decoded {
        kind: "batch headers noted at the end of a shard's log",
        json: to_json(subject, &first.header, &noted),
        fields,
        tables,
        damage,
    })
}

/// The headers, one behind the other, and what is wrong with the one at which they end.
fn headers(bytes: &[u8]) -> (Vec<Noted>, Vec<String>) {
    let (mut noted, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let header = BatchHeader::decode(rest);
        let Some((header, table)) = header.and_then(|h| Some((h, h.table(rest)?))) else {
            let at = bytes.len() - rest.len();
            return (noted, vec![format!("no whole header at byte {at}")]);
        };
        let batch = Batch::of_table(header.number, table, header.records);
        if batch.malformed {
            let what = format!("batch {}: its records do not parse", header.number);
            return (noted, vec![what]);
        }
        rest = &rest[TABLE_START + table.len()..];
        noted.push(Noted { header, batch });
    }
    (noted, Vec::new())
}

fn fields(first: &Noted, noted: &[Noted]) -> Fields {
    let last = noted.last().unwrap_or(first);
    let mut fields = Fields::default();
    fields
        .add("shard", first.header.shard.to_string())
        .add("WAL", first.header.wal.to_string())
        .add(
            "batches",
            format!("{}..{}", first.header.number, last.header.number),
        );
    fields
}

fn batches(subject: &Subject<'_>, noted: &[Noted]) -> String {
    let mut table = Table::new(&[
        ("BATCH", Align::Right),
        ("WAL BYTE", Align::Right),
        ("BYTES", Align::Right),
        ("RECORDS", Align::Right),
        ("LSN", Align::Right),
        ("EPOCH", Align::Right),
    ]);
    for one in noted.iter().take(subject.rows(noted.len())) {
        table.row([
            one.header.number.to_string(),
            one.header.file_offset.to_string(),
            one.header.batch_bytes().to_string(),
            one.header.records.to_string(),
            one.batch.lsns(),
            one.batch.epochs(),
        ]);
    }
    subject.table("Batches that are not released", &table, noted.len())
}

fn to_json(subject: &Subject<'_>, first: &BatchHeader, noted: &[Noted]) -> Value {
    let batches = noted.iter().map(|one| {
        let mut value = one.batch.to_json(subject.all);
        value["batch"] = json!(one.header.number);
        value["wal_byte"] = json!(one.header.file_offset);
        value["bytes"] = json!(one.header.batch_bytes());
        value
    });
    json!({
        "shard": first.shard.index(),
        "wal": first.wal.to_string(),
        "batches": batches.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use taipan_engine::block::{PAGE_BYTES, ShardId};
    use taipan_engine::identity::{BatchNum, Incarnation};
    use taipan_engine::wal::WalId;

    use super::*;

    /// The header of a batch without records.
    fn header(number: u64) -> Vec<u8> {
        let mut header = BatchHeader {
            shard: ShardId::new(3).unwrap(),
            wal: WalId(7),
            incarnation: Incarnation(1),
            first: BatchNum(1),
            number: BatchNum(number),
            generation: 1,
            file_offset: 65_536,
            durable_through: BatchNum(0),
            released_before: BatchNum(0),
            payload_pages: 0,
            records: 0,
            table_bytes: 0,
            table_crc: 0,
            previous_crc: 0,
            content_crc: 0,
        };
        header.content_crc = header.compute_content_crc();
        let mut page = vec![0; PAGE_BYTES];
        header.encode(&mut page);
        page.truncate(TABLE_START);
        page
    }

    #[test]
    fn headers_are_read_up_to_the_first_that_is_not_whole() {
        let mut bytes = [header(1), header(2)].concat();
        let (noted, damage) = headers(&bytes);
        let numbers: Vec<_> = noted.iter().map(|one| one.header.number.0).collect();
        assert_eq!((numbers, damage.len()), (vec![1, 2], 0));
        let (noted, damage) = headers(&bytes[..2 * TABLE_START - 1]);
        assert_eq!((noted.len(), damage.len()), (1, 1));
        bytes[TABLE_START + 40] ^= 1;
        let (noted, damage) = headers(&bytes);
        assert_eq!(noted.len(), 1);
        assert_eq!(damage, ["no whole header at byte 128"]);
    }
}

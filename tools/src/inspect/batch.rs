//! One batch of the log, in a WAL file or a memory region: its records, and whether its blocks are
//! whole.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use taipan_engine::block::{BlockSize, PAGE_BYTES};
use taipan_engine::identity::{BatchNum, Epoch, Lsn, VolumeId};
use taipan_engine::wal::record::{Content, MarkKind, Record, Records};

use super::Subject;
use crate::failure::Outcome;
use crate::table::{Align, Table};

/// A record without its checksums.
pub(super) struct Entry {
    volume: VolumeId,
    epoch: Epoch,
    lsn: Lsn,
    start: u64,
    blocks: u64,
    /// Block size of data; `None` for a mark.
    data: Option<BlockSize>,
    kind: &'static str,
}

/// What a batch holds.
#[derive(Default)]
pub(super) struct Batch {
    /// Its records, in order.
    pub(super) entries: Vec<Entry>,
    /// Shard-local numbers of the blocks that fail their CRC32C or cannot be read.
    pub(super) bad_blocks: Vec<u64>,
    /// True if the record table does not parse to its end.
    pub(super) malformed: bool,
}

impl Batch {
    /// Reads `records` records out of `table`, and every block that they name. The batch's header
    /// page lies at `first_byte` of the file.
    pub(super) fn read(
        subject: &Subject<'_>,
        first_byte: u64,
        batch: BatchNum,
        table: &[u8],
        records: u32,
    ) -> Outcome<Self> {
        let mut found = Self::of_table(batch, table, records);
        for record in Records::new(batch, table, records).map_while(Result::ok) {
            let bad = bad_blocks(subject, first_byte, &record)?;
            found.bad_blocks.extend(bad);
        }
        Ok(found)
    }

    /// The same without a look at the blocks.
    pub(super) fn of_table(batch: BatchNum, table: &[u8], records: u32) -> Self {
        let mut found = Self::default();
        for record in Records::new(batch, table, records) {
            match record {
                Ok(record) => found.entries.push(Entry::of(&record)),
                Err(_) => {
                    found.malformed = true;
                    break;
                }
            }
        }
        found
    }

    /// `first..last` LSN as text.
    pub(super) fn lsns(&self) -> String {
        span(self.entries.iter().map(|e| e.lsn.0))
    }

    /// Least and greatest epoch as text.
    pub(super) fn epochs(&self) -> String {
        span(self.entries.iter().map(|e| e.epoch.0))
    }

    pub(super) fn to_json(&self, with_records: bool) -> Value {
        let mut value = json!({
            "records": self.entries.len(),
            "lsn_first": self.entries.first().map(|e| e.lsn),
            "lsn_last": self.entries.last().map(|e| e.lsn),
            "epoch_min": self.entries.iter().map(|e| e.epoch).min(),
            "epoch_max": self.entries.iter().map(|e| e.epoch).max(),
            "malformed": self.malformed,
            "damaged_blocks": self.bad_blocks,
        });
        if with_records {
            value["record_list"] = self.entries.iter().map(Entry::to_json).collect();
        }
        value
    }
}

impl Entry {
    fn of(record: &Record<'_>) -> Self {
        let (data, kind) = match record.content {
            Content::Data { block_size, .. } => (Some(block_size), "data"),
            Content::Mark(MarkKind::Zero) => (None, "zero"),
            Content::Mark(MarkKind::Trim) => (None, "trim"),
        };
        Self {
            volume: record.volume,
            epoch: record.epoch,
            lsn: record.lsn,
            start: record.blocks.start,
            blocks: record.blocks.end - record.blocks.start,
            data,
            kind,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "volume": self.volume,
            "epoch": self.epoch,
            "lsn": self.lsn,
            "kind": self.kind,
            "shard_block": self.start,
            "blocks": self.blocks,
            "block_size_bytes": self.data.map(BlockSize::bytes),
        })
    }
}

/// The blocks of a record that are not what its checksums say.
fn bad_blocks(subject: &Subject<'_>, first_byte: u64, record: &Record<'_>) -> Outcome<Vec<u64>> {
    let Content::Data { block_size, .. } = record.content else {
        return Ok(Vec::new());
    };
    let mut bytes = vec![0; block_size.bytes()];
    let mut bad = Vec::new();
    for (block, place, crc) in record.points() {
        let at = first_byte + u64::from(place.page) * PAGE_BYTES as u64;
        let whole = subject.read_at(&mut bytes, at)? == bytes.len();
        if !whole || crc32c::crc32c(&bytes) != crc {
            bad.push(block.0);
        }
    }
    Ok(bad)
}

/// `least..greatest`, or the one number, or nothing.
fn span(numbers: impl Iterator<Item = u64> + Clone) -> String {
    match (numbers.clone().min(), numbers.max()) {
        (Some(least), Some(greatest)) if least != greatest => format!("{least}..{greatest}"),
        (Some(one), _) => one.to_string(),
        _ => "-".to_owned(),
    }
}

/// A table of the records of some batches.
pub(super) fn record_table<'a>(batches: impl Iterator<Item = (BatchNum, &'a Batch)>) -> String {
    let mut table = Table::new(&[
        ("BATCH", Align::Right),
        ("LSN", Align::Right),
        ("EPOCH", Align::Right),
        ("KIND", Align::Left),
        ("VOLUME", Align::Left),
        ("SHARD BLOCK", Align::Right),
        ("BLOCKS", Align::Right),
        ("OF BYTES", Align::Right),
    ]);
    for (number, batch) in batches {
        for entry in &batch.entries {
            let bytes = entry.data.map_or(String::new(), |b| b.bytes().to_string());
            table.row([
                number.to_string(),
                entry.lsn.to_string(),
                entry.epoch.to_string(),
                entry.kind.to_owned(),
                entry.volume.to_string(),
                entry.start.to_string(),
                entry.blocks.to_string(),
                bytes,
            ]);
        }
    }
    format!("\nRecords\n{}", table.render())
}

/// What the batches hold of each volume.
pub(super) fn volume_table<'a>(batches: impl Iterator<Item = &'a Batch>) -> String {
    #[derive(Default)]
    struct Sum {
        records: u64,
        data_blocks: u64,
        marks: u64,
        /// Least and greatest.
        epochs: Option<(u64, u64)>,
    }
    let mut sums: BTreeMap<VolumeId, Sum> = BTreeMap::new();
    for entry in batches.flat_map(|b| &b.entries) {
        let sum = sums.entry(entry.volume).or_default();
        sum.records += 1;
        match entry.data {
            Some(_) => sum.data_blocks += entry.blocks,
            None => sum.marks += 1,
        }
        let epoch = entry.epoch.0;
        let (least, greatest) = sum.epochs.unwrap_or((epoch, epoch));
        sum.epochs = Some((least.min(epoch), greatest.max(epoch)));
    }
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("RECORDS", Align::Right),
        ("DATA BLOCKS", Align::Right),
        ("ZERO AND TRIM", Align::Right),
        ("EPOCHS", Align::Right),
    ]);
    for (volume, sum) in sums {
        table.row([
            volume.to_string(),
            sum.records.to_string(),
            sum.data_blocks.to_string(),
            sum.marks.to_string(),
            span(
                sum.epochs
                    .into_iter()
                    .flat_map(|(least, greatest)| [least, greatest]),
            ),
        ]);
    }
    format!("\nVolumes\n{}", table.render())
}

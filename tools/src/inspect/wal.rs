//! Decodes a shard's WAL file: every batch that is still in it, and what a recovery makes of them.

use std::collections::BTreeSet;
use std::io;

use serde_json::{Value, json};
use taipan_engine::block::PAGE_BYTES;
use taipan_engine::identity::{BatchNum, Incarnation};
use taipan_engine::size::human;
use taipan_engine::wal::format::{BatchHeader, HEAD_AREA_BYTES, HEAD_SLOTS, LogHead};
use taipan_engine::wal::replay::TornTail;
use taipan_engine::wal::{BootId, LogIdentity, ReadMedia, recover_shard};

use super::batch::{Batch, record_table, volume_table};
use super::{Decoded, Subject};
use crate::failure::{Exit, Failure, Outcome};
use crate::table::{Align, Fields, Table};

/// Damaged batches that are named one by one.
const NAMED_MAX: usize = 8;

/// A batch whose header is whole.
struct Found {
    header: BatchHeader,
    /// `None`: the record table fails its CRC.
    batch: Option<Batch>,
    state: &'static str,
}

/// What a recovery would take over.
struct Verdict {
    /// File offsets of the batches that count.
    counting: BTreeSet<u64>,
    next_batch: BatchNum,
    torn: Option<TornTail>,
}

pub(super) fn decode(subject: &Subject<'_>) -> Outcome<Decoded> {
    let Some(head) = newest_head(subject)? else {
        let what = format!(
            "{} is damaged: it is a WAL file, but neither log head is whole",
            subject.path.display()
        );
        return Err(Failure::new(Exit::Damaged, what));
    };
    let in_use = in_use(subject);
    let mut found = scan(subject, &head)?;
    let (verdict, mut damage) = match judge(subject, &head) {
        Ok(verdict) => (Some(verdict), Vec::new()),
        Err(problems) => (None, problems),
    };
    let released = found.iter().map(|f| f.header.released_before);
    let released = released.fold(head.released_before, Ord::max);
    for one in &mut found {
        one.state = state(one, verdict.as_ref(), released);
    }
    damage.extend(bad_batches(&found, durable_through(&head, &found)));
    // The newest first: they are what one looks for.
    found.sort_by_key(|f| {
        let header = &f.header;
        std::cmp::Reverse((header.number, header.incarnation, header.generation))
    });
    let counting = found.iter().filter(|f| matches!(f.state, "live" | "kept"));
    let mut tables = vec![
        volume_table(counting.filter_map(|f| f.batch.as_ref())),
        batches(subject, &found),
    ];
    if subject.all {
        let each = found.iter().rev();
        tables.push(record_table(
            each.filter_map(|f| Some((f.header.number, f.batch.as_ref()?))),
        ));
    }
    Ok(Decoded {
        kind: "WAL file of a shard",
        json: to_json(subject, &head, &found, verdict.as_ref(), in_use),
        fields: fields(&head, &found, verdict.as_ref(), in_use),
        tables,
        damage,
    })
}

/// The newest whole log head.
fn newest_head(subject: &Subject<'_>) -> Outcome<Option<LogHead>> {
    let mut newest: Option<LogHead> = None;
    for offset in HEAD_SLOTS {
        let mut page = [0; PAGE_BYTES];
        subject.read_at(&mut page, offset)?;
        let head = LogHead::decode(&page, offset);
        newest = newest.into_iter().chain(head).max_by_key(|h| h.sequence);
    }
    Ok(newest)
}

/// A running daemon holds a lock on the file.
fn in_use(subject: &Subject<'_>) -> bool {
    let free = subject.file.try_lock_shared().is_ok();
    if free {
        // Failing to unlock is harmless: closing the file unlocks it too.
        let _ = subject.file.unlock();
    }
    !free
}

/// Every batch with a whole header that lies where it says, in the order of the file.
fn scan(subject: &Subject<'_>, head: &LogHead) -> Outcome<Vec<Found>> {
    let page_bytes = PAGE_BYTES as u64;
    let mut found = Vec::new();
    let mut window = Window::default();
    // As many segments as the file has, whatever its head says.
    let present = subject
        .len
        .saturating_sub(HEAD_AREA_BYTES)
        .div_ceil(head.segment_bytes);
    let present = u32::try_from(present).unwrap_or(u32::MAX);
    for segment in 0..head.segments.min(present) {
        let start = head.segment_start(segment);
        let end = (start + head.segment_bytes).min(subject.len);
        let mut at = start;
        while at < end {
            let Some(page) = window.page(subject, at)? else {
                break;
            };
            let header = BatchHeader::decode(page)
                .filter(|h| h.wal == head.wal && h.shard == head.shard && h.file_offset == at);
            let Some(header) = header else {
                at += page_bytes;
                continue;
            };
            let table = header.table(page).map(<[u8]>::to_vec);
            let read =
                |table: Vec<u8>| Batch::read(subject, at, header.number, &table, header.records);
            found.push(Found {
                header,
                batch: table.map(read).transpose()?,
                state: "",
            });
            at += match found.last() {
                Some(Found { batch: Some(_), .. }) => header.batch_bytes(),
                _ => page_bytes,
            };
        }
    }
    Ok(found)
}

/// Reads page after page with few system calls.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    const BYTES: usize = 1 << 20;

    /// The page at `at`; `None` beyond the end of the file.
    fn page(&mut self, subject: &Subject<'_>, at: u64) -> Outcome<Option<&[u8]>> {
        let inside = at
            .checked_sub(self.start)
            .is_some_and(|o| o + PAGE_BYTES as u64 <= self.bytes.len() as u64);
        if !inside {
            self.bytes.resize(Self::BYTES, 0);
            let count = subject.read_at(&mut self.bytes, at)?;
            self.bytes.truncate(count);
            self.start = at;
        }
        let offset = (at - self.start) as usize;
        Ok(self.bytes.get(offset..offset + PAGE_BYTES))
    }
}

/// What a recovery of this file alone makes of it; else what it complains of.
fn judge(subject: &Subject<'_>, head: &LogHead) -> Result<Verdict, Vec<String>> {
    let identity = LogIdentity {
        wal: head.wal,
        shard: head.shard,
        // Newer than every writer.
        incarnation: Incarnation(u64::MAX),
        boot: BootId([0; 16]),
    };
    match recover_shard(&identity, &Media(subject), &[]) {
        Ok(recovered) => Ok(Verdict {
            counting: recovered.batches().iter().map(|b| b.file_offset).collect(),
            next_batch: recovered.next_batch,
            torn: recovered.torn,
        }),
        Err(damage) => {
            let mut problems: Vec<String> =
                damage.problems.iter().map(ToString::to_string).collect();
            if damage.more > 0 {
                problems.push(format!("{} further problems", damage.more));
            }
            Err(problems)
        }
    }
}

/// The file as a recovery reads it.
struct Media<'a>(&'a Subject<'a>);

impl ReadMedia for Media<'_> {
    fn len(&self) -> u64 {
        self.0.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0.file, out, offset)
    }
}

fn state(found: &Found, verdict: Option<&Verdict>, released: BatchNum) -> &'static str {
    match verdict {
        Some(verdict) if verdict.counting.contains(&found.header.file_offset) => "live",
        _ if found.header.number < released => "released",
        Some(_) => "void",
        None => "kept",
    }
}

/// The greatest batch that anything in the file says was durable.
fn durable_through(head: &LogHead, found: &[Found]) -> BatchNum {
    let durable = found.iter().map(|f| f.header.durable_through);
    durable.fold(head.durable_through, Ord::max)
}

/// Batches that count, or were durable, and are not whole.
fn bad_batches(found: &[Found], durable: BatchNum) -> Vec<String> {
    let describe = |f: &Found| {
        let (number, offset) = (f.header.number, f.header.file_offset);
        let at = format!("batch {number} at byte {offset}");
        match &f.batch {
            None => Some(format!("{at}: its record table fails its CRC32C")),
            Some(batch) if batch.malformed => Some(format!("{at}: its records do not parse")),
            Some(batch) => {
                let first = batch.bad_blocks.first()?;
                let count = batch.bad_blocks.len();
                Some(format!(
                    "{at}: damaged blocks: {count}, the first is shard block {first}"
                ))
            }
        }
    };
    let counting = found.iter().filter(|f| match f.state {
        "live" => true,
        "kept" => f.header.number <= durable,
        _ => false,
    });
    let mut damage: Vec<String> = counting.filter_map(describe).collect();
    if damage.len() > NAMED_MAX {
        let more = damage.len() - NAMED_MAX;
        damage.truncate(NAMED_MAX);
        damage.push(format!("{more} more damaged batches"));
    }
    damage
}

fn fields(head: &LogHead, found: &[Found], verdict: Option<&Verdict>, in_use: bool) -> Fields {
    let live = found.iter().filter(|f| f.state == "live");
    let live_bytes: u64 = live.clone().map(|f| f.header.batch_bytes()).sum();
    let durable = durable_through(head, found);
    let torn = verdict.and_then(|v| v.torn).map(|torn| {
        format!(
            "batch {} is missing or incomplete, {} behind it are void (no damage: nothing of it \
             was flushed)",
            torn.first, torn.void_batches
        )
    });
    let mut fields = Fields::default();
    fields
        .add("shard", head.shard.to_string())
        .add("WAL", head.wal.to_string())
        .add_some(
            "in use",
            in_use.then_some("by a running taipand: it changes while it is read"),
        )
        .add(
            "segments",
            format!("{} of {}", head.segments, human(head.segment_bytes)),
        )
        .add("last writer", format!("incarnation {}", head.incarnation))
        .add_some("its end", head.end.map(|_| "in order: nothing follows"))
        .add("durable through", format!("batch {durable}"))
        .add(
            "live batches",
            format!("{} ({})", live.count(), human(live_bytes)),
        )
        .add_some("next batch", verdict.map(|v| v.next_batch.to_string()))
        .add_some("torn tail", torn);
    fields
}

fn batches(subject: &Subject<'_>, found: &[Found]) -> String {
    let mut table = Table::new(&[
        ("BATCH", Align::Right),
        ("BYTE", Align::Right),
        ("WRITER", Align::Right),
        ("PAGES", Align::Right),
        ("RECORDS", Align::Right),
        ("LSN", Align::Right),
        ("EPOCH", Align::Right),
        ("DURABLE", Align::Right),
        ("STATE", Align::Left),
    ]);
    for one in found.iter().take(subject.rows(found.len())) {
        let header = &one.header;
        let (lsns, epochs, whole) = match &one.batch {
            Some(b) => (
                b.lsns(),
                b.epochs(),
                b.bad_blocks.is_empty() && !b.malformed,
            ),
            None => ("-".to_owned(), "-".to_owned(), false),
        };
        let damaged = if whole { "" } else { ", damaged" };
        table.row([
            header.number.to_string(),
            header.file_offset.to_string(),
            header.incarnation.to_string(),
            (1 + header.payload_pages).to_string(),
            header.records.to_string(),
            lsns,
            epochs,
            header.durable_through.to_string(),
            format!("{}{damaged}", one.state),
        ]);
    }
    subject.table("Batches, the newest first", &table, found.len())
}

fn to_json(
    subject: &Subject<'_>,
    head: &LogHead,
    found: &[Found],
    verdict: Option<&Verdict>,
    in_use: bool,
) -> Value {
    let batches: Vec<Value> = found
        .iter()
        .map(|f| {
            let header = &f.header;
            json!({
                "number": header.number,
                "file_offset": header.file_offset,
                "incarnation": header.incarnation,
                "segment_generation": header.generation,
                "payload_pages": header.payload_pages,
                "durable_through": header.durable_through,
                "released_before": header.released_before,
                "state": f.state,
                "content": f.batch.as_ref().map(|b| b.to_json(subject.all)),
            })
        })
        .collect();
    let torn = verdict.and_then(|v| v.torn);
    json!({
        "shard": head.shard.index(),
        "wal": head.wal.to_string(),
        "in_use": in_use,
        "incarnation": head.incarnation,
        "segments": head.segments,
        "segment_bytes": head.segment_bytes,
        "ended": head.end.is_some(),
        "durable_through": head.durable_through,
        "released_before": head.released_before,
        "next_batch": verdict.map(|v| v.next_batch),
        "torn_tail": torn.map(|t| json!({ "first": t.first, "void_batches": t.void_batches })),
        "batches": batches,
    })
}

//! Fuzz entry of the replay: whatever is in the WAL file and the region, it neither panics nor
//! allocates without bound, and what it accepts can be served.

use std::sync::OnceLock;

use crate::arena::Arena;
use crate::block::{BlockSize, LocalBlock, PAGE_BYTES, ShardId};
use crate::identity::{Epoch, Incarnation, Lsn, VolumeId};

use super::format::{
    BATCH_MAGIC, BatchHeader, FIXED_BYTES, HEAD_AREA_BYTES, HEAD_MAGIC, LogHead, TABLE_START, seal,
};
use super::replay::blank_head;
use super::{
    BootId, LogConfig, LogIdentity, MarkKind, ReadMedia, RecordHead, Recovered, ShardLog, WalId,
    recover_noted_shard,
};

const CONFIG: LogConfig = LogConfig {
    arena_bytes: 200 << 10,
    undurable_bytes_max: 160 << 10,
    batch_payload_max: 64 << 10,
    segment_bytes: 160 << 10,
    segments: 4,
    reserve_segments: 3,
};

/// Pages of the template that say something: log heads and batch headers; the last two batches are
/// only in the region, the two before in both.
const FILE_PAGES: [usize; 4] = [0, 8, 16, 19];
const REGION_PAGES: [usize; 6] = [0, 1, 3, 6, 9, 12];
/// Bytes at the start of such a page that are in use.
const TELLING_BYTES: usize = 256;

/// Bits of an input's first byte.
const REPAIR: u8 = 1;
const CHANGES: u8 = 2;
const NEAR: u8 = 4;
const ENDED: u8 = 8;
const NOTED: u8 = 16;

/// The writer that reads the file.
fn reader(mode: u8) -> LogIdentity {
    identity(if mode & ENDED == 0 { 3 } else { 2 })
}

fn identity(incarnation: u64) -> LogIdentity {
    LogIdentity {
        wal: WalId(1),
        shard: ShardId::new(0).expect("a shard"),
        incarnation: Incarnation(incarnation),
        boot: BootId([0; 16]),
    }
}

/// Replays a file and region made of `data`. The first byte says how: as they are, or as changes
/// to a whole log (5 bytes each: part and position, then the new byte), with checksums put right
/// again if its lowest bit is set. With bit 2 the positions are those of the bytes that say
/// something: log heads, batch headers, the region's control area (see [`telling`]). With bit 8 the
/// log had ended in order, and what reads it is the very next writer. With bit 16 that finds the
/// headers which were noted at the end, too.
pub fn fuzz_replay(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    let Log {
        file,
        region,
        noted,
    } = if mode & CHANGES == 0 {
        let half = rest.len() / 2;
        Log {
            file: rest[..half].to_vec(),
            region: rest[half..].to_vec(),
            noted: rest.to_vec(),
        }
    } else {
        changed(rest, *mode)
    };
    let next = reader(*mode);
    let regions: [&dyn ReadMedia; 1] = [&region];
    let noted = (mode & NOTED != 0).then_some(noted.as_slice());
    if let Ok(recovered) = recover_noted_shard(&next, &file, noted, &regions) {
        serve(next, &recovered, &file);
    }
}

/// A log that was accepted can be resumed, and everything it names is within the file.
fn serve(next: LogIdentity, recovered: &Recovered, file: &[u8]) {
    for record in recovered.records() {
        assert!(record.lsn < recovered.next_lsn && !record.blocks.is_empty());
    }
    let arena = Arena::anonymous(CONFIG.arena_bytes).expect("memory");
    let Ok(mut log) = ShardLog::resume(next, CONFIG, arena, recovered) else {
        return;
    };
    for (_, place, _) in recovered
        .records()
        .flat_map(|r| r.points().collect::<Vec<_>>())
    {
        let at = log.file_offset(place).expect("nothing is released yet");
        assert!(at + PAGE_BYTES as u64 <= file.len() as u64);
    }
    for record in &recovered.region_only {
        if log.append_recovered(record, |_, _, _| {}).is_err() {
            break;
        }
    }
}

/// What a process left.
#[derive(Clone)]
struct Log {
    file: Vec<u8>,
    region: Vec<u8>,
    noted: Vec<u8>,
}

/// A file of four batches, the last two in memory only unless the log had ended, with changes.
fn changed(changes: &[u8], mode: u8) -> Log {
    static KILLED: OnceLock<Log> = OnceLock::new();
    static ENDED_WHOLE: OnceLock<Log> = OnceLock::new();
    let template = match mode & ENDED {
        0 => KILLED.get_or_init(|| whole(false)),
        _ => ENDED_WHOLE.get_or_init(|| whole(true)),
    };
    let mut log = template.clone();
    for change in changes.chunks_exact(5) {
        let position = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let in_region = change[3] & 1 == 1;
        let target = match change[3] & 3 {
            1 => &mut log.region,
            2 if mode & ENDED != 0 && mode & NOTED != 0 => &mut log.noted,
            _ => &mut log.file,
        };
        let position = if mode & NEAR != 0 && target.len() > PAGE_BYTES {
            telling(position, in_region)
        } else {
            position % target.len()
        };
        target[position] = change[4];
    }
    if mode & REPAIR != 0 {
        log.file.chunks_exact_mut(PAGE_BYTES).for_each(repair_page);
        repair_notes(&mut log.noted);
    }
    log
}

/// The `position`th telling byte: its low byte is the page's, the rest the place within the page.
fn telling(position: usize, in_region: bool) -> usize {
    let (page, within) = (position & 0xFF, position >> 8);
    let start = if in_region {
        REGION_PAGES[page % REGION_PAGES.len()]
    } else {
        FILE_PAGES[page % FILE_PAGES.len()]
    };
    start * PAGE_BYTES + within % TELLING_BYTES
}

fn whole(ended: bool) -> Log {
    let mut file = vec![0; CONFIG.file_bytes() as usize];
    let first = blank_head(&identity(1), &CONFIG);
    for head in [
        LogHead {
            sequence: 0,
            ..first
        },
        first,
    ] {
        let at = head.file_offset() as usize;
        head.encode(&mut file[at..at + PAGE_BYTES]);
    }
    let arena = Arena::anonymous(CONFIG.arena_bytes).expect("memory");
    let blank = Recovered::blank(&identity(1), &CONFIG);
    let mut log = ShardLog::resume(identity(1), CONFIG, arena, &blank).expect("sizes that fit");
    for batch in 0..4u64 {
        let head = RecordHead {
            volume: VolumeId(1),
            epoch: Epoch(batch),
            lsn: Lsn(2 * batch + 1),
            start: LocalBlock(batch),
            count: 2,
            block_size: BlockSize::MIN,
        };
        let fill = |_, block: &mut [u8]| {
            block.fill(batch as u8);
            crc32c::crc32c(block)
        };
        let appended = log.append_data(&head, fill, |_, _, _| {});
        appended.expect("an empty log has room");
        let lsn = Lsn(2 * batch + 2);
        let marked = log.append_mark(VolumeId(2), Epoch(batch), lsn, 0..9, MarkKind::Trim);
        marked.expect("an empty log has room");
        log.close();
        if batch < 2 || ended {
            write_out(&mut log, &mut file);
        }
    }
    let mut noted = Vec::new();
    if ended {
        assert!(log.end());
        write_out(&mut log, &mut file);
        assert!(log.note_headers(&mut noted));
    }
    Log {
        file,
        region: log.arena.bytes(0, CONFIG.arena_bytes).to_vec(),
        noted,
    }
}

fn write_out(log: &mut ShardLog, file: &mut [u8]) {
    while let Some(write) = log.start_write(true) {
        let at = write.file_offset as usize;
        let bytes = log.arena.bytes(write.arena_offset, write.len);
        file[at..at + write.len].copy_from_slice(bytes);
        log.write_finished(&write, Ok(()));
    }
}

/// Puts the checksums of a header page or log head right.
fn repair_page(page: &mut [u8]) {
    if page.starts_with(&HEAD_MAGIC) {
        seal(&mut page[..FIXED_BYTES]);
    }
    if !page.starts_with(&BATCH_MAGIC) {
        return;
    }
    let Some(mut header) = BatchHeader::fields(page) else {
        return;
    };
    let table_end = (TABLE_START + header.table_bytes as usize).min(page.len());
    header.table_crc = crc32c::crc32c(&page[TABLE_START..table_end]);
    header.content_crc = header.compute_content_crc();
    header.encode(page);
}

/// The same for headers that were noted, as far as they follow each other.
fn repair_notes(mut rest: &mut [u8]) {
    while rest.len() >= FIXED_BYTES && rest.starts_with(&BATCH_MAGIC) {
        let table = BatchHeader::fields(rest).map_or(0, |header| header.table_bytes as usize);
        let bytes = (FIXED_BYTES + table.min(PAGE_BYTES)).min(rest.len());
        let (header, behind) = rest.split_at_mut(bytes);
        repair_page(header);
        rest = behind;
    }
}

// The template's batches lie behind the head area.
const _: () = assert!(HEAD_AREA_BYTES < 1 << 24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::tests::dice::Dice;

    #[test]
    fn the_template_is_whole() {
        let Log { file, region, .. } = changed(&[], CHANGES | REPAIR);
        let regions: [&dyn ReadMedia; 1] = [&region];
        let recovered = recover_noted_shard(&identity(3), &file, None, &regions).unwrap();
        assert_eq!(
            (recovered.batches().len(), recovered.region_only.len()),
            (2, 4)
        );
    }

    #[test]
    fn the_template_that_ended_is_not_searched() {
        let log = changed(&[], CHANGES | REPAIR | ENDED);
        let regions: [&dyn ReadMedia; 1] = [&log.region];
        for noted in [None, Some(log.noted.as_slice())] {
            let found = recover_noted_shard(&reader(ENDED), &log.file, noted, &regions).unwrap();
            assert_eq!((found.batches().len(), found.searched), (4, false));
            assert_eq!(found.noted, noted.is_some());
        }
    }

    #[test]
    fn the_telling_pages_tell() {
        let Log { file, region, .. } = whole(false);
        for page in FILE_PAGES.map(|page| &file[page * PAGE_BYTES..]) {
            assert!(page.starts_with(&HEAD_MAGIC) || page.starts_with(&BATCH_MAGIC));
        }
        for page in REGION_PAGES.map(|page| &region[page * PAGE_BYTES..]) {
            let used = page[..TELLING_BYTES].iter().filter(|&&byte| byte != 0);
            assert!(used.count() >= 16);
        }
        assert_eq!(telling(0x0503, false), 19 * PAGE_BYTES + 5);
    }

    #[test]
    fn no_change_makes_the_replay_panic() {
        let mut dice = Dice(5);
        // Where the interesting bytes are: log heads, batch headers, the region's control area.
        let bases = [0, 0x8000, 0x1_0000, 0x1_3000, 0x1_6000];
        for _ in 0..1500 {
            let ended = [0, ENDED, ENDED | NOTED][dice.roll(3) as usize];
            let mut data = vec![CHANGES | dice.roll(2) as u8 | ended];
            for _ in 0..1 + dice.roll(4) {
                let region = dice.roll(3) == 0;
                let base = bases[dice.roll(bases.len() as u64) as usize];
                let base = if region {
                    dice.roll(4) as u32 * 4096
                } else {
                    base
                };
                let position = base + dice.roll(260) as u32;
                let byte = [0, 1, 0xFF, dice.roll(256) as u8][dice.roll(4) as usize];
                data.extend(&position.to_le_bytes()[..3]);
                let noted = ended & NOTED != 0 && dice.roll(2) == 0;
                data.extend([if noted { 2 } else { u8::from(region) }, byte]);
            }
            fuzz_replay(&data);
        }
    }

    #[test]
    fn no_noise_makes_the_replay_panic() {
        let mut dice = Dice(6);
        for len in [0, 1, 100, 5000, 100_000] {
            let noise: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
            fuzz_replay(&[&[0], noise.as_slice()].concat());
            fuzz_replay(&[&[ENDED | NOTED], noise.as_slice()].concat());
        }
    }
}

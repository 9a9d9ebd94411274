//! Reads of a backend in memory with scripted faults, as a data core sees them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use futures::executor::block_on;
use taipan_engine::backend::{Backend, Fault, FaultRule, MemBackend, Operation};
use taipan_engine::block::{BlockNum, BlockSize};
use taipan_engine::chunk::{ChunkBuilder, ChunkRef, ChunkSpec};
use taipan_engine::core::{Failure, Fetch, OpKey};
use taipan_engine::error::ErrorKind;
use taipan_engine::identity::{Epoch, Generation, VolumeId};
use taipan_engine::index::ChunkOrdinal;
use taipan_engine::object::ChunkKey;

use super::*;
use crate::metrics::ColdReadTotals;

mod places;

const VOLUME: VolumeId = VolumeId(3);
const STRIDE: usize = 4096 + 8;
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// A fetcher over a backend whose chunk `n` has the blocks from `n * slots` on.
struct Rig {
    backend: MemBackend,
    fetcher: Fetcher,
    counters: Arc<ColdReadCounters>,
    tables: Arc<ChunkTables>,
    reply: CoreAddress,
    inbox: Receiver<CoreMessage>,
    slots: u32,
}

impl Rig {
    fn new(chunks: u64, slots: u32, settings: ReadSettings) -> Self {
        let backend = MemBackend::new();
        let tables = Arc::new(ChunkTables::default());
        for number in 0..chunks {
            let (body, reference) = chunk(number, slots);
            block_on(backend.put(&reference.key.object(), body)).unwrap();
            tables.set(VOLUME, ChunkOrdinal(number as u32), Some(reference));
        }
        let counters = Arc::new(ColdReadCounters::default());
        let fetcher = Fetcher::start(FetcherParts {
            backend: Arc::new(backend.clone()),
            tables: Arc::clone(&tables),
            backend_counters: Arc::default(),
            counters: Arc::clone(&counters),
            settings,
        });
        let (reply, inbox) = CoreAddress::new().unwrap();
        Self {
            backend,
            fetcher: fetcher.unwrap(),
            counters,
            tables,
            reply,
            inbox,
            slots,
        }
    }

    /// Asks for blocks, which are of one chunk.
    fn ask(&self, op: u32, blocks: Range<u64>) {
        let chunk = blocks.start / u64::from(self.slots);
        let first_slot = (blocks.start % u64::from(self.slots)) as u32;
        let count = (blocks.end - blocks.start) as u32;
        let fetch = Fetch {
            op: OpKey(op),
            volume: VOLUME,
            block_size: block_size(),
            chunk: ChunkOrdinal(chunk as u32),
            first_slot,
            slots: count,
            wanted: (0..count).zip(blocks.map(BlockNum)).collect(),
        };
        let chunk = self.fetcher.chunk_of(&fetch);
        self.fetcher.submit(fetch, chunk, self.reply.clone());
    }

    fn answer(&self) -> (u32, std::result::Result<Vec<u8>, Failure>) {
        match self.inbox.recv_timeout(ANSWER_WAIT) {
            Ok(CoreMessage::Fetched { op, blocks, .. }) => {
                (op.0, blocks.map(|blocks| blocks.to_vec()))
            }
            Ok(_) => panic!("not an answer to a read"),
            Err(error) => panic!("a read is not answered: {error}"),
        }
    }

    /// Reads blocks and checks their content.
    fn read(&self, blocks: Range<u64>) {
        self.ask(0, blocks.clone());
        assert_right(blocks, &self.answer().1.expect("the blocks are there"));
    }

    fn gets(&self) -> u64 {
        self.backend.count(Operation::GetRange)
    }

    fn totals(&self) -> ColdReadTotals {
        self.counters.totals()
    }

    /// Waits until the counters say so.
    fn until(&self, is_so: impl Fn(&ColdReadTotals) -> bool) {
        for _ in 0..12_000 {
            if is_so(&self.totals()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never: {:?}", self.totals());
    }

    fn fault(&self, fault: Fault, skip: u32, times: u32) {
        self.backend.script(FaultRule {
            operation: Some(Operation::GetRange),
            key_contains: String::new(),
            skip,
            times,
            fault,
        });
    }
}

fn settings() -> ReadSettings {
    ReadSettings {
        ram_bytes: 64 << 20,
        file: None,
        deadline: Duration::from_secs(60),
        cpu: None,
    }
}

fn block_size() -> BlockSize {
    BlockSize::new(4096).unwrap()
}

fn content(block: u64) -> Vec<u8> {
    (0..512)
        .flat_map(|i| (block * 512 + i).to_le_bytes())
        .collect()
}

fn assert_right(blocks: Range<u64>, bytes: &[u8]) {
    let expected: Vec<u8> = blocks.flat_map(content).collect();
    assert!(bytes == expected, "the bytes are not those of the blocks");
}

/// CRC32C, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn chunk(number: u64, slots: u32) -> (bytes::Bytes, ChunkRef) {
    let spec = ChunkSpec {
        key: ChunkKey {
            volume: VOLUME,
            generation: Generation(1),
            sequence: number,
            random: 9,
        },
        block_size: block_size(),
        epoch: Epoch(1),
        salt: [0; 16],
    };
    let first = number * u64::from(slots);
    let blocks: Vec<BlockNum> = (first..first + u64::from(slots)).map(BlockNum).collect();
    let mut builder = ChunkBuilder::new(&spec, &blocks, &[]).unwrap();
    for block in &blocks {
        let bytes = content(block.0);
        builder.push(&bytes, crc(&bytes)).unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn a_cold_block_is_one_get_of_one_slot_and_then_in_memory() {
    let rig = Rig::new(1, 64, settings());
    rig.read(17..18);
    assert_eq!(rig.gets(), 1);
    assert_eq!(rig.totals().backend_bytes, STRIDE as u64);
    rig.read(17..18);
    assert_eq!(rig.gets(), 1);
    rig.until(|totals| totals.ram_blocks == 1);
}

#[test]
fn reads_of_the_same_slots_wait_for_one_get() {
    let rig = Rig::new(1, 64, settings());
    rig.fault(Fault::Hold, 0, 1);
    rig.ask(1, 0..32);
    rig.ask(2, 3..10);
    rig.ask(3, 31..32);
    rig.until(|totals| totals.joined_blocks == 8);
    assert!(rig.backend.release_next());
    for _ in 0..3 {
        let (op, blocks) = rig.answer();
        let range = [0..0, 0..32, 3..10, 31..32][op as usize].clone();
        assert_right(range, &blocks.unwrap());
    }
    assert_eq!(rig.gets(), 1);
}

#[test]
fn all_who_wait_for_an_object_that_is_gone_are_told() {
    let rig = Rig::new(1, 64, settings());
    rig.fault(Fault::Hold, 0, 1);
    rig.ask(1, 0..8);
    rig.ask(2, 4..5);
    rig.until(|totals| totals.joined_blocks == 1);
    block_on(rig.backend.delete(&chunk(0, 64).1.key.object())).unwrap();
    assert!(rig.backend.release_next());
    for _ in 0..2 {
        assert_eq!(rig.answer().1, Err(Failure::Io));
    }
    rig.until(|totals| totals.missing_objects == 1);
    assert!(rig.tables.take_lacking().contains(&VOLUME));
    assert_eq!(rig.gets(), 1, "it is not asked for again");
}

#[test]
fn wrong_bytes_are_asked_for_once_more_alone() {
    let rig = Rig::new(1, 64, settings());
    rig.fault(Fault::CorruptByte(2 * STRIDE + 10), 0, 1);
    rig.read(0..8);
    let totals = rig.totals();
    assert_eq!((totals.backend_mismatches, totals.refetches), (1, 1));
    assert_eq!(totals.backend_bytes, 9 * STRIDE as u64);
    rig.read(0..8);
    assert_eq!(
        rig.gets(),
        2,
        "what was right and what was mended is cached"
    );
}

#[test]
fn wrong_bytes_twice_fail_those_who_want_them_and_nobody_else() {
    let rig = Rig::new(1, 64, settings());
    rig.fault(Fault::Hold, 0, 1);
    rig.ask(1, 0..8);
    rig.ask(2, 5..8);
    rig.until(|totals| totals.joined_blocks == 3);
    rig.backend.rot(
        &chunk(0, 64).1.key.object(),
        chunk(0, 64).1.head_bytes as usize + STRIDE,
    );
    assert!(rig.backend.release_next());
    let mut answers = [rig.answer(), rig.answer()];
    answers.sort_by_key(|(op, _)| *op);
    assert_eq!(answers[0], (1, Err(Failure::Io)));
    assert_right(5..8, answers[1].1.as_ref().unwrap());
    assert_eq!(rig.totals().backend_mismatches, 2);
    // The rest of the object is read as before.
    rig.read(2..8);
    assert_eq!(rig.gets(), 2);
}

#[test]
fn a_truncated_body_is_as_wrong_as_wrong_bytes() {
    let rig = Rig::new(1, 64, settings());
    rig.fault(Fault::Truncate(3 * STRIDE + 1), 0, 1);
    rig.read(0..8);
    assert_eq!(rig.totals().backend_mismatches, 5);
    assert_eq!(rig.gets(), 2);
}

#[test]
fn a_backend_that_is_away_is_waited_for() {
    let rig = Rig::new(1, 64, settings());
    rig.fault(Fault::FailBefore(ErrorKind::Transient), 0, 3);
    rig.read(5..6);
    assert_eq!((rig.gets(), rig.totals().retries), (4, 3));
}

#[test]
fn a_silent_backend_fails_reads_at_their_deadline_and_holds_up_no_cached_ones() {
    // So long that a machine which stalls for a second answers what it can.
    let deadline = Duration::from_secs(3);
    let rig = Rig::new(
        1,
        64,
        ReadSettings {
            deadline,
            ..settings()
        },
    );
    rig.read(5..6);
    // Also when it is asked again.
    rig.fault(Fault::Hold, 0, 100);
    rig.ask(1, 9..10);
    rig.read(5..6);
    assert_eq!(rig.answer(), (1, Err(Failure::Io)));
    rig.until(|totals| totals.expired == 1);
    rig.backend.clear_script();
    rig.read(20..21);
}

#[test]
fn a_reader_in_order_has_few_large_gets_and_wastes_nothing() {
    let rig = Rig::new(4, 1024, settings());
    for at in (0..4 * 1024).step_by(32) {
        rig.read(at..at + 32);
    }
    assert!(rig.gets() <= 40, "{} GETs for 128 reads", rig.gets());
    rig.until(|totals| totals.ahead_used > 2500);
    assert_eq!(rig.totals().ahead_wasted, 0);
    let bytes = 4 * 1024 * STRIDE as u64;
    assert_eq!(rig.totals().backend_bytes, bytes, "nothing was read twice");
}

#[test]
fn a_reader_in_order_gets_a_place_in_the_cache_file_the_second_time() {
    const BLOCKS: u64 = 4 * 1024;
    let pass = |rig: &Rig| (0..BLOCKS).step_by(32).for_each(|at| rig.read(at..at + 32));
    // From a machine that stalls a backend looks far away, and what is far is kept at once.
    let once = (0..20).find_map(|_| {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = with_file(&dir);
        settings.ram_bytes = 8 << 20;
        settings.file.as_mut().unwrap().bytes = 32 << 20;
        let rig = Rig::new(4, 1024, settings);
        pass(&rig);
        // The rest was read before anybody could know of the order.
        let kept = rig.totals().file_writes;
        (kept < BLOCKS / 4).then_some((rig, dir))
    });
    let (rig, _dir) = once.expect("what passed once is kept");
    pass(&rig);
    rig.until(|totals| totals.file_blocks_held > BLOCKS / 2);
}

/// A cache file in a directory of its own, and no memory cache.
fn with_file(dir: &tempfile::TempDir) -> ReadSettings {
    ReadSettings {
        ram_bytes: 0,
        file: Some(CacheFileSpec {
            dir: dir.path().to_owned(),
            bytes: 8 << 20,
        }),
        ..settings()
    }
}

#[test]
fn the_cache_file_answers_and_its_rot_is_never_returned() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(1, 64, with_file(&dir));
    rig.read(0..8);
    rig.until(|totals| totals.file_blocks_held == 8);
    rig.read(0..8);
    assert_eq!((rig.gets(), rig.totals().file_blocks), (1, 8));

    // The blocks lie in the order of their slots: damage the second one.
    let path = dir.path().join("blocks");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 4096 + 77).unwrap();
    file.sync_all().unwrap();
    rig.read(0..8);
    let totals = rig.totals();
    assert_eq!((rig.gets(), totals.file_mismatches), (2, 1));
    assert_eq!(
        totals.backend_bytes,
        9 * STRIDE as u64,
        "only the rotten one"
    );
    rig.until(|totals| totals.file_blocks_held == 8);
}

#[test]
fn a_cache_file_that_fails_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(1, 64, with_file(&dir));
    rig.read(0..8);
    rig.until(|totals| totals.file_blocks_held == 8);
    let path = dir.path().join("blocks");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(0).unwrap();
    rig.read(0..8);
    rig.until(|totals| totals.file_failures == 1);
    rig.read(0..8);
    assert_eq!(rig.gets(), 3);
}

fn warmed(rig: &Rig, blocks: Option<Range<u64>>) -> WarmStatus {
    rig.fetcher.warm(VOLUME, block_size(), blocks).unwrap();
    for _ in 0..12_000 {
        let status = rig.fetcher.warm_status(VOLUME);
        if status.state != WarmState::Running {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never done: {:?}", rig.fetcher.warm_status(VOLUME));
}

#[test]
fn a_warmed_volume_is_read_without_the_backend() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(3, 256, with_file(&dir));
    let status = warmed(&rig, None);
    assert_eq!(
        (status.state, status.objects, status.objects_done),
        (WarmState::Done, 3, 3)
    );
    assert_eq!((status.blocks, status.failed_blocks), (768, 0));
    rig.until(|totals| totals.file_blocks_held == 768);
    let gets = rig.gets();
    (0..768).step_by(32).for_each(|at| rig.read(at..at + 32));
    assert_eq!((rig.gets(), rig.totals().file_blocks), (gets, 768));
    assert_eq!(warmed(&rig, None).blocks, 0, "nothing is lacking");
}

#[test]
fn a_warmed_range_is_read_and_nothing_else() {
    let rig = Rig::new(3, 256, settings());
    let status = warmed(&rig, Some(250..300));
    assert_eq!((status.state, status.blocks), (WarmState::Done, 50));
    let gets = rig.gets();
    rig.read(250..256);
    rig.read(256..300);
    assert_eq!(rig.gets(), gets);
}

#[test]
fn a_warm_up_stops_when_the_cache_is_full_and_waits_for_a_backend_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = with_file(&dir);
    settings.file.as_mut().unwrap().bytes = 1 << 20;
    let rig = Rig::new(4, 256, settings);
    rig.fault(Fault::FailBefore(ErrorKind::Transient), 0, 2);
    let status = warmed(&rig, None);
    assert_eq!((status.state, status.blocks), (WarmState::Full, 256));
    rig.until(|totals| totals.file_blocks_held == 256);
    let gets = rig.gets();
    rig.read(3 * 256..3 * 256 + 8);
    assert_eq!(rig.gets(), gets, "the newest object was read first");
}

#[test]
fn without_caches_there_is_nothing_to_warm() {
    let none = ReadSettings {
        ram_bytes: 0,
        ..settings()
    };
    let rig = Rig::new(1, 64, none);
    let refused = rig.fetcher.warm(VOLUME, block_size(), None).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(rig.fetcher.warm_status(VOLUME).state, WarmState::None);
}

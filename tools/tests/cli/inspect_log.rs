//! `inspect` on a WAL file and a memory region that the engine's own log wrote.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use taipan_engine::arena::Arena;
use taipan_engine::block::{BlockSize, LocalBlock, ShardId};
use taipan_engine::identity::{Epoch, Incarnation, Lsn, VolumeId};
use taipan_engine::wal::record::{MarkKind, RecordHead};
use taipan_engine::wal::replay::Recovered;
use taipan_engine::wal::state::WalState;
use taipan_engine::wal::{BootId, LogConfig, LogIdentity, ShardLog, WalId};

use crate::rig::{Ran, Scratch};

const BLOCK: usize = 4096;

/// A log whose files are in a scratch directory.
struct Log {
    log: ShardLog,
    wal: PathBuf,
    region: PathBuf,
    next: u64,
}

impl Log {
    fn new(scratch: &Scratch) -> Self {
        let config = LogConfig::for_wal(16 << 20, 4 << 20).unwrap();
        let (wal, region) = (scratch.path("shard-05.wal"), scratch.path("region-05"));
        File::create(&wal)
            .unwrap()
            .set_len(config.file_bytes())
            .unwrap();
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&region)
            .unwrap();
        file.set_len(config.arena_bytes as u64).unwrap();
        let identity = LogIdentity {
            wal: WalId(0xBEEF),
            shard: ShardId::new(5).unwrap(),
            incarnation: Incarnation(3),
            boot: BootId([7; 16]),
        };
        let arena = Arena::map_file(&file, config.arena_bytes).unwrap();
        let blank = Recovered::blank(&identity, &config);
        let log = ShardLog::resume(identity, config, arena, &blank).unwrap();
        let next = 1;
        Self {
            log,
            wal,
            region,
            next,
        }
    }

    /// Appends two blocks and a mark.
    fn append(&mut self) {
        let head = RecordHead {
            volume: VolumeId(0xAB),
            epoch: Epoch(4),
            lsn: Lsn(self.next),
            start: LocalBlock(100 + self.next),
            count: 2,
            block_size: BlockSize::MIN,
        };
        let fill = |i: u32, block: &mut [u8]| {
            block.fill(i as u8 + 1);
            crc32c::crc32c(block)
        };
        self.log.append_data(&head, fill, |_, _, _| {}).unwrap();
        let (lsn, kind) = (Lsn(self.next + 1), MarkKind::Trim);
        self.log
            .append_mark(VolumeId(0xCD), Epoch(5), lsn, 0..9, kind)
            .unwrap();
        self.next += 2;
    }

    /// Closes the open batch and writes everything, durably.
    fn write(&mut self) {
        self.log.close();
        let region = File::open(&self.region).unwrap();
        let wal = OpenOptions::new().write(true).open(&self.wal).unwrap();
        while let Some(write) = self.log.start_write(true) {
            let mut bytes = vec![0; write.len];
            region
                .read_exact_at(&mut bytes, write.arena_offset as u64)
                .unwrap();
            wal.write_all_at(&bytes, write.file_offset).unwrap();
            self.log.write_finished(&write, Ok(()));
        }
    }
}

fn inspect(scratch: &Scratch, path: &Path, more: &[&str]) -> Ran {
    let path = path.display().to_string();
    let mut args = vec!["inspect", &path];
    args.extend(more);
    scratch.run(&args)
}

fn json_of(scratch: &Scratch, path: &Path, more: &[&str]) -> (i32, Value) {
    let ran = inspect(scratch, path, &[more, &["--json"]].concat());
    let value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.err));
    (ran.code, value)
}

/// Flips a bit of the file.
fn damage(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Where batch `number` lies in the file.
fn offset_of(content: &Value, number: u64) -> u64 {
    let batches = content["batches"].as_array().unwrap();
    let batch = batches.iter().find(|b| b["number"] == number).unwrap();
    batch["file_offset"].as_u64().unwrap()
}

#[test]
fn batches_records_and_volumes_of_a_wal_are_shown() {
    let scratch = Scratch::new();
    let mut log = Log::new(&scratch);
    for _ in 0..20 {
        log.append();
        log.write();
    }
    let human = inspect(&scratch, &log.wal, &[]);
    assert_eq!((human.code, human.err.as_str()), (0, ""));
    for expected in [
        "kind   WAL file of a shard\n",
        "live batches     20 (",
        "next batch       21\n",
        "… 4 more, --all shows them\n",
        "00000000000000ab       20           40              0       4\n",
        "00000000000000cd       20            0             20       5\n",
    ] {
        assert!(
            human.out.contains(expected),
            "{expected:?} in\n{}",
            human.out
        );
    }
    assert!(!human.out.contains("Records"), "{}", human.out);
    let all = inspect(&scratch, &log.wal, &["--all"]);
    assert!(all.out.contains("\nRecords\n"), "{}", all.out);

    let (code, decoded) = json_of(&scratch, &log.wal, &["--all"]);
    assert_eq!(code, 0);
    let content = &decoded["content"];
    assert_eq!(
        (&content["shard"], &content["in_use"]),
        (&json!(5), &json!(false))
    );
    let newest = &content["batches"][0];
    assert_eq!(
        (&newest["number"], &newest["state"]),
        (&json!(20), &json!("live"))
    );
    let record = &newest["content"]["record_list"][0];
    assert_eq!(record["shard_block"], 139);
    assert_eq!(record["kind"], "data");
}

#[test]
fn a_torn_tail_is_no_damage_and_a_hole_before_durable_batches_is() {
    let scratch = Scratch::new();
    let mut log = Log::new(&scratch);
    for _ in 0..3 {
        log.append();
        log.write();
    }
    let (_, decoded) = json_of(&scratch, &log.wal, &[]);
    // The last batch says that the second was durable; nothing says that of the third.
    damage(
        &log.wal,
        offset_of(&decoded["content"], 3) + BLOCK as u64 + 10,
    );
    let (code, torn) = json_of(&scratch, &log.wal, &[]);
    assert_eq!((code, &torn["damage"]), (0, &json!([])));
    assert_eq!(torn["content"]["torn_tail"]["first"], 3);
    assert_eq!(torn["content"]["batches"][0]["state"], "void");

    damage(&log.wal, offset_of(&decoded["content"], 2));
    let human = inspect(&scratch, &log.wal, &[]);
    assert_eq!(human.code, 6, "{}", human.out);
    assert!(human.err.contains("batch 2 was durable"), "{}", human.err);
    assert!(human.out.contains("kept"), "{}", human.out);
}

#[test]
fn a_rotten_block_of_a_durable_batch_is_found() {
    let scratch = Scratch::new();
    let mut log = Log::new(&scratch);
    for _ in 0..2 {
        log.append();
        log.write();
    }
    let (_, decoded) = json_of(&scratch, &log.wal, &[]);
    damage(
        &log.wal,
        offset_of(&decoded["content"], 1) + 2 * BLOCK as u64,
    );
    let (code, rotten) = json_of(&scratch, &log.wal, &[]);
    assert_eq!(code, 6);
    let found = &rotten["content"]["batches"][1]["content"]["damaged_blocks"];
    assert_eq!(found, &json!([102]));
}

#[test]
fn a_wal_that_is_in_use_or_lost_a_head_is_still_read() {
    let scratch = Scratch::new();
    let mut log = Log::new(&scratch);
    log.append();
    log.write();
    let lock = File::open(&log.wal).unwrap();
    lock.lock().unwrap();
    let human = inspect(&scratch, &log.wal, &[]);
    assert!(human.out.contains("by a running taipand"), "{}", human.out);
    drop(lock);
    // The first head of this log went to slot 0; without any, only the name of the file is left.
    damage(&log.wal, 20);
    let headless = inspect(&scratch, &log.wal, &[]);
    assert_eq!(headless.code, 6, "{}", headless.out);
    assert!(
        headless.err.contains("neither log head is whole"),
        "{}",
        headless.err
    );
}

#[test]
fn a_region_shows_what_is_not_durable() {
    let scratch = Scratch::new();
    let mut log = Log::new(&scratch);
    log.append();
    log.write();
    log.append();
    let (code, decoded) = json_of(&scratch, &log.region, &["--all"]);
    assert_eq!(code, 0);
    assert_eq!(decoded["kind"], "memory region of a shard");
    let content = &decoded["content"];
    assert_eq!(
        (&content["durable_through"], &content["last_batch"]),
        (&json!(1), &json!(2))
    );
    let batch = &content["batches"][0];
    assert_eq!(batch["number"], 2);
    assert_eq!(batch["content"]["record_list"][0]["lsn"], 3);
    assert_eq!(batch["content"]["damaged_blocks"], json!([]));

    let human = inspect(&scratch, &log.region, &[]);
    assert!(
        human.out.contains("1 batches with 8 KiB of blocks"),
        "{}",
        human.out
    );
    damage(
        &log.region,
        batch["first_byte"].as_u64().unwrap() + BLOCK as u64,
    );
    assert_eq!(inspect(&scratch, &log.region, &[]).code, 6);
    fs::write(&log.region, b"TAIPREGN").unwrap();
    assert_eq!(inspect(&scratch, &log.region, &[]).code, 6);
}

#[test]
fn the_state_of_a_wal_is_shown() {
    let scratch = Scratch::new();
    let state = WalState {
        wal: WalId(0xBEEF),
        incarnation: Incarnation(9),
        segment_bytes: 1 << 20,
        segments: 16,
    };
    let path = scratch.path("state");
    fs::write(&path, state.encode()).unwrap();
    let human = inspect(&scratch, &path, &[]);
    assert_eq!(human.code, 0, "{}", human.err);
    assert!(
        human.out.contains("last writer  incarnation 9\n"),
        "{}",
        human.out
    );
    assert!(human.out.contains("16 segments of 1 MiB"), "{}", human.out);
    damage(&path, 40);
    assert_eq!(inspect(&scratch, &path, &[]).code, 6);
}

#[test]
fn no_damage_of_a_log_makes_it_panic() {
    let scratch = Scratch::new();
    let mut log = Log::new(&scratch);
    log.append();
    log.write();
    log.append();
    for path in [&log.wal, &log.region] {
        let whole = fs::read(path).unwrap();
        for at in (0..140)
            .step_by(9)
            .flat_map(|at| [at, 4096 + at, 65536 + at])
        {
            damage(path, at);
            let ran = inspect(&scratch, path, &["--all"]);
            assert!(matches!(ran.code, 0 | 1 | 6), "byte {at}: {}", ran.err);
            damage(path, at);
        }
        for len in [9, 200, 4095, 4096, 40_000, 65_536, 70_000] {
            fs::write(path, &whole[..len]).unwrap();
            let ran = inspect(&scratch, path, &[]);
            assert!(matches!(ran.code, 0 | 1 | 6), "{len} bytes: {}", ran.err);
        }
    }
}

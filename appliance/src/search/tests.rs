//! Tests of what a start does with volumes: own ones, others', and all of them without the backend.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use taipan_engine::api::VolumeState;
use taipan_engine::backend::{Fault, FaultRule, LocalMetadata, MemBackend};
use taipan_engine::identity::Lsn;
use taipan_engine::registry::{RecordFate, VolumeSeed, begin_serving, open_for_writing};
use taipan_engine::volume::VolumeName;
use taipan_engine::wal::{LogConfig, MarkKind};
use tempfile::TempDir;

use super::*;
use crate::recovery::write_out;
use crate::stages::Stages;

const ID: VolumeId = VolumeId(0xAB);
/// Longer than a disk takes for copies of metadata; a backend that is cut off costs so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// An appliance: its data directory on a disk, its backend, maybe with local copies.
struct Machine {
    dir: TempDir,
    heads: LocalHeads,
    bucket: MemBackend,
    copies: LocalMetadata,
}

impl Machine {
    fn new(bucket: &MemBackend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        Self {
            heads: LocalHeads::open(&dir.path().join("volumes")).unwrap(),
            copies: LocalMetadata::new(Arc::new(bucket.clone()), &dir.path().join("metadata")),
            bucket: bucket.clone(),
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn replay(&self) -> Replayed {
        let config = LogConfig::for_wal(4 << 20, 4 << 20).unwrap();
        let (wal, run) = (self.path("wal"), self.path("run"));
        let mut stages = Stages::since(Instant::now());
        Replayed::open(&wal, &run, &config, None, &mut stages).unwrap()
    }

    /// Writes a durable record of the volume into the log of one shard.
    fn write(&self, epoch: u64) {
        let everything = |_, _| true;
        let (ready, ..) = self.replay().resume(everything, |_, _, _| {}).unwrap();
        let mut shard = ready.into_iter().next().unwrap();
        let mark = MarkKind::Zero;
        let lsn: Lsn = shard.next_lsn;
        let appended = shard.log.append_mark(ID, Epoch(epoch), lsn, 0..8, mark);
        assert!(appended.is_ok());
        shard.log.close();
        write_out(&mut shard.log, &shard.file).unwrap();
    }

    /// The volume as a start finds it, and whether the WAL may forget its records.
    fn find(&self, takes_all: bool) -> (VolumeState, bool) {
        let found = self.search(takes_all).unwrap();
        let boot = found.volumes.iter().find(|boot| boot.volume.id == ID);
        let boot = boot.expect("the volume is shown");
        (boot.volume.state().0, boot.released)
    }

    fn search(&self, takes_all: bool) -> Result<FoundVolumes> {
        let replayed = self.replay();
        let offline = self.copies.offline();
        let search = Search {
            backend: &self.copies,
            copies: Some(&offline),
            patience: PATIENCE,
            silence: PATIENCE,
            away: Cell::default(),
            heads: &self.heads,
            heads_dir: &self.path("volumes"),
            replayed: &replayed,
            stamped: replayed.stamped_through(),
            takes_all,
            quarantine: Quarantine::of(self.dir.path()),
        };
        search.open_all()
    }

    fn take_over(&self, stamped: u64) {
        let opening = open_for_writing(&self.copies, &self.heads, ID, Epoch(stamped));
        let mut opened = block_on(opening).unwrap();
        begin_serving(&self.heads, &mut opened.local, Epoch(stamped + 1)).unwrap();
    }

    fn local(&self) -> LocalHead {
        self.heads.load(ID).unwrap().unwrap()
    }

    fn held_records(&self) -> u64 {
        let held = Quarantine::of(self.dir.path()).held(ID);
        held.map_or(0, |held| held.records)
    }

    /// Whether every request to the backend fails.
    fn cut_off(&self, cut_off: bool) {
        self.bucket.clear_script();
        if cut_off {
            self.bucket.script(FaultRule {
                operation: None,
                key_contains: String::new(),
                skip: 0,
                times: u32::MAX,
                fault: Fault::FailBefore(ErrorKind::Transient),
            });
        }
    }
}

fn bucket_with_a_volume() -> MemBackend {
    let bucket = MemBackend::new();
    let seed = VolumeSeed {
        id: ID,
        token: taipan_engine::identity::WriterToken(1),
    };
    let name = VolumeName::parse("v").unwrap();
    let settings = VolumeSettings::with_size(1 << 30);
    block_on(registry::create_volume(&bucket, seed, &name, &settings)).unwrap();
    bucket
}

#[test]
fn own_volumes_are_opened_and_others_are_left_unless_all_are_taken() {
    let bucket = bucket_with_a_volume();
    let (one, two) = (Machine::new(&bucket), Machine::new(&bucket));
    one.take_over(0);
    assert_eq!(two.find(false), (VolumeState::Elsewhere, true));
    assert_eq!(two.heads.load(ID).unwrap(), None, "nothing is noted");
    assert_eq!(one.find(false), (VolumeState::Online, false));
    assert_eq!(two.find(true), (VolumeState::Online, false));
    // It is not stolen back, however often the first is started.
    for _ in 0..2 {
        assert_eq!(one.find(false), (VolumeState::Elsewhere, true));
    }
    assert_eq!(two.find(false), (VolumeState::Online, false));
}

#[test]
fn a_foreign_tail_is_copied_out_once_and_then_let_go() {
    let bucket = bucket_with_a_volume();
    let (one, two) = (Machine::new(&bucket), Machine::new(&bucket));
    one.take_over(0);
    one.write(5);
    two.take_over(0);
    for _ in 0..2 {
        assert_eq!(one.find(false), (VolumeState::Elsewhere, true));
        assert_eq!(one.held_records(), 1);
        assert_eq!(one.local().fate(Epoch(5)), RecordFate::Skip);
    }
    // Taken back on purpose, it is not merged either.
    assert_eq!(one.find(true), (VolumeState::Online, false));
    assert_eq!(one.local().fate(Epoch(5)), RecordFate::Skip);
    assert_eq!(one.held_records(), 1);
}

#[test]
fn a_tail_that_cannot_be_copied_stays_in_the_wal_and_the_volume_is_refused() {
    for takes_all in [false, true] {
        let bucket = bucket_with_a_volume();
        let (one, two) = (Machine::new(&bucket), Machine::new(&bucket));
        one.take_over(0);
        one.write(5);
        two.take_over(0);
        // In place of the directory; as a full disk it lets nothing be written.
        fs::write(one.path("quarantine"), b"").unwrap();
        for _ in 0..2 {
            assert_eq!(one.find(takes_all), (VolumeState::Refused, false));
            let fate = one.local().fate(Epoch(5));
            assert!(!takes_all || fate == RecordFate::Quarantine);
        }
        fs::remove_file(one.path("quarantine")).unwrap();
        let (state, _) = one.find(takes_all);
        let expected = match takes_all {
            true => VolumeState::Online,
            false => VolumeState::Elsewhere,
        };
        assert_eq!((state, one.held_records()), (expected, 1));
    }
}

#[test]
fn without_the_backend_own_volumes_are_served_unverified() {
    let bucket = bucket_with_a_volume();
    let one = Machine::new(&bucket);
    one.take_over(0);
    one.write(5);
    let before = one.local();
    one.cut_off(true);
    let found = one.search(false).unwrap();
    assert!(!found.backend_asked);
    let opened = found.volumes[0].opened.as_ref().unwrap();
    assert!(opened.unverified);
    assert_eq!(opened.commit.head().generation, before.generation);
    assert_eq!(opened.local.fate(Epoch(5)), RecordFate::Replay);
    assert_eq!(found.volumes[0].volume.state().0, VolumeState::Unverified);
    // When it is back, it is opened like any other.
    one.cut_off(false);
    assert_eq!(one.find(false), (VolumeState::Online, false));
    assert!(one.local().generation > before.generation);
}

#[test]
fn without_the_backend_nothing_is_served_that_may_be_anothers() {
    let bucket = bucket_with_a_volume();
    let (one, two) = (Machine::new(&bucket), Machine::new(&bucket));
    one.take_over(0);
    one.write(5);
    two.take_over(0);
    assert_eq!(one.find(false), (VolumeState::Elsewhere, true));
    one.cut_off(true);
    assert_eq!(one.find(false).0, VolumeState::Refused);
    // Nor without whole copies; the records stay.
    fs::remove_dir_all(two.path("metadata")).unwrap();
    two.write(9);
    assert_eq!(two.find(false), (VolumeState::Refused, false));
    two.cut_off(false);
    assert_eq!(two.find(false), (VolumeState::Online, false));
    assert_eq!(two.local().fate(Epoch(9)), RecordFate::Replay);
}

#[test]
fn a_backend_that_fails_half_way_does_not_hold_up_the_start() {
    let bucket = bucket_with_a_volume();
    let one = Machine::new(&bucket);
    one.take_over(0);
    one.write(5);
    // Names can be listed, manifests are read, and the takeover's put has no answer.
    one.bucket.script(FaultRule {
        operation: Some(taipan_engine::backend::Operation::PutIfAbsent),
        key_contains: "manifests".to_owned(),
        skip: 0,
        times: u32::MAX,
        fault: Fault::FailBefore(ErrorKind::Transient),
    });
    let found = one.search(false).unwrap();
    assert!(found.backend_asked);
    assert_eq!(found.volumes[0].volume.state().0, VolumeState::Unverified);
    let tried = one.local().intents.len();
    assert!(tried > 0, "the takeovers that were tried stay remembered");
    one.cut_off(false);
    assert_eq!(one.find(false), (VolumeState::Online, false));
    assert_eq!(one.local().fate(Epoch(5)), RecordFate::Replay);
}

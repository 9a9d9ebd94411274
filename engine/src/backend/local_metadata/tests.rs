//! Tests of the local copies: what is rebuilt from them, what damage and loss cost, what goes.

use futures::executor::block_on;
use tempfile::TempDir;

use super::*;
use crate::backend::{Fault, FaultRule, MemBackend, Operation};
use crate::block::BlockNum;
use crate::commit::{CommitConfig, Effect, Event, Random, VolumeCommit};
use crate::error::ErrorKind;
use crate::identity::{BatchNum, Epoch, Lsn, ManifestNum, WriterToken};
use crate::index::rebuild::rebuild;
use crate::index::{Overlay, Point};
use crate::pack::PackPlan;
use crate::registry::{Appended, append, read_history};
use crate::volume::{VolumeName, VolumeSettings};
use crate::wal::Place;

const VOLUME: VolumeId = VolumeId(0xAB);

/// A volume whose commits go through local copies.
struct Rig {
    bucket: MemBackend,
    backend: LocalMetadata,
    dir: TempDir,
    commit: VolumeCommit,
    epoch: u64,
}

fn copies_in(bucket: &MemBackend, dir: &TempDir) -> LocalMetadata {
    LocalMetadata::new(Arc::new(bucket.clone()), dir.path())
}

impl Rig {
    fn new(checkpoint_commits: u32) -> Self {
        let bucket = MemBackend::new();
        let dir = tempfile::tempdir().unwrap();
        let backend = copies_in(&bucket, &dir);
        let name = VolumeName::parse("v").unwrap();
        let settings = VolumeSettings::with_size(1 << 30);
        let first = Manifest::first(VOLUME, name, settings, WriterToken(1));
        let opened = first.opened_by(WriterToken(2));
        for manifest in [&first, &opened] {
            block_on(backend.put_if_absent(&manifest.object(), manifest.encode())).unwrap();
        }
        let config = CommitConfig {
            checkpoint_commits,
            ..CommitConfig::default()
        };
        let rebuilt = block_on(rebuild(&backend, &[first, opened.clone()])).unwrap();
        Self {
            commit: VolumeCommit::new(opened, rebuilt, config, Random::new([1, 2, 3, 4])),
            bucket,
            backend,
            dir,
            epoch: 1,
        }
    }

    /// Commits a cut in which `block` has new content.
    fn commit(&mut self, block: u64) {
        let (bytes, block) = (vec![block as u8; 4096], BlockNum(block));
        let mut overlay = Overlay::new();
        overlay.insert_point(
            block.local(),
            Point {
                lsn: Lsn(self.epoch),
                place: Place {
                    batch: BatchNum(1),
                    page: 1,
                },
                crc: crc32c::crc32c(&bytes),
            },
        );
        let settings = &self.commit.head().settings;
        let layers = [(block.shard(), &overlay)];
        let plan = PackPlan::new(
            Epoch(self.epoch),
            settings.block_size(),
            settings.chunk_slots(),
            layers,
        );
        self.epoch += 1;
        self.commit.start(plan);
        while !self.commit.is_idle() {
            let effect = self.commit.next_effect(0).expect("work is left");
            let event = self.carry_out(effect, &bytes);
            self.commit.handle(event, 0);
        }
    }

    fn carry_out(&self, effect: Effect, bytes: &[u8]) -> Event {
        let put = |key: &ObjectKey, body| block_on(self.backend.put_if_absent(key, body));
        match effect {
            Effect::PutChunk(job) => {
                let mut builder = job.builder().unwrap();
                for block in job.blocks() {
                    builder.push(bytes, block.crc).unwrap();
                }
                let (body, reference) = builder.finish().unwrap();
                let result = put(&reference.key.object(), body).map(|_| reference);
                let index = job.index;
                Event::ChunkPut { index, result }
            }
            Effect::PutIndex { key, body } => Event::IndexPut(put(&key.object(), body).map(drop)),
            Effect::PutManifest { key, body } => Event::ManifestPut(put(&key, body)),
            Effect::SaveHead(_) => Event::HeadSaved(Ok(())),
            Effect::Publish(_) => Event::Published,
            other => panic!("{other:?} is not expected"),
        }
    }

    /// The mapped blocks and the head, as a start without the backend knows them.
    fn offline(&self) -> Result<(u64, ManifestNum)> {
        let copies = copies_in(&self.bucket, &self.dir).offline();
        let history = block_on(read_history(&copies, VOLUME, Some(ManifestNum(2))))?;
        let rebuilt = block_on(rebuild(&copies, &history.manifests))?;
        Ok((rebuilt.base.mapped_blocks(), history.head().number))
    }

    fn files(&self, folder: &str) -> usize {
        let dir = self.dir.path().join(format!("v1/{VOLUME}/{folder}"));
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    }
}

#[test]
fn the_index_is_rebuilt_without_the_backend_after_every_commit() {
    let mut rig = Rig::new(3);
    for block in 0..20 {
        rig.commit(block);
        let head = rig.commit.head().number;
        assert_eq!(rig.offline().unwrap(), (block + 1, head), "after {block}");
    }
    // A checkpoint ends what came before it.
    assert!(rig.files("manifests") < 8, "{}", rig.files("manifests"));
    assert!(rig.files("chunks") < 8, "{}", rig.files("chunks"));
}

#[test]
fn a_lost_or_damaged_copy_costs_a_request_and_nothing_else() {
    let mut rig = Rig::new(3);
    (0..8).for_each(|block| rig.commit(block));
    let expected = rig.offline().unwrap();
    let again = |dir: &TempDir| {
        let backend = copies_in(&rig.bucket, dir);
        let history = block_on(read_history(&backend, VOLUME, None)).unwrap();
        let rebuilt = block_on(rebuild(&backend, &history.manifests)).unwrap();
        (rebuilt.base.mapped_blocks(), history.head().number)
    };
    // What is there need not be fetched: chunk heads and index parts.
    let before = rig.bucket.count(Operation::GetRange);
    assert_eq!(again(&rig.dir), expected);
    assert_eq!(rig.bucket.count(Operation::GetRange), before);
    for folder in ["chunks", "index", "manifests"] {
        let folder = rig.dir.path().join(format!("v1/{VOLUME}/{folder}"));
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            std::fs::write(entry.path(), b"rot").unwrap();
        }
    }
    let error = rig.offline().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(again(&rig.dir), expected, "damaged copies");
    assert_eq!(rig.offline().unwrap(), expected, "they were replaced");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(again(&empty), expected, "lost copies");
    rig.dir = empty;
    assert_eq!(rig.offline().unwrap(), expected, "reading made them anew");
}

#[test]
fn another_writers_manifest_is_not_taken_for_the_own_one() {
    let mut rig = Rig::new(32);
    rig.commit(1);
    let head = rig.commit.head().clone();
    let foreign = head.opened_by(WriterToken(99));
    block_on(
        rig.bucket
            .put_if_absent(&foreign.object(), foreign.encode()),
    )
    .unwrap();
    let mine = head.opened_by(WriterToken(3));
    let put = block_on(rig.backend.put_if_absent(&mine.object(), mine.encode()));
    assert_eq!(put.unwrap(), Put::Exists);
    assert_eq!(rig.offline().unwrap().1, head.number);
}

#[test]
fn what_a_lost_answer_hid_is_durable_before_it_is_named() {
    let mut rig = Rig::new(32);
    rig.commit(1);
    let next = rig.commit.head().successor(ManifestKind::Configured);
    // Stored by an attempt whose answer never came.
    block_on(rig.bucket.put_if_absent(&next.object(), next.encode())).unwrap();
    let found = block_on(append(&rig.backend, &next)).unwrap();
    assert_eq!(found, Appended::Ours(Box::new(next.clone())));
    assert!(rig.backend.copies.is_durable(&next.object()));
    // The answer is lost this time, and found by reading back.
    let last = next.successor(ManifestKind::Configured);
    let lost = Fault::FailAfter(ErrorKind::Transient);
    let rule = FaultRule::once(Operation::PutIfAbsent, "manifests", lost);
    rig.bucket.script(rule);
    let found = block_on(append(&rig.backend, &last)).unwrap();
    assert_eq!(found, Appended::Ours(Box::new(last.clone())));
    assert!(rig.backend.copies.is_durable(&last.object()));
    assert_eq!(rig.offline().unwrap().1, last.number);
}

#[test]
fn what_a_killed_process_left_is_durable_before_it_is_relied_on() {
    let mut rig = Rig::new(3);
    (0..8).for_each(|block| rig.commit(block));
    let head = rig.commit.head().clone();
    let keys = rig.bucket.keys();
    let keys = keys.iter().map(|key| ObjectKey::parse(key).unwrap());
    let keys: Vec<ObjectKey> = keys.collect();
    // Another process cannot know what of it is in the page cache only.
    let backend = copies_in(&rig.bucket, &rig.dir);
    let history = block_on(read_history(&backend, VOLUME, None)).unwrap();
    block_on(rebuild(&backend, &history.manifests)).unwrap();
    let copied = |key: &&ObjectKey| backend.copies.read(key).is_some();
    let relied: Vec<&ObjectKey> = keys.iter().filter(copied).collect();
    let durable = |key: &&&ObjectKey| backend.copies.is_durable(key);
    assert_eq!(relied.iter().filter(durable).count(), 0);
    let next = head.opened_by(WriterToken(3));
    block_on(backend.put_if_absent(&next.object(), next.encode())).unwrap();
    assert_eq!(relied.iter().filter(durable).count(), relied.len());
}

#[test]
fn a_directory_that_cannot_be_written_stops_no_commit() {
    let mut rig = Rig::new(3);
    let file = rig.dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    rig.backend = LocalMetadata::new(Arc::new(rig.bucket.clone()), &file.join("below"));
    (0..4).for_each(|block| rig.commit(block));
    assert_eq!(rig.commit.base().mapped_blocks(), 4);
}

#[test]
fn copies_of_deleted_and_foreign_volumes_go() {
    let mut rig = Rig::new(32);
    rig.commit(1);
    rig.backend.retain(&[VOLUME]);
    assert!(rig.offline().is_ok());
    rig.backend.retain(&[]);
    assert_eq!(rig.files("manifests"), 0);
    rig.commit(2);
    let tombstone = rig.commit.head().successor(ManifestKind::Tombstone);
    block_on(
        rig.backend
            .put_if_absent(&tombstone.object(), tombstone.encode()),
    )
    .unwrap();
    assert_eq!(rig.files("manifests"), 0);
}

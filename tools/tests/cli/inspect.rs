//! `inspect` on files made by the engine: right ones, damaged ones, misplaced ones, foreign ones.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use taipan_engine::block::{BlockNum, BlockSize};
use taipan_engine::chunk::{ChunkBuilder, ChunkRef, ChunkSpec, ZeroRun};
use taipan_engine::identity::{Epoch, Generation, ManifestNum, VolumeId, WriterToken};
use taipan_engine::index::part::{IndexPart, RootPart};
use taipan_engine::index::{ChunkLoc, ChunkOrdinal, Leaf, LeafKey};
use taipan_engine::manifest::{Manifest, ManifestKind};
use taipan_engine::object::{ChunkKey, IndexKey, ObjectKey, SealedRef};
use taipan_engine::registry::{LocalHead, NameEntry};
use taipan_engine::volume::{VolumeName, VolumeSettings};

use crate::rig::{Ran, Scratch};

const VOLUME: VolumeId = VolumeId(0xAB);
const BLOCK: usize = 4096;

fn chunk_key(sequence: u64) -> ChunkKey {
    ChunkKey {
        volume: VOLUME,
        generation: Generation(3),
        sequence,
        random: 0xFEED,
    }
}

/// A chunk of blocks 5, 6 and 9 and zeros from 20 on.
fn chunk() -> (Vec<u8>, ChunkRef) {
    let spec = ChunkSpec {
        key: chunk_key(16),
        block_size: BlockSize::MIN,
        epoch: Epoch(7),
        salt: [0; 16],
    };
    let zeros = [ZeroRun::new(BlockNum(20), 100)];
    let blocks = [5, 6, 9].map(BlockNum);
    let mut builder = ChunkBuilder::new(&spec, &blocks, &zeros).unwrap();
    for fill in 1..=3 {
        let block = [fill; BLOCK];
        builder.push(&block, crc32c::crc32c(&block)).unwrap();
    }
    let (bytes, reference) = builder.finish().unwrap();
    (bytes.to_vec(), reference)
}

fn manifest() -> Manifest {
    let name = VolumeName::parse("tenant/a").unwrap();
    let settings = VolumeSettings::with_size(10 << 30);
    let first = Manifest::first(VOLUME, name, settings, WriterToken(1));
    let opened = first.opened_by(WriterToken(2));
    let mut commit = opened.successor(ManifestKind::Commit);
    commit.epoch = Epoch(7);
    commit.added = (0..20).map(|_| chunk().1).collect();
    for (number, added) in commit.added.iter_mut().enumerate() {
        added.key.sequence = number as u64;
    }
    commit.condemned = vec![SealedRef::Chunk(chunk_key(99))];
    commit
}

/// Stores an object as the directory backend does.
fn store(scratch: &Scratch, key: &ObjectKey, bytes: &[u8]) -> PathBuf {
    let path = scratch.path("objects").join(key.as_str());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn inspect(scratch: &Scratch, path: &std::path::Path, more: &[&str]) -> Ran {
    let path = path.display().to_string();
    let mut args = vec!["inspect", &path];
    args.extend(more);
    scratch.run(&args)
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}{}", ran.out, ran.err))
}

#[test]
fn a_chunk_is_decoded_and_every_block_checked() {
    let scratch = Scratch::new();
    let (bytes, reference) = chunk();
    let path = store(&scratch, &reference.key.object(), &bytes);
    let human = inspect(&scratch, &path, &[]);
    assert_eq!((human.code, human.err.as_str()), (0, ""));
    for expected in [
        "kind   chunk\n",
        "v1/00000000000000ab/chunks/00000003-0000000000000010-000000000000feed\n",
        "all 3 blocks pass their CRC32C\n",
        "          5       2     0        20480\n",
        "         20     100  all              81920\n",
    ] {
        assert!(
            human.out.contains(expected),
            "{expected:?} in {}",
            human.out
        );
    }
    let decoded = json(&inspect(&scratch, &path, &["--json"]));
    assert_eq!(decoded["kind"], "chunk");
    assert_eq!(decoded["damage"], serde_json::json!([]));
    assert_eq!(decoded["content"]["runs"][1]["start"], 9);
    assert_eq!(decoded["content"]["zeros"][0]["count"], 100);
}

#[test]
fn a_damaged_block_is_named_and_makes_exit_code_6() {
    let scratch = Scratch::new();
    let (mut bytes, reference) = chunk();
    let second_block = reference.head_bytes as usize + (BLOCK + 8) + 100;
    bytes[second_block] ^= 1;
    let path = store(&scratch, &reference.key.object(), &bytes);
    let ran = inspect(&scratch, &path, &["--json"]);
    assert_eq!(ran.code, 6);
    let decoded = json(&ran);
    assert_eq!(decoded["content"]["damaged_blocks"], serde_json::json!([6]));
    assert!(ran.err.contains("block 6 in slot 1"), "{}", ran.err);

    // A chunk that was cut off, and one whose header is wrong.
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let cut = inspect(&scratch, &path, &[]);
    assert_eq!(cut.code, 6);
    assert!(cut.out.contains("block 9 is cut off"), "{}", cut.out);
    bytes[70] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let header = inspect(&scratch, &path, &["--json"]);
    assert_eq!((header.code, header.out.as_str()), (6, ""));
    assert!(header.err.contains("is damaged"), "{}", header.err);
}

#[test]
fn a_kept_copy_of_a_chunks_head_is_whole_without_its_blocks() {
    let scratch = Scratch::new();
    let (bytes, reference) = chunk();
    let head = &bytes[..reference.head_bytes as usize];
    let path = scratch
        .path("metadata")
        .join(reference.key.object().as_str());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, head).unwrap();
    let decoded = json(&inspect(&scratch, &path, &["--json"]));
    assert_eq!(decoded["kind"], "copy of a chunk's head");
    assert_eq!(decoded["damage"], serde_json::json!([]));
    assert_eq!(decoded["content"]["runs"][1]["start"], 9);
    // In the backend the same bytes are a chunk that lost its blocks.
    let stored = store(&scratch, &reference.key.object(), head);
    assert_eq!(inspect(&scratch, &stored, &[]).code, 6);
}

#[test]
fn a_manifest_is_decoded_with_its_first_rows_or_all() {
    let scratch = Scratch::new();
    let manifest = manifest();
    let path = store(&scratch, &manifest.object(), &manifest.encode());
    let few = inspect(&scratch, &path, &[]);
    assert_eq!(few.code, 0, "{}", few.err);
    assert!(
        few.out.contains("00000000000000ab \"tenant/a\"\n"),
        "{}",
        few.out
    );
    assert!(
        few.out.contains("… 4 more, --all shows them\n"),
        "{}",
        few.out
    );
    let all = inspect(&scratch, &path, &["--all"]);
    assert!(!all.out.contains("more, --all"), "{}", all.out);
    let decoded = json(&inspect(&scratch, &path, &["--json"]));
    assert_eq!(decoded["content"]["kind"], "commit");
    assert_eq!(decoded["content"]["added"].as_array().unwrap().len(), 20);

    let mut bytes = manifest.encode().to_vec();
    bytes[50] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(inspect(&scratch, &path, &[]).code, 6);
}

#[test]
fn an_object_under_a_wrong_name_is_damage() {
    let scratch = Scratch::new();
    let manifest = manifest();
    let other = ObjectKey::manifest(VOLUME, ManifestNum(99));
    let path = store(&scratch, &other, &manifest.encode());
    let ran = inspect(&scratch, &path, &[]);
    assert_eq!(ran.code, 6);
    assert!(ran.err.contains("but says that it is v1/"), "{}", ran.err);
    // A copy elsewhere has no name to be wrong.
    let copy = scratch.path("copy");
    fs::write(&copy, manifest.encode()).unwrap();
    assert_eq!(inspect(&scratch, &copy, &[]).code, 0);
}

#[test]
fn an_index_part_shows_leaves_chunks_and_root() {
    let scratch = Scratch::new();
    let location = ChunkLoc {
        chunk: ChunkOrdinal(0),
        slot: 4,
    };
    let leaf = Leaf::build(&[(3, location)]);
    let shard = taipan_engine::block::ShardId::new(5).unwrap();
    let part = IndexPart {
        key: IndexKey {
            volume: VOLUME,
            generation: Generation(3),
            sequence: 1,
            random: 2,
        },
        manifest: ManifestNum(4),
        leaves: vec![(shard, LeafKey(0), leaf), (shard, LeafKey(1), None)],
        chunks: vec![(ChunkOrdinal(0), Some(chunk().1)), (ChunkOrdinal(1), None)],
        root: Some(RootPart::default()),
    };
    let path = store(&scratch, &part.key.object(), &part.encode());
    let human = inspect(&scratch, &path, &[]);
    assert_eq!(human.code, 0, "{}", human.err);
    assert!(
        human.out.contains("2 (1 removed), mapping 1 blocks"),
        "{}",
        human.out
    );
    let decoded = json(&inspect(&scratch, &path, &["--json"]));
    assert_eq!(decoded["content"]["leaves"][0]["shard"], 5);
    assert_eq!(decoded["content"]["chunks"][1]["chunk"], Value::Null);
}

#[test]
fn the_records_of_volumes_and_names_are_decoded() {
    let scratch = Scratch::new();
    let manifest = manifest();
    let mut head = LocalHead::unknown(&manifest);
    head.intend(&manifest, WriterToken(0xC0DE), Epoch(7));
    let path = scratch.path(&format!("{VOLUME}.json"));
    fs::write(&path, head.encode()).unwrap();
    let human = inspect(&scratch, &path, &[]);
    assert_eq!(human.code, 0, "{}", human.err);
    assert!(human.out.contains("000000000000c0de"), "{}", human.out);
    let decoded = json(&inspect(&scratch, &path, &["--json"]));
    assert_eq!(decoded["content"]["committed_epoch"], 7);

    let text = String::from_utf8(head.encode()).unwrap();
    fs::write(&path, text.replace("\"clean\": true", "\"clean\": false")).unwrap();
    let tampered = inspect(&scratch, &path, &[]);
    assert_eq!(tampered.code, 6, "{}", tampered.out);
    assert!(tampered.err.contains("CRC"), "{}", tampered.err);

    let entry = NameEntry::new(1, manifest.name.clone(), Some(VOLUME));
    let own = ObjectKey::name_entry(&manifest.name, 1);
    let path = store(&scratch, &own, &entry.encode());
    let human = inspect(&scratch, &path, &[]);
    assert_eq!(human.code, 0, "{}", human.err);
    assert!(
        human.out.contains("belongs to  00000000000000ab"),
        "{}",
        human.out
    );
}

#[test]
fn foreign_files_are_refused_with_what_is_known() {
    let scratch = Scratch::new();
    for (content, code, why) in [
        (&b"#!/bin/sh\n"[..], 1, "is no file of the appliance"),
        (b"", 1, "is no file of the appliance"),
        (b"{\"a\":1}", 1, "neither a volume's record"),
        (b"{\"a\":", 6, "no whole JSON record"),
        (b"TaipanCk", 6, "is damaged"),
        (b"TaipanMf", 6, "is damaged"),
        (b"TaipanIx", 6, "is damaged"),
    ] {
        let path = scratch.path("file");
        fs::write(&path, content).unwrap();
        let ran = inspect(&scratch, &path, &[]);
        assert_eq!(ran.code, code, "{content:?}: {}", ran.err);
        assert!(ran.err.contains(why), "{content:?}: {}", ran.err);
    }
    assert_eq!(inspect(&scratch, &scratch.path("nothing"), &[]).code, 3);
    let directory = inspect(&scratch, &scratch.path(""), &[]);
    assert_eq!(directory.code, 2);
    assert!(directory.err.contains("shard-00.wal"), "{}", directory.err);
}

#[test]
fn no_damage_makes_it_panic() {
    let scratch = Scratch::new();
    let manifest = manifest();
    let entry = NameEntry::new(1, manifest.name.clone(), Some(VOLUME));
    let files = [
        chunk().0,
        manifest.encode().to_vec(),
        LocalHead::unknown(&manifest).encode(),
        entry.encode().to_vec(),
    ];
    let path = scratch.path("file");
    for file in files {
        for at in (0..file.len().min(200)).step_by(7) {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            let flipped = inspect(&scratch, &path, &["--json"]);
            fs::write(&path, &file[..at]).unwrap();
            let cut = inspect(&scratch, &path, &["--json"]);
            for ran in [flipped, cut] {
                assert!(matches!(ran.code, 1 | 6), "{}: {}", ran.code, ran.err);
            }
        }
    }
}

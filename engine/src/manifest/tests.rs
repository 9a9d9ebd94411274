//! Tests of the manifest format: golden bytes, round trips, hostile bytes, rules of succession.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::object::ChunkKey;
use crate::snapshot::{Snapshot, SnapshotId, SnapshotName};

const VOLUME: VolumeId = VolumeId(0x0102_0304_0506_0708);

fn chunk_key(sequence: u64) -> ChunkKey {
    ChunkKey {
        volume: VOLUME,
        generation: Generation(2),
        sequence,
        random: 0xFEED + sequence,
    }
}

fn index_key(sequence: u64) -> IndexKey {
    IndexKey {
        volume: VOLUME,
        generation: Generation(2),
        sequence,
        random: 0xBEEF,
    }
}

fn chunk(sequence: u64) -> ChunkRef {
    ChunkRef {
        key: chunk_key(sequence),
        head_bytes: 144,
        slots: 1,
        bytes: 4248,
    }
}

fn sample() -> Manifest {
    Manifest {
        number: ManifestNum(3),
        kind: ManifestKind::Commit,
        predecessor_crc: 0xCAFE_F00D,
        generation: Generation(2),
        token: WriterToken(0x1122_3344_5566_7788),
        epoch: Epoch(17),
        volume: VOLUME,
        name: VolumeName::parse("t/v").unwrap(),
        settings: VolumeSettings::with_size(1 << 30),
        added: vec![chunk(1)],
        condemned: vec![SealedRef::Chunk(chunk_key(0))],
        dropped: vec![SealedRef::Index(index_key(4))],
        checkpoint: Some(CheckpointRef {
            key: index_key(5),
            bytes: 999,
            crc32c: 0x0BAD_CAFE,
        }),
        snapshots: Vec::new(),
        origin: None,
        moment: None,
    }
}

#[test]
fn golden_bytes() {
    let bytes = sample().encode();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let settings = concat!(
        r#"{"size_bytes":1073741824,"block_size_bytes":4096,"#,
        r#""chunk_size_bytes":4194304,"ack":"memory","on_lost_cache":"continue"}"#,
    )
    .as_bytes();
    let at = 96 + 3 + settings.len();
    let header = [
        "54616970616e4d66".to_owned(), // magic "TaipanMf"
        "0100".to_owned(),             // version
        "0300".to_owned(),             // kind: commit
        hex(&(bytes.len() as u32).to_le_bytes()),
        "0300000000000000".to_owned(), // number
        "0200000000000000".to_owned(), // predecessor
        "0df0feca".to_owned(),         // its CRC
        "0300".to_owned(),             // name bytes
        hex(&(settings.len() as u16).to_le_bytes()),
        "0200000000000000".to_owned(), // generation
        "8877665544332211".to_owned(), // token
        "1100000000000000".to_owned(), // epoch
        "0807060504030201".to_owned(), // volume
        "01000000".to_owned(),         // added
        "01000000".to_owned(),         // condemned
        "01000000".to_owned(),         // dropped
        "01000000".to_owned(),         // checkpoint
        "0000000000000000".to_owned(), // reserved
    ];
    assert_eq!(hex(&bytes[..96]), header.concat());
    assert_eq!(&bytes[96..99], b"t/v");
    assert_eq!(&bytes[99..at], settings);
    let lists = concat!(
        // added: volume, generation, sequence, random, head bytes, slots, bytes
        "0807060504030201",
        "0200000000000000",
        "0100000000000000",
        "eefe000000000000",
        "90000000",
        "01000000",
        "9810000000000000",
        // condemned: class 1 (chunk) and its key
        "0100000000000000",
        "0807060504030201",
        "0200000000000000",
        "0000000000000000",
        "edfe000000000000",
        // dropped: class 2 (index) and its key
        "0200000000000000",
        "0807060504030201",
        "0200000000000000",
        "0400000000000000",
        "efbe000000000000",
        // checkpoint: key, bytes, CRC, reserved
        "0807060504030201",
        "0200000000000000",
        "0500000000000000",
        "efbe000000000000",
        "e703000000000000",
        "fecaad0b",
        "00000000",
    );
    let end = bytes.len() - 4;
    assert_eq!(hex(&bytes[at..end]), lists);
    assert_eq!(stored_crc(&bytes), crc32c::crc32c(&bytes[..end]));
    assert_eq!(Manifest::decode(&bytes).unwrap(), sample());
}

#[test]
fn snapshots_are_an_own_section_that_other_manifests_do_not_have() {
    let plain = sample();
    let snapshot = Snapshot {
        id: SnapshotId(0xAA),
        name: SnapshotName::parse("daily").unwrap(),
        manifest: plain.number,
        generation: plain.generation,
        sequence: 5,
        epoch: plain.epoch,
        taken_ms: 6,
        group: None,
    };
    let taking = Manifest {
        snapshots: vec![SnapshotChange::Taken(snapshot.clone())],
        ..sample()
    };
    let (before, bytes) = (plain.encode(), taking.encode());
    assert_eq!(bytes.len(), before.len() + 56 + 5);
    assert_eq!(bytes[88..96], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[96..before.len() - 4], before[96..before.len() - 4]);
    assert_eq!(bytes[before.len() - 4..][..8], [0xAA, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Manifest::decode(&bytes).unwrap(), taking);
    // Of another manifest, or deleted by the one that takes it.
    let other = Snapshot {
        manifest: ManifestNum(2),
        ..snapshot.clone()
    };
    for wrong in [
        SnapshotChange::Taken(other.clone()),
        SnapshotChange::Deleted(snapshot),
        // It keeps no points.
        SnapshotChange::Kept(other),
    ] {
        let manifest = Manifest {
            snapshots: vec![wrong],
            ..sample()
        };
        assert!(Manifest::decode(&manifest.encode()).is_err());
    }
}

#[test]
fn a_clone_says_where_it_comes_from_in_its_first_manifest_alone() {
    let origin = Origin {
        volume: VolumeId(0xAA),
        snapshot: SnapshotId(0xBB),
        manifest: ManifestNum(0xCC),
        epoch: Epoch(0xDD),
    };
    let plain = Manifest {
        number: ManifestNum(1),
        kind: ManifestKind::Created,
        ..sample()
    };
    let clone = Manifest {
        origin: Some(origin),
        ..plain.clone()
    };
    let (before, bytes) = (plain.encode(), clone.encode());
    assert_eq!(bytes.len(), before.len() + 32);
    assert_eq!(bytes[88..96], [0, 0, 0, 0, 1, 0, 0, 0]);
    let fields = &bytes[before.len() - 4..][..32];
    for (field, value) in fields.chunks_exact(8).zip([0xAA, 0xBB, 0xCC, 0xDD]) {
        assert_eq!(field, [value, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(Manifest::decode(&bytes).unwrap(), clone);
    assert!(clone.successor(ManifestKind::Commit).origin.is_none());
    let own = Origin {
        volume: VOLUME,
        ..origin
    };
    let mut wrong = [clone.clone(), clone.clone(), clone.clone(), clone];
    wrong[0].kind = ManifestKind::Commit;
    wrong[1].number = ManifestNum(2);
    wrong[2].checkpoint = None;
    wrong[3].origin = Some(own);
    for manifest in wrong {
        let error = Manifest::decode(&manifest.encode()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() {
    let bytes = sample().encode();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = Manifest::decode(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Manifest::decode(&longer).is_err());
}

#[test]
fn it_is_readable_as_json() {
    let json = serde_json::to_value(sample()).unwrap();
    assert_eq!(json["kind"], "commit");
    assert_eq!(json["settings"]["size_bytes"], 1u64 << 30);
    let key = json["added"][0]["key"].as_str().unwrap();
    assert_eq!(key, chunk_key(1).object().as_str());
    let dropped = json["dropped"][0]["index"].as_str().unwrap();
    assert_eq!(dropped, index_key(4).object().as_str());
}

#[test]
fn succession_has_rules() {
    let previous = sample();
    let commit = previous.successor(ManifestKind::Commit);
    commit.check_follows(&previous).unwrap();
    assert!(commit.same_writer(&previous));
    assert!(commit.added.is_empty() && commit.checkpoint.is_none());
    let opened = previous.opened_by(WriterToken(5));
    opened.check_follows(&previous).unwrap();
    assert!(!opened.same_writer(&previous));
    assert_eq!(opened.generation, Generation(3));
    let tombstone = previous.successor(ManifestKind::Tombstone);
    let risen = tombstone.successor(ManifestKind::Commit);
    assert!(risen.check_follows(&tombstone).is_err());
}

#[test]
fn what_does_not_follow_is_refused() {
    let previous = sample();
    let commit = previous.successor(ManifestKind::Commit);
    let opened = previous.opened_by(WriterToken(5));
    let mut small_blocks = commit.clone();
    small_blocks.settings.block_size_bytes = 8192;
    let mut other_crc = commit.clone();
    other_crc.predecessor_crc ^= 1;
    for (wrong, why) in [
        (
            Manifest {
                volume: VolumeId(1),
                ..commit.clone()
            },
            "another volume",
        ),
        (
            Manifest {
                number: ManifestNum(5),
                ..commit.clone()
            },
            "number",
        ),
        (other_crc, "predecessor"),
        (
            Manifest {
                token: WriterToken(5),
                ..commit.clone()
            },
            "did not open",
        ),
        (
            Manifest {
                generation: Generation(3),
                ..commit.clone()
            },
            "did not open",
        ),
        (
            Manifest {
                generation: Generation(2),
                ..opened
            },
            "did not open",
        ),
        (
            Manifest {
                epoch: Epoch(16),
                ..commit.clone()
            },
            "goes back",
        ),
        (
            Manifest {
                kind: ManifestKind::Created,
                ..commit
            },
            "creates",
        ),
        (small_blocks, "block size"),
    ] {
        let error = wrong.check_follows(&previous).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_manifest_with_a_right_crc_but_wrong_fields_is_refused() {
    let sealed = |at: usize, value: u8| {
        let mut bytes = sample().encode().to_vec();
        bytes[at] = value;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        Manifest::decode(&bytes)
    };
    for (at, value, what) in [
        (8, 2, "version"),
        (10, 9, "kind"),
        (12, 1, "length"),
        (16, 4, "number"),
        (24, 1, "predecessor"),
        (36, 250, "name length"),
        (72, 2, "count of added"),
        (75, 0xFF, "huge count of added"),
        (84, 2, "checkpoint flag"),
        (88, 1, "reserved"),
        (96, b'/', "name"),
        (99, b'[', "settings"),
    ] {
        assert!(sealed(at, value).is_err(), "{what}");
    }
    assert!(sealed(97, b'_').is_ok(), "the sealing itself is right");
}

#[test]
fn a_number_that_nothing_can_follow_is_refused() {
    for last in [
        Manifest {
            number: ManifestNum(u64::MAX),
            ..sample()
        },
        Manifest {
            generation: Generation(u64::MAX),
            ..sample()
        },
        Manifest {
            epoch: Epoch(u64::MAX),
            ..sample()
        },
    ] {
        let error = Manifest::decode(&last.encode()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

fn kinds() -> impl Strategy<Value = ManifestKind> {
    prop::sample::select(vec![
        ManifestKind::Created,
        ManifestKind::Opened,
        ManifestKind::Commit,
        ManifestKind::Configured,
        ManifestKind::Tombstone,
        ManifestKind::RolledBack,
    ])
}

proptest! {
    #[test]
    fn manifests_round_trip(
        numbers in prop::array::uniform5(1u64..u64::MAX),
        kind in kinds(),
        name in "[a-zü]{1,20}",
        counts in prop::array::uniform3(0u64..6),
        checkpointed in any::<bool>(),
    ) {
        let checkpointed = checkpointed || kind == ManifestKind::RolledBack;
        let manifest = Manifest {
            number: ManifestNum(numbers[0]),
            kind,
            predecessor_crc: numbers[1] as u32,
            generation: Generation(numbers[1]),
            token: WriterToken(numbers[2]),
            epoch: Epoch(numbers[3]),
            volume: VolumeId(numbers[4]),
            name: VolumeName::parse(&name).unwrap(),
            added: (0..counts[0]).map(chunk).collect(),
            condemned: (0..counts[1]).map(|n| SealedRef::Chunk(chunk_key(n))).collect(),
            dropped: (0..counts[2]).map(|n| SealedRef::Index(index_key(n))).collect(),
            checkpoint: sample().checkpoint.filter(|_| checkpointed),
            ..sample()
        };
        prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }

    #[test]
    fn any_bytes_are_decoded_without_panic(data in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz_manifest(&data);
    }

    #[test]
    fn altered_fields_with_right_crc_do_not_panic(
        changes in prop::collection::vec((8usize..96, any::<u8>()), 1..6),
    ) {
        let mut bytes = sample().encode().to_vec();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        fuzz_manifest(&bytes);
    }
}

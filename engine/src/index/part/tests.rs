//! Index parts: golden bytes, round trips, and what bad bytes do.

use proptest::prelude::*;

use super::*;
use crate::identity::{Epoch, Generation, VolumeId};
use crate::index::leaf::ChunkLoc;
use crate::snapshot::{SnapshotId, SnapshotName};

const KEY: IndexKey = IndexKey {
    volume: VolumeId(0xAB),
    generation: Generation(2),
    sequence: 3,
    random: 4,
};

fn chunk_ref(sequence: u64) -> ChunkRef {
    ChunkRef {
        key: ChunkKey {
            volume: VolumeId(0xAB),
            generation: Generation(1),
            sequence,
            random: 0xFEED,
        },
        head_bytes: 144,
        slots: 7,
        bytes: 28_872,
    }
}

fn leaf() -> Leaf {
    let loc = ChunkLoc {
        chunk: ChunkOrdinal(5),
        slot: 2,
    };
    Leaf::build(&[(3, loc)]).unwrap()
}

fn part() -> IndexPart {
    let checkpoint = CheckpointRef {
        key: KEY,
        bytes: 99,
        crc32c: 0x1234_5678,
    };
    let shard = ShardId::new(9).unwrap();
    IndexPart {
        key: KEY,
        manifest: ManifestNum(17),
        leaves: vec![(shard, LeafKey(6), Some(leaf())), (shard, LeafKey(7), None)],
        chunks: vec![
            (ChunkOrdinal(5), Some(chunk_ref(8))),
            (ChunkOrdinal(6), None),
        ],
        root: Some(RootPart {
            parts: vec![checkpoint],
            condemned: vec![SealedRef::Chunk(chunk_ref(1).key), SealedRef::Index(KEY)],
            ..RootPart::default()
        }),
    }
}

#[test]
fn golden_bytes() {
    let bytes = part().encode();
    let mut expected = Vec::new();
    expected.extend_from_slice(b"TaipanIx");
    expected.extend_from_slice(&[1, 0, 1, 0]);
    expected.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    for field in [0xABu64, 2, 3, 4, 17] {
        expected.extend_from_slice(&field.to_le_bytes());
    }
    for count in [2u32, 2, 1, 2] {
        expected.extend_from_slice(&count.to_le_bytes());
    }
    expected.extend_from_slice(&[0; 8]);
    assert_eq!(bytes[..HEADER_BYTES], expected);
    let leaf = leaf();
    let leaves = [
        &[6, 0, 0, 0, 9, 0, 11, 0],
        leaf.encode(),
        &[7, 0, 0, 0, 9, 0, 0, 0],
    ]
    .concat();
    assert_eq!(leaf.encode().len(), 11);
    let chunks = HEADER_BYTES + leaves.len();
    assert_eq!(bytes[HEADER_BYTES..chunks], leaves);
    assert_eq!(bytes[chunks..chunks + 8], [5, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(
        bytes.len(),
        chunks + 2 * CHUNK_BYTES + PART_REF_BYTES + 2 * 40 + 4
    );
    let crc = crc32c::crc32c(&bytes[..bytes.len() - 4]);
    assert_eq!(bytes[bytes.len() - 4..], crc.to_le_bytes());
}

#[test]
fn a_root_may_hold_snapshots_and_what_they_retain() {
    let snapshot = Snapshot {
        id: SnapshotId(0xAA),
        name: SnapshotName::parse("daily").unwrap(),
        manifest: ManifestNum(9),
        generation: Generation(1),
        sequence: 5,
        epoch: Epoch(6),
        taken_ms: 7,
        group: None,
    };
    let mut with = part();
    let root = with.root.as_mut().unwrap();
    root.retained = vec![(KEY, ManifestNum(12))];
    root.snapshots = vec![snapshot];
    let (plain, bytes) = (part().encode(), with.encode());
    assert_eq!(bytes[72..80], [1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(bytes.len(), plain.len() + 40 + 56 + 5);
    let (lists, end) = (plain.len() - 4, plain.len() + 36);
    assert_eq!(bytes[80..lists], plain[80..lists]);
    assert_eq!(bytes[end - 8..end], 12u64.to_le_bytes());
    assert_eq!(bytes[end..end + 8], 0xAAu64.to_le_bytes());
    assert_eq!(IndexPart::decode(&bytes).unwrap(), with);
}

#[test]
fn parts_decode_to_themselves() {
    let with_root = part();
    assert_eq!(IndexPart::decode(&with_root.encode()).unwrap(), with_root);
    let without = IndexPart {
        root: None,
        ..part()
    };
    assert_eq!(IndexPart::decode(&without.encode()).unwrap(), without);
}

#[test]
fn a_part_is_only_believed_under_its_own_name() {
    let body = part().encode();
    let named = part_ref(KEY, &body);
    assert_eq!(decode_named(&named, &body).unwrap(), part());
    let other_key = IndexKey { sequence: 9, ..KEY };
    assert!(decode_named(&part_ref(other_key, &body), &body).is_err());
    assert!(decode_named(&named, &body[..body.len() - 1]).is_err());
    let other_crc = CheckpointRef {
        crc32c: named.crc32c ^ 1,
        ..named
    };
    assert!(decode_named(&other_crc, &body).is_err());
}

/// Replaces bytes and makes the CRC right again, so that the rules behind it are reached.
fn damaged(at: usize, bytes: &[u8]) -> Result<IndexPart> {
    let mut body = part().encode().to_vec();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    let content = body.len() - CRC_BYTES;
    let crc = crc32c::crc32c(&body[..content]);
    body[content..].copy_from_slice(&crc.to_le_bytes());
    IndexPart::decode(&body)
}

#[test]
fn each_broken_rule_is_refused() {
    let cases: [(usize, &[u8], &str); 12] = [
        (0, b"X", "magic"),
        (8, &[2], "format 2"),
        (10, &[4], "flags 4"),
        (10, &[3], "4 bytes are expected"),
        (10, &[0], "contradicts"),
        (12, &[0], "contradicts"),
        (72, &[1], "does not fit"),
        (76, &[1, 4], "too many snapshots"),
        (56, &[255, 255, 255, 255], "does not fit"),
        (HEADER_BYTES + 4, &[16], "no shard"),
        (HEADER_BYTES + 3, &[1], "no shard or volume"),
        (HEADER_BYTES + 8, &[9], "unknown kind"),
    ];
    for (at, bytes, rule) in cases {
        let error = damaged(at, bytes).unwrap_err().to_string();
        assert!(error.contains(rule), "{at}: {rule}: {error}");
    }
    let body = part().encode();
    assert!(IndexPart::decode(&body[..body.len() - 1]).is_err());
}

proptest! {
    #[test]
    fn bytes_that_decode_encode_to_themselves(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        fuzz_part(&garbage);
        let mut body = part().encode().to_vec();
        let content = body.len() - CRC_BYTES;
        for (at, value) in flips {
            body[at.index(content)] = value;
        }
        fuzz_part(&body);
        let crc = crc32c::crc32c(&body[..content]);
        body[content..].copy_from_slice(&crc.to_le_bytes());
        fuzz_part(&body);
    }
}

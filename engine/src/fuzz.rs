//! The entries of the fuzz targets in `engine/fuzz`: bytes of unknown origin against each parser of
//! files and objects. Each takes the bytes as they are and, where a checksum would stop nearly all
//! of them, once more with the checksums put right. `tests/corpus.rs` replays the corpora.

use crate::block::{BlockNum, LocalBlock, ShardId};
use crate::chunk::{self, BLOCK_NUM_END, ChunkRef, ChunkView, ZeroRun, fuzz_chunk};
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId, WriterToken};
use crate::increment::{Change, IncrementReader, IncrementWriter};
use crate::index::part::{self, IndexPart};
use crate::index::{AddedChunk, ChunkLoc, Leaf, VolumeBase};
use crate::manifest::{Manifest, ManifestKind, fuzz_manifest};
use crate::object::ChunkKey;
use crate::registry::quarantine::{QuarantineReader, QuarantineWriter};
use crate::registry::{GroupEntry, LocalHead, NameEntry, PinEntry, RecordFate};
use crate::snapshot::Group;
use crate::wal::state::{STATE_BYTES, WalState};

pub use crate::wal::fuzz::fuzz_replay as replay;

/// Panics only when a parser, or what uses its results, breaks its contract.
pub type Entry = fn(&[u8]);

/// Every target by its name, which is that of its corpus.
pub const TARGETS: [(&str, Entry); 11] = [
    ("replay", replay),
    ("chunk", chunk),
    ("manifest", manifest),
    ("part", part),
    ("local_head", local_head),
    ("name_entry", name_entry),
    ("pin_entry", pin_entry),
    ("group_entry", group_entry),
    ("wal_state", wal_state),
    ("quarantine", quarantine),
    ("increment", increment),
];

const CRC_BYTES: usize = 4;
/// Ordinals up to which a part is loaded here; a greater one only takes memory.
const ORDINALS_MAX: u32 = 1 << 12;

/// A chunk object, or the start of one.
pub fn chunk(data: &[u8]) {
    check_chunk(data);
    if data.len() >= chunk::HEADER_BYTES {
        check_chunk(&sealed_chunk(data.to_vec()));
    }
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    check_manifest(data);
    if let Some(sealed) = sealed_object(data) {
        check_manifest(&sealed);
    }
}

/// An index part.
pub fn part(data: &[u8]) {
    check_part(data);
    if let Some(sealed) = sealed_object(data) {
        check_part(&sealed);
    }
}

/// A quarantine file.
pub fn quarantine(data: &[u8]) {
    let Ok(mut reader) = QuarantineReader::new(data) else {
        return;
    };
    let mut writer = QuarantineWriter::new(Vec::new(), reader.header()).expect("memory");
    loop {
        match reader.next_record() {
            Ok(Some(record)) => writer.add(&record).expect("memory"),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let (written, sum) = writer.finish().expect("memory");
    assert_eq!(sum, reader.sum());
    assert!(written.len() <= data.len(), "a whole file is written alike");
}

/// An incremental backup.
pub fn increment(data: &[u8]) {
    let Ok(mut reader) = IncrementReader::new(data) else {
        return;
    };
    let size_bytes = reader.header().to.size_bytes;
    let mut writer = IncrementWriter::new(Vec::new(), reader.header()).expect("memory");
    let mut free_from = 0;
    loop {
        match reader.next_change() {
            Ok(Some(change)) => {
                let (offset, len) = match &change {
                    Change::Data { offset, data } => (*offset, data.len() as u64),
                    Change::Zeros { offset, len } => (*offset, *len),
                };
                assert!(offset >= free_from && len > 0, "changes ascend");
                free_from = offset + len;
                assert!(free_from <= size_bytes, "changes lie within the volume");
                writer.add(&change).expect("memory");
            }
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let (written, sum) = writer.finish().expect("memory");
    assert_eq!(sum, reader.sum());
    assert_eq!(written, data, "a whole file is written alike");
}

/// A local head record.
pub fn local_head(data: &[u8]) {
    check_local_head(data);
    if let Ok(head) = serde_json::from_slice::<LocalHead>(data) {
        check_local_head(&head.encode());
    }
}

/// An entry of a volume name's log.
pub fn name_entry(data: &[u8]) {
    check_name_entry(data);
    if let Ok(entry) = serde_json::from_slice::<NameEntry>(data) {
        let sealed = NameEntry::new(entry.number, entry.name, entry.volume).encode();
        assert!(check_name_entry(&sealed), "a sealed entry is whole");
    }
}

/// An entry of the log of a snapshot's pins.
pub fn pin_entry(data: &[u8]) {
    let whole = PinEntry::decode(data).ok();
    let parsed = serde_json::from_slice::<PinEntry>(data).ok();
    for entry in whole.into_iter().chain(parsed) {
        let sealed = PinEntry::new(entry.number, entry.volume, entry.snapshot, entry.change);
        let again = PinEntry::decode(&sealed.encode()).expect("a sealed entry is whole");
        assert_eq!(again, sealed);
    }
}

/// What became of a group of snapshots.
pub fn group_entry(data: &[u8]) {
    let whole = GroupEntry::decode(data).ok();
    let parsed = serde_json::from_slice::<GroupEntry>(data).ok();
    for entry in whole.into_iter().chain(parsed) {
        let Ok(group) = Group::of(entry.lead, entry.volumes) else {
            continue;
        };
        let sealed = GroupEntry::new(entry.name, &group, entry.verdict);
        let again = GroupEntry::decode(&sealed.encode()).expect("a sealed entry is whole");
        assert_eq!(again, sealed);
    }
}

/// The file `wal/state`.
pub fn wal_state(data: &[u8]) {
    check_wal_state(data);
    if data.len() == STATE_BYTES {
        check_wal_state(&with_crc_at_end(data.to_vec()));
    }
}

fn check_chunk(data: &[u8]) {
    fuzz_chunk(data);
    let Ok(view) = ChunkView::parse(data) else {
        return;
    };
    // What a rebuild does with the table.
    let mut base = VolumeBase::new();
    let added = AddedChunk {
        reference: view.reference(),
        runs: view.runs.clone(),
        zeros: view.zeros.clone(),
    };
    let first = base.apply(std::slice::from_ref(&added)).ordinals[0];
    let second = base.apply(&[added]).ordinals[0];
    for (block, slot) in view.blocks() {
        let expected = ChunkLoc {
            chunk: second,
            slot,
        };
        assert_eq!(base.lookup(block), Some(expected), "block {}", block.0);
    }
    let live = |ordinal| base.chunk(ordinal).map(|entry| entry.live);
    assert_eq!((live(first), live(second)), (Some(0), Some(view.slots)));
    assert_eq!(base.mapped_blocks(), u64::from(view.slots));
}

fn check_manifest(data: &[u8]) {
    fuzz_manifest(data);
    let Ok(manifest) = Manifest::decode(data) else {
        return;
    };
    let ended = manifest.kind == ManifestKind::Tombstone;
    for next in [
        manifest.opened_by(WriterToken(1)),
        manifest.successor(ManifestKind::Commit),
    ] {
        assert_eq!(next.check_follows(&manifest).is_ok(), !ended);
    }
    assert!(manifest.check_follows(&manifest).is_err());
}

fn check_part(data: &[u8]) {
    part::fuzz_part(data);
    let Ok(part) = IndexPart::decode(data) else {
        return;
    };
    let leaves = part.leaves.iter().filter_map(|(_, _, leaf)| leaf.as_ref());
    leaves.for_each(check_leaf);
    if part
        .chunks
        .iter()
        .all(|(ordinal, _)| ordinal.0 < ORDINALS_MAX)
    {
        load_part(part);
    }
}

/// Every accessor of a leaf that was accepted says the same.
fn check_leaf(leaf: &Leaf) {
    let mut entries = Vec::new();
    leaf.for_each(|index, loc| entries.push((index, loc)));
    assert_eq!(entries.len() as u64, leaf.mapped());
    let mut rest = entries.iter().peekable();
    for index in 0..crate::index::LEAF_BLOCKS as u16 {
        let expected = rest.next_if(|entry| entry.0 == index).map(|entry| entry.1);
        assert_eq!(leaf.lookup(index), expected, "index {index}");
    }
    assert!(rest.next().is_none(), "entries ascend within the leaf");
    let again = Leaf::build(&entries).expect("a leaf is not empty");
    let mut same = Vec::new();
    again.for_each(|index, loc| same.push((index, loc)));
    assert_eq!(same, entries);
}

/// What a rebuild does with a checkpoint of this one part, and a commit with the result.
fn load_part(part: IndexPart) {
    let mut base = VolumeBase::new();
    if base
        .load_part(part)
        .and_then(|()| base.finish_load())
        .is_err()
    {
        return;
    }
    let live: u64 = base.chunks().map(|(_, entry)| u64::from(entry.live)).sum();
    assert_eq!(live, base.mapped_blocks());
    let mapped = ShardId::all().flat_map(|shard| {
        let leaves = base.shard(shard).leaves();
        leaves.map(move |(key, leaf)| (shard, key, leaf))
    });
    for (shard, key, leaf) in mapped {
        leaf.for_each(|index, loc| {
            let local = LocalBlock(key.first().0 + u64::from(index));
            assert_eq!(base.shard(shard).lookup(local), Some(loc));
        });
    }
    let everything = AddedChunk {
        reference: ChunkRef {
            key: ChunkKey {
                volume: VolumeId(1),
                generation: Generation(1),
                sequence: 1,
                random: 1,
            },
            head_bytes: 144,
            slots: 0,
            bytes: 144,
        },
        runs: Vec::new(),
        zeros: vec![ZeroRun::new(BlockNum(0), BLOCK_NUM_END)],
    };
    base.apply(&[everything]);
    assert_eq!(base.mapped_blocks(), 0);
    assert!(base.chunks().all(|(_, entry)| entry.live == 0));
}

fn check_local_head(data: &[u8]) {
    let Ok(head) = LocalHead::decode(data) else {
        return;
    };
    let again = LocalHead::decode(&head.encode()).expect("what was encoded decodes");
    assert_eq!(head, again);
    let next = head.committed_epoch.next();
    let replayed = head.fate(next) == RecordFate::Replay;
    let held_back = head
        .quarantine
        .is_some_and(|range| next <= range.through.max(range.after));
    assert!(replayed || held_back, "an uncommitted record counts");
    check_takeover(head);
}

/// After an intended takeover nothing that was stamped before is both unjudged and committed.
fn check_takeover(mut head: LocalHead) {
    let name = head.name.clone();
    let token = WriterToken(!head.token.0);
    let mut foreign = Manifest::first(head.id, name, head.settings.clone(), token);
    foreign.generation = Generation(1);
    foreign.number = ManifestNum(2);
    let own = head.is_own(&foreign);
    let intents = head.intents.len();
    head.intend(&foreign, WriterToken(3), Epoch(9));
    assert!(head.is_own(&foreign), "the intent names what it follows");
    assert!(head.intents.len() <= intents + 1);
    if !own {
        assert_ne!(head.fate(Epoch(9)), RecordFate::Replay);
    }
    let again = LocalHead::decode(&head.encode()).expect("an intent can be saved");
    assert_eq!(head, again);
}

fn check_name_entry(data: &[u8]) -> bool {
    let Ok(entry) = NameEntry::decode(data) else {
        return false;
    };
    let again = NameEntry::decode(&entry.encode()).expect("what was encoded decodes");
    assert_eq!(entry, again);
    true
}

fn check_wal_state(data: &[u8]) {
    let Some(state) = WalState::decode(data) else {
        return;
    };
    assert_eq!(WalState::decode(&state.encode()), Some(state));
    let file_bytes = state.segment_bytes.checked_mul(u64::from(state.segments));
    assert!(file_bytes.is_some_and(|bytes| bytes < i64::MAX as u64));
}

/// With the CRCs of table and header.
fn sealed_chunk(mut bytes: Vec<u8>) -> Vec<u8> {
    use chunk::field;
    bytes[field::MAGIC].copy_from_slice(&chunk::MAGIC);
    let head = u32::from_le_bytes(bytes[field::HEAD_BYTES].try_into().expect("four bytes"));
    if let Some(table) = bytes.get(chunk::HEADER_BYTES..head as usize) {
        let crc = crc32c::crc32c(table).to_le_bytes();
        bytes[field::TABLE_CRC].copy_from_slice(&crc);
    }
    let crc = crc32c::crc32c(&bytes[..field::HEADER_CRC.start]).to_le_bytes();
    bytes[field::HEADER_CRC].copy_from_slice(&crc);
    bytes
}

/// With the length and the CRC of a manifest or index part, which have both at the same places.
fn sealed_object(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let total = u32::try_from(bytes.len()).ok()?.to_le_bytes();
    bytes.get_mut(12..16)?.copy_from_slice(&total);
    Some(with_crc_at_end(bytes))
}

fn with_crc_at_end(mut bytes: Vec<u8>) -> Vec<u8> {
    let content = bytes.len() - CRC_BYTES;
    let crc = crc32c::crc32c(&bytes[..content]).to_le_bytes();
    bytes[content..].copy_from_slice(&crc);
    bytes
}

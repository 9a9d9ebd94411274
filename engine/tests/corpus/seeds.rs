//! The seeds: real objects, made with the engine's own builders.

use taipan_engine::block::{BlockNum, BlockSize, ShardId, ShardSet};
use taipan_engine::chunk::{ChunkBuilder, ChunkRef, ChunkSpec, ChunkView, ZeroRun};
use taipan_engine::identity::{
    Epoch, Generation, Incarnation, Lsn, ManifestNum, VolumeId, WriterToken,
};
use taipan_engine::increment::{Change, IncrementHeader, IncrementReader, IncrementWriter, Point};
use taipan_engine::index::part::{IndexPart, RootPart, part_ref};
use taipan_engine::index::{AddedChunk, ChunkLoc, ChunkOrdinal, Leaf, LeafKey, VolumeBase};
use taipan_engine::manifest::{Manifest, ManifestKind};
use taipan_engine::object::{ChunkKey, IndexKey, SealedRef};
use taipan_engine::point::PointTable;
use taipan_engine::registry::quarantine::{
    QuarantineHeader, QuarantineKind, QuarantineReader, QuarantineRecord, QuarantineWriter,
};
use taipan_engine::registry::{
    GroupEntry, GroupVerdict, LocalHead, NameEntry, PinChange, PinEntry,
};
use taipan_engine::snapshot::{Group, Snapshot, SnapshotChange, SnapshotId, SnapshotName};
use taipan_engine::timestamp::UnixMs;
use taipan_engine::volume::{Ack, OnLostCache, VolumeName, VolumeSettings};
use taipan_engine::wal::WalId;
use taipan_engine::wal::state::WalState;

/// Seeds of one target: name and bytes.
type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Whether these bytes are an object.
type Parses = fn(&[u8]) -> bool;

const VOLUME: VolumeId = VolumeId(0xABCD);

/// The seeds of every target that has objects of its own; those of `replay` are lists of changes.
pub(crate) fn all() -> [(&'static str, Seeds); 11] {
    [
        ("replay", replays()),
        ("chunk", chunks()),
        ("manifest", manifests()),
        ("part", parts()),
        ("local_head", local_heads()),
        ("name_entry", name_entries()),
        ("pin_entry", pin_entries()),
        ("group_entry", group_entries()),
        ("wal_state", wal_states()),
        ("quarantine", quarantines()),
        ("increment", increments()),
    ]
}

/// Whether bytes are whole, for every target whose inputs are.
pub(crate) fn parsers() -> [(&'static str, Parses); 10] {
    [
        ("chunk", |b| ChunkView::parse(b).is_ok()),
        ("manifest", |b| Manifest::decode(b).is_ok()),
        ("part", |b| IndexPart::decode(b).is_ok()),
        ("local_head", |b| LocalHead::decode(b).is_ok()),
        ("name_entry", |b| NameEntry::decode(b).is_ok()),
        ("pin_entry", |b| PinEntry::decode(b).is_ok()),
        ("group_entry", |b| GroupEntry::decode(b).is_ok()),
        ("wal_state", |b| WalState::decode(b).is_some()),
        ("quarantine", |b| whole_quarantine(b)),
        ("increment", |b| whole_increment(b)),
    ]
}

/// Changes to one byte each, checksums put right: (page among the telling ones, place, region?,
/// new byte). See `taipan_engine::wal::fuzz`.
fn replays() -> Seeds {
    let change = |page: u8, place: u8, in_region: bool, byte: u8| {
        vec![7, page, place, 0, u8::from(in_region), byte]
    };
    // The same in a log that ended in order.
    let ended = |page: u8, place: u8, byte: u8| vec![15, page, place, 0, 0, byte];
    vec![
        ("ended", vec![15]),
        ("ended-next-lsn", ended(1, 80, 1)),
        ("ended-last-lsn", ended(1, 88, 7)),
        ("ended-generation", ended(1, 104, 0)),
        ("ended-chain", ended(1, 112, 1)),
        ("ended-not", ended(1, 116, 0)),
        ("ended-durable", ended(1, 64, 3)),
        ("ended-released", ended(1, 72, 4)),
        ("ended-incarnation", ended(1, 24, 0)),
        ("ended-first-batch", ended(2, 40, 2)),
        ("near-head-released", change(1, 72, false, 2)),
        ("near-head-segments", change(0, 15, false, 0x7F)),
        ("near-batch-payload", change(3, 12, false, 9)),
        ("near-batch-number", change(3, 40, false, 7)),
        ("near-batch-generation", change(2, 48, false, 9)),
        ("near-batch-incarnation", change(3, 24, false, 3)),
        ("near-record-count", change(2, 128 + 32, false, 3)),
        ("near-record-lsn", change(3, 128 + 16, false, 1)),
        ("near-region-durable", change(0, 128, true, 1)),
        ("near-region-live", change(1, 4 * 32 + 16, true, 1)),
        ("near-region-record", change(4, 128 + 36, true, 2)),
        ("near-region-span", change(1, 3 * 32 + 8, true, 0xFF)),
    ]
}

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
        random: 0xBEEF + sequence,
    }
}

fn zero(start: u64, count: u64) -> ZeroRun {
    ZeroRun::new(BlockNum(start), count)
}

/// A chunk of these blocks, each filled with the low byte of its number.
fn built(sequence: u64, block_size: BlockSize, blocks: &[u64], zeros: &[ZeroRun]) -> Vec<u8> {
    let spec = ChunkSpec {
        key: chunk_key(sequence),
        block_size,
        epoch: Epoch(9),
        salt: [7; 16],
    };
    let numbers: Vec<BlockNum> = blocks.iter().copied().map(BlockNum).collect();
    let mut builder = ChunkBuilder::new(&spec, &numbers, zeros).expect("a plan by the rules");
    for &block in blocks {
        let bytes = vec![block as u8; block_size.bytes()];
        let crc = crc32c::crc32c(&bytes);
        builder.push(&bytes, crc).expect("a slot is left");
    }
    builder.finish().expect("every slot is filled").0.to_vec()
}

fn head_of(mut chunk: Vec<u8>) -> Vec<u8> {
    let head = ChunkView::head_len(&chunk).expect("a chunk");
    chunk.truncate(head);
    chunk
}

fn chunks() -> Seeds {
    let scattered: Vec<u64> = (0..60).map(|n| n * n * 3).collect();
    let sequential: Vec<u64> = (40_000..42_000).collect();
    let holes: Vec<ZeroRun> = (0..40).map(|n| zero(n * 100, 60)).collect();
    let sparing = ZeroRun {
        spared: ShardSet(0x8006),
        ..zero(16, 1 << 30)
    };
    let last = taipan_engine::chunk::BLOCK_NUM_END - 1;
    let min = BlockSize::MIN;
    vec![
        ("data-and-zeros", built(1, min, &[5, 6, 70], &[zero(8, 3)])),
        ("only-zeros", built(2, min, &[], &[zero(0, last + 1)])),
        ("zero-runs", built(3, min, &[], &holes)),
        (
            "sparing-zeros",
            built(7, min, &[17, 18], &[zero(3, 2), sparing]),
        ),
        (
            "last-block",
            head_of(built(4, BlockSize::MAX, &[last], &[])),
        ),
        ("scattered-head", head_of(built(5, min, &scattered, &[]))),
        ("sequential-head", head_of(built(6, min, &sequential, &[]))),
    ]
}

fn chunk_ref(sequence: u64, slots: u32) -> ChunkRef {
    ChunkRef {
        key: chunk_key(sequence),
        head_bytes: 144,
        slots,
        bytes: 144 + u64::from(slots) * 4104,
    }
}

fn first_manifest() -> Manifest {
    let name = VolumeName::parse("tenant/münchen 1").expect("a valid name");
    Manifest::first(
        VOLUME,
        name,
        VolumeSettings::with_size(1 << 30),
        WriterToken(5),
    )
}

/// A manifest of a volume that keeps points in time.
fn keeping_points() -> Manifest {
    let mut manifest = first_manifest().opened_by(WriterToken(6));
    let settings = VolumeSettings {
        pitr_window_seconds: 86_400,
        ..manifest.settings.clone()
    };
    manifest.configure(settings, UnixMs(1_790_000_000_000));
    manifest
}

fn snapshot(name: &str, manifest: &Manifest) -> Snapshot {
    Snapshot {
        id: SnapshotId(name.len() as u64),
        name: SnapshotName::parse(name).expect("a valid name"),
        manifest: manifest.number,
        generation: manifest.generation,
        sequence: 9,
        epoch: manifest.epoch,
        taken_ms: 1_790_000_000_000,
        group: None,
    }
}

fn pin_entries() -> Seeds {
    let entry = |number, change| {
        let entry = PinEntry::new(number, VOLUME, SnapshotId(u64::MAX), change);
        entry.encode().to_vec()
    };
    vec![
        ("pinned", entry(1, PinChange::Pinned(VolumeId(0)))),
        ("released", entry(2, PinChange::Released(VOLUME))),
        ("closed", entry(u64::MAX, PinChange::Closed)),
    ]
}

fn group(volumes: u64) -> Group {
    let volumes = (0..volumes).map(|n| VolumeId(VOLUME.0 + n)).collect();
    Group::of(SnapshotId(7), volumes).expect("a group")
}

fn group_entries() -> Seeds {
    let entry = |name, volumes, verdict| {
        let name = SnapshotName::parse(name).expect("a valid name");
        GroupEntry::new(name, &group(volumes), verdict)
            .encode()
            .to_vec()
    };
    vec![
        ("complete", entry("daily", 2, GroupVerdict::Complete)),
        ("given-up", entry("daily", 3, GroupVerdict::GivenUp)),
        (
            "largest",
            entry("zweite Schüssel", 64, GroupVerdict::Complete),
        ),
    ]
}

fn manifests() -> Seeds {
    let first = first_manifest();
    let opened = first.opened_by(WriterToken(6));
    let commit = Manifest {
        epoch: Epoch(3),
        added: (0..5).map(|n| chunk_ref(n, 3)).collect(),
        ..opened.successor(ManifestKind::Commit)
    };
    let checkpoint = Manifest {
        epoch: Epoch(4),
        condemned: vec![
            SealedRef::Chunk(chunk_key(0)),
            SealedRef::Index(index_key(1)),
        ],
        dropped: vec![SealedRef::Chunk(chunk_key(9))],
        checkpoint: Some(part_ref(index_key(2), b"a part")),
        ..commit.successor(ManifestKind::Commit)
    };
    let mut configured = checkpoint.successor(ManifestKind::Configured);
    configured.settings.ack = Ack::Durable;
    configured.settings.on_lost_cache = OnLostCache::Refuse;
    let mut taken = commit.successor(ManifestKind::Commit);
    let daily = snapshot("daily", &taken);
    let mut twin = snapshot("zweite Schüssel", &taken);
    twin.group = Some(group(3));
    taken.snapshots = [&daily, &twin]
        .map(|s| SnapshotChange::Taken(s.clone()))
        .to_vec();
    let mut deleted = taken.successor(ManifestKind::Configured);
    deleted.snapshots = vec![SnapshotChange::Deleted(daily)];
    let tombstone = configured.successor(ManifestKind::Tombstone);
    vec![
        ("created", first.encode().to_vec()),
        ("opened", opened.encode().to_vec()),
        ("commit", commit.encode().to_vec()),
        ("checkpoint", checkpoint.encode().to_vec()),
        ("configured", configured.encode().to_vec()),
        ("snapshots-taken", taken.encode().to_vec()),
        ("snapshot-deleted", deleted.encode().to_vec()),
        ("points-kept", keeping_points().encode().to_vec()),
        ("tombstone", tombstone.encode().to_vec()),
    ]
}

fn leaf(entries: impl Iterator<Item = (u16, u32, u32)>) -> Option<Leaf> {
    let entry = |(index, chunk, slot)| {
        let chunk = ChunkOrdinal(chunk);
        (index, ChunkLoc { chunk, slot })
    };
    Leaf::build(&entries.map(entry).collect::<Vec<_>>())
}

/// A part with a leaf of every kind and, on request, a root.
fn mixed_part(root: Option<RootPart>) -> IndexPart {
    let shard = |index| ShardId::new(index).expect("a shard");
    let runs = leaf((10..200).map(|i| (i, 1, 2 * u32::from(i))));
    let sparse = leaf((0..20).map(|i| (i * 190, u32::from(i % 3), u32::from(i * 7 % 31))));
    let dense = leaf((0..900).map(|i| (i * 4, u32::from(i % 3), u32::from(i * 7 % 397))));
    IndexPart {
        key: index_key(3),
        manifest: ManifestNum(17),
        leaves: vec![
            (shard(0), LeafKey(0), runs),
            (shard(9), LeafKey(6), sparse),
            (shard(9), LeafKey(7), None),
            (shard(15), LeafKey((1 << 18) - 1), dense),
        ],
        chunks: vec![
            (ChunkOrdinal(0), Some(chunk_ref(1, 1000))),
            (ChunkOrdinal(1), Some(chunk_ref(2, 1000))),
            (ChunkOrdinal(2), Some(chunk_ref(3, 1000))),
            (ChunkOrdinal(5), None),
        ],
        root,
    }
}

/// The whole checkpoint of a small volume.
fn checkpoint_part() -> IndexPart {
    let object = built(8, BlockSize::MIN, &[5, 6, 7, 70, 900], &[zero(8, 3)]);
    let view = ChunkView::parse(&object).expect("a chunk");
    let mut base = VolumeBase::new();
    base.apply(&[AddedChunk {
        reference: view.reference(),
        runs: view.runs,
        zeros: view.zeros,
    }]);
    let plan = base.checkpoint_plan(true, 1 << 20);
    let root = RootPart::default();
    base.checkpoint_part(index_key(4), ManifestNum(3), &plan[0], Some(root))
}

fn parts() -> Seeds {
    let root = RootPart {
        parts: vec![part_ref(index_key(1), b"an older part")],
        condemned: vec![
            SealedRef::Chunk(chunk_key(1)),
            SealedRef::Index(index_key(2)),
        ],
        ..RootPart::default()
    };
    let keeping = RootPart {
        retained: vec![(index_key(2), ManifestNum(7))],
        snapshots: vec![snapshot("daily", &first_manifest())],
        ..root.clone()
    };
    let mut points = PointTable::default();
    points.follow(&keeping_points()).expect("a first point");
    let pointed = RootPart {
        points,
        ..keeping.clone()
    };
    vec![
        ("pointed-root", mixed_part(Some(pointed)).encode().to_vec()),
        ("keeping-root", mixed_part(Some(keeping)).encode().to_vec()),
        ("checkpoint", checkpoint_part().encode().to_vec()),
        ("mixed", mixed_part(None).encode().to_vec()),
        ("mixed-root", mixed_part(Some(root)).encode().to_vec()),
    ]
}

fn local_heads() -> Seeds {
    let first = first_manifest();
    let unknown = LocalHead::unknown(&first);
    let mut intended = unknown.clone();
    intended.intend(&first, WriterToken(6), Epoch(3));
    let opened = first.opened_by(WriterToken(6));
    let mut open = intended.clone();
    open.advance(&opened);
    open.clean = false;
    let mut fenced = open.clone();
    let foreign = opened.opened_by(WriterToken(77)).opened_by(WriterToken(78));
    fenced.intend(&foreign, WriterToken(8), Epoch(30));
    fenced.lost_cache = true;
    let mut copied = fenced.clone();
    copied.quarantine_done();
    vec![
        ("unknown", unknown.encode()),
        ("intended", intended.encode()),
        ("open", open.encode()),
        ("fenced", fenced.encode()),
        ("copied", copied.encode()),
    ]
}

fn name_entries() -> Seeds {
    let name = |text: &str| VolumeName::parse(text).expect("a valid name");
    let entry = |number, text, volume| NameEntry::new(number, name(text), volume).encode().to_vec();
    vec![
        ("bound", entry(1, "tenant/münchen 1", Some(VOLUME))),
        ("freed", entry(2, "v", None)),
        (
            "longest",
            entry(u64::MAX, &"ü".repeat(127), Some(VolumeId(0))),
        ),
    ]
}

fn wal_states() -> Seeds {
    let state = |incarnation, segment_bytes, segments| {
        let wal = WalId(0x0102_0304_0506_0708);
        let incarnation = Incarnation(incarnation);
        let state = WalState {
            wal,
            incarnation,
            segment_bytes,
            segments,
        };
        state.encode().to_vec()
    };
    vec![
        ("small", state(0, 512 << 10, 6)),
        ("usual", state(9, 8 << 20, 32)),
        ("impossible", state(1, u64::MAX - 4095, u32::MAX)),
    ]
}

fn quarantines() -> Seeds {
    let header = QuarantineHeader {
        volume: VolumeId(0xAB),
        name: VolumeName::parse("v").unwrap(),
        block_size_bytes: 4096,
        generation: Generation(3),
        head: ManifestNum(9),
        after: Epoch(30),
        through: Epoch(50),
        since_ms: 1000,
        until_ms: 8000,
    };
    let record = |kind, count, payload| QuarantineRecord {
        kind,
        shard: 5,
        damaged: false,
        epoch: Epoch(31),
        lsn: Lsn(7),
        start: 2,
        count,
        payload,
    };
    let file = |records: &[QuarantineRecord]| {
        let mut writer = QuarantineWriter::new(Vec::new(), &header).unwrap();
        records.iter().for_each(|r| writer.add(r).unwrap());
        writer.finish().unwrap().0
    };
    let data = record(QuarantineKind::Data, 1, vec![7; 4096]);
    let mark = record(QuarantineKind::Trim, 1 << 40, Vec::new());
    let mut cut = file(std::slice::from_ref(&mark));
    cut.truncate(cut.len() - 48);
    vec![
        ("empty", file(&[])),
        ("data", file(&[data, mark])),
        ("cut", cut),
    ]
}

fn increments() -> Seeds {
    let point = |id: u64, name: &str| Point {
        snapshot: Some((SnapshotId(id), SnapshotName::parse(name).unwrap())),
        manifest: ManifestNum(id),
        size_bytes: 1 << 20,
    };
    let header = IncrementHeader {
        volume: VOLUME,
        name: VolumeName::parse("v").unwrap(),
        from: point(3, "mon"),
        to: point(5, "tue"),
    };
    let file = |changes: &[Change]| {
        let mut writer = IncrementWriter::new(Vec::new(), &header).unwrap();
        changes
            .iter()
            .for_each(|change| writer.add(change).unwrap());
        writer.finish().unwrap().0
    };
    let data = |offset, byte| Change::Data {
        offset,
        data: vec![byte; 512],
    };
    let zeros = Change::Zeros {
        offset: 4096,
        len: 1 << 16,
    };
    let mut cut = file(&[data(0, 7)]);
    cut.truncate(cut.len() - 32);
    vec![
        ("empty", file(&[])),
        (
            "changes",
            file(&[data(0, 7), zeros, data((1 << 20) - 512, 9)]),
        ),
        ("cut", cut),
    ]
}

fn whole_increment(bytes: &[u8]) -> bool {
    let Ok(mut reader) = IncrementReader::new(bytes) else {
        return false;
    };
    loop {
        match reader.next_change() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn whole_quarantine(bytes: &[u8]) -> bool {
    let Ok(mut reader) = QuarantineReader::new(bytes) else {
        return false;
    };
    loop {
        match reader.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

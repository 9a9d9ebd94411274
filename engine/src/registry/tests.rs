//! Tests of the registry: every backend operation failed or its response lost, then repeated or
//! reopened; races of creators and of writers; late puts; damage.

use futures::executor::block_on;
use futures::future::{FutureExt, join};

use super::*;
use crate::backend::{Fault, FaultRule, MemBackend, Operation};
use crate::identity::{Epoch, Generation, ManifestNum};
use crate::manifest::CheckpointRef;
use crate::object::{IndexKey, ObjectKey};
use crate::timestamp::UnixMs;

mod stale;

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

fn seed(n: u64) -> VolumeSeed {
    VolumeSeed {
        id: VolumeId(n),
        token: WriterToken(n * 1000),
    }
}

fn settings() -> VolumeSettings {
    VolumeSettings::with_size(1 << 30)
}

fn create(backend: &MemBackend, n: u64, text: &str) -> Result<Manifest> {
    block_on(create_volume(backend, seed(n), &name(text), &settings()))
}

fn listed(backend: &MemBackend) -> Vec<(String, u64)> {
    let listing = block_on(list_volumes(backend)).unwrap();
    assert!(listing.problems.is_empty(), "{:?}", listing.problems);
    let volumes = listing.volumes.into_iter();
    volumes.map(|v| (v.name.to_string(), v.id.0)).collect()
}

const FAULTS: [Fault; 2] = [
    Fault::FailBefore(ErrorKind::Transient),
    Fault::FailAfter(ErrorKind::Transient),
];

/// A machine: its own local records.
struct Machine {
    _dir: tempfile::TempDir,
    heads: LocalHeads,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let heads = LocalHeads::open(&dir.path().join("volumes")).unwrap();
        Self { _dir: dir, heads }
    }

    fn open(&self, backend: &MemBackend, n: u64, stamped: u64) -> Result<OpenedVolume> {
        let opening = open_for_writing(backend, &self.heads, VolumeId(n), Epoch(stamped));
        let mut opened = block_on(opening)?;
        begin_serving(&self.heads, &mut opened.local, Epoch(stamped + 1))?;
        Ok(opened)
    }

    /// Opens as a start does: only what is its own.
    fn open_own(&self, backend: &MemBackend, n: u64, stamped: u64) -> Result<Opening> {
        block_on(open_own(backend, &self.heads, VolumeId(n), Epoch(stamped)))
    }

    /// Commits an empty cut after `head`, as the committer would.
    fn commit(&self, backend: &MemBackend, head: &Manifest, epoch: u64) -> Appended {
        let next = Manifest {
            epoch: Epoch(epoch),
            ..head.successor(ManifestKind::Commit)
        };
        block_on(append(backend, &next)).unwrap()
    }
}

fn ours(appended: Appended) -> Manifest {
    match appended {
        Appended::Ours(manifest) => *manifest,
        Appended::Foreign(other) => panic!("fenced by generation {}", other.generation),
    }
}

#[test]
fn volumes_are_created_listed_and_names_are_unique() {
    let backend = MemBackend::new();
    create(&backend, 1, "vol0").unwrap();
    create(&backend, 2, "tenant/ü").unwrap();
    assert_eq!(
        listed(&backend),
        [("tenant/ü".into(), 2), ("vol0".into(), 1)]
    );
    let taken = create(&backend, 3, "vol0").unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    // The same creation again is the same volume.
    assert_eq!(create(&backend, 1, "vol0").unwrap().volume, VolumeId(1));
    assert_eq!(
        block_on(resolve_name(&backend, &name("vol0"))).unwrap(),
        Some(VolumeId(1))
    );
    assert_eq!(
        block_on(resolve_name(&backend, &name("none"))).unwrap(),
        None
    );
    let bad = VolumeSettings::with_size(1000);
    let refused = block_on(create_volume(&backend, seed(9), &name("x"), &bad));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_creation_that_fails_anywhere_can_be_repeated() {
    for fault in FAULTS {
        for n in 0..12 {
            let backend = MemBackend::new();
            backend.script(FaultRule::nth(n, fault));
            let first = create(&backend, 1, "vol0");
            backend.clear_script();
            // Whatever it left, a listing works and shows the volume wholly or not at all.
            let seen = listed(&backend);
            if first.is_ok() {
                assert_eq!(seen, [("vol0".into(), 1)], "{fault:?} of operation {n}");
            }
            create(&backend, 1, "vol0").unwrap();
            assert_eq!(listed(&backend), [("vol0".into(), 1)]);
            let head = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
            assert_eq!(head.kind, ManifestKind::Created);
            assert!(create(&backend, 2, "vol0").is_err());
        }
    }
}

#[test]
fn an_abandoned_creation_does_not_hold_the_name_without_a_volume() {
    for fault in FAULTS {
        for n in 0..12 {
            let backend = MemBackend::new();
            backend.script(FaultRule::nth(n, fault));
            let first = create(&backend, 1, "vol0");
            backend.clear_script();
            // The process died; another creation has another seed.
            let holder = match (first, create(&backend, 2, "vol0")) {
                (Err(_), Ok(_)) => 2,
                (_, Err(e)) => {
                    assert_eq!(e.kind(), ErrorKind::AlreadyExists);
                    1
                }
                (Ok(_), Ok(_)) => panic!("two volumes of one name"),
            };
            assert_eq!(listed(&backend), [("vol0".into(), holder)]);
            block_on(read_head(&backend, VolumeId(holder), None)).unwrap();
        }
    }
}

#[test]
fn of_two_racing_creators_one_wins() {
    let backend = MemBackend::new();
    // The first one's put of the name hangs while the second one runs through.
    backend.script(FaultRule::once(
        Operation::PutIfAbsent,
        "v1/names/",
        Fault::Hold,
    ));
    let (vol0, settings) = (name("vol0"), settings());
    let mut slow = Box::pin(create_volume(&backend, seed(1), &vol0, &settings));
    assert!((&mut slow).now_or_never().is_none());
    create(&backend, 2, "vol0").unwrap();
    assert!(backend.release_next());
    assert_eq!(block_on(slow).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(listed(&backend), [("vol0".into(), 2)]);
    let orphan = block_on(read_head(&backend, VolumeId(1), None));
    assert_eq!(
        orphan.unwrap_err().kind(),
        ErrorKind::NotFound,
        "it cleaned up"
    );
}

#[test]
fn a_volume_is_opened_grown_and_deleted() {
    let backend = MemBackend::new();
    let machine = Machine::new();
    create(&backend, 1, "vol0").unwrap();
    let opened = machine.open(&backend, 1, 5).unwrap();
    let head = opened.history.head().clone();
    assert_eq!(
        (head.number, head.generation),
        (ManifestNum(2), Generation(1))
    );
    assert_eq!(opened.local.head, ManifestNum(2));
    assert!(opened.was_clean && !opened.local.clean);
    assert_eq!(machine.heads.load(VolumeId(1)).unwrap(), Some(opened.local));

    let head = block_on(grow(&backend, &head, 2 << 30)).unwrap();
    assert_eq!(head.settings.size_bytes, 2 << 30);
    let shrunk = block_on(grow(&backend, &head, 1 << 30)).unwrap_err();
    assert_eq!(shrunk.kind(), ErrorKind::Invalid);
    let blocks = VolumeSettings {
        block_size_bytes: 8192,
        ..head.settings
    };
    assert!(block_on(configure(&backend, &head, &blocks, UnixMs(0))).is_err());

    let tombstone = block_on(delete_volume(&backend, &head)).unwrap();
    assert!(listed(&backend).is_empty());
    block_on(delete_volume(&backend, &tombstone)).unwrap();
    let gone = machine.open(&backend, 1, 5).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    create(&backend, 2, "vol0").unwrap();
    // The old deletion, repeated late, does not touch the new volume's name.
    block_on(delete_volume(&backend, &tombstone)).unwrap();
    assert_eq!(listed(&backend), [("vol0".into(), 2)]);
}

#[test]
fn growth_that_fails_anywhere_can_be_repeated() {
    for fault in FAULTS {
        for n in 0..4 {
            let backend = MemBackend::new();
            let machine = Machine::new();
            create(&backend, 1, "vol0").unwrap();
            let head = machine.open(&backend, 1, 0).unwrap().history.head().clone();
            backend.script(FaultRule::nth(n, fault));
            let first = block_on(grow(&backend, &head, 2 << 30));
            backend.clear_script();
            let grown = match first {
                Ok(grown) => grown,
                Err(_) => block_on(grow(&backend, &head, 2 << 30)).unwrap(),
            };
            let head = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
            assert_eq!(head, grown, "{fault:?} of operation {n}");
            assert_eq!(
                (head.number, head.settings.size_bytes),
                (ManifestNum(3), 2 << 30)
            );
        }
    }
}

#[test]
fn deletion_that_fails_anywhere_is_finished_by_repeating_or_by_the_next_creation() {
    for fault in FAULTS {
        for n in 0..8 {
            for repeat in [true, false] {
                let backend = MemBackend::new();
                let machine = Machine::new();
                create(&backend, 1, "vol0").unwrap();
                let head = machine.open(&backend, 1, 0).unwrap().history.head().clone();
                backend.script(FaultRule::nth(n, fault));
                let first = block_on(delete_volume(&backend, &head));
                backend.clear_script();
                let now = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
                if repeat {
                    block_on(delete_volume(&backend, &now)).unwrap();
                    assert!(listed(&backend).is_empty(), "{fault:?} of operation {n}");
                } else if now.kind != ManifestKind::Tombstone {
                    assert!(first.is_err());
                    assert_eq!(listed(&backend), [("vol0".into(), 1)]);
                    continue;
                }
                create(&backend, 2, "vol0").unwrap();
                assert_eq!(listed(&backend), [("vol0".into(), 2)]);
            }
        }
    }
}

#[test]
fn an_opening_that_fails_anywhere_keeps_the_own_wal() {
    for fault in FAULTS {
        for n in 0..8 {
            let backend = MemBackend::new();
            let machine = Machine::new();
            create(&backend, 1, "vol0").unwrap();
            let head = machine.open(&backend, 1, 0).unwrap().history.head().clone();
            ours(machine.commit(&backend, &head, 40));
            // Restart: the record says epoch 0, the head 40, the WAL goes up to 50.
            backend.script(FaultRule::nth(n, fault));
            let first = machine.open(&backend, 1, 50);
            backend.clear_script();
            let opened = match first {
                Ok(opened) => opened,
                Err(_) => machine.open(&backend, 1, 50).unwrap(),
            };
            let what = format!("{fault:?} of operation {n}");
            assert_eq!(opened.local.quarantine, None, "{what}");
            assert_eq!(opened.local.fate(Epoch(40)), RecordFate::Skip, "{what}");
            assert_eq!(opened.local.fate(Epoch(41)), RecordFate::Replay, "{what}");
            assert!(!opened.was_clean);
            let head = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
            assert_eq!(&head, opened.history.head(), "{what}");
        }
    }
}

#[test]
fn a_takeover_fences_the_older_writer_and_quarantines_its_tail() {
    let backend = MemBackend::new();
    let (old, new) = (Machine::new(), Machine::new());
    create(&backend, 1, "vol0").unwrap();
    let head = old.open(&backend, 1, 0).unwrap().history.head().clone();
    let head = ours(old.commit(&backend, &head, 40));
    let mut local = old.heads.load(VolumeId(1)).unwrap().unwrap();
    local.advance(&head);
    old.heads.save(&local).unwrap();

    let opened = new.open(&backend, 1, 7).unwrap();
    assert_eq!(opened.history.head().generation, Generation(2));
    let theirs = ours(new.commit(&backend, opened.history.head(), 500));
    // The old writer, paused for any time, can neither commit nor grow nor delete.
    let Appended::Foreign(other) = old.commit(&backend, &head, 50) else {
        panic!("the old writer committed");
    };
    assert_eq!(other.generation, Generation(2));
    let fenced = block_on(grow(&backend, &head, 2 << 30)).unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    let fenced = block_on(delete_volume(&backend, &head)).unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced);

    // Started again it takes the volume back, but its uncommitted tail is not merged.
    let back = old.open(&backend, 1, 50).unwrap();
    assert_eq!(back.history.head().generation, Generation(3));
    assert_eq!(back.history.head().epoch, theirs.epoch);
    assert_eq!(back.local.fate(Epoch(40)), RecordFate::Skip);
    assert_eq!(back.local.fate(Epoch(41)), RecordFate::Quarantine);
    assert_eq!(back.local.fate(Epoch(501)), RecordFate::Replay);
    assert!(matches!(
        new.commit(&backend, &theirs, 501),
        Appended::Foreign(_)
    ));
}

fn opened(opening: Result<Opening>) -> OpenedVolume {
    match opening.unwrap() {
        Opening::Opened(opened) => *opened,
        Opening::Elsewhere(head) => panic!("generation {} owns it", head.generation),
    }
}

fn elsewhere(opening: Result<Opening>) -> Manifest {
    match opening.unwrap() {
        Opening::Opened(_) => panic!("it was taken"),
        Opening::Elsewhere(head) => *head,
    }
}

#[test]
fn a_start_takes_back_its_own_and_never_another_writers_volume() {
    let backend = MemBackend::new();
    let (old, new) = (Machine::new(), Machine::new());
    create(&backend, 1, "vol0").unwrap();
    // Nobody opened it yet: anybody may.
    let head = opened(old.open_own(&backend, 1, 0)).history.head().clone();
    ours(old.commit(&backend, &head, 40));
    let again = opened(old.open_own(&backend, 1, 50));
    assert_eq!(again.history.head().generation, Generation(2));

    // Without a record it is another's; asking changes nothing anywhere.
    let before = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
    assert_eq!(elsewhere(new.open_own(&backend, 1, 7)), before);
    assert_eq!(new.heads.load(VolumeId(1)).unwrap(), None);
    let after = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
    assert_eq!(after, before);

    // Taken over on purpose, it is not stolen back by a restart of the old one.
    let taken = new.open(&backend, 1, 7).unwrap();
    assert_eq!(taken.history.head().generation, Generation(3));
    let record = old.heads.load(VolumeId(1)).unwrap();
    for _ in 0..2 {
        let head = elsewhere(old.open_own(&backend, 1, 60));
        assert_eq!(head.generation, Generation(3));
        assert_eq!(old.heads.load(VolumeId(1)).unwrap(), record);
    }
    assert!(matches!(
        new.commit(&backend, taken.history.head(), 500),
        Appended::Ours(_)
    ));
}

#[test]
fn a_takeover_without_an_answer_is_carried_on_by_the_next_start() {
    for fault in FAULTS {
        let backend = MemBackend::new();
        let (old, new) = (Machine::new(), Machine::new());
        create(&backend, 1, "vol0").unwrap();
        old.open(&backend, 1, 0).unwrap();
        backend.script(FaultRule::once(Operation::PutIfAbsent, "manifests", fault));
        backend.script(FaultRule {
            operation: Some(Operation::Get),
            key_contains: "0000000000000003".to_owned(),
            skip: 0,
            times: 1,
            fault: Fault::FailBefore(ErrorKind::Transient),
        });
        assert!(new.open(&backend, 1, 7).is_err());
        backend.clear_script();
        // Whether or not it was stored, it was meant.
        let opened = opened(new.open_own(&backend, 1, 7));
        assert!(opened.history.head().generation > Generation(1));
        assert_eq!(opened.local.fate(Epoch(7)), RecordFate::Quarantine);
    }
}

#[test]
fn a_data_directory_restored_from_an_old_copy_merges_nothing() {
    let backend = MemBackend::new();
    let (machine, copy) = (Machine::new(), Machine::new());
    create(&backend, 1, "vol0").unwrap();
    let head = machine.open(&backend, 1, 0).unwrap().history.head().clone();
    // The copy is made here: its log goes up to epoch 30, of which nothing is committed.
    let record = machine.heads.load(VolumeId(1)).unwrap().unwrap();
    copy.heads.save(&record).unwrap();
    // The same run goes on and commits everything that the copy has.
    ours(machine.commit(&backend, &head, 40));
    let local = opened(copy.open_own(&backend, 1, 30)).local;
    assert_eq!(local.fate(Epoch(30)), RecordFate::Skip);
    assert_eq!(local.fate(Epoch(41)), RecordFate::Replay);

    // The same copy, restored once more after that: the volume belongs to a later generation.
    copy.heads.save(&record).unwrap();
    assert_eq!(elsewhere(copy.open_own(&backend, 1, 30)).epoch, Epoch(40));
    let mut local = copy.heads.load(VolumeId(1)).unwrap().unwrap();
    local.disown(Epoch(30));
    assert_eq!(local.fate(Epoch(30)), RecordFate::Quarantine);
    copy.heads.save(&local).unwrap();
    // Nor when it is taken over on purpose then.
    let local = copy.open(&backend, 1, 30).unwrap().local;
    assert_eq!(local.fate(Epoch(30)), RecordFate::Quarantine);
}

#[test]
fn a_volume_counts_as_closed_in_order_until_it_is_served() {
    let backend = MemBackend::new();
    let machine = Machine::new();
    create(&backend, 1, "vol0").unwrap();
    // A crash between the opening and the first answer, as often as you like.
    for _ in 0..3 {
        assert!(opened(machine.open_own(&backend, 1, 0)).was_clean);
    }
    let mut local = opened(machine.open_own(&backend, 1, 0)).local;
    begin_serving(&machine.heads, &mut local, Epoch(1)).unwrap();
    assert!(!opened(machine.open_own(&backend, 1, 0)).was_clean);
}

#[test]
fn a_commit_that_lands_late_is_ours_and_its_epoch_counts() {
    let backend = MemBackend::new();
    let machine = Machine::new();
    create(&backend, 1, "vol0").unwrap();
    let head = machine.open(&backend, 1, 0).unwrap().history.head().clone();
    let cut = Manifest {
        epoch: Epoch(40),
        ..head.successor(ManifestKind::Commit)
    };
    backend.script(FaultRule::once(
        Operation::PutIfAbsent,
        "manifests",
        Fault::Hold,
    ));
    let mut hung = Box::pin(append(&backend, &cut));
    assert!((&mut hung).now_or_never().is_none());
    drop(hung);
    // The process died and is back; its takeover's put hangs too, and the old commit lands first.
    backend.script(FaultRule::once(
        Operation::PutIfAbsent,
        "manifests",
        Fault::Hold,
    ));
    let mut opening = Box::pin(open_for_writing(
        &backend,
        &machine.heads,
        VolumeId(1),
        Epoch(50),
    ));
    assert!((&mut opening).now_or_never().is_none());
    assert!(backend.release_next() && backend.release_next());
    let opened = block_on(opening).unwrap();
    assert_eq!(opened.history.head().number, ManifestNum(4));
    assert_eq!(opened.local.quarantine, None);
    assert_eq!(opened.local.fate(Epoch(40)), RecordFate::Skip);
    assert_eq!(opened.local.fate(Epoch(41)), RecordFate::Replay);
}

#[test]
fn of_two_racing_takeovers_both_end_with_different_generations() {
    let backend = MemBackend::new();
    let (one, two) = (Machine::new(), Machine::new());
    create(&backend, 1, "vol0").unwrap();
    backend.script(FaultRule::once(
        Operation::PutIfAbsent,
        "manifests",
        Fault::Hold,
    ));
    let id = VolumeId(1);
    let mut first = Box::pin(open_for_writing(&backend, &one.heads, id, Epoch(0)));
    assert!((&mut first).now_or_never().is_none());
    let second = two.open(&backend, 1, 0).unwrap();
    backend.release_next();
    let first = block_on(first).unwrap();
    assert_eq!(second.history.head().generation, Generation(1));
    assert_eq!(first.history.head().generation, Generation(2));
    assert!(matches!(
        two.commit(&backend, second.history.head(), 1),
        Appended::Foreign(_)
    ));
    let both = async {
        let one = open_for_writing(&backend, &one.heads, id, Epoch(0));
        let two = open_for_writing(&backend, &two.heads, id, Epoch(0));
        join(one, two).await
    };
    let (one, two) = block_on(both);
    let generation = |opened: Result<OpenedVolume>| opened.unwrap().history.head().generation;
    assert_ne!(generation(one), generation(two));
}

#[test]
fn the_head_is_found_among_many_with_few_requests() {
    let backend = MemBackend::new();
    create(&backend, 1, "vol0").unwrap();
    let mut head = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
    for n in 0..4321 {
        let mut next = head.successor(ManifestKind::Commit);
        if n % 100 == 0 {
            next.checkpoint = Some(CheckpointRef {
                key: IndexKey {
                    volume: VolumeId(1),
                    generation: Generation(0),
                    sequence: n,
                    random: 0,
                },
                bytes: 1,
                crc32c: 0,
            });
        }
        head = ours(block_on(append(&backend, &next)).unwrap());
    }
    for hint in [None, Some(1), Some(500), Some(4000), Some(4322)] {
        let before = backend.count(Operation::List);
        let found = block_on(read_head(&backend, VolumeId(1), hint.map(ManifestNum))).unwrap();
        assert_eq!(found, head, "hint {hint:?}");
        let lists = backend.count(Operation::List) - before;
        assert!(lists <= 30, "{lists} lists with hint {hint:?}");
    }
    // Nothing before the last checkpoint is read (nor ever removed).
    let history = block_on(read_history(&backend, VolumeId(1), None)).unwrap();
    assert!(history.manifests[0].checkpoint.is_some());
    let oldest = history.manifests[0].number.0;
    assert!(history.manifests.len() < 101);
    for number in 2..oldest {
        let key = ObjectKey::manifest(VolumeId(1), ManifestNum(number));
        block_on(backend.delete(&key)).unwrap();
    }
    assert_eq!(
        block_on(read_history(&backend, VolumeId(1), None)).unwrap(),
        history
    );
    let hint = Some(ManifestNum(4000));
    assert_eq!(
        block_on(read_history(&backend, VolumeId(1), hint)).unwrap(),
        history
    );
}

#[test]
fn damage_in_the_chain_is_reported_and_named() {
    let backend = MemBackend::new();
    let machine = Machine::new();
    create(&backend, 1, "vol0").unwrap();
    let head = machine.open(&backend, 1, 0).unwrap().history.head().clone();
    ours(machine.commit(&backend, &head, 40));
    let key = ObjectKey::manifest(VolumeId(1), ManifestNum(2));
    assert!(backend.rot(&key, 60));
    let error = machine.open(&backend, 1, 50).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(key.as_str()), "{error}");
    block_on(backend.delete(&key)).unwrap();
    let error = machine.open(&backend, 1, 50).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Corrupt,
        "a hole is damage: {error}"
    );
    // Another manifest's bytes under that name.
    let other = block_on(backend.get(&ObjectKey::manifest(VolumeId(1), ManifestNum(1))));
    block_on(backend.put(&key, other.unwrap())).unwrap();
    let error = machine.open(&backend, 1, 50).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_damaged_name_hides_no_other_volume() {
    let backend = MemBackend::new();
    create(&backend, 1, "a").unwrap();
    create(&backend, 2, "b").unwrap();
    assert!(backend.rot(&ObjectKey::name_entry(&name("a"), 1), 20));
    let foreign = ObjectKey::parse("v1/names/%FF/0000000000000001").unwrap();
    block_on(backend.put(&foreign, bytes::Bytes::new())).unwrap();
    let listing = block_on(list_volumes(&backend)).unwrap();
    assert_eq!(listing.volumes.len(), 1);
    assert_eq!(listing.volumes[0].id, VolumeId(2));
    assert_eq!(listing.problems.len(), 2);
    let error = create(&backend, 3, "a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "never taken for free");
}

#[test]
fn a_name_entry_has_golden_bytes() {
    let entry = NameEntry::new(2, name("t/v"), Some(VolumeId(0xAB)));
    let zeroed = r#"{"schema":1,"crc32c":0,"number":2,"name":"t/v","volume":"00000000000000ab"}"#;
    let crc = crc32c::crc32c(zeroed.as_bytes());
    let expected = zeroed.replace("\"crc32c\":0", &format!("\"crc32c\":{crc}"));
    assert_eq!(entry.encode(), expected.as_bytes());
    assert_eq!(NameEntry::decode(&entry.encode()).unwrap(), entry);
    for at in 0..expected.len() {
        let mut bad = expected.clone().into_bytes();
        bad[at] ^= 1;
        assert!(NameEntry::decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn many_volumes_are_listed_over_pages() {
    let backend = MemBackend::new();
    for n in 0..1500 {
        create(&backend, n + 1, &format!("v{n:04}")).unwrap();
    }
    let listing = block_on(list_volumes(&backend)).unwrap();
    assert_eq!(listing.volumes.len(), 1500);
    let ids: Vec<u64> = listing.volumes.iter().map(|v| v.id.0).collect();
    assert_eq!(ids, (1..=1500).collect::<Vec<u64>>());
}

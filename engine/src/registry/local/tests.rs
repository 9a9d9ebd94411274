//! Tests of the local head record: golden bytes, damage, and what replay may do with records.

use super::super::open::begin_serving;
use super::*;

const ID: VolumeId = VolumeId(0xAB);

fn manifest(number: u64, generation: u64, token: u64, epoch: u64) -> Manifest {
    let name = VolumeName::parse("v").unwrap();
    let first = Manifest::first(
        ID,
        name,
        VolumeSettings::with_size(1 << 20),
        WriterToken(token),
    );
    Manifest {
        number: ManifestNum(number),
        generation: Generation(generation),
        epoch: Epoch(epoch),
        ..first
    }
}

#[test]
fn golden_bytes() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.intend(&manifest(1, 0, 7, 0), WriterToken(8), Epoch(3));
    let crc = manifest(1, 0, 7, 0).crc();
    let text = String::from_utf8(local.encode()).unwrap();
    let file_crc = text.split("\"crc32c\": ").nth(1).unwrap();
    let file_crc = file_crc.split(',').next().unwrap();
    let expected = format!(
        r#"{{
  "schema": 1,
  "crc32c": {file_crc},
  "id": "00000000000000ab",
  "name": "v",
  "settings": {{
    "size_bytes": 1048576,
    "block_size_bytes": 4096,
    "chunk_size_bytes": 4194304,
    "ack": "memory",
    "on_lost_cache": "continue"
  }},
  "generation": 0,
  "token": 0,
  "head": 0,
  "head_crc": 0,
  "committed_epoch": 0,
  "clean": true,
  "lost_cache": false,
  "intents": [
    {{
      "generation": 1,
      "token": 8,
      "predecessor": 1,
      "predecessor_crc": {crc}
    }}
  ],
  "quarantine": null
}}
"#
    );
    assert_eq!(text, expected);
    let zeroed = text.replace(&format!("\"crc32c\": {file_crc},"), "\"crc32c\": 0,");
    assert_eq!(file_crc, crc32c::crc32c(zeroed.as_bytes()).to_string());
    assert_eq!(LocalHead::decode(text.as_bytes()).unwrap(), local);
}

#[test]
fn any_changed_value_is_noticed() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    let text = String::from_utf8(local.encode()).unwrap();
    for (from, to) in [
        ("\"head\": 5", "\"head\": 6"),
        ("\"committed_epoch\": 30", "\"committed_epoch\": 31"),
        ("\"schema\": 1", "\"schema\": 2"),
        ("\"clean\": true", "\"clean\": false"),
        ("\"clean\": true", "\"more\": 1, \"clean\": true"),
    ] {
        let bad = text.replace(from, to);
        assert_ne!(bad, text);
        let error = LocalHead::decode(bad.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{to}");
    }
    for len in 0..text.len() - 1 {
        assert!(LocalHead::decode(&text.as_bytes()[..len]).is_err());
    }
}

#[test]
fn values_that_no_writer_has_are_refused() {
    let mut good = LocalHead::unknown(&manifest(1, 0, 7, 0));
    good.intend(&manifest(1, 0, 7, 0), WriterToken(8), Epoch(3));
    assert_eq!(LocalHead::decode(&good.encode()).unwrap(), good);
    let changes: [fn(&mut LocalHead); 6] = [
        |head| head.settings.block_size_bytes = 0,
        |head| head.settings.size_bytes = u64::MAX,
        |head| head.intents = vec![head.intents[0]; INTENTS_MAX + 1],
        |head| head.intents[0].generation = Generation(u64::MAX),
        |head| head.committed_epoch = Epoch(u64::MAX),
        |head| {
            head.quarantine = Some(QuarantineRange {
                after: Epoch(0),
                through: Epoch(u64::MAX),
                copied: true,
            });
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        let error = LocalHead::decode(&bad.encode()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "change {number}");
    }
}

#[test]
fn a_lost_cache_is_remembered_until_an_operator_continues() {
    for policy in [
        OnLostCache::Continue,
        OnLostCache::ReadOnly,
        OnLostCache::Refuse,
    ] {
        let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
        local.settings.on_lost_cache = policy;
        assert_eq!(local.decide(), None, "nothing was lost");
        local.lost_cache = true;
        local.clean = false;
        local.close();
        assert!(
            local.clean && local.lost_cache,
            "an orderly stop decides nothing"
        );
        assert_eq!(local.decide(), Some(policy));
        assert_eq!(local.lost_cache, policy != OnLostCache::Continue);
    }
}

#[test]
fn a_process_begins_above_the_one_before_even_if_nothing_else_is_left_of_that() {
    let data = tempfile::tempdir().unwrap();
    let heads = LocalHeads::open(data.path()).unwrap();
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 3));
    let text = String::from_utf8(local.encode()).unwrap();
    assert!(!text.contains("stamped_from"), "as before the field was");
    begin_serving(&heads, &mut local, Epoch(100)).unwrap();
    let mut found = heads.load(ID).unwrap().unwrap();
    assert_eq!(found.begins_above(), Epoch(100));
    assert!(!found.clean);
    // Its records are judged as if nothing was stamped yet.
    assert_eq!(found.fate(Epoch(4)), RecordFate::Replay);
    assert_eq!(found.released_through(), found.judged_through());
    found.advance(&manifest(2, 1, 9, 200));
    assert_eq!(found.begins_above(), Epoch(200));
    begin_serving(&heads, &mut found, Epoch(150)).unwrap();
    assert_eq!(found.stamped_from, Epoch(150));
}

#[test]
fn what_a_clone_is_to_become_is_remembered() {
    let data = tempfile::tempdir().unwrap();
    let heads = LocalHeads::open(data.path()).unwrap();
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 3));
    let text = String::from_utf8(local.encode()).unwrap();
    assert!(!text.contains("flattening"), "as before the field was");
    local.flattening = true;
    local.advance(&manifest(2, 1, 9, 200));
    heads.save(&local).unwrap();
    assert!(heads.load(ID).unwrap().unwrap().flattening);
}

#[test]
fn records_are_saved_loaded_and_removed() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().join("volumes");
    let heads = LocalHeads::open(&dir).unwrap();
    assert!(heads.load(ID).unwrap().is_none());
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    heads.save(&local).unwrap();
    local.advance(&manifest(2, 1, 9, 4));
    heads.save(&local).unwrap();
    assert_eq!(heads.load(ID).unwrap(), Some(local.clone()));

    // A crash left half a record; another record is damaged, another is under a wrong name.
    fs::write(dir.join("00000000000000ab.tmp"), b"{").unwrap();
    fs::write(dir.join("0000000000000001.json"), b"{").unwrap();
    fs::write(dir.join("0000000000000002.json"), local.encode()).unwrap();
    fs::write(dir.join("notes.txt"), b"").unwrap();
    let heads = LocalHeads::open(&dir).unwrap();
    assert!(!dir.join("00000000000000ab.tmp").exists());
    let all = heads.load_all().unwrap();
    let kinds: Vec<_> = all
        .iter()
        .map(|(id, head)| (id.0, head.as_ref().err().map(Error::kind)))
        .collect();
    let corrupt = Some(ErrorKind::Corrupt);
    assert_eq!(kinds, [(1, corrupt), (2, corrupt), (0xAB, None)]);

    heads.remove(ID).unwrap();
    heads.remove(ID).unwrap();
    assert!(heads.load(ID).unwrap().is_none());
}

#[test]
fn a_save_that_fails_keeps_the_old_record() {
    let data = tempfile::tempdir().unwrap();
    let heads = LocalHeads::open(data.path()).unwrap();
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    heads.save(&local).unwrap();
    // A directory in place of the temporary file makes the write fail.
    fs::create_dir(data.path().join("00000000000000ab.tmp")).unwrap();
    local.clean = false;
    assert!(heads.save(&local).is_err());
    assert!(heads.load(ID).unwrap().unwrap().clean);
}

#[test]
fn the_own_lineage_is_replayed() {
    // Opened as generation 1, committed up to epoch 30, and the process died.
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    // The head may be ahead of the record: the commit at 6 was stored, the record was not.
    let head = manifest(6, 1, 8, 40);
    assert!(local.is_own(&head));
    local.intend(&head, WriterToken(9), Epoch(50));
    assert_eq!(local.fate(Epoch(40)), RecordFate::Skip);
    assert_eq!(local.fate(Epoch(41)), RecordFate::Replay);
    // The takeover's response was lost and the process died: either outcome is our own.
    assert!(local.is_own(&manifest(7, 2, 9, 40)));
    assert!(local.is_own(&head));
    // So is the outcome of the attempt before the last, if it lands late.
    local.intend(&head, WriterToken(10), Epoch(50));
    assert!(local.is_own(&manifest(7, 2, 9, 40)));
    assert!(local.is_own(&manifest(7, 2, 10, 40)));
    assert!(!local.is_own(&manifest(7, 2, 11, 40)));
    assert_eq!(local.fate(Epoch(41)), RecordFate::Replay);
}

#[test]
fn a_lost_lineage_is_quarantined_however_often_the_verdict_is_interrupted() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    // Another writer took over; its epochs are unrelated to ours (here: far above).
    let foreign = manifest(6, 2, 99, 1000);
    for _ in 0..3 {
        // Each time: intent saved, takeover not reached, process dies, starts again.
        local.intend(&foreign, WriterToken(9), Epoch(50));
        assert_eq!(local.fate(Epoch(30)), RecordFate::Skip);
        assert_eq!(local.fate(Epoch(31)), RecordFate::Quarantine);
        assert_eq!(local.fate(Epoch(50)), RecordFate::Quarantine);
    }
    local.advance(&manifest(7, 3, 9, 1000));
    assert_eq!(local.fate(Epoch(31)), RecordFate::Quarantine);
    // New records are stamped above both.
    assert_eq!(local.fate(Epoch(1001)), RecordFate::Replay);
    local.quarantine_done();
    assert_eq!(local.fate(Epoch(1001)), RecordFate::Replay);
    assert_eq!(local.fate(Epoch(31)), RecordFate::Skip);
}

#[test]
fn a_lost_lineage_stays_out_after_it_was_copied() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    // The other writer's epochs are below ours, whose segments are still in the WAL.
    local.intend(&manifest(6, 2, 99, 35), WriterToken(9), Epoch(50));
    local.advance(&manifest(7, 3, 9, 35));
    local.quarantine_done();
    assert_eq!(local.fate(Epoch(40)), RecordFate::Skip);
    assert_eq!(local.fate(Epoch(51)), RecordFate::Replay);
    // Lost again: only what came after is quarantined.
    local.intend(&manifest(9, 4, 98, 60), WriterToken(10), Epoch(80));
    assert_eq!(local.fate(Epoch(40)), RecordFate::Skip);
    assert_eq!(local.fate(Epoch(51)), RecordFate::Quarantine);
    assert_eq!(local.fate(Epoch(81)), RecordFate::Replay);
}

#[test]
fn a_second_loss_before_the_copy_widens_the_range() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    local.intend(&manifest(6, 2, 99, 35), WriterToken(9), Epoch(50));
    local.advance(&manifest(7, 3, 9, 35));
    local.intend(&manifest(9, 4, 98, 60), WriterToken(10), Epoch(80));
    assert_eq!(local.fate(Epoch(30)), RecordFate::Skip);
    assert_eq!(local.fate(Epoch(31)), RecordFate::Quarantine);
    assert_eq!(local.fate(Epoch(70)), RecordFate::Quarantine);
    assert_eq!(local.fate(Epoch(81)), RecordFate::Replay);
}

#[test]
fn without_a_record_nothing_is_merged_into_a_volume_that_others_wrote() {
    let head = manifest(6, 2, 99, 20);
    let mut local = LocalHead::unknown(&head);
    assert!(!local.is_own(&head));
    local.intend(&head, WriterToken(9), Epoch(50));
    assert_eq!(local.fate(Epoch(10)), RecordFate::Quarantine);
    assert_eq!(local.fate(Epoch(51)), RecordFate::Replay);
    // Nobody ever opened this one, so there can be no records of it.
    let fresh = manifest(1, 0, 7, 0);
    let mut local = LocalHead::unknown(&fresh);
    local.intend(&fresh, WriterToken(9), Epoch(50));
    assert_eq!(local.quarantine, None);
}

#[test]
fn what_is_disowned_is_never_own_again() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    local.intend(&manifest(5, 1, 8, 30), WriterToken(9), Epoch(40));
    local.disown(Epoch(50));
    for head in [manifest(5, 1, 8, 30), manifest(6, 2, 9, 30)] {
        assert!(!local.is_own(&head));
    }
    assert_eq!(local.fate(Epoch(30)), RecordFate::Skip);
    assert_eq!(local.fate(Epoch(31)), RecordFate::Quarantine);
    local.quarantine_done();
    // Found foreign at every further start: nothing is copied twice.
    let copied = local.clone();
    local.disown(Epoch(50));
    assert_eq!(local, copied);
    assert_eq!(local.fate(Epoch(50)), RecordFate::Skip);
}

/// The log may forget what was copied out, and with it how far its stamps went; the verdict stays.
#[test]
fn new_records_are_stamped_above_every_verdict() {
    let mut local = LocalHead::unknown(&manifest(1, 0, 7, 0));
    local.advance(&manifest(5, 1, 8, 30));
    local.disown(Epoch(50));
    assert_eq!(local.judged_through(), Epoch(50));
    assert_eq!(local.released_through(), Epoch(30), "not copied out yet");
    local.quarantine_done();
    local.intend(&manifest(6, 2, 9, 31), WriterToken(10), Epoch(0));
    local.advance(&manifest(7, 3, 10, 31));
    assert_eq!(local.judged_through(), Epoch(50));
    assert_eq!(local.released_through(), Epoch(50));
    assert_eq!(
        local.fate(local.judged_through().next()),
        RecordFate::Replay
    );
}

#[test]
fn intents_are_bounded() {
    let head = manifest(5, 1, 8, 30);
    let mut local = LocalHead::unknown(&head);
    local.advance(&head);
    for token in 0..100 {
        local.intend(&head, WriterToken(token), Epoch(50));
    }
    assert_eq!(local.intents.len(), INTENTS_MAX);
    assert!(local.is_own(&manifest(6, 2, 99, 30)));
}

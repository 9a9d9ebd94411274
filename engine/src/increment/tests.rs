//! Tests of incremental backups: golden bytes, every kind of damage.

use super::*;

fn header() -> IncrementHeader {
    let point = |id: u64, name: &str, manifest: u64| Point {
        snapshot: Some((SnapshotId(id), SnapshotName::parse(name).unwrap())),
        manifest: ManifestNum(manifest),
        size_bytes: 1 << 20,
    };
    IncrementHeader {
        volume: VolumeId(0xAB),
        name: VolumeName::parse("t/v").unwrap(),
        from: point(7, "mon", 3),
        to: point(9, "tue", 5),
    }
}

fn changes() -> Vec<Change> {
    vec![
        Change::Data {
            offset: 4096,
            data: vec![5; 4096],
        },
        Change::Zeros {
            offset: 8192,
            len: 1 << 16,
        },
        Change::Data {
            offset: (1 << 20) - 512,
            data: vec![6; 512],
        },
    ]
}

fn file_of(header: &IncrementHeader, changes: &[Change]) -> Vec<u8> {
    let mut writer = IncrementWriter::new(Vec::new(), header).unwrap();
    changes
        .iter()
        .for_each(|change| writer.add(change).unwrap());
    writer.finish().unwrap().0
}

fn read_all(bytes: &[u8]) -> Result<(IncrementHeader, Vec<Change>)> {
    let mut reader = IncrementReader::new(bytes)?;
    let mut changes = Vec::new();
    while let Some(change) = reader.next_change()? {
        changes.push(change);
    }
    assert_eq!(reader.next_change()?, None);
    Ok((reader.header().clone(), changes))
}

#[test]
fn golden_bytes() {
    let file = file_of(&header(), &changes()[..2]);
    let mut expected = b"TaipanIn\x01\x00\x03\x00\x03\x00\x03\x00".to_vec();
    for value in [0xAB_u64, 7, 3, 1 << 20, 9, 5, 1 << 20] {
        expected.extend_from_slice(&value.to_le_bytes());
    }
    expected.extend_from_slice(b"t/vmontue");
    let mut chain = crc32c::crc32c(&expected);
    expected.extend_from_slice(&chain.to_le_bytes());
    let mut record = |kind: u16, data: &[u8], offset: u64, len: u64, crc: u32| {
        let mut head = u32::from(kind).to_le_bytes().to_vec();
        head.extend_from_slice(&crc.to_le_bytes());
        head.extend_from_slice(&offset.to_le_bytes());
        head.extend_from_slice(&len.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        chain = crc32c::crc32c_append(chain, &head);
        head.extend_from_slice(&chain.to_le_bytes());
        expected.extend_from_slice(&head);
        expected.extend_from_slice(data);
    };
    record(1, &[5; 4096], 4096, 4096, crc32c::crc32c(&[5; 4096]));
    record(2, &[], 8192, 65536, 0);
    record(255, &[], 2, 4096 + 65536, 0);
    assert_eq!(file, expected);
}

#[test]
fn what_is_written_is_read() {
    let file = file_of(&header(), &changes());
    assert_eq!(read_all(&file).unwrap(), (header(), changes()));
    let mut reader = IncrementReader::new(&file[..]).unwrap();
    while reader.next_change().unwrap().is_some() {}
    let sum = IncrementSum {
        records: 3,
        data_bytes: 4608,
        zero_bytes: 65536,
    };
    assert_eq!(reader.sum(), sum);
    let mut head = header();
    head.to.snapshot = None;
    assert_eq!(read_all(&file_of(&head, &[])).unwrap(), (head, Vec::new()));
}

#[test]
fn a_file_that_is_cut_off_or_goes_on_is_told_from_a_whole_one() {
    let file = file_of(&header(), &changes());
    for end in 0..file.len() {
        let error = read_all(&file[..end]).unwrap_err();
        assert!(error.to_string().contains("cut off"), "{end}: {error}");
    }
    let longer = [&file[..], &[0]].concat();
    let error = read_all(&longer).unwrap_err().to_string();
    assert!(error.contains("follows"), "{error}");
}

#[test]
fn every_changed_byte_is_noticed() {
    let file = file_of(&header(), &changes());
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        assert!(read_all(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn records_that_are_left_out_swapped_or_of_another_file_are_noticed() {
    let (header, changes) = (header(), changes());
    let file = file_of(&header, &changes);
    let start = file.len() - 4 * RECORD_BYTES - 4608;
    let zeros = start + RECORD_BYTES + 4096;
    let after = zeros + RECORD_BYTES;
    let end = file.len() - RECORD_BYTES;
    let (first, second) = (&file[start..zeros], &file[zeros..after]);
    let without = [&file[..start], &file[zeros..]].concat();
    let swapped = [&file[..start], second, first, &file[after..]].concat();
    let ended = [&file[..after], &file[end..]].concat();
    let mut other = header;
    other.to.manifest = ManifestNum(6);
    let other = file_of(&other, &changes);
    let spliced = [&file[..zeros], &other[zeros..]].concat();
    for (what, bytes) in [
        ("left out", without),
        ("swapped", swapped),
        ("ended early", ended),
        ("of another file", spliced),
    ] {
        assert!(read_all(&bytes).is_err(), "{what}");
    }
}

#[test]
fn changes_that_no_volume_has_are_refused() {
    let zeros = |offset, len| Change::Zeros { offset, len };
    let progress = Progress::after(&header(), 0);
    for (change, why) in [
        (zeros(0, 0), "nothing"),
        (zeros(1 << 20, 1), "beyond"),
        (zeros(0, (1 << 20) + 1), "beyond"),
        (zeros(u64::MAX, 2), "beyond"),
    ] {
        let refused = progress.check(change.range()).unwrap_err();
        assert!(refused.contains(why), "{change:?}: {refused}");
    }
    let later = Progress {
        free_from: 10,
        ..progress
    };
    assert!(later.check((9, 5)).unwrap_err().contains("overlap"));
}

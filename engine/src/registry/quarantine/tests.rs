//! Tests of the quarantine file: golden bytes, every kind of damage.

use super::*;

fn header() -> QuarantineHeader {
    QuarantineHeader {
        volume: VolumeId(0xAB),
        name: VolumeName::parse("v").unwrap(),
        block_size_bytes: 4096,
        generation: Generation(3),
        head: ManifestNum(9),
        after: Epoch(30),
        through: Epoch(50),
        since_ms: 1000,
        until_ms: 8000,
    }
}

fn data(lsn: u64) -> QuarantineRecord {
    QuarantineRecord {
        kind: QuarantineKind::Data,
        shard: 5,
        damaged: lsn == 2,
        epoch: Epoch(31),
        lsn: Lsn(lsn),
        start: 7,
        count: 2,
        payload: vec![lsn as u8; 8192],
    }
}

fn mark() -> QuarantineRecord {
    QuarantineRecord {
        kind: QuarantineKind::Trim,
        count: 1 << 40,
        payload: Vec::new(),
        ..data(3)
    }
}

fn file() -> Vec<u8> {
    let mut writer = QuarantineWriter::new(Vec::new(), &header()).unwrap();
    for record in [data(1), data(2), mark()] {
        writer.add(&record).unwrap();
    }
    writer.finish().unwrap().0
}

fn read_all(bytes: &[u8]) -> Result<Vec<QuarantineRecord>> {
    let mut reader = QuarantineReader::new(bytes)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    Ok(records)
}

#[test]
fn golden_bytes() {
    let file = file();
    let mut expected = Vec::new();
    expected.extend_from_slice(b"TaipanQt\x01\x00\x01\x00\x00\x10\x00\x00");
    for value in [0xAB_u64, 3, 9, 30, 50, 1000, 8000, 0] {
        expected.extend_from_slice(&value.to_le_bytes());
    }
    expected.push(b'v');
    let crc = crc32c::crc32c(&expected);
    expected.extend_from_slice(&crc.to_le_bytes());
    let record = expected.len();
    expected.extend_from_slice(&[1, 5, 0, 0, 0, 0x20, 0, 0]);
    for value in [31_u64, 1, 7, 2] {
        expected.extend_from_slice(&value.to_le_bytes());
    }
    expected.extend_from_slice(&crc32c::crc32c(&[1; 8192]).to_le_bytes());
    let crc = crc32c::crc32c(&expected[record..]);
    expected.extend_from_slice(&crc.to_le_bytes());
    expected.extend_from_slice(&[1; 8192]);
    assert_eq!(file[..expected.len()], expected);
    assert_eq!(
        header().file_name(),
        "00000000000000ab-0000000000000003-000000000000001e.qtn"
    );
}

#[test]
fn what_was_written_is_read() {
    let bytes = file();
    let mut reader = QuarantineReader::new(&bytes[..]).unwrap();
    assert_eq!(*reader.header(), header());
    for record in [data(1), data(2), mark()] {
        assert_eq!(reader.next_record().unwrap(), Some(record));
    }
    assert_eq!(reader.next_record().unwrap(), None);
    assert_eq!(reader.next_record().unwrap(), None);
    let sum = reader.sum();
    assert_eq!((sum.records, sum.payload_bytes), (3, 16384));
}

#[test]
fn any_changed_byte_and_any_cut_is_noticed() {
    let good = file();
    for at in (0..good.len()).filter(|at| at % 61 == 0 || *at < 200 || *at + 60 > good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        let error = read_all(&bad).expect_err(&format!("byte {at}"));
        assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt, "byte {at}");
        assert!(read_all(&good[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn a_missing_record_is_noticed() {
    let mut bytes = file();
    let header = header().encode().len();
    bytes.drain(header..header + RECORD_BYTES + 8192);
    let error = read_all(&bytes).unwrap_err();
    assert!(error.to_string().contains("records are missing"), "{error}");
}

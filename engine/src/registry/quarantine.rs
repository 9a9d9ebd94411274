//! Quarantine files: answered writes that another writer's takeover kept out of the image.
//!
//! Format: `docs/internals/quarantine.md`.

mod extract;

use std::io::{self, Read, Write};

use serde::Serialize;

use crate::block::BlockSize;
use crate::error::{Error, Result};
use crate::identity::{Epoch, Generation, Lsn, ManifestNum, VolumeId};
use crate::volume::{NAME_BYTES_MAX, VolumeName};

pub use extract::records_of;

/// First bytes of a quarantine file.
pub const MAGIC: [u8; 8] = *b"TaipanQt";
/// Version of the format.
pub const VERSION: u16 = 1;
/// Most payload bytes of one record.
pub const PAYLOAD_BYTES_MAX: u32 = 64 << 20;
/// Flag of a record of which a block failed its checksum in the WAL.
pub const FLAG_DAMAGED: u16 = 1;

const VERSION_AT: usize = 8;
const NAME_BYTES: usize = 10;
const BLOCK_BYTES: usize = 12;
const VOLUME: usize = 16;
const GENERATION: usize = 24;
const HEAD: usize = 32;
const AFTER: usize = 40;
const THROUGH: usize = 48;
const SINCE: usize = 56;
const UNTIL: usize = 64;
const RESERVED: usize = 72;
const FIXED_BYTES: usize = 80;

const KIND: usize = 0;
const SHARD: usize = 1;
const FLAGS: usize = 2;
const PAYLOAD_BYTES: usize = 4;
const EPOCH: usize = 8;
const LSN: usize = 16;
const START: usize = 24;
const COUNT: usize = 32;
const PAYLOAD_CRC: usize = 40;
const RECORD_CRC: usize = 44;
/// Bytes of a record without its payload.
pub const RECORD_BYTES: usize = 48;
const CRC_BYTES: usize = 4;

/// What a file is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuarantineHeader {
    /// The volume.
    pub volume: VolumeId,
    /// Its name then.
    pub name: VolumeName,
    /// Bytes of its blocks.
    pub block_size_bytes: u32,
    /// Our generation, under which the records were written.
    pub generation: Generation,
    /// Our last manifest: the records belong on top of it.
    pub head: ManifestNum,
    /// Records up to here are in the image.
    pub after: Epoch,
    /// Last epoch of the range.
    pub through: Epoch,
    /// No record is older, in milliseconds since 1970; 0: not known.
    pub since_ms: u64,
    /// No record is newer, in milliseconds since 1970.
    pub until_ms: u64,
}

/// What a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineKind {
    /// Wrote its payload.
    Data,
    /// Made the range read as zeros.
    Zero,
    /// The same, and gave up the space.
    Trim,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineRecord {
    /// What it did.
    pub kind: QuarantineKind,
    /// Its shard, 0..16.
    pub shard: u8,
    /// A block failed its checksum when it was read from the WAL.
    pub damaged: bool,
    /// Stamp.
    pub epoch: Epoch,
    /// Number within the shard.
    pub lsn: Lsn,
    /// First shard-local block.
    pub start: u64,
    /// Blocks.
    pub count: u64,
    /// Bytes of the blocks of a data record.
    pub payload: Vec<u8>,
}

/// Sums of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QuarantineSum {
    /// Records.
    pub records: u64,
    /// Bytes of their payload.
    pub payload_bytes: u64,
}

impl QuarantineSum {
    /// Reads the end record of a file, its last [`RECORD_BYTES`].
    pub fn of_end(end: &[u8; RECORD_BYTES]) -> Result<Self> {
        let whole = crc32c::crc32c(&end[..RECORD_CRC]) == get_u32(end, RECORD_CRC);
        if !whole || end[KIND] != KIND_END {
            return Err(Error::corrupt("a quarantine file has no end"));
        }
        Ok(Self {
            records: get_u64(end, LSN),
            payload_bytes: get_u64(end, COUNT),
        })
    }
}

impl QuarantineHeader {
    /// The file's name: a copy that is made again takes the place of the first.
    pub fn file_name(&self) -> String {
        let (volume, generation, after) = (self.volume, self.generation.0, self.after.0);
        format!("{volume}-{generation:016x}-{after:016x}.qtn")
    }

    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.name.as_str().as_bytes();
        let mut out = vec![0; FIXED_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[VERSION_AT..NAME_BYTES].copy_from_slice(&VERSION.to_le_bytes());
        let name_bytes = name.len() as u16;
        out[NAME_BYTES..BLOCK_BYTES].copy_from_slice(&name_bytes.to_le_bytes());
        out[BLOCK_BYTES..VOLUME].copy_from_slice(&self.block_size_bytes.to_le_bytes());
        for (at, value) in [
            (VOLUME, self.volume.0),
            (GENERATION, self.generation.0),
            (HEAD, self.head.0),
            (AFTER, self.after.0),
            (THROUGH, self.through.0),
            (SINCE, self.since_ms),
            (UNTIL, self.until_ms),
        ] {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(name);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn read(from: &mut impl Read) -> Result<Self> {
        let mut fixed = [0; FIXED_BYTES];
        from.read_exact(&mut fixed).map_err(cut_off)?;
        if fixed[..8] != MAGIC {
            return Err(Error::corrupt("it is no quarantine file"));
        }
        if get_u16(&fixed, VERSION_AT) != VERSION {
            return Err(Error::corrupt("a quarantine file of an unknown version"));
        }
        let name_bytes = usize::from(get_u16(&fixed, NAME_BYTES));
        if name_bytes == 0 || name_bytes > NAME_BYTES_MAX {
            return Err(Error::corrupt("a quarantine file with an impossible name"));
        }
        let mut rest = vec![0; name_bytes + CRC_BYTES];
        from.read_exact(&mut rest).map_err(cut_off)?;
        let (name, crc) = rest.split_at(name_bytes);
        let computed = crc32c::crc32c_append(crc32c::crc32c(&fixed), name);
        let block_size_bytes = get_u32(&fixed, BLOCK_BYTES);
        let whole = computed == get_u32(crc, 0) && get_u64(&fixed, RESERVED) == 0;
        if !whole || BlockSize::new(block_size_bytes).is_none() {
            return Err(Error::corrupt("the header fails its CRC32C or its rules"));
        }
        let name = std::str::from_utf8(name)
            .map_err(|e| Error::corrupt("the name is not UTF-8").with_source(e))?;
        Ok(Self {
            volume: VolumeId(get_u64(&fixed, VOLUME)),
            name: VolumeName::parse(name)?,
            block_size_bytes,
            generation: Generation(get_u64(&fixed, GENERATION)),
            head: ManifestNum(get_u64(&fixed, HEAD)),
            after: Epoch(get_u64(&fixed, AFTER)),
            through: Epoch(get_u64(&fixed, THROUGH)),
            since_ms: get_u64(&fixed, SINCE),
            until_ms: get_u64(&fixed, UNTIL),
        })
    }
}

/// Writes a quarantine file's content; making it durable is the caller's part.
pub struct QuarantineWriter<W> {
    out: W,
    sum: QuarantineSum,
}

impl<W: Write> QuarantineWriter<W> {
    /// Begins with the header.
    pub fn new(mut out: W, header: &QuarantineHeader) -> io::Result<Self> {
        out.write_all(&header.encode())?;
        let sum = QuarantineSum::default();
        Ok(Self { out, sum })
    }

    /// Adds a record.
    pub fn add(&mut self, record: &QuarantineRecord) -> io::Result<()> {
        assert!(record.payload.len() <= PAYLOAD_BYTES_MAX as usize);
        self.sum.records += 1;
        self.sum.payload_bytes += record.payload.len() as u64;
        let kind = match record.kind {
            QuarantineKind::Data => 1,
            QuarantineKind::Zero => 2,
            QuarantineKind::Trim => 3,
        };
        self.out.write_all(&encode_fixed(kind, record))?;
        self.out.write_all(&record.payload)
    }

    /// Ends the file and hands it back.
    pub fn finish(mut self) -> io::Result<(W, QuarantineSum)> {
        let end = QuarantineRecord {
            kind: QuarantineKind::Data,
            shard: 0,
            damaged: false,
            epoch: Epoch(0),
            lsn: Lsn(self.sum.records),
            start: 0,
            count: self.sum.payload_bytes,
            payload: Vec::new(),
        };
        self.out.write_all(&encode_fixed(KIND_END, &end))?;
        self.out.flush()?;
        Ok((self.out, self.sum))
    }
}

const KIND_END: u8 = 255;

fn encode_fixed(kind: u8, record: &QuarantineRecord) -> [u8; RECORD_BYTES] {
    let mut out = [0; RECORD_BYTES];
    out[KIND] = kind;
    out[SHARD] = record.shard;
    let flags = if record.damaged { FLAG_DAMAGED } else { 0 };
    out[FLAGS..PAYLOAD_BYTES].copy_from_slice(&flags.to_le_bytes());
    out[PAYLOAD_BYTES..EPOCH].copy_from_slice(&(record.payload.len() as u32).to_le_bytes());
    for (at, value) in [
        (EPOCH, record.epoch.0),
        (LSN, record.lsn.0),
        (START, record.start),
        (COUNT, record.count),
    ] {
        out[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let payload_crc = crc32c::crc32c(&record.payload);
    out[PAYLOAD_CRC..RECORD_CRC].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32c::crc32c(&out[..RECORD_CRC]);
    out[RECORD_CRC..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Reads a quarantine file from its start, one record at a time.
pub struct QuarantineReader<R> {
    from: R,
    header: QuarantineHeader,
    sum: QuarantineSum,
    ended: bool,
}

impl<R: Read> QuarantineReader<R> {
    /// Reads the header.
    pub fn new(mut from: R) -> Result<Self> {
        let header = QuarantineHeader::read(&mut from)?;
        Ok(Self {
            from,
            header,
            sum: QuarantineSum::default(),
            ended: false,
        })
    }

    /// What the file is of.
    pub fn header(&self) -> &QuarantineHeader {
        &self.header
    }

    /// Sums of the records read so far.
    pub fn sum(&self) -> QuarantineSum {
        self.sum
    }

    /// The next record; `None` behind the last one. `Corrupt` if the file is not whole; nothing can
    /// be read after that.
    pub fn next_record(&mut self) -> Result<Option<QuarantineRecord>> {
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        let mut fixed = [0; RECORD_BYTES];
        self.from.read_exact(&mut fixed).map_err(cut_off)?;
        if crc32c::crc32c(&fixed[..RECORD_CRC]) != get_u32(&fixed, RECORD_CRC) {
            return Err(Error::corrupt("a record fails its CRC32C"));
        }
        let payload_bytes = get_u32(&fixed, PAYLOAD_BYTES);
        let (lsn, count) = (get_u64(&fixed, LSN), get_u64(&fixed, COUNT));
        let kind = match fixed[KIND] {
            1 => QuarantineKind::Data,
            2 => QuarantineKind::Zero,
            3 => QuarantineKind::Trim,
            KIND_END if (lsn, count) == (self.sum.records, self.sum.payload_bytes) => {
                return Ok(None);
            }
            KIND_END => return Err(Error::corrupt("records are missing")),
            kind => return Err(Error::corrupt(format!("a record of kind {kind}"))),
        };
        let expected = match kind {
            QuarantineKind::Data => count.checked_mul(u64::from(self.header.block_size_bytes)),
            QuarantineKind::Zero | QuarantineKind::Trim => Some(0),
        };
        let fits = payload_bytes <= PAYLOAD_BYTES_MAX && fixed[SHARD] < 16;
        if !fits || expected != Some(u64::from(payload_bytes)) {
            return Err(Error::corrupt("a record of an impossible length"));
        }
        let mut payload = Vec::new();
        // Grows as bytes come: a length that lies does not take memory.
        let wanted = u64::from(payload_bytes);
        let read = (&mut self.from).take(wanted).read_to_end(&mut payload);
        if read.map_err(cut_off)? as u64 != wanted {
            return Err(Error::corrupt("it is cut off within a record"));
        }
        if crc32c::crc32c(&payload) != get_u32(&fixed, PAYLOAD_CRC) {
            return Err(Error::corrupt("the payload of a record fails its CRC32C"));
        }
        self.sum.records += 1;
        self.sum.payload_bytes += wanted;
        self.ended = false;
        Ok(Some(QuarantineRecord {
            kind,
            shard: fixed[SHARD],
            damaged: get_u16(&fixed, FLAGS) & FLAG_DAMAGED != 0,
            epoch: Epoch(get_u64(&fixed, EPOCH)),
            lsn: Lsn(lsn),
            start: get_u64(&fixed, START),
            count,
            payload,
        }))
    }
}

fn cut_off(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::corrupt("it is cut off"),
        _ => Error::io("reading a quarantine file", error),
    }
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;

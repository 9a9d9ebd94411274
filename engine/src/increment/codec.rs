//! Bytes of the header and of records.

use std::io::{self, Read};

use super::{IncrementHeader, Point};
use crate::error::{Error, Result};
use crate::identity::{ManifestNum, VolumeId};
use crate::object::fields::{Fields, FieldsOut};
use crate::snapshot::{SnapshotId, SnapshotName};
use crate::volume::{NAME_BYTES_MAX, VolumeName};

/// First bytes of an incremental backup.
pub const MAGIC: [u8; 8] = *b"TaipanIn";
/// Version of the format.
pub const VERSION: u16 = 1;
/// Bytes of a record without its data.
pub const RECORD_BYTES: usize = 32;

/// Bytes of the header before the names.
const FIXED_BYTES: usize = 72;
const CRC_BYTES: usize = 4;
/// Bytes of a record that its checksum covers.
const RECORD_SUMMED: usize = RECORD_BYTES - CRC_BYTES;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Zeros,
    End,
}

impl Kind {
    const CODES: [(u16, Self); 3] = [(1, Self::Data), (2, Self::Zeros), (255, Self::End)];
}

/// A record without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub(super) kind: Kind,
    /// First byte of a change; in the last record how many there are.
    pub(super) offset: u64,
    /// Bytes of a change; in the last record of all of them.
    pub(super) len: u64,
    pub(super) data_crc: u32,
}

impl RecordHead {
    /// The record's bytes; its checksum goes on from `chain`.
    pub(super) fn encode(&self, chain: &mut u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(RECORD_BYTES);
        let code = Kind::CODES.iter().find(|(_, kind)| *kind == self.kind);
        out.put_u16(code.expect("every kind has a code").0);
        out.put_u16(0);
        out.put_u32(self.data_crc);
        out.put_u64(self.offset);
        out.put_u64(self.len);
        out.put_u32(0);
        *chain = crc32c::crc32c_append(*chain, &out);
        out.put_u32(*chain);
        out
    }

    pub(super) fn read(from: &mut impl Read, chain: &mut u32) -> Result<Self> {
        let mut bytes = [0; RECORD_BYTES];
        from.read_exact(&mut bytes).map_err(cut_off)?;
        *chain = crc32c::crc32c_append(*chain, &bytes[..RECORD_SUMMED]);
        let mut fields = Fields::new(&bytes);
        let (code, reserved) = (fields.u16()?, fields.u16()?);
        let data_crc = fields.u32()?;
        let (offset, len) = (fields.u64()?, fields.u64()?);
        let reserved = u32::from(reserved) | fields.u32()?;
        if fields.u32()? != *chain {
            return Err(Error::corrupt("a record fails its CRC32C"));
        }
        match Kind::CODES.iter().find(|(known, _)| *known == code) {
            Some((_, kind)) if reserved == 0 => Ok(Self {
                kind: *kind,
                offset,
                len,
                data_crc,
            }),
            _ => Err(Error::corrupt(format!("a record of kind {code}"))),
        }
    }
}

impl Point {
    fn name(&self) -> &str {
        let name = self.snapshot.as_ref().map(|(_, name)| name.as_str());
        name.unwrap_or_default()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.snapshot.as_ref().map_or(0, |(id, _)| id.0));
        out.put_u64(self.manifest.0);
        out.put_u64(self.size_bytes);
    }

    /// Without its name, which comes later.
    fn decode(fields: &mut Fields<'_>) -> Result<(SnapshotId, Self)> {
        let id = SnapshotId(fields.u64()?);
        let point = Self {
            snapshot: None,
            manifest: ManifestNum(fields.u64()?),
            size_bytes: fields.u64()?,
        };
        Ok((id, point))
    }

    fn named((id, point): (SnapshotId, Self), name: &[u8]) -> Result<Self> {
        let snapshot = match text(name)? {
            "" if id.0 != 0 => return Err(Error::corrupt("a snapshot without a name")),
            "" => None,
            name => Some((id, SnapshotName::parse(name)?)),
        };
        Ok(Self { snapshot, ..point })
    }
}

impl IncrementHeader {
    /// The header's bytes, and their checksum from which the records' go on.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let names = [self.name.as_str(), self.from.name(), self.to.name()];
        let mut out = MAGIC.to_vec();
        out.put_u16(VERSION);
        names.iter().for_each(|name| out.put_u16(name.len() as u16));
        out.put_u64(self.volume.0);
        self.from.encode(&mut out);
        self.to.encode(&mut out);
        debug_assert_eq!(out.len(), FIXED_BYTES);
        names.iter().for_each(|name| out.put(name.as_bytes()));
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        (out, crc)
    }

    /// The header, and the checksum from which the records' go on.
    pub(super) fn read(from: &mut impl Read) -> Result<(Self, u32)> {
        let mut fixed = [0; FIXED_BYTES];
        from.read_exact(&mut fixed).map_err(cut_off)?;
        let mut fields = Fields::new(&fixed);
        if fields.array()? != MAGIC {
            return Err(Error::corrupt("it is no incremental backup"));
        }
        if fields.u16()? != VERSION {
            return Err(Error::corrupt(
                "an incremental backup of an unknown version",
            ));
        }
        let mut lens = [0; 3];
        for len in &mut lens {
            *len = usize::from(fields.u16()?);
        }
        if lens.iter().any(|len| *len > NAME_BYTES_MAX) {
            return Err(Error::corrupt("the header has an impossible name"));
        }
        let volume = VolumeId(fields.u64()?);
        let points = (Point::decode(&mut fields)?, Point::decode(&mut fields)?);
        let mut rest = vec![0; lens.iter().sum::<usize>() + CRC_BYTES];
        from.read_exact(&mut rest).map_err(cut_off)?;
        let (names, stored) = rest.split_at(rest.len() - CRC_BYTES);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&fixed), names);
        if Fields::new(stored).u32()? != crc {
            return Err(Error::corrupt("the header fails its CRC32C"));
        }
        let mut names = Fields::new(names);
        let header = Self {
            volume,
            name: VolumeName::parse(text(names.take(lens[0])?)?)?,
            from: Point::named(points.0, names.take(lens[1])?)?,
            to: Point::named(points.1, names.take(lens[2])?)?,
        };
        if header.from.snapshot.is_none() {
            return Err(Error::corrupt("it does not say since which snapshot"));
        }
        Ok((header, crc))
    }
}

fn text(name: &[u8]) -> Result<&str> {
    std::str::from_utf8(name).map_err(|e| Error::corrupt("a name is not UTF-8").with_source(e))
}

/// A file that ends within something is damaged; anything else is the reading.
pub(super) fn cut_off(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::corrupt("it is cut off"),
        _ => Error::io("reading an incremental backup", error),
    }
}

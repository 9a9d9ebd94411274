//! Incremental backups: what changed in a volume since a snapshot, as one file or stream.
//!
//! Format: `docs/internals/increment.md`. A file that is cut off, spliced or damaged is told from a
//! whole one: every record's checksum goes on from the one before it, and the last one has totals.

mod codec;

use std::io::{self, Read, Write};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::identity::{ManifestNum, VolumeId};
use crate::snapshot::{SnapshotId, SnapshotName};
use crate::volume::VolumeName;

use codec::{Kind, RecordHead, cut_off};
pub use codec::{MAGIC, RECORD_BYTES, VERSION};

/// Most data bytes of one record.
pub const DATA_BYTES_MAX: u32 = 1 << 20;

/// A point in the life of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// The snapshot; none if it is the last committed cut of its moment.
    pub snapshot: Option<(SnapshotId, SnapshotName)>,
    /// The manifest whose image it is.
    pub manifest: ManifestNum,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
}

/// What a file is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IncrementHeader {
    /// The volume.
    pub volume: VolumeId,
    /// Its name then.
    pub name: VolumeName,
    /// What must be there before, which is a snapshot's image.
    pub from: Point,
    /// What is there after.
    pub to: Point,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These bytes are at `offset`.
    Data {
        /// First byte.
        offset: u64,
        /// The bytes, 1..=[`DATA_BYTES_MAX`].
        data: Vec<u8>,
    },
    /// `len` zeros are at `offset`.
    Zeros {
        /// First byte.
        offset: u64,
        /// Bytes, above zero.
        len: u64,
    },
}

impl Change {
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Data { offset, data } => (*offset, data.len() as u64),
            Self::Zeros { offset, len } => (*offset, *len),
        }
    }
}

/// Sums of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IncrementSum {
    /// Changes.
    pub records: u64,
    /// Bytes of them that are data.
    pub data_bytes: u64,
    /// Bytes of them that are zeros.
    pub zero_bytes: u64,
}

impl IncrementSum {
    fn add(&mut self, change: &Change) {
        self.records += 1;
        match change {
            Change::Data { data, .. } => self.data_bytes += data.len() as u64,
            Change::Zeros { len, .. } => self.zero_bytes += len,
        }
    }
}

/// What a writer and a reader of the same file agree on at each record.
struct Progress {
    /// Checksum of all heads so far.
    chain: u32,
    /// No later change begins before.
    free_from: u64,
    size_bytes: u64,
    sum: IncrementSum,
}

impl Progress {
    fn after(header: &IncrementHeader, chain: u32) -> Self {
        Self {
            chain,
            free_from: 0,
            size_bytes: header.to.size_bytes,
            sum: IncrementSum::default(),
        }
    }

    /// Checks where a change is; the error says which rule it breaks.
    fn check(&self, (offset, len): (u64, u64)) -> std::result::Result<u64, &'static str> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.size_bytes);
        match end {
            _ if len == 0 => Err("a change of nothing"),
            _ if offset < self.free_from => Err("changes overlap or do not ascend"),
            None => Err("a change beyond the end of the volume"),
            Some(end) => Ok(end),
        }
    }

    fn end(&self) -> RecordHead {
        RecordHead {
            kind: Kind::End,
            offset: self.sum.records,
            len: self.sum.data_bytes + self.sum.zero_bytes,
            data_crc: 0,
        }
    }
}

/// Writes a file; making it durable is the caller's part.
pub struct IncrementWriter<W> {
    out: W,
    progress: Progress,
}

impl<W: Write> IncrementWriter<W> {
    /// Begins with the header.
    pub fn new(mut out: W, header: &IncrementHeader) -> io::Result<Self> {
        let (bytes, chain) = header.encode();
        out.write_all(&bytes)?;
        let progress = Progress::after(header, chain);
        Ok(Self { out, progress })
    }

    /// Adds a change.
    ///
    /// # Panics
    /// On one that lies before the last one or beyond the volume, or is empty or too large.
    pub fn add(&mut self, change: &Change) -> io::Result<()> {
        let progress = &mut self.progress;
        let place = change.range();
        progress.free_from = progress.check(place).expect("changes ascend");
        progress.sum.add(change);
        let (kind, data): (Kind, &[u8]) = match change {
            Change::Data { data, .. } => (Kind::Data, data),
            Change::Zeros { .. } => (Kind::Zeros, &[]),
        };
        assert!(data.len() <= DATA_BYTES_MAX as usize);
        let head = RecordHead {
            kind,
            offset: place.0,
            len: place.1,
            data_crc: crc32c::crc32c(data),
        };
        let bytes = head.encode(&mut progress.chain);
        self.out.write_all(&bytes)?;
        self.out.write_all(data)
    }

    /// Ends the file and hands it back.
    pub fn finish(mut self) -> io::Result<(W, IncrementSum)> {
        let bytes = self.progress.end().encode(&mut self.progress.chain);
        self.out.write_all(&bytes)?;
        self.out.flush()?;
        Ok((self.out, self.progress.sum))
    }
}

/// Reads a file from its start, one change at a time.
pub struct IncrementReader<R> {
    from: R,
    header: IncrementHeader,
    progress: Progress,
    ended: bool,
}

impl<R: Read> IncrementReader<R> {
    /// Reads the header.
    pub fn new(mut from: R) -> Result<Self> {
        let (header, chain) = IncrementHeader::read(&mut from)?;
        let progress = Progress::after(&header, chain);
        Ok(Self {
            from,
            header,
            progress,
            ended: false,
        })
    }

    /// What the file is of.
    pub fn header(&self) -> &IncrementHeader {
        &self.header
    }

    /// Sums of the changes read so far.
    pub fn sum(&self) -> IncrementSum {
        self.progress.sum
    }

    /// The next change; `None` behind the last one of a whole file. `Corrupt` if the file is not
    /// whole; nothing can be read after an error.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        let head = RecordHead::read(&mut self.from, &mut self.progress.chain)?;
        if head.kind == Kind::End {
            return self.check_end(head).map(|()| None);
        }
        let (offset, len) = (head.offset, head.len);
        let end = self.progress.check((offset, len));
        self.progress.free_from = end.map_err(Error::corrupt)?;
        let change = match head.kind {
            Kind::Data if len > u64::from(DATA_BYTES_MAX) => {
                return Err(Error::corrupt("a record with too much data"));
            }
            Kind::Data => {
                let mut data = vec![0; len as usize];
                self.from.read_exact(&mut data).map_err(cut_off)?;
                Change::Data { offset, data }
            }
            Kind::Zeros | Kind::End => Change::Zeros { offset, len },
        };
        let data: &[u8] = match &change {
            Change::Data { data, .. } => data,
            Change::Zeros { .. } => &[],
        };
        if crc32c::crc32c(data) != head.data_crc {
            let text = format!("the data for byte {offset} fails its CRC32C");
            return Err(Error::corrupt(text));
        }
        self.progress.sum.add(&change);
        self.ended = false;
        Ok(Some(change))
    }

    fn check_end(&mut self, head: RecordHead) -> Result<()> {
        if head != self.progress.end() {
            return Err(Error::corrupt("records are missing"));
        }
        match self.from.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Error::corrupt("something follows the last record")),
            Err(error) => Err(cut_off(error)),
        }
    }
}

#[cfg(test)]
mod tests;

//! What an import reads: a file, a device or a stream, with its holes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::{Advice, fadvise, seek};

use crate::failure::{Exit, Failure, Outcome};

/// Where an import's bytes come from.
pub(crate) struct Source {
    name: String,
    kind: Kind,
}

enum Kind {
    /// A regular file or block device of known size.
    Sized { file: File, len: u64 },
    /// Anything that can only be read on.
    Stream(Box<dyn Read>),
}

/// The next stretch of a source.
pub(crate) enum Stretch {
    /// This many bytes were read into the buffer.
    Data(usize),
    /// This many zeros that were not even read.
    Hole(u64),
    /// Nothing is left.
    End,
}

impl Source {
    /// Opens the file; `-` is standard input.
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self {
                name: "standard input".to_owned(),
                kind: Kind::Stream(Box::new(io::stdin())),
            });
        }
        let name = format!("{}", path.display());
        let failed = |e: io::Error| Failure::io(format!("cannot open {name}"), &e);
        let mut file = OpenOptions::new().read(true).open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            let what = format!("cannot import {name}: it is a directory");
            return Err(Failure::new(Exit::Usage, what));
        }
        let kind = if kind.is_file() || kind.is_block_device() {
            let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
            // A hint; reading is right without it.
            let _ = fadvise(&file, 0, None, Advice::Sequential);
            Kind::Sized { file, len }
        } else {
            Kind::Stream(Box::new(file))
        };
        Ok(Self { name, kind })
    }

    /// What it is called, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its size in bytes, unless it is a stream.
    pub(crate) fn len(&self) -> Option<u64> {
        match &self.kind {
            Kind::Sized { len, .. } => Some(*len),
            Kind::Stream(_) => None,
        }
    }

    /// Its first bytes, as many as there are up to `out.len()`; none of a stream.
    pub(crate) fn start(&self, out: &mut [u8]) -> usize {
        match &self.kind {
            Kind::Sized { file, .. } => file.read_at(out, 0).unwrap_or(0),
            Kind::Stream(_) => 0,
        }
    }

    /// The stretch that begins at `at`, which is the sum of all stretches before: a hole of any
    /// length, or as much data as `buffer` holds (less only at the end). Holes end on multiples of
    /// `grain` or at the end.
    pub(crate) fn next(&mut self, at: u64, grain: u64, buffer: &mut [u8]) -> Outcome<Stretch> {
        let name = &self.name;
        let failed = |e: io::Error| Failure::io(format!("cannot read {name} at byte {at}"), &e);
        match &mut self.kind {
            Kind::Stream(stream) => match read_full(stream.as_mut(), buffer).map_err(failed)? {
                0 => Ok(Stretch::End),
                count => Ok(Stretch::Data(count)),
            },
            Kind::Sized { len, .. } if at >= *len => Ok(Stretch::End),
            Kind::Sized { file, len } => {
                let data_at = match data_from(file, at, *len) {
                    end if end == *len => end,
                    data_at => data_at / grain * grain,
                };
                if data_at > at {
                    return Ok(Stretch::Hole(data_at - at));
                }
                let count = usize::try_from(*len - at).unwrap_or(usize::MAX);
                let count = count.min(buffer.len());
                match file.read_exact_at(&mut buffer[..count], at) {
                    Ok(()) => Ok(Stretch::Data(count)),
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                        let why = format!("{name} became shorter while it was being read");
                        Err(Failure::new(Exit::Failed, why))
                    }
                    Err(e) => Err(failed(e)),
                }
            }
        }
    }
}

/// The first byte at or after `at` that is not in a hole, at most `len`. File systems and devices
/// that know no holes have none.
fn data_from(file: &File, at: u64, len: u64) -> u64 {
    match seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data_at) => data_at.clamp(at, len),
        // Nothing but a hole up to the end.
        Err(rustix::io::Errno::NXIO) => len,
        Err(_) => at,
    }
}

/// Reads until `buffer` is full or the stream ends.
fn read_full(stream: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

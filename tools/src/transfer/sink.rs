//! What an export writes: a file that appears only when it is complete, a device or a stream.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use taipan_engine::size::human;

use crate::failure::{Exit, Failure, Outcome};
use crate::output::note;
use crate::transfer::session::Piece;
use crate::transfer::sparse::{GRAIN_BYTES, runs};

/// Where an export's bytes go. Dropped before [`Sink::finish`], a file leaves nothing behind.
pub(crate) struct Sink {
    name: String,
    kind: Kind,
    data_bytes: u64,
}

enum Kind {
    /// A new sparse file, still under another name.
    File {
        file: File,
        partial: PathBuf,
        path: PathBuf,
    },
    Device(File),
    /// Something that takes bytes in order only.
    Stream {
        out: Box<dyn Write>,
        written: u64,
        /// Pieces that came before their turn; bounded by the window of requests.
        early: BTreeMap<u64, Vec<u8>>,
    },
}

impl Sink {
    /// Opens `path` for `size_bytes` bytes; `-` is standard output. A file that exists is replaced
    /// only with `force`.
    pub(crate) fn open(path: &Path, size_bytes: u64, force: bool) -> Outcome<Self> {
        let name = path.display().to_string();
        let kind = if path.as_os_str() == "-" {
            return Self::standard_output();
        } else {
            match std::fs::metadata(path) {
                Ok(meta) if meta.is_dir() => {
                    let what = format!("cannot export to {name}: it is a directory");
                    return Err(Failure::new(Exit::Usage, what));
                }
                Ok(meta) if meta.is_file() && !force => {
                    let what = format!("cannot export to {name}: it exists; --force replaces it");
                    return Err(Failure::new(Exit::Conflict, what));
                }
                Ok(meta) if meta.is_file() => {
                    // Through symbolic links, so that the link stays one.
                    let path = path.canonicalize().map_err(|e| opening(&name, &e))?;
                    new_file(&path, size_bytes)?
                }
                Ok(meta) if meta.file_type().is_block_device() => device(path, size_bytes)?,
                Ok(_) => {
                    let file = OpenOptions::new().write(true).open(path);
                    stream(Box::new(file.map_err(|e| opening(&name, &e))?))
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => new_file(path, size_bytes)?,
                Err(e) => return Err(opening(&name, &e)),
            }
        };
        Ok(Self {
            name,
            kind,
            data_bytes: 0,
        })
    }

    fn standard_output() -> Outcome<Self> {
        if io::stdout().is_terminal() {
            let what = "standard output is a terminal; redirect it, or name a file";
            return Err(Failure::new(Exit::Usage, what));
        }
        Ok(Self {
            name: "standard output".to_owned(),
            kind: stream(Box::new(io::stdout())),
            data_bytes: 0,
        })
    }

    /// Bytes taken that were not all zeros, at a grain of 4 KiB.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// True if pieces are held until those before them have come.
    pub(crate) fn is_ordered(&self) -> bool {
        matches!(self.kind, Kind::Stream { .. })
    }

    /// The first byte that has not gone out yet, of an ordered sink.
    pub(crate) fn written(&self) -> u64 {
        match &self.kind {
            Kind::Stream { written, .. } => *written,
            Kind::File { .. } | Kind::Device(_) => 0,
        }
    }

    /// Takes a piece; gives back a buffer that is free again.
    pub(crate) fn take(&mut self, piece: Piece) -> Outcome<Option<Vec<u8>>> {
        let Piece { offset, data } = piece;
        let mut zero_free = 0;
        for run in runs(&data, GRAIN_BYTES).filter(|r| !r.zero) {
            zero_free += run.range.len() as u64;
            if let Kind::File { file, .. } = &self.kind {
                let at = offset + run.range.start as u64;
                file.write_all_at(&data[run.range], at)
                    .map_err(|e| self.writing(at, &e))?;
            }
        }
        self.data_bytes += zero_free;
        match &mut self.kind {
            Kind::File { .. } => Ok(Some(data)),
            Kind::Device(file) => match file.write_all_at(&data, offset) {
                Ok(()) => Ok(Some(data)),
                Err(e) => Err(self.writing(offset, &e)),
            },
            Kind::Stream { early, .. } => {
                early.insert(offset, data);
                self.write_in_order()
            }
        }
    }

    /// Writes every piece whose turn has come.
    fn write_in_order(&mut self) -> Outcome<Option<Vec<u8>>> {
        let Kind::Stream {
            out,
            written,
            early,
        } = &mut self.kind
        else {
            return Ok(None);
        };
        let mut free = None;
        while let Some(data) = early.remove(written) {
            if let Err(e) = out.write_all(&data) {
                let at = *written;
                return Err(self.writing(at, &e));
            }
            *written += data.len() as u64;
            free = Some(data);
        }
        Ok(free)
    }

    /// Makes everything durable and, for a file, gives it its name.
    pub(crate) fn finish(mut self) -> Outcome<()> {
        let name = self.name.clone();
        let failed = |e: io::Error| Failure::io(format!("cannot complete {name}"), &e);
        match &mut self.kind {
            Kind::Stream { out, early, .. } => {
                assert!(early.is_empty(), "a piece is missing");
                out.flush().map_err(failed)
            }
            Kind::Device(file) => file.sync_all().map_err(failed),
            Kind::File {
                file,
                partial,
                path,
            } => {
                file.sync_all().map_err(failed)?;
                std::fs::rename(&*partial, &*path).map_err(failed)?;
                // From here on there is nothing to remove.
                partial.clear();
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                let parent = parent.unwrap_or_else(|| Path::new("."));
                File::open(parent)
                    .and_then(|d| d.sync_all())
                    .map_err(failed)
            }
        }
    }

    fn writing(&self, at: u64, error: &io::Error) -> Failure {
        Failure::io(format!("cannot write {} at byte {at}", self.name), error)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Kind::File { partial, .. } = &self.kind
            && !partial.as_os_str().is_empty()
        {
            let _ = std::fs::remove_file(partial);
        }
    }
}

fn stream(out: Box<dyn Write>) -> Kind {
    Kind::Stream {
        out,
        written: 0,
        early: BTreeMap::new(),
    }
}

fn opening(name: &str, error: &io::Error) -> Failure {
    Failure::io(format!("cannot open {name} for writing"), error)
}

/// A sparse file of the full size under the name `PATH.partial`. A left-over of a killed export is
/// reused, that of a running one is not.
fn new_file(path: &Path, size_bytes: u64) -> Outcome<Kind> {
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let name = partial.display().to_string();
    let failed = |e: io::Error| opening(&name, &e);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&partial)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let what = format!("another export is writing {name}");
            return Err(Failure::new(Exit::Conflict, what));
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    let sized = file.set_len(0).and_then(|()| file.set_len(size_bytes));
    if let Err(e) = sized {
        let _ = std::fs::remove_file(&partial);
        let what = format!("cannot make {name} {} large", human(size_bytes));
        return Err(Failure::io(what, &e));
    }
    Ok(Kind::File {
        file,
        partial,
        path: path.to_owned(),
    })
}

fn device(path: &Path, size_bytes: u64) -> Outcome<Kind> {
    let name = path.display().to_string();
    let failed = |e: io::Error| opening(&name, &e);
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if len < size_bytes {
        let (have, need) = (human(len), human(size_bytes));
        let what = format!("cannot export to {name}: the device has {have}, the volume {need}");
        return Err(Failure::new(Exit::Usage, what));
    }
    if len > size_bytes {
        let rest = human(len - size_bytes);
        note(&format!("note: the last {rest} of {name} stay as they are"));
    }
    Ok(Kind::Device(file))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written where the test sees it.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_gets_pieces_in_order_whatever_order_they_come_in() {
        let kept = Kept::default();
        let mut sink = Sink {
            name: "test".to_owned(),
            kind: stream(Box::new(kept.clone())),
            data_bytes: 0,
        };
        for (offset, text, written) in [(4, "ef", 0), (0, "ab", 2), (6, "gh", 2), (2, "cd", 8)] {
            let data = text.as_bytes().to_vec();
            sink.take(Piece { offset, data }).expect("memory takes it");
            assert_eq!(sink.written(), written);
        }
        assert_eq!(sink.data_bytes(), 8);
        sink.finish().expect("memory takes it");
        assert_eq!(*kept.0.lock().expect("no test panicked"), b"abcdefgh");
    }
}

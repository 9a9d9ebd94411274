//! Large objects written past the page cache. Pages for them cost more of a CPU than all else of a
//! put, in one piece that a kernel without preemption gives to nobody else: where clients share
//! that CPU they would stand still for as long.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::block::PAGE_BYTES;
use crate::ring::AlignedBuf;

/// Bytes of one write.
const PIECE_BYTES: usize = 1 << 20;
/// Smaller objects are not worth it.
const BODY_BYTES_MIN: usize = 128 << 10;

/// Buffers that are used again: one for each thread that puts at the same time.
#[derive(Default)]
pub(super) struct DirectWriter {
    spare: Mutex<Vec<AlignedBuf>>,
}

impl DirectWriter {
    /// Makes `body` the content of a file that is new and empty.
    pub(super) fn write(&self, mut file: &File, body: &[u8]) -> io::Result<()> {
        if body.len() < BODY_BYTES_MIN || !begins(file)? {
            return io::Write::write_all(&mut file, body);
        }
        let spare = self.spare().pop();
        let mut buffer = spare.unwrap_or_else(|| AlignedBuf::zeroed(PIECE_BYTES));
        let written = write_pieces(file, body, &mut buffer);
        self.spare().push(buffer);
        written
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<AlignedBuf>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether writes to the file go past the page cache from now on; some file systems cannot.
fn begins(file: &File) -> io::Result<bool> {
    match fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The last piece is filled up to whole pages, and the file cut to its length behind it.
fn write_pieces(file: &File, body: &[u8], buffer: &mut AlignedBuf) -> io::Result<()> {
    let mut at = 0;
    for piece in body.chunks(buffer.len()) {
        let whole = piece.len().next_multiple_of(PAGE_BYTES);
        buffer[..piece.len()].copy_from_slice(piece);
        buffer[piece.len()..whole].fill(0);
        file.write_all_at(&buffer[..whole], at)?;
        at += whole as u64;
    }
    file.set_len(body.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_was_put_whatever_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DirectWriter::default();
        let body: Vec<u8> = (0..3 * PIECE_BYTES).map(|n| (n % 251) as u8).collect();
        let lengths = [0, 1, BODY_BYTES_MIN - 1, BODY_BYTES_MIN, PIECE_BYTES];
        let longer = [PIECE_BYTES + 1, 2 * PIECE_BYTES - 4095, 3 * PIECE_BYTES];
        for (number, len) in lengths.into_iter().chain(longer).enumerate() {
            let path = dir.path().join(number.to_string());
            writer
                .write(&File::create_new(&path).unwrap(), &body[..len])
                .unwrap();
            assert!(std::fs::read(path).unwrap() == body[..len], "{len} bytes");
        }
        assert_eq!(writer.spare().len(), 1, "the buffer is used again");
    }
}

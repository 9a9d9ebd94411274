//! A file or block device under load: O_DIRECT through the engine's io_uring ring.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use taipan_engine::ring::{AlignedBuf, FileSlot, Ring};

use crate::random::SplitMix64;
use crate::target::{Answer, Refused, Target};
use crate::workload::{Kind, Op};

/// Bytes written at once when a file is laid out.
const LAYOUT_BYTES: u64 = 1 << 20;

struct Slot {
    /// Absent while the ring owns it.
    buffer: Option<AlignedBuf>,
    expected: usize,
}

/// A file with its ring and slots. Lives on the thread that made it.
pub(crate) struct FileTarget {
    ring: Ring,
    file: FileSlot,
    slots: Vec<Slot>,
    fua: bool,
}

impl FileTarget {
    /// A ring over `file` for `slots` requests of up to `bytes_max`.
    pub(crate) fn new(file: Arc<File>, slots: usize, bytes_max: usize, fua: bool) -> Result<Self> {
        let entries = slots.next_power_of_two() as u32;
        let mut ring = Ring::new(entries).context("setting up io_uring")?;
        let file = ring.add_file(file);
        let slot = |_| Slot {
            buffer: Some(AlignedBuf::zeroed(bytes_max)),
            expected: 0,
        };
        Ok(Self {
            ring,
            file,
            slots: (0..slots).map(slot).collect(),
            fua,
        })
    }
}

impl Target for FileTarget {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.slots[slot].buffer.as_mut().expect("the slot is free")
    }

    fn submit(&mut self, slot: usize, op: &Op) -> Result<()> {
        let (token, len) = (slot as u64, op.len as usize);
        let state = &mut self.slots[slot];
        state.expected = len;
        let mut take = || state.buffer.take().context("the slot is in use");
        match op.kind {
            Kind::Read => self.ring.read(self.file, take()?, len, op.offset, token),
            Kind::Write => {
                self.ring
                    .write_buffer(self.file, take()?, len, op.offset, self.fua, token);
            }
            Kind::Flush => self.ring.fdatasync(self.file, token),
            Kind::Trim | Kind::Zeroes => {
                let range = (op.offset, op.len.into());
                state.expected = 0;
                match op.kind {
                    Kind::Trim => self.ring.punch_hole(self.file, range, token),
                    _ => self.ring.zero_range(self.file, range, token),
                }
            }
        }
        Ok(())
    }

    async fn turn(&mut self, patience: Duration, answers: &mut Vec<Answer>) -> Result<()> {
        self.ring.wait(patience).context("waiting for io_uring")?;
        while let Some(completed) = self.ring.next_completed() {
            let slot = completed.token as usize;
            let state = &mut self.slots[slot];
            let outcome = completed.transferred(state.expected).map_err(Refused::Os);
            if let Some(buffer) = completed.buffer {
                state.buffer = Some(buffer);
            }
            answers.push(Answer { slot, outcome });
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only read.
    Read,
    /// Read and written; it must be there.
    Write,
    /// Read and written; made if it is not there.
    Create,
}

/// Opens a file or block device for O_DIRECT; also its size in bytes, 0 for a new file.
pub(crate) fn open(path: &Path, access: Access) -> Result<(File, u64)> {
    let access = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
        Access::Create => OFlags::RDWR | OFlags::CREATE,
    };
    let mode = Mode::from_raw_mode(0o644);
    let file: File = rustix::fs::open(path, access | OFlags::DIRECT | OFlags::CLOEXEC, mode)
        .with_context(|| format!("opening {} with O_DIRECT", path.display()))?
        .into();
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
    Ok((file, size))
}

/// What sizes and places of O_DIRECT requests are multiples of.
pub(crate) fn direct_bytes(file: &File) -> u32 {
    use rustix::fs::{AtFlags, StatxFlags, statx};

    let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let said = found.ok().map(|found| found.stx_dio_offset_align);
    // Kernels before 6.1 do not say.
    said.filter(|&bytes| bytes > 0).unwrap_or(512)
}

/// Writes random data from byte `from` to byte `to` of the file, so that a later overwrite touches
/// no metadata, and flushes it.
pub(crate) fn lay_out(path: &Path, from: u64, to: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;

    let write = || -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file and cannot grow"));
        }
        let mut data = vec![0; LAYOUT_BYTES as usize];
        SplitMix64::of(&[from, to]).fill(&mut data);
        let mut at = from;
        while at < to {
            let len = LAYOUT_BYTES.min(to - at);
            file.write_all_at(&data[..len as usize], at)?;
            at += len;
        }
        file.sync_all()
    };
    write().with_context(|| format!("laying out {} up to byte {to}", path.display()))
}

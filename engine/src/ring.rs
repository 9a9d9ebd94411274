//! One io_uring per core behind a safe interface: a slab of operations owns every buffer until the
//! kernel has completed it.
//!
//! Facts: `io_uring(7)`, `io_uring_setup(2)`. The set-up flags SINGLE_ISSUER, DEFER_TASKRUN,
//! COOP_TASKRUN and TASKRUN_FLAG are stripped step by step where the kernel lacks them.
#![allow(unsafe_code)]

mod buffer;
mod descriptor;
mod preemption;
mod tcp_health;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::fs::FallocateFlags;

pub use buffer::AlignedBuf;
pub use descriptor::descriptor;
pub use preemption::{involuntary_switches, take_short_slices};
pub use tcp_health::{TcpHealth, tcp_health};

use crate::arena::ArenaSlice;

/// `RWF_DSYNC` of `pwritev2(2)`: this write alone is durable when it completes.
const RWF_DSYNC: i32 = 0x2;
const EINVAL: i32 = 22;

/// Slot of a file that the ring holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSlot(usize);

/// A finished operation.
pub struct Completed {
    /// What the submitter passed in.
    pub token: u64,
    /// The system call's result: a count, or a negative errno.
    pub result: i32,
    /// The buffer of a read.
    pub buffer: Option<AlignedBuf>,
    /// Whether a multishot poll stays armed.
    pub more: bool,
}

impl Completed {
    /// The result as `io::Result`; a transfer shorter than `expected` is an error as well.
    pub fn transferred(&self, expected: usize) -> io::Result<()> {
        match usize::try_from(self.result) {
            Ok(n) if n == expected => Ok(()),
            Ok(n) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{n} of {expected} bytes transferred"),
            )),
            Err(_) => Err(io::Error::from_raw_os_error(-self.result)),
        }
    }
}

/// What an operation keeps alive until the kernel is done with it.
enum Held {
    Nothing,
    Aligned(AlignedBuf),
    /// Of a file that the ring does not keep.
    OfFile {
        buffer: AlignedBuf,
        _file: Arc<File>,
    },
    /// Keeps the mapping alive.
    Arena {
        _slice: ArenaSlice,
    },
}

struct Slot {
    token: u64,
    held: Held,
}

/// An io_uring with its operations in flight. Lives on the thread that made it.
pub struct Ring {
    uring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    files: Vec<Arc<File>>,
    backlog: VecDeque<squeue::Entry>,
    in_flight: usize,
    flags: &'static str,
    /// Memory that the kernel holds for this ring, by buffer index.
    pinned: Vec<ArenaSlice>,
    pins_max: usize,
}

impl Ring {
    /// A ring with `entries` submission entries (a power of two) and the best flags available.
    pub fn new(entries: u32) -> io::Result<Self> {
        let mut last = None;
        for (flags, steps) in [
            ("single_issuer+defer_taskrun+taskrun_flag", 3),
            ("coop_taskrun+taskrun_flag", 2),
            ("none", 0),
        ] {
            let mut builder = IoUring::builder();
            match steps {
                3 => builder
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag(),
                2 => builder.setup_coop_taskrun().setup_taskrun_flag(),
                _ => &mut builder,
            };
            builder.setup_cqsize(entries * 4);
            match builder.build(entries) {
                Ok(uring) => {
                    let pins = uring.submitter().register_buffers_sparse(PINS_MAX as u32);
                    return Ok(Self {
                        uring,
                        slots: Vec::new(),
                        free: Vec::new(),
                        files: Vec::new(),
                        backlog: VecDeque::new(),
                        in_flight: 0,
                        flags,
                        pinned: Vec::new(),
                        pins_max: pins.map_or(0, |()| PINS_MAX),
                    });
                }
                Err(e) if e.raw_os_error() == Some(EINVAL) => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(EINVAL)))
    }

    /// The set-up flags in force, for the log.
    pub fn flags(&self) -> &'static str {
        self.flags
    }

    /// Keeps `file` open for operations by slot.
    pub fn add_file(&mut self, file: Arc<File>) -> FileSlot {
        self.files.push(file);
        FileSlot(self.files.len() - 1)
    }

    /// Holds the pages of `slice` for the life of the ring, so that writes from it spare the kernel
    /// finding them each time (`io_uring_register(2)`). Memory that is not cleared yet is cleared.
    ///
    /// # Errors
    /// The kernel cannot (before 5.19), or may not lock so much memory: writes work without.
    pub fn pin(&mut self, slice: ArenaSlice) -> io::Result<()> {
        if self.pinned.len() == self.pins_max {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let vector = libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        };
        let index = self.pinned.len() as u32;
        // SAFETY: the slice keeps its mapping alive, and it stays in `self.pinned` as long as the
        // ring, or for good where the ring may still use it (`Drop`).
        unsafe {
            let submitter = self.uring.submitter();
            submitter.register_buffers_update(index, &[vector], None)?;
        }
        self.pinned.push(slice);
        Ok(())
    }

    /// Index of the pinned memory that holds all of `slice`.
    fn pin_of(&self, slice: &ArenaSlice) -> Option<u16> {
        let start = slice.as_ptr() as usize;
        let holds = |pinned: &ArenaSlice| {
            let from = pinned.as_ptr() as usize;
            from <= start && start + slice.len() <= from + pinned.len()
        };
        self.pinned.iter().position(holds).map(|index| index as u16)
    }

    /// Operations not yet completed, queued ones included.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Descriptor of the ring, the target of another ring's [`Ring::message`].
    pub fn raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Writes arena memory at `offset` of the file; `dsync` makes this write alone durable.
    pub fn write_arena(
        &mut self,
        file: FileSlot,
        slice: ArenaSlice,
        offset: u64,
        dsync: bool,
        token: u64,
    ) {
        let (ptr, len) = (slice.as_ptr(), slice.len() as u32);
        let pin = self.pin_of(&slice);
        let slot = Slot {
            token,
            held: Held::Arena { _slice: slice },
        };
        let Some(pin) = pin else {
            return self.write(file, (ptr, len), offset, dsync, slot);
        };
        let fd = types::Fd(self.files[file.0].as_raw_fd());
        let entry = opcode::WriteFixed::new(fd, ptr, len, pin)
            .offset(offset)
            .rw_flags(if dsync { RWF_DSYNC } else { 0 })
            .build();
        self.push(entry, slot);
    }

    /// Writes the first `len` bytes of `buffer` at `offset` of the file.
    pub fn write_buffer(
        &mut self,
        file: FileSlot,
        buffer: AlignedBuf,
        len: usize,
        offset: u64,
        dsync: bool,
        token: u64,
    ) {
        assert!(len <= buffer.len(), "write beyond the buffer");
        let source = (buffer.as_raw().cast_const(), len as u32);
        self.write(
            file,
            source,
            offset,
            dsync,
            Slot {
                token,
                held: Held::Aligned(buffer),
            },
        );
    }

    fn write(
        &mut self,
        file: FileSlot,
        (ptr, len): (*const u8, u32),
        offset: u64,
        dsync: bool,
        slot: Slot,
    ) {
        let fd = types::Fd(self.files[file.0].as_raw_fd());
        let entry = opcode::Write::new(fd, ptr, len)
            .offset(offset)
            .rw_flags(if dsync { RWF_DSYNC } else { 0 })
            .build();
        self.push(entry, slot);
    }

    /// Reads `len` bytes at `offset` of the file into `buffer`, handed back on completion.
    pub fn read(
        &mut self,
        file: FileSlot,
        buffer: AlignedBuf,
        len: usize,
        offset: u64,
        token: u64,
    ) {
        let fd = types::Fd(self.files[file.0].as_raw_fd());
        let entry = read_entry(fd, &buffer, len, offset);
        let held = Held::Aligned(buffer);
        self.push(entry, Slot { token, held });
    }

    /// As [`Ring::read`], from a file that stays open for as long as the read takes.
    pub fn read_from(
        &mut self,
        file: Arc<File>,
        buffer: AlignedBuf,
        len: usize,
        offset: u64,
        token: u64,
    ) {
        let fd = types::Fd(file.as_raw_fd());
        let entry = read_entry(fd, &buffer, len, offset);
        let held = Held::OfFile {
            buffer,
            _file: file,
        };
        self.push(entry, Slot { token, held });
    }

    /// `fdatasync(2)` of the file.
    pub fn fdatasync(&mut self, file: FileSlot, token: u64) {
        let fd = types::Fd(self.files[file.0].as_raw_fd());
        let entry = opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.push(
            entry,
            Slot {
                token,
                held: Held::Nothing,
            },
        );
    }

    /// Frees the space of a range of the file, which then reads as zeros (`fallocate(2)` with
    /// `FALLOC_FL_PUNCH_HOLE`); the file keeps its length.
    pub fn punch_hole(&mut self, file: FileSlot, range: (u64, u64), token: u64) {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(file, range, mode, token);
    }

    /// Makes a range of the file read as zeros and keeps its space (`FALLOC_FL_ZERO_RANGE`).
    pub fn zero_range(&mut self, file: FileSlot, range: (u64, u64), token: u64) {
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.fallocate(file, range, mode, token);
    }

    fn fallocate(
        &mut self,
        file: FileSlot,
        (offset, len): (u64, u64),
        mode: FallocateFlags,
        token: u64,
    ) {
        let fd = types::Fd(self.files[file.0].as_raw_fd());
        let entry = opcode::Fallocate::new(fd, len)
            .offset(offset)
            .mode(mode.bits().cast_signed())
            .build();
        self.push(
            entry,
            Slot {
                token,
                held: Held::Nothing,
            },
        );
    }

    /// Polls `fd` for `events` of `poll(2)`; a multishot poll completes again and again.
    pub fn poll(&mut self, fd: BorrowedFd<'_>, events: u32, multishot: bool, token: u64) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events)
            .multi(multishot)
            .build();
        self.push(
            entry,
            Slot {
                token,
                held: Held::Nothing,
            },
        );
    }

    /// Cancels every operation on `fd`, so that its descriptor can be closed.
    pub fn cancel(&mut self, fd: BorrowedFd<'_>, token: u64) {
        let target = types::CancelBuilder::fd(types::Fd(fd.as_raw_fd())).all();
        let entry = opcode::AsyncCancel2::new(target).build();
        self.push(
            entry,
            Slot {
                token,
                held: Held::Nothing,
            },
        );
    }

    /// Wakes another ring: it sees a completion with [`Completed::token`] = `their_token`.
    pub fn message(&mut self, ring: RawFd, their_token: u64, token: u64) {
        let user_data = MESSAGE_BIT | their_token;
        let entry = opcode::MsgRingData::new(types::Fd(ring), 0, user_data, None).build();
        self.push(
            entry,
            Slot {
                token,
                held: Held::Nothing,
            },
        );
    }

    fn push(&mut self, entry: squeue::Entry, slot: Slot) {
        assert!(
            slot.token & MESSAGE_BIT == 0,
            "tokens leave the top bit to the ring"
        );
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(slot);
                index
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        };
        self.in_flight += 1;
        self.backlog.push_back(entry.user_data(index as u64));
        self.drain_backlog();
    }

    fn drain_backlog(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: every buffer that an entry points to is owned by its slot in `self.slots`
            // until the completion arrives, and `Drop` waits for the rest.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Submits what is queued and runs deferred completions, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        loop {
            self.drain_backlog();
            let pending = {
                let queue = self.uring.submission();
                !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
            };
            if pending {
                ignore_interruption(self.uring.submit())?;
            }
            if self.backlog.is_empty() {
                return Ok(());
            }
        }
    }

    /// Submits what is queued and waits until a completion is there or `timeout` has passed.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.submit_backlog()?;
        let timespec = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timespec);
        match self.uring.submitter().submit_with_args(1, &arguments) {
            Err(e) if e.raw_os_error() == Some(ETIME) => Ok(()),
            other => ignore_interruption(other),
        }
    }

    fn submit_backlog(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            ignore_interruption(self.uring.submit())?;
            self.drain_backlog();
        }
        Ok(())
    }

    /// Whether a completion is there to be taken.
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Takes one completion, if there is one.
    pub fn next_completed(&mut self) -> Option<Completed> {
        let entry = self.uring.completion().next()?;
        let (data, result) = (entry.user_data(), entry.result());
        if data & MESSAGE_BIT != 0 {
            let token = data & !MESSAGE_BIT;
            return Some(Completed {
                token,
                result,
                buffer: None,
                more: true,
            });
        }
        let index = data as usize;
        let more = cqueue::more(entry.flags());
        if more {
            let token = self.slots[index]
                .as_ref()
                .expect("a completion has its slot")
                .token;
            return Some(Completed {
                token,
                result,
                buffer: None,
                more,
            });
        }
        let slot = self.slots[index]
            .take()
            .expect("an operation completes once");
        self.free.push(index);
        self.in_flight -= 1;
        let buffer = match slot.held {
            Held::Aligned(buffer) | Held::OfFile { buffer, .. } => Some(buffer),
            Held::Nothing | Held::Arena { .. } => None,
        };
        Some(Completed {
            token: slot.token,
            result,
            buffer,
            more,
        })
    }
}

impl Drop for Ring {
    /// The kernel may still write into buffers of operations in flight: they are leaked, never
    /// freed, when the ring goes before its completions.
    fn drop(&mut self) {
        for slot in self.slots.drain(..).flatten() {
            std::mem::forget(slot.held);
        }
        // The kernel unpins them when it tears the ring down, which may be later.
        self.pinned.drain(..).for_each(std::mem::forget);
    }
}

/// Most pieces of memory that a ring pins: one a shard.
const PINS_MAX: usize = 16;
/// Marks completions that another ring sent.
const MESSAGE_BIT: u64 = 1 << 63;
const ETIME: i32 = 62;

fn read_entry(fd: types::Fd, buffer: &AlignedBuf, len: usize, offset: u64) -> squeue::Entry {
    assert!(len <= buffer.len(), "read beyond the buffer");
    opcode::Read::new(fd, buffer.as_raw(), len as u32)
        .offset(offset)
        .build()
}

/// An interrupted or momentarily refused `io_uring_enter` is tried again at the next turn.
fn ignore_interruption(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(4 | 11 | 16)) => Ok(()),
        Err(e) => Err(e),
    }
}

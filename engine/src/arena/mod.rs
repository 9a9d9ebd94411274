//! Memory that outlives the process: one shared mapping per shard that is its write buffer, the
//! copy that recovery reads after `kill -9`, and its first read cache.
//!
//! The owner writes pages and control words single-threaded; [`ArenaReader`]s copy pages out from
//! other threads under a hazard slot; [`ArenaSlice`]s keep the mapping alive while the kernel reads
//! it. What lies where is decided by [`crate::wal`].

#![allow(unsafe_code)]

mod hazard;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// What the hazard protocol is built of.
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};
    pub(super) use std::thread::yield_now;

    /// Copies that can be under way at the same time.
    pub(super) const SLOTS: usize = 8;
}

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use crate::block::PAGE_BYTES;
use crate::error::{Error, Result};
use crate::identity::BatchNum;

use hazard::Hazards;

/// Size and alignment of a huge page; mappings of files are aligned to it.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The mapping itself; unmapped when the last handle is gone.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory without thread affinity. Concurrent access is governed by the
// handles: one owner writes, readers copy only pages that the hazard protocol keeps unchanged.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` gives out nothing but its address.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of a successful mmap, and no handle is left.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// What the owner and its readers share.
#[derive(Debug)]
struct Shared {
    mapping: Mapping,
    hazards: Hazards,
}

/// The owner's handle. Offsets are in bytes from the start of the mapping.
#[derive(Debug)]
pub struct Arena {
    shared: Arc<Shared>,
}

impl Arena {
    /// Maps the first `bytes` of `file` (on tmpfs, already that long and allocated), shared.
    ///
    /// # Errors
    /// `Invalid` unless `bytes` is a positive multiple of a page and the file is that long; `Io`.
    pub fn map_file(file: &File, bytes: usize) -> Result<Self> {
        check_length(bytes)?;
        let present = file
            .metadata()
            .map_err(|e| Error::io("reading a region's size", e))?
            .len();
        if present < bytes as u64 {
            return Err(Error::invalid(format!(
                "a region of {present} bytes cannot hold {bytes}"
            )));
        }
        let base = map_aligned(file, bytes);
        Self::over(base, bytes)
    }

    /// Anonymous zeroed memory of `bytes`: for tests and the simulator, where no process dies.
    ///
    /// # Errors
    /// `Invalid` unless `bytes` is a positive multiple of a page; `Io` when memory is short.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        check_length(bytes)?;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        };
        Self::over(base, bytes)
    }

    fn over(mapped: rustix::io::Result<*mut std::ffi::c_void>, len: usize) -> Result<Self> {
        let base = mapped.map_err(|e| Error::io(format!("mapping {len} bytes"), e.into()))?;
        let base = NonNull::new(base.cast()).expect("mmap never returns null");
        let shared = Shared {
            mapping: Mapping { base, len },
            hazards: Hazards::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Bytes mapped.
    pub fn bytes_len(&self) -> usize {
        self.shared.mapping.len
    }

    /// The `len` bytes at `offset`.
    #[inline]
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let base = self.shared.mapping.at(offset, len);
        // SAFETY: `at` checked the range; only the owner writes, through `&mut self`.
        unsafe { std::slice::from_raw_parts(base, len) }
    }

    /// The `len` bytes at `offset`, for writing. They must not be bytes that a reader may copy or
    /// the kernel may be reading: [`crate::wal`] hands out only pages of the open batch.
    #[inline]
    pub fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let base = self.shared.mapping.at(offset, len);
        // SAFETY: `at` checked the range; `&mut self` excludes the owner's other references, and
        // readers touch only pages of batches that are complete and not evicted.
        unsafe { std::slice::from_raw_parts_mut(base, len) }
    }

    /// Stores a control word (8-aligned) so that every earlier store of this thread is seen by
    /// whoever sees it: the order in which another process finds them after this one died.
    #[inline]
    pub fn store_word(&mut self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "control words are aligned");
        let word = self.shared.mapping.at(offset, 8).cast::<u64>();
        // SAFETY: in bounds and aligned (the mapping is page-aligned); control words are accessed
        // by this thread alone, atomically so that the compiler keeps the order.
        unsafe { AtomicU64::from_ptr(word) }.store(value.to_le(), Ordering::Release);
    }

    /// The `len` bytes at `offset` for an I/O that outlives this borrow.
    pub fn io_slice(&self, offset: usize, len: usize) -> ArenaSlice {
        let base = self.shared.mapping.at(offset, len);
        let base = NonNull::new(base).expect("within a mapping");
        ArenaSlice {
            base,
            len,
            _shared: Arc::clone(&self.shared),
        }
    }

    /// A handle with which another thread copies blocks out.
    pub fn reader(&self) -> ArenaReader {
        ArenaReader {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Makes batches below `batch` unreadable; `false` while a reader still copies one of them:
    /// then their memory must not be reused yet, ask again.
    pub(crate) fn evict_below(&mut self, batch: BatchNum) -> bool {
        self.shared.hazards.evict_below(batch)
    }
}

impl Mapping {
    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset
            .checked_add(len)
            .expect("range within the address space");
        assert!(
            end <= self.len,
            "range {offset}+{len} outside of {} mapped bytes",
            self.len
        );
        // SAFETY: in bounds of the mapping as just checked.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

/// Maps the beginning of a file, which is that long, at a multiple of [`HUGE_PAGE_BYTES`].
fn map_aligned(file: &File, bytes: usize) -> rustix::io::Result<*mut std::ffi::c_void> {
    let reserved = bytes + HUGE_PAGE_BYTES;
    // SAFETY: a fresh mapping at an address the kernel chooses, for its addresses alone.
    let start = unsafe {
        let (nothing, own) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, nothing, own)?
    };
    let before = (start as usize).next_multiple_of(HUGE_PAGE_BYTES) - start as usize;
    let base = start.wrapping_byte_add(before);
    // SAFETY: it replaces a part of what was reserved, which nobody else knows; the file is long
    // enough, so no access faults as long as nobody truncates it, which only the owner's lock
    // holder may.
    let mapped = unsafe {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let place = MapFlags::SHARED | MapFlags::FIXED;
        rustix::mm::mmap(base, bytes, access, place, file, 0)
    };
    // If that failed the middle stays as it is: addresses alone, and perhaps not ours any more.
    let after = base.wrapping_byte_add(bytes);
    let rest = [(start, before), (after, reserved - before - bytes)];
    for (unused, len) in rest.into_iter().filter(|(_, len)| *len > 0) {
        // SAFETY: parts of what was reserved, whole pages, in which nothing was mapped.
        let unmapped = unsafe { rustix::mm::munmap(unused, len) };
        debug_assert!(unmapped.is_ok());
    }
    mapped
}

fn check_length(bytes: usize) -> Result<()> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(Error::invalid(format!("{bytes} bytes are not whole pages")));
    }
    Ok(())
}

/// A range of the arena that an I/O reads or writes; keeps the mapping alive.
#[derive(Debug)]
pub struct ArenaSlice {
    base: NonNull<u8>,
    len: usize,
    _shared: Arc<Shared>,
}

// SAFETY: an address into a mapping that this keeps alive; it is only passed on to the kernel.
unsafe impl Send for ArenaSlice {}

impl ArenaSlice {
    /// Address of the first byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Copies blocks of complete batches out of an [`Arena`] from another thread.
#[derive(Clone, Debug)]
pub struct ArenaReader {
    shared: Arc<Shared>,
}

impl ArenaReader {
    /// Lets the kernel allocate and clear the pages of this range now, so that the owner's first
    /// write to them does not have to wait for it. Content stays as it is. Advisory.
    ///
    /// # Errors
    /// `Io` when memory is short or the kernel (before 5.14) does not know how.
    pub fn populate(&self, offset: usize, len: usize) -> Result<()> {
        let from = self.shared.mapping.at(offset, len);
        // SAFETY: in bounds of a live mapping; populating only faults pages in.
        unsafe { rustix::mm::madvise(from.cast(), len, rustix::mm::Advice::LinuxPopulateWrite) }
            .map_err(|e| Error::io("populating batch memory", e.into()))
    }

    /// Puts a range of [`HUGE_PAGE_BYTES`] at a multiple of that into one huge page, wherever the
    /// kernel's settings leave tmpfs: random blocks then cost fewer walks of the page tables.
    /// Content stays as it is. Advisory. Source: madvise(2), `MADV_COLLAPSE`.
    ///
    /// # Errors
    /// `InvalidInput` from a kernel that has none for this memory (before 6.1, or by its settings),
    /// rarely for one range alone; anything else holds for this range at this moment.
    pub fn collapse(&self, offset: usize) -> std::io::Result<()> {
        let from = self.shared.mapping.at(offset, HUGE_PAGE_BYTES);
        // SAFETY: in bounds of a live mapping; the kernel moves what is there and keeps its bytes.
        match unsafe { libc::madvise(from.cast(), HUGE_PAGE_BYTES, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Bytes of the mapping.
    pub fn bytes_len(&self) -> usize {
        self.shared.mapping.len
    }

    /// All of it, for [`crate::ring::Ring::pin`].
    pub fn whole(&self) -> ArenaSlice {
        let base = self.shared.mapping.at(0, self.bytes_len());
        ArenaSlice {
            base: NonNull::new(base).expect("within a mapping"),
            len: self.bytes_len(),
            _shared: Arc::clone(&self.shared),
        }
    }

    /// Copies `out.len()` bytes at `arena_offset`, which belong to `batch`. `false`: the batch is
    /// no longer in memory (so it is durable, read it from the WAL file); `out` is untouched.
    pub fn copy(&self, batch: BatchNum, arena_offset: usize, out: &mut [u8]) -> bool {
        let Some(_guard) = self.shared.hazards.protect(batch) else {
            return false;
        };
        let from = self.shared.mapping.at(arena_offset, out.len());
        // SAFETY: in bounds; the guard keeps the owner from reusing the batch's pages, and its
        // blocks were written before their place was handed to this thread.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }
}

/// Cache lines that [`prefetch`] asks for: the CPU sees by these that the rest follows.
const PREFETCHED_LINES: usize = 8;

/// Has the beginning of some memory brought near the CPU, because all of it is read soon.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64).take(PREFETCHED_LINES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that reads and changes nothing, on an address of borrowed memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

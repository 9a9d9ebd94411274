//! The file of the chunk cache: direct I/O on blocking threads, a directory in memory. Whatever
//! goes wrong with it switches it off; nothing in it is needed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use taipan_engine::block::{BlockSize, PAGE_BYTES};
use taipan_engine::cache::{DiskMap, OnDisk, Reserved, SlotKey};
use taipan_engine::chunk::SlotStamp;
use taipan_engine::error::{Error, Result};
use taipan_engine::failpoint;
use taipan_engine::ring::AlignedBuf;
use tokio::runtime::Handle;

/// Bytes on their way into the file, at most; more is not cached.
const PENDING_BYTES_MAX: usize = 32 << 20;
/// Blocks are gathered into writes of at most so many bytes.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Buffers kept to be filled again, at most.
const SPARE_BUFFERS_MAX: usize = 4;
/// A cache that takes longer is no help; the device may hang.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// Name of the file in its directory.
pub(super) const FILE_NAME: &str = "blocks";

/// Where the cache file goes and how large it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFileSpec {
    /// Its directory, made if it is missing.
    pub dir: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
}

/// The cache file and its directory.
pub(super) struct CacheFile {
    file: Arc<File>,
    /// Of the runtime whose threads may block on the device.
    threads: Handle,
    pub(super) map: DiskMap,
    capacity_bytes: u64,
    pending_bytes: usize,
    batch: Option<Batch>,
    /// Buffers that were written, to be filled again.
    spare: Vec<AlignedBuf>,
    /// Something failed: nothing more is written or read.
    off: bool,
}

/// Neighbouring blocks on their way into the file.
struct Batch {
    offset: u64,
    buffer: AlignedBuf,
    len: usize,
    blocks: Vec<Reserved>,
}

/// A write to be carried out; its end is told to [`CacheFile::written`].
pub(super) struct Write {
    file: Arc<File>,
    threads: Handle,
    batch: Batch,
}

/// A write that ended.
pub(super) struct Written {
    blocks: Vec<Reserved>,
    bytes: usize,
    buffer: Option<AlignedBuf>,
    result: io::Result<()>,
}

impl CacheFile {
    /// Makes the file anew; what an earlier process left in it is not used. Its space is taken at
    /// once, so that it cannot run out later.
    pub(super) fn create(spec: &CacheFileSpec, threads: Handle) -> Result<Self> {
        let path = spec.dir.join(FILE_NAME);
        let failed = |what: &str, error| Error::io(what, error).with_path(&path);
        std::fs::create_dir_all(&spec.dir).map_err(|e| failed("make the cache's directory", e))?;
        let file = open(&path).map_err(|e| failed("open the cache file", e))?;
        file.set_len(0)
            .and_then(|()| Ok(fallocate(&file, FallocateFlags::empty(), 0, spec.bytes)?))
            .map_err(|e| failed("take the space of the cache file", e))?;
        Ok(Self {
            file: Arc::new(file),
            threads,
            map: DiskMap::new(spec.bytes),
            capacity_bytes: spec.bytes,
            pending_bytes: 0,
            batch: None,
            spare: Vec::new(),
            off: false,
        })
    }

    /// Bytes of the file.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Whether nothing has failed so far.
    pub(super) fn is_on(&self) -> bool {
        !self.off
    }

    /// Whether so much is on its way into the file that work which can wait should.
    pub(super) fn is_busy(&self) -> bool {
        !self.off && self.pending_bytes > PENDING_BYTES_MAX / 2
    }

    /// Where a slot's block is, if the file may be read.
    pub(super) fn find(&mut self, key: &SlotKey) -> Option<OnDisk> {
        if self.off {
            return None;
        }
        self.map.find(key)
    }

    /// Whether the file has a slot's block.
    pub(super) fn contains(&self, key: &SlotKey) -> bool {
        !self.off && self.map.contains(key)
    }

    /// Takes a verified block in; false if it is not kept. What is gathered goes to `writes`.
    pub(super) fn put(
        &mut self,
        key: &SlotKey,
        block_size: BlockSize,
        stamp: SlotStamp,
        block: &[u8],
        writes: &mut Vec<Write>,
    ) -> bool {
        if self.off || self.pending_bytes + block.len() > PENDING_BYTES_MAX {
            return false;
        }
        let Some(reserved) = self.map.reserve(key, block_size, stamp) else {
            return false;
        };
        let offset = reserved.file_offset;
        let goes_on = self.batch.as_ref().is_some_and(|batch| {
            let fits = batch.len + block.len() <= WRITE_BYTES_MAX;
            fits && batch.offset + batch.len as u64 == offset
        });
        if !goes_on {
            self.flush(writes);
        }
        let spare = &mut self.spare;
        let batch = self.batch.get_or_insert_with(|| Batch {
            offset,
            buffer: spare
                .pop()
                .unwrap_or_else(|| AlignedBuf::zeroed(WRITE_BYTES_MAX)),
            len: 0,
            blocks: Vec::new(),
        });
        batch.buffer[batch.len..][..block.len()].copy_from_slice(block);
        batch.len += block.len();
        batch.blocks.push(reserved);
        self.pending_bytes += block.len();
        true
    }

    /// Whether blocks wait for others to be written with.
    pub(super) fn has_gathered(&self) -> bool {
        self.batch.is_some()
    }

    /// Hands over what is gathered.
    pub(super) fn flush(&mut self, writes: &mut Vec<Write>) {
        let Some(batch) = self.batch.take() else {
            return;
        };
        writes.push(Write {
            file: Arc::clone(&self.file),
            threads: self.threads.clone(),
            batch,
        });
    }

    /// A write ended. An error switches the cache off: true if it did just now.
    pub(super) fn written(&mut self, written: Written) -> bool {
        self.pending_bytes -= written.bytes;
        self.spare.extend(written.buffer);
        self.spare.truncate(SPARE_BUFFERS_MAX);
        for reserved in written.blocks {
            let can_be_found = written.result.is_ok() && !self.off;
            self.map.written(reserved, can_be_found);
        }
        match written.result {
            Ok(()) => false,
            Err(error) => self.fail("written", &error),
        }
    }

    /// Switches the cache off; true if it was on.
    pub(super) fn fail(&mut self, what: &str, error: &io::Error) -> bool {
        if !self.off {
            tracing::error!(%error, "the chunk cache could not be {what} and is off from now on");
            self.map.holdings().clear();
        }
        !std::mem::replace(&mut self.off, true)
    }

    /// Reads so many bytes of the file; the bytes are not checked.
    pub(super) fn read(
        &self,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + Send + 'static {
        let file = Arc::clone(&self.file);
        let read = move || {
            failpoint::hit("cache.read")?;
            let mut buffer = AlignedBuf::zeroed(len);
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer)
        };
        let read = self.threads.spawn_blocking(read);
        async move {
            match tokio::time::timeout(READ_LIMIT, read).await {
                Ok(read) => read.unwrap_or_else(|error| Err(io::Error::other(error))),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

impl Write {
    /// Writes.
    pub(super) async fn run(self) -> Written {
        let Self {
            file,
            threads,
            batch,
        } = self;
        let Batch {
            offset,
            buffer,
            len,
            blocks,
        } = batch;
        let write = move || {
            let hit = failpoint::hit("cache.write");
            let result = hit.and_then(|()| file.write_all_at(&buffer[..len], offset));
            (result, buffer)
        };
        let (result, buffer) = match threads.spawn_blocking(write).await {
            Ok((result, buffer)) => (result, Some(buffer)),
            Err(error) => (Err(io::Error::other(error)), None),
        };
        Written {
            blocks,
            bytes: len,
            buffer,
            result,
        }
    }
}

/// Opens for direct I/O; without it where the file system has none, as on a tmpfs.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600);
    let direct = options
        .clone()
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path);
    match direct {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path),
        opened => opened,
    }
}

const _: () = assert!(WRITE_BYTES_MAX.is_multiple_of(PAGE_BYTES));

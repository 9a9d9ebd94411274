//! The WAL files of a data directory: created completely or not at all, locked, flushed before
//! they are replayed.

mod replace;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::block::{PAGE_BYTES, ShardId};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Incarnation;

use super::config::{BootId, LogConfig, LogIdentity, WalId};
use super::format::{HEAD_SLOTS, LogHead};
use super::headers::noted_bytes_max;
use super::media::ReadMedia;
use super::replay::blank_head;
use super::state::WalState;

/// Writes of a killed process that are still in flight hold its lock for so long at most.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(20);
const ZEROS_BYTES: usize = 1 << 20;

/// The open WAL files of a data directory, held for writing by this process alone.
#[derive(Debug)]
pub struct WalFiles {
    state: WalState,
    created: bool,
    files: Vec<File>,
}

impl WalFiles {
    /// Opens the files in `dir`, or creates them with the segments of `wanted`. Existing files keep
    /// their size: see [`WalFiles::fit`]. The writer count is raised durably, and what former
    /// writers wrote is flushed, so that what a replay reads stays.
    ///
    /// # Errors
    /// `Busy` when another process holds them; `Full` when the disk has no room for them (nothing
    /// is left behind then); `Corrupt` when some are missing or damaged; `Io`.
    pub fn open(dir: &Path, wanted: &LogConfig) -> Result<Self> {
        fs::create_dir_all(dir)
            .map_err(|e| Error::io("creating the WAL directory", e).with_path(dir))?;
        let found = WalState::load(dir)?;
        let mut state = match found {
            Some(state) => state,
            None => create(dir, wanted)?,
        };
        let files = open_files(dir)?;
        state.incarnation = state.incarnation.next();
        state.save(dir)?;
        Ok(Self {
            state,
            created: found.is_none(),
            files,
        })
    }

    /// Whether the files are new: there is nothing to replay.
    pub fn is_created(&self) -> bool {
        self.created
    }

    /// Identity, sizes and the writer count of this process.
    pub fn state(&self) -> &WalState {
        &self.state
    }

    /// Whose log the file of `shard` is, in this process.
    pub fn identity(&self, shard: ShardId, boot: BootId) -> LogIdentity {
        LogIdentity {
            wal: self.state.wal,
            shard,
            incarnation: self.state.incarnation,
            boot,
        }
    }

    /// `wanted` with the segments that the files really have.
    ///
    /// # Errors
    /// `Invalid` when the other sizes do not fit them.
    pub fn fit(&self, wanted: &LogConfig) -> Result<LogConfig> {
        let (segments, bytes) = (u64::from(self.state.segments), self.state.segment_bytes);
        if (wanted.segments, wanted.segment_bytes) == (self.state.segments, bytes) {
            return Ok(*wanted);
        }
        let file_bytes = super::format::HEAD_AREA_BYTES + segments * bytes;
        let mut config = LogConfig::for_wal(file_bytes, wanted.arena_bytes)?;
        config.segments = self.state.segments;
        config.segment_bytes = bytes;
        config.with_undurable_max(wanted.undurable_bytes_max)
    }

    /// The file of a shard, opened with O_DIRECT where the file system has it.
    pub fn file(&self, shard: ShardId) -> &File {
        &self.files[shard.index()]
    }

    /// What the log of a shard noted when it ended, for [`super::recover_noted_shard`]: no more of
    /// it than it can be.
    ///
    /// # Errors
    /// What the file system says, `NotFound` most often.
    pub fn noted(&self, dir: &Path, shard: ShardId) -> io::Result<Vec<u8>> {
        let bytes_max = noted_bytes_max(self.state.segments, self.state.segment_bytes);
        let mut noted = Vec::new();
        let file = File::open(noted_path(dir, shard))?;
        file.take(bytes_max + 1).read_to_end(&mut noted)?;
        Ok(noted)
    }

    /// Lets another process take the files over, though this one has them open still. Nothing may
    /// be written any more.
    ///
    /// # Errors
    /// `Io`.
    pub fn unlock(&self) -> Result<()> {
        for file in &self.files {
            rustix::fs::flock(file, FlockOperation::Unlock)
                .map_err(|errno| Error::io("unlocking a WAL file", errno.into()))?;
        }
        Ok(())
    }

    /// The file of a shard for [`super::recover_shard`].
    ///
    /// # Errors
    /// `Io` when its length cannot be read.
    pub fn media(&self, shard: ShardId) -> Result<FileMedia<'_>> {
        FileMedia::new(self.file(shard))
    }
}

/// Path of a shard's file.
pub fn shard_path(dir: &Path, shard: ShardId) -> PathBuf {
    dir.join(format!("shard-{shard}.wal"))
}

/// Path of the headers that a shard's log noted when it ended in order.
pub fn noted_path(dir: &Path, shard: ShardId) -> PathBuf {
    dir.join(format!("shard-{shard}.noted"))
}

/// Creates all files, then the state that vouches for them. What an earlier attempt left is done
/// again.
fn create(dir: &Path, config: &LogConfig) -> Result<WalState> {
    config.validate()?;
    for shard in ShardId::all() {
        refuse_used(&shard_path(dir, shard))?;
    }
    let wal = getrandom::u64().map_err(|e| {
        Error::new(
            ErrorKind::Io,
            format!("drawing an identity for the WAL: {e}"),
        )
    })?;
    let state = WalState {
        wal: WalId(wal),
        incarnation: Incarnation(0),
        segment_bytes: config.segment_bytes,
        segments: config.segments,
    };
    let made = create_files(dir, config, &state).and_then(|()| state.save(dir));
    if let Err(error) = made {
        for shard in ShardId::all() {
            // Best effort: a next attempt removes leftovers as well.
            let _ = fs::remove_file(shard_path(dir, shard));
        }
        return Err(error);
    }
    Ok(state)
}

/// A WAL file without a state is a leftover of a creation, unless a writer ever started on it.
fn refuse_used(path: &Path) -> Result<()> {
    let Ok(file) = File::open(path) else {
        return Ok(());
    };
    for slot in HEAD_SLOTS {
        let mut page = vec![0; PAGE_BYTES];
        let read = file.read_exact_at(&mut page, slot);
        if read.is_ok() && LogHead::decode(&page, slot).is_some_and(|h| h.incarnation.0 > 0) {
            return Err(Error::corrupt(
                "the WAL's state file is missing but this file has been used; restore the state \
                 or move the WAL directory away",
            )
            .with_path(path));
        }
    }
    Ok(())
}

fn create_files(dir: &Path, config: &LogConfig, state: &WalState) -> Result<()> {
    let mut files = Vec::new();
    // Reserve everything first: a full disk is found before time is spent.
    for shard in ShardId::all() {
        let path = shard_path(dir, shard);
        let context = |e| Error::io("creating a WAL file", e).with_path(&path);
        let _ = fs::remove_file(&path);
        let file = open_direct(&path, true).map_err(context)?;
        reserve(&file, config.file_bytes()).map_err(|e| context(e.into()))?;
        files.push((shard, path, file));
    }
    for (shard, path, file) in &files {
        let identity = LogIdentity {
            wal: state.wal,
            shard: *shard,
            incarnation: state.incarnation,
            boot: BootId([0; 16]),
        };
        fill(file, config, &identity)
            .map_err(|e| Error::io("writing a new WAL file", e).with_path(path))?;
    }
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("syncing the WAL directory", e).with_path(dir))
}

fn reserve(file: &File, bytes: u64) -> rustix::io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // Then writing the zeros allocates.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::fs::ftruncate(file, bytes),
        other => other,
    }
}

/// Writes every byte once, so that later writes change no metadata, and the first log heads.
fn fill(file: &File, config: &LogConfig, identity: &LogIdentity) -> io::Result<()> {
    let mut zeros = PageBuf::new(ZEROS_BYTES);
    let mut at = 0;
    while at < config.file_bytes() {
        let len = (config.file_bytes() - at).min(ZEROS_BYTES as u64) as usize;
        file.write_all_at(&zeros.bytes()[..len], at)?;
        at += len as u64;
    }
    let first = blank_head(identity, config);
    // Both slots hold a head from the start: a torn write of one leaves the other.
    for head in [
        LogHead {
            sequence: 0,
            ..first
        },
        first,
    ] {
        head.encode(&mut zeros.bytes()[..PAGE_BYTES]);
        file.write_all_at(&zeros.bytes()[..PAGE_BYTES], head.file_offset())?;
    }
    file.sync_all()
}

/// All at once: each is flushed, which waits for the disk.
fn open_files(dir: &Path) -> Result<Vec<File>> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for shard in ShardId::all() {
            threads.push(scope.spawn(move || open_file(&shard_path(dir, shard))));
        }
        let join = |t: ScopedJoinHandle<'_, _>| t.join().expect("opening does not panic");
        threads.into_iter().map(join).collect()
    })
}

fn open_file(path: &Path) -> Result<File> {
    let file = open_direct(path, false).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::corrupt(
            "a WAL file is missing; restore it, or move the WAL directory away to serve what is \
             in the backend",
        )
        .with_path(path),
        _ => Error::io("opening a WAL file", e).with_path(path),
    })?;
    lock(&file, path)?;
    file.sync_data()
        .map_err(|e| Error::io("flushing a WAL file", e).with_path(path))?;
    Ok(file)
}

fn open_direct(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create);
    let direct = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of open(2)");
    match options.clone().custom_flags(direct).open(path) {
        // No direct I/O on this file system; O_CREAT may have made the file nevertheless.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            options.create_new(false).create(create).open(path)
        }
        opened => opened,
    }
}

fn lock(file: &File, path: &Path) -> Result<()> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "another process holds this WAL file, or a killed one has writes in flight",
                )
                .with_path(path));
            }
            Err(errno) => return Err(Error::io("locking a WAL file", errno.into()).with_path(path)),
        }
    }
}

/// A file to be replayed, whatever the alignment of the reads.
#[derive(Debug)]
pub struct FileMedia<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> FileMedia<'a> {
    /// Reads from `file`.
    ///
    /// # Errors
    /// `Io` when its length cannot be read.
    pub fn new(file: &'a File) -> Result<Self> {
        let len = file
            .metadata()
            .map_err(|e| Error::io("reading a file's length", e))?
            .len();
        Ok(Self { file, len })
    }
}

impl ReadMedia for FileMedia<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let page = PAGE_BYTES as u64;
        if out.as_ptr().align_offset(PAGE_BYTES) == 0
            && offset.is_multiple_of(page)
            && out.len().is_multiple_of(PAGE_BYTES)
        {
            return self.file.read_exact_at(out, offset);
        }
        let start = offset / page * page;
        let skip = (offset - start) as usize;
        let mut bounce = PageBuf::new((skip + out.len()).next_multiple_of(PAGE_BYTES));
        self.file.read_exact_at(bounce.bytes(), start)?;
        out.copy_from_slice(&bounce.bytes()[skip..skip + out.len()]);
        Ok(())
    }
}

/// Page-aligned bytes for direct I/O.
struct PageBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuf {
    /// So many zeros.
    fn new(len: usize) -> Self {
        let memory = vec![0; len + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests;

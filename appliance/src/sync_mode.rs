//! Chooses how WAL writes become durable on this device (docs/adr/0002-wal-sync.md).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use taipan_engine::core::SyncMode;
use taipan_engine::error::{Error, Result};
use taipan_engine::ring::AlignedBuf;
use taipan_engine::wal::device::DeviceInfo;
use taipan_engine::wal::region_files::boot_id;

use crate::config::WalSync;
use crate::data_core::BarrierScope;

/// In the runtime directory: what was measured, for this boot and device. Of no value to others.
const REMEMBERED_NAME: &str = "wal-sync";
const REMEMBERED_BYTES_MAX: u64 = 4096;
const PROBE_NAME: &str = "probe";
const PROBE_BYTES: usize = 8 << 10;
const PROBE_SPAN_BYTES: u64 = 256 << 10;
const PROBE_ROUNDS: usize = 24;

/// The choice, and why.
#[derive(Clone, Debug)]
pub struct SyncChoice {
    /// How a batch on which somebody waits is made durable.
    pub mode: SyncMode,
    /// How barriers reach the device.
    pub barrier: BarrierScope,
    /// For the log and the status.
    pub reason: String,
    /// How long the choice took.
    pub took: Duration,
}

impl SyncChoice {
    /// The name of the mode in the status.
    pub fn name(&self) -> &'static str {
        match self.mode {
            SyncMode::Dsync => "dsync",
            SyncMode::Mixed => "mixed",
            SyncMode::Fdatasync => "fdatasync",
        }
    }

    /// Looks at the device under the WAL directory, measures if need be, and decides. What was
    /// measured in this boot of the host is remembered in `runtime_dir`, unless it is wanted
    /// `anew`: on a slow disk it takes most of a start.
    pub fn decide(wal_dir: &Path, runtime_dir: &Path, wanted: WalSync, anew: bool) -> Result<Self> {
        let began = Instant::now();
        let device = DeviceInfo::of(wal_dir)?;
        let barrier = if device.one_flush_serves_all() {
            BarrierScope::Device
        } else {
            BarrierScope::File
        };
        let (mode, reason) = match wanted {
            WalSync::Dsync => (SyncMode::Dsync, "configured".to_owned()),
            WalSync::Fdatasync => (SyncMode::Fdatasync, "configured".to_owned()),
            WalSync::Auto if device.volatile_cache == Some(false) => (
                SyncMode::Dsync,
                "the device has no volatile cache".to_owned(),
            ),
            WalSync::Auto => {
                let memory = Memory::of(wal_dir, runtime_dir)?;
                match memory.recall().filter(|_| !anew) {
                    Some(known) => known,
                    None => {
                        let (mode, reason) = Self::measure(wal_dir, &device)?;
                        memory.keep(mode, &reason);
                        (mode, reason)
                    }
                }
            }
        };
        Ok(Self {
            mode,
            barrier,
            reason,
            took: began.elapsed(),
        })
    }

    fn measure(wal_dir: &Path, device: &DeviceInfo) -> Result<(SyncMode, String)> {
        let path = wal_dir.join(PROBE_NAME);
        let measured = probe(&path);
        let _ = fs::remove_file(&path);
        let (dsync, flush) =
            measured.map_err(|e| Error::io("probing the WAL device", e).with_path(&path))?;
        let yes_no = |known: Option<bool>| match known {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let facts = format!(
            "volatile cache {}, FUA {}; 8 KiB durable: RWF_DSYNC {dsync:?}, write and fdatasync \
             {flush:?} (medians)",
            yes_no(device.volatile_cache),
            yes_no(device.fua)
        );
        // A lone durable write may cost a little more than the pair and still saves a completion.
        let mode = if dsync <= flush + flush / 5 {
            SyncMode::Mixed
        } else {
            SyncMode::Fdatasync
        };
        Ok((mode, facts))
    }
}

/// Where a measurement is remembered, and what it holds for.
struct Memory {
    path: PathBuf,
    /// The boot of the host and the device: what is remembered begins with this line.
    holds_for: String,
}

impl Memory {
    fn of(wal_dir: &Path, runtime_dir: &Path) -> Result<Self> {
        let found = fs::metadata(wal_dir)
            .map_err(|e| Error::io("looking at the WAL directory", e).with_path(wal_dir))?;
        let boot = u128::from_be_bytes(boot_id()?.0);
        Ok(Self {
            path: runtime_dir.join(REMEMBERED_NAME),
            holds_for: format!("boot {boot:032x} device {}", found.dev()),
        })
    }

    /// The mode and the reason, if they were measured on this device in this boot.
    fn recall(&self) -> Option<(SyncMode, String)> {
        let mut text = String::new();
        let file = File::open(&self.path).ok()?;
        file.take(REMEMBERED_BYTES_MAX)
            .read_to_string(&mut text)
            .ok()?;
        let (holds_for, rest) = text.split_once('\n')?;
        let (mode, reason) = rest.strip_suffix('\n')?.split_once('\n')?;
        let mode = match mode {
            "mixed" => SyncMode::Mixed,
            "fdatasync" => SyncMode::Fdatasync,
            _ => return None,
        };
        (holds_for == self.holds_for).then(|| (mode, reason.to_owned()))
    }

    fn keep(&self, mode: SyncMode, reason: &str) {
        let mode = match mode {
            SyncMode::Mixed => "mixed",
            SyncMode::Fdatasync => "fdatasync",
            SyncMode::Dsync => return,
        };
        let text = format!("{}\n{mode}\n{reason}\n", self.holds_for);
        // Without it the next start measures.
        if let Err(error) = fs::write(&self.path, text) {
            tracing::info!(path = %self.path.display(), %error, "what was measured is not kept");
        }
    }
}

/// Median times of an 8 KiB overwrite made durable: by O_DSYNC, and by a plain write and fdatasync.
fn probe(path: &Path) -> io::Result<(Duration, Duration)> {
    let direct = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(direct)
        .open(path)?;
    let zeros = AlignedBuf::zeroed(PROBE_SPAN_BYTES as usize);
    file.write_all_at(&zeros, 0)?;
    file.sync_all()?;
    let durable = OpenOptions::new()
        .write(true)
        .custom_flags(direct | OFlags::DSYNC.bits() as i32)
        .open(path)?;
    let buffer = AlignedBuf::zeroed(PROBE_BYTES);
    let mut times = (Vec::new(), Vec::new());
    for round in 0..PROBE_ROUNDS {
        let offset = (round * PROBE_BYTES) as u64 % PROBE_SPAN_BYTES;
        times
            .0
            .push(timed(|| durable.write_all_at(&buffer, offset))?);
        times
            .1
            .push(timed(|| write_and_flush(&file, &buffer, offset))?);
    }
    Ok((median(times.0), median(times.1)))
}

fn write_and_flush(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.sync_data()
}

fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_mode_is_taken_and_auto_gives_its_reason() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let run = tempfile::tempdir().unwrap();
        let decide = |wanted| SyncChoice::decide(dir.path(), run.path(), wanted, false).unwrap();
        let dsync = decide(WalSync::Dsync);
        assert_eq!((dsync.mode, dsync.name()), (SyncMode::Dsync, "dsync"));
        let auto = decide(WalSync::Auto);
        assert!(!auto.reason.is_empty());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "the probe leaves nothing"
        );
    }

    #[test]
    fn what_was_measured_holds_for_this_boot_and_device_only() {
        let (wal, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let memory = Memory::of(wal.path(), run.path()).unwrap();
        assert_eq!(memory.recall(), None);
        memory.keep(SyncMode::Fdatasync, "it was quicker");
        let known = Some((SyncMode::Fdatasync, "it was quicker".to_owned()));
        assert_eq!(memory.recall(), known);

        let text = fs::read_to_string(&memory.path).unwrap();
        for at in 0..text.len() {
            fs::write(&memory.path, &text[..at]).unwrap();
            assert_eq!(memory.recall(), None, "{at} bytes of it");
        }
        for (right, wrong) in [("boot ", "boot 1"), ("device ", "device 1"), ("fda", "")] {
            fs::write(&memory.path, text.replace(right, wrong)).unwrap();
            assert_eq!(memory.recall(), None, "{wrong}");
        }
        fs::write(&memory.path, [0xFF; 5000]).unwrap();
        assert_eq!(memory.recall(), None);
        memory.keep(SyncMode::Fdatasync, "it was quicker");
        assert_eq!(memory.recall(), known);
    }
}

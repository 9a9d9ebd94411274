//! Chooses how WAL writes become durable on this device (docs/adr/0002-wal-sync.md).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use taipan_engine::core::SyncMode;
use taipan_engine::error::{Error, Result};
use taipan_engine::ring::AlignedBuf;
use taipan_engine::wal::device::DeviceInfo;

use crate::config::WalSync;
use crate::data_core::BarrierScope;

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

    /// Looks at the device under the WAL directory, measures if need be, and decides.
    pub fn decide(wal_dir: &Path, wanted: WalSync) -> Result<Self> {
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
            WalSync::Auto => Self::measure(wal_dir, &device)?,
        };
        Ok(Self {
            mode,
            barrier,
            reason,
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
        let dsync = SyncChoice::decide(dir.path(), WalSync::Dsync).unwrap();
        assert_eq!((dsync.mode, dsync.name()), (SyncMode::Dsync, "dsync"));
        let auto = SyncChoice::decide(dir.path(), WalSync::Auto).unwrap();
        assert!(!auto.reason.is_empty());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "the probe leaves nothing"
        );
    }
}

//! Copies answered writes that another appliance's takeover kept out of the image into files of
//! their own, so that the WAL may forget them.
//!
//! Rules and format: `docs/internals/quarantine.md`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use taipan_engine::api::QuarantineInfo;
use taipan_engine::error::{Error, Result};
use taipan_engine::failpoint;
use taipan_engine::identity::VolumeId;
use taipan_engine::registry::LocalHead;
use taipan_engine::registry::quarantine::{
    QuarantineHeader, QuarantineReader, QuarantineRecord, QuarantineSum, QuarantineWriter,
    RECORD_BYTES,
};

/// The directory of quarantine files, `<data>/quarantine`.
#[derive(Clone, Debug)]
pub struct Quarantine {
    dir: PathBuf,
}

impl Quarantine {
    /// The one of a data directory; it is created when it is first needed.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("quarantine"),
        }
    }

    /// Copies `records` into a file, durable when it returns; `None` if there were none. After an
    /// error there is no file, and the records must be kept where they are.
    pub fn copy(
        &self,
        header: &QuarantineHeader,
        records: impl Iterator<Item = Result<QuarantineRecord>>,
    ) -> Result<Option<QuarantineSum>> {
        let mut records = records.peekable();
        if records.peek().is_none() {
            return Ok(None);
        }
        let path = self.dir.join(header.file_name());
        let temp = path.with_extension("tmp");
        let failed = |e: io::Error| Error::io("writing a quarantine file", e).with_path(&temp);
        self.make_dir()?;
        let written = self.write(&temp, header, records).and_then(|sum| {
            fs::rename(&temp, &path).map_err(failed)?;
            sync(&self.dir)?;
            Ok(sum)
        });
        if written.is_err() {
            // The room that it took may be what is missing elsewhere.
            let _ = fs::remove_file(&temp);
        }
        let sum = written?;
        tracing::error!(
            volume = %header.name, file = %path.display(), records = sum.records,
            bytes = sum.payload_bytes,
            "another appliance took the volume over; answered writes that it does not have were \
             copied out"
        );
        Ok(Some(sum))
    }

    fn write(
        &self,
        temp: &Path,
        header: &QuarantineHeader,
        records: impl Iterator<Item = Result<QuarantineRecord>>,
    ) -> Result<QuarantineSum> {
        let failed = |e: io::Error| Error::io("writing a quarantine file", e).with_path(temp);
        let file = File::create(temp).map_err(failed)?;
        let mut writer = QuarantineWriter::new(BufWriter::new(file), header).map_err(failed)?;
        for record in records {
            failpoint::hit("quarantine.write").map_err(failed)?;
            writer.add(&record?).map_err(failed)?;
        }
        let (mut out, sum) = writer.finish().map_err(failed)?;
        out.flush().map_err(failed)?;
        out.get_ref().sync_all().map_err(failed)?;
        Ok(sum)
    }

    fn make_dir(&self) -> Result<()> {
        match fs::create_dir(&self.dir) {
            Ok(()) => sync(self.dir.parent().unwrap_or_else(|| Path::new("."))),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(Error::io("creating the quarantine directory", e).with_path(&self.dir)),
        }
    }

    /// What is held of a volume; `None` if nothing is. Files that cannot be read count as files.
    pub fn held(&self, volume: VolumeId) -> Option<QuarantineInfo> {
        let prefix = format!("{volume}-");
        let mut held = QuarantineInfo::default();
        let mut span: Option<(u64, u64)> = None;
        for entry in fs::read_dir(&self.dir).ok()?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with(&prefix) || !name.ends_with(".qtn") {
                continue;
            }
            held.files += 1;
            let Ok((header, sum)) = summary(&entry.path()) else {
                continue;
            };
            held.records += sum.records;
            held.bytes += sum.payload_bytes;
            if header.since_ms > 0 {
                let (since, until) = span.unwrap_or((u64::MAX, 0));
                span = Some((since.min(header.since_ms), until.max(header.until_ms)));
            }
        }
        if let Some((since, until)) = span {
            held.seconds = until.saturating_sub(since) as f64 / 1000.0;
        }
        (held.files > 0).then_some(held)
    }
}

/// Header and sums of a file, without reading all of it.
fn summary(path: &Path) -> Result<(QuarantineHeader, QuarantineSum)> {
    let failed = |e: io::Error| Error::io("reading a quarantine file", e).with_path(path);
    let mut file = File::open(path).map_err(failed)?;
    let header = QuarantineReader::new(&mut file)?.header().clone();
    let mut end = [0; RECORD_BYTES];
    file.seek(SeekFrom::End(-(RECORD_BYTES as i64)))
        .map_err(failed)?;
    file.read_exact(&mut end).map_err(failed)?;
    Ok((header, QuarantineSum::of_end(&end)?))
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io("syncing directory", e).with_path(dir))
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// No answered write of the volume that its backend lacks is older, in milliseconds since 1970; 0:
/// not known. Each commit writes its record, and so does the verdict that writes are to be copied.
pub(crate) fn oldest_ms(local: &LocalHead, heads_dir: &Path) -> u64 {
    match local.quarantine {
        Some(range) if !range.copied => 0,
        _ => written_ms(&heads_dir.join(format!("{}.json", local.id))),
    }
}

/// When a file was last written, in milliseconds since 1970; 0 if nobody knows.
pub(crate) fn written_ms(path: &Path) -> u64 {
    fs::metadata(path)
        .and_then(|found| found.modified())
        .map_or(0, unix_ms)
}

#[cfg(test)]
mod tests;

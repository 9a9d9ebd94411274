//! The clients that load a target: `taipan-bench run`, `qemu-img`, `nbdcopy`, `nbdinfo`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::lines::{ALL_KINDS, Load, Unit};
use super::server::{children_cpu_seconds, pinned};
use super::warden::Warden;
use crate::interruption;
use crate::outcome::{Latency, Outcome, Sums};
use crate::uri::Address;

/// A client that takes longer is ended.
const CLIENT_SECONDS_MAX: &str = "900";
/// Requests with which `qemu-img bench` is tried before its run.
const TRIAL_REQUESTS: u64 = 20_000;
const QEMU_DEPTH: u32 = 16;
const QEMU_BYTES: u64 = 4096;

/// What libnbd says of an export without `base:allocation`.
const NO_MAP: &str = "does not support metadata context";

/// A line is none for a target, which only shows when it is measured.
#[derive(Debug)]
pub(crate) struct Unable(&'static str);

impl fmt::Display for Unable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl std::error::Error for Unable {}

/// Clients on their CPUs.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) bench: PathBuf,
    pub(crate) cpus: Option<String>,
    pub(crate) qemu_seconds: Duration,
    /// Where the files lie that are copied.
    pub(crate) dir: PathBuf,
    pub(crate) warden: Arc<Warden>,
}

/// What one client measured.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// In the unit of the line.
    pub(crate) value: f64,
    /// Requests of all kinds, or as many as a copy has.
    pub(crate) requests: f64,
    /// Bytes of answered writes.
    pub(crate) written_bytes: f64,
    pub(crate) latency: Option<Latency>,
    /// Of a map.
    pub(crate) extents: Option<u64>,
    pub(crate) client_cpu_seconds: f64,
}

impl Clients {
    /// The same on other CPUs, if some are named.
    pub(crate) fn on(&self, cpus: Option<&str>) -> Self {
        let mut other = self.clone();
        other.cpus = cpus.map(str::to_owned).or(other.cpus);
        other
    }

    /// Loads `target`, a URI or a path.
    pub(crate) fn load(&self, target: &str, load: &Load, unit: Unit, seed: u64) -> Result<Found> {
        let cpu = children_cpu_seconds();
        let mut found = match load {
            Load::Own {
                flags,
                kind,
                latency,
            } => {
                let seed = [format!("--seed={seed}")];
                let sums = self.bench([&flags[..], &seed].concat(), target)?.sums;
                of_kind(&sums, kind, latency, unit)?
            }
            Load::Jobs { text, kind } => {
                let file = self.dir.join("jobs");
                std::fs::write(&file, text)?;
                let file = format!("--job-file={}", file.display());
                let outcome = self.bench(vec![file, format!("--seed={seed}")], target)?;
                let last = outcome.jobs.last().context("no job was reported")?;
                let mut found = of_kind(&last.sums, kind, kind, unit)?;
                found.requests = outcome.sums.requests as f64;
                found
            }
            Load::QemuBench { write, area_bytes } => {
                self.qemu_bench(target, *write, *area_bytes)?
            }
            Load::Upload { bytes } => {
                let file = self.source("full", *bytes, 1)?;
                self.copy(&["nbdcopy", "--flush", "--", &file, target], *bytes, unit)?
            }
            Load::Download { bytes } => {
                self.copy(&["nbdcopy", "--", target, "null:"], *bytes, unit)?
            }
            Load::Convert { bytes } => {
                let file = self.source("sparse", *bytes, 10)?;
                let words = [
                    "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &file, target,
                ];
                self.copy(&words, *bytes, unit)?
            }
            Load::Map => self.map(target)?,
        };
        found.client_cpu_seconds = children_cpu_seconds() - cpu;
        Ok(found)
    }

    /// Writes data everywhere in the first bytes of the target.
    pub(crate) fn fill(&self, target: &str, bytes: u64) -> Result<()> {
        let flags = format!("--rw=write --bs=256k --iodepth=8 --size={bytes}");
        self.bench(words(&flags), target).map(|_| ())
    }

    /// Writes 4 KiB here and there.
    pub(crate) fn scatter(&self, target: &str, bytes: u64, area_bytes: u64) -> Result<()> {
        // Random places of a part, as many as it has: two thirds of its blocks get data.
        let flags = "--rw=randwrite --bs=4k --iodepth=32 --seed=7";
        let part = area_bytes / 16;
        for n in 0..16 {
            let count = format!("--size={} --offset={}", bytes / 16, n * part);
            self.bench(words(&format!("{flags} {count}")), target)?;
        }
        Ok(())
    }

    fn bench(&self, flags: Vec<String>, target: &str) -> Result<Outcome> {
        let bench = self.bench.display().to_string();
        let mut command = vec![bench, "run".to_owned(), target.to_owned()];
        command.extend(flags);
        command.extend(["--json", "--progress=never"].map(str::to_owned));
        let text = self.run(command)?;
        serde_json::from_str(&text).context("reading what taipan-bench run found")
    }

    /// Standard output of a client that succeeds.
    fn run(&self, command: Vec<String>) -> Result<String> {
        let mut limited = ["timeout", CLIENT_SECONDS_MAX].map(str::to_owned).to_vec();
        limited.extend(command);
        let command = pinned(limited, self.cpus.as_deref());
        let output = self
            .warden
            .output(Command::new(&command[0]).args(&command[1..]))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{} ended with {}: {}",
                command.join(" "),
                output.status,
                text.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn copy(&self, words: &[&str], bytes: u64, unit: Unit) -> Result<Found> {
        let begin = Instant::now();
        self.run(words.iter().map(|word| (*word).to_owned()).collect())?;
        let seconds = begin.elapsed().as_secs_f64();
        Ok(Found {
            value: match unit {
                Unit::Seconds => seconds,
                _ => bytes as f64 / seconds / 1e6,
            },
            requests: (bytes as f64 / f64::from(256 << 10)).max(1.0),
            written_bytes: 0.0,
            latency: None,
            extents: None,
            client_cpu_seconds: 0.0,
        })
    }

    /// The map of the whole export; each of its extents counts as a request.
    fn map(&self, target: &str) -> Result<Found> {
        let begin = Instant::now();
        let told = self.run(["nbdinfo", "--map", target].map(str::to_owned).to_vec());
        let told = told.map_err(|error| match error.to_string().contains(NO_MAP) {
            true => Unable("its export has no map").into(),
            false => error,
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        let extents = told.lines().count() as u64;
        Ok(Found {
            value: seconds,
            requests: extents as f64,
            written_bytes: 0.0,
            latency: None,
            extents: Some(extents),
            client_cpu_seconds: 0.0,
        })
    }

    fn qemu_bench(&self, target: &str, write: bool, area_bytes: u64) -> Result<Found> {
        let image = qemu_image(target, area_bytes)?;
        let run = |count: u64| -> Result<f64> {
            let depth = QEMU_DEPTH.to_string();
            let (count, bytes) = (count.to_string(), QEMU_BYTES.to_string());
            let mut words = vec![
                "qemu-img", "bench", "-d", &depth, "-c", &count, "-s", &bytes,
            ];
            words.extend(["-t", "none"]);
            if write {
                words.extend(["-w", "--pattern=90"]);
            }
            words.extend(["--image-opts", &image]);
            let text = self.run(words.into_iter().map(str::to_owned).collect())?;
            qemu_seconds(&text)
        };
        let trial = run(TRIAL_REQUESTS)?;
        let wanted = self.qemu_seconds.as_secs_f64() / trial.max(1e-3);
        let count = (TRIAL_REQUESTS as f64 * wanted) as u64;
        let seconds = run(count.max(1))?;
        Ok(Found {
            value: count as f64 / seconds,
            requests: (count + TRIAL_REQUESTS) as f64,
            written_bytes: 0.0,
            latency: None,
            extents: None,
            client_cpu_seconds: 0.0,
        })
    }

    /// A file to copy, with data in one MiB of `every`.
    fn source(&self, name: &str, bytes: u64, every: u64) -> Result<String> {
        let path = self.dir.join(name);
        if std::fs::metadata(&path).map_or(0, |found| found.len()) != bytes {
            write_data(&path, bytes, every)?;
        }
        Ok(path.display().to_string())
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Writes random data to one MiB of `every`; the others stay holes.
pub(crate) fn write_data(path: &Path, bytes: u64, every: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;

    let write = || -> std::io::Result<()> {
        let file = std::fs::File::create(path)?;
        file.set_len(bytes)?;
        let mut data = vec![0; 1 << 20];
        crate::random::SplitMix64::of(&[bytes]).fill(&mut data);
        for at in (0..bytes).step_by((every << 20) as usize) {
            interruption::check().map_err(std::io::Error::other)?;
            data[..8].copy_from_slice(&at.to_le_bytes());
            let len = (bytes - at).min(1 << 20) as usize;
            file.write_all_at(&data[..len], at)?;
        }
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

fn of_kind(sums: &Sums, kind: &str, latency: &str, unit: Unit) -> Result<Found> {
    ensure!(sums.ok, "a request failed: {:?}", sums.errors);
    let find = |name: &str| sums.kinds.iter().find(|found| found.kind == name);
    let (rate, megabytes) = if kind == ALL_KINDS {
        (sums.iops, sums.megabytes_per_second)
    } else {
        let found = find(kind).with_context(|| format!("no {kind} was answered"))?;
        (found.iops, found.megabytes_per_second)
    };
    Ok(Found {
        value: match unit {
            Unit::Megabytes => megabytes,
            Unit::Requests => rate,
            Unit::Seconds => sums.elapsed_seconds,
        },
        requests: sums.requests as f64,
        written_bytes: find("write").map_or(0.0, |found| found.bytes as f64),
        latency: find(latency).map(|found| found.latency_us.clone()),
        extents: None,
        client_cpu_seconds: 0.0,
    })
}

/// The first bytes of a target, as QEMU names images.
fn qemu_image(target: &str, area_bytes: u64) -> Result<String> {
    let comma = |text: &str| text.replace(',', ",,");
    let file = match target.parse::<Address>()? {
        Address::Unix { socket, export } => format!(
            "file.driver=nbd,file.server.type=unix,file.server.path={},file.export={}",
            comma(&socket.display().to_string()),
            comma(&export)
        ),
        Address::Tcp { host, port, export } => format!(
            "file.driver=nbd,file.server.type=inet,file.server.host={},file.server.port={port},\
             file.export={}",
            comma(&host),
            comma(&export)
        ),
        Address::Sealed { .. } => bail!("qemu-img bench takes no certificates"),
        Address::File(path) => {
            let path = comma(&path.display().to_string());
            format!("file.driver=file,file.filename={path},file.aio=io_uring")
        }
    };
    Ok(format!("driver=raw,size={area_bytes},{file}"))
}

/// `Run completed in 1.234 seconds.`
fn qemu_seconds(text: &str) -> Result<f64> {
    let rest = text.split_once("Run completed in ").map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.with_context(|| format!("qemu-img bench says {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_words_are_understood_and_spoken() {
        let said = "Sending 100 read requests\nRun completed in 1.250 seconds.\n";
        assert_eq!(qemu_seconds(said).unwrap(), 1.25);
        assert!(qemu_seconds("Killed").is_err());
        let unix = qemu_image("nbd+unix:///vol0?socket=/a,b", 4096).unwrap();
        assert!(
            unix.starts_with("driver=raw,size=4096,")
                && unix.contains("path=/a,,b,file.export=vol0")
        );
        let tcp = qemu_image("nbd://h:99/v", 4096).unwrap();
        assert!(tcp.contains("host=h,file.server.port=99"), "{tcp}");
    }

    #[test]
    fn a_sparse_source_has_data_in_one_mebibyte_of_ten() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("sparse");
        write_data(&path, 20 << 20, 10).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 20 << 20);
        assert!(found.blocks() * 512 <= 4 << 20, "{} blocks", found.blocks());
        assert_ne!(std::fs::read(&path).unwrap()[10 << 20..][..8], [0; 8]);
    }
}

//! Settings of reads: their caches, and how long they wait for the backend.

use std::fmt::{self, Write};
use std::time::Duration;

use taipan_engine::size;

use super::document::Document;

/// Bytes of the memory cache that the default never goes below.
const RAM_BYTES_MIN: u64 = 32 << 20;
/// The default leaves no less than this share of memory, whatever batch memory takes.
const RAM_SHARE_MIN: u64 = 40;
/// Default of `backend_deadline_seconds`: longer than a restart of a backend or of a router, as a
/// guest's file system may not survive the error; shorter than people wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// Settings of reads of committed blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The cache in memory.
    pub ram_cache: CacheSize,
    /// The cache file in the data directory.
    pub chunk_cache: CacheSize,
    /// A read waits at most so long for the backend, then it fails.
    pub deadline: Duration,
}

/// How large a cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheSize {
    /// As the daemon decides at start.
    #[default]
    Auto,
    /// There is none.
    Off,
    /// So many bytes.
    Bytes(u64),
    /// So many percent of memory or of the free disk.
    Percent(u64),
}

impl CacheSize {
    /// Bytes of the memory cache on a machine with so much memory, of which batch memory, the first
    /// read cache, takes `batch_bytes`.
    pub fn of_memory(self, memory_bytes: u64, batch_bytes: u64) -> u64 {
        match self {
            Self::Auto => (memory_bytes / 10)
                .saturating_sub(batch_bytes)
                .max(memory_bytes / RAM_SHARE_MIN)
                .max(RAM_BYTES_MIN),
            Self::Off => 0,
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => memory_bytes / 100 * percent,
        }
    }
}

impl fmt::Display for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Bytes(bytes) => f.write_str(&size::exact(*bytes)),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Reads the keys.
pub(super) fn read(doc: &mut Document) -> Reads {
    Reads {
        ram_cache: read_size(doc, "ram_cache", 50),
        chunk_cache: read_size(doc, "chunk_cache", 95),
        deadline: doc
            .seconds("backend_deadline_seconds", 1..=3600)
            .unwrap_or(DEADLINE),
    }
}

fn read_size(doc: &mut Document, key: &str, percent_max: u64) -> CacheSize {
    for (word, size) in [("auto", CacheSize::Auto), ("off", CacheSize::Off)] {
        if doc.is_word(key, word) {
            return size;
        }
    }
    let percent = doc.has(key).then(|| doc.texts(key)).flatten();
    let percent = percent.and_then(|texts| {
        let number = texts.first()?.strip_suffix('%')?;
        Some(number.trim().parse::<u64>())
    });
    match percent {
        None => doc
            .size(key, (1 << 20)..=(1 << 50))
            .map_or(CacheSize::Auto, CacheSize::Bytes),
        Some(Ok(percent)) if (1..=percent_max).contains(&percent) => CacheSize::Percent(percent),
        Some(_) => {
            doc.refuse(
                key,
                format!("a percentage must be within 1% to {percent_max}%"),
            );
            CacheSize::Auto
        }
    }
}

/// Writes the keys; they belong to no section.
pub(super) fn print(out: &mut String, reads: &Reads) -> fmt::Result {
    writeln!(out, "ram_cache = \"{}\"", reads.ram_cache)?;
    writeln!(out, "chunk_cache = \"{}\"", reads.chunk_cache)?;
    let seconds = reads.deadline.as_secs();
    writeln!(out, "backend_deadline_seconds = {seconds}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(text: &str) -> Result<Reads, Vec<String>> {
        let mut doc = Document::default();
        doc.read_file("t.toml", text);
        let reads = read(&mut doc);
        let problems = doc.finish();
        if problems.is_empty() {
            Ok(reads)
        } else {
            Err(problems)
        }
    }

    #[test]
    fn sizes_are_words_percentages_or_bytes_and_print_as_they_were() {
        let text = "ram_cache = \"10%\"\nchunk_cache = \"off\"\nbackend_deadline_seconds = 7\n";
        let found = reads(text).unwrap();
        assert_eq!(found.ram_cache, CacheSize::Percent(10));
        assert_eq!(found.chunk_cache, CacheSize::Off);
        assert_eq!(found.deadline, Duration::from_secs(7));
        let mut out = String::new();
        print(&mut out, &found).unwrap();
        assert_eq!(out, text);
        let bytes = reads("chunk_cache = \"20GiB\"").unwrap();
        assert_eq!(bytes.chunk_cache, CacheSize::Bytes(20 << 30));
        assert_eq!(reads("").unwrap().ram_cache, CacheSize::Auto);
        assert!(reads("ram_cache = \"60%\"").is_err());
        assert!(reads("chunk_cache = \"much\"").is_err());
    }

    #[test]
    fn the_default_leaves_room_for_batch_memory_but_never_nothing() {
        let auto = |memory, batch| CacheSize::Auto.of_memory(memory, batch);
        assert_eq!(auto(40 << 30, 1 << 30), 3 << 30);
        assert_eq!(auto(40 << 30, 4 << 30), 1 << 30);
        assert_eq!(auto(1 << 30, 128 << 20), 32 << 20);
        assert_eq!(CacheSize::Off.of_memory(1 << 30, 0), 0);
    }
}

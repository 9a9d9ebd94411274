//! Where memory may go: every bounded part with its limit, decided and printed at start.

use std::fmt;

use taipan_engine::api::MemoryPart;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::size;

use crate::config::{Config, MEMORY_BYTES_MIN};
use crate::connection::{MODEST_BYTES, RECEIVE_BYTES};

/// Bytes of batch memory are handed out in whole so many bytes: 1 MiB for each shard.
const BATCH_MEMORY_GRAIN: u64 = 16 << 20;
/// Bytes that a connection may hold whatever all of them hold: state and queues, the receive
/// buffer, one request.
const CONNECTION_BYTES: u64 = (64 << 10) + RECEIVE_BYTES as u64 + MODEST_BYTES;
/// The largest request, which may be taken beyond the limit of all requests, one at a time.
const REQUEST_BYTES_MAX: u64 = 64 << 20;
/// Chunks of the largest size that the uploader holds at once, of all volumes; see
/// `CommitConfig::chunks_in_flight` for one volume.
const CHUNKS_HELD: u64 = 4;
/// Blocks that arrive from the backend: 64 GETs of 1 MiB that somebody waits for, 12 of 4 MiB ahead
/// of time, and what is on its way into the cache file; see `fetcher`.
const READING_BYTES: u64 = 144 << 20;
/// Largest chunk that a volume may have.
const CHUNK_BYTES_MAX: u64 = 64 << 20;

/// The bounded parts of the daemon's memory. The extent indexes come on top: they grow with the
/// mapped data and are reported as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Batch memory of all shards: write buffer, memory that outlives the process, read cache.
    pub batch_bytes: u64,
    /// Committed blocks kept in memory.
    pub read_cache_bytes: u64,
    /// Payload of requests in flight.
    pub request_bytes: u64,
    /// Blocks that arrive from the backend.
    pub reading_bytes: u64,
    /// State of connections.
    pub connection_bytes: u64,
    /// Chunks that are packed or stored.
    pub packing_bytes: u64,
}

impl MemoryBudget {
    /// Decides the budget on a machine with so much memory and so much room in the runtime
    /// directory (what this daemon left there before counts as room). Batch memory that was
    /// configured must fit; the default shrinks to fit, down to the minimum.
    pub fn plan(config: &Config, memory_bytes: u64, runtime_free_bytes: u64) -> Result<Self> {
        // A little stays free for the control areas of the regions.
        let room = runtime_free_bytes / 100 * 95;
        let wanted = match config.cache.size_bytes {
            Some(bytes) => bytes,
            None => (memory_bytes / 10).min(room).max(MEMORY_BYTES_MIN),
        };
        let batch_bytes = wanted / BATCH_MEMORY_GRAIN * BATCH_MEMORY_GRAIN;
        if batch_bytes > room {
            return Err(Error::new(
                ErrorKind::Full,
                format!(
                    "batch memory of {} does not fit into the runtime directory, which has {} \
                     free; give it more room (a larger /dev/shm) or set cache.size lower, at \
                     least {}",
                    size::human(batch_bytes),
                    size::human(runtime_free_bytes),
                    size::human(MEMORY_BYTES_MIN),
                ),
            ));
        }
        Ok(Self {
            batch_bytes,
            read_cache_bytes: config.reads.ram_cache.of_memory(memory_bytes, batch_bytes),
            request_bytes: config.limits.request_bytes_total + REQUEST_BYTES_MAX,
            reading_bytes: READING_BYTES,
            connection_bytes: u64::from(config.limits.connections_max) * CONNECTION_BYTES,
            packing_bytes: CHUNKS_HELD * CHUNK_BYTES_MAX,
        })
    }

    /// Bytes of batch memory of one shard.
    pub fn batch_bytes_per_shard(&self) -> u64 {
        self.batch_bytes / taipan_engine::block::SHARD_COUNT as u64
    }

    /// The parts by name, for the status.
    pub fn parts(&self) -> Vec<MemoryPart> {
        let part = |name: &str, bytes| MemoryPart {
            name: name.to_owned(),
            bytes,
        };
        vec![
            part("batches and read cache", self.batch_bytes),
            part("cache of committed blocks", self.read_cache_bytes),
            part("requests in flight", self.request_bytes),
            part("blocks from the backend", self.reading_bytes),
            part("connections", self.connection_bytes),
            part("packing", self.packing_bytes),
        ]
    }

    /// Sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes).sum()
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {}", size::human(self.total_bytes()))?;
        for (index, part) in self.parts().into_iter().enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{} {}", part.name, size::human(part.bytes))?;
        }
        write!(
            f,
            "; and the extent indexes, at most 8 bytes per mapped block"
        )
    }
}

/// Bytes of memory of this machine, or of its control group if that is less.
pub fn machine_memory_bytes() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| kib_line(&text, "MemTotal:"));
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // Without either number the least is assumed.
    let total = total.unwrap_or(MEMORY_BYTES_MIN * 10);
    limit.map_or(total, |limit: u64| total.min(limit))
}

/// Bytes of this process that are in memory; 0 if the system does not say.
pub fn resident_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| kib_line(&text, "VmRSS:"))
        .unwrap_or(0)
}

fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Machine, load};

    fn config(cache: Option<&str>) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags {
            data: Some(dir.path().display().to_string()),
            cache_size: cache.map(str::to_owned),
            ..Flags::default()
        };
        let machine = Machine {
            cpus: vec![0, 1],
            memory_bytes: 8 << 30,
        };
        load(&flags, &machine).unwrap()
    }

    #[test]
    fn the_default_is_a_tenth_of_memory_and_shrinks_to_the_room_there_is() {
        let roomy = MemoryBudget::plan(&config(None), 10 << 30, 100 << 30).unwrap();
        assert_eq!(roomy.batch_bytes, 1 << 30);
        assert_eq!(roomy.batch_bytes_per_shard(), 64 << 20);
        let tight = MemoryBudget::plan(&config(None), 10 << 30, 300 << 20).unwrap();
        assert!(tight.batch_bytes <= 285 << 20 && tight.batch_bytes >= MEMORY_BYTES_MIN);
    }

    #[test]
    fn too_little_room_is_refused_with_what_to_do() {
        for (cache, room) in [(Some("1GiB"), 500 << 20), (None, 64 << 20)] {
            let error = MemoryBudget::plan(&config(cache), 10 << 30, room).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Full);
            assert!(error.to_string().contains("/dev/shm"), "{error}");
        }
    }

    #[test]
    fn the_printed_budget_names_every_part_and_their_sum() {
        let budget = MemoryBudget::plan(&config(Some("1GiB")), 10 << 30, 100 << 30).unwrap();
        let text = budget.to_string();
        for part in budget.parts() {
            assert!(text.contains(&part.name), "{text}");
        }
        assert!(text.contains(&size::human(budget.total_bytes())), "{text}");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes() > 0);
        assert!(machine_memory_bytes() > resident_bytes());
    }
}

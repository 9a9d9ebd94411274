//! Prepares batch memory beside the first requests: its pages are cleared and put together.

use taipan_engine::arena::{ArenaReader, HUGE_PAGE_BYTES};
use taipan_engine::block::ShardId;

use crate::inbox::{CoreAddress, CoreMessage};
use crate::uploader::give_way;

/// Clears the pages of batch memory, on a thread of its own: otherwise each first write to a page
/// waits for that. In small steps, taking turns among the shards, as they fill alike; each step
/// becomes a huge page. Then the cores' rings hold on to them.
pub(crate) fn prepare(arenas: &[ArenaReader], cores: &[CoreAddress]) {
    let (arenas, cores) = (arenas.to_vec(), cores.to_vec());
    let work = move || {
        give_way();
        if !populate(&arenas) {
            return;
        }
        for (shard, arena) in ShardId::all().zip(&arenas) {
            cores[shard.core(cores.len())].send(CoreMessage::Pin(arena.whole()));
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("populate".to_owned())
        .spawn(work)
    {
        tracing::warn!(%error, "batch memory is cleared when it is first used");
    }
}

/// Whether all of it was cleared.
fn populate(arenas: &[ArenaReader]) -> bool {
    let longest = arenas.iter().map(ArenaReader::bytes_len).max().unwrap_or(0);
    let mut huge = HugePages::default();
    for offset in (0..longest).step_by(HUGE_PAGE_BYTES) {
        for arena in arenas.iter().filter(|arena| offset < arena.bytes_len()) {
            let len = HUGE_PAGE_BYTES.min(arena.bytes_len() - offset);
            if let Err(error) = arena.populate(offset, len) {
                tracing::info!(%error, "batch memory is cleared when it is first used");
                return false;
            }
            if len == HUGE_PAGE_BYTES {
                huge.try_one(|| arena.collapse(offset));
            }
        }
    }
    tracing::info!(
        huge_pages = huge.got,
        small = huge.refused,
        "batch memory is cleared"
    );
    true
}

/// How many steps became huge pages.
#[derive(Debug, Default, PartialEq, Eq)]
struct HugePages {
    got: usize,
    refused: usize,
    /// The kernel has none for this memory.
    none: bool,
}

impl HugePages {
    fn try_one(&mut self, collapse: impl FnOnce() -> std::io::Result<()>) {
        if !self.none {
            match collapse() {
                Ok(()) => {
                    self.got += 1;
                    return;
                }
                Err(error) => self.none = error.kind() == std::io::ErrorKind::InvalidInput,
            }
        }
        self.refused += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn a_kernel_without_huge_pages_is_asked_once_and_a_busy_range_is_passed_over() {
        let mut pages = HugePages::default();
        pages.try_one(|| Ok(()));
        pages.try_one(|| Err(ErrorKind::ResourceBusy.into()));
        pages.try_one(|| Ok(()));
        pages.try_one(|| Err(Error::from_raw_os_error(22)));
        pages.try_one(|| panic!("asked again"));
        let expected = HugePages {
            got: 2,
            refused: 3,
            none: true,
        };
        assert_eq!(pages, expected);
    }
}

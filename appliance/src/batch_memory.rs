//! Prepares batch memory beside the first requests: its pages are cleared and put together.

use taipan_engine::arena::{ArenaReader, HUGE_PAGE_BYTES};
use taipan_engine::block::ShardId;

use crate::inbox::{CoreAddress, CoreMessage};
use crate::uploader::shares_cpus;

/// Priority of the thread on machines of one or two CPUs: the first requests go first.
const NICE_WHEN_SHARED: i32 = 10;

/// Clears the pages of batch memory, on a thread of its own: otherwise each first write to a page
/// waits for that. In small steps, taking turns among the shards, as they fill alike; each step
/// becomes a huge page. Then the cores' rings hold on to them.
pub(crate) fn prepare(arenas: &[ArenaReader], cores: &[CoreAddress]) {
    let (arenas, cores) = (arenas.to_vec(), cores.to_vec());
    let work = move || {
        if shares_cpus() {
            // Refused at worst, and then the work is done at full priority.
            let _ = rustix::process::setpriority_process(None, NICE_WHEN_SHARED);
        }
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

/// So many refusals in a row from the first step on, and there are no huge pages here.
const REFUSALS_MAX: usize = 8;

/// How many steps became huge pages.
#[derive(Debug, Default, PartialEq, Eq)]
struct HugePages {
    got: usize,
    refused: usize,
}

impl HugePages {
    fn try_one(&mut self, collapse: impl FnOnce() -> std::io::Result<()>) {
        let are_none = self.got == 0 && self.refused >= REFUSALS_MAX;
        if !are_none && collapse().is_ok() {
            self.got += 1;
        } else {
            self.refused += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse() -> std::io::Result<()> {
        Err(std::io::ErrorKind::InvalidInput.into())
    }

    #[test]
    fn what_is_refused_is_passed_over() {
        let mut pages = HugePages::default();
        pages.try_one(refuse);
        pages.try_one(|| Ok(()));
        (0..2 * REFUSALS_MAX).for_each(|_| pages.try_one(refuse));
        pages.try_one(|| Ok(()));
        let (got, refused) = (2, 1 + 2 * REFUSALS_MAX);
        assert_eq!(pages, HugePages { got, refused });
    }

    #[test]
    fn a_kernel_that_has_none_is_not_asked_again_and_again() {
        let mut pages = HugePages::default();
        (0..REFUSALS_MAX).for_each(|_| pages.try_one(refuse));
        pages.try_one(|| panic!("asked again"));
        let (got, refused) = (0, REFUSALS_MAX + 1);
        assert_eq!(pages, HugePages { got, refused });
    }
}

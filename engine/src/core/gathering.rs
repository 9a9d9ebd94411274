//! Who shares a barrier: it is held back until all is written that was waited for when it became
//! due, so that clients who commit at the same time pay for one flush of the device, not for two
//! in turn (group commit).

use super::request::Needs;
use crate::shard::Shard;
use crate::wal::Health;

/// What the next barrier is held back for.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Fixed when the barrier became due: who comes later cannot hold it back further.
    needs: Option<Needs>,
}

impl Gathering {
    /// A barrier is due for some of those who wait, `waiting` being all of their needs. Whether it
    /// may begin: each write that it is held back for has ended, or may not end soon.
    pub(super) fn is_complete<'a>(
        &mut self,
        waiting: impl Iterator<Item = &'a Needs>,
        shards: &[Shard],
    ) -> bool {
        let needs = self.needs.get_or_insert_with(|| {
            let mut all = Needs::default();
            waiting
                .flat_map(Needs::iter)
                .for_each(|(position, batch)| all.raise(position, batch));
            all
        });
        needs.iter().all(|(position, batch)| {
            let log = shards[position].log();
            log.written_through() >= batch || log.health() != Health::Good
        })
    }

    /// A barrier begins.
    pub(super) fn end(&mut self) {
        self.needs = None;
    }
}

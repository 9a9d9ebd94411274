//! Maps: which parts of a range hold data, and where, from the index alone.

use std::sync::Arc;

use super::request::{Failure, Origin, Progress, RequestKey};
use super::{Core, PeerMessage, Request};
use crate::block::{ShardId, Span};
use crate::extents::{Caches, Extent, MapQuery, Seat, ShardRuns, interleave};
use crate::identity::VolumeId;
use crate::index::Baseline;
use crate::shard::{Shard, VolumeSlot};

/// Fewest runs that a shard is asked for, unless fewer extents are wanted.
const RUNS_MIN: usize = 64;

/// A map whose shards have not all answered.
pub(super) struct PendingMap {
    span: Span,
    extents_max: usize,
    answers: Vec<ShardRuns>,
}

impl PendingMap {
    /// The answer, once every shard has said what it knows.
    pub(super) fn extents(&self) -> Vec<Extent> {
        interleave(self.span, &self.answers, self.extents_max)
    }
}

impl Core {
    /// From now on maps tell what these caches have of committed blocks.
    pub fn set_caches(&mut self, caches: Arc<dyn Caches>) {
        self.caches = Some(caches);
    }

    /// Tells what a range of the volume holds, from its first byte on: at least one block, at most
    /// [`MapQuery::extents_max`] extents; a shorter answer than was asked for is normal. Done: the
    /// extents were appended to `out`. Pending: they come with the [`super::Done`].
    ///
    /// What was answered before is seen; a write still under way may be seen or not.
    pub fn map(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        query: MapQuery,
        out: &mut Vec<Extent>,
    ) -> Progress {
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        if query.len == 0 {
            return Progress::Done;
        }
        let span = Span {
            offset: query.offset,
            len: query.len,
            block_size: volume.block_size,
        };
        let answers = match self.map_shards(slot, span, query) {
            Ok(answers) => answers,
            Err(failure) => return Progress::Failed(failure),
        };
        let map = PendingMap {
            span,
            extents_max: query.extents_max,
            answers,
        };
        let mask = self.peers_of(span);
        if mask == 0 {
            out.extend(map.extents());
            return Progress::Done;
        }
        let mut request = Request::new(origin, false);
        request.map = Some(Box::new(map));
        let key = self.requests.insert(request);
        self.ask_peers(key, mask, |request| PeerMessage::Map {
            request,
            slot,
            query,
        });
        Progress::Pending(key)
    }

    /// Keeps an earlier image of the volume, the part of each of this core's shards, so that maps
    /// can tell what has changed since. Nothing happens if that volume is not served any more.
    pub fn add_baseline(
        &mut self,
        (slot, id): (VolumeSlot, VolumeId),
        seat: Seat,
        parts: Vec<(ShardId, Baseline)>,
    ) {
        if self.served(slot).is_none_or(|volume| volume.id != id) {
            return;
        }
        for (shard, baseline) in parts {
            let position = self.position(shard).expect("a part of an own shard");
            self.shards[position].add_baseline(slot, seat, baseline);
        }
    }

    /// Gives up an earlier image; maps that still ask about it fail.
    pub fn remove_baseline(&mut self, (slot, id): (VolumeSlot, VolumeId), seat: Seat) {
        if self.served(slot).is_some_and(|volume| volume.id == id) {
            for shard in &mut self.shards {
                shard.remove_baseline(slot, seat);
            }
        }
    }

    /// The part of another core's map that is of own shards.
    pub(super) fn map_own(
        &self,
        slot: VolumeSlot,
        query: MapQuery,
    ) -> Result<Vec<ShardRuns>, Failure> {
        let volume = self.served(slot).ok_or(Failure::Gone)?;
        let span = Span {
            offset: query.offset,
            len: query.len,
            block_size: volume.block_size,
        };
        self.map_shards(slot, span, query)
    }

    fn map_shards(
        &self,
        slot: VolumeSlot,
        span: Span,
        query: MapQuery,
    ) -> Result<Vec<ShardRuns>, Failure> {
        // So many extents have at most as many runs in any one shard, and most often far fewer:
        // where shards differ, each row is several extents. Else the answer is a quarter as long.
        let runs_max = query.extents_max.min(RUNS_MIN.max(query.extents_max / 4));
        let own = self.shards.iter().map(Shard::id);
        let asked = own.map(|shard| (shard, span.local_range(shard)));
        asked
            .zip(&self.shards)
            .filter(|((_, range), _)| !range.is_empty())
            .map(|((id, range), shard)| {
                let caches = self.caches.as_deref();
                let runs = shard.map(slot, range, query.view, runs_max, caches);
                // Never taken for unchanged: what a block was then is not known.
                Ok((id, runs.ok_or(Failure::Gone)?))
            })
            .collect()
    }

    /// A peer has answered its part of a map.
    pub(super) fn mapped(&mut self, key: RequestKey, result: Result<Vec<ShardRuns>, Failure>) {
        let result = result.map(|mut answers| {
            if let Some(map) = &mut self.requests.get(key).map {
                map.answers.append(&mut answers);
            }
        });
        self.part_done(key, result);
    }
}

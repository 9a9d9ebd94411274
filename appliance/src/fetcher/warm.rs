//! Warm-ups: read a volume's objects into the caches in the background, the newest ones first,
//! behind everything that somebody waits for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taipan_engine::api::{WarmState, WarmStatus, WarmVolume};
use taipan_engine::block::BlockSize;
use taipan_engine::chunk::{ChunkRef, ChunkView};
use taipan_engine::error::{Error, Result};
use taipan_engine::identity::VolumeId;
use taipan_engine::volume::VolumeSettings;

use super::queues::{Class, Source, Work};
use super::reads::{Landing, Reads};
use super::runs::runs;

/// GETs of one warm-up under way or queued, at most.
const GETS_MAX: usize = 4;
/// One GET is at most so long.
const GET_BYTES_MAX: usize = 4 << 20;
/// Slots that are there already are read along if they are no more than this.
const GAP_BYTES: usize = 64 << 10;

/// How a warm-up is getting on, for whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<WarmStatus>>);

impl Progress {
    pub(super) fn get(&self) -> WarmStatus {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut WarmStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The blocks that a request names; `None`: all.
pub(super) fn blocks_of(
    request: &WarmVolume,
    settings: &VolumeSettings,
) -> Result<Option<Range<u64>>> {
    let size = settings.size_bytes;
    let (offset, length) = match (request.offset_bytes, request.length_bytes) {
        (None, None) => return Ok(None),
        (offset, length) => (offset.unwrap_or(0), length),
    };
    let end = length.map_or(Some(size), |length| offset.checked_add(length));
    match end {
        Some(end) if offset < end && end <= size => {
            let block_bytes = settings.block_size().bytes() as u64;
            Ok(Some(offset / block_bytes..end.div_ceil(block_bytes)))
        }
        _ => Err(Error::invalid(format!(
            "the range must not be empty and must end within the volume's {size} bytes"
        ))),
    }
}

/// What is to be warmed.
pub(super) struct WarmJob {
    pub(super) volume: VolumeId,
    pub(super) block_size: BlockSize,
    /// Blocks, by number; `None`: all.
    pub(super) blocks: Option<Range<u64>>,
    pub(super) progress: Progress,
}

/// A warm-up that is not done.
pub(super) struct Warm {
    job: WarmJob,
    /// Objects not looked at yet.
    rest: VecDeque<ChunkRef>,
    /// GETs under way or queued.
    gets: usize,
    /// Bytes that still fit into the cache.
    room: u64,
}

impl Reads {
    pub(super) fn begin_warming(&mut self, job: WarmJob) {
        let rest: VecDeque<_> = self.tables.newest_first(job.volume).into();
        job.progress.change(|status| {
            *status = WarmStatus {
                state: WarmState::Running,
                objects: rest.len() as u64,
                ..WarmStatus::default()
            };
        });
        let room = self.warm_room();
        self.warms.retain(|warm| warm.job.volume != job.volume);
        self.warms.push(Warm {
            job,
            rest,
            gets: 0,
            room,
        });
    }

    /// Bytes that a warm-up may bring.
    fn warm_room(&self) -> u64 {
        match &self.file {
            Some(file) if file.is_on() => file.capacity_bytes(),
            _ => self.ram.capacity_bytes() / 2,
        }
    }

    /// Starts what the warm-ups may have under way now, and ends those that are done.
    pub(super) fn go_on_warming(&mut self) {
        if self.warms.is_empty() {
            return;
        }
        let mut warms = std::mem::take(&mut self.warms);
        for warm in &mut warms {
            let busy = |reads: &Self| reads.file.as_ref().is_some_and(|file| file.is_busy());
            while warm.gets < GETS_MAX && warm.room > 0 && !busy(self) {
                let Some(chunk) = warm.rest.pop_front() else {
                    break;
                };
                self.warm_object(warm, chunk);
            }
            let left = warm.rest.len() as u64;
            let ended = warm.gets == 0 && (left == 0 || warm.room == 0);
            warm.job.progress.change(|status| {
                status.objects_done = status.objects - left;
                if ended {
                    let all = left == 0;
                    status.state = if all {
                        WarmState::Done
                    } else {
                        WarmState::Full
                    };
                }
            });
        }
        warms.retain(|warm| warm.gets > 0 || (!warm.rest.is_empty() && warm.room > 0));
        self.warms = warms;
    }

    fn warm_object(&mut self, warm: &mut Warm, chunk: ChunkRef) {
        if warm.job.blocks.is_none() {
            let slots: Vec<u32> = (0..chunk.slots).collect();
            return self.warm_slots(warm, chunk, &slots);
        }
        warm.gets += 1;
        let head = 0..u64::from(chunk.head_bytes);
        let get = self
            .gets
            .clone()
            .get(chunk.key.object(), head, Duration::ZERO);
        let volume = warm.job.volume;
        self.flying.push(Box::pin(async move {
            let head = get.await.1.and_then(|bytes| ChunkView::parse(&bytes));
            Landing::Head(volume, chunk, head)
        }));
    }

    /// The table of an object says which of its slots are in the range.
    pub(super) fn head_landed(&mut self, id: VolumeId, chunk: ChunkRef, head: Result<ChunkView>) {
        let mut warms = std::mem::take(&mut self.warms);
        let warm = warms.iter_mut().find(|warm| warm.job.volume == id);
        if let Some(warm) = warm {
            warm.gets = warm.gets.saturating_sub(1);
            let wanted = warm.job.blocks.clone().unwrap_or(0..u64::MAX);
            match head {
                Ok(view) if view.is(&chunk) => {
                    let slots = view.blocks().filter(|(block, _)| wanted.contains(&block.0));
                    let slots: Vec<u32> = slots.map(|(_, slot)| slot).collect();
                    self.warm_slots(warm, chunk, &slots);
                }
                Ok(_) => tracing::warn!(object = %chunk.key, "an object is not what it should be"),
                Err(error) => tracing::warn!(%error, "an object is left out of a warm-up"),
            }
        }
        self.warms = warms;
    }

    fn warm_slots(&mut self, warm: &mut Warm, chunk: ChunkRef, slots: &[u32]) {
        let block_size = warm.job.block_size;
        let lacking: Vec<u32> = slots
            .iter()
            .copied()
            .filter(|slot| self.lacks_warm(&chunk, *slot))
            .collect();
        let gap_max = (GAP_BYTES / block_size.bytes()) as u32;
        let len_max = (GET_BYTES_MAX / block_size.bytes()) as u32;
        for slots in runs(&lacking, gap_max, len_max) {
            let bytes = (slots.len() * block_size.bytes()) as u64;
            warm.room = warm.room.saturating_sub(bytes);
            warm.gets += 1;
            let work = Work {
                chunk,
                block_size,
                class: Class::Warm,
                source: Source::Backend,
                running: None,
                failures: 0,
                again: false,
                stream: None,
                warm: Some(warm.job.volume),
            };
            self.start_get(slots, work);
        }
    }

    /// A GET of a warm-up ended: so many blocks came, so many did not.
    pub(super) fn warmed(&mut self, volume: VolumeId, blocks: u64, failed: u64) {
        self.counters.warmed_blocks.add(blocks);
        let warm = self.warms.iter_mut().find(|warm| warm.job.volume == volume);
        if let Some(warm) = warm {
            warm.gets = warm.gets.saturating_sub(1);
            warm.job.progress.change(|status| {
                status.blocks += blocks;
                status.failed_blocks += failed;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_whole_blocks_within_the_volume() {
        let settings = VolumeSettings::with_size(1 << 20);
        let blocks = |offset_bytes, length_bytes| {
            let request = WarmVolume {
                offset_bytes,
                length_bytes,
            };
            blocks_of(&request, &settings)
        };
        assert_eq!(blocks(None, None).unwrap(), None);
        assert_eq!(blocks(Some(5000), Some(1)).unwrap(), Some(1..2));
        assert_eq!(blocks(None, Some(8193)).unwrap(), Some(0..3));
        assert_eq!(blocks(Some(4096), None).unwrap(), Some(1..256));
        for (offset, length) in [(0, 0), (1 << 20, 1), (u64::MAX, 2), (0, (1 << 20) + 1)] {
            assert!(blocks(Some(offset), Some(length)).is_err());
        }
    }
}

//! One shard: its log and, for every volume, where each of its blocks is.

mod map;

use std::ops::Range;
use std::sync::Arc;

use crate::block::{BlockNum, BlockSize, LocalBlock, ShardId};
use crate::extents::Seat;
use crate::identity::{BatchNum, Epoch, Lsn, VolumeId};
use crate::index::{Baseline, ChunkLoc, Hit, LeafChanges, Overlay, Point, ShardBase};
use crate::wal::{MarkKind, PlaceMap, RecordHead, ShardLog, Shortage};

/// Index of a served volume in the tables of every core; reused after a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeSlot(pub u32);

/// Heap memory of one shard's index, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexBytes {
    /// Uncommitted blocks: bounded by the WAL.
    pub overlay: usize,
    /// Committed blocks still in batch memory: bounded by that memory.
    pub warm: usize,
    /// Committed blocks.
    pub base: usize,
}

/// Where the newest version of a block is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Nowhere: it reads as zeros.
    Zero,
    /// In batch memory: exactly one block.
    Memory(&'a [u8]),
    /// Only in the WAL file.
    Wal(WalBlock),
    /// In a chunk of the backend.
    Chunk(ChunkLoc),
}

/// A block in the WAL file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalBlock {
    /// First byte within the shard's WAL file.
    pub file_offset: u64,
    /// CRC32C of the block.
    pub crc: u32,
}

/// What one shard hands over at a cut.
pub struct SealedShard {
    /// The shard.
    pub shard: ShardId,
    /// Frozen overlays of the volumes that changed.
    pub volumes: Vec<(VolumeSlot, VolumeId, Arc<Overlay>)>,
    /// Where the batches they name are, in memory and in the WAL file.
    pub places: Arc<PlaceMap>,
}

struct ShardVolume {
    id: VolumeId,
    block_size: BlockSize,
    active: Overlay,
    frozen: Vec<(Epoch, Arc<Overlay>)>,
    /// Committed blocks that are still in batch memory: the read cache. Says the same as `base`.
    warm: Overlay,
    /// Points in `warm` at which the evicted ones are dropped.
    warm_limit: usize,
    base: ShardBase,
    /// Earlier images, to tell what has changed.
    baselines: Vec<(Seat, Baseline)>,
}

/// Fewest points of a read cache that are worth a look for evicted ones.
const WARM_POINTS_MIN: usize = 1024;

/// One shard of all volumes. Single-threaded; owned by one data core.
pub struct Shard {
    id: ShardId,
    log: ShardLog,
    next_lsn: Lsn,
    volumes: Vec<Option<ShardVolume>>,
}

impl Shard {
    /// A shard over `log`; the next record gets `next_lsn`.
    pub fn new(id: ShardId, log: ShardLog, next_lsn: Lsn) -> Self {
        Self {
            id,
            log,
            next_lsn,
            volumes: Vec::new(),
        }
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The shard's log.
    pub fn log(&self) -> &ShardLog {
        &self.log
    }

    /// The shard's log, for the driver's completions.
    pub fn log_mut(&mut self) -> &mut ShardLog {
        &mut self.log
    }

    /// Starts serving a volume with what recovery found: un-committed `overlay`, committed `base`.
    pub fn add_volume(
        &mut self,
        slot: VolumeSlot,
        id: VolumeId,
        block_size: BlockSize,
        overlay: Overlay,
        base: ShardBase,
    ) {
        let index = slot.0 as usize;
        if self.volumes.len() <= index {
            self.volumes.resize_with(index + 1, || None);
        }
        assert!(
            self.volumes[index].is_none(),
            "volume slot {index} is taken"
        );
        self.volumes[index] = Some(ShardVolume {
            id,
            block_size,
            active: overlay,
            frozen: Vec::new(),
            warm: Overlay::new(),
            warm_limit: WARM_POINTS_MIN,
            base,
            baselines: Vec::new(),
        });
    }

    /// Keeps an earlier image of a volume, in terms of its present chunk table, to compare it with.
    ///
    /// # Panics
    /// If the volume is not served.
    pub fn add_baseline(&mut self, slot: VolumeSlot, seat: Seat, baseline: Baseline) {
        self.remove_baseline(slot, seat);
        let volume = self.volumes[slot.0 as usize].as_mut();
        let volume = volume.expect("the core checked that the slot is served");
        volume.baselines.push((seat, baseline));
    }

    /// Gives up an earlier image.
    pub fn remove_baseline(&mut self, slot: VolumeSlot, seat: Seat) {
        if let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) {
            volume.baselines.retain(|(taken, _)| *taken != seat);
        }
    }

    /// Forgets a deleted volume.
    pub fn remove_volume(&mut self, slot: VolumeSlot) {
        if let Some(volume) = self.volumes.get_mut(slot.0 as usize) {
            *volume = None;
        }
    }

    fn volume(&self, slot: VolumeSlot) -> &ShardVolume {
        self.volumes[slot.0 as usize]
            .as_ref()
            .expect("the core checked that the slot is served")
    }

    /// The newest version of block `local`; `None` when its bytes are lost to the log.
    #[inline]
    pub fn find(&self, slot: VolumeSlot, local: LocalBlock) -> Option<Found<'_>> {
        let volume = self.volume(slot);
        let hit = volume.active.lookup(local).or_else(|| {
            volume
                .frozen
                .iter()
                .rev()
                .find_map(|(_, layer)| layer.lookup(local))
        });
        Some(match hit {
            Some(Hit::Zero(_)) => Found::Zero,
            Some(Hit::Data(point)) => {
                match self.log.memory(point.place, volume.block_size.bytes()) {
                    Some(bytes) => Found::Memory(bytes),
                    None => Found::Wal(WalBlock {
                        file_offset: self.log.file_offset(point.place)?,
                        crc: point.crc,
                    }),
                }
            }
            None => return Some(self.find_committed(volume, local)),
        })
    }

    #[inline]
    fn find_committed<'a>(&'a self, volume: &'a ShardVolume, local: LocalBlock) -> Found<'a> {
        if let Some(Hit::Data(point)) = volume.warm.lookup(local)
            && let Some(bytes) = self.log.memory(point.place, volume.block_size.bytes())
        {
            return Found::Memory(bytes);
        }
        volume.base.lookup(local).map_or(Found::Zero, Found::Chunk)
    }

    /// Appends whole blocks `start..start + count`; `fill(i, block)` writes block i and returns its
    /// CRC32C. All or nothing.
    #[inline]
    pub fn write_run(
        &mut self,
        slot: VolumeSlot,
        epoch: Epoch,
        start: LocalBlock,
        count: u32,
        fill: impl FnMut(u32, &mut [u8]) -> u32,
    ) -> Result<BatchNum, Shortage> {
        let volume = self.volumes[slot.0 as usize]
            .as_mut()
            .expect("the slot is served");
        let lsn = self.next_lsn;
        let head = RecordHead {
            volume: volume.id,
            epoch,
            lsn,
            start,
            count,
            block_size: volume.block_size,
        };
        let active = &mut volume.active;
        let batch = self.log.append_data(&head, fill, |i, place, crc| {
            active.insert_point(
                LocalBlock(start.0 + u64::from(i)),
                Point { lsn, place, crc },
            );
        })?;
        self.next_lsn = lsn.next();
        Ok(batch)
    }

    /// Appends a record without payload that makes the shard-local `range` read as zeros.
    pub fn write_mark(
        &mut self,
        slot: VolumeSlot,
        epoch: Epoch,
        range: Range<u64>,
        kind: MarkKind,
    ) -> Result<BatchNum, Shortage> {
        let volume = self.volumes[slot.0 as usize]
            .as_mut()
            .expect("the slot is served");
        let lsn = self.next_lsn;
        let batch = self
            .log
            .append_mark(volume.id, epoch, lsn, range.clone(), kind)?;
        self.next_lsn = lsn.next();
        volume.active.insert_zero(range, lsn);
        Ok(batch)
    }

    /// Freezes what changed up to `epoch` in the volumes that are `wanted`. Later records have a
    /// greater stamp.
    pub fn seal(
        &mut self,
        epoch: Epoch,
        wanted: impl Fn(VolumeId) -> bool,
    ) -> Vec<(VolumeSlot, VolumeId, Arc<Overlay>)> {
        let mut sealed = Vec::new();
        for (index, volume) in self.volumes.iter_mut().enumerate() {
            let Some(volume) = volume else { continue };
            if volume.active.is_empty() || !wanted(volume.id) {
                continue;
            }
            let layer = Arc::new(std::mem::take(&mut volume.active));
            volume.frozen.push((epoch, Arc::clone(&layer)));
            sealed.push((VolumeSlot(index as u32), volume.id, layer));
        }
        sealed
    }

    /// The cut `epoch` of the volume is committed: `leaves` replace its frozen layers.
    pub fn commit(&mut self, slot: VolumeSlot, id: VolumeId, epoch: Epoch, leaves: LeafChanges) {
        let Some(Some(volume)) = self.volumes.get_mut(slot.0 as usize) else {
            return;
        };
        if volume.id != id {
            return;
        }
        volume.base.install(leaves);
        let log = &self.log;
        let bytes = volume.block_size.bytes();
        let resident = |place| log.memory(place, bytes).is_some();
        let split = volume
            .frozen
            .partition_point(|(sealed, _)| *sealed <= epoch);
        for (_, layer) in volume.frozen.drain(..split) {
            volume.warm.absorb(&layer);
        }
        if volume.warm.zeros_len() > 0 || volume.warm.points_len() > volume.warm_limit {
            volume.warm.keep_points(resident);
            volume.warm_limit = (volume.warm.points_len() * 2).max(WARM_POINTS_MIN);
        }
    }

    /// Number of the volume's blocks that are not in a committed chunk, an upper bound.
    pub fn uncommitted_blocks(&self, slot: VolumeSlot) -> u64 {
        let Some(Some(volume)) = self.volumes.get(slot.0 as usize) else {
            return 0;
        };
        let frozen = volume.frozen.iter().map(|(_, layer)| layer.points_len());
        (volume.active.points_len() + frozen.sum::<usize>()) as u64
    }

    /// Memory of the index of all volumes.
    pub fn index_bytes(&self) -> IndexBytes {
        let mut sum = IndexBytes::default();
        for volume in self.volumes.iter().flatten() {
            let frozen = volume.frozen.iter().map(|(_, layer)| layer.heap_bytes());
            sum.overlay += volume.active.heap_bytes() + frozen.sum::<usize>();
            sum.warm += volume.warm.heap_bytes();
            sum.base += volume.base.heap_bytes();
        }
        sum
    }

    /// The volume block whose shard-local number is `local`.
    pub fn global(&self, local: LocalBlock) -> BlockNum {
        local.global(self.id)
    }
}

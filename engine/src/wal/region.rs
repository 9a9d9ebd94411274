//! The arena's control area: what recovery needs to find the batches of a process that was killed.
//!
//! Layout in `docs/internals/wal.md`. Words that change are stored one by one in the order in which
//! they must become visible; a batch's `live` word always last.

use crate::arena::Arena;
use crate::block::{PAGE_BYTES, ShardId};
use crate::identity::{BatchNum, Incarnation};

use super::config::{BootId, LogIdentity, WalId};
use super::format::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};

/// First bytes of a region, stored last when it is set up.
pub const REGION_MAGIC: [u8; 8] = *b"TAIPREGN";
/// Version of the region's layout.
pub const REGION_VERSION: u16 = 1;

const MAGIC: usize = 0;
const VERSION_AT: usize = 8;
const SHARD: usize = 10;
const DESCRIPTORS: usize = 12;
const WAL: usize = 16;
const INCARNATION: usize = 24;
const BOOT: usize = 32;
const REGION_BYTES: usize = 48;
const RING_START: usize = 56;
const FIXED_CRC: usize = 124;
const DURABLE_THROUGH: usize = 128;
const LAST_BATCH: usize = 136;

const DESCRIPTORS_START: usize = PAGE_BYTES;
const DESCRIPTOR_BYTES: usize = 32;
const DESCRIPTOR_NUMBER: usize = 0;
const DESCRIPTOR_SPAN: usize = 8;
const DESCRIPTOR_LIVE: usize = 16;

/// Most descriptors that a region to be read may have.
const DESCRIPTORS_MAX: u32 = 1 << 20;

/// Where the parts of a region lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    region_bytes: usize,
    descriptors: u32,
}

impl RegionLayout {
    /// The layout of a region of `region_bytes` in which at most `undurable_bytes` wait.
    pub fn new(region_bytes: usize, undurable_bytes: usize) -> Self {
        // A batch has at least its header page; one more for a batch that is being opened.
        let batches = (undurable_bytes / PAGE_BYTES + 1).next_power_of_two();
        Self {
            region_bytes,
            descriptors: batches.min(DESCRIPTORS_MAX as usize) as u32,
        }
    }

    /// Undurable batches that can be described at once.
    pub fn descriptors(self) -> u32 {
        self.descriptors
    }

    /// Page in which log heads are prepared for writing.
    pub fn staging_page(self) -> usize {
        let bytes = self.descriptors as usize * DESCRIPTOR_BYTES;
        DESCRIPTORS_START + bytes.next_multiple_of(PAGE_BYTES)
    }

    /// First byte of the ring of batch pages.
    pub fn ring_start(self) -> usize {
        self.staging_page() + PAGE_BYTES
    }

    /// Pages of the ring; zero when the region is too small for its control area.
    pub fn ring_pages(self) -> usize {
        self.region_bytes.saturating_sub(self.ring_start()) / PAGE_BYTES
    }

    fn descriptor(self, batch: BatchNum) -> usize {
        let slot = batch.0 & u64::from(self.descriptors - 1);
        DESCRIPTORS_START + slot as usize * DESCRIPTOR_BYTES
    }

    /// Sets up the control area, which is zeroed.
    pub(super) fn format(self, arena: &mut Arena, identity: &LogIdentity) {
        let mut fixed = [0u8; FIXED_CRC + 4];
        fixed[MAGIC..MAGIC + 8].copy_from_slice(&REGION_MAGIC);
        put_u16(&mut fixed, VERSION_AT, REGION_VERSION);
        fixed[SHARD] = identity.shard.index() as u8;
        put_u32(&mut fixed, DESCRIPTORS, self.descriptors);
        put_u64(&mut fixed, WAL, identity.wal.0);
        put_u64(&mut fixed, INCARNATION, identity.incarnation.0);
        fixed[BOOT..BOOT + 16].copy_from_slice(&identity.boot.0);
        put_u64(&mut fixed, REGION_BYTES, self.region_bytes as u64);
        put_u64(&mut fixed, RING_START, self.ring_start() as u64);
        let crc = crc32c::crc32c(&fixed[..FIXED_CRC]);
        put_u32(&mut fixed, FIXED_CRC, crc);
        arena
            .bytes_mut(8, fixed.len() - 8)
            .copy_from_slice(&fixed[8..]);
        arena.store_word(MAGIC, u64::from_le_bytes(REGION_MAGIC));
    }

    /// Describes a batch that is being opened; it holds nothing yet. Its slot's former batch must
    /// be durable. Returns the offset of its `live` word.
    pub(super) fn describe(
        self,
        arena: &mut Arena,
        batch: BatchNum,
        first_byte: usize,
        pages: u32,
    ) -> usize {
        let at = self.descriptor(batch);
        let page = ((first_byte - self.ring_start()) / PAGE_BYTES) as u64;
        arena.store_word(at + DESCRIPTOR_LIVE, 0);
        arena.store_word(at + DESCRIPTOR_SPAN, page | u64::from(pages) << 32);
        arena.store_word(at + DESCRIPTOR_NUMBER, batch.0);
        arena.store_word(LAST_BATCH, batch.0);
        at + DESCRIPTOR_LIVE
    }

    /// Notes how far the log is durable; earlier batches need not be found here.
    pub(super) fn note_durable(arena: &mut Arena, through: BatchNum) {
        arena.store_word(DURABLE_THROUGH, through.0);
    }

    /// Notes the last batch before the first of this writer.
    pub(super) fn note_start(arena: &mut Arena, before: BatchNum) {
        arena.store_word(LAST_BATCH, before.0);
        arena.store_word(DURABLE_THROUGH, before.0);
    }
}

/// The `live` word of a batch: how many records and payload pages are complete.
#[inline]
pub(super) fn live_word(records: u32, payload_pages: u32) -> u64 {
    u64::from(records) << 32 | u64::from(payload_pages)
}

/// The fixed part of a region's control page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHeader {
    /// Shard whose region this is.
    pub shard: ShardId,
    /// The WAL.
    pub wal: WalId,
    /// Who wrote it.
    pub incarnation: Incarnation,
    /// Host boot in which it was written.
    pub boot: BootId,
    /// All batches up to here were durable in the WAL file.
    pub durable_through: BatchNum,
    /// The last batch opened.
    pub last_batch: BatchNum,
    /// Where its parts lie.
    pub layout: RegionLayout,
}

/// What a control page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionPage {
    /// Never set up: nothing was ever answered from it.
    Blank,
    /// A region.
    Header(RegionHeader),
    /// Neither; its content cannot be told.
    Damaged,
}

impl RegionPage {
    /// Reads a control page of a region of `region_bytes`.
    pub fn decode(page: &[u8], region_bytes: u64) -> Self {
        let Some(fixed) = page.get(..LAST_BATCH + 8) else {
            return Self::Damaged;
        };
        if get_u64(fixed, MAGIC) == 0 {
            return Self::Blank;
        }
        Self::decode_fixed(fixed, region_bytes).map_or(Self::Damaged, Self::Header)
    }

    fn decode_fixed(fixed: &[u8], region_bytes: u64) -> Option<RegionHeader> {
        if fixed[MAGIC..MAGIC + 8] != REGION_MAGIC
            || get_u16(fixed, VERSION_AT) != REGION_VERSION
            || crc32c::crc32c(&fixed[..FIXED_CRC]) != get_u32(fixed, FIXED_CRC)
        {
            return None;
        }
        let descriptors = get_u32(fixed, DESCRIPTORS);
        let bytes = get_u64(fixed, REGION_BYTES);
        let possible = descriptors.is_power_of_two()
            && descriptors <= DESCRIPTORS_MAX
            && bytes <= region_bytes
            && bytes <= 1 << 48;
        let layout = RegionLayout {
            region_bytes: usize::try_from(bytes).ok()?,
            descriptors,
        };
        let header = RegionHeader {
            shard: ShardId::new(fixed[SHARD])?,
            wal: WalId(get_u64(fixed, WAL)),
            incarnation: Incarnation(get_u64(fixed, INCARNATION)),
            boot: BootId(fixed[BOOT..BOOT + 16].try_into().ok()?),
            durable_through: BatchNum(get_u64(fixed, DURABLE_THROUGH)),
            last_batch: BatchNum(get_u64(fixed, LAST_BATCH)),
            layout,
        };
        (possible
            && get_u64(fixed, RING_START) == layout.ring_start() as u64
            && layout.ring_pages() > 0
            && header.last_batch.0 < u64::MAX
            && header.durable_through <= header.last_batch)
            .then_some(header)
    }
}

/// One batch of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionBatch {
    /// First byte of its header page within the region.
    pub first_byte: u64,
    /// Complete records.
    pub records: u32,
    /// Complete payload pages.
    pub payload_pages: u32,
}

impl RegionHeader {
    /// Bytes of the descriptor table, which starts at [`RegionHeader::descriptors_start`].
    pub fn descriptors_bytes(&self) -> usize {
        self.layout.descriptors as usize * DESCRIPTOR_BYTES
    }

    /// First byte of the descriptor table.
    pub fn descriptors_start(&self) -> u64 {
        DESCRIPTORS_START as u64
    }

    /// The batches that need not be in the WAL file, in order.
    ///
    /// # Errors
    /// The first batch that should be described and is not, or lies outside of the ring.
    pub fn undurable(&self, table: &[u8]) -> Result<Vec<(BatchNum, RegionBatch)>, BatchNum> {
        let first = self.durable_through.next();
        if self.last_batch.0 - self.durable_through.0 > u64::from(self.layout.descriptors) {
            return Err(first);
        }
        let mut batches = Vec::new();
        let mut pages_left = self.layout.ring_pages() as u64;
        for number in first.0..=self.last_batch.0 {
            let batch = BatchNum(number);
            let found = self.described(table, batch).ok_or(batch)?;
            // Batches do not overlap, so together they fit into the ring.
            let pages = u64::from(found.payload_pages) + 1;
            pages_left = pages_left.checked_sub(pages).ok_or(batch)?;
            batches.push((batch, found));
        }
        Ok(batches)
    }

    fn described(&self, table: &[u8], batch: BatchNum) -> Option<RegionBatch> {
        let at = self.layout.descriptor(batch) - DESCRIPTORS_START;
        let words = table.get(at..at + DESCRIPTOR_BYTES)?;
        let span = get_u64(words, DESCRIPTOR_SPAN);
        let live = get_u64(words, DESCRIPTOR_LIVE);
        let (page, reserved) = (span & u64::from(u32::MAX), span >> 32);
        let payload_pages = live as u32;
        let possible = get_u64(words, DESCRIPTOR_NUMBER) == batch.0
            && page + reserved <= self.layout.ring_pages() as u64
            && u64::from(payload_pages) < reserved;
        possible.then(|| RegionBatch {
            first_byte: self.layout.ring_start() as u64 + page * PAGE_BYTES as u64,
            records: (live >> 32) as u32,
            payload_pages,
        })
    }
}

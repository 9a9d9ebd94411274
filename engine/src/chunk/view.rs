//! Reads a chunk object's header, extent table and slots; nothing here can panic on bad bytes.

use serde::Serialize;

use super::builder::check_runs;
use super::{
    ChunkRef, DataRun, HEADER_BYTES, MAGIC, RUN_BYTES, SLOTS_MAX, VERSION, VERSION_SPARING,
    ZERO_RUNS_MAX, ZeroRun, field, head_bytes, low_bits, slot_stride,
};
use crate::block::{BlockNum, BlockSize, SHARD_COUNT};
use crate::checksum;
use crate::error::{Error, Result};
use crate::identity::Epoch;
use crate::object::ChunkKey;
use crate::object::fields::Fields;

/// Header and extent table of a chunk, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChunkView {
    /// The name under which it was stored.
    pub key: ChunkKey,
    /// Bytes of one block.
    pub block_size_bytes: u32,
    /// The cut to which its blocks belong.
    pub epoch: Epoch,
    /// Random, for key derivation.
    pub salt: [u8; 16],
    /// Key of the payload's encryption; 0 is none.
    pub key_id: u32,
    /// Bytes of header and table; the payload starts there.
    pub head_bytes: u32,
    /// Blocks held.
    pub slots: u32,
    /// Bytes of the whole object.
    pub object_bytes: u64,
    /// Blocks with data, ascending.
    pub runs: Vec<DataRun>,
    /// Blocks that read as zeros, ascending.
    pub zeros: Vec<ZeroRun>,
}

/// Where a chunk has a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In this slot.
    Slot(u32),
    /// It reads as zeros.
    Zero,
}

impl ChunkView {
    /// Bytes of header and table, from the first [`HEADER_BYTES`] of an object; so that a reader
    /// without a [`ChunkRef`] knows how much to fetch.
    pub fn head_len(header: &[u8]) -> Result<usize> {
        Ok(Header::parse(header)?.head_bytes as usize)
    }

    /// Parses at least the head of an object; what follows the head is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let header = Header::parse(bytes)?;
        let Some(table) = bytes.get(HEADER_BYTES..header.head_bytes as usize) else {
            return Err(Error::corrupt(format!(
                "chunk {}: its head has {} bytes, {} are there",
                header.key,
                header.head_bytes,
                bytes.len()
            )));
        };
        let refuse = |why: &str| Error::corrupt(format!("chunk {}: {why}", header.key));
        if crc32c::crc32c(table) != header.table_crc {
            return Err(refuse("its extent table fails the CRC"));
        }
        let mut fields = Fields::new(table);
        let runs = fields.list(header.data_runs, RUN_BYTES, |fields| {
            Ok(DataRun {
                start: BlockNum(fields.u64()?),
                count: fields.u32()?,
                slot: fields.u32()?,
            })
        })?;
        let zeros = fields.list(header.zero_runs, RUN_BYTES, |fields| {
            Ok(ZeroRun::from_words(fields.u64()?, fields.u64()?))
        })?;
        if header.version == VERSION && zeros.iter().any(|zero| !zero.spared.is_empty()) {
            return Err(refuse("a zero run spares shards, which its version cannot"));
        }
        check_runs(&runs, &zeros).map_err(refuse)?;
        if runs.last().map_or(0, |run| run.slot + run.count) != header.slots {
            return Err(refuse("its runs do not fill its slots"));
        }
        Ok(header.into_view(runs, zeros))
    }

    /// The block size.
    pub fn block_size(&self) -> BlockSize {
        BlockSize::new(self.block_size_bytes).unwrap_or(BlockSize::MIN)
    }

    /// What a manifest keeps of this chunk.
    pub fn reference(&self) -> ChunkRef {
        ChunkRef {
            key: self.key,
            head_bytes: self.head_bytes,
            slots: self.slots,
            bytes: self.object_bytes,
        }
    }

    /// Whether this is the chunk that `reference` names.
    pub fn is(&self, reference: &ChunkRef) -> bool {
        self.reference() == *reference
    }

    /// Where this chunk has `block`; `None` if it says nothing about it.
    pub fn find(&self, block: BlockNum) -> Option<Found> {
        let at = self.runs.partition_point(|run| run.start <= block);
        if let Some(run) = at.checked_sub(1).map(|at| self.runs[at]) {
            let step = block.0 - run.start.0;
            if step < u64::from(run.count) {
                return Some(Found::Slot(run.slot + step as u32));
            }
        }
        let at = self.zeros.partition_point(|run| run.start <= block);
        let run = at.checked_sub(1).map(|at| self.zeros[at])?;
        run.covers(block).then_some(Found::Zero)
    }

    /// All blocks with data and their slots, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockNum, u32)> + '_ {
        self.runs.iter().flat_map(|run| {
            (0..run.count).map(|i| (BlockNum(run.start.0 + u64::from(i)), run.slot + i))
        })
    }
}

/// The fixed header, checked.
struct Header {
    version: u16,
    key: ChunkKey,
    block_size: BlockSize,
    epoch: Epoch,
    salt: [u8; 16],
    key_id: u32,
    head_bytes: u32,
    slots: u32,
    data_runs: u32,
    zero_runs: u32,
    table_crc: u32,
    object_bytes: u64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(header) = bytes.get(..HEADER_BYTES) else {
            return Err(Error::corrupt(format!(
                "a chunk has at least {HEADER_BYTES} bytes, not {}",
                bytes.len()
            )));
        };
        if header[field::MAGIC] != MAGIC {
            return Err(Error::corrupt("this is no chunk: the magic differs"));
        }
        let crc = Fields::new(&header[field::HEADER_CRC]).u32()?;
        if crc32c::crc32c(&header[..field::HEADER_CRC.start]) != crc {
            return Err(Error::corrupt("the chunk's header fails its CRC"));
        }
        let u16_at = |range| Fields::new(&header[range]).u16();
        let u32_at = |range| Fields::new(&header[range]).u32();
        let u64_at = |range| Fields::new(&header[range]).u64();
        let version = u16_at(field::VERSION)?;
        let is_known = [VERSION, VERSION_SPARING].contains(&version);
        if !is_known || u16_at(field::FLAGS)? != 0 {
            return Err(Error::corrupt(format!(
                "chunk format {version} with its flags is not known to this release"
            )));
        }
        let block_bytes = u32_at(field::BLOCK_SIZE)?;
        let parsed = Self {
            version,
            key: ChunkKey::decode(&mut Fields::new(&header[field::KEY]))?,
            block_size: BlockSize::new(block_bytes)
                .ok_or_else(|| Error::corrupt(format!("chunk block size {block_bytes}")))?,
            epoch: Epoch(u64_at(field::EPOCH)?),
            salt: Fields::new(&header[field::SALT]).array()?,
            key_id: u32_at(field::KEY_ID)?,
            head_bytes: u32_at(field::HEAD_BYTES)?,
            slots: u32_at(field::SLOTS)?,
            data_runs: u32_at(field::DATA_RUNS)?,
            zero_runs: u32_at(field::ZERO_RUNS)?,
            table_crc: u32_at(field::TABLE_CRC)?,
            object_bytes: u64_at(field::OBJECT_BYTES)?,
        };
        let reserved_clear = header[field::RESERVED].iter().all(|&b| b == 0);
        if !reserved_clear || !parsed.is_consistent() {
            return Err(Error::corrupt(format!(
                "chunk {}: the header's counts do not agree",
                parsed.key
            )));
        }
        Ok(parsed)
    }

    fn is_consistent(&self) -> bool {
        let limits = self.slots <= SLOTS_MAX
            && self.data_runs <= self.slots
            && self.zero_runs <= ZERO_RUNS_MAX
            && self.key_id == 0;
        if !limits {
            return false;
        }
        let head = head_bytes(self.data_runs as usize, self.zero_runs as usize) as u64;
        let payload = u64::from(self.slots) * slot_stride(self.block_size) as u64;
        u64::from(self.head_bytes) == head && self.object_bytes == head + payload
    }

    fn into_view(self, runs: Vec<DataRun>, zeros: Vec<ZeroRun>) -> ChunkView {
        ChunkView {
            key: self.key,
            block_size_bytes: self.block_size.bytes() as u32,
            epoch: self.epoch,
            salt: self.salt,
            key_id: self.key_id,
            head_bytes: self.head_bytes,
            slots: self.slots,
            object_bytes: self.object_bytes,
            runs,
            zeros,
        }
    }
}

/// The block inside one slot's bytes, if it is `block` and passes its CRC32C.
pub fn verify_slot(slot: &[u8], block_size: BlockSize, block: BlockNum) -> Result<&[u8]> {
    let (bytes, stamp) = open_slot(slot, block_size)?;
    if !stamp.is_of(block) {
        return Err(Error::corrupt(format!(
            "the slot of block {} holds another block",
            block.0
        )));
    }
    Ok(bytes)
}

/// What a slot says about its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotStamp {
    /// CRC32C of the block.
    pub crc: u32,
    /// Low bits of its number.
    pub number: u32,
}

impl SlotStamp {
    /// Whether the slot can be that of `block`.
    pub fn is_of(self, block: BlockNum) -> bool {
        self.number == low_bits(block)
    }

    /// Whether these are the block's bytes.
    pub fn fits(self, block: &[u8]) -> bool {
        checksum::crc32c(block) == self.crc
    }
}

/// The block in a slot, checked against its CRC, and what the slot says about it; for a reader who
/// does not know yet which block it is.
pub fn open_slot(slot: &[u8], block_size: BlockSize) -> Result<(&[u8], SlotStamp)> {
    if slot.len() != slot_stride(block_size) {
        return Err(Error::corrupt("a slot has a wrong length"));
    }
    let (bytes, trailer) = slot.split_at(block_size.bytes());
    let mut fields = Fields::new(trailer);
    let (crc, number) = (fields.u32()?, fields.u32()?);
    if checksum::crc32c(bytes) != crc {
        return Err(Error::corrupt(format!(
            "the slot of a block numbered {number} fails its CRC"
        )));
    }
    Ok((bytes, SlotStamp { crc, number }))
}

/// Fuzz entry: parsing any bytes neither panics nor allocates more than they justify, and what
/// parses is consistent.
pub fn fuzz_chunk(data: &[u8]) {
    let _ = ChunkView::head_len(data);
    let Ok(view) = ChunkView::parse(data) else {
        return;
    };
    assert!(data.len() >= view.head_bytes as usize);
    let reference = view.reference();
    for (block, slot) in view.blocks() {
        assert_eq!(view.find(block), Some(Found::Slot(slot)));
        let range = reference.slot_range(view.block_size(), slot, 1);
        assert!(range.end <= view.object_bytes);
        if let Some(bytes) = data.get(range.start as usize..range.end as usize) {
            let _ = verify_slot(bytes, view.block_size(), block);
        }
    }
    for zero in &view.zeros {
        let first_row = (zero.start.0..zero.start.0 + zero.count).take(SHARD_COUNT);
        let zeroed = first_row.map(BlockNum).filter(|block| zero.covers(*block));
        let told: Vec<_> = zeroed.map(|block| view.find(block)).collect();
        assert!(!told.is_empty() && told.iter().all(|found| *found == Some(Found::Zero)));
    }
}

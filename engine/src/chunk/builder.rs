//! Writes a chunk object: table first, then each block copied once into its slot and checked.

use bytes::Bytes;

use super::{
    BLOCK_NUM_END, ChunkRef, ChunkSpec, DataRun, HEADER_BYTES, MAGIC, SLOTS_MAX, VERSION,
    VERSION_SPARING, ZERO_RUNS_MAX, ZeroRun, field, head_bytes, low_bits, slot_stride,
};
use crate::block::{BlockNum, SHARD_COUNT, ShardSet};
use crate::checksum;
use crate::error::{Error, Result};
use crate::object::fields::FieldsOut;

/// Builds one chunk as one contiguous buffer. The blocks are named first, then filled in order.
pub struct ChunkBuilder {
    spec: ChunkSpec,
    runs: Vec<DataRun>,
    slots: u32,
    head_bytes: usize,
    buffer: Vec<u8>,
    /// Next slot to fill, and the run that holds it.
    next_slot: u32,
    next_run: usize,
}

impl ChunkBuilder {
    /// A chunk of these blocks (strictly ascending) and zero runs (ascending, disjoint from each
    /// other and from the blocks). [`Invalid`](crate::error::ErrorKind::Invalid) otherwise.
    pub fn new(spec: &ChunkSpec, blocks: &[BlockNum], zeros: &[ZeroRun]) -> Result<Self> {
        let slots = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        if slots > SLOTS_MAX || zeros.len() > ZERO_RUNS_MAX as usize {
            return Err(Error::invalid(format!(
                "a chunk of {slots} blocks and {} zero runs is above the limits",
                zeros.len()
            )));
        }
        let runs = runs_of(blocks)?;
        check_runs(&runs, zeros).map_err(Error::invalid)?;
        let head_bytes = head_bytes(runs.len(), zeros.len());
        let object_bytes = head_bytes + blocks.len() * slot_stride(spec.block_size);
        let mut buffer = vec![0; object_bytes];
        let table = encode_table(&runs, zeros);
        buffer[HEADER_BYTES..head_bytes].copy_from_slice(&table);
        let mut builder = Self {
            spec: *spec,
            runs,
            slots,
            head_bytes,
            buffer,
            next_slot: 0,
            next_run: 0,
        };
        builder.write_header(zeros, crc32c::crc32c(&table));
        Ok(builder)
    }

    /// The block that the next slot takes; `None` when all are filled.
    pub fn next_block(&self) -> Option<BlockNum> {
        let run = self.runs.get(self.next_run)?;
        Some(BlockNum(run.start.0 + u64::from(self.next_slot - run.slot)))
    }

    /// Fills the next slot with a copy of `block`, whose CRC32C the WAL's record knows.
    /// [`Corrupt`](crate::error::ErrorKind::Corrupt) if the bytes differ from it.
    pub fn push(&mut self, block: &[u8], crc: u32) -> Result<()> {
        if block.len() != self.spec.block_size.bytes() {
            return Err(Error::invalid(format!(
                "{} bytes are not a block of {}",
                block.len(),
                self.spec.block_size.bytes()
            )));
        }
        self.push_with(crc, |slot| {
            slot.copy_from_slice(block);
            Ok(())
        })
    }

    /// Lets `fill` write the next block in place, then checks it against `crc`. After an error the
    /// slot stays the next one, so that the caller may try another copy of the block.
    pub fn push_with(
        &mut self,
        crc: u32,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(block) = self.next_block() else {
            return Err(Error::invalid("all slots of the chunk are filled"));
        };
        let stride = slot_stride(self.spec.block_size);
        let at = self.head_bytes + self.next_slot as usize * stride;
        let (bytes, trailer) =
            self.buffer[at..at + stride].split_at_mut(self.spec.block_size.bytes());
        fill(bytes)?;
        // Pair assertion: the CRC was computed when the block was appended to the WAL.
        let actual = checksum::crc32c(bytes);
        if actual != crc {
            return Err(Error::corrupt(format!(
                "block {} to be packed has CRC {actual:08x}, its WAL record says {crc:08x}",
                block.0
            ))
            .with_volume(self.spec.key.volume));
        }
        trailer[..4].copy_from_slice(&crc.to_le_bytes());
        trailer[4..].copy_from_slice(&low_bits(block).to_le_bytes());
        self.next_slot += 1;
        let run = self.runs[self.next_run];
        if self.next_slot == run.slot + run.count {
            self.next_run += 1;
        }
        Ok(())
    }

    /// The object and its reference; [`Invalid`](crate::error::ErrorKind::Invalid) while slots are
    /// empty.
    pub fn finish(self) -> Result<(Bytes, ChunkRef)> {
        if self.next_slot != self.slots {
            return Err(Error::invalid(format!(
                "{} of {} slots of the chunk are filled",
                self.next_slot, self.slots
            )));
        }
        let reference = ChunkRef {
            key: self.spec.key,
            head_bytes: self.head_bytes as u32,
            slots: self.slots,
            bytes: self.buffer.len() as u64,
        };
        debug_assert!(super::ChunkView::parse(&self.buffer).is_ok_and(|v| v.is(&reference)));
        Ok((Bytes::from(self.buffer), reference))
    }

    fn write_header(&mut self, zeros: &[ZeroRun], table_crc: u32) {
        let version = match zeros.iter().all(|zero| zero.spared.is_empty()) {
            true => VERSION,
            false => VERSION_SPARING,
        };
        let object_bytes = self.buffer.len() as u64;
        let (spec, runs) = (self.spec, self.runs.len() as u32);
        let header = &mut self.buffer[..HEADER_BYTES];
        let mut put = |range: std::ops::Range<usize>, bytes: &[u8]| {
            header[range].copy_from_slice(bytes);
        };
        let mut key = Vec::with_capacity(field::KEY.len());
        spec.key.encode_into(&mut key);
        put(field::MAGIC, &MAGIC);
        put(field::VERSION, &version.to_le_bytes());
        let block_bytes = spec.block_size.bytes() as u32;
        put(field::BLOCK_SIZE, &block_bytes.to_le_bytes());
        put(field::KEY, &key);
        put(field::SALT, &spec.salt);
        put(field::KEY_ID, &0u32.to_le_bytes());
        put(field::HEAD_BYTES, &(self.head_bytes as u32).to_le_bytes());
        put(field::SLOTS, &self.slots.to_le_bytes());
        put(field::DATA_RUNS, &runs.to_le_bytes());
        put(field::ZERO_RUNS, &(zeros.len() as u32).to_le_bytes());
        put(field::TABLE_CRC, &table_crc.to_le_bytes());
        put(field::OBJECT_BYTES, &object_bytes.to_le_bytes());
        put(field::EPOCH, &spec.epoch.0.to_le_bytes());
        let crc = crc32c::crc32c(&header[..field::HEADER_CRC.start]);
        header[field::HEADER_CRC].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Joins ascending blocks to runs.
fn runs_of(blocks: &[BlockNum]) -> Result<Vec<DataRun>> {
    let mut runs: Vec<DataRun> = Vec::new();
    for (slot, &block) in blocks.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.start.0 + u64::from(run.count) == block.0 => run.count += 1,
            Some(run) if run.start.0 + u64::from(run.count) > block.0 => {
                return Err(Error::invalid(format!(
                    "block {} does not ascend in the chunk's plan",
                    block.0
                )));
            }
            _ if block.0 >= BLOCK_NUM_END => {
                return Err(Error::invalid(format!("block {} is too large", block.0)));
            }
            _ => runs.push(DataRun {
                start: block,
                count: 1,
                slot: slot as u32,
            }),
        }
    }
    Ok(runs)
}

fn encode_table(runs: &[DataRun], zeros: &[ZeroRun]) -> Vec<u8> {
    let mut table = Vec::with_capacity((runs.len() + zeros.len()) * super::RUN_BYTES);
    for run in runs {
        table.put_u64(run.start.0);
        table.put_u32(run.count);
        table.put_u32(run.slot);
    }
    for run in zeros {
        table.put_u64(run.start.0);
        table.put_u64(run.second_word());
    }
    table
}

/// The invariants of an extent table; the reader checks the same. The error names the broken one.
pub(super) fn check_runs(
    runs: &[DataRun],
    zeros: &[ZeroRun],
) -> std::result::Result<(), &'static str> {
    let mut slot = 0u32;
    let mut end = 0u64;
    for run in runs {
        if run.count == 0 || run.slot != slot {
            return Err("a data run is empty or its slot does not follow its predecessor's");
        }
        slot = slot.checked_add(run.count).ok_or("too many slots")?;
        end = checked_end(run.start, u64::from(run.count), end)?;
    }
    let mut end = 0u64;
    let mut data = runs.iter().peekable();
    for zero in zeros {
        end = checked_end(zero.start, zero.count, end)?;
        check_spared(zero)?;
        while let Some(run) = data.peek().filter(|run| run.start.0 < end) {
            let run_end = run.start.0 + u64::from(run.count);
            let both = run.start.0.max(zero.start.0)..run_end.min(end);
            if !zero.spared.contains_all_of(both) {
                return Err("a block is both data and zero");
            }
            if run_end > end {
                break;
            }
            data.next();
        }
    }
    Ok(())
}

/// A run that spares shards, but not all, is made of whole rows.
fn check_spared(zero: &ZeroRun) -> std::result::Result<(), &'static str> {
    let is_whole = |blocks: u64| blocks.is_multiple_of(SHARD_COUNT as u64);
    let is_of_rows = is_whole(zero.start.0) && is_whole(zero.count);
    if zero.spared == ShardSet::ALL || !zero.spared.is_empty() && !is_of_rows {
        return Err("a zero run spares all shards, or parts of rows");
    }
    Ok(())
}

/// The end of a run that is not empty, starts at `floor` or later, and ends within the limit.
fn checked_end(start: BlockNum, count: u64, floor: u64) -> std::result::Result<u64, &'static str> {
    let end = start.0.checked_add(count).ok_or("a run overflows")?;
    if count == 0 || start.0 < floor || end > BLOCK_NUM_END {
        return Err("runs are empty, unordered, overlapping, or beyond the largest volume");
    }
    Ok(end)
}

//! The content of verified blocks: every block says where it belongs and which write made it.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `TPBENCH1` |
//! | 8..16 | seed of the run |
//! | 16..24 | byte offset of the block on the target |
//! | 24..28 | sequence number of the write within its job |
//! | 28..32 | CRC32C of the block with these four bytes left out |
//! | 32.. | filler that differs from write to write |
//!
//! Numbers are little endian.

use std::fmt;

use crate::random::SplitMix64;

mod field {
    use std::ops::Range;

    pub(super) const MAGIC: Range<usize> = 0..8;
    pub(super) const SEED: Range<usize> = 8..16;
    pub(super) const OFFSET: Range<usize> = 16..24;
    pub(super) const SEQUENCE: Range<usize> = 24..28;
    pub(super) const CRC: Range<usize> = 28..32;
    pub(super) const FILLER: usize = 32;
}

const MAGIC: [u8; 8] = *b"TPBENCH1";
/// Smallest block that carries a stamp, in bytes.
pub(crate) const GRAIN_BYTES_MIN: u32 = 64;
const POOL_BYTES: usize = 64 << 10;

/// Makes and reads stamps of one seed.
pub(crate) struct Stamper {
    seed: u64,
    pool: Vec<u8>,
}

/// Why a block is not what a write of this run left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// All bytes are zero.
    Zeros,
    /// There is no stamp.
    Foreign,
    /// There is a stamp, but the checksum fails.
    Damaged,
    /// A whole stamp of a run with another seed.
    OtherSeed(u64),
    /// A whole stamp of this run that belongs at another offset.
    OtherOffset(u64),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("only zeros"),
            Self::Foreign => f.write_str("bytes without a stamp"),
            Self::Damaged => f.write_str("a stamp whose CRC32C fails (torn or damaged)"),
            Self::OtherSeed(seed) => write!(f, "a stamp of a run with seed {seed}"),
            Self::OtherOffset(offset) => write!(f, "the block that belongs at byte {offset}"),
        }
    }
}

impl Stamper {
    /// Stamps of runs with `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut pool = vec![0; 2 * POOL_BYTES];
        SplitMix64::of(&[seed, 0x706f_6f6c]).fill(&mut pool);
        Self { seed, pool }
    }

    /// Fills `block` (64 bytes to 64 KiB) as write number `sequence` does at `offset`.
    pub(crate) fn write(&self, block: &mut [u8], offset: u64, sequence: u32) {
        assert!(
            (GRAIN_BYTES_MIN as usize..=POOL_BYTES).contains(&block.len()),
            "block size"
        );
        let rotation = SplitMix64::of(&[offset, sequence.into()]).below(POOL_BYTES as u64) as usize;
        let filler = &self.pool[rotation..rotation + block.len() - field::FILLER];
        block[field::FILLER..].copy_from_slice(filler);
        block[field::MAGIC].copy_from_slice(&MAGIC);
        block[field::SEED].copy_from_slice(&self.seed.to_le_bytes());
        block[field::OFFSET].copy_from_slice(&offset.to_le_bytes());
        block[field::SEQUENCE].copy_from_slice(&sequence.to_le_bytes());
        let crc = checksum(block);
        block[field::CRC].copy_from_slice(&crc.to_le_bytes());
    }

    /// The sequence number of the write that made `block`, read at `offset`.
    pub(crate) fn read(&self, block: &[u8], offset: u64) -> Result<u32, Mismatch> {
        if block[field::MAGIC] != MAGIC {
            let zeros = block.iter().all(|&byte| byte == 0);
            return Err(if zeros {
                Mismatch::Zeros
            } else {
                Mismatch::Foreign
            });
        }
        if block[field::CRC] != checksum(block).to_le_bytes() {
            return Err(Mismatch::Damaged);
        }
        let seed = le_u64(&block[field::SEED]);
        if seed != self.seed {
            return Err(Mismatch::OtherSeed(seed));
        }
        let home = le_u64(&block[field::OFFSET]);
        if home != offset {
            return Err(Mismatch::OtherOffset(home));
        }
        let sequence = block[field::SEQUENCE].try_into().expect("four bytes");
        Ok(u32::from_le_bytes(sequence))
    }
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn checksum(block: &[u8]) -> u32 {
    let head = crc32c::crc32c(&block[..field::CRC.start]);
    crc32c::crc32c_append(head, &block[field::CRC.end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_bytes_of_a_stamp() {
        let mut block = [0; 64];
        Stamper::new(1).write(&mut block, 0x2000, 5);
        assert_eq!(&block[..8], b"TPBENCH1");
        assert_eq!(
            &block[8..28],
            &[
                1, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0
            ]
        );
        assert_eq!(
            u32::from_le_bytes(block[28..32].try_into().unwrap()),
            0x6615ae08
        );
    }

    #[test]
    fn every_damage_is_told_apart() {
        let stamper = Stamper::new(9);
        let mut block = vec![0; 4096];
        assert_eq!(stamper.read(&block, 4096), Err(Mismatch::Zeros));
        stamper.write(&mut block, 4096, 77);
        assert_eq!(stamper.read(&block, 4096), Ok(77));
        assert_eq!(stamper.read(&block, 8192), Err(Mismatch::OtherOffset(4096)));
        assert_eq!(
            Stamper::new(8).read(&block, 4096),
            Err(Mismatch::OtherSeed(9))
        );
        for at in [9, 30, 32, 2000, 4095] {
            let mut damaged = block.clone();
            damaged[at] ^= 4;
            assert_eq!(
                stamper.read(&damaged, 4096),
                Err(Mismatch::Damaged),
                "byte {at}"
            );
        }
        block[0] ^= 1;
        assert_eq!(stamper.read(&block, 4096), Err(Mismatch::Foreign));
    }

    #[test]
    fn a_block_torn_between_two_writes_is_damaged() {
        let stamper = Stamper::new(9);
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        stamper.write(&mut old, 0, 1);
        stamper.write(&mut new, 0, 2);
        old[..512].copy_from_slice(&new[..512]);
        assert_eq!(stamper.read(&old, 0), Err(Mismatch::Damaged));
    }
}

//! What clients write: every version of every cell has bytes of its own.
//!
//! A volume is cut into cells, two for each sixteenth of a block, with odd bounds between the two.
//! Clients read and write whole cells, so that requests have any alignment while the oracle thinks
//! in cells. A cell's bytes tell which write they are of, and that they are whole and in place.

use std::ops::Range;

use crate::block::BlockSize;

/// Number of a write; 0 stands for what reads as zeros.
pub(super) type WriteId = u32;

/// Bytes of one repetition of a pattern.
const UNIT: usize = 16;
const CELLS_PER_BLOCK: u32 = 32;

/// The cells of one volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lattice {
    pub(super) volume: u32,
    pub(super) block_size: BlockSize,
    pub(super) blocks: u32,
}

impl Lattice {
    pub(super) fn cells(self) -> u32 {
        self.blocks * CELLS_PER_BLOCK
    }

    pub(super) fn size_bytes(self) -> u64 {
        u64::from(self.blocks) * self.block_size.bytes() as u64
    }

    /// Cells of some blocks.
    pub(super) fn of_blocks(self, blocks: Range<u32>) -> Range<u32> {
        blocks.start * CELLS_PER_BLOCK..blocks.end * CELLS_PER_BLOCK
    }

    /// The block of a cell.
    pub(super) fn block(self, cell: u32) -> u32 {
        cell / CELLS_PER_BLOCK
    }

    /// The whole blocks within a range of cells.
    pub(super) fn whole_blocks(self, cells: &Range<u32>) -> Range<u32> {
        let start = cells.start.div_ceil(CELLS_PER_BLOCK);
        start..(cells.end / CELLS_PER_BLOCK).max(start)
    }

    /// First byte of a cell; also the end of the one before.
    pub(super) fn start(self, cell: u32) -> u64 {
        let part_bytes = self.block_size.bytes() as u64 * 2 / u64::from(CELLS_PER_BLOCK);
        let part = u64::from(cell / 2);
        let odd = if cell.is_multiple_of(2) {
            0
        } else {
            UNIT as u64 + mix(part, self.volume) % (part_bytes - 2 * UNIT as u64)
        };
        part * part_bytes + odd
    }

    /// Bytes of a range of cells.
    pub(super) fn bytes(self, cells: &Range<u32>) -> Range<u64> {
        self.start(cells.start)..self.start(cells.end)
    }

    /// What write `id` puts into these cells.
    pub(super) fn fill(self, cells: &Range<u32>, id: WriteId) -> Vec<u8> {
        let bytes = self.bytes(cells);
        let mut out = vec![0; (bytes.end - bytes.start) as usize];
        for cell in cells.clone() {
            let from = (self.start(cell) - bytes.start) as usize;
            let to = (self.start(cell + 1) - bytes.start) as usize;
            self.fill_cell(cell, id, &mut out[from..to]);
        }
        out
    }

    /// Which write each cell's bytes are of; an error says which cell holds something else.
    pub(super) fn identify(self, cells: &Range<u32>, data: &[u8]) -> Result<Vec<WriteId>, String> {
        let bytes = self.bytes(cells);
        assert_eq!(
            data.len() as u64,
            bytes.end - bytes.start,
            "a read returns what was asked"
        );
        let mut scratch = vec![0; self.block_size.bytes()];
        cells
            .clone()
            .map(|cell| {
                let from = (self.start(cell) - bytes.start) as usize;
                let to = (self.start(cell + 1) - bytes.start) as usize;
                let found = &data[from..to];
                let id = WriteId::from_le_bytes([found[0], found[1], found[2], found[3]]);
                let expected = &mut scratch[..found.len()];
                match id {
                    0 => expected.fill(0),
                    _ => self.fill_cell(cell, id, expected),
                }
                if found == expected {
                    return Ok(id);
                }
                Err(format!(
                    "volume {} block {} cell {cell}: mixed or foreign bytes, start like {id}",
                    self.volume,
                    self.block(cell)
                ))
            })
            .collect()
    }

    fn fill_cell(self, cell: u32, id: WriteId, out: &mut [u8]) {
        let mut unit = [0; UNIT];
        unit[..4].copy_from_slice(&id.to_le_bytes());
        unit[4..8].copy_from_slice(&cell.to_le_bytes());
        unit[8..].copy_from_slice(
            &mix(u64::from(id) << 32 | u64::from(cell), self.volume).to_le_bytes(),
        );
        let first = out.len().min(UNIT);
        out[..first].copy_from_slice(&unit[..first]);
        let mut filled = first;
        while filled < out.len() {
            let more = filled.min(out.len() - filled);
            out.copy_within(..more, filled);
            filled += more;
        }
    }
}

fn mix(number: u64, volume: u32) -> u64 {
    let z = number
        .wrapping_add(u64::from(volume) << 56)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 32)
}

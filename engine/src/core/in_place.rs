//! Reads whose bytes are taken from where they are: a driver can send them without a copy.

use super::Core;
use crate::arena;
use crate::block::BlockNum;
use crate::shard::{Found, VolumeSlot};

impl Core {
    /// Appends the `len` bytes at `offset` to `out`, piece after piece, if each of them is in batch
    /// memory of this core. They stay what they are until the core is called again, which the
    /// borrow says. False, and nothing is appended: some are elsewhere, or nowhere; [`Core::read`]
    /// finds them.
    pub fn resident<'a>(
        &'a self,
        slot: VolumeSlot,
        (offset, len): (u64, u64),
        out: &mut Vec<&'a [u8]>,
    ) -> bool {
        let Some(volume) = self.served(slot) else {
            return false;
        };
        let span = volume.span(offset, len);
        if len == 0 || self.cores > 1 {
            return false;
        }
        let piece = |number| {
            let block = BlockNum(number);
            let position = self.position(block.shard())?;
            match self.shards[position].find(slot, block.local())? {
                Found::Memory(bytes) => {
                    let wanted = &bytes[span.part(block).0];
                    // It comes near while the next is looked up.
                    arena::prefetch(wanted);
                    Some(wanted)
                }
                Found::Zero | Found::Wal(_) | Found::Chunk(_) => None,
            }
        };
        let before = out.len();
        for number in span.first().0..=span.last().0 {
            let Some(piece) = piece(number) else {
                out.truncate(before);
                return false;
            };
            out.push(piece);
        }
        true
    }

    /// So many blocks of [`Core::resident`] were used.
    pub fn count_resident(&mut self, blocks: usize) {
        self.counters.memory_blocks += blocks as u64;
    }
}

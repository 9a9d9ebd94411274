//! Reads: memory first, then the WAL file, then the backend, every block checked.

use super::request::{Failure, Origin, Progress, RequestKey};
use super::{Core, Fetch, Io, PendingOp, Request};
use crate::arena;
use crate::block::{BlockNum, Span};
use crate::checksum;
use crate::identity::Epoch;
use crate::index::ChunkLoc;
use crate::shard::{Found, VolumeSlot, WalBlock};
use crate::wal::MarkKind;

/// Most bytes of one coalesced read.
const COALESCED_BYTES_MAX: usize = 1 << 20;

/// One block of a read that is not in memory.
#[derive(Clone, Debug)]
struct Piece {
    block: BlockNum,
    /// Range wanted within the block.
    from: usize,
    len: usize,
    /// Where it goes in the request's data.
    out: usize,
    at: At,
    /// The volume's committed cut at that look.
    seen: Epoch,
}

/// Where a block was when the read began; looked up again when the bytes arrive, because the block
/// may have been overwritten, committed or its log space recycled meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Wal(WalBlock),
    Chunk(ChunkLoc),
}

/// A read in the driver's hands.
pub(super) struct PendingRead {
    pub(super) request: RequestKey,
    pub(super) slot: VolumeSlot,
    file_offset: u64,
    pieces: Vec<Piece>,
}

/// What a read brought for one block.
enum Arrived<'a> {
    /// Its bytes, verified.
    Block(&'a [u8]),
    /// Bytes that are not the block's.
    Mismatch,
    Nothing,
}

/// What a second look at a block says about bytes that arrived.
enum Verdict {
    Use,
    Settled,
    Moved(At),
    Lost,
}

impl Core {
    /// Reads `len` bytes at `offset`. Done: they were appended to `out`. Pending: they come with
    /// the [`super::Done`].
    pub fn read(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Progress {
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        let span = volume.span(offset, len);
        if len == 0 {
            return Progress::Done;
        }
        if self.cores == 1 {
            return self.read_own(origin, slot, offset, len, out);
        }
        let mask = self.peers_of(span);
        if mask == 0 {
            return self.read_own(origin, slot, offset, len, out);
        }
        let mut request = Request::new(origin, false);
        request.data = vec![0; len as usize];
        request.span = Some(span);
        request.parts = 1;
        let key = self.requests.insert(request);
        self.ask_peers(key, mask, |request| PeerMessage::Read {
            request,
            slot,
            offset,
            len,
        });
        let missing = self.read_memory(key, slot, span, false);
        self.read_pieces(key, slot, missing);
        self.part_done(key, Ok(()));
        Progress::Pending(key)
    }

    /// Reads the own blocks of the span, packed one after the other.
    pub(super) fn read_own(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        offset: u64,
        len: u64,
        out: &mut Vec<u8>,
    ) -> Progress {
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        let span = volume.span(offset, len);
        if self.read_resident(slot, span, out) {
            return Progress::Done;
        }
        let mut request = Request::new(origin, false);
        request.parts = 1;
        let key = self.requests.insert(request);
        let missing = self.read_memory(key, slot, span, true);
        self.read_pieces(key, slot, missing);
        self.part_done(key, Ok(()));
        Progress::Pending(key)
    }

    /// The fast path: appends the own blocks of the span to `out` if all are zeros or in memory.
    #[inline]
    fn read_resident(&mut self, slot: VolumeSlot, span: Span, out: &mut Vec<u8>) -> bool {
        let block = span.first();
        if span.last() != block {
            return self.read_resident_run(slot, span, out);
        }
        let Some(position) = self.position(block.shard()) else {
            return true;
        };
        let (range, _) = span.part(block);
        match self.shards[position].find(slot, block.local()) {
            Some(Found::Memory(bytes)) => {
                out.extend_from_slice(&bytes[range]);
                self.counters.memory_blocks += 1;
                true
            }
            Some(Found::Zero) => {
                out.resize(out.len() + range.len(), 0);
                self.counters.hole_blocks += 1;
                true
            }
            Some(Found::Wal(_) | Found::Chunk(_)) | None => false,
        }
    }

    /// The same of several blocks: the next one comes near while one is copied.
    fn read_resident_run(&mut self, slot: VolumeSlot, span: Span, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let (mut memory, mut holes) = (0, 0);
        let mut own = (span.first().0..=span.last().0).filter_map(|number| {
            let block = BlockNum(number);
            let position = self.position(block.shard())?;
            Some((block, self.shards[position].find(slot, block.local())))
        });
        let mut next = own.next();
        while let Some((block, found)) = next {
            next = own.next();
            if let Some((_, Some(Found::Memory(bytes)))) = &next {
                arena::prefetch(bytes);
            }
            let (range, _) = span.part(block);
            match found {
                Some(Found::Memory(bytes)) => {
                    memory += 1;
                    out.extend_from_slice(&bytes[range]);
                }
                Some(Found::Zero) => {
                    holes += 1;
                    out.resize(out.len() + range.len(), 0);
                }
                Some(Found::Wal(_) | Found::Chunk(_)) | None => {
                    out.truncate(start);
                    return false;
                }
            }
        }
        self.counters.memory_blocks += memory;
        self.counters.hole_blocks += holes;
        true
    }

    /// Fills what is in memory into the request's data and returns the rest. `packed`: own blocks
    /// one after the other, else at their place in the span.
    fn read_memory(
        &mut self,
        key: RequestKey,
        slot: VolumeSlot,
        span: Span,
        packed: bool,
    ) -> Vec<Piece> {
        let mut data = std::mem::take(&mut self.requests.get(key).data);
        let seen = self.committed_epoch(slot);
        let mut missing = Vec::new();
        for number in span.first().0..=span.last().0 {
            let block = BlockNum(number);
            let Some(position) = self.position(block.shard()) else {
                continue;
            };
            let (range, in_span) = span.part(block);
            let out = if packed { data.len() } else { in_span };
            if packed {
                data.resize(out + range.len(), 0);
            }
            let at = match self.shards[position].find(slot, block.local()) {
                Some(Found::Memory(bytes)) => {
                    self.counters.memory_blocks += 1;
                    data[out..out + range.len()].copy_from_slice(&bytes[range]);
                    continue;
                }
                Some(Found::Zero) => {
                    self.counters.hole_blocks += 1;
                    continue;
                }
                Some(Found::Wal(at)) => At::Wal(at),
                Some(Found::Chunk(at)) => At::Chunk(at),
                None => {
                    self.requests.get(key).failure = Some(Failure::Io);
                    continue;
                }
            };
            missing.push(Piece {
                block,
                from: range.start,
                len: range.len(),
                out,
                at,
                seen,
            });
        }
        self.requests.get(key).data = data;
        missing
    }

    /// Starts reads for `pieces`, coalescing neighbours in one WAL file or chunk.
    fn read_pieces(&mut self, key: RequestKey, slot: VolumeSlot, mut pieces: Vec<Piece>) {
        let Some(volume) = self.served(slot) else {
            self.requests.get(key).failure = Some(Failure::Gone);
            return;
        };
        let (id, block_size) = (volume.id, volume.block_size);
        pieces.sort_by_key(|piece| match piece.at {
            At::Wal(at) => (0, piece.block.shard().index() as u64, at.file_offset),
            At::Chunk(at) => (1, u64::from(at.chunk.0), u64::from(at.slot)),
        });
        let blocks_max = COALESCED_BYTES_MAX / block_size.bytes();
        let gap_max = self.cores as u32;
        let mut rest = pieces.into_iter().peekable();
        while let Some(first) = rest.next() {
            let mut group = vec![first];
            while let Some(next) = rest.peek() {
                let last = group.last().expect("the group has its first piece");
                if group.len() >= blocks_max || !adjoins(last, next, block_size.bytes(), gap_max) {
                    break;
                }
                group.extend(rest.next());
            }
            self.requests.get(key).parts += 1;
            match group[0].at {
                At::Wal(_) => self.start_wal_read(key, slot, group, block_size.bytes()),
                At::Chunk(_) => {
                    let fetch = |op| fetch_of(op, id, block_size, &group);
                    let fetch = fetch(super::OpKey(0));
                    let read = PendingRead {
                        request: key,
                        slot,
                        file_offset: 0,
                        pieces: group,
                    };
                    let op = self.ops.insert(PendingOp::Read(read));
                    self.counters.fetches += 1;
                    self.counters.chunk_blocks += fetch.wanted.len() as u64;
                    self.effects.fetches.push(Fetch { op, ..fetch });
                }
            }
        }
    }

    fn start_wal_read(
        &mut self,
        request: RequestKey,
        slot: VolumeSlot,
        pieces: Vec<Piece>,
        block_bytes: usize,
    ) {
        let offset_of = |piece: &Piece| match piece.at {
            At::Wal(at) => at.file_offset,
            At::Chunk(_) => unreachable!("groups are of one kind"),
        };
        let file_offset = offset_of(&pieces[0]);
        let end = offset_of(&pieces[pieces.len() - 1]) + block_bytes as u64;
        let shard = pieces[0].block.shard();
        self.counters.wal_blocks += pieces.len() as u64;
        let read = PendingRead {
            request,
            slot,
            file_offset,
            pieces,
        };
        let op = self.ops.insert(PendingOp::Read(read));
        self.counters.wal_reads += 1;
        let len = (end - file_offset) as usize;
        self.effects.io.push(Io::WalRead {
            op,
            shard,
            file_offset,
            len,
        });
    }

    /// Bytes of a WAL file arrived.
    pub(super) fn wal_read_done(
        &mut self,
        read: PendingRead,
        result: &std::io::Result<()>,
        data: &[u8],
    ) {
        let PendingRead {
            request,
            slot,
            file_offset,
            pieces,
        } = read;
        let block_bytes = self
            .served(slot)
            .map_or(0, |volume| volume.block_size.bytes());
        self.settle_pieces(request, slot, pieces, |piece| {
            let At::Wal(at) = piece.at else {
                return Arrived::Nothing;
            };
            let start = (at.file_offset - file_offset) as usize;
            match data.get(start..start + block_bytes) {
                Some(block) if result.is_ok() && checksum::crc32c(block) == at.crc => {
                    Arrived::Block(block)
                }
                Some(_) if result.is_ok() => Arrived::Mismatch,
                _ => Arrived::Nothing,
            }
        });
    }

    /// Blocks of a chunk arrived, verified by the fetcher.
    pub(super) fn fetch_done(&mut self, read: PendingRead, result: Result<&[u8], Failure>) {
        let PendingRead {
            request,
            slot,
            pieces,
            ..
        } = read;
        let block_bytes = self
            .served(slot)
            .map_or(0, |volume| volume.block_size.bytes());
        let mut index = 0;
        self.settle_pieces(request, slot, pieces, |_| {
            let start = index * block_bytes;
            index += 1;
            let block = result.ok().and_then(|b| b.get(start..start + block_bytes));
            block.map_or(Arrived::Nothing, Arrived::Block)
        });
    }

    /// Looks up every piece again and uses, replaces or re-reads its bytes. `arrived` tells what
    /// came for a piece; it is asked once for each, in order.
    fn settle_pieces<'a>(
        &mut self,
        key: RequestKey,
        slot: VolumeSlot,
        pieces: Vec<Piece>,
        mut arrived: impl FnMut(&Piece) -> Arrived<'a>,
    ) {
        if self.requests.is_cancelled(key) {
            // The slot may be another volume's by now.
            return self.part_done(key, Err(Failure::Gone));
        }
        let mut data = std::mem::take(&mut self.requests.get(key).data);
        let seen = self.committed_epoch(slot);
        let mut again = Vec::new();
        for piece in pieces {
            let block = arrived(&piece);
            let out = &mut data[piece.out..piece.out + piece.len];
            let failure = match (self.look_again(slot, &piece, out), block) {
                (Verdict::Settled, _) => None,
                (Verdict::Use, Arrived::Block(block)) => {
                    out.copy_from_slice(&block[piece.from..piece.from + piece.len]);
                    None
                }
                (Verdict::Moved(at), _) => {
                    again.push(Piece { at, seen, ..piece });
                    None
                }
                // Its chunk may be gone and the same place be another one's by now.
                (Verdict::Use, Arrived::Nothing) if is_chunk(piece.at) && piece.seen < seen => {
                    again.push(Piece { seen, ..piece });
                    None
                }
                (Verdict::Use, Arrived::Mismatch) => {
                    self.counters.crc_mismatches += 1;
                    Some(Failure::Io)
                }
                (Verdict::Use, Arrived::Nothing) | (Verdict::Lost, _) => Some(Failure::Io),
            };
            if let Some(failure) = failure {
                self.requests.get(key).failure.get_or_insert(failure);
            }
        }
        self.requests.get(key).data = data;
        self.read_pieces(key, slot, again);
        self.part_done(key, Ok(()));
    }

    /// The last cut of the volume that this core knows to be committed.
    pub(super) fn committed_epoch(&self, slot: VolumeSlot) -> Epoch {
        let committed = self
            .served(slot)
            .and_then(|volume| self.committed.get(&volume.id));
        committed.copied().unwrap_or_default()
    }

    fn look_again(&self, slot: VolumeSlot, piece: &Piece, out: &mut [u8]) -> Verdict {
        if self.served(slot).is_none() {
            return Verdict::Lost;
        }
        let position = self
            .position(piece.block.shard())
            .expect("pieces are of own shards");
        let at = match self.shards[position].find(slot, piece.block.local()) {
            Some(Found::Memory(bytes)) => {
                out.copy_from_slice(&bytes[piece.from..piece.from + piece.len]);
                return Verdict::Settled;
            }
            Some(Found::Zero) => {
                out.fill(0);
                return Verdict::Settled;
            }
            Some(Found::Wal(at)) => At::Wal(at),
            Some(Found::Chunk(at)) => At::Chunk(at),
            None => return Verdict::Lost,
        };
        if at == piece.at {
            Verdict::Use
        } else {
            Verdict::Moved(at)
        }
    }

    /// Starts reading the old content of one block for a partial write.
    pub(super) fn start_patch_read(&mut self, patch: super::PendingPatch) {
        let volume = self
            .served(patch.slot)
            .expect("a patch is of a served volume");
        let (id, block_size) = (volume.id, volume.block_size);
        let (block, at) = (patch.block, patch.at);
        let op = self.ops.insert(PendingOp::Patch(patch));
        match at {
            At::Wal(at) => {
                self.counters.wal_reads += 1;
                self.effects.io.push(Io::WalRead {
                    op,
                    shard: block.shard(),
                    file_offset: at.file_offset,
                    len: block_size.bytes(),
                });
            }
            At::Chunk(at) => {
                self.counters.fetches += 1;
                self.effects.fetches.push(Fetch {
                    op,
                    volume: id,
                    block_size,
                    chunk: at.chunk,
                    first_slot: at.slot,
                    slots: 1,
                    wanted: vec![(0, block)],
                });
            }
        }
    }
}

use super::PeerMessage;

fn is_chunk(at: At) -> bool {
    matches!(at, At::Chunk(_))
}

fn adjoins(last: &Piece, next: &Piece, block_bytes: usize, gap_max: u32) -> bool {
    match (last.at, next.at) {
        (At::Wal(a), At::Wal(b)) => {
            last.block.shard() == next.block.shard()
                && a.file_offset + block_bytes as u64 == b.file_offset
        }
        (At::Chunk(a), At::Chunk(b)) => a.chunk == b.chunk && b.slot - a.slot <= gap_max,
        _ => false,
    }
}

fn fetch_of(
    op: super::OpKey,
    volume: crate::identity::VolumeId,
    block_size: crate::block::BlockSize,
    group: &[Piece],
) -> Fetch {
    let slot_of = |piece: &Piece| match piece.at {
        At::Chunk(at) => at.slot,
        At::Wal(_) => unreachable!("groups are of one kind"),
    };
    let first_slot = slot_of(&group[0]);
    let At::Chunk(ChunkLoc { chunk, .. }) = group[0].at else {
        unreachable!("groups are of one kind")
    };
    let wanted = group
        .iter()
        .map(|piece| (slot_of(piece) - first_slot, piece.block))
        .collect();
    let slots = slot_of(&group[group.len() - 1]) - first_slot + 1;
    Fetch {
        op,
        volume,
        block_size,
        chunk,
        first_slot,
        slots,
        wanted,
    }
}

/// Zeroing and trimming differ only in their record and in what partial blocks mean.
pub(super) fn patches_partial_blocks(kind: MarkKind) -> bool {
    matches!(kind, MarkKind::Zero)
}

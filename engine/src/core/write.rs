//! Writes, zeroes and trims: into the open batch at once, or parked until there is room.

use std::ops::Range;

use bytes::Bytes;

use super::park::{End, Work};
use super::read::{At, patches_partial_blocks};
use super::request::{Failure, Needs, Origin, Progress, RequestKey};
use super::{Core, PeerMessage, Request};
use crate::block::{BlockNum, LocalBlock, Span};
use crate::checksum;
use crate::shard::{Found, VolumeSlot};
use crate::volume::Ack;
use crate::wal::{MarkKind, Shortage};

/// What is written over a part of a block.
#[derive(Clone, Debug)]
pub(super) enum Patch {
    Bytes(Vec<u8>),
    Zeros(usize),
}

/// A partial write whose block's old content is being read. Its block is locked meanwhile.
pub(super) struct PendingPatch {
    pub(super) request: RequestKey,
    pub(super) slot: VolumeSlot,
    pub(super) block: BlockNum,
    from: usize,
    patch: Patch,
    pub(super) at: At,
    /// The volume's committed cut when the read began.
    seen: crate::identity::Epoch,
}

/// How an attempt at one part of a write went.
#[derive(Clone, Copy)]
pub(super) enum Attempt {
    Placed,
    NoRoom,
    Reading,
    Failed(Failure),
}

/// A request under way: made into a [`Request`] only when something has to wait.
pub(super) struct Writing {
    origin: Origin,
    slot: VolumeSlot,
    durable: bool,
    needs: Needs,
    key: Option<RequestKey>,
    failure: Option<Failure>,
    /// The volume, if the bucket must hold everything before the answer.
    remote: Option<VolumeSlot>,
    /// The bucket lacks too much of the volume: no part is placed now.
    hold: bool,
    /// Bytes of the part being placed, for the load.
    placing_bytes: u64,
}

impl Core {
    /// Writes `data` at `offset`. `fua`: answer when durable. Partial blocks are merged with their
    /// old content; atomicity is per block.
    pub fn write(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        offset: u64,
        data: &[u8],
        fua: bool,
    ) -> Progress {
        if self.cores == 1 || data.is_empty() {
            return self.write_own(origin, slot, offset, data, fua);
        }
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        let span = volume.span(offset, data.len() as u64);
        let mask = self.peers_of(span);
        if mask == 0 {
            return self.write_own(origin, slot, offset, data, fua);
        }
        if volume.read_only {
            return Progress::Failed(Failure::ReadOnly);
        }
        let durable = fua || volume.ack == Ack::Durable;
        let payload = Bytes::copy_from_slice(data);
        let mut request = Request::new(origin, durable);
        request.remote = self.remote(slot).filter(|_| fua);
        self.with_peers(
            request,
            mask,
            |request| PeerMessage::Write {
                request,
                slot,
                offset,
                data: payload.clone(),
                durable: fua,
            },
            |core, key| {
                core.write_parts(&mut Writing::joined(origin, slot, durable, key), span, data)
            },
        )
    }

    /// Makes a range read as zeros ([`MarkKind::Zero`], partial blocks included) or gives its whole
    /// blocks back ([`MarkKind::Trim`]). Costs a record a shard, whatever the length.
    pub fn mark(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        offset: u64,
        len: u64,
        kind: MarkKind,
        fua: bool,
    ) -> Progress {
        if self.cores == 1 || len == 0 {
            return self.mark_own(origin, slot, offset, len, kind, fua);
        }
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        let span = volume.span(offset, len);
        if volume.read_only {
            return Progress::Failed(Failure::ReadOnly);
        }
        let durable = fua || volume.ack == Ack::Durable;
        let mask = self.peers_of(span);
        let mut request = Request::new(origin, durable);
        request.remote = self.remote(slot).filter(|_| fua);
        self.with_peers(
            request,
            mask,
            |request| PeerMessage::Mark {
                request,
                slot,
                offset,
                len,
                kind,
                durable: fua,
            },
            |core, key| {
                core.mark_parts(&mut Writing::joined(origin, slot, durable, key), span, kind);
            },
        )
    }

    fn with_peers(
        &mut self,
        mut request: Request,
        mask: u16,
        message: impl Fn(RequestKey) -> PeerMessage,
        own: impl FnOnce(&mut Self, RequestKey),
    ) -> Progress {
        request.parts = 1;
        let key = self.requests.insert(request);
        self.ask_peers(key, mask, message);
        own(self, key);
        self.part_done(key, Ok(()));
        Progress::Pending(key)
    }

    /// Writes the own blocks of the span.
    #[inline]
    pub(super) fn write_own(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        offset: u64,
        data: &[u8],
        fua: bool,
    ) -> Progress {
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        if volume.read_only {
            return Progress::Failed(Failure::ReadOnly);
        }
        if data.is_empty() {
            return Progress::Done;
        }
        let durable = fua || volume.ack == Ack::Durable;
        let span = volume.span(offset, data.len() as u64);
        let mut writing = Writing::new(origin, slot, durable);
        writing.remote = self.remote_of(origin, slot, fua);
        self.write_parts(&mut writing, span, data);
        self.end_writing(writing)
    }

    /// Zeroes or trims the own blocks of the span.
    pub(super) fn mark_own(
        &mut self,
        origin: Origin,
        slot: VolumeSlot,
        offset: u64,
        len: u64,
        kind: MarkKind,
        fua: bool,
    ) -> Progress {
        let Some(volume) = self.served(slot) else {
            return Progress::Failed(Failure::Gone);
        };
        if volume.read_only {
            return Progress::Failed(Failure::ReadOnly);
        }
        if len == 0 {
            return Progress::Done;
        }
        let durable = fua || volume.ack == Ack::Durable;
        let span = volume.span(offset, len);
        let mut writing = Writing::new(origin, slot, durable);
        writing.remote = self.remote_of(origin, slot, fua);
        self.mark_parts(&mut writing, span, kind);
        self.end_writing(writing)
    }

    /// Only the client's own core waits for the bucket.
    #[inline]
    fn remote_of(&self, origin: Origin, slot: VolumeSlot, fua: bool) -> Option<VolumeSlot> {
        let client = matches!(origin, Origin::Client(_));
        self.remote(slot).filter(|_| fua && client)
    }

    fn write_parts(&mut self, writing: &mut Writing, span: Span, data: &[u8]) {
        self.observe_epoch();
        self.note_write(writing.slot);
        writing.hold = self.must_hold(writing.slot);
        let block_bytes = span.block_size.bytes();
        for i in 0..span.blocks().min(16) {
            let shard = BlockNum(span.first().0 + i).shard();
            let Some(position) = self.position(shard) else {
                continue;
            };
            let whole = self.patch_ends(writing, span, position, |range| {
                Patch::Bytes(data[range].to_vec())
            });
            let (mut lo, hi) = (whole.start, whole.end);
            let run_max = self.durability.policy().run_bytes_max / block_bytes as u64;
            while lo < hi {
                let count = (hi - lo).min(run_max) as u32;
                let block_at = |local: u64| {
                    let block = LocalBlock(local).global(shard);
                    let at = ((block.0 << span.block_size.shift()) - span.offset) as usize;
                    &data[at..at + block_bytes]
                };
                let locals = lo..lo + u64::from(count);
                let attempt = if self.must_queue(writing, position, locals) {
                    Attempt::NoRoom
                } else {
                    self.try_run(writing, position, LocalBlock(lo), count, |i| {
                        block_at(lo + u64::from(i))
                    })
                };
                self.settle(writing, position, attempt, || Work::Run {
                    start: LocalBlock(lo),
                    data: copied(count as usize * block_bytes, |data| {
                        (lo..lo + u64::from(count))
                            .for_each(|local| data.extend_from_slice(block_at(local)));
                    }),
                });
                lo += u64::from(count);
            }
        }
    }

    fn mark_parts(&mut self, writing: &mut Writing, span: Span, kind: MarkKind) {
        self.observe_epoch();
        self.note_write(writing.slot);
        writing.hold = self.must_hold(writing.slot);
        for i in 0..span.blocks().min(16) {
            let shard = BlockNum(span.first().0 + i).shard();
            let Some(position) = self.position(shard) else {
                continue;
            };
            let whole = if patches_partial_blocks(kind) {
                self.patch_ends(writing, span, position, |range| Patch::Zeros(range.len()))
            } else {
                whole_blocks(span, shard)
            };
            if whole.is_empty() {
                continue;
            }
            let attempt = if self.must_queue(writing, position, whole.clone()) {
                Attempt::NoRoom
            } else {
                self.try_mark(writing, position, whole.clone(), kind)
            };
            self.settle(writing, position, attempt, || Work::Mark {
                range: whole,
                kind,
            });
        }
    }

    /// Writes the partial first and last blocks of the span that belong to the shard at `position`
    /// and returns the shard-local range of whole blocks. `patch` gets a range of the span.
    fn patch_ends(
        &mut self,
        writing: &mut Writing,
        span: Span,
        position: usize,
        patch: impl Fn(Range<usize>) -> Patch,
    ) -> Range<u64> {
        let shard = self.shards[position].id();
        let ends = [span.first(), span.last()];
        let ends = if ends[0] == ends[1] {
            &ends[..1]
        } else {
            &ends[..]
        };
        for block in ends.iter().copied().filter(|block| block.shard() == shard) {
            let (range, at) = span.part(block);
            if range.len() == span.block_size.bytes() {
                continue;
            }
            let patch = patch(at..at + range.len());
            let local = block.local().0;
            let attempt = if self.must_queue(writing, position, local..local + 1) {
                Attempt::NoRoom
            } else {
                self.try_patch(writing, position, block, range.start, &patch)
            };
            self.settle(writing, position, attempt, || Work::Patch {
                block,
                from: range.start,
                patch,
            });
        }
        whole_blocks(span, shard)
    }

    /// Whether a part must wait for the bucket, behind parked ones or a locked block, so that parts
    /// on one block land in the order in which they came.
    #[inline]
    fn must_queue(&self, writing: &Writing, position: usize, locals: Range<u64>) -> bool {
        writing.hold
            || !self.parked[position].is_empty()
            || self.is_locked(position, writing.slot, locals)
    }

    #[inline]
    pub(super) fn is_locked(&self, position: usize, slot: VolumeSlot, locals: Range<u64>) -> bool {
        let shard = self.shards[position].id();
        self.locked.iter().any(|(of, block)| {
            *of == slot && block.shard() == shard && locals.contains(&block.local().0)
        })
    }

    #[inline]
    pub(super) fn try_run<'a>(
        &mut self,
        writing: &mut Writing,
        position: usize,
        start: LocalBlock,
        count: u32,
        bytes: impl Fn(u32) -> &'a [u8],
    ) -> Attempt {
        if self.is_paused(position) {
            return Attempt::NoRoom;
        }
        writing.placing_bytes = u64::from(count) * bytes(0).len() as u64;
        let placed =
            self.shards[position].write_run(writing.slot, self.epoch, start, count, |i, block| {
                // Of the source: it is in the CPU's cache, what was just stored need not be.
                let source = bytes(i);
                block.copy_from_slice(source);
                checksum::crc32c(source)
            });
        self.placed(writing, position, placed)
    }

    pub(super) fn try_mark(
        &mut self,
        writing: &mut Writing,
        position: usize,
        range: Range<u64>,
        kind: MarkKind,
    ) -> Attempt {
        let placed = self.shards[position].write_mark(writing.slot, self.epoch, range, kind);
        self.placed(writing, position, placed)
    }

    pub(super) fn try_patch(
        &mut self,
        writing: &mut Writing,
        position: usize,
        block: BlockNum,
        from: usize,
        patch: &Patch,
    ) -> Attempt {
        let slot = writing.slot;
        let bytes = self
            .served(slot)
            .map_or(0, |volume| volume.block_size.bytes());
        let at = match self.shards[position].find(slot, block.local()) {
            Some(Found::Memory(old)) => {
                self.scratch[..bytes].copy_from_slice(old);
                None
            }
            Some(Found::Zero) => {
                self.scratch[..bytes].fill(0);
                None
            }
            Some(Found::Wal(at)) => Some(At::Wal(at)),
            Some(Found::Chunk(at)) => Some(At::Chunk(at)),
            None => return Attempt::Failed(Failure::Io),
        };
        if let Some(at) = at {
            let request = self.key_of(writing);
            self.requests.get(request).parts += 1;
            self.locked.push((slot, block));
            let patch = patch.clone();
            self.start_patch_read(PendingPatch {
                request,
                slot,
                block,
                from,
                patch,
                at,
                seen: self.committed_epoch(slot),
            });
            return Attempt::Reading;
        }
        self.append_patched(writing, position, block, from, patch)
    }

    /// Appends the block in `scratch` with the patch applied.
    fn append_patched(
        &mut self,
        writing: &mut Writing,
        position: usize,
        block: BlockNum,
        from: usize,
        patch: &Patch,
    ) -> Attempt {
        let bytes = self
            .served(writing.slot)
            .map_or(0, |volume| volume.block_size.bytes());
        match patch {
            Patch::Bytes(new) => self.scratch[from..from + new.len()].copy_from_slice(new),
            Patch::Zeros(len) => self.scratch[from..from + len].fill(0),
        }
        self.counters.patches += 1;
        let scratch = std::mem::take(&mut self.scratch);
        let attempt = self.try_run(writing, position, block.local(), 1, |_| &scratch[..bytes]);
        self.scratch = scratch;
        attempt
    }

    /// The old content of a locked block arrived.
    pub(super) fn patch_read_done(
        &mut self,
        pending: PendingPatch,
        result: Result<&[u8], Failure>,
    ) {
        let PendingPatch {
            request,
            slot,
            block,
            from,
            ref patch,
            at,
            seen,
        } = pending;
        let position = self
            .position(block.shard())
            .expect("patches are of own shards");
        self.locked.retain(|locked| *locked != (slot, block));
        self.retry |= 1 << position;
        if self.requests.is_cancelled(request) || self.served(slot).is_none() {
            return self.part_done(request, Err(Failure::Gone));
        }
        let verified = result.ok().filter(|old| match at {
            At::Wal(at) => checksum::crc32c(old) == at.crc,
            At::Chunk(_) => true,
        });
        let mismatch = result.is_ok() && verified.is_none();
        // The lock kept newer writes away, but a commit may have moved the block meanwhile.
        let now = match self.shards[position].find(slot, block.local()) {
            Some(Found::Wal(now)) => Some(At::Wal(now)),
            Some(Found::Chunk(now)) => Some(At::Chunk(now)),
            _ => None,
        };
        let mut writing = Writing::resumed(self.requests.get(request), slot, request);
        // Or its chunk is gone, and the same place is another one's.
        let stale = verified.is_none() && seen < self.committed_epoch(slot);
        let attempt = match (now == Some(at) && !stale, verified) {
            (true, Some(old)) => {
                self.scratch[..old.len()].copy_from_slice(old);
                self.append_patched(&mut writing, position, block, from, patch)
            }
            (true, None) => {
                self.counters.crc_mismatches += u64::from(mismatch);
                Attempt::Failed(Failure::Io)
            }
            (false, _) => self.try_patch(&mut writing, position, block, from, patch),
        };
        match attempt {
            Attempt::NoRoom => {
                let work = Work::Patch {
                    block,
                    from,
                    patch: pending.patch,
                };
                self.park(position, request, slot, work, End::Front);
            }
            Attempt::Placed | Attempt::Reading => self.part_done(request, Ok(())),
            Attempt::Failed(failure) => self.part_done(request, Err(failure)),
        }
    }

    fn placed(
        &mut self,
        writing: &mut Writing,
        position: usize,
        placed: Result<crate::identity::BatchNum, Shortage>,
    ) -> Attempt {
        match placed {
            Ok(batch) => {
                writing.needs.raise(position, batch);
                if let Some(key) = writing.key {
                    self.requests.get(key).needs.raise(position, batch);
                }
                self.note_unsealed(writing.slot, writing.placing_bytes);
                self.note_append(position);
                self.note_placed(position);
                Attempt::Placed
            }
            Err(Shortage::Failed) => Attempt::Failed(Failure::Io),
            Err(Shortage::Log) if self.backend_full => Attempt::Failed(Failure::NoSpace),
            Err(shortage) => {
                if shortage == Shortage::Log {
                    // Only a cut helps, and the load told last may not make one due.
                    self.load_due = true;
                }
                self.shortage = Some(shortage);
                Attempt::NoRoom
            }
        }
    }

    /// Books the outcome of one part; `work` makes the parked form of it.
    #[inline]
    fn settle(
        &mut self,
        writing: &mut Writing,
        position: usize,
        attempt: Attempt,
        work: impl FnOnce() -> Work,
    ) {
        match attempt {
            Attempt::Placed | Attempt::Reading => {}
            Attempt::Failed(failure) => {
                writing.failure.get_or_insert(failure);
                if let Some(key) = writing.key {
                    self.requests.get(key).failure.get_or_insert(failure);
                }
            }
            Attempt::NoRoom => {
                let request = self.key_of(writing);
                self.requests.get(request).parts += 1;
                let end = if writing.hold { End::Held } else { End::Back };
                self.park(position, request, writing.slot, work(), end);
            }
        }
    }

    /// The request's key, made now if nothing had to wait so far.
    fn key_of(&mut self, writing: &mut Writing) -> RequestKey {
        *writing.key.get_or_insert_with(|| {
            let mut request = Request::new(writing.origin, writing.durable);
            request.needs = writing.needs;
            request.remote = writing.remote;
            request.failure = writing.failure;
            request.parts = 1;
            self.requests.insert(request)
        })
    }

    #[inline]
    fn end_writing(&mut self, mut writing: Writing) -> Progress {
        if writing.key.is_none() {
            if let Some(failure) = writing.failure {
                return Progress::Failed(failure);
            }
            let durable = self.durability.is_durable(&writing.needs, &self.shards);
            if writing.remote.is_none() && (!writing.durable || durable) {
                return Progress::Done;
            }
            self.key_of(&mut writing);
        }
        let key = writing.key.expect("made above at the latest");
        self.part_done(key, Ok(()));
        Progress::Pending(key)
    }
}

impl Writing {
    fn new(origin: Origin, slot: VolumeSlot, durable: bool) -> Self {
        let needs = Needs::default();
        Self {
            origin,
            slot,
            durable,
            needs,
            key: None,
            failure: None,
            remote: None,
            hold: false,
            placing_bytes: 4096,
        }
    }

    /// The own part of a request that other cores take part in.
    fn joined(origin: Origin, slot: VolumeSlot, durable: bool, key: RequestKey) -> Self {
        Self {
            key: Some(key),
            ..Self::new(origin, slot, durable)
        }
    }

    /// A request that goes on after a wait.
    pub(super) fn resumed(request: &Request, slot: VolumeSlot, key: RequestKey) -> Self {
        Self {
            origin: request.origin,
            slot,
            durable: request.durable,
            needs: request.needs,
            key: Some(key),
            failure: request.failure,
            remote: None,
            hold: false,
            placing_bytes: 4096,
        }
    }
}

/// What `fill` puts into a buffer of `bytes` bytes.
fn copied(bytes: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes);
    fill(&mut data);
    data
}

/// Shard-local range of the blocks that the span covers wholly.
fn whole_blocks(span: Span, shard: crate::block::ShardId) -> Range<u64> {
    let mask = span.block_size.bytes() as u64 - 1;
    let start = (span.offset + mask) & !mask;
    let end = (span.offset + span.len) & !mask;
    if start >= end {
        return 0..0;
    }
    Span {
        offset: start,
        len: end - start,
        block_size: span.block_size,
    }
    .local_range(shard)
}

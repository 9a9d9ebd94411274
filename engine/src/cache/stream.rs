//! Finds out who reads a volume in order, and says what to read ahead for them: the next slots of
//! the chunk object, then the object that was packed after it.
//!
//! Reads in order come from several connections and cores a little out of order, so a stream is a
//! range of blocks that is read forwards and of which most is read. Reads of single blocks at
//! random never make one.

use std::collections::VecDeque;
use std::ops::Range;

use crate::block::BlockSize;
use crate::chunk::ChunkRef;
use crate::identity::VolumeId;
use crate::object::ChunkKey;

/// Streams followed at once; the least recently used one is forgotten.
const STREAMS_MAX: usize = 64;
/// So much must have been read in order before anything is read ahead.
const PROOF_BYTES: u64 = 256 << 10;
/// A read so far behind the front still belongs to a stream.
const BEHIND_BYTES: u64 = 2 << 20;
/// A read so far beyond the front still belongs to a stream.
const BEYOND_BYTES: u64 = 512 << 10;
/// First window.
const WINDOW_FIRST: u64 = 512 << 10;
/// One read ahead is at most so long.
const PIECE_BYTES: u64 = 4 << 20;
/// Objects beyond the present one that may be read ahead before any proved to be the right one.
const UNPROVEN_MAX: usize = 4;

/// Name of a stream; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(u64);

/// A read of a volume, as the cores ask for it.
#[derive(Clone, Debug)]
pub struct ReadSeen<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Its block size.
    pub block_size: BlockSize,
    /// The object that has the blocks.
    pub chunk: &'a ChunkRef,
    /// From the first to the last slot wanted.
    pub slots: Range<u32>,
    /// From the first to the last block wanted, by number.
    pub blocks: Range<u64>,
    /// Blocks wanted.
    pub wanted: u64,
    /// Whether any of them had to be waited for.
    pub missed: bool,
}

/// Slots to read ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// For whom.
    pub stream: StreamId,
    /// The object.
    pub chunk: ChunkRef,
    /// Its slots.
    pub slots: Range<u32>,
    /// Block size of the volume.
    pub block_size: BlockSize,
}

#[derive(Debug)]
struct Piece {
    chunk: ChunkKey,
    slots: Range<u32>,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    volume: VolumeId,
    block_size: BlockSize,
    /// Lowest block of it.
    first: u64,
    /// After its highest block.
    front: u64,
    /// Blocks read of it.
    seen: u64,
    /// What is to be read ahead next.
    cursor: Option<(ChunkRef, u32)>,
    /// What was read ahead and not reached yet, in packed order.
    ahead: VecDeque<Piece>,
    window_bytes: u64,
    /// The object that was read last.
    at: Option<ChunkKey>,
    /// Objects whose successor was the right one, in a row.
    right: usize,
    /// The object packed after this one was the wrong one.
    stuck_at: Option<ChunkKey>,
    used: u64,
}

/// The streams of all volumes.
#[derive(Debug)]
pub struct Streams {
    streams: Vec<Stream>,
    window_max: u64,
    next: u64,
    clock: u64,
}

impl Streams {
    /// No streams; each reads ahead at most so many bytes.
    pub fn new(window_max_bytes: u64) -> Self {
        Self {
            streams: Vec::new(),
            window_max: window_max_bytes,
            next: 0,
            clock: 0,
        }
    }

    /// Takes note of a read and appends to `out` what to read ahead now, at most `room_bytes`.
    /// `after` tells which object of the volume was packed after another one.
    pub fn note(
        &mut self,
        read: &ReadSeen<'_>,
        room_bytes: u64,
        after: impl Fn(&ChunkKey) -> Option<ChunkRef>,
        out: &mut Vec<Ahead>,
    ) {
        self.clock += 1;
        let Some(stream) = self.stream_of(read) else {
            return self.begin(read);
        };
        let advanced = stream.note(read);
        if !advanced || !stream.is_proven() {
            return;
        }
        let window_max = self.window_max;
        let stream = self.stream_of(read).expect("found above");
        stream.follow(read, window_max);
        stream.issue(room_bytes, after, out);
    }

    /// A read ahead brought the first block of an object: `number` are the low bits of its number.
    /// If that is not what follows, the object was the wrong one and nothing more of it is read.
    pub fn landed(&mut self, id: StreamId, chunk: &ChunkKey, number: u32) {
        let window_max = self.window_max;
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) else {
            return;
        };
        let block_bytes = stream.block_size.bytes() as u64;
        let reach = (2 * window_max + BEHIND_BYTES + BEYOND_BYTES) / block_bytes;
        let low = (stream.front as u32).wrapping_sub((BEHIND_BYTES / block_bytes) as u32);
        if u64::from(number.wrapping_sub(low)) <= reach {
            return;
        }
        stream.drop_from(chunk);
    }

    /// What was read ahead had to leave unused: windows shrink.
    pub fn wasted(&mut self) {
        for stream in &mut self.streams {
            stream.shrink();
        }
    }

    /// Streams followed.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether nothing is followed.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    fn stream_of(&mut self, read: &ReadSeen<'_>) -> Option<&mut Stream> {
        let block_bytes = read.block_size.bytes() as u64;
        let start = read.blocks.start;
        let clock = self.clock;
        let distance = |stream: &Stream| {
            let near = stream.volume == read.volume
                && start + BEHIND_BYTES / block_bytes >= stream.front
                && start <= stream.front + BEYOND_BYTES / block_bytes;
            near.then(|| start.abs_diff(stream.front))
        };
        let found = self
            .streams
            .iter_mut()
            .filter_map(|stream| Some((distance(stream)?, stream)));
        let (_, stream) = found.min_by_key(|(distance, _)| *distance)?;
        stream.used = clock;
        Some(stream)
    }

    fn begin(&mut self, read: &ReadSeen<'_>) {
        if self.streams.len() >= STREAMS_MAX
            && let Some(oldest) = (0..self.streams.len()).min_by_key(|&i| self.streams[i].used)
        {
            self.streams.swap_remove(oldest);
        }
        self.next += 1;
        self.streams.push(Stream {
            id: StreamId(self.next),
            volume: read.volume,
            block_size: read.block_size,
            first: read.blocks.start,
            front: read.blocks.end,
            seen: read.wanted,
            cursor: None,
            ahead: VecDeque::new(),
            window_bytes: WINDOW_FIRST.min(self.window_max),
            at: None,
            right: 0,
            stuck_at: None,
            used: self.clock,
        });
    }
}

impl Stream {
    /// Counts a read; true if it goes beyond what was read before.
    fn note(&mut self, read: &ReadSeen<'_>) -> bool {
        let advanced = read.blocks.end > self.front;
        // Before the proof, blocks that are found are likely to be read for a second time.
        let counts = advanced || read.missed || self.is_proven();
        self.front = self.front.max(read.blocks.end);
        self.first = self.first.min(read.blocks.start);
        if counts {
            self.seen = (self.seen + read.wanted).min(self.front - self.first);
        }
        advanced
    }

    fn is_proven(&self) -> bool {
        let block_bytes = self.block_size.bytes() as u64;
        self.seen * block_bytes >= PROOF_BYTES && self.seen * 2 >= self.front - self.first
    }

    fn shrink(&mut self) {
        self.window_bytes = (self.window_bytes / 2).max(WINDOW_FIRST);
    }

    /// Moves to the read's place in packed order.
    fn follow(&mut self, read: &ReadSeen<'_>, window_max: u64) {
        let (key, end) = (read.chunk.key, read.slots.end);
        self.at = Some(key);
        if self.stuck_at.is_some_and(|stuck| stuck != key) {
            self.stuck_at = None;
            self.cursor = None;
        }
        let reached = self
            .ahead
            .iter()
            .position(|piece| piece.chunk == key && piece.slots.contains(&(end - 1)));
        if let Some(reached) = reached {
            let crossed = self.ahead[0].chunk != key;
            self.ahead.drain(..reached);
            self.right += usize::from(crossed);
            if reached > 0 {
                self.window_bytes = (self.window_bytes * 2).min(window_max);
            }
            return;
        }
        match self.cursor {
            // It has caught up with what was read ahead.
            Some((chunk, slot)) if chunk.key == key && end > slot => {}
            // Behind what was read ahead, such as in the object's part that was here before.
            Some((chunk, _)) if chunk.key == key => return,
            Some(_) if self.ahead.is_empty() => {}
            Some(_) => {
                self.right = 0;
                self.shrink();
            }
            None => {}
        }
        self.ahead.clear();
        self.cursor = Some((*read.chunk, end));
    }

    /// Fills the window.
    fn issue(
        &mut self,
        room_bytes: u64,
        after: impl Fn(&ChunkKey) -> Option<ChunkRef>,
        out: &mut Vec<Ahead>,
    ) {
        let block_bytes = self.block_size.bytes() as u64;
        let ahead_slots: u64 = self.ahead.iter().map(|p| p.slots.len() as u64).sum();
        let window = self.window_bytes;
        let mut free = window.saturating_sub(ahead_slots * block_bytes);
        let mut room = room_bytes;
        let piece_bytes = PIECE_BYTES.min(window / 2);
        if window < WINDOW_FIRST {
            // There is no memory to read ahead into.
            return;
        }
        while free >= piece_bytes && room >= piece_bytes && self.stuck_at.is_none() {
            let Some((chunk, slot)) = self.cursor else {
                return;
            };
            if slot >= chunk.slots {
                let Some(next) = after(&chunk.key) else {
                    return;
                };
                if self.objects_ahead() > self.right.min(UNPROVEN_MAX) {
                    return;
                }
                self.cursor = Some((next, 0));
                continue;
            }
            let count = (piece_bytes / block_bytes).max(1) as u32;
            let slots = slot..chunk.slots.min(slot.saturating_add(count));
            let bytes = slots.len() as u64 * block_bytes;
            free = free.saturating_sub(bytes);
            room = room.saturating_sub(bytes);
            self.cursor = Some((chunk, slots.end));
            self.ahead.push_back(Piece {
                chunk: chunk.key,
                slots: slots.clone(),
            });
            out.push(Ahead {
                stream: self.id,
                chunk,
                slots,
                block_size: self.block_size,
            });
        }
    }

    /// Objects in what was read ahead, beyond the present one.
    fn objects_ahead(&self) -> usize {
        let keys = self.ahead.iter().map(|piece| Some(piece.chunk));
        let before = std::iter::once(self.at).chain(keys.clone());
        before.zip(keys).filter(|(a, b)| a != b).count()
    }

    /// Nothing of this object or of those behind it is read ahead any more.
    fn drop_from(&mut self, chunk: &ChunkKey) {
        let Some(at) = self.ahead.iter().position(|piece| piece.chunk == *chunk) else {
            return;
        };
        self.stuck_at = self.at;
        self.ahead.truncate(at);
        self.cursor = None;
        self.right = 0;
        self.shrink();
    }
}

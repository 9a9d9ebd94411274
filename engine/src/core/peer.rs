//! What data cores say to each other: parts of requests whose shards live elsewhere.

use bytes::Bytes;

use super::request::{Failure, Origin, Progress, RequestKey};
use super::{Core, Request};
use crate::block::{BlockNum, Span};
use crate::extents::{MapQuery, ShardRuns};
use crate::shard::VolumeSlot;
use crate::wal::MarkKind;

/// A message between data cores. `request` is always the asking core's name for its request.
#[derive(Debug)]
pub enum PeerMessage {
    /// Read the blocks of the span that are yours, packed one after the other.
    Read {
        /// The asker's request.
        request: RequestKey,
        /// The volume.
        slot: VolumeSlot,
        /// First byte of the whole request.
        offset: u64,
        /// Bytes of the whole request.
        len: u64,
    },
    /// Write the blocks of the span that are yours.
    Write {
        /// The asker's request.
        request: RequestKey,
        /// The volume.
        slot: VolumeSlot,
        /// First byte of the whole request.
        offset: u64,
        /// Payload of the whole request.
        data: Bytes,
        /// Answer when durable.
        durable: bool,
    },
    /// Zero or trim the blocks of the span that are yours.
    Mark {
        /// The asker's request.
        request: RequestKey,
        /// The volume.
        slot: VolumeSlot,
        /// First byte of the whole request.
        offset: u64,
        /// Bytes of the whole request.
        len: u64,
        /// Which of the two.
        kind: MarkKind,
        /// Answer when durable.
        durable: bool,
    },
    /// Make durable what was answered.
    Flush {
        /// The asker's request.
        request: RequestKey,
        /// The volume.
        slot: VolumeSlot,
    },
    /// Tell what your blocks of the span hold.
    Map {
        /// The asker's request.
        request: RequestKey,
        /// The volume.
        slot: VolumeSlot,
        /// The whole question.
        query: MapQuery,
    },
    /// What they hold.
    Mapped {
        /// The asker's request.
        request: RequestKey,
        /// The runs of each shard of the answering core that the span touches.
        result: Result<Vec<ShardRuns>, Failure>,
    },
    /// The client of the request is gone.
    Cancel {
        /// The asker's request.
        request: RequestKey,
    },
    /// A part is done.
    Done {
        /// The asker's request.
        request: RequestKey,
        /// How it ended.
        result: Result<(), Failure>,
        /// Packed blocks of a read.
        data: Vec<u8>,
    },
}

impl Core {
    /// Handles a message of data core `from`.
    pub fn peer(&mut self, from: usize, message: PeerMessage) {
        let origin = |request| Origin::Peer(from, request);
        let mut read = Vec::new();
        let (request, progress) = match message {
            PeerMessage::Read {
                request,
                slot,
                offset,
                len,
            } => {
                let progress = self.read_own(origin(request), slot, offset, len, &mut read);
                (request, progress)
            }
            PeerMessage::Write {
                request,
                slot,
                offset,
                data,
                durable,
            } => {
                let progress = self.write_own(origin(request), slot, offset, &data, durable);
                (request, progress)
            }
            PeerMessage::Mark {
                request,
                slot,
                offset,
                len,
                kind,
                durable,
            } => {
                let progress = self.mark_own(origin(request), slot, offset, len, kind, durable);
                (request, progress)
            }
            PeerMessage::Flush { request, slot } => {
                (request, self.flush_own(origin(request), slot))
            }
            PeerMessage::Map {
                request,
                slot,
                query,
            } => {
                let result = self.map_own(slot, query);
                let answer = PeerMessage::Mapped { request, result };
                return self.effects.peers.push((from, answer));
            }
            PeerMessage::Mapped { request, result } => return self.mapped(request, result),
            PeerMessage::Cancel { request } => return self.cancel_peer(from, request),
            PeerMessage::Done {
                request,
                result,
                data,
            } => {
                return self.peer_done(from, request, result, &data);
            }
        };
        let result = match progress {
            Progress::Done => Ok(()),
            Progress::Failed(failure) => Err(failure),
            Progress::Pending(_) => return,
        };
        let answer = PeerMessage::Done {
            request,
            result,
            data: read,
        };
        self.effects.peers.push((from, answer));
    }

    /// Asks every other core in `mask` for its part of the request.
    pub(super) fn ask_peers(
        &mut self,
        key: RequestKey,
        mask: u16,
        message: impl Fn(RequestKey) -> PeerMessage,
    ) {
        for core in (0..self.cores).filter(|core| mask & 1 << core != 0) {
            self.requests.get(key).parts += 1;
            self.effects.peers.push((core, message(key)));
        }
    }

    /// Cores other than this one that own blocks of the span, as a bit mask.
    pub(super) fn peers_of(&self, span: Span) -> u16 {
        if self.cores == 1 {
            return 0;
        }
        let count = span.blocks().min(16);
        let owners = (0..count).map(|i| BlockNum(span.first().0 + i).shard().core(self.cores));
        owners
            .filter(|core| *core != self.index)
            .fold(0, |mask, core| mask | 1 << core)
    }

    fn peer_done(
        &mut self,
        from: usize,
        key: RequestKey,
        result: Result<(), Failure>,
        data: &[u8],
    ) {
        if result.is_ok() && !data.is_empty() {
            let request: &mut Request = self.requests.get(key);
            let span = request.span.expect("only reads are answered with data");
            let mut at = 0;
            for number in span.first().0..=span.last().0 {
                let block = BlockNum(number);
                if block.shard().core(self.cores) != from {
                    continue;
                }
                let (range, out) = span.part(block);
                request.data[out..out + range.len()].copy_from_slice(&data[at..at + range.len()]);
                at += range.len();
            }
            assert_eq!(at, data.len(), "a peer answers exactly its blocks");
        }
        self.part_done(key, result);
    }

    fn cancel_peer(&mut self, from: usize, request: RequestKey) {
        if let Some(key) = self.requests.find(Origin::Peer(from, request)) {
            self.requests.get(key).cancelled = true;
            self.drop_cancelled();
        }
    }
}

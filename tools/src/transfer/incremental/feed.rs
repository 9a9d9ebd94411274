//! Where the blocks of an incremental backup come from: the backend itself, or the daemon over NBD.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;

use futures::executor::block_on;
use futures::stream::{self, Stream, StreamExt};
use taipan_engine::api::{ChangedSpan, VolumeChanges};
use taipan_engine::backend::Backend;
use taipan_engine::block::BlockNum;
use taipan_engine::error::{Error, ErrorKind};
use taipan_engine::increment::Change;
use taipan_engine::index::Changed;
use taipan_engine::registry::{Image, read_blocks};

use crate::failure::{Exit, Failure, Outcome};
use crate::transfer::PIECE_BYTES;
use crate::transfer::session::Session;

/// Parts of what changed that are read at once; zeros are not read.
fn pieces(changes: &VolumeChanges) -> impl Iterator<Item = ChangedSpan> + use<> {
    changes.ranges.clone().into_iter().flat_map(|range| {
        let step = match range.now {
            Changed::Data => PIECE_BYTES as u64,
            Changed::Zeros => range.length,
        };
        let starts = (0..range.length).step_by(step as usize);
        starts.map(move |start| ChangedSpan {
            offset: range.offset + start,
            length: step.min(range.length - start),
            now: range.now,
        })
    })
}

/// All changes in order, `window` of them being read from the backend.
pub(super) fn stored<'a>(
    backend: &'a dyn Backend,
    image: &'a Image,
    changes: &VolumeChanges,
    window: usize,
) -> impl Stream<Item = Result<Change, Error>> + 'a {
    let read = move |piece| read(backend, image, piece);
    stream::iter(pieces(changes)).map(read).buffered(window)
}

/// The next change of [`stored`].
pub(super) fn next(
    stored: &mut Pin<Box<impl Stream<Item = Result<Change, Error>>>>,
    image: &Image,
) -> Outcome<Option<Change>> {
    let next = block_on(stored.next()).transpose();
    next.map_err(|error| moved_on(image, error))
}

async fn read(backend: &dyn Backend, image: &Image, piece: ChangedSpan) -> Result<Change, Error> {
    let (offset, len) = (piece.offset, piece.length);
    if piece.now == Changed::Zeros {
        return Ok(Change::Zeros { offset, len });
    }
    let block_size = image.manifest.settings.block_size();
    let first = BlockNum(offset >> block_size.shift());
    let count = len.div_ceil(block_size.bytes() as u64);
    let mut data = read_blocks(backend, &image.base, block_size, (first, count)).await?;
    data.truncate(len as usize);
    Ok(Change::Data { offset, data })
}

/// What only the last committed cut needs may be deleted while it is read: nothing keeps it.
fn moved_on(image: &Image, error: Error) -> Failure {
    if error.kind() != ErrorKind::NotFound || image.snapshot.is_some() {
        return error.into();
    }
    let why = "the volume has moved on while its last committed cut was read; take a snapshot and \
               export that: --since A VOLUME@SNAPSHOT";
    Failure::new(Exit::Conflict, format!("{why} ({error})"))
}

/// Changes in order, their data read from a snapshot over NBD.
pub(super) struct Remote {
    session: Session,
    pieces: Box<dyn Iterator<Item = ChangedSpan>>,
    window: usize,
    /// What was asked for, or is zeros, in order.
    asked: VecDeque<ChangedSpan>,
    /// What came before its turn, by offset.
    early: HashMap<u64, Vec<u8>>,
}

impl Remote {
    pub(super) fn new(session: Session, changes: &VolumeChanges, window: usize) -> Self {
        Self {
            session,
            pieces: Box::new(pieces(changes)),
            window,
            asked: VecDeque::new(),
            early: HashMap::new(),
        }
    }

    /// The next change.
    pub(super) fn next(&mut self) -> Outcome<Option<Change>> {
        while self.asked.len() < self.window
            && let Some(piece) = self.pieces.next()
        {
            if piece.now == Changed::Data {
                self.session
                    .read(piece.offset, vec![0; piece.length as usize])?;
            }
            self.asked.push_back(piece);
        }
        let Some(first) = self.asked.pop_front() else {
            return Ok(None);
        };
        let offset = first.offset;
        if first.now == Changed::Zeros {
            let len = first.length;
            return Ok(Some(Change::Zeros { offset, len }));
        }
        loop {
            if let Some(data) = self.early.remove(&offset) {
                return Ok(Some(Change::Data { offset, data }));
            }
            let answer = self.session.receive()?;
            self.early.insert(answer.offset, answer.data);
        }
    }

    /// Ends the connection.
    pub(super) fn close(self) {
        self.session.close();
    }
}

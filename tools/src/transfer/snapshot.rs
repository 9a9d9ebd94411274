//! Copies a snapshot or point in time from the backend into a file, device or stream.

use std::time::Instant;

use futures::executor::block_on;
use futures::stream::{self, StreamExt};
use taipan_engine::backend::Backend;
use taipan_engine::block::{BlockNum, BlockSize};
use taipan_engine::error::Error;
use taipan_engine::index::VolumeBase;
use taipan_engine::registry::{find_image, read_blocks, read_kept};
use taipan_engine::snapshot::QualifiedImage;

use crate::backend;
use crate::cli::{Export, Target};
use crate::failure::Outcome;
use crate::transfer::export::complete;
use crate::transfer::session::Piece;
use crate::transfer::sink::Sink;
use crate::transfer::{PIECE_BYTES, progress};

// Pieces hold whole blocks of any size.
const _: () = assert!(PIECE_BYTES.is_multiple_of(64 << 10));

/// Runs the command.
pub(super) fn export(
    target: &Target,
    args: &Export,
    of: &QualifiedImage,
    url: &str,
) -> Outcome<()> {
    let started = Instant::now();
    let backend = backend::open(target, url)?;
    let (manifest, image) = block_on(async {
        let (id, image) = find_image(&*backend, of).await?;
        read_kept(&*backend, id, &image).await
    })
    .map_err(|error| backend::not_found_in(&*backend, error))?;
    let settings = &manifest.settings;
    let mut sink = Sink::open(&args.file, settings.size_bytes, args.force)?;
    let size = (settings.size_bytes, settings.block_size());
    block_on(copy(&*backend, &image.base, size, &mut sink, args))?;
    complete(target, args, (of, settings.size_bytes), sink, started)
}

/// Copies everything, in order, with a few pieces in flight.
async fn copy(
    backend: &dyn Backend,
    base: &VolumeBase,
    (size_bytes, block_size): (u64, BlockSize),
    sink: &mut Sink,
    args: &Export,
) -> Outcome<()> {
    let bar = progress(&args.pace, Some(size_bytes));
    let piece = |offset: u64| async move {
        let bytes = (size_bytes - offset).min(PIECE_BYTES as u64);
        let first = BlockNum(offset >> block_size.shift());
        let count = bytes.div_ceil(block_size.bytes() as u64);
        let mut data = read_blocks(backend, base, block_size, (first, count)).await?;
        data.truncate(bytes as usize);
        Ok::<_, Error>(Piece { offset, data })
    };
    let offsets = (0..size_bytes).step_by(PIECE_BYTES);
    let mut pieces = stream::iter(offsets)
        .map(piece)
        .buffered(usize::from(args.pace.requests));
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        bar.set_position(piece.offset);
        sink.take(piece)?;
    }
    bar.finish_and_clear();
    Ok(())
}

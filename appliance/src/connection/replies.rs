//! What a finished request puts on the wire, in every style of replies.

use taipan_engine::core::Failure;
use taipan_engine::extents::{BlockState, Content, Extent, MapQuery, Residence, Stored, View};
use taipan_nbd::protocol::{context, state};
use taipan_nbd::{
    ExportInfo, ReadReply, ReplyHead, ReplyTo, Session as Terms, StatusChunk, StatusQuery,
};

use super::errors::Cause;
use super::pieces;
use super::requests::InFlight;
use crate::directory::{HeldBitmap, Volume, is_since};

/// The metadata contexts of every volume, but for bitmaps.
pub(crate) const CONTEXTS: [&str; 4] = [
    context::BASE_ALLOCATION,
    context::QEMU_ALLOCATION_DEPTH,
    context::TAIPAN_DURABILITY,
    context::TAIPAN_RESIDENCY,
];
/// Most extents of one BLOCK_STATUS; clients ask again from where they end.
const EXTENTS_MAX: usize = 1024;
/// Memory that a BLOCK_STATUS may take while it is in flight: runs of 16 shards, then the reply.
pub(super) const STATUS_BYTES: u64 = 16 * (EXTENTS_MAX as u64) * 16;

/// What the reply to a request holds if it succeeds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// Success alone.
    Nothing,
    /// The content of a range; `df`: in one piece, zeros written out.
    Content { df: bool },
    /// Extents.
    Status(StatusQuery),
}

/// What the core found.
#[derive(Clone, Copy, Default)]
pub(super) struct Found<'a> {
    pub(super) data: &'a [u8],
    pub(super) extents: &'a [Extent],
}

/// A selected context that tells what has changed since a snapshot.
pub(super) struct Since {
    /// The context.
    id: u32,
    bitmap: HeldBitmap,
}

/// Holds the bitmaps of the contexts that a client selected; `None` if one is not loaded any more.
pub(super) fn hold_bitmaps(volume: &Volume, terms: &Terms, peer: &str) -> Option<Vec<Since>> {
    let contexts = terms.contexts().iter();
    let bitmaps = contexts.filter(|context| is_since(&context.name));
    let held = bitmaps.map(|context| {
        let bitmap = volume.bitmaps.hold(&context.name, peer)?;
        Some(Since {
            id: context.id,
            bitmap,
        })
    });
    held.collect()
}

/// What was negotiated, and about what.
#[derive(Clone, Copy)]
pub(super) struct Agreed<'a> {
    pub(super) terms: &'a Terms,
    pub(super) bitmaps: &'a [Since],
    pub(super) info: &'a ExportInfo,
}

/// The question to the core that a BLOCK_STATUS is.
pub(super) fn map_query(query: &StatusQuery, terms: &Terms, bitmaps: &[Since]) -> MapQuery {
    let asks = |name: &str| {
        let mut contexts = terms.contexts().iter();
        contexts.any(|context| context.name == name && query.contexts.contains(context.id))
    };
    let asked = |since: &&Since| query.contexts.contains(since.id);
    let since = bitmaps.iter().filter(asked);
    MapQuery {
        offset: query.offset,
        len: query.len,
        view: View {
            content: asks(context::BASE_ALLOCATION) || asks(context::QEMU_ALLOCATION_DEPTH),
            stored: asks(context::TAIPAN_DURABILITY),
            residence: asks(context::TAIPAN_RESIDENCY),
            since: since.map(|since| since.bitmap.seat()).collect(),
        },
        extents_max: if query.one { 1 } else { EXTENTS_MAX },
    }
}

/// Appends the whole reply to a request.
pub(super) fn reply(finished: &InFlight, found: Found<'_>, agreed: Agreed<'_>, out: &mut Vec<u8>) {
    let to = finished.to;
    if let Some(failure) = finished.failure {
        return Cause::Engine(failure).answer(to, out);
    }
    match finished.answer {
        Answer::Nothing => out.extend_from_slice(to.success().as_bytes()),
        Answer::Content { df } => {
            let range = (finished.offset, found.data.len() as u32);
            if let Some(hole) = hole_head(to, range, df, found.data) {
                return out.extend_from_slice(hole.as_bytes());
            }
            let start = out.len();
            out.extend_from_slice(data_head(to, range, df).as_bytes());
            let content = out.len();
            out.extend_from_slice(found.data);
            pieces::leave_out_holes(to, range, df, (start, content), out);
        }
        Answer::Status(query) => status(to, &query, found.extents, agreed, out),
    }
}

/// What comes before the whole content of a range (offset, length), which cannot fail any more.
pub(super) fn data_head(to: ReplyTo, (offset, len): (u64, u32), df: bool) -> ReplyHead {
    if len == 0 {
        return to.success();
    }
    let whole = ReadReply::new(to, offset, len, df).data(len, true);
    whole.expect("the whole range is one piece")
}

/// What stands for the content of a range if that is zeros and the client takes holes.
pub(super) fn hole_head(
    to: ReplyTo,
    (offset, len): (u64, u32),
    df: bool,
    data: &[u8],
) -> Option<ReplyHead> {
    if df || data.first() != Some(&0) {
        return None;
    }
    let hole = ReadReply::new(to, offset, len, df).hole(len).ok()?;
    pieces::is_zero(data).then_some(hole)
}

/// Appends a chunk for every context that was asked for.
fn status(
    to: ReplyTo,
    query: &StatusQuery,
    extents: &[Extent],
    agreed: Agreed<'_>,
    out: &mut Vec<u8>,
) {
    let contexts = agreed.terms.contexts().iter();
    let asked = contexts.filter(|context| query.contexts.contains(context.id));
    let mut left = query.contexts.len();
    for context in asked {
        left -= 1;
        let mut bitmaps = agreed.bitmaps.iter();
        let since = bitmaps.find(|since| since.id == context.id);
        let status_of = |block: BlockState| match since {
            Some(since) if block.changed.contains(since.bitmap.seat()) => state::DIRTY,
            Some(_) => 0,
            None => status_of(&context.name, block),
        };
        let mut chunk = StatusChunk::new(to, query, context.id, agreed.info, out);
        for extent in extents {
            if !chunk.push(extent.len, status_of(extent.state)) {
                break;
            }
        }
        if chunk.finish(left == 0).is_err() {
            return Cause::Engine(Failure::Io).answer(to, out);
        }
    }
}

/// What a context says of a block.
fn status_of(name: &str, block: BlockState) -> u32 {
    let is_data = block.content == Content::Data;
    match name {
        context::BASE_ALLOCATION if is_data => 0,
        context::BASE_ALLOCATION => state::HOLE | state::ZERO,
        context::QEMU_ALLOCATION_DEPTH => u32::from(is_data),
        context::TAIPAN_DURABILITY => match block.stored {
            Stored::Undurable => state::UNFLUSHED,
            Stored::Local => state::LOCAL_ONLY,
            Stored::Committed => state::REMOTE_DURABLE,
        },
        context::TAIPAN_RESIDENCY => match block.residence {
            Residence::Memory => state::IN_MEMORY,
            Residence::Local => state::ON_NVME,
            Residence::Backend => state::IN_BACKEND,
        },
        _ => 0,
    }
}

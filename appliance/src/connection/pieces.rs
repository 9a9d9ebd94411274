//! Zeros inside the content of a READ go as holes, chunks of a few bytes, to clients that take
//! chunks. Long READs only, and long runs of zeros: each piece costs both sides a header and some
//! work, and a READ of a few blocks must not pay for the search.

use taipan_nbd::{ReadReply, ReplyHead, ReplyTo};

/// READs that are shorter are answered in one piece.
pub(super) const READ_BYTES_MIN: usize = 64 << 10;
/// Fewer zeros are sent.
const HOLE_BYTES_MIN: usize = 32 << 10;
/// Holes begin and end at multiples of this in the volume, or at the ends of the READ.
const GRAIN_BYTES: usize = 4096;
/// Most pieces of a reply. The last one may hold zeros of any length.
const PIECES_MAX: usize = 64;

/// Bytes of the content, from where the piece before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Data(usize),
    Hole(usize),
}

/// Takes zeros out of the reply to a READ of (offset, length) that ends `out`: its head begins at
/// `start`, the whole content at `content`. It stays as it is if the client wants one piece.
#[inline]
pub(super) fn leave_out_holes(
    to: ReplyTo,
    (offset, len): (u64, u32),
    df: bool,
    (start, content): (usize, usize),
    out: &mut Vec<u8>,
) {
    if out.len() - content < READ_BYTES_MIN || df || to.is_simple() {
        return;
    }
    let pieces = pieces(offset, &out[content..]);
    if !pieces.is_empty() {
        let reply = ReadReply::new(to, offset, len, df);
        let end = put_in_pieces(reply, &pieces, (start, content), out);
        out.truncate(end);
    }
}

/// Moves the data together, with a head before each piece; returns where the reply ends. Nothing is
/// overwritten that is still to be moved: the first head is as long as the one that was there, and
/// in front of any other one at least a hole was left out.
fn put_in_pieces(
    mut reply: ReadReply,
    pieces: &[Piece],
    (start, content): (usize, usize),
    out: &mut [u8],
) -> usize {
    let (mut to, mut from) = (start, content);
    let put = |head: ReplyHead, at: usize, out: &mut [u8]| {
        let head = head.as_bytes();
        out[at..at + head.len()].copy_from_slice(head);
        at + head.len()
    };
    for piece in pieces {
        let fits = "the pieces are the content, one after the other";
        match *piece {
            Piece::Hole(len) => {
                to = put(reply.hole(len as u32).expect(fits), to, out);
                from += len;
            }
            Piece::Data(len) => {
                to = put(reply.data(len as u32, true).expect(fits), to, out);
                out.copy_within(from..from + len, to);
                (to, from) = (to + len, from + len);
            }
        }
    }
    to
}

/// The content of a READ from `offset` in pieces; none if it has no hole that is worth one.
fn pieces(offset: u64, data: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut done = 0;
    let mut at = 0;
    while at < data.len() && pieces.len() + 3 <= PIECES_MAX {
        let zeros = zeros_from(offset, data, at);
        if zeros - at >= HOLE_BYTES_MIN {
            if at > done {
                pieces.push(Piece::Data(at - done));
            }
            pieces.push(Piece::Hole(zeros - at));
            done = zeros;
        }
        at = grain_end(offset, zeros, data.len());
    }
    if !pieces.is_empty() && done < data.len() {
        pieces.push(Piece::Data(data.len() - done));
    }
    pieces
}

/// Where the grain ends that begins or goes on at `at`.
fn grain_end(offset: u64, at: usize, len: usize) -> usize {
    let into = (offset as usize).wrapping_add(at) % GRAIN_BYTES;
    len.min(at + GRAIN_BYTES - into)
}

/// Where the zeros end that begin at `at`, by whole grains.
fn zeros_from(offset: u64, data: &[u8], mut at: usize) -> usize {
    while at < data.len() {
        let end = grain_end(offset, at, data.len());
        if !is_zero(&data[at..end]) {
            break;
        }
        at = end;
    }
    at
}

/// Whether zeros are in it that may be a part of a hole.
pub(super) fn has_zeros(data: &[u8]) -> bool {
    data.chunks(GRAIN_BYTES).any(is_zero)
}

/// Whether all bytes are zeros.
pub(super) fn is_zero(data: &[u8]) -> bool {
    // Whole lines at once, which the compiler makes wide; the first that is not zeros ends it.
    let (lines, rest) = data.as_chunks::<64>();
    let any = |bytes: &[u8]| bytes.iter().fold(0, |any, byte| any | byte);
    lines.iter().all(|line| any(line) == 0) && any(rest) == 0
}

#[cfg(test)]
mod tests;

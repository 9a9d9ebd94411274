//! Which pieces a content goes in, and that every client gets it back.

use proptest::prelude::*;
use taipan_nbd::protocol::command;
use taipan_nbd::{
    Chunk, HeaderStyle, ReplyKind, ReplyProgress, ReplyReader, ReplyTracker, Request,
};

use super::super::replies::data_head;
use super::*;

const KIB: usize = 1 << 10;

/// `d` is a KiB of data, `z` one of zeros; numbers repeat what follows.
fn content(text: &str) -> Vec<u8> {
    let mut content = Vec::new();
    for word in text.split(' ') {
        let (times, kind) = word.split_at(word.len() - 1);
        let times: usize = times.parse().expect("a number");
        let byte = if kind == "d" { 7 } else { 0 };
        content.resize(content.len() + times * KIB, byte);
    }
    content
}

/// The pieces in the same notation, `z` for a hole.
fn told(pieces: &[Piece]) -> String {
    let text = pieces.iter().map(|piece| match *piece {
        Piece::Data(len) => format!("{}d", len as f64 / KIB as f64),
        Piece::Hole(len) => format!("{}z", len as f64 / KIB as f64),
    });
    text.collect::<Vec<_>>().join(" ")
}

#[test]
fn long_runs_of_zeros_are_holes_and_nothing_else_is() {
    let rows = [
        // Data throughout, and zeros that are too short to be worth a piece.
        (0, "64d", ""),
        (0, "100d 28z 8d", ""),
        (0, "28z 100d", ""),
        (0, "1d 34z 29d", ""),
        // In the beginning, in the middle, in the end, several of them.
        (0, "32z 32d", "32z 32d"),
        (0, "16d 32z 16d", "16d 32z 16d"),
        (0, "32d 32z", "32d 32z"),
        (0, "64z 4d 60z 4d 36z", "64z 4d 60z 4d 36z"),
        (0, "64z", "64z"),
        // The grid is that of the volume, and its blocks are never split but at the ends.
        (0, "1d 64z 1d", "4d 60z 2d"),
        (3 * KIB as u64, "1d 64z 1d", "1d 64z 1d"),
        (KIB as u64, "40z 30d", "39z 31d"),
        (KIB as u64, "30d 40z", "31d 39z"),
        ((1 << 60) + 2048, "34z 2d 34z", "34z 4d 32z"),
        // Short ones between long ones stay data.
        (0, "32z 4d 16z 4d 32z", "32z 24d 32z"),
    ];
    for (offset, text, expected) in rows {
        let pieces = pieces(offset, &content(text));
        assert_eq!(told(&pieces), expected, "{text} at {offset}");
    }
}

#[test]
fn the_number_of_pieces_is_bounded_and_the_rest_is_data() {
    let content = content(&["4d 32z"; 200].join(" "));
    let pieces = pieces(0, &content);
    assert!((PIECES_MAX - 1..=PIECES_MAX).contains(&pieces.len()));
    let bytes = pieces.iter().map(|piece| match *piece {
        Piece::Data(len) | Piece::Hole(len) => len,
    });
    assert_eq!(bytes.sum::<usize>(), content.len());
    assert!(matches!(pieces.last(), Some(Piece::Data(len)) if *len > content.len() / 2));
}

const OFFSET: u64 = 5 << 20 | 512;

fn request(style: HeaderStyle, len: usize) -> (Request, ReplyTo) {
    let request = Request {
        flags: 0,
        command: command::READ,
        cookie: 77,
        offset: OFFSET,
        length: len as u64,
    };
    (request, ReplyTo::new(style, &request))
}

/// The whole reply, behind some bytes that are already there.
fn reply(style: HeaderStyle, content: &[u8], df: bool) -> Vec<u8> {
    let (_, to) = request(style, content.len());
    let range = (OFFSET, content.len() as u32);
    let mut out = b"before".to_vec();
    let start = out.len();
    out.extend_from_slice(data_head(to, range, df).as_bytes());
    let places = (start, out.len());
    out.extend_from_slice(content);
    leave_out_holes(to, range, df, places, &mut out);
    out
}

/// What a careful client has after the reply, and in how many chunks it came.
fn received(style: HeaderStyle, len: usize, reply: &[u8]) -> (Vec<u8>, usize) {
    let (request, _) = request(style, len);
    let mut tracker = ReplyTracker::new(style, request, len as u64, &[]);
    let mut reader = ReplyReader::new(style, len as u32 + 8);
    let (mut content, mut chunks) = (vec![9; len], 0);
    let mut input = reply.strip_prefix(b"before").expect("what was there stays");
    loop {
        let next = reader.next(&mut input).expect("a chunk");
        let (header, payload) = next.expect("the reply is whole");
        let ReplyKind::Chunk { kind, .. } = header.kind else {
            panic!("a simple reply");
        };
        let chunk = Chunk::parse(kind, payload).expect("a good chunk");
        let at = |offset: &u64| (offset - OFFSET) as usize;
        match &chunk {
            Chunk::Data { offset, data } => {
                content[at(offset)..at(offset) + data.len()].copy_from_slice(data);
            }
            Chunk::Hole { offset, len } => {
                content[at(offset)..at(offset) + *len as usize].fill(0);
            }
            other => panic!("{other:?}"),
        }
        chunks += 1;
        match tracker.take(&header, Some(&chunk)).expect("by the rules") {
            ReplyProgress::More => {}
            ReplyProgress::Done(result) => {
                assert_eq!((result, input.len()), (Ok(()), 0));
                return (content, chunks);
            }
        }
    }
}

#[test]
fn who_wants_one_piece_gets_one() {
    let content = content("16d 64z 16d");
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let whole = reply(style, &content, true);
        assert_eq!(received(style, content.len(), &whole), (content.clone(), 1));
        let pieces = reply(style, &content, false);
        let (told, chunks) = received(style, content.len(), &pieces);
        assert!(told == content);
        assert_eq!(chunks, 3);
        assert!(pieces.len() < 37 * KIB, "{} bytes", pieces.len());
    }
    let simple = reply(HeaderStyle::Simple, &content, false);
    assert_eq!(simple[6 + 16..], content);
}

#[test]
fn a_read_of_a_few_blocks_is_not_looked_at() {
    let content = content("1d 62z");
    let whole = reply(HeaderStyle::Structured, &content, false);
    assert_eq!(
        received(HeaderStyle::Structured, content.len(), &whole).1,
        1
    );
}

proptest! {
    #[test]
    fn every_content_is_what_the_client_gets(
        runs in prop::collection::vec((1..100usize, any::<bool>(), 0..700usize), 1..30),
        extended: bool,
        df: bool,
    ) {
        let mut content = Vec::new();
        for (kib, is_data, more) in runs {
            let byte = if is_data { 1 + kib as u8 } else { 0 };
            content.resize(content.len() + kib * KIB + more, byte);
        }
        let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Structured };
        let reply = reply(style, &content, df);
        let (told, chunks) = received(style, content.len(), &reply);
        prop_assert!(told == content);
        prop_assert!(chunks <= PIECES_MAX && (!df || chunks == 1));
    }
}

//! A server's bytes in all pieces, and bytes that no server should send.

use super::*;
use crate::chunk::{ReadReply, ReplyTo};
use crate::client::chunk::{Chunk, StatusExtent};
use crate::protocol::{chunk, command};
use crate::wide_request::Request;

fn to(style: HeaderStyle, command: u16) -> ReplyTo {
    let request = Request {
        flags: 0,
        command,
        cookie: 77,
        offset: 4096,
        length: 512,
    };
    ReplyTo::new(style, &request)
}

/// Replies of every kind that a style has.
fn stream(style: HeaderStyle) -> Vec<u8> {
    let mut out = to(style, command::WRITE).success().as_bytes().to_vec();
    to(style, command::WRITE).error(Errno::NoSpc, "full", &mut out);
    if style.has_chunks() {
        let mut read = ReadReply::new(to(style, command::READ), 4096, 512, false);
        out.extend_from_slice(read.data(500, false).expect("a piece").as_bytes());
        out.extend_from_slice(&[9; 500]);
        out.extend_from_slice(read.hole(12).expect("a piece").as_bytes());
        to(style, command::READ).error_at(Errno::Io, 4100, "bad", &mut out);
    }
    out
}

fn read_all(style: HeaderStyle, bytes: &[u8], piece_bytes: usize) -> Vec<(ReplyHeader, Vec<u8>)> {
    let mut reader = ReplyReader::new(style, 600);
    let mut seen = Vec::new();
    for mut piece in bytes.chunks(piece_bytes) {
        while let Some((header, payload)) = reader.next(&mut piece).expect("good bytes") {
            seen.push((header, payload.to_vec()));
        }
        assert!(piece.is_empty(), "bytes left over");
    }
    seen
}

#[test]
fn replies_are_the_same_in_pieces_of_any_size() {
    for (style, count) in [
        (HeaderStyle::Simple, 2),
        (HeaderStyle::Structured, 5),
        (HeaderStyle::Extended, 5),
    ] {
        let bytes = stream(style);
        let whole = read_all(style, &bytes, bytes.len());
        assert_eq!(whole.len(), count, "{style:?}");
        assert!(whole.iter().all(|(header, _)| header.cookie == 77));
        for piece_bytes in 1..60 {
            assert_eq!(read_all(style, &bytes, piece_bytes), whole, "{style:?}");
        }
    }
}

#[test]
fn a_structured_session_has_both_kinds_of_replies() {
    let seen = read_all(
        HeaderStyle::Structured,
        &stream(HeaderStyle::Structured),
        10_000,
    );
    assert_eq!(seen[0].0.kind, ReplyKind::Simple(None));
    let kind = ReplyKind::Chunk {
        kind: chunk::OFFSET_DATA,
        done: false,
        echo: None,
        payload: 508,
    };
    assert_eq!(seen[2].0.kind, kind);
}

#[test]
fn an_extended_session_echoes_the_offset_in_every_reply() {
    for (header, _) in read_all(
        HeaderStyle::Extended,
        &stream(HeaderStyle::Extended),
        10_000,
    ) {
        let ReplyKind::Chunk { echo, .. } = header.kind else {
            panic!("{header:?}")
        };
        assert_eq!(echo, Some(4096));
    }
}

#[test]
fn the_magic_of_another_style_loses_the_stream() {
    use HeaderStyle::{Extended, Simple, Structured};
    let rows = [
        (Simple, STRUCTURED_REPLY_MAGIC),
        (Simple, EXTENDED_REPLY_MAGIC),
        (Structured, EXTENDED_REPLY_MAGIC),
        (Extended, SIMPLE_REPLY_MAGIC),
        (Extended, STRUCTURED_REPLY_MAGIC),
        (Structured, 0),
    ];
    for (style, magic) in rows {
        let mut reader = ReplyReader::new(style, 600);
        // Four bytes tell; nobody waits for more.
        let bytes = magic.to_be_bytes();
        let error = reader.next(&mut &bytes[..]);
        assert_eq!(error, Err(ReplyError::WrongMagic(magic)), "{style:?}");
    }
}

#[test]
fn a_claimed_length_takes_no_memory_and_has_a_limit() {
    let mut header = [0; 32];
    header[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
    for (claimed, accepted) in [
        (600, true),
        (601, false),
        (1 << 32, false),
        (u64::MAX, false),
    ] {
        header[24..].copy_from_slice(&u64::to_be_bytes(claimed));
        let mut reader = ReplyReader::new(HeaderStyle::Extended, 600);
        let expected = if accepted {
            Ok(None)
        } else {
            Err(ReplyError::TooLong(claimed))
        };
        assert_eq!(reader.next(&mut &header[..]), expected);
        assert_eq!(reader.framer.held_bytes(), 0);
    }
}

#[test]
fn chunks_are_read_as_they_are_written() {
    let hole = [&4096_u64.to_be_bytes()[..], &[0, 0, 0, 9]].concat();
    assert_eq!(
        Chunk::parse(chunk::OFFSET_HOLE, &hole),
        Ok(Chunk::Hole {
            offset: 4096,
            len: 9
        })
    );
    let data = [&4096_u64.to_be_bytes()[..], b"x"].concat();
    assert_eq!(
        Chunk::parse(chunk::OFFSET_DATA, &data),
        Ok(Chunk::Data {
            offset: 4096,
            data: b"x"
        })
    );
    let extents = |kind, payload: &[u8]| match Chunk::parse(kind, payload) {
        Ok(Chunk::Status { context, extents }) => (context, extents.iter().collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    };
    let compact = [0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0];
    let two = vec![
        StatusExtent { len: 1, status: 3 },
        StatusExtent { len: 2, status: 0 },
    ];
    assert_eq!(extents(chunk::BLOCK_STATUS, &compact), (7, two));
    for count in [0, 1] {
        let mut wide = [0; 24];
        wide[3] = 7;
        wide[7] = count;
        wide[11] = 1;
        wide[23] = 3;
        let one = vec![StatusExtent {
            len: 1 << 32,
            status: 3,
        }];
        assert_eq!(extents(chunk::BLOCK_STATUS_EXT, &wide), (7, one));
    }
}

#[test]
fn chunks_that_lie_lose_the_stream() {
    let rows: [(&str, u16, &[u8]); 20] = [
        ("NONE with payload", chunk::NONE, b"x"),
        ("data without offset", chunk::OFFSET_DATA, &[0; 7]),
        ("data without data", chunk::OFFSET_DATA, &[0; 8]),
        ("data past 2^64", chunk::OFFSET_DATA, &[0xff; 9]),
        ("short hole", chunk::OFFSET_HOLE, &[0; 11]),
        ("long hole", chunk::OFFSET_HOLE, &[1; 13]),
        ("empty hole", chunk::OFFSET_HOLE, &[0; 12]),
        ("hole past 2^64", chunk::OFFSET_HOLE, &[0xff; 12]),
        ("status without context", chunk::BLOCK_STATUS, &[0; 3]),
        ("status without extent", chunk::BLOCK_STATUS, &[0; 4]),
        ("status with part of one", chunk::BLOCK_STATUS, &[1; 13]),
        ("status of nothing", chunk::BLOCK_STATUS, &[0; 12]),
        ("wide without count", chunk::BLOCK_STATUS_EXT, &[0; 7]),
        ("wide with a lying count", chunk::BLOCK_STATUS_EXT, &[1; 24]),
        ("wide with part of one", chunk::BLOCK_STATUS_EXT, &[0; 20]),
        ("error without text length", chunk::ERROR, &[0, 0, 0, 5, 0]),
        ("error with lying text", chunk::ERROR, &[0, 0, 0, 5, 0, 1]),
        ("error of success", chunk::ERROR, &[0; 6]),
        (
            "error without its offset",
            chunk::ERROR_OFFSET,
            &[0, 0, 0, 5, 0, 0],
        ),
        ("unknown type", 3, &[]),
    ];
    for (rule, kind, payload) in rows {
        let parsed = Chunk::parse(kind, payload);
        assert!(
            matches!(parsed, Err(ReplyError::Malformed(_))),
            "{rule}: {parsed:?}"
        );
    }
}

#[test]
fn an_unknown_error_is_an_error() {
    let parsed = Chunk::parse(
        chunk::ERROR_BIT | 99,
        &[0, 0, 0, 28, 0, 2, b'n', b'o', 1, 2, 3],
    );
    let expected = Chunk::Error {
        errno: Errno::NoSpc,
        offset: None,
        text: "no".to_owned(),
    };
    assert_eq!(parsed, Ok(expected));
}

//! Golden bytes of every header, and the rules on chunks, one row each.

use super::*;
use crate::command::StatusQuery;
use crate::export::ExportInfo;
use crate::session::ContextIds;

const COOKIE: u64 = 0x0102_0304_0506_0708;
const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

fn to(style: HeaderStyle, command: u16) -> ReplyTo {
    let request = Request {
        flags: 0,
        command,
        cookie: COOKIE,
        offset: 0x1000,
        length: 0x200,
    };
    ReplyTo::new(style, &request)
}

/// Bytes of hexadecimal digits.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(pair, 16).expect("digits")
    };
    digits.chunks(2).map(byte).collect()
}

/// A read reply's next head.
fn data(style: HeaderStyle, len: u32, certain: bool) -> Vec<u8> {
    let mut reply = ReadReply::new(to(style, command::READ), 0x1000, 0x200, false);
    let head = reply.data(len, certain).expect("a piece");
    head.as_bytes().to_vec()
}

fn hole(style: HeaderStyle, len: u32) -> Vec<u8> {
    let mut reply = ReadReply::new(to(style, command::READ), 0x1000, 0x200, false);
    reply.hole(len).expect("a piece").as_bytes().to_vec()
}

fn error(style: HeaderStyle, text: &str, offset: Option<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    match offset {
        Some(offset) => to(style, command::READ).error_at(Errno::Io, offset, text, &mut out),
        None => to(style, command::READ).error(Errno::Io, text, &mut out),
    }
    out
}

fn success(style: HeaderStyle, command: u16) -> Vec<u8> {
    to(style, command).success().as_bytes().to_vec()
}

#[test]
fn the_golden_bytes_of_every_header() {
    use HeaderStyle::{Extended, Simple, Structured};
    let simple = "67446698 00000000 0102030405060708";
    let none = "668e33ef 0001 0000 0102030405060708 00000000";
    let wide = "0102030405060708 0000000000001000";
    let rows = [
        (success(Simple, command::READ), simple.to_owned()),
        (success(Structured, command::WRITE), simple.to_owned()),
        (success(Structured, command::READ), none.to_owned()),
        (success(Structured, command::BLOCK_STATUS), none.to_owned()),
        (
            success(Extended, command::WRITE),
            format!("6e8a278c 0001 0000 {wide} 0000000000000000"),
        ),
        (data(Simple, 0x200, false), simple.to_owned()),
        (
            data(Structured, 0x100, true),
            "668e33ef 0000 0001 0102030405060708 00000108 0000000000001000".to_owned(),
        ),
        (
            data(Structured, 0x200, true),
            "668e33ef 0001 0001 0102030405060708 00000208 0000000000001000".to_owned(),
        ),
        (
            data(Extended, 0x200, false),
            format!("6e8a278c 0000 0001 {wide} 0000000000000208 0000000000001000"),
        ),
        (
            hole(Structured, 0x200),
            "668e33ef 0001 0002 0102030405060708 0000000c 0000000000001000 00000200".to_owned(),
        ),
        (
            hole(Extended, 0x100),
            format!("6e8a278c 0000 0002 {wide} 000000000000000c 0000000000001000 00000100"),
        ),
        (
            error(Simple, "no", None),
            "67446698 00000005 0102030405060708".to_owned(),
        ),
        (
            error(Structured, "no", None),
            "668e33ef 0001 8001 0102030405060708 00000008 00000005 0002 6e6f".to_owned(),
        ),
        (
            error(Extended, "no", None),
            format!("6e8a278c 0001 8001 {wide} 0000000000000008 00000005 0002 6e6f"),
        ),
        (
            error(Structured, "", Some(0x1001)),
            "668e33ef 0001 8002 0102030405060708 0000000e 00000005 0000 0000000000001001"
                .to_owned(),
        ),
        (
            error(Extended, "no", Some(0x1001)),
            format!(
                "6e8a278c 0001 8002 {wide} 0000000000000010 00000005 0002 6e6f 0000000000001001"
            ),
        ),
    ];
    for (index, (bytes, golden)) in rows.into_iter().enumerate() {
        assert_eq!(bytes, hex(&golden), "row {index}: {golden}");
    }
}

/// With structured replies READ and BLOCK_STATUS, and with extended headers everything, is answered
/// in chunks, success or not; without negotiation nothing is.
#[test]
fn no_answer_has_the_wrong_magic() {
    for command in 0..100 {
        for errno in Errno::ALL {
            for style in STYLES {
                let mut error = Vec::new();
                to(style, command).error(errno, "why", &mut error);
                let mut error_at = Vec::new();
                to(style, command).error_at(errno, 0x1000, "why", &mut error_at);
                let (chunk, always) = match style {
                    HeaderStyle::Simple => ([0x67, 0x44, 0x66, 0x98], true),
                    HeaderStyle::Structured => ([0x66, 0x8e, 0x33, 0xef], false),
                    HeaderStyle::Extended => ([0x6e, 0x8a, 0x27, 0x8c], true),
                };
                assert_eq!(error[..4], chunk, "{style:?} {command}");
                assert_eq!(error_at[..4], chunk, "{style:?} {command}");
                if always || matches!(command, command::READ | command::BLOCK_STATUS) {
                    assert_eq!(success(style, command)[..4], chunk, "{style:?} {command}");
                }
            }
        }
    }
}

#[test]
fn a_text_is_cut_to_what_the_wire_takes() {
    let bytes = error(HeaderStyle::Structured, &"ü".repeat(40_000), None);
    assert_eq!(bytes.len(), STRUCTURED_CHUNK_BYTES + 6 + 4096);
}

/// What the steps of a read reply come to: `D n` data, `d n` uncertain data, `H n` hole, `F`
/// finish, `E n` error. The range is 0x1000 + 100 bytes.
fn read_reply(style: HeaderStyle, df: bool, steps: &str) -> String {
    let mut reply = ReadReply::new(to(style, command::READ), 0x1000, 100, df);
    let mut seen = Vec::new();
    for step in steps.split(';') {
        let (kind, number) = step.trim().split_at(1);
        let number = || number.trim().parse::<u32>().expect("a number");
        let mut out = Vec::new();
        let result = match kind {
            "D" => reply.data(number(), true).map(Some),
            "d" => reply.data(number(), false).map(Some),
            "H" => reply.hole(number()).map(Some),
            "F" => reply.finish(),
            "E" => reply
                .fail(Errno::Io, u64::from(number()), "", &mut out)
                .map(|()| None),
            other => panic!("{other}"),
        };
        let head = match result {
            Ok(Some(head)) => head.as_bytes().to_vec(),
            Ok(None) => out,
            Err(error) => {
                seen.push(format!("{error:?}"));
                continue;
            }
        };
        seen.push(match head[..] {
            [] => "-".to_owned(),
            [0x67, ..] => format!("simple{}", head[7]),
            [_, _, _, _, _, done, high, low, ..] => {
                let name = ["none", "data", "hole"].get(usize::from(low));
                let name = if high == 0x80 {
                    &["", "error", "offset"][usize::from(low)]
                } else {
                    name.expect("a type")
                };
                format!("{name}{}", if done == 1 { "!" } else { "" })
            }
            _ => panic!("{head:?}"),
        });
    }
    seen.join(" ")
}

/// Rule, style (`s`tructured or extended alike, `-` simple, `f` with DF), steps, what goes out. `!`
/// is the DONE flag.
const READ_RULES: &str = "
    one piece ends the reply             | s | D 100;F             | data! -
    not while it can fail                | s | d 100;F             | data none!
    several pieces                       | s | D 40;H 20;D 40;F    | data hole data! -
    a hole at the end cannot fail        | s | d 40;H 60;F         | data hole! -
    all zeros                            | s | H 100;F             | hole! -
    an end only once                     | s | D 100;D 1;H 1;E 0;F | data! Ended Ended Ended -
    and only when all was sent           | s | D 99;F;D 1;F        | data Unfinished data! -
    nothing but an end is too little     | s | F                   | Unfinished
    no empty pieces                      | s | D 0;H 0             | OutOfRange OutOfRange
    no pieces beyond the request         | s | D 101;H 101;D 60;D 41 \
        | OutOfRange OutOfRange data OutOfRange
    an error before any data             | s | E 4096              | offset!
    an error after data                  | s | d 60;E 4130         | data offset!
    nothing after an error               | s | E 4096;D 1;H 1;F;E 1 \
        | offset! Ended Ended Unfinished Ended
    DF in one piece                      | f | D 100;F             | data! -
    DF in two                            | f | D 50;D 50           | NotInPieces NotInPieces
    DF with a hole among data            | f | H 50;D 100          | NotInPieces data!
    DF of zeros only                     | f | H 100               | hole!
    DF that fails                        | f | d 100;E 4100        | data offset!
    simple: one piece                    | - | D 100;F             | simple0 -
    simple: no pieces                    | - | D 50;D 100          | NotInPieces simple0
    simple: no holes                     | - | H 100;D 100         | NotInPieces simple0
    simple: an error before data         | - | E 4096;D 100        | simple5 Ended
    simple: an error behind it           | - | d 100;E 4096        | simple0 TooLate
";

#[test]
fn read_replies_obey_the_rules() {
    for row in READ_RULES.lines().filter(|row| !row.trim().is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, style, steps, expected] = cells[..] else {
            panic!("{row}")
        };
        let chunks = &STYLES[1..];
        let styles = if style == "-" { &STYLES[..1] } else { chunks };
        for style_of in styles {
            let seen = read_reply(*style_of, style == "f", steps);
            assert_eq!(seen, expected, "{rule} ({style_of:?})");
        }
    }
}

#[test]
fn a_read_of_nothing_is_one_empty_answer() {
    for (style, bytes) in STYLES.into_iter().zip([16, 20, 32]) {
        let mut reply = ReadReply::new(to(style, command::READ), 0x1000, 0, false);
        assert_eq!(reply.data(0, true), Err(ReadReplyError::OutOfRange));
        let head = reply.finish().expect("complete").expect("an answer");
        assert_eq!(head.as_bytes().len(), bytes, "{style:?}");
        assert_eq!(reply.finish(), Ok(None), "told twice");
    }
    let mut failed = ReadReply::new(to(HeaderStyle::Structured, command::READ), 9, 0, false);
    let mut out = Vec::new();
    failed.fail(Errno::Io, 9, "", &mut out).expect("an error");
    assert_eq!(out[6..8], [0x80, 1], "no offset lies inside of nothing");
}

#[test]
fn an_error_offset_lies_inside_the_request() {
    for (offset, told) in [(0, 0x1000), (0x1001, 0x1001), (u64::MAX, 0x1063)] {
        let to = to(HeaderStyle::Structured, command::READ);
        let mut reply = ReadReply::new(to, 0x1000, 100, false);
        let mut out = Vec::new();
        reply
            .fail(Errno::Io, offset, "", &mut out)
            .expect("an error");
        assert_eq!(out[out.len() - 8..], u64::to_be_bytes(told));
    }
    // A DF that cannot be had is no matter of an offset.
    let to = to(HeaderStyle::Extended, command::READ);
    let mut out = Vec::new();
    ReadReply::new(to, 0x1000, 100, true)
        .fail(Errno::Overflow, 0x1000, "", &mut out)
        .expect("an error");
    assert_eq!(out[6..8], [0x80, 1]);
}

/// The status of a range in an export, pushed as `len:status` and written as the wire has it.
fn status(style: HeaderStyle, range: (u64, u64), size: u64, one: bool, extents: &str) -> String {
    let query = StatusQuery {
        offset: range.0,
        len: range.1,
        one,
        contexts: ContextIds::default(),
    };
    let export = ExportInfo::new("v", size);
    let mut out = b"before".to_vec();
    let to = to(style, command::BLOCK_STATUS);
    let mut chunk = StatusChunk::new(to, &query, 7, &export, &mut out);
    let mut pushed = 0;
    for extent in extents.split_whitespace() {
        let (len, status) = extent.split_once(':').expect("len:status");
        let len = len.parse().expect("a length");
        pushed += 1;
        if !chunk.push(len, status.parse().expect("a status")) {
            break;
        }
    }
    if chunk.finish(true).is_err() {
        assert_eq!(out, b"before", "something was left behind");
        return "nothing".to_owned();
    }
    let head = match style {
        HeaderStyle::Extended => EXTENDED_CHUNK_BYTES,
        _ => STRUCTURED_CHUNK_BYTES,
    };
    let payload = &out[6 + head..];
    let len_at = 6 + head - 4;
    assert_eq!(
        out[len_at..len_at + 4],
        (payload.len() as u32).to_be_bytes()
    );
    let (kind, fixed, extent_bytes) = match style {
        HeaderStyle::Extended => (chunk::BLOCK_STATUS_EXT, 8, 16),
        _ => (chunk::BLOCK_STATUS, 4, 8),
    };
    assert_eq!(out[12..14], kind.to_be_bytes());
    assert_eq!(payload[..4], [0, 0, 0, 7]);
    let extents = payload[fixed..].chunks_exact(extent_bytes);
    if fixed == 8 {
        assert_eq!(payload[4..8], (extents.len() as u32).to_be_bytes());
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let words: Vec<String> = extents
        .map(|extent| {
            let (len, status) = extent.split_at(extent_bytes / 2);
            format!("{}:{}", number(len), number(status))
        })
        .collect();
    format!("{} of {pushed}", words.join(" "))
}

/// Rule, range, size of the export, REQ_ONE, extents offered, extents sent `of` those looked at.
const STATUS_RULES: &str = "
    one extent                  | 0+100  | 1000 |     | 100:3         | 100:3 of 1
    as they come                | 0+100  | 1000 |     | 40:0 30:3 30:0 | 40:0 30:3 30:0 of 3
    neighbours are merged       | 0+100  | 1000 |     | 40:1 30:1 30:0 | 70:1 30:0 of 3
    the last may reach further  | 0+100  | 1000 |     | 40:0 500:3    | 40:0 500:3 of 2
    but only the last           | 0+100  | 1000 |     | 40:0 60:3 9:0 | 40:0 60:3 of 2
    not past the end            | 900+50 | 1000 |     | 40:0 500:3    | 40:0 60:3 of 2
    less than asked for is fine | 0+100  | 1000 |     | 40:0          | 40:0 of 1
    none is not                 | 0+100  | 1000 |     |               | nothing
    empty ones do not count     | 0+100  | 1000 |     | 0:1 40:0 0:1 60:0 | 100:0 of 4
    only empty ones are none    | 0+100  | 1000 |     | 0:1           | nothing
    one only                    | 0+100  | 1000 | one | 40:0 30:3     | 40:0 of 2
    one, merged                 | 0+100  | 1000 | one | 40:0 30:0 9:1 | 70:0 of 3
    one within the request      | 0+100  | 1000 | one | 500:3         | 100:3 of 1
";

#[test]
fn status_obeys_the_rules() {
    for row in STATUS_RULES.lines().filter(|row| !row.trim().is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, range, size, one, extents, expected] = cells[..] else {
            panic!("{row}")
        };
        let (offset, len) = range.split_once('+').expect("a range");
        let range = (offset.parse().expect("u64"), len.parse().expect("u64"));
        let size = size.parse().expect("u64");
        for style in &STYLES[1..] {
            let seen = status(*style, range, size, one == "one", extents);
            assert_eq!(seen, expected, "{rule} ({style:?})");
        }
    }
}

/// 2^32 - 1 itself crashed a client (CVE-2025-47711): a short extent ends on a boundary below it.
#[test]
fn an_extent_of_32_bits_stays_below_its_limit() {
    let size = 1 << 40;
    let whole = format!("{size}:3");
    let range = (0, u64::from(u32::MAX));
    assert_eq!(
        status(HeaderStyle::Structured, range, size, false, &whole),
        "4294963200:3 of 1"
    );
    let merged = "4294967295:3 1:3 1:0";
    assert_eq!(
        status(HeaderStyle::Structured, range, size, false, merged),
        "4294963200:3 of 1"
    );
    let after = "4294963200:3 4095:0";
    assert_eq!(
        status(HeaderStyle::Structured, range, size, false, after),
        "4294963200:3 4095:0 of 2"
    );
    assert_eq!(
        status(HeaderStyle::Extended, (0, size), size, false, &whole),
        "1099511627776:3 of 1"
    );
}

#[test]
fn an_extent_of_32_bits_ends_on_the_grid_of_the_export() {
    let query = StatusQuery {
        offset: 0,
        len: 0xffff_0000,
        one: false,
        contexts: ContextIds::default(),
    };
    let export = ExportInfo {
        min_block: 65536,
        ..ExportInfo::new("v", 1 << 40)
    };
    let mut out = Vec::new();
    let to = to(HeaderStyle::Structured, command::BLOCK_STATUS);
    let mut chunk = StatusChunk::new(to, &query, 1, &export, &mut out);
    assert!(!chunk.push(1 << 40, 0), "the request is covered");
    chunk.finish(false).expect("an extent");
    assert_eq!(out[24..28], 0xffff_0000_u32.to_be_bytes());
    assert_eq!(out[4..6], [0, 0], "more chunks follow");
}

#[test]
fn a_chunk_of_status_is_bounded() {
    let query = StatusQuery {
        offset: 0,
        len: 1 << 40,
        one: false,
        contexts: ContextIds::default(),
    };
    let export = ExportInfo::new("v", 1 << 40);
    let mut out = Vec::new();
    let to = to(HeaderStyle::Extended, command::BLOCK_STATUS);
    let mut chunk = StatusChunk::new(to, &query, 1, &export, &mut out);
    let pushed = (0..u32::MAX)
        .take_while(|at| chunk.push(4096, at % 2))
        .count();
    assert_eq!(pushed, EXTENTS_MAX as usize);
    chunk.finish(true).expect("extents");
    assert_eq!(out.len(), 32 + 8 + 16 * EXTENTS_MAX as usize);
}

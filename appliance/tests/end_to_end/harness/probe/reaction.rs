//! What a server answers, as text.

use std::collections::BTreeMap;
use std::io::Read;

use super::script::{Asked, GO, PING, PING_COOKIE, Style};

pub(super) const OPTIONS: [(u32, &str); 11] = [
    (1, "NAME"),
    (2, "ABORT"),
    (3, "LIST"),
    (4, "PEEK"),
    (5, "STARTTLS"),
    (6, "INFO"),
    (7, "GO"),
    (8, "SR"),
    (9, "QUERY"),
    (10, "SET"),
    (11, "EXT"),
];

const REPLIES: [(u32, &str); 4] = [(1, "ACK"), (2, "SERVER"), (3, "INFO"), (4, "META")];
const REFUSALS: [&str; 11] = [
    "?",
    "UNSUP",
    "POLICY",
    "INVALID",
    "PLATFORM",
    "TLS_REQD",
    "UNKNOWN",
    "SHUTDOWN",
    "BLOCK_SIZE_REQD",
    "TOO_BIG",
    "EXT_HEADER_REQD",
];

/// Takes so many bytes; `None` if the server has closed.
fn take(stream: &mut impl Read, bytes: usize) -> Option<Vec<u8>> {
    let mut taken = vec![0; bytes];
    match stream.read_exact(&mut taken) {
        Ok(()) => Some(taken),
        Err(error) => {
            let hangs = matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            );
            assert!(!hangs, "the server hangs");
            None
        }
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    let word = &bytes[offset..offset + N];
    word.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

pub(super) fn greeting(stream: &mut impl Read) {
    let greeting = take(stream, 18).expect("a greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    assert_eq!(greeting[16..], [0, 3], "fixed newstyle, no zeroes");
}

/// Replies to options that are refused or acknowledged, until STARTTLS is acknowledged.
pub(super) fn tls_starts(stream: &mut impl Read) {
    loop {
        let head = take(stream, 20).expect("STARTTLS is answered");
        let (option, kind) = (at::<4>(&head, 8), at::<4>(&head, 12));
        take(stream, at::<4>(&head, 16) as usize);
        if option == 5 {
            assert_eq!(kind, 1, "STARTTLS is acknowledged");
            return;
        }
    }
}

/// How many bytes come until the server closes.
pub(super) fn rest(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    match bytes.len() {
        0 => "closed".to_owned(),
        len => format!("{len} bytes"),
    }
}

/// All replies to options, until the one that asks for a sign of life is answered or transmission
/// begins.
pub(super) fn options(stream: &mut impl Read) -> String {
    let mut told = Vec::new();
    loop {
        let Some(head) = take(stream, 20) else {
            told.push("closed".to_owned());
            break;
        };
        assert_eq!(at::<8>(&head, 0), 0x0003_e889_0455_65a9, "a reply's magic");
        let (option, kind) = (at::<4>(&head, 8) as u32, at::<4>(&head, 12) as u32);
        let data = take(stream, at::<4>(&head, 16) as usize).unwrap_or_default();
        if option == PING {
            told.push("alive".to_owned());
            break;
        }
        told.push(option_reply(option, kind, &data));
        if (option, kind) == (GO, 1) {
            break;
        }
    }
    told.join(" ")
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> String {
    let named = OPTIONS.iter().find(|(number, _)| *number == option);
    let option = named.map_or_else(|| option.to_string(), |(_, name)| (*name).to_owned());
    let known = REPLIES.iter().find(|(number, _)| *number == kind);
    let kind = match known {
        Some((_, name)) => *name,
        None => REFUSALS[(kind & !(1 << 31)) as usize],
    };
    let text = |from: usize| String::from_utf8_lossy(&data[from..]).into_owned();
    match kind {
        "META" => format!("{option}:{}={}", at::<4>(data, 0), text(4)),
        "INFO" => format!("{option}:INFO{}", at::<2>(data, 0)),
        "SERVER" => {
            let len = at::<4>(data, 0) as usize;
            let name = String::from_utf8_lossy(&data[4..4 + len]).into_owned();
            format!("{option}:{name}")
        }
        _ => format!("{option}:{kind}"),
    }
}

/// The reply to every request, in the order of their cookies.
pub(super) fn requests(stream: &mut impl Read, style: Style, asked: &[Asked]) -> String {
    let mut told: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut pieces: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let mut closed = false;
    // All but those to disconnect are answered, in any order.
    let answered = asked.iter().filter(|asked| asked.command != 2).count();
    while told.values().map(Vec::len).sum::<usize>() < answered {
        let Some(reply) = reply(stream, style, asked) else {
            closed = true;
            break;
        };
        let whole = pieces.entry(reply.cookie).or_default();
        whole.push(reply.text);
        if reply.is_last {
            let whole = pieces.remove(&reply.cookie).unwrap_or_default();
            told.entry(reply.cookie).or_default().push(whole.join("+"));
        }
    }
    let unfinished = pieces
        .into_keys()
        .map(|cookie| format!("unfinished {cookie}"));
    told.remove(&PING_COOKIE);
    let all = told.into_values().flatten().chain(unfinished);
    let end = closed.then(|| "closed".to_owned());
    all.chain(end).collect::<Vec<_>>().join(", ")
}

/// A reply, or a chunk of one.
struct Reply {
    cookie: u64,
    text: String,
    is_last: bool,
}

fn reply(stream: &mut impl Read, style: Style, asked: &[Asked]) -> Option<Reply> {
    let magic = at::<4>(&take(stream, 4)?, 0);
    let of = |cookie| {
        let mut asked = asked.iter();
        let asked = asked.find(|asked| asked.cookie == cookie);
        *asked.unwrap_or_else(|| panic!("a reply to {cookie}, which was not asked"))
    };
    if magic == 0x6744_6698 {
        let head = take(stream, 12)?;
        let asked = of(at::<8>(&head, 4));
        let is_read = asked.command == 0;
        assert!(
            style != Style::Extended,
            "a simple reply with extended headers"
        );
        assert!(style == Style::Simple || !is_read, "a simple reply to READ");
        let text = match at::<4>(&head, 0) {
            0 if is_read => runs(&take(stream, asked.len as usize)?),
            0 => "ok".to_owned(),
            error => errno(error),
        };
        return Some(Reply {
            cookie: asked.cookie,
            text,
            is_last: true,
        });
    }
    let wide = style == Style::Extended;
    assert_eq!(
        magic,
        if wide { 0x6e8a_278c } else { 0x668e_33ef },
        "a magic"
    );
    let head = take(stream, if wide { 28 } else { 16 })?;
    let (flags, kind) = (at::<2>(&head, 0), at::<2>(&head, 2));
    let asked = of(at::<8>(&head, 4));
    let len = if wide {
        assert_eq!(at::<8>(&head, 12), asked.offset, "the offset is echoed");
        at::<8>(&head, 20)
    } else {
        at::<4>(&head, 12)
    };
    let payload = take(stream, len as usize)?;
    assert!(flags <= 1, "flags of a chunk");
    Some(Reply {
        cookie: asked.cookie,
        text: chunk(kind, &payload, asked),
        is_last: flags == 1,
    })
}

fn chunk(kind: u64, payload: &[u8], asked: Asked) -> String {
    let within = |offset: u64, len: u64| {
        let fits = offset >= asked.offset && offset + len <= asked.offset + asked.len;
        assert!(fits && len > 0, "{offset}+{len} is not of the request");
    };
    match kind {
        0 if asked.command == 0 => "none".to_owned(),
        0 => "ok".to_owned(),
        1 => {
            within(at::<8>(payload, 0), payload.len() as u64 - 8);
            format!("data {}", runs(&payload[8..]))
        }
        2 => {
            within(at::<8>(payload, 0), at::<4>(payload, 8));
            format!("hole {}", at::<4>(payload, 8))
        }
        5 => extents::<4>(at::<4>(payload, 0), &payload[4..]),
        6 => {
            let text = extents::<8>(at::<4>(payload, 0), &payload[8..]);
            assert_eq!(at::<4>(payload, 4), (payload.len() as u64 - 8) / 16);
            text
        }
        0x8001 | 0x8002 => errno(at::<4>(payload, 0)),
        _ => format!("chunk {kind}"),
    }
}

/// `CONTEXT[STATUS*BYTES …]`.
fn extents<const N: usize>(context: u64, payload: &[u8]) -> String {
    let extents = payload.chunks_exact(2 * N);
    let text = extents.map(|extent| format!("{}*{}", at::<N>(extent, N), at::<N>(extent, 0)));
    format!("{context}[{}]", text.collect::<Vec<_>>().join(" "))
}

/// `BYTE*TIMES …`.
fn runs(data: &[u8]) -> String {
    let runs = data.chunk_by(|a, b| a == b);
    let text = runs.map(|run| format!("{}*{}", run[0], run.len()));
    text.collect::<Vec<_>>().join(" ")
}

fn errno(number: u64) -> String {
    let name = match number {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        108 => "ESHUTDOWN",
        _ => return format!("errno {number}"),
    };
    name.to_owned()
}

//! The handshake against every rule of the protocol, one row or test each.

use super::*;
use crate::codec::Cursor;
use crate::export::{LookupError, TransmissionFlags};
use crate::protocol::{info, option_reply};

/// Client flags: fixed newstyle, no zeroes.
const FIXED: u32 = 1;
const FIXED_NO_ZEROES: u32 = 3;

/// A directory with one export of each kind.
struct Exports {
    volumes: usize,
    list_error: Option<LookupError>,
}

const ONE: Exports = Exports {
    volumes: 1,
    list_error: None,
};

impl ExportDirectory for Exports {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        if let Some(error) = &self.list_error {
            return Err(error.clone());
        }
        for index in 0..self.volumes {
            visit(&format!("vol{index}"), "a volume");
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        let found = ExportInfo {
            description: "a volume".to_owned(),
            ..ExportInfo::new("vol0", 1000)
        };
        match name {
            "" | "vol0" => Ok(found),
            "ro" => Ok(ExportInfo {
                read_only: true,
                ..found
            }),
            "aligned" => Ok(ExportInfo {
                min_block: 4096,
                size: 8192,
                ..found
            }),
            "secret" => Err(LookupError::Policy("not for you".to_owned())),
            "gone" => Err(LookupError::Shutdown),
            long if long.len() == 4096 => Ok(ExportInfo::new(long, 7)),
            _ => Err(LookupError::Unknown),
        }
    }
}

/// The bytes of an option.
fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The data of INFO or GO.
fn info_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    for kind in wanted {
        data.extend_from_slice(&kind.to_be_bytes());
    }
    data
}

/// A client's stream: its flags, then its options.
fn stream(flags: u32, options: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = flags.to_be_bytes().to_vec();
    bytes.extend(options.iter().flatten());
    bytes
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    option: u32,
    kind: u32,
    data: Vec<u8>,
}

/// Cuts the server's output into replies.
fn replies(out: &[u8]) -> Vec<Reply> {
    let mut cursor = Cursor::new(out);
    let mut replies = Vec::new();
    while !cursor.is_empty() {
        assert_eq!(cursor.u64(), Some(crate::protocol::OPTION_REPLY_MAGIC));
        let option = cursor.u32().expect("option");
        let kind = cursor.u32().expect("type");
        let len = cursor.u32().expect("length") as usize;
        replies.push(Reply {
            option,
            kind,
            data: cursor.take(len).expect("data").to_vec(),
        });
    }
    replies
}

struct Run {
    out: Vec<u8>,
    consumed: usize,
    end: Result<Option<HandshakeEnd>, HandshakeError>,
}

/// Feeds `input` as a driver does, to the end of the handshake or of the input.
fn run(input: &[u8], exports: &Exports) -> Run {
    let mut server = ServerHandshake::new(HandshakeLimits::DEFAULT);
    let mut run = Run {
        out: Vec::new(),
        consumed: 0,
        end: Ok(None),
    };
    while run.consumed < input.len() && matches!(run.end, Ok(None)) {
        match server.advance(&input[run.consumed..], &mut run.out, exports) {
            Ok(advance) => {
                run.consumed += advance.consumed;
                run.end = Ok(advance.end);
            }
            Err(error) => run.end = Err(error),
        }
    }
    run
}

#[test]
fn the_golden_bytes_of_the_greeting() {
    let greeting = ServerHandshake::new(HandshakeLimits::DEFAULT).greeting();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn client_flags_that_were_not_offered_end_the_connection() {
    for flags in 0..16_u32 {
        let end = run(&stream(flags, &[]), &ONE).end;
        let unknown = Err(HandshakeError::UnknownClientFlags(flags));
        assert_eq!(end, if flags < 4 { Ok(None) } else { unknown });
    }
    let end = run(&stream(1 << 31, &[]), &ONE).end;
    assert_eq!(end, Err(HandshakeError::UnknownClientFlags(1 << 31)));
}

#[test]
fn a_client_that_begins_with_tls_is_told_apart_in_the_log() {
    let told = |flags| HandshakeError::UnknownClientFlags(flags).to_string();
    assert!(told(0x1603_0101).contains("TLS begins with STARTTLS"));
    assert!(!told(7).contains("TLS"));
}

/// The data of an option as a table writes it: `raw N` bytes of 7, or `name N` a name of N bytes,
/// or a name and the information that is asked for, then perhaps a fault in the lengths.
fn table_data(text: &str) -> Vec<u8> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["raw", len] => vec![7; len.parse().expect("a length")],
        ["name", len] => info_data(&vec![b'x'; len.parse().expect("a length")], &[]),
        ["nul"] => info_data(b"vol0\0", &[]),
        ["latin-1"] => info_data(b"vol\xff", &[]),
        ["lying", "length"] => [&u32::MAX.to_be_bytes()[..], &info_data(b"", &[])[4..]].concat(),
        ["lying", "count"] => [&info_data(b"vol0", &[])[..8], &[0, 3, 0, 1]].concat(),
        ["trailing"] => [info_data(b"vol0", &[]), vec![0]].concat(),
        ["everything"] => info_data(b"vol0", &[info::NAME; 65535]),
        ["default", ref wanted @ ..] => info_data(b"", &numbers(wanted)),
        [name, ref wanted @ ..] => info_data(name.as_bytes(), &numbers(wanted)),
        [] => Vec::new(),
    }
}

fn numbers(words: &[&str]) -> Vec<u16> {
    words
        .iter()
        .map(|word| word.parse().expect("a type of information"))
        .collect()
}

fn reply_name(kind: u32) -> &'static str {
    match kind {
        option_reply::ACK => "ACK",
        option_reply::SERVER => "SERVER",
        option_reply::INFO => "INFO",
        option_reply::ERR_UNSUP => "UNSUP",
        option_reply::ERR_POLICY => "POLICY",
        option_reply::ERR_INVALID => "INVALID",
        option_reply::ERR_UNKNOWN => "UNKNOWN",
        option_reply::ERR_SHUTDOWN => "SHUTDOWN",
        option_reply::ERR_BLOCK_SIZE_REQD => "BLOCK_SIZE_REQD",
        option_reply::ERR_TOO_BIG => "TOO_BIG",
        _ => "unexpected",
    }
}

/// Rule, option, its data, the replies.
const OPTION_RULES: &str = "
    list                     | 3          |               | SERVER ACK
    list with data           | 3          | raw 1         | INVALID
    list with much data      | 3          | raw 300000    | INVALID
    info                     | 6          | vol0          | INFO ACK
    info of the default      | 6          | default       | INFO ACK
    info with EXPORT         | 6          | default 0     | INFO ACK
    info with NAME           | 6          | default 1     | INFO INFO ACK
    info with all            | 6          | default 1 2 3 | INFO INFO INFO INFO ACK
    info with unknown types  | 6          | default 4 999 | INFO ACK
    info asked 65535 times   | 6          | everything    | INFO INFO ACK
    info of a stranger       | 6          | nobody        | UNKNOWN
    go of a stranger         | 7          | nobody        | UNKNOWN
    go forbidden             | 7          | secret        | POLICY
    go at shutdown           | 7          | gone          | SHUTDOWN
    go ignorant of the grid  | 7          | aligned 1     | BLOCK_SIZE_REQD
    name of 4096 bytes       | 6          | name 4096     | INFO ACK
    name of 4097 bytes       | 7          | name 4097     | INVALID
    name of 5000 bytes       | 7          | name 5000     | INVALID
    name with NUL            | 7          | nul           | INVALID
    name not UTF-8           | 7          | latin-1       | INVALID
    go without data          | 7          |               | INVALID
    go cut in a length       | 7          | raw 3         | INVALID
    go with a lying length   | 7          | lying length  | INVALID
    go with a lying count    | 7          | lying count   | INVALID
    go with trailing bytes   | 7          | trailing      | INVALID
    go too long to look at   | 7          | raw 300000    | TOO_BIG
    peek, withdrawn          | 4          |               | UNSUP
    starttls                 | 5          |               | UNSUP
    structured replies       | 8          |               | UNSUP
    list meta contexts       | 9          | raw 8         | UNSUP
    set meta contexts        | 10         | raw 8         | UNSUP
    extended headers         | 11         |               | UNSUP
    option 0                 | 0          |               | UNSUP
    unknown option, long     | 2147483647 | raw 1000000   | UNSUP
";

/// After each row the server must be in sync, which an ABORT proves.
#[test]
fn every_option_gets_its_answer_and_the_stream_stays_in_sync() {
    for row in OPTION_RULES.lines().filter(|row| !row.is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, number, data, expected] = cells[..] else {
            panic!("{row}")
        };
        let number = number.parse().expect("an option");
        let options = [
            option(number, &table_data(data)),
            option(option::ABORT, b"bye"),
        ];
        let input = stream(FIXED, &options);
        let Run { out, consumed, end } = run(&input, &ONE);
        assert_eq!(end, Ok(Some(HandshakeEnd::Aborted)), "{rule}");
        assert_eq!(consumed, input.len(), "{rule}");
        let mut replies = replies(&out);
        let abort = replies.pop().expect("an answer to ABORT");
        assert_eq!(
            (abort.option, abort.kind),
            (option::ABORT, option_reply::ACK),
            "{rule}"
        );
        assert!(
            replies.iter().all(|reply| reply.option == number),
            "{rule}: {replies:?}"
        );
        let kinds: Vec<_> = replies.iter().map(|reply| reply_name(reply.kind)).collect();
        assert_eq!(kinds.join(" "), expected, "{rule}");
    }
}

#[test]
fn go_describes_the_export_and_starts_transmission() {
    let wanted = [info::BLOCK_SIZE, info::DESCRIPTION, info::NAME];
    let mut input = stream(
        FIXED_NO_ZEROES,
        &[option(option::GO, &info_data(b"", &wanted))],
    );
    let handshake_bytes = input.len();
    input.extend_from_slice(b"first request");
    let Run { out, consumed, end } = run(&input, &ONE);
    let Ok(Some(HandshakeEnd::Transmission(selected))) = end else {
        panic!("{end:?}")
    };
    assert_eq!(
        consumed, handshake_bytes,
        "bytes of the transmission phase were taken"
    );
    assert_eq!((selected.name.as_str(), selected.info.size), ("", 1000));
    let data: Vec<Vec<u8>> = replies(&out).into_iter().map(|reply| reply.data).collect();
    let block_sizes = [&[0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0][..]].concat();
    assert_eq!(
        data,
        [
            vec![0, 0, 0, 0, 0, 0, 0, 0, 3, 0xe8, 0x0d, 0x6d],
            b"\x00\x01vol0".to_vec(),
            b"\x00\x02a volume".to_vec(),
            block_sizes,
            vec![],
        ]
    );
}

#[test]
fn go_answers_as_the_preceding_info_did() {
    let data = info_data(b"ro", &[1, 2, 3]);
    let input = stream(
        FIXED,
        &[option(option::INFO, &data), option(option::GO, &data)],
    );
    let Run { out, end, .. } = run(&input, &ONE);
    let replies = replies(&out);
    let (info, go) = replies.split_at(replies.len() / 2);
    let content = |part: &[Reply]| -> Vec<_> {
        part.iter()
            .map(|reply| (reply.kind, reply.data.clone()))
            .collect()
    };
    assert_eq!(content(info), content(go));
    let Ok(Some(HandshakeEnd::Transmission(selected))) = end else {
        panic!("{end:?}")
    };
    let flags = selected.info.transmission_flags();
    assert!(flags.contains(TransmissionFlags::READ_ONLY), "{flags:?}");
}

#[test]
fn an_export_on_a_grid_is_had_by_asking_for_block_sizes() {
    let data = info_data(b"aligned", &[info::BLOCK_SIZE]);
    let end = run(&stream(FIXED, &[option(option::GO, &data)]), &ONE).end;
    assert!(
        matches!(end, Ok(Some(HandshakeEnd::Transmission(_)))),
        "{end:?}"
    );
}

/// What EXPORT_NAME with these client flags comes to.
fn export_name(flags: u32, name: &[u8]) -> (Vec<u8>, Result<Selected, HandshakeError>) {
    let Run { out, end, .. } = run(&stream(flags, &[option(option::EXPORT_NAME, name)]), &ONE);
    match end {
        Ok(Some(HandshakeEnd::Transmission(selected))) => (out, Ok(selected)),
        Err(error) => (out, Err(error)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn export_name_is_answered_with_zeroes_unless_they_were_waived() {
    let long = [b'x'; 4096];
    for name in [&b"vol0"[..], b"", &long] {
        for (flags, bytes) in [(FIXED, 134), (FIXED_NO_ZEROES, 10), (0, 134), (2, 10)] {
            let (out, selected) = export_name(flags, name);
            let selected = selected.expect("an export that is there");
            assert_eq!(out.len(), bytes, "client flags {flags}");
            assert_eq!(out[..8], selected.info.size.to_be_bytes());
            assert_eq!(out[8..10], 0x0d6d_u16.to_be_bytes());
            assert!(out[10..].iter().all(|byte| *byte == 0));
            assert_eq!(selected.name.as_bytes(), name);
        }
    }
}

#[test]
fn export_name_can_only_be_refused_by_closing() {
    let refused = |name: &str| HandshakeError::ExportRefused(name.to_owned());
    let rows = [
        (&b"nobody"[..], refused("nobody")),
        (b"secret", refused("secret")),
        (b"gone", refused("gone")),
        (b"vol0\0", HandshakeError::InvalidName),
        (b"\xff", HandshakeError::InvalidName),
        (&[b'x'; 4097], HandshakeError::InvalidName),
        (
            b"aligned",
            HandshakeError::BlockSizeRequired("aligned".to_owned()),
        ),
    ];
    for (name, error) in rows {
        let (out, selected) = export_name(FIXED, name);
        assert_eq!(selected, Err(error));
        assert!(out.is_empty(), "a refusal has no bytes");
    }
}

#[test]
fn a_client_without_fixed_newstyle_may_only_choose() {
    for number in [option::ABORT, option::LIST, option::GO, 12345] {
        let end = run(&stream(0, &[option(number, b"")]), &ONE).end;
        assert_eq!(end, Err(HandshakeError::NotFixedNewstyle(number)));
    }
}

#[test]
fn what_cannot_be_kept_in_sync_ends_the_connection() {
    let mut bad_magic = option(option::LIST, b"");
    bad_magic[0] ^= 1;
    let end = run(&stream(FIXED, &[bad_magic]), &ONE).end;
    assert_eq!(
        end,
        Err(HandshakeError::BadOptionMagic(OPTION_MAGIC ^ 1 << 56))
    );

    // The claim alone ends it, no data needs to come.
    for (number, len) in [(99, u32::MAX), (option::GO, (64 << 20) + 1)] {
        let mut header = option(number, b"");
        header[12..].copy_from_slice(&len.to_be_bytes());
        let end = run(&stream(FIXED, &[header]), &ONE).end;
        assert_eq!(
            end,
            Err(HandshakeError::OptionTooLong {
                option: number,
                len
            })
        );
    }
    let name = vec![b'x'; 4097];
    let end = run(&stream(FIXED, &[option(option::EXPORT_NAME, &name)]), &ONE).end;
    assert_eq!(end, Err(HandshakeError::InvalidName));
}

#[test]
fn negotiation_without_end_is_ended() {
    let options = vec![option(99, b""); 65];
    let Run { out, end, .. } = run(&stream(FIXED, &options), &ONE);
    assert_eq!(end, Err(HandshakeError::TooManyOptions(65)));
    assert_eq!(replies(&out).len(), 64, "what came before is answered");
}

/// `qemu-nbd -L` lists and then asks for every export on the same connection.
#[test]
fn a_client_may_ask_for_every_export_that_it_was_told_of() {
    let exports = Exports {
        volumes: 200,
        list_error: None,
    };
    let mut options = vec![option(option::LIST, b"")];
    options.resize(1 + 2 * 200, option(option::INFO, &info_data(b"vol0", &[])));
    options.push(option(option::ABORT, b""));
    let end = run(&stream(FIXED, &options), &exports).end;
    assert_eq!(end, Ok(Some(HandshakeEnd::Aborted)));
}

#[test]
fn a_list_is_complete_and_one_call_does_not_pile_up_output() {
    let exports = Exports {
        volumes: 5000,
        list_error: None,
    };
    let lists = vec![option(option::LIST, b""); 10];
    let input = stream(FIXED, &lists);
    let mut server = ServerHandshake::new(HandshakeLimits::DEFAULT);
    let (mut consumed, mut calls) = (0, 0);
    while consumed < input.len() {
        let mut out = Vec::new();
        let advance = server
            .advance(&input[consumed..], &mut out, &exports)
            .expect("lists");
        consumed += advance.consumed;
        calls += 1;
        assert_eq!(replies(&out).len(), 5001, "one complete list a call");
    }
    assert_eq!(calls, 10);
}

#[test]
fn a_list_entry_has_name_and_description() {
    let Run { out, .. } = run(&stream(FIXED, &[option(option::LIST, b"")]), &ONE);
    assert_eq!(replies(&out)[0].data, b"\x00\x00\x00\x04vol0a volume");
}

#[test]
fn listing_may_be_switched_off() {
    for (error, code) in [
        (
            LookupError::Policy("off".to_owned()),
            option_reply::ERR_POLICY,
        ),
        (LookupError::Shutdown, option_reply::ERR_SHUTDOWN),
    ] {
        let exports = Exports {
            volumes: 1,
            list_error: Some(error),
        };
        let Run { out, end, .. } = run(&stream(FIXED, &[option(option::LIST, b"")]), &exports);
        assert_eq!(end, Ok(None), "the connection goes on");
        assert_eq!(replies(&out)[0].kind, code);
    }
}

#[test]
fn a_finished_handshake_says_so() {
    for input in [
        stream(FIXED, &[option(option::ABORT, b"")]),
        stream(FIXED, &[option(option::GO, &info_data(b"", &[]))]),
        stream(8, &[]),
    ] {
        let mut server = ServerHandshake::new(HandshakeLimits::DEFAULT);
        let first = server.advance(&input, &mut Vec::new(), &ONE);
        assert!(!matches!(first, Ok(Advance { end: None, .. })), "{first:?}");
        let second = server.advance(b"more", &mut Vec::new(), &ONE);
        assert_eq!(second, Err(HandshakeError::AlreadyEnded));
    }
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let mut header = option(option::GO, b"");
    header[12..].copy_from_slice(&(256_u32 << 10).to_be_bytes());
    let mut server = ServerHandshake::new(HandshakeLimits::DEFAULT);
    server
        .advance(&stream(FIXED, &[header]), &mut Vec::new(), &ONE)
        .expect("a legal length");
    assert_eq!(server.held_bytes(), 0);
    server
        .advance(&[0; 100], &mut Vec::new(), &ONE)
        .expect("a part of it");
    assert_eq!(server.held_bytes(), 100);
}

/// A directory of which one export is awaited until it is said to be known.
struct Awaiting {
    known: std::cell::Cell<bool>,
}

impl ExportDirectory for Awaiting {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        ONE.list(visit)
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        assert!(!self.awaits(name), "looked up too early");
        ONE.find(name)
    }

    fn awaits(&self, name: &str) -> bool {
        name == "vol0" && !self.known.get()
    }
}

fn awaited(export: &str, context: Option<&str>) -> Option<Awaited> {
    Some(Awaited {
        export: export.to_owned(),
        context: context.map(str::to_owned),
    })
}

#[test]
fn an_option_that_names_an_awaited_export_waits_and_so_do_those_behind_it() {
    let exports = Awaiting {
        known: std::cell::Cell::new(false),
    };
    let mut server = ServerHandshake::new(HandshakeLimits::DEFAULT);
    let options = [
        option(option::INFO, &info_data(b"ro", &[])),
        option(option::INFO, &info_data(b"vol0", &[])),
        option(option::GO, &info_data(b"ro", &[])),
    ];
    let input = stream(FIXED_NO_ZEROES, &options);
    let before_go = input.len() - options[2].len();
    let mut out = Vec::new();
    let first = server.advance(&input, &mut out, &exports).unwrap();
    assert_eq!(first.awaits, awaited("vol0", None));
    assert_eq!((first.consumed, first.end), (before_go, None));
    assert_eq!(replies(&out).len(), 2, "only the first option is answered");
    let rest = &input[first.consumed..];
    let again = server.advance(rest, &mut out, &exports).unwrap();
    assert_eq!((again.consumed, again.end), (0, None), "still not known");
    assert_eq!(again.awaits, awaited("vol0", None));
    assert_eq!(replies(&out).len(), 2);
    exports.known.set(true);
    let last = server.advance(rest, &mut out, &exports).unwrap();
    assert_eq!((last.consumed, &last.awaits), (rest.len(), &None));
    assert!(matches!(last.end, Some(HandshakeEnd::Transmission(_))));
    let kinds: Vec<u32> = replies(&out).iter().map(|reply| reply.kind).collect();
    let answer = [option_reply::INFO, option_reply::ACK];
    assert_eq!(kinds, [answer, answer, answer].concat());
}

//! Every rule on the options that change the transmission phase, one row each.

use super::super::{Advance, HandshakeEnd, HandshakeError, HandshakeLimits};
use super::*;
use crate::export::{ExportInfo, LookupError, TransmissionFlags};
use crate::protocol::{OPTION_MAGIC, OPTION_REPLY_MAGIC, context};

/// Exports: `a` and `b` with contexts, `bare` without, `crowded` with too many, `secret`.
pub(in crate::server) struct Exports;

impl ExportDirectory for Exports {
    fn list(&self, _: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        match name {
            "a" | "b" | "bare" | "crowded" => Ok(ExportInfo::new(name, 1 << 30)),
            "secret" => Err(LookupError::Policy("not for you".to_owned())),
            "sealed" => Err(LookupError::TlsRequired("show who you are".to_owned())),
            _ => Err(LookupError::Unknown),
        }
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.find(name)?;
        match name {
            "a" | "b" => [
                context::BASE_ALLOCATION,
                context::QEMU_ALLOCATION_DEPTH,
                "qemu:dirty-bitmap:since-mon",
                "qemu:dirty-bitmap:since-tue",
                context::TAIPAN_DURABILITY,
                "not a context",
                "taipan:",
            ]
            .into_iter()
            .for_each(visit),
            "crowded" => (0..65).for_each(|index| visit(&format!("qemu:dirty-bitmap:{index}"))),
            _ => {}
        }
        Ok(())
    }
}

fn send(stream: &mut Vec<u8>, option: u32, data: &[u8]) {
    stream.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    stream.extend_from_slice(&option.to_be_bytes());
    stream.extend_from_slice(&(data.len() as u32).to_be_bytes());
    stream.extend_from_slice(data);
}

fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// One step of a row: what the client does.
pub(in crate::server) fn step(stream: &mut Vec<u8>, text: &str) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (set, list) = (option::SET_META_CONTEXT, option::LIST_META_CONTEXT);
    match words[..] {
        ["SR"] => send(stream, option::STRUCTURED_REPLY, b""),
        ["SR", "data"] => send(stream, option::STRUCTURED_REPLY, b"x"),
        ["SR", "long"] => send(stream, option::STRUCTURED_REPLY, &vec![0; 300_000]),
        ["EXT"] => send(stream, option::EXTENDED_HEADERS, b""),
        ["EXT", "data"] => send(stream, option::EXTENDED_HEADERS, b"x"),
        ["TLS"] => send(stream, option::STARTTLS, b""),
        ["TLS", "data"] => send(stream, option::STARTTLS, b"x"),
        ["TLS", "long"] => send(stream, option::STARTTLS, &vec![0; 300_000]),
        ["ABORT"] => send(stream, option::ABORT, b"bye"),
        ["NAMES"] => send(stream, option::LIST, b""),
        ["PEEK"] => send(stream, option::PEEK_EXPORT, b""),
        ["NAME", name] => send(stream, option::EXPORT_NAME, name.as_bytes()),
        [kind @ ("GO" | "INFO"), name] => {
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend_from_slice(name.as_bytes());
            data.extend_from_slice(&[0, 0]);
            let number = if kind == "GO" {
                option::GO
            } else {
                option::INFO
            };
            send(stream, number, &data);
        }
        ["SET", "trailing"] => send(stream, set, &[context_data("a", &[]), vec![0]].concat()),
        ["SET", "lying", "name"] => send(stream, set, &[0, 0, 0, 9, b'a', 0, 0, 0, 0]),
        ["SET", "lying", "count"] => send(stream, set, b"\0\0\0\x01a\xff\xff\xff\xff"),
        ["SET", "lying", "query"] => send(stream, set, b"\0\0\0\x01a\0\0\0\x01\0\0\0\x09base:"),
        ["SET", "empty"] => send(stream, set, b""),
        ["SET", "nul"] => send(stream, set, &context_data("a", &["base:\0"])),
        ["SET", "4096"] => {
            let long = format!("base:{}", "x".repeat(4091));
            send(stream, set, &context_data("a", &[long.as_str(); 9]));
        }
        ["SET", "4097"] => {
            let long = format!("base:{}", "x".repeat(4092));
            send(stream, set, &context_data("a", &[long.as_str()]));
        }
        ["SET", "long"] => send(stream, set, &vec![0; 300_000]),
        ["SET", "all", name] => {
            let names: Vec<String> = (0..65)
                .map(|index| format!("qemu:dirty-bitmap:{index}"))
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            send(stream, set, &context_data(name, &names));
        }
        ["SET", "257"] => send(stream, set, &context_data("a", &["base:allocation"; 257])),
        ["SET", name, ref queries @ ..] => send(stream, set, &context_data(name, queries)),
        ["LIST", name, ref queries @ ..] => send(stream, list, &context_data(name, queries)),
        _ => panic!("{text}"),
    }
}

/// The server's replies, as the tables write them.
pub(in crate::server) fn render(out: &[u8]) -> String {
    let mut cursor = Cursor::new(out);
    let mut words = Vec::new();
    while !cursor.is_empty() {
        if cursor.u64() != Some(OPTION_REPLY_MAGIC) {
            words.push("size".to_owned());
            break;
        }
        cursor.u32().expect("the option");
        let kind = cursor.u32().expect("the type");
        let len = cursor.u32().expect("the length") as usize;
        let mut data = Cursor::new(cursor.take(len).expect("the data"));
        words.push(match kind {
            option_reply::ACK => "ACK".to_owned(),
            option_reply::INFO => "INFO".to_owned(),
            option_reply::META_CONTEXT => {
                let id = data.u32().expect("an id");
                format!("{id}={}", string(data.rest()).expect("a name"))
            }
            option_reply::SERVER => "SERVER".to_owned(),
            option_reply::ERR_TLS_REQD => "TLS_REQD".to_owned(),
            option_reply::ERR_UNSUP => "UNSUP".to_owned(),
            option_reply::ERR_POLICY => "POLICY".to_owned(),
            option_reply::ERR_INVALID => "INVALID".to_owned(),
            option_reply::ERR_UNKNOWN => "UNKNOWN".to_owned(),
            option_reply::ERR_TOO_BIG => "TOO_BIG".to_owned(),
            option_reply::ERR_EXT_HEADER_REQD => "EXT_REQD".to_owned(),
            other => format!("{other:#x}"),
        });
    }
    words.join(" ")
}

/// The end of a handshake, as the tables write it.
pub(in crate::server) fn render_end(end: Result<Option<HandshakeEnd>, HandshakeError>) -> String {
    match end {
        Ok(None) => "on".to_owned(),
        Ok(Some(HandshakeEnd::Aborted)) => "aborted".to_owned(),
        Ok(Some(HandshakeEnd::Transmission(selected))) => {
            let contexts = selected.session.contexts().iter();
            let contexts: Vec<String> = contexts
                .map(|context| format!("{}={}", context.id, context.name))
                .collect();
            let style = format!("{:?}", selected.session.headers()).to_lowercase();
            [&[style][..], &contexts].concat().join(" ")
        }
        Err(HandshakeError::ExportNameAfterExtendedHeaders | HandshakeError::TlsRequired) => {
            "close".to_owned()
        }
        Err(other) => panic!("{other}"),
    }
}

type Run = (Vec<u8>, Result<Option<HandshakeEnd>, HandshakeError>);

fn run(features: Features, steps: &str) -> Run {
    let mut stream = vec![0, 0, 0, 3];
    for text in steps.split(';') {
        step(&mut stream, text);
    }
    let mut server = ServerHandshake::with_features(HandshakeLimits::DEFAULT, features);
    let mut out = Vec::new();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        match server.advance(rest, &mut out, &Exports) {
            Ok(Advance {
                consumed,
                end: None,
                ..
            }) => rest = &rest[consumed..],
            Ok(Advance { end, .. }) => return (out, Ok(end)),
            Err(error) => return (out, Err(error)),
        }
    }
    (out, Ok(None))
}

/// Checks a table of `rule | steps of the client | replies | end`.
fn check(features: Features, table: &str) {
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, steps, replies, expected] = cells[..] else {
            panic!("{row}")
        };
        let (out, end) = run(features, steps);
        assert_eq!(render(&out), replies, "{rule}");
        assert_eq!(render_end(end), expected, "{rule}");
    }
}

#[test]
fn headers_are_negotiated_by_the_rules() {
    check(
        Features::ALL,
        "
    nothing asked for           | GO a             | INFO ACK         | simple
    structured replies          | SR;GO a          | ACK INFO ACK     | structured
    by EXPORT_NAME              | SR;NAME a        | ACK size         | structured
    with data                   | SR data;GO a     | INVALID INFO ACK | simple
    with much data              | SR long;GO a     | INVALID INFO ACK | simple
    twice                       | SR;SR;GO a       | ACK INVALID INFO ACK  | structured
    extended headers            | EXT;GO a         | ACK INFO ACK     | extended
    extended with data          | EXT data;GO a    | INVALID INFO ACK | simple
    extended twice              | EXT;EXT;GO a     | ACK INVALID INFO ACK  | extended
    extended after structured   | SR;EXT;GO a      | ACK ACK INFO ACK | extended
    structured after extended   | EXT;SR;GO a      | ACK EXT_REQD INFO ACK | extended
    EXPORT_NAME after extended  | EXT;NAME a       | ACK              | close
    survives a refused GO       | EXT;GO x;GO a    | ACK UNKNOWN INFO ACK  | extended
    ",
    );
}

#[test]
fn contexts_are_listed_by_the_rules() {
    let all = "0=base:allocation 0=qemu:allocation-depth 0=qemu:dirty-bitmap:since-mon \
               0=qemu:dirty-bitmap:since-tue 0=taipan:durability ACK";
    let table = format!(
        "
    all, ids are 0              | LIST a                            | {all} | on
    without structured replies  | LIST a                            | {all} | on
    none                        | LIST bare                         | ACK | on
    by full name                | LIST a base:allocation            | 0=base:allocation ACK | on
    base:                       | LIST a base:                      | 0=base:allocation ACK | on
    taipan:                     | LIST a taipan:                    | 0=taipan:durability ACK | on
    an inner wildcard           | LIST a qemu:dirty-bitmap:         \
         | 0=qemu:dirty-bitmap:since-mon 0=qemu:dirty-bitmap:since-tue ACK | on
    a prefix is no wildcard     | LIST a qemu:dirty-bitmap:since    | ACK | on
    twice is once               | LIST a base: base:allocation      | 0=base:allocation ACK | on
    unknown leaf                | LIST a base:nonsense              | ACK | on
    unknown namespace ignored   | LIST a x-other:thing base:        | 0=base:allocation ACK | on
    no namespace                | LIST a allocation                 | INVALID | on
    unknown export              | LIST nobody                       | UNKNOWN | on
    forbidden export            | LIST secret                       | POLICY | on
    selects nothing             | SR;LIST a base:;GO a              \
         | ACK 0=base:allocation ACK INFO ACK | structured
    keeps the selection         | SR;SET a base:allocation;LIST a taipan:;GO a \
         | ACK 1=base:allocation ACK 0=taipan:durability ACK INFO ACK \
         | structured 1=base:allocation
    "
    );
    check(Features::ALL, &table);
}

/// Rule, steps, replies, end. `+` stands for `base:allocation`.
const SELECTION_RULES: &str = "
    one                        | SR;SET a +;GO a        | ACK 1=+ ACK INFO ACK | structured 1=+
    with extended headers      | EXT;SET a +;GO a       | ACK 1=+ ACK INFO ACK | extended 1=+
    by EXPORT_NAME             | SR;SET a +;NAME a      | ACK 1=+ ACK size     | structured 1=+
    two get two ids            | SR;SET a taipan:durability +;GO a  \
        | ACK 1=+ 2=taipan:durability ACK INFO ACK | structured 1=+ 2=taipan:durability
    a changed-block context    | SR;SET a qemu:dirty-bitmap:since-tue;GO a \
        | ACK 1=qemu:dirty-bitmap:since-tue ACK INFO ACK \
        | structured 1=qemu:dirty-bitmap:since-tue
    twice is once              | SR;SET a + +;GO a      | ACK 1=+ ACK INFO ACK | structured 1=+
    needs chunks               | SET a +;GO a           | INVALID INFO ACK     | simple
    before chunks is too early | SET a +;SR;GO a        | INVALID ACK INFO ACK | structured
    wildcards select nothing   | SR;SET a base: qemu:dirty-bitmap:;GO a | ACK ACK INFO ACK \
        | structured
    no queries select nothing  | SR;SET a +;SET a;GO a  | ACK 1=+ ACK ACK INFO ACK | structured
    unknown namespace          | SR;SET a x-y:z +;GO a  | ACK 1=+ ACK INFO ACK | structured 1=+
    unknown leaf               | SR;SET a base:z +;GO a | ACK 1=+ ACK INFO ACK | structured 1=+
    no namespace               | SR;SET a plain;GO a    | ACK INVALID INFO ACK | structured
    replaces                   | SR;SET a +;SET a taipan:durability;GO a \
        | ACK 1=+ ACK 1=taipan:durability ACK INFO ACK | structured 1=taipan:durability
    failed replaces: unknown   | SR;SET a +;SET x +;GO a | ACK 1=+ ACK UNKNOWN INFO ACK | structured
    failed replaces: policy    | SR;SET a +;SET secret +;GO a | ACK 1=+ ACK POLICY INFO ACK \
        | structured
    failed replaces: malformed | SR;SET a +;SET trailing;GO a | ACK 1=+ ACK INVALID INFO ACK \
        | structured
    failed replaces: too long  | SR;SET a +;SET long;GO a | ACK 1=+ ACK TOO_BIG INFO ACK \
        | structured
    other export forgets       | SR;SET a +;GO b        | ACK 1=+ ACK INFO ACK | structured
    other by EXPORT_NAME       | SR;SET a +;NAME b      | ACK 1=+ ACK size     | structured
    INFO of another keeps      | SR;SET a +;INFO b;GO a | ACK 1=+ ACK INFO ACK INFO ACK \
        | structured 1=+
    refused GO keeps           | SR;SET a +;GO x;GO a   | ACK 1=+ ACK UNKNOWN INFO ACK \
        | structured 1=+
    of the last export         | SR;SET a +;SET b +;GO b | ACK 1=+ ACK 1=+ ACK INFO ACK \
        | structured 1=+
    survives extended headers  | SR;SET a +;EXT;GO a    | ACK 1=+ ACK ACK INFO ACK | extended 1=+
    an export without any      | SR;SET bare +;GO bare  | ACK ACK INFO ACK     | structured
    empty data                 | SR;SET empty;GO a      | ACK INVALID INFO ACK | structured
    trailing bytes             | SR;SET trailing;GO a   | ACK INVALID INFO ACK | structured
    lying name length          | SR;SET lying name;GO a | ACK INVALID INFO ACK | structured
    lying count                | SR;SET lying count;GO a | ACK INVALID INFO ACK | structured
    lying query length         | SR;SET lying query;GO a | ACK INVALID INFO ACK | structured
    query with NUL             | SR;SET nul;GO a        | ACK INVALID INFO ACK | structured
    queries of 4096 bytes      | SR;SET 4096;GO a       | ACK ACK INFO ACK     | structured
    query of 4097 bytes        | SR;SET 4097;GO a       | ACK INVALID INFO ACK | structured
    more than 64 contexts      | SR;SET all crowded;GO a | ACK TOO_BIG INFO ACK | structured
    more than 256 queries      | SR;SET 257;GO a        | ACK TOO_BIG INFO ACK | structured
    option of 300000 bytes     | SR;SET long;GO a       | ACK TOO_BIG INFO ACK | structured
";

#[test]
fn contexts_are_selected_by_the_rules() {
    check(
        Features::ALL,
        &SELECTION_RULES.replace('+', "base:allocation"),
    );
}

#[test]
fn nothing_is_offered_by_default_and_each_feature_alone() {
    let none = "
    nothing  | SR;EXT;LIST a;SET a base:allocation;GO a | UNSUP UNSUP UNSUP UNSUP INFO ACK | simple
    ";
    check(Features::default(), none);
    let structured = Features {
        structured_replies: true,
        ..Features::default()
    };
    let only_structured = "
    only structured | EXT;SR;SET a base:allocation;GO a | UNSUP ACK UNSUP INFO ACK | structured
    ";
    check(structured, only_structured);
    let extended = Features {
        extended_headers: true,
        ..Features::default()
    };
    check(
        extended,
        "only extended | SR;EXT;LIST a;GO a | UNSUP ACK UNSUP INFO ACK | extended",
    );
    let contexts = Features {
        meta_contexts: true,
        ..Features::default()
    };
    let only_contexts = "
    contexts alone select nothing | SR;SET a base:allocation;GO a | UNSUP INVALID INFO ACK | simple
    ";
    check(contexts, only_contexts);
}

/// The flags that INFO or GO of `a` tells after `steps`, and those of the session.
fn flags(features: Features, steps: &str) -> (u16, TransmissionFlags) {
    let (out, end) = run(features, steps);
    let Ok(Some(HandshakeEnd::Transmission(selected))) = end else {
        panic!("{end:?}")
    };
    // The last two replies are INFO EXPORT (20 + 12 bytes) and ACK (20 bytes).
    let at = out.len() - 20 - 2;
    let told = u16::from_be_bytes([out[at], out[at + 1]]);
    (told, selected.session.transmission_flags(&selected.info))
}

#[test]
fn flags_follow_the_negotiation() {
    let (df, payload) = (1 << 7, 1 << 12);
    let no_payload = Features {
        block_status_payload: false,
        ..Features::ALL
    };
    let rows = [
        (Features::ALL, "GO a", 0),
        (Features::ALL, "SR;GO a", df),
        (Features::ALL, "EXT;GO a", df),
        (Features::ALL, "SR;SET a base:allocation;GO a", df),
        (
            Features::ALL,
            "EXT;SET a base:allocation;GO a",
            df | payload,
        ),
        (Features::ALL, "EXT;SET a base:allocation;GO b", df),
        (Features::ALL, "EXT;SET a;GO a", df),
        (no_payload, "EXT;SET a base:allocation;GO a", df),
    ];
    for (features, steps, added) in rows {
        let (told, session) = flags(features, steps);
        assert_eq!(told, 0x0d6d | added, "{steps}");
        assert_eq!(session.bits(), told, "{steps}");
    }
}

#[test]
fn the_golden_bytes_of_a_selected_context() {
    let (out, _) = run(Features::ALL, "SR;SET a base:allocation");
    let reply = [
        &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
        &[0, 0, 0, 10, 0, 0, 0, 4, 0, 0, 0, 19, 0, 0, 0, 1],
        b"base:allocation",
    ]
    .concat();
    assert_eq!(out[20..20 + reply.len()], reply);
}

/// Contexts of which all but the first are awaited until they were asked for once.
#[derive(Default)]
struct Loading {
    asked: std::cell::RefCell<Vec<String>>,
}

impl ExportDirectory for Loading {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        Exports.list(visit)
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        Exports.find(name)
    }

    fn awaits_context(&self, name: &str, context: &str) -> bool {
        let mut asked = self.asked.borrow_mut();
        let is_new =
            name == "a" && context.starts_with("qemu:") && !asked.contains(&context.into());
        if is_new {
            asked.push(context.to_owned());
        }
        is_new
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        Exports.contexts(name, visit)
    }
}

#[test]
fn a_selection_waits_for_each_of_its_contexts_and_nothing_else_does() {
    let (mon, tue) = ("qemu:dirty-bitmap:since-mon", "qemu:dirty-bitmap:since-tue");
    let wanted = context_data("a", &["base:allocation", mon, tue]);
    let mut stream = vec![0, 0, 0, 3];
    // Without chunks nothing can be selected, a list selects nothing.
    send(&mut stream, option::SET_META_CONTEXT, &wanted);
    send(&mut stream, option::STRUCTURED_REPLY, b"");
    send(&mut stream, option::LIST_META_CONTEXT, &wanted);
    send(
        &mut stream,
        option::SET_META_CONTEXT,
        &context_data("b", &[mon]),
    );
    send(&mut stream, option::SET_META_CONTEXT, &wanted);
    let exports = Loading::default();
    let mut server = ServerHandshake::with_features(HandshakeLimits::DEFAULT, Features::ALL);
    let mut out = Vec::new();
    let first = server.advance(&stream, &mut out, &exports).unwrap();
    assert_eq!(first.consumed, stream.len(), "the last one is held");
    let context = |advance: Advance| advance.awaits.and_then(|awaited| awaited.context);
    assert_eq!(context(first).as_deref(), Some(mon));
    assert_eq!(server.negotiated.contexts.len(), 1, "those of before");
    let second = server.advance(&[], &mut out, &exports).unwrap();
    assert_eq!(context(second).as_deref(), Some(tue));
    let third = server.advance(&[], &mut out, &exports).unwrap();
    assert_eq!((third.awaits, third.end), (None, None));
    let names = server.negotiated.contexts.iter().map(|c| c.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["base:allocation", mon, tue]);
}

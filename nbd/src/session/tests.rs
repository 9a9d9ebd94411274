//! Requests of negotiated sessions: one row a rule, and agreement with the plain protocol.

use proptest::prelude::*;

use super::*;
use crate::command::status_payload;
use crate::request::RequestHeader;
use crate::validate::validate;

const SIZE: u64 = 1 << 40;
const DF_MAX: u32 = 1 << 20;

fn session(headers: HeaderStyle, contexts: u32) -> Session {
    let contexts = (1..=contexts).map(|id| MetaContext {
        id,
        name: format!("base:{id}"),
    });
    Session::new(headers, contexts.collect(), true, DF_MAX)
}

fn render(verdict: Result<Command, Refusal>) -> String {
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    match verdict {
        Ok(Command::Read { offset, len, df }) => format!("read {offset}+{len}{}", flag(df, " df")),
        Ok(Command::Op(Op::Write { offset, len, fua })) => {
            format!("write {offset}+{len}{}", flag(fua, " fua"))
        }
        Ok(Command::Op(Op::Trim { offset, len, .. })) => format!("trim {offset}+{len}"),
        Ok(Command::Op(Op::Zero { offset, len, .. })) => format!("zero {offset}+{len}"),
        Ok(Command::Op(Op::Cache { offset, len })) => format!("cache {offset}+{len}"),
        Ok(Command::Op(Op::Flush)) => "flush".to_owned(),
        Ok(Command::Op(Op::Disconnect)) => "disconnect".to_owned(),
        Ok(Command::Op(Op::Read { .. })) => "a read in the wrong place".to_owned(),
        Ok(Command::Status(StatusQuery {
            offset,
            len,
            one,
            contexts,
        })) => format!(
            "status {offset}+{len}{} of {}",
            flag(one, " one"),
            contexts.len()
        ),
        Ok(Command::StatusPayload {
            offset,
            one,
            payload,
        }) => format!("payload {payload} at {offset}{}", flag(one, " one")),
        Err(Refusal { close: true, .. }) => "close".to_owned(),
        Err(Refusal {
            errno, payload: 0, ..
        }) => errno.name().to_owned(),
        Err(Refusal { errno, payload, .. }) => format!("{errno} discard {payload}"),
    }
}

fn number(text: &str) -> u64 {
    let (base, rest) = match text.split_once("end") {
        Some(("", rest)) => (SIZE, rest),
        _ => (0, text),
    };
    match rest {
        "" => base,
        "2^32" => 1 << 32,
        "2^63" => 1 << 63,
        "max" => u64::MAX,
        "64M" => 64 << 20,
        "64M+1" => (64 << 20) + 1,
        "1M" => 1 << 20,
        "1M+1" => (1 << 20) + 1,
        below if below.starts_with('-') => base - below[1..].parse::<u64>().expect("a number"),
        above => {
            base + above
                .trim_start_matches('+')
                .parse::<u64>()
                .expect("a number")
        }
    }
}

fn flag_bits(text: &str) -> u16 {
    let bit = |name| match name {
        "FUA" => command_flag::FUA,
        "NO_HOLE" => command_flag::NO_HOLE,
        "DF" => command_flag::DF,
        "ONE" => command_flag::REQ_ONE,
        "PAY" => command_flag::PAYLOAD_LEN,
        other => 1 << other.parse::<u16>().expect("a bit"),
    };
    text.split_whitespace()
        .map(bit)
        .fold(0, |all, bit| all | bit)
}

/// Checks a table of `rule | command | flags | offset | length | verdict`.
fn check(session: &Session, export: &ExportInfo, table: &str) {
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, name, flags, offset, length, verdict] = cells[..] else {
            panic!("{row}")
        };
        let request = Request {
            flags: flag_bits(flags),
            command: match name {
                "READ" => command::READ,
                "WRITE" => command::WRITE,
                "DISC" => command::DISC,
                "FLUSH" => command::FLUSH,
                "TRIM" => command::TRIM,
                "CACHE" => command::CACHE,
                "ZEROES" => command::WRITE_ZEROES,
                "STATUS" => command::BLOCK_STATUS,
                other => other.parse().expect("a command"),
            },
            cookie: 42,
            offset: number(offset),
            length: number(length),
        };
        let decided = render(session.validate(&request, export));
        assert_eq!(decided, verdict, "{rule}: {request:?}");
    }
}

fn export() -> ExportInfo {
    ExportInfo::new("v", SIZE)
}

#[test]
fn a_plain_session_knows_none_of_it() {
    check(
        &session(HeaderStyle::Simple, 0),
        &export(),
        "
    read                   | READ   |     | 5 | 7   | read 5+7
    DF was not offered     | READ   | DF  | 0 | 512 | EINVAL
    PAYLOAD_LEN neither    | WRITE  | PAY | 0 | 512 | EINVAL discard 512
    nor on reads           | READ   | PAY | 0 | 512 | EINVAL
    no contexts, no status | STATUS |     | 0 | 512 | EINVAL
    ",
    );
}

#[test]
fn structured_replies_bring_df_and_status() {
    check(
        &session(HeaderStyle::Structured, 2),
        &export(),
        "
    DF                        | READ   | DF      | 0     | 512   | read 0+512 df
    DF up to the limit        | READ   | DF      | 0     | 1M    | read 0+1048576 df
    DF above it               | READ   | DF      | 0     | 1M+1  | EOVERFLOW
    without DF no limit but   | READ   |         | 0     | 64M   | read 0+67108864
    the payload's             | READ   |         | 0     | 64M+1 | EINVAL
    DF beyond the end         | READ   | DF      | end-1 | 2     | EINVAL
    DF with FUA               | READ   | DF FUA  | 0     | 1     | read 0+1 df
    DF on a write             | WRITE  | DF      | 0     | 9     | EINVAL discard 9
    DF on a flush             | FLUSH  | DF      | 0     | 0     | EINVAL
    nothing read              | READ   |         | 0     | 0     | read 0+0
    status                    | STATUS |         | 7     | 9     | status 7+9 of 2
    of one extent             | STATUS | ONE     | 7     | 9     | status 7+9 one of 2
    with FUA                  | STATUS | FUA     | 7     | 9     | status 7+9 of 2
    with another flag         | STATUS | DF      | 7     | 9     | EINVAL
    of nothing                | STATUS |         | 0     | 0     | EINVAL
    to the end                | STATUS |         | end-1 | 1     | status 1099511627775+1 of 2
    beyond the end            | STATUS |         | end-1 | 2     | EINVAL
    at the end                | STATUS |         | end   | 1     | EINVAL
    REQ_ONE elsewhere         | READ   | ONE     | 0     | 1     | EINVAL
    PAYLOAD_LEN is not theirs | STATUS | PAY     | 0     | 12    | EINVAL
    nor on writes             | WRITE  | PAY     | 0     | 9     | EINVAL discard 9
    writes                    | WRITE  | FUA     | 4     | 9     | write 4+9 fua
    ",
    );
}

#[test]
fn extended_headers_bring_64_bits_and_payloads() {
    check(
        &session(HeaderStyle::Extended, 2),
        &export(),
        "
    trim of 64 bits            | TRIM   |         | 0     | end   | trim 0+1099511627776
    zeroes of 64 bits          | ZEROES | NO_HOLE | 0     | 2^32  | zero 0+4294967296
    cache of 64 bits           | CACHE  |         | 0     | 2^32  | cache 0+4294967296
    status of 64 bits          | STATUS |         | 0     | 2^32  | status 0+4294967296 of 2
    trim beyond the end        | TRIM   |         | 1     | end   | EINVAL
    zeroes beyond the end      | ZEROES |         | 1     | end   | ENOSPC
    lengths that overflow      | TRIM   |         | 2     | max   | EINVAL
    offsets that overflow      | ZEROES |         | max   | max   | ENOSPC
    reads stay short           | READ   |         | 0     | 2^32  | EINVAL
    reads to the limit         | READ   |         | 0     | 64M   | read 0+67108864
    DF                         | READ   | DF      | 0     | 1M    | read 0+1048576 df
    a write                    | WRITE  | PAY     | 4     | 9     | write 4+9
    a write of nothing         | WRITE  | PAY     | 4     | 0     | write 4+0
    a write to the limit       | WRITE  | PAY FUA | 0     | 64M   | write 0+67108864 fua
    above it                   | WRITE  | PAY     | 0     | 64M+1 | close
    of 2^63 bytes              | WRITE  | PAY     | 0     | 2^63  | close
    without the flag, as QEMU  | WRITE  | FUA     | 4     | 9     | write 4+9 fua
    and refused                | WRITE  | DF      | 4     | 9     | EINVAL discard 9
    beyond the end             | WRITE  | PAY     | end-1 | 2     | ENOSPC discard 2
    a wrong flag               | WRITE  | PAY DF  | 0     | 8     | EINVAL discard 8
    payload on a read          | READ   | PAY     | 0     | 512   | EINVAL discard 512
    payload on a flush         | FLUSH  | PAY     | 0     | 3     | EINVAL discard 3
    payload on a trim          | TRIM   | PAY     | 0     | 64M+1 | close
    payload on the unknown     | 99     | PAY     | 0     | 77    | EINVAL discard 77
    the unknown without        | 99     |         | 0     | 77    | EINVAL
    goodbye                    | DISC   | PAY     | 9     | max   | disconnect
    status by payload          | STATUS | PAY     | 7     | 12    | payload 12 at 7
    for two contexts, one each | STATUS | PAY ONE | 7     | 16    | payload 16 at 7 one
    for three of two           | STATUS | PAY     | 7     | 20    | EINVAL discard 20
    for none                   | STATUS | PAY     | 7     | 8     | EINVAL discard 8
    too short                  | STATUS | PAY     | 7     | 4     | EINVAL discard 4
    part of an id              | STATUS | PAY     | 7     | 13    | EINVAL discard 13
    longer than anybody reads  | STATUS | PAY     | 7     | max   | close
    ",
    );
}

#[test]
fn contexts_make_the_difference() {
    let rows = "
    no status             | STATUS |     | 0 | 9  | EINVAL
    no payload of status  | STATUS | PAY | 0 | 12 | EINVAL discard 12
    ";
    check(&session(HeaderStyle::Extended, 0), &export(), rows);
    let no_payload = Session {
        block_status_payload: false,
        ..session(HeaderStyle::Extended, 2)
    };
    let rows = "
    not offered           | STATUS | PAY | 0 | 12 | EINVAL discard 12
    but status is         | STATUS |     | 0 | 12 | status 0+12 of 2
    ";
    check(&no_payload, &export(), rows);
}

#[test]
fn an_export_on_a_grid_and_a_read_only_one() {
    let export = ExportInfo {
        min_block: 4096,
        read_only: true,
        ..export()
    };
    check(
        &session(HeaderStyle::Extended, 1),
        &export,
        "
    status off the grid | STATUS |     | 512 | 4096 | EINVAL
    off it in length    | STATUS |     | 0   | 512  | EINVAL
    on it               | STATUS |     | 0   | 4096 | status 0+4096 of 1
    read-only           | WRITE  | PAY | 0   | 4096 | EPERM discard 4096
    ",
    );
}

#[test]
fn a_status_payload_names_selected_contexts_once_each() {
    let session = session(HeaderStyle::Extended, 2);
    let ask = |payload: &[u8]| session.status_payload(SIZE - 100, true, payload, &export());
    let query = ask(&status_payload(100, &[2])).expect("a selected context");
    assert_eq!(
        (query.offset, query.len, query.one),
        (SIZE - 100, 100, true)
    );
    assert!(query.contexts.contains(2) && !query.contexts.contains(1));
    let both = ask(&status_payload(1, &[2, 1])).expect("both");
    assert_eq!(both.contexts.len(), 2);
    let rows = [
        ("empty", Vec::new()),
        ("no ids", status_payload(100, &[])),
        ("beyond the end", status_payload(101, &[1])),
        ("length overflows", status_payload(u64::MAX, &[1])),
        ("no length", status_payload(0, &[1])),
        ("id 0", status_payload(1, &[0])),
        ("not selected", status_payload(1, &[3])),
        ("beyond all", status_payload(1, &[65])),
        ("twice", status_payload(1, &[1, 1])),
        ("part of an id", status_payload(1, &[1])[..11].to_vec()),
    ];
    for (rule, payload) in rows {
        assert_eq!(ask(&payload), Err(Errno::Inval), "{rule}");
    }
}

#[test]
fn the_golden_bytes_of_a_status_payload() {
    let bytes = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 64];
    assert_eq!(status_payload(1 << 32, &[1, 64]), bytes);
}

#[test]
fn sixty_four_contexts_have_ids_of_their_own() {
    let mut ids = ContextIds::default();
    assert!(ids.is_empty());
    for id in 1..=64 {
        assert!(ids.insert(id) && !ids.insert(id), "{id}");
    }
    assert_eq!(ids.len(), CONTEXTS_MAX);
    assert!(!ids.insert(0) && !ids.insert(65) && !ids.insert(u32::MAX));
    assert!(!ids.contains(0) && !ids.contains(65));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever is not new is decided as it always was, whatever was negotiated.
    #[test]
    fn the_plain_protocol_is_decided_as_ever(
        flags in prop_oneof![0..4_u16, Just(1 << 4), Just(1 << 9)],
        command in 0..9_u16,
        offset in prop_oneof![0..10_000_u64, SIZE - 100..SIZE + 100, any::<u64>()],
        length in prop_oneof![0..10_000_u32, any::<u32>()],
        structured: bool,
        contexts in 0..2_u32,
        read_only: bool,
        grid in 0..13_u32,
        features: u16,
    ) {
        prop_assume!(command != command::BLOCK_STATUS || contexts == 0);
        let export = ExportInfo {
            read_only,
            min_block: 1 << grid,
            features: TransmissionFlags::from_bits(features),
            ..export()
        };
        let style = if structured { HeaderStyle::Structured } else { HeaderStyle::Simple };
        let header = RequestHeader { flags, command, cookie: 1, offset, length };
        let plain = validate(&header, &export).map(|op| match op {
            Op::Read { offset, len } => Command::Read { offset, len, df: false },
            op => Command::Op(op),
        });
        prop_assert_eq!(session(style, contexts).validate(&header.into(), &export), plain);
        // The same with extended headers, where a WRITE says that it has a payload.
        let mut bytes = Vec::new();
        Request::from(header).append(HeaderStyle::Extended, &mut bytes).expect("64 bits");
        let request = Request::parse(HeaderStyle::Extended, &bytes);
        let request = request.expect("the magic").expect("32 bytes");
        let extended = session(HeaderStyle::Extended, contexts);
        prop_assert_eq!(extended.validate(&request, &export), plain);
    }
}

#[test]
fn a_session_goes_on_as_it_was_and_an_impossible_one_does_not() {
    let before = session(HeaderStyle::Extended, 3);
    assert_eq!(Session::resume(before.agreement()), Some(before));
    let with = |headers, ids: &[u32]| Agreement {
        headers,
        contexts: session(headers, 2)
            .contexts
            .into_iter()
            .zip(ids)
            .map(|(context, id)| MetaContext { id: *id, ..context })
            .collect(),
        ..Agreement::default()
    };
    assert!(Session::resume(with(HeaderStyle::Structured, &[2, 1])).is_some());
    assert_eq!(Session::resume(with(HeaderStyle::Simple, &[1])), None);
    for ids in [[0, 1], [1, 1], [1, 65]] {
        assert_eq!(Session::resume(with(HeaderStyle::Structured, &ids)), None);
    }
}

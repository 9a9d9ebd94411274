//! Every rule on requests as a row, and a second opinion on random ones.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1 << 30;
const MAX: u32 = PAYLOAD_BYTES_ACCEPTED;

fn export() -> ExportInfo {
    ExportInfo::new("v", SIZE)
}

fn request(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie: 42,
        offset,
        length,
    }
}

/// A verdict as the tables below write it.
fn render(verdict: Result<Op, Refusal>) -> String {
    let flag = |set: bool, name: &str| {
        if set {
            format!(" {name}")
        } else {
            String::new()
        }
    };
    match verdict {
        Ok(Op::Cache { offset, len }) => format!("cache {offset}+{len}"),
        Ok(Op::Disconnect) => "disconnect".to_owned(),
        Ok(Op::Flush) => "flush".to_owned(),
        Ok(Op::Read { offset, len }) => format!("read {offset}+{len}"),
        Ok(Op::Trim { offset, len, fua }) => format!("trim {offset}+{len}{}", flag(fua, "fua")),
        Ok(Op::Write { offset, len, fua }) => format!("write {offset}+{len}{}", flag(fua, "fua")),
        Ok(Op::Zero {
            offset,
            len,
            fua,
            no_hole,
            fast,
        }) => {
            let flags = [
                flag(fua, "fua"),
                flag(no_hole, "no_hole"),
                flag(fast, "fast"),
            ]
            .concat();
            format!("zero {offset}+{len}{flags}")
        }
        Err(Refusal { close: true, .. }) => "close".to_owned(),
        Err(Refusal {
            errno, payload: 0, ..
        }) => errno.name().to_owned(),
        Err(Refusal { errno, payload, .. }) => format!("{errno} discard {payload}"),
    }
}

/// Checks a table of `rule | command | flags | offset | length | verdict`. `end` is the size of the
/// export.
fn check(export: &ExportInfo, table: &str) {
    let mut rules = 0;
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, command, flags, offset, length, verdict] = cells[..] else {
            panic!("{row}")
        };
        let flags = flags
            .split_whitespace()
            .map(flag_bit)
            .fold(0, |all, bit| all | bit);
        let length = u32::try_from(number(length, export)).expect("a length");
        let header = request(
            command_number(command),
            flags,
            number(offset, export),
            length,
        );
        assert_eq!(
            render(validate(&header, export)),
            verdict,
            "{rule}: {header:?}"
        );
        rules += 1;
    }
    assert!(rules > 2, "an empty table proves nothing");
}

fn command_number(name: &str) -> u16 {
    match name {
        "READ" => command::READ,
        "WRITE" => command::WRITE,
        "DISC" => command::DISC,
        "FLUSH" => command::FLUSH,
        "TRIM" => command::TRIM,
        "CACHE" => command::CACHE,
        "ZEROES" => command::WRITE_ZEROES,
        "BLOCK_STATUS" => command::BLOCK_STATUS,
        other => other.parse().expect("a command"),
    }
}

fn flag_bit(name: &str) -> u16 {
    match name {
        "FUA" => command_flag::FUA,
        "NO_HOLE" => command_flag::NO_HOLE,
        "DF" => command_flag::DF,
        "REQ_ONE" => command_flag::REQ_ONE,
        "FAST_ZERO" => command_flag::FAST_ZERO,
        "PAYLOAD_LEN" => command_flag::PAYLOAD_LEN,
        other => 1 << other.parse::<u16>().expect("a bit"),
    }
}

/// A number, or `end` with a distance.
fn number(text: &str, export: &ExportInfo) -> u64 {
    match text {
        "end" => export.size,
        "end-1" => export.size - 1,
        "end+1" => export.size + 1,
        "end-512" => export.size - 512,
        "max32" => u64::from(u32::MAX),
        "max64" => u64::MAX,
        other => other.parse().expect("a number"),
    }
}

#[test]
fn ranges() {
    // SIZE is 1073741824, the most that is accepted 67108864.
    let table = "
        read                     | READ   | | 512   | 512      | read 512+512
        read any alignment       | READ   | | 1     | 3        | read 1+3
        read to the end          | READ   | | end-1 | 1        | read 1073741823+1
        read over the end        | READ   | | end-1 | 2        | EINVAL
        read at the end          | READ   | | end   | 1        | EINVAL
        read far behind          | READ   | | max64 | 1        | EINVAL
        read wrapping around     | READ   | | max64 | max32    | EINVAL
        read nothing             | READ   | | 7     | 0        | read 7+0
        read nothing at the end  | READ   | | end   | 0        | read 1073741824+0
        read nothing behind      | READ   | | end+1 | 0        | EINVAL
        read 33 MiB              | READ   | | 0     | 34603008 | read 0+34603008
        read the most            | READ   | | 0     | 67108864 | read 0+67108864
        read too much            | READ   | | 0     | 67108865 | EINVAL
        write                    | WRITE  | | 512   | 512      | write 512+512
        write any alignment      | WRITE  | | 1     | 3        | write 1+3
        write the most           | WRITE  | | 0     | 67108864 | write 0+67108864
        write nothing            | WRITE  | | 0     | 0        | write 0+0
        write nothing at the end | WRITE  | | end   | 0        | write 1073741824+0
        write over the end       | WRITE  | | end-1 | 2        | ENOSPC discard 2
        write the most behind    | WRITE  | | end   | 67108864 | ENOSPC discard 67108864
        write wrapping around    | WRITE  | | max64 | 9        | ENOSPC discard 9
        write nothing behind     | WRITE  | | end+1 | 0        | ENOSPC
        zero                     | ZEROES | | 1     | 3        | zero 1+3
        zero it all              | ZEROES | | 0     | end      | zero 0+1073741824
        zero over the end        | ZEROES | | end-1 | 2        | ENOSPC
        zero wrapping around     | ZEROES | | max64 | max32    | ENOSPC
        trim                     | TRIM   | | 1     | 3        | trim 1+3
        trim it all              | TRIM   | | 0     | end      | trim 0+1073741824
        trim over the end        | TRIM   | | end-1 | 2        | EINVAL
        cache                    | CACHE  | | 1     | 3        | cache 1+3
        cache it all             | CACHE  | | 0     | end      | cache 0+1073741824
        cache over the end       | CACHE  | | end-1 | 2        | EINVAL
        flush has no range       | FLUSH  | | max64 | max32    | flush
        disconnect has no range  | DISC   | | max64 | max32    | disconnect
    ";
    check(&export(), table);
}

#[test]
fn payload_less_commands_take_all_lengths() {
    let table = "
        trim     | TRIM   | | 0   | max32 | trim 0+4294967295
        zero     | ZEROES | | 0   | max32 | zero 0+4294967295
        cache    | CACHE  | | 0   | max32 | cache 0+4294967295
        no flood | READ   | | 0   | max32 | EINVAL
    ";
    check(&ExportInfo::new("v", u64::MAX), table);
}

#[test]
fn a_write_that_nobody_should_read_closes_the_connection() {
    let huge = ExportInfo::new("v", u64::MAX);
    let read_only = ExportInfo {
        read_only: true,
        ..export()
    };
    for (export, offset) in [
        (&huge, 0),
        (&export(), 0),
        (&export(), u64::MAX),
        (&read_only, 0),
    ] {
        for length in [MAX + 1, u32::MAX] {
            let refusal = validate(&RequestHeader::write(1, offset, length), export);
            let Err(refusal) = refusal else {
                panic!("{refusal:?}")
            };
            assert!(refusal.close && refusal.payload == 0, "{refusal:?}");
        }
    }
}

#[test]
fn flags() {
    let table = "
        FUA on WRITE               | WRITE  | FUA         | 0   | 8 | write 0+8 fua
        FUA on TRIM                | TRIM   | FUA         | 0   | 8 | trim 0+8 fua
        FUA on ZEROES              | ZEROES | FUA         | 0   | 8 | zero 0+8 fua
        FUA on READ                | READ   | FUA         | 0   | 8 | read 0+8
        FUA on FLUSH               | FLUSH  | FUA         | 0   | 0 | flush
        FUA on CACHE               | CACHE  | FUA         | 0   | 8 | cache 0+8
        NO_HOLE                    | ZEROES | NO_HOLE     | 0   | 8 | zero 0+8 no_hole
        FAST_ZERO                  | ZEROES | FAST_ZERO   | 0   | 8 | zero 0+8 fast
        two on ZEROES              | ZEROES | FUA NO_HOLE | 0   | 8 | zero 0+8 fua no_hole
        NO_HOLE on WRITE           | WRITE  | NO_HOLE     | 0   | 8 | EINVAL discard 8
        NO_HOLE on TRIM            | TRIM   | NO_HOLE     | 0   | 8 | EINVAL
        FAST_ZERO on WRITE         | WRITE  | FAST_ZERO   | 0   | 8 | EINVAL discard 8
        FAST_ZERO on TRIM          | TRIM   | FAST_ZERO   | 0   | 8 | EINVAL
        DF not negotiated          | READ   | DF          | 0   | 8 | EINVAL
        REQ_ONE not negotiated     | READ   | REQ_ONE     | 0   | 8 | EINVAL
        PAYLOAD_LEN not negotiated | WRITE  | PAYLOAD_LEN | 0   | 8 | EINVAL discard 8
        unknown on READ            | READ   | 15          | 0   | 8 | EINVAL
        unknown on WRITE           | WRITE  | 15          | 0   | 8 | EINVAL discard 8
        unknown on FLUSH           | FLUSH  | 15          | 0   | 0 | EINVAL
        unknown on TRIM            | TRIM   | FUA 6       | 0   | 8 | EINVAL
        unknown on CACHE           | CACHE  | 6           | 0   | 8 | EINVAL
        unknown on ZEROES          | ZEROES | 6           | 0   | 8 | EINVAL
        unknown flag, and beyond   | WRITE  | 15          | end | 8 | EINVAL discard 8
        anything on DISC           | DISC   | FUA 15      | 0   | 8 | disconnect
    ";
    check(&export(), table);
}

#[test]
fn unknown_commands_are_einval_and_carry_no_payload() {
    let table = "
        BLOCK_STATUS, not negotiated | BLOCK_STATUS | | 0 | 512 | EINVAL
        RESIZE, never served         | 8            | | 0 | 512 | EINVAL
        unassigned                   | 9            | | 0 | 512 | EINVAL
        the last                     | 65535        | | 0 | 512 | EINVAL
    ";
    check(&export(), table);
}

#[test]
fn a_read_only_export_permits_no_change() {
    let table = "
        write        | WRITE  |           | 0   | 512      | EPERM discard 512
        write beyond | WRITE  |           | end | 512      | EPERM discard 512
        write a lot  | WRITE  |           | 0   | 67108865 | close
        trim         | TRIM   |           | 0   | 512      | EPERM
        zero         | ZEROES |           | 0   | 512      | EPERM
        fast zero    | ZEROES | FAST_ZERO | 0   | 512      | EPERM
        read         | READ   |           | 0   | 512      | read 0+512
        flush        | FLUSH  |           | 0   | 0        | flush
        cache        | CACHE  |           | 0   | 512      | cache 0+512
    ";
    check(
        &ExportInfo {
            read_only: true,
            ..export()
        },
        table,
    );
}

#[test]
fn an_export_on_a_grid_refuses_what_is_off_it() {
    let table = "
        on the grid        | READ  | | 4096    | 8192 | read 4096+8192
        offset off it      | READ  | | 512     | 4096 | EINVAL
        length off it      | READ  | | 0       | 512  | EINVAL
        write off it       | WRITE | | 512     | 4096 | EINVAL discard 4096
        off it and beyond  | WRITE | | end-512 | 4096 | ENOSPC discard 4096
        flush has no range | FLUSH | | 512     | 1    | flush
    ";
    check(
        &ExportInfo {
            min_block: 4096,
            ..export()
        },
        table,
    );
}

#[test]
fn what_is_not_offered_is_einval() {
    use command::{CACHE, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
    use command_flag::{FAST_ZERO, FUA};
    type Flags = TransmissionFlags;
    let rows: [(Flags, u16, u16); 7] = [
        (Flags::SEND_FLUSH, FLUSH, 0),
        (Flags::SEND_TRIM, TRIM, 0),
        (Flags::SEND_CACHE, CACHE, 0),
        (Flags::SEND_WRITE_ZEROES, WRITE_ZEROES, 0),
        (Flags::SEND_FAST_ZERO, WRITE_ZEROES, FAST_ZERO),
        (Flags::SEND_FUA, WRITE, FUA),
        (Flags::SEND_FUA, READ, FUA),
    ];
    for (feature, command, flags) in rows {
        let mut export = export();
        let header = request(command, flags, 0, 8);
        assert!(validate(&header, &export).is_ok(), "{feature:?} offered");
        export.features = export.features.without(feature);
        let refusal = validate(&header, &export).map_err(|refusal| refusal.errno);
        assert_eq!(refusal, Err(Errno::Inval), "{feature:?} not offered");
    }
}

/// The rules once more, written as a table of properties and with numbers that cannot overflow.
fn second_opinion(header: &RequestHeader, export: &ExportInfo) -> Result<(), Errno> {
    const FUA: u16 = 1;
    let (legal_flags, beyond, changes, carries) = match header.command {
        0 => (FUA, Errno::Inval, false, true),
        1 => (FUA, Errno::NoSpc, true, true),
        2 => return Ok(()),
        3 if header.flags & !FUA == 0 => return Ok(()),
        4 => (FUA, Errno::Inval, true, false),
        5 => (FUA, Errno::Inval, false, false),
        6 => (FUA | 2 | 16, Errno::NoSpc, true, false),
        _ => return Err(Errno::Inval),
    };
    if header.flags & !legal_flags != 0 {
        return Err(Errno::Inval);
    }
    if changes && export.read_only {
        return Err(Errno::Perm);
    }
    if i128::from(header.offset) + i128::from(header.length) > i128::from(export.size) {
        return Err(beyond);
    }
    if carries && header.length > 64 * 1024 * 1024 {
        return Err(Errno::Inval);
    }
    Ok(())
}

/// Numbers near the edges at which rules change.
fn edge(at: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4_u64,
        any::<u64>(),
        (0..4_u64).prop_map(move |d| at.saturating_add(d)),
        (0..4_u64).prop_map(move |d| at.saturating_sub(d)),
        Just(u64::MAX)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn two_statements_of_the_rules_agree(
        command in 0..10_u16,
        flags in prop_oneof![Just(0_u16), 0..64_u16, any::<u16>()],
        offset in edge(SIZE),
        length in prop_oneof![edge(512), edge(64 << 20)].prop_map(|length| length as u32),
        size in prop_oneof![Just(SIZE), edge(SIZE)],
        read_only: bool,
    ) {
        let export = ExportInfo { read_only, ..ExportInfo::new("v", size) };
        let header = request(command, flags, offset, length);
        let verdict = validate(&header, &export);
        let errno = verdict.map(|_| ()).map_err(|refusal| refusal.errno);
        prop_assert_eq!(errno, second_opinion(&header, &export));
        if let Err(refusal) = verdict {
            let payload = if command == 1 { length } else { 0 };
            prop_assert_eq!(refusal.close, payload > 64 * 1024 * 1024);
            prop_assert_eq!(refusal.payload, if refusal.close { 0 } else { payload });
        }
    }
}

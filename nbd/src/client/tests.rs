//! The client against our server in all pieces, and against scripted servers that do wrong.

use proptest::prelude::*;

use super::*;
use crate::export::{ExportDirectory, ExportInfo, LookupError};
use crate::protocol::option_reply;
use crate::server::{Advance, HandshakeEnd, HandshakeLimits, ServerHandshake};

/// A directory with the exports of its list.
struct Exports(Vec<ExportInfo>);

impl ExportDirectory for Exports {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        for export in &self.0 {
            visit(&export.canonical_name, &export.description);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        let found = self.0.iter().find(|export| export.canonical_name == name);
        found.cloned().ok_or(LookupError::Unknown)
    }
}

/// Both ends' verdicts after all bytes went back and forth in pieces of `piece_bytes`.
struct Meeting {
    client: Result<Option<ClientEnd>, ClientError>,
    server: Option<HandshakeEnd>,
}

fn meet(goal: Goal, exports: &Exports, piece_bytes: usize) -> Meeting {
    let mut client = ClientHandshake::new(goal).expect("a goal that can be sent");
    let mut server = ServerHandshake::new(HandshakeLimits::DEFAULT);
    let mut to_client = server.greeting().to_vec();
    let mut to_server = Vec::new();
    let mut meeting = Meeting {
        client: Ok(None),
        server: None,
    };
    while !to_client.is_empty() || !to_server.is_empty() {
        if matches!(meeting.client, Ok(None)) {
            let piece = &to_client[..to_client.len().min(piece_bytes)];
            match client.advance(piece, &mut to_server) {
                Ok(ClientAdvance { consumed, end, .. }) => {
                    assert!(end.is_some() || consumed == piece.len(), "bytes left over");
                    meeting.client = Ok(end);
                    to_client.drain(..consumed);
                }
                Err(error) => meeting.client = Err(error),
            }
        } else {
            assert!(
                to_client.is_empty(),
                "the server sent more than the client read"
            );
        }
        if meeting.client.is_err() {
            return meeting;
        }
        let piece = &to_server[..to_server.len().min(piece_bytes)];
        if piece.is_empty() {
            continue;
        }
        assert_eq!(
            meeting.server, None,
            "the client sent more than the server read"
        );
        let Advance { consumed, end, .. } = server
            .advance(piece, &mut to_client, exports)
            .expect("a client that keeps the rules");
        to_server.drain(..consumed);
        meeting.server = end;
        // The goodbye is acknowledged to a client that has left.
        if meeting.server == Some(HandshakeEnd::Aborted) {
            to_client.clear();
        }
    }
    meeting
}

fn any_export() -> impl Strategy<Value = ExportInfo> {
    let name = "[a-zäß/]{1,12}";
    (
        name,
        "[ -~é]{0,20}",
        any::<u64>(),
        any::<bool>(),
        any::<u16>(),
        0..17_u32,
    )
        .prop_map(
            |(name, description, size, read_only, features, grid)| ExportInfo {
                description,
                read_only,
                min_block: 1 << grid,
                features: TransmissionFlags::from_bits(features),
                ..ExportInfo::new(name, size)
            },
        )
}

proptest! {
    #[test]
    fn client_and_server_agree_on_every_export_in_pieces_of_any_size(
        export in any_export(),
        piece_bytes in 1..200_usize,
        transmit: bool,
    ) {
        let name = export.canonical_name.clone();
        let goal = if transmit { Goal::Go(name.clone()) } else { Goal::Info(name.clone()) };
        let exports = Exports(vec![export.clone()]);
        let Meeting { client, server } = meet(goal, &exports, piece_bytes);
        let seen = match client.expect("an export that is there").expect("an end") {
            ClientEnd::Transmission(seen) if transmit => {
                let Some(HandshakeEnd::Transmission(selected)) = server else {
                    panic!("the client went on alone: {server:?}")
                };
                prop_assert_eq!(&selected.info, &export);
                prop_assert_eq!(selected.name, name);
                seen
            }
            ClientEnd::Described(seen) if !transmit => {
                prop_assert_eq!(server, Some(HandshakeEnd::Aborted));
                seen
            }
            end => panic!("{end:?}"),
        };
        prop_assert_eq!(seen.size, export.size);
        prop_assert_eq!(seen.flags, export.transmission_flags());
        prop_assert_eq!(seen.block_sizes, Some(export.block_sizes()));
        prop_assert_eq!(seen.canonical_name.as_deref(), Some(&*export.canonical_name));
        prop_assert_eq!(seen.description.unwrap_or_default(), export.description);
    }

    #[test]
    fn a_list_arrives_whole_and_in_order(
        exports in prop::collection::vec(any_export(), 0..40),
        piece_bytes in 1..5000_usize,
    ) {
        let expected: Vec<_> = exports
            .iter()
            .map(|export| ListedExport {
                name: export.canonical_name.clone(),
                description: export.description.clone(),
            })
            .collect();
        let Meeting { client, server } = meet(Goal::List, &Exports(exports), piece_bytes);
        prop_assert_eq!(client, Ok(Some(ClientEnd::Listed(expected))));
        prop_assert_eq!(server, Some(HandshakeEnd::Aborted));
    }

    #[test]
    fn no_bytes_of_a_server_make_the_client_panic(
        greeting in prop_oneof![
            Just(b"NBDMAGICIHAVEOPT\x00\x03".to_vec()),
            Just(b"NBDMAGICIHAVEOPT\x00\x00".to_vec()),
            prop::collection::vec(any::<u8>(), 0..40),
        ],
        replies in prop::collection::vec(
            (
                prop_oneof![Just(7_u32), any::<u32>()],
                prop_oneof![0..4_u32, (0..12_u32).prop_map(|n| n | 1 << 31), any::<u32>()],
                prop::collection::vec(any::<u8>(), 0..60),
            ),
            0..8,
        ),
        goal in prop_oneof![Just(Goal::List), Just(Goal::Go(String::new()))],
    ) {
        let mut bytes = greeting;
        for (option, kind, data) in replies {
            bytes.extend(reply(option, kind, &data));
        }
        let mut client = ClientHandshake::new(goal).expect("a goal that can be sent");
        for piece in bytes.chunks(9) {
            let advance = client.advance(piece, &mut Vec::new());
            if !matches!(advance, Ok(ClientAdvance { end: None, .. })) {
                break;
            }
        }
    }
}

/// The bytes of a server's reply to an option.
fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Greets a client that wants `goal` with `flags`; gives its answer.
fn greeted(goal: Goal, flags: u16) -> (ClientHandshake, Vec<u8>) {
    let mut client = ClientHandshake::new(goal).expect("a goal that can be sent");
    let mut out = Vec::new();
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat();
    let advance = client
        .advance(&greeting, &mut out)
        .expect("a good greeting");
    assert_eq!(
        advance,
        ClientAdvance {
            consumed: 18,
            starts_tls: false,
            end: None
        }
    );
    (client, out)
}

fn go() -> Goal {
    Goal::Go("vol0".to_owned())
}

#[test]
fn the_golden_bytes_of_go() {
    let (_, out) = greeted(go(), 3);
    let expected = [
        &b"\0\0\0\x03IHAVEOPT"[..],
        b"\0\0\0\x07\0\0\0\x10",
        b"\0\0\0\x04vol0\0\x03\0\x01\0\x02\0\x03",
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn a_server_without_go_is_asked_by_export_name() {
    let (mut client, _) = greeted(go(), 3);
    let mut out = Vec::new();
    let unsupported = reply(option::GO, option_reply::ERR_UNSUP, b"what?");
    let advance = client.advance(&unsupported, &mut out).expect("goes on");
    assert_eq!(advance.end, None);
    assert_eq!(out, b"IHAVEOPT\0\0\0\x01\0\0\0\x04vol0");
    let answer = [&9_u64.to_be_bytes()[..], &5_u16.to_be_bytes(), b"next"].concat();
    let advance = client.advance(&answer, &mut out).expect("the export");
    let export = ClientExport::new(9, TransmissionFlags::from_bits(5));
    let end = Some(ClientEnd::Transmission(export));
    assert_eq!(
        advance,
        ClientAdvance {
            consumed: 10,
            starts_tls: false,
            end
        }
    );
}

#[test]
fn a_server_that_is_not_fixed_is_only_asked_by_export_name() {
    let (mut client, out) = greeted(go(), 0);
    assert_eq!(out, b"\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\x04vol0");
    let mut answer = [0; 134];
    answer[7] = 1;
    answer[133] = b'!';
    assert_eq!(
        client
            .advance(&answer[..133], &mut Vec::new())
            .expect("waits")
            .end,
        None
    );
    let end = client
        .advance(&answer[133..], &mut Vec::new())
        .expect("the export")
        .end;
    assert!(
        matches!(
            end,
            Some(ClientEnd::Transmission(ClientExport { size: 1, .. }))
        ),
        "{end:?}"
    );

    let mut client = ClientHandshake::new(Goal::List).expect("a goal");
    let error = client.advance(b"NBDMAGICIHAVEOPT\0\0", &mut Vec::new());
    assert_eq!(error, Err(ClientError::OldServer));
}

#[test]
fn flags_that_the_client_does_not_know_are_not_taken_up() {
    let (_, out) = greeted(go(), 0xffff);
    assert_eq!(out[..4], 3_u32.to_be_bytes());
}

#[test]
fn other_protocols_are_told_apart() {
    let rows: [(&[u8; 18], ClientError); 3] = [
        (
            b"SSH-2.0-OpenSSH_9.",
            ClientError::NotNbd(u64::from_be_bytes(*b"SSH-2.0-")),
        ),
        (
            b"NBDMAGICnonsense\0\x03",
            ClientError::NotNbd(u64::from_be_bytes(*b"nonsense")),
        ),
        (
            b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0",
            ClientError::OldServer,
        ),
    ];
    for (greeting, error) in rows {
        let mut client = ClientHandshake::new(go()).expect("a goal");
        assert_eq!(client.advance(greeting, &mut Vec::new()), Err(error));
        let again = client.advance(b"x", &mut Vec::new());
        assert_eq!(again, Err(ClientError::AlreadyEnded));
    }
}

#[test]
fn wrong_replies_end_the_handshake() {
    let info = |data: &[u8]| reply(option::GO, option_reply::INFO, data);
    let mut long = reply(option::GO, option_reply::INFO, b"");
    long[16..].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    let mut magic = info(b"");
    magic[0] ^= 1;
    let rows = [
        (
            "no size before ACK",
            reply(option::GO, option_reply::ACK, b""),
        ),
        ("ACK with data", reply(option::GO, option_reply::ACK, b"x")),
        ("reply to LIST", reply(option::LIST, option_reply::ACK, b"")),
        (
            "list entry",
            reply(option::GO, option_reply::SERVER, b"\0\0\0\0"),
        ),
        ("unknown type", reply(option::GO, 77, b"")),
        ("info without type", info(b"\0")),
        ("short EXPORT", info(&[0; 11])),
        ("long EXPORT", info(&[0; 13])),
        ("short BLOCK_SIZE", info(&[0, 3, 0, 0, 0, 1])),
        ("long BLOCK_SIZE", info(&[&[0, 3][..], &[0; 13]].concat())),
        ("NAME with NUL", info(b"\0\x01a\0b")),
        ("reply of 1 MiB", long),
        ("magic", magic),
    ];
    for (rule, bytes) in rows {
        let (mut client, _) = greeted(go(), 3);
        let result = client.advance(&bytes, &mut Vec::new());
        assert!(
            matches!(result, Err(ClientError::Malformed(_))),
            "{rule}: {result:?}"
        );
    }
    let (mut client, _) = greeted(Goal::List, 3);
    let lying = reply(option::LIST, option_reply::SERVER, b"\0\0\0\x05vol0");
    let result = client.advance(&lying, &mut Vec::new());
    assert!(
        matches!(result, Err(ClientError::Malformed(_))),
        "{result:?}"
    );
}

#[test]
fn a_refusal_carries_the_servers_reason() {
    let exports = Exports(vec![]);
    let Meeting { client, .. } = meet(go(), &exports, 64);
    let error = client.expect_err("an empty directory");
    assert!(matches!(
        error,
        ClientError::Refused {
            code: option_reply::ERR_UNKNOWN,
            ..
        }
    ));
    let text = "the server refused: no such export (no export of that name)";
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_name_that_cannot_be_sent_is_refused_at_once() {
    for name in ["x".repeat(4097), "a\0b".to_owned()] {
        let error = ClientHandshake::new(Goal::Info(name)).expect_err("a bad name");
        assert_eq!(error, ClientError::NameInvalid);
    }
    assert!(ClientHandshake::new(Goal::Go("x".repeat(4096))).is_ok());
}

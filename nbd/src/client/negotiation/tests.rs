//! Clients with wishes against our server, and against scripted servers that do wrong.

use super::*;
use crate::client::{ClientAdvance, ClientEnd, ClientExport};
use crate::export::{ExportDirectory, ExportInfo, LookupError, TransmissionFlags};
use crate::protocol::{OPTION_REPLY_MAGIC, context};
use crate::server::{Features, HandshakeEnd, HandshakeLimits, ServerHandshake};
use crate::session::Session;

struct Exports;

impl ExportDirectory for Exports {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        visit("v", "");
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        match name {
            "v" => Ok(ExportInfo::new("v", 1 << 40)),
            _ => Err(LookupError::Unknown),
        }
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.find(name)?;
        visit(context::BASE_ALLOCATION);
        visit("qemu:dirty-bitmap:since-mon");
        visit("qemu:dirty-bitmap:since-tue");
        Ok(())
    }
}

fn wishes(extended: bool, structured: bool, contexts: &[&str]) -> Wishes {
    Wishes {
        extended_headers: extended,
        structured_replies: structured,
        contexts: contexts.iter().map(|name| (*name).to_owned()).collect(),
        ..Wishes::default()
    }
}

/// Both ends' verdicts after all bytes went back and forth in pieces.
fn meet(
    goal: Goal,
    wishes: Wishes,
    features: Features,
    piece_bytes: usize,
) -> (ClientEnd, Option<Session>) {
    let mut client = ClientHandshake::with_wishes(goal, wishes).expect("wishes that can be sent");
    let mut server = ServerHandshake::with_features(HandshakeLimits::DEFAULT, features);
    let mut to_client = server.greeting().to_vec();
    let mut to_server = Vec::new();
    let mut session = None;
    let mut end = None;
    while end.is_none() {
        let piece = to_client.len().min(piece_bytes);
        let advance = client.advance(&to_client[..piece], &mut to_server);
        let advance = advance.expect("a server that keeps the rules");
        to_client.drain(..advance.consumed);
        end = advance.end;
        while !to_server.is_empty() {
            let piece = to_server.len().min(piece_bytes);
            let advance = server.advance(&to_server[..piece], &mut to_client, &Exports);
            let advance = advance.expect("a client that keeps the rules");
            to_server.drain(..advance.consumed);
            if let Some(HandshakeEnd::Transmission(selected)) = advance.end {
                session = Some(selected.session);
            }
        }
    }
    (end.expect("the loop's condition"), session)
}

fn names(contexts: &[MetaContext]) -> Vec<(u32, &str)> {
    contexts
        .iter()
        .map(|context| (context.id, context.name.as_str()))
        .collect()
}

#[test]
fn both_sides_agree_on_what_was_negotiated() {
    use HeaderStyle::{Extended, Simple, Structured};
    let structured_only = Features {
        extended_headers: false,
        ..Features::ALL
    };
    let base = &["base:allocation"][..];
    let rows = [
        (wishes(false, false, &[]), Features::ALL, Simple, 0),
        (wishes(false, true, &[]), Features::ALL, Structured, 0),
        (wishes(true, true, base), Features::ALL, Extended, 1),
        (wishes(true, false, base), Features::ALL, Extended, 1),
        (wishes(true, true, base), structured_only, Structured, 1),
        (wishes(true, false, base), structured_only, Simple, 0),
        (wishes(true, true, base), Features::default(), Simple, 0),
        (
            wishes(true, true, &["base:none"]),
            Features::ALL,
            Extended,
            0,
        ),
    ];
    for (wishes, features, style, contexts) in rows {
        for piece_bytes in [1, 7, 10_000] {
            let goal = Goal::Go("v".to_owned());
            let (end, session) = meet(goal, wishes.clone(), features, piece_bytes);
            let (ClientEnd::Transmission(export), Some(session)) = (end, session) else {
                panic!("{wishes:?}")
            };
            assert_eq!(export.headers, style, "{wishes:?}");
            assert_eq!(session.headers(), style, "{wishes:?}");
            assert_eq!(export.contexts.len(), contexts, "{wishes:?}");
            assert_eq!(session.contexts(), export.contexts, "{wishes:?}");
            let flags = session.transmission_flags(&ExportInfo::new("v", 1 << 40));
            assert_eq!(export.flags, flags, "{wishes:?}");
            let df = export.flags.contains(TransmissionFlags::SEND_DF);
            assert_eq!(df, style != Simple, "{wishes:?}");
        }
    }
}

#[test]
fn contexts_are_listed_with_wildcards_and_selected_by_name() {
    let asked = ["qemu:dirty-bitmap:", "base:allocation"];
    let info = Goal::Info("v".to_owned());
    let (end, _) = meet(info, wishes(true, true, &asked), Features::ALL, 10_000);
    let ClientEnd::Described(ClientExport { contexts, .. }) = end else {
        panic!("{end:?}")
    };
    let all = [
        (0, "base:allocation"),
        (0, "qemu:dirty-bitmap:since-mon"),
        (0, "qemu:dirty-bitmap:since-tue"),
    ];
    assert_eq!(names(&contexts), all);
    let go = Goal::Go("v".to_owned());
    let asked = ["qemu:dirty-bitmap:since-tue", "base:allocation"];
    let (end, _) = meet(go, wishes(false, true, &asked), Features::ALL, 10_000);
    let ClientEnd::Transmission(ClientExport { contexts, .. }) = end else {
        panic!("{end:?}")
    };
    let both = [(1, "base:allocation"), (2, "qemu:dirty-bitmap:since-tue")];
    assert_eq!(names(&contexts), both);
}

#[test]
fn a_list_of_exports_needs_no_contexts() {
    let asked = wishes(true, true, &["base:allocation"]);
    let (end, _) = meet(Goal::List, asked, Features::ALL, 3);
    assert!(
        matches!(&end, ClientEnd::Listed(exports) if exports.len() == 1),
        "{end:?}"
    );
}

#[test]
fn wishes_that_cannot_be_sent_are_refused_at_once() {
    let long = format!("base:{}", "x".repeat(4092));
    let large = format!("base:{}", "x".repeat(4000));
    let rows = [
        (wishes(true, true, &["base:\0"]), false),
        (wishes(true, true, &["no namespace"]), false),
        (wishes(true, true, &[&long]), false),
        (wishes(true, true, &["base:allocation"; 65]), false),
        (wishes(true, true, &[large.as_str(); 17]), false),
        (wishes(true, true, &[large.as_str(); 16]), true),
        (wishes(true, true, &["base:allocation"; 64]), true),
    ];
    for (wishes, legal) in rows {
        let made = ClientHandshake::with_wishes(Goal::Go("x".repeat(4096)), wishes);
        match made {
            Ok(mut client) => {
                assert!(legal);
                let mut out = Vec::new();
                script(&mut client, &[], &mut out).expect("a greeting");
            }
            Err(error) => {
                assert!(!legal);
                assert_eq!(error, ClientError::ContextsInvalid);
            }
        }
    }
}

/// A reply: option, type, data.
type Reply<'a> = (u32, u32, &'a [u8]);

/// Feeds a greeting and then replies.
fn script(
    client: &mut ClientHandshake,
    replies: &[Reply<'_>],
    out: &mut Vec<u8>,
) -> Result<ClientAdvance, ClientError> {
    let mut last = client.advance(b"NBDMAGICIHAVEOPT\0\x03", out)?;
    for (option, kind, data) in replies {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        last = client.advance(&bytes, out)?;
    }
    Ok(last)
}

#[test]
fn servers_that_break_the_rules_of_negotiation_are_left() {
    let (ext, set) = (option::EXTENDED_HEADERS, option::SET_META_CONTEXT);
    let (ack, meta) = (option_reply::ACK, option_reply::META_CONTEXT);
    let on: Reply<'_> = (ext, ack, b"");
    let one: Reply<'_> = (set, meta, b"\0\0\0\x01base:allocation");
    let rows: [(&str, Vec<Reply<'_>>); 8] = [
        ("ACK with data", vec![(ext, ack, b"x")]),
        ("another option", vec![(set, ack, b"")]),
        ("context for headers", vec![(ext, meta, b"\0\0\0\x01a:b")]),
        ("unknown type", vec![(ext, 99, b"")]),
        ("context without id", vec![on, (set, meta, b"\0\0\0")]),
        ("context with NUL", vec![on, (set, meta, b"\0\0\0\x01a:\0")]),
        ("an id twice", vec![on, one, one]),
        (
            "the goal answered too early",
            vec![on, (option::GO, ack, b"")],
        ),
    ];
    for (rule, replies) in rows {
        let asked = wishes(true, true, &["base:allocation"]);
        let client = ClientHandshake::with_wishes(Goal::Go("v".to_owned()), asked);
        let mut client = client.expect("wishes that can be sent");
        let result = script(&mut client, &replies, &mut Vec::new());
        assert!(
            matches!(result, Err(ClientError::Malformed(_))),
            "{rule}: {result:?}"
        );
    }
}

#[test]
fn a_refused_selection_leaves_nothing_selected() {
    let asked = wishes(true, true, &["base:allocation"]);
    let client = ClientHandshake::with_wishes(Goal::Go("v".to_owned()), asked);
    let mut client = client.expect("wishes that can be sent");
    let mut export = vec![0; 12];
    export[9] = 7;
    let set = option::SET_META_CONTEXT;
    let replies: [Reply<'_>; 5] = [
        (option::EXTENDED_HEADERS, option_reply::ACK, b""),
        (
            set,
            option_reply::META_CONTEXT,
            b"\0\0\0\x01base:allocation",
        ),
        (set, option_reply::ERR_TOO_BIG, b"no"),
        (option::GO, option_reply::INFO, &export),
        (option::GO, option_reply::ACK, b""),
    ];
    let end = script(&mut client, &replies, &mut Vec::new()).expect("the rules");
    let Some(ClientEnd::Transmission(export)) = end.end else {
        panic!("{end:?}")
    };
    assert_eq!(
        (export.headers, export.contexts),
        (HeaderStyle::Extended, vec![])
    );
}

/// With extended headers nobody may fall back to EXPORT_NAME.
#[test]
fn a_server_without_go_is_left_when_headers_are_extended() {
    let client = ClientHandshake::with_wishes(Goal::Go("v".to_owned()), wishes(true, true, &[]));
    let mut client = client.expect("wishes that can be sent");
    let replies: [Reply<'_>; 2] = [
        (option::EXTENDED_HEADERS, option_reply::ACK, b""),
        (option::GO, option_reply::ERR_UNSUP, b"what?"),
    ];
    let result = script(&mut client, &replies, &mut Vec::new());
    assert!(
        matches!(result, Err(ClientError::Refused { .. })),
        "{result:?}"
    );
}

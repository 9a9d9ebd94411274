//! The same promises with everything offered, and a client's: bytes of a server in every style.

use std::ops;

use super::handshake;
use crate::chunk::{ReadReply, ReplyTo, StatusChunk};
use crate::client::{
    Chunk, ClientHandshake, Goal, ReplyKind, ReplyProgress, ReplyReader, ReplyTracker, Wishes,
};
use crate::codec::{Cursor, be_u16, string};
use crate::command::{Command, StatusQuery};
use crate::errno::Errno;
use crate::export::{ExportDirectory, ExportInfo, LookupError, PAYLOAD_BYTES_ACCEPTED};
use crate::protocol::{
    EXPORT_NAME_REPLY_BYTES, EXPORT_NAME_ZEROES, OPTION_REPLY_MAGIC, STRING_BYTES_MAX, command,
    command_flag, info, option_reply,
};
use crate::server::{Features, HandshakeEnd, Selected};
use crate::session::{CONTEXTS_MAX, HeaderStyle, Session};
use crate::validate::Op;
use crate::wide_request::Request;

/// Longest payload that the client's side takes, in bytes.
const PAYLOAD_MAX: u32 = 4096;

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

/// Feeds `data` to a server that offers everything, as the bytes of a client, and to clients with
/// wishes, as the bytes of a server. Panics only when this crate breaks its own contract.
pub fn fuzz_negotiated(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let whole = handshake(data, Features::ALL, &Exports);
    let told = told_flags(&whole.out);
    if let Ok(Some(HandshakeEnd::Transmission(selected))) = &whole.end {
        let flags = selected.session.transmission_flags(&selected.info);
        assert_eq!(told, Some(flags.bits()), "flags that were not told");
        reached = transmission(&data[whole.consumed..], selected);
    }
    client_handshake(data);
    for style in STYLES {
        replies(data, style);
    }
    reached
}

/// How many requests the bytes of a client led to, so that a generator knows whether it is any
/// good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Answered by an error.
    pub refused: usize,
    /// Served, BLOCK_STATUS included.
    pub served: usize,
    /// BLOCK_STATUS that were served.
    pub status: usize,
}

impl ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.refused += other.refused;
        self.served += other.served;
        self.status += other.status;
    }
}

/// The flags that a server told last. Panics when its output is not a sequence of replies to
/// options, perhaps ended by that to EXPORT_NAME.
fn told_flags(out: &[u8]) -> Option<u16> {
    let mut cursor = Cursor::new(out);
    let mut flags = None;
    while !cursor.is_empty() {
        let bare = cursor.rest();
        if cursor.u64() != Some(OPTION_REPLY_MAGIC) {
            let padded = EXPORT_NAME_REPLY_BYTES + EXPORT_NAME_ZEROES;
            assert!([EXPORT_NAME_REPLY_BYTES, padded].contains(&bare.len()));
            return Some(be_u16(bare, 8));
        }
        cursor.u32().expect("the option that is answered");
        let kind = cursor.u32().expect("the type of the reply");
        let len = cursor.u32().expect("the length of the reply") as usize;
        let data = cursor.take(len).expect("as much data as the header says");
        match kind {
            option_reply::ACK => assert!(data.is_empty(), "ACK carries no data"),
            option_reply::INFO if data.starts_with(&info::EXPORT.to_be_bytes()) => {
                assert_eq!(len, 12, "size and flags");
                flags = Some(be_u16(data, 10));
            }
            option_reply::INFO => assert!(len >= 2, "INFO without a type"),
            option_reply::SERVER => assert!(len >= 4, "SERVER without a length"),
            option_reply::META_CONTEXT => {
                let name = string(&data[4..]).expect("a name that may go on the wire");
                assert!(name.contains(':'), "{name} has no namespace");
            }
            _ => {
                assert!(kind & option_reply::ERROR_BIT != 0, "type {kind}");
                assert!(len <= STRING_BYTES_MAX, "error text of {len} bytes");
            }
        }
    }
    flags
}

/// Reads requests as a server does and answers them; a client that keeps the rules must be content
/// with every answer.
fn transmission(mut rest: &[u8], selected: &Selected) -> Reached {
    let mut reached = Reached::default();
    let Selected { info, session, .. } = selected;
    let style = session.headers();
    assert!(session.contexts().len() <= CONTEXTS_MAX);
    assert!(session.contexts().is_empty() || style.has_chunks());
    while let Ok(Some(request)) = Request::parse(style, rest) {
        rest = &rest[style.request_bytes()..];
        let verdict = session.validate(&request, info);
        let claimed = request.payload_len(style);
        let payload = match &verdict {
            Ok(Command::Op(Op::Disconnect)) => return reached,
            Ok(_) => claimed,
            Err(refusal) if refusal.close => return reached,
            Err(refusal) => {
                assert_eq!(u64::from(refusal.payload), claimed, "out of sync");
                claimed
            }
        };
        assert!(payload <= u64::from(PAYLOAD_BYTES_ACCEPTED));
        let Some((payload, behind)) = rest.split_at_checked(payload as usize) else {
            return reached;
        };
        rest = behind;
        let mut out = Vec::new();
        let verdict = verdict.map_err(|refusal| refusal.errno);
        let (effect_len, ids) = answer(verdict, &request, payload, selected, &mut out);
        if judge(style, &request, effect_len, &ids, &out) {
            reached.served += 1;
            reached.status += usize::from(request.command == command::BLOCK_STATUS);
        } else {
            reached.refused += 1;
        }
    }
    reached
}

/// Answers as a server does whose volume is one hole. Gives the length and contexts that the
/// request is about.
fn answer(
    verdict: Result<Command, Errno>,
    request: &Request,
    payload: &[u8],
    selected: &Selected,
    out: &mut Vec<u8>,
) -> (u64, Vec<u32>) {
    let Selected { info, session, .. } = selected;
    let to = ReplyTo::new(session.headers(), request);
    let all: Vec<u32> = session
        .contexts()
        .iter()
        .map(|context| context.id)
        .collect();
    let query = match verdict {
        Err(errno) => {
            to.error(errno, "refused", out);
            return (request.length, all);
        }
        Ok(Command::Status(query)) => Ok(query),
        Ok(Command::StatusPayload { offset, one, .. }) => {
            session.status_payload(offset, one, payload, info)
        }
        Ok(Command::Read { offset, len, df }) => {
            check_range(offset, u64::from(len), info);
            let mut reply = ReadReply::new(to, offset, len, df);
            if len > 0 && session.headers().has_chunks() {
                out.extend_from_slice(reply.hole(len).expect("all of it").as_bytes());
            } else if len > 0 {
                // The data of a simple reply is the driver's business.
                out.extend_from_slice(reply.data(len, true).expect("all of it").as_bytes());
            }
            if let Some(head) = reply.finish().expect("all was sent") {
                out.extend_from_slice(head.as_bytes());
            }
            return (request.length, all);
        }
        Ok(Command::Op(op)) => {
            check_op(op, info);
            out.extend_from_slice(to.success().as_bytes());
            return (request.length, all);
        }
    };
    match query {
        Ok(query) => (query.len, status(session, &query, to, info, out)),
        Err(errno) => {
            to.error(errno, "refused", out);
            (request.length, all)
        }
    }
}

fn status(
    session: &Session,
    query: &StatusQuery,
    to: ReplyTo,
    info: &ExportInfo,
    out: &mut Vec<u8>,
) -> Vec<u32> {
    check_range(query.offset, query.len, info);
    let ids = session.contexts().iter().map(|context| context.id);
    let ids: Vec<u32> = ids.filter(|id| query.contexts.contains(*id)).collect();
    assert_eq!(
        ids.len(),
        query.contexts.len(),
        "a context that is not there"
    );
    for (index, id) in ids.iter().enumerate() {
        let mut chunk = StatusChunk::new(to, query, *id, info, out);
        // Two short extents and one without end.
        let _ = chunk.push(1, 3) && chunk.push(query.len / 2, 0) && chunk.push(u64::MAX, 1);
        chunk.finish(index + 1 == ids.len()).expect("an extent");
    }
    ids
}

/// What a careful client says of an answer: success or not.
fn judge(style: HeaderStyle, request: &Request, effect_len: u64, ids: &[u32], out: &[u8]) -> bool {
    let mut reader = ReplyReader::new(style, PAYLOAD_MAX);
    let mut tracker = ReplyTracker::new(style, *request, effect_len, ids);
    let mut rest = out;
    while let Some((header, payload)) = reader.next(&mut rest).expect("our own reply") {
        assert_eq!(header.cookie, request.cookie);
        let chunk = match header.kind {
            ReplyKind::Simple(_) => None,
            ReplyKind::Chunk { kind, .. } => {
                Some(Chunk::parse(kind, payload).expect("our own chunk"))
            }
        };
        let progress = tracker.take(&header, chunk.as_ref());
        if let ReplyProgress::Done(result) = progress.expect("our own rules") {
            assert!(rest.is_empty(), "stray bytes");
            return result.is_ok();
        }
    }
    panic!("an answer without an end");
}

fn check_op(op: Op, export: &ExportInfo) {
    match op {
        Op::Disconnect | Op::Flush => {}
        Op::Read { .. } => panic!("a read among the others"),
        Op::Cache { offset, len } => check_range(offset, len, export),
        Op::Trim { offset, len, .. } | Op::Zero { offset, len, .. } => {
            assert!(!export.read_only);
            check_range(offset, len, export);
        }
        Op::Write { offset, len, .. } => {
            assert!(!export.read_only && len <= PAYLOAD_BYTES_ACCEPTED);
            check_range(offset, u64::from(len), export);
        }
    }
}

fn check_range(offset: u64, len: u64, export: &ExportInfo) {
    let end = u128::from(offset) + u128::from(len);
    assert!(end <= u128::from(export.size), "{offset}+{len}");
    let grid = u64::from(export.min_block);
    assert!(
        offset.is_multiple_of(grid) && len.is_multiple_of(grid),
        "{offset}+{len}"
    );
}

/// A client that wishes for everything.
fn client_handshake(data: &[u8]) {
    let wishes = Wishes {
        extended_headers: true,
        structured_replies: true,
        contexts: vec!["base:allocation".to_owned()],
        ..Wishes::default()
    };
    for greeting in [&b"NBDMAGICIHAVEOPT\0\x03"[..], b""] {
        let goal = Goal::Go("v".to_owned());
        let client = ClientHandshake::with_wishes(goal, wishes.clone());
        let mut client = client.expect("wishes that can be sent");
        let mut out = Vec::new();
        for piece in [greeting, data] {
            let on = client.advance(piece, &mut out);
            if !matches!(&on, Ok(advance) if advance.end.is_none()) {
                break;
            }
        }
        assert!(out.len() <= data.len() * 8 + 1024, "unbounded output");
    }
}

/// A client that reads replies to a READ and to a BLOCK_STATUS.
fn replies(data: &[u8], style: HeaderStyle) {
    for (number, flags) in [
        (command::READ, 0),
        (command::READ, command_flag::DF),
        (command::BLOCK_STATUS, command_flag::REQ_ONE),
    ] {
        let request = Request {
            flags,
            command: number,
            cookie: 0,
            offset: 0,
            length: 1 << 20,
        };
        let mut reader = ReplyReader::new(style, PAYLOAD_MAX);
        let mut tracker = ReplyTracker::new(style, request, 1 << 20, &[1, 2]);
        let mut rest = data;
        while let Ok(Some((header, payload))) = reader.next(&mut rest) {
            assert!(payload.len() <= PAYLOAD_MAX as usize);
            let ReplyKind::Chunk { kind, .. } = header.kind else {
                let _ = tracker.take(&header, None);
                continue;
            };
            let Ok(chunk) = Chunk::parse(kind, payload) else {
                return;
            };
            if let Chunk::Status { extents, .. } = &chunk {
                assert!(extents.iter().count() == extents.len() && !extents.is_empty());
            }
            if tracker.take(&header, Some(&chunk)).is_err() {
                return;
            }
        }
    }
}

/// A directory with an export of each kind.
#[derive(Debug)]
pub(super) struct Exports;

impl ExportDirectory for Exports {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        visit("v", "");
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        match name {
            "" | "v" => Ok(ExportInfo::new("v", u64::MAX)),
            "a" => Ok(ExportInfo {
                min_block: 65536,
                ..ExportInfo::new(name, 1 << 40)
            }),
            "r" => Ok(ExportInfo {
                read_only: true,
                ..ExportInfo::new(name, 1000)
            }),
            "p" => Err(LookupError::Policy("not for you".to_owned())),
            _ => Err(LookupError::Unknown),
        }
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.find(name)?;
        visit("base:allocation");
        visit("qemu:dirty-bitmap:since-mon");
        visit("qemu:dirty-bitmap:since-tue");
        visit("no namespace");
        Ok(())
    }
}

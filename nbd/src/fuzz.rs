//! The entry of the fuzz target: a client's whole stream against the server's machines, with the
//! promises of this crate as assertions. `tests/corpus.rs` replays the corpus through it.

mod negotiated;
mod tls;

pub use negotiated::{Reached, fuzz_negotiated};
pub use tls::fuzz_tls;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::codec::Cursor;
use crate::errno::Errno;
use crate::export::{ExportDirectory, ExportInfo, LookupError, PAYLOAD_BYTES_ACCEPTED};
use crate::protocol::{
    EXPORT_NAME_REPLY_BYTES, EXPORT_NAME_ZEROES, OPTION_REPLY_MAGIC, STRING_BYTES_MAX, command,
    option_reply,
};
use crate::request::{REQUEST_BYTES, RequestHeader};
use crate::server::{
    Features, HandshakeEnd, HandshakeError, HandshakeLimits, Selected, ServerHandshake,
};
use crate::validate::{Op, validate};

/// Small limits, so that short inputs reach them.
const LIMITS: HandshakeLimits = HandshakeLimits {
    options_max: 16,
    option_bytes_max: 8 << 10,
    discard_bytes_max: 64 << 10,
};

/// Most bytes that one option of [`Exports`] can be answered with.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Feeds `data`, the bytes of a client, to a handshake and then to the request parser. Panics only
/// when this crate breaks its own contract: whatever the pieces in which bytes arrive, the outcome
/// is the same, memory is bounded, replies are well-formed, and what is let through is legal.
pub fn fuzz_server(data: &[u8]) {
    let whole = handshake(data, Features::default(), &Exports);
    let by_name = check_replies(&whole.out);
    if let Ok(Some(HandshakeEnd::Transmission(selected))) = &whole.end {
        let Selected { info, .. } = selected;
        assert!(
            !by_name || info.min_block == 1,
            "EXPORT_NAME cannot tell block sizes"
        );
        transmission(&data[whole.consumed..], info);
    } else {
        assert!(
            !by_name,
            "only EXPORT_NAME is answered without a reply header"
        );
    }
}

/// What became of a handshake.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    consumed: usize,
    out: Vec<u8>,
    /// `Ok(None)`: the client's bytes ran out.
    end: Result<Option<HandshakeEnd>, HandshakeError>,
}

/// What a server with these features makes of the bytes of a client, in whatever pieces they come.
fn handshake(data: &[u8], features: Features, exports: &impl ExportDirectory) -> Outcome {
    let in_pieces = |piece_bytes| handshake_in_pieces(data, piece_bytes, features, exports);
    let whole = in_pieces(data.len().max(1));
    for piece_bytes in [1, 7] {
        let pieces = in_pieces(piece_bytes);
        assert!(pieces == whole, "in pieces of {piece_bytes} bytes");
    }
    let late = Late::of(exports);
    let awaited = handshake_in_pieces(data, data.len().max(1), features, &late);
    assert!(awaited == whole, "with exports that are awaited");
    whole
}

fn handshake_in_pieces(
    data: &[u8],
    piece_bytes: usize,
    features: Features,
    exports: &impl ExportDirectory,
) -> Outcome {
    let mut server = ServerHandshake::with_features(LIMITS, features);
    let mut outcome = Outcome {
        consumed: 0,
        out: Vec::new(),
        end: Ok(None),
    };
    for piece in data.chunks(piece_bytes) {
        let (mut rest, mut awaits) = (piece, false);
        while !rest.is_empty() || awaits {
            let before = outcome.out.len();
            let advance = match server.advance(rest, &mut outcome.out, exports) {
                Ok(advance) => advance,
                Err(error) => {
                    // How much of a fatal piece was read before the error is nobody's business.
                    outcome.consumed = 0;
                    outcome.end = Err(error);
                    return outcome;
                }
            };
            let waited = std::mem::replace(&mut awaits, advance.awaits.is_some());
            assert!(
                (advance.consumed > 0 || waited || awaits) && advance.consumed <= rest.len(),
                "no progress"
            );
            assert!(
                server.held_bytes() <= LIMITS.option_bytes_max as usize,
                "unbounded memory"
            );
            assert!(
                outcome.out.len() - before <= 2 * ANSWER_BYTES_MAX,
                "unbounded answer"
            );
            outcome.consumed += advance.consumed;
            rest = &rest[advance.consumed..];
            if advance.end.is_some() {
                outcome.end = Ok(advance.end);
                return outcome;
            }
        }
    }
    assert_eq!(
        outcome.consumed,
        data.len(),
        "bytes left although the handshake goes on"
    );
    outcome
}

/// Checks that `out` is a sequence of replies to options, perhaps ended by that to EXPORT_NAME,
/// which `true` reports.
fn check_replies(out: &[u8]) -> bool {
    let mut cursor = Cursor::new(out);
    while !cursor.is_empty() {
        let tail = cursor.rest().len();
        if cursor.u64() != Some(OPTION_REPLY_MAGIC) {
            let bare = EXPORT_NAME_REPLY_BYTES;
            assert!(
                tail == bare || tail == bare + EXPORT_NAME_ZEROES,
                "{tail} stray bytes"
            );
            return true;
        }
        cursor.u32().expect("the option that is answered");
        let kind = cursor.u32().expect("the type of the reply");
        let len = cursor.u32().expect("the length of the reply") as usize;
        let data = cursor.take(len).expect("as much data as the header says");
        match kind {
            option_reply::ACK => assert!(data.is_empty(), "ACK carries no data"),
            option_reply::INFO => assert!(data.len() >= 2, "INFO without a type"),
            option_reply::SERVER => assert!(data.len() >= 4, "SERVER without a length"),
            _ => {
                assert!(kind & option_reply::ERROR_BIT != 0, "type {kind}");
                assert!(
                    data.len() <= STRING_BYTES_MAX,
                    "error text of {} bytes",
                    data.len()
                );
            }
        }
    }
    false
}

/// Reads requests as a server does, throwing payloads away.
fn transmission(mut rest: &[u8], export: &ExportInfo) {
    while let Some((bytes, behind)) = rest.split_first_chunk::<REQUEST_BYTES>() {
        let Ok(header) = RequestHeader::parse(bytes) else {
            return;
        };
        assert_eq!(
            header.encode(),
            *bytes,
            "a header must survive reading and writing"
        );
        let payload = match validate(&header, export) {
            Ok(Op::Disconnect) => return,
            Ok(op) => {
                check_op(op, export);
                header.payload_len()
            }
            Err(refusal) => {
                assert_ne!(
                    refusal.errno,
                    Errno::NotSup,
                    "ENOTSUP is for the engine to say"
                );
                if refusal.close {
                    assert!(header.payload_len() > PAYLOAD_BYTES_ACCEPTED);
                    return;
                }
                assert_eq!(refusal.payload, header.payload_len(), "out of sync");
                refusal.payload
            }
        };
        assert!(payload == 0 || header.command == command::WRITE);
        rest = behind.get(payload as usize..).unwrap_or_default();
    }
}

/// What is let through lies inside the export and may be changed if it changes anything.
fn check_op(op: Op, export: &ExportInfo) {
    let (offset, len, changes) = match op {
        Op::Disconnect | Op::Flush => return,
        Op::Cache { offset, len } => (offset, len, false),
        Op::Read { offset, len } => {
            assert!(len <= PAYLOAD_BYTES_ACCEPTED);
            (offset, u64::from(len), false)
        }
        Op::Trim { offset, len, .. } | Op::Zero { offset, len, .. } => (offset, len, true),
        Op::Write { offset, len, .. } => {
            assert!(len <= PAYLOAD_BYTES_ACCEPTED);
            (offset, u64::from(len), true)
        }
    };
    assert!(
        u128::from(offset) + u128::from(len) <= u128::from(export.size),
        "{op:?}"
    );
    assert!(
        !(changes && export.read_only),
        "{op:?} on a read-only export"
    );
    let grid = u64::from(export.min_block);
    assert!(
        offset % grid == 0 && len % grid == 0,
        "{op:?} off the grid of {grid}"
    );
}

/// A directory that knows an export, and a context, only when it is asked a second time.
struct Late<'a, E> {
    exports: &'a E,
    asked: Cell<bool>,
    contexts: RefCell<BTreeSet<(String, String)>>,
}

impl<'a, E> Late<'a, E> {
    fn of(exports: &'a E) -> Self {
        Self {
            exports,
            asked: Cell::new(false),
            contexts: RefCell::default(),
        }
    }
}

impl<E: ExportDirectory> ExportDirectory for Late<'_, E> {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        self.exports.list(visit)
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        assert!(!self.asked.get(), "looked up while it is awaited");
        self.exports.find(name)
    }

    fn awaits(&self, _: &str) -> bool {
        !self.asked.replace(!self.asked.get())
    }

    fn awaits_context(&self, name: &str, context: &str) -> bool {
        let asked = (name.to_owned(), context.to_owned());
        self.contexts.borrow_mut().insert(asked)
    }

    fn contexts(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), LookupError> {
        self.exports.contexts(name, visit)
    }
}

/// A directory with an export of each kind.
#[derive(Debug)]
struct Exports;

impl ExportDirectory for Exports {
    fn list(&self, visit: &mut dyn FnMut(&str, &str)) -> Result<(), LookupError> {
        visit("vol0", "the default");
        visit("tenant/volume", "");
        visit("never\0named", "");
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ExportInfo, LookupError> {
        match name {
            "" | "vol0" => Ok(ExportInfo {
                description: "the default".to_owned(),
                ..ExportInfo::new("vol0", 10 << 30)
            }),
            "tenant/volume" => Ok(ExportInfo::new(name, u64::MAX)),
            "a" => Ok(ExportInfo {
                min_block: 4096,
                ..ExportInfo::new(name, 1 << 20)
            }),
            "p" => Err(LookupError::Policy("not for you".to_owned())),
            "r" => Ok(ExportInfo {
                read_only: true,
                ..ExportInfo::new(name, 1000)
            }),
            "s" => Err(LookupError::Shutdown),
            _ => Err(LookupError::Unknown),
        }
    }
}

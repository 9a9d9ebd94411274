//! The border between what comes in the clear and what comes through TLS: whatever was said before
//! it, on either side, must make no difference behind it.

use super::ANSWER_BYTES_MAX;
use super::negotiated::Exports;
use crate::client::{ClientHandshake, Goal, Wishes};
use crate::protocol::{CLIENT_FLAGS_BYTES, OPTION_HEADER_BYTES, OPTION_MAGIC, option};
use crate::server::{
    Advance, Features, HandshakeEnd, HandshakeError, HandshakeLimits, ServerHandshake, TlsPolicy,
};

/// So many options that the caps, which count on behind the border, are never met.
const LIMITS: HandshakeLimits = HandshakeLimits {
    options_max: 1 << 20,
    option_bytes_max: 8 << 10,
    discard_bytes_max: 64 << 10,
};

/// The first byte says where the rest is cut into what comes in the clear and what comes through
/// TLS, and whether TLS is required. Panics if what came in the clear changes an answer behind TLS,
/// if a client says more than STARTTLS in the clear, or if TLS starts with bytes behind STARTTLS.
pub fn fuzz_tls(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    let policy = match choice & 1 {
        0 => TlsPolicy::Allow,
        _ => TlsPolicy::Require,
    };
    let cut = usize::from(choice >> 1).min(rest.len());
    let (clear, sealed) = rest.split_at(cut);
    in_one_piece(clear, policy);
    if let Some(flags) = clear.get(..CLIENT_FLAGS_BYTES)
        && let Some(mut heard) = behind_the_border(clear, policy)
        && let Some(mut fresh) = behind_the_border(flags, policy)
    {
        assert_eq!(answers(&mut heard, sealed), answers(&mut fresh, sealed));
    }
    client(rest);
}

fn server(policy: TlsPolicy) -> ServerHandshake {
    ServerHandshake::with_features(LIMITS, Features::ALL).with_tls(policy)
}

fn start_tls() -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option::STARTTLS.to_be_bytes());
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes
}

/// TLS starts only with the last byte of what has come.
fn in_one_piece(clear: &[u8], policy: TlsPolicy) {
    let mut out = Vec::new();
    if let Ok(advance) = server(policy).advance(clear, &mut out, &Exports) {
        assert!(!advance.starts_tls || advance.consumed == clear.len());
    }
}

/// A server behind the acknowledged STARTTLS that follows what came in the clear; `None` if it does
/// not get there.
fn behind_the_border(clear: &[u8], policy: TlsPolicy) -> Option<ServerHandshake> {
    let (mut server, mut out) = (server(policy), Vec::new());
    let start = start_tls();
    for byte in clear.iter().chain(&start).copied() {
        let advance = server.advance(&[byte], &mut out, &Exports).ok()?;
        if advance.end.is_some() {
            return None;
        }
        if advance.starts_tls {
            assert_eq!(server.held_bytes(), 0, "bytes came along");
            return Some(server);
        }
    }
    None
}

type Answers = (Vec<u8>, Result<Option<HandshakeEnd>, HandshakeError>);

/// What a server makes of these bytes.
fn answers(server: &mut ServerHandshake, sealed: &[u8]) -> Answers {
    let (mut out, mut rest) = (Vec::new(), sealed);
    while !rest.is_empty() {
        let before = out.len();
        let Advance {
            consumed,
            starts_tls,
            end,
            ..
        } = match server.advance(rest, &mut out, &Exports) {
            Ok(advance) => advance,
            // The count of options is the one thing that goes on.
            Err(error) => return (out, Err(error)),
        };
        assert!(!starts_tls, "TLS in TLS");
        assert!(out.len() - before <= 2 * ANSWER_BYTES_MAX);
        rest = &rest[consumed..];
        if end.is_some() {
            return (out, Ok(end));
        }
    }
    (out, Ok(None))
}

/// A client that wishes for TLS says its flags and STARTTLS in the clear, and nothing more.
fn client(data: &[u8]) {
    let wishes = Wishes {
        tls: true,
        extended_headers: true,
        structured_replies: true,
        ..Wishes::default()
    };
    let client = ClientHandshake::with_wishes(Goal::Go("v".to_owned()), wishes);
    let mut client = client.expect("wishes that can be sent");
    let mut out = Vec::new();
    for piece in [b"NBDMAGICIHAVEOPT\0\x03", data] {
        let Ok(advance) = client.advance(piece, &mut out) else {
            return;
        };
        assert!(advance.end.is_none(), "an export without TLS");
        assert_eq!(out.len(), CLIENT_FLAGS_BYTES + OPTION_HEADER_BYTES);
        assert!(!advance.starts_tls || advance.consumed == piece.len());
    }
}

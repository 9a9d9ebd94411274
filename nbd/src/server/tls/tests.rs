//! Every rule on STARTTLS, one row each, and what somebody in the middle may try.

use super::super::HandshakeLimits;
use super::super::negotiation::tests::{Exports, render, render_end, step};
use super::*;
use crate::server::Features;

const LIST: &str = "0=base:allocation 0=qemu:allocation-depth 0=qemu:dirty-bitmap:since-mon \
                    0=qemu:dirty-bitmap:since-tue 0=taipan:durability ACK";

/// Rule, policy, steps of the client, replies, end. `+` stands for `base:allocation`, `$LIST`
/// for a list of all contexts. Each step waits for its answer, as those of real clients do.
const RULES: &str = "
    not offered                 | off     | TLS;GO a                 | UNSUP INFO ACK | simple
    taken                       | allow   | TLS;GO a                 | ACK INFO ACK | simple
    left                        | allow   | GO a                     | INFO ACK | simple
    with data                   | allow   | TLS data;TLS;GO a        | INVALID ACK INFO ACK | simple
    with much data              | allow   | TLS long;TLS;GO a        | INVALID ACK INFO ACK | simple
    twice                       | allow   | TLS;TLS;GO a             | ACK INVALID INFO ACK | simple
    headers are forgotten       | allow   | EXT;TLS;GO a             | ACK ACK INFO ACK | simple
    headers can be had again | allow | SR;TLS;SR;GO a \
        | ACK ACK ACK INFO ACK | structured
    contexts are forgotten | allow | SR;SET a +;TLS;SR;GO a \
        | ACK 1=+ ACK ACK ACK INFO ACK | structured
    headers not carried over | allow | SR;TLS;SET a +;GO a \
        | ACK ACK INVALID INFO ACK | simple
    refused: nothing forgotten | allow | SR;TLS data;GO a \
        | ACK INVALID INFO ACK | structured
    required: go | require | GO a;TLS;GO a \
        | TLS_REQD ACK INFO ACK | simple
    required: info, unknown     | require | INFO x;ABORT             | TLS_REQD ACK | aborted
    required: names | require | NAMES;TLS;NAMES;GO a \
        | TLS_REQD ACK ACK INFO ACK | simple
    required: headers | require | SR;EXT;TLS;GO a \
        | TLS_REQD TLS_REQD ACK INFO ACK | simple
    required: contexts | require | SET a +;LIST a;TLS;LIST a;GO a \
        | TLS_REQD TLS_REQD ACK $LIST INFO ACK | simple
    required: unknown option | require | PEEK;TLS;PEEK;GO a \
        | TLS_REQD ACK UNSUP INFO ACK | simple
    required: by name           | require | NAME a                   | | close
    required: leaving           | require | ABORT                    | ACK | aborted
    required: malformed | require | SET trailing;TLS data;TLS;GO a \
        | TLS_REQD INVALID ACK INFO ACK | simple
    required: too long | require | SET long;TLS;GO a \
        | TLS_REQD ACK INFO ACK | simple
    required: by name, inside   | require | TLS;NAME a               | ACK size | simple
    for one export | allow | GO sealed;TLS;GO a \
        | TLS_REQD ACK INFO ACK | simple
    never behind TLS            | allow   | TLS;GO sealed;GO a       | ACK POLICY INFO ACK | simple
    not offered, for one export | off     | GO sealed;GO a           | TLS_REQD INFO ACK | simple
";

fn server(policy: &str) -> ServerHandshake {
    let policy = match policy {
        "off" => TlsPolicy::Off,
        "allow" => TlsPolicy::Allow,
        "require" => TlsPolicy::Require,
        _ => panic!("{policy}"),
    };
    ServerHandshake::with_features(HandshakeLimits::DEFAULT, Features::ALL).with_tls(policy)
}

/// Replies and end after steps, each with an answer before the next; TLS must start at an
/// acknowledged "TLS" and nowhere else.
fn run(server: &mut ServerHandshake, steps: &str) -> (String, String) {
    let mut out = Vec::new();
    let mut bytes = vec![0, 0, 0, 3];
    for text in steps.split(';') {
        step(&mut bytes, text);
        let before = out.len();
        let advance = match server.advance(&bytes, &mut out, &Exports) {
            Ok(advance) => advance,
            Err(error) => return (render(&out), render_end(Err(error))),
        };
        let acknowledged = text == "TLS" && render(&out[before..]) == "ACK";
        assert_eq!(advance.starts_tls, acknowledged, "{steps}: {text}");
        assert_eq!(server.held_bytes(), 0);
        if advance.end.is_some() {
            return (render(&out), render_end(Ok(advance.end)));
        }
        assert_eq!(advance.consumed, bytes.len());
        bytes.clear();
    }
    (render(&out), "on".to_owned())
}

#[test]
fn tls_starts_by_the_rules() {
    for row in RULES.lines().filter(|row| !row.trim().is_empty()) {
        let row = row.replace('+', "base:allocation").replace("$LIST", LIST);
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [rule, policy, steps, replies, end] = cells[..] else {
            panic!("{row}")
        };
        let told = run(&mut server(policy), steps);
        assert_eq!(told, (replies.to_owned(), end.to_owned()), "{rule}");
    }
}

/// What somebody in the middle puts behind STARTTLS in the clear must never be taken for something
/// that came through TLS (CVE-2021-3716, and STARTTLS injections of other protocols).
#[test]
fn bytes_behind_starttls_end_the_connection_unanswered() {
    for policy in ["allow", "require"] {
        let mut bytes = vec![0, 0, 0, 3];
        step(&mut bytes, "TLS");
        let clear = bytes.len();
        step(&mut bytes, "GO a");
        for end in clear + 1..=bytes.len() {
            let (mut server, mut out) = (server(policy), Vec::new());
            let refused = server.advance(&bytes[..end], &mut out, &Exports);
            let error = HandshakeError::BytesBehindStartTls(end - clear);
            assert_eq!(refused, Err(error));
            assert!(out.is_empty(), "not acknowledged");
            let after = server.advance(&bytes[clear..], &mut out, &Exports);
            assert_eq!(after, Err(HandshakeError::AlreadyEnded));
        }
    }
}

#[test]
fn what_follows_a_refused_starttls_is_answered() {
    let mut bytes = vec![0, 0, 0, 3];
    for text in ["TLS", "GO a"] {
        step(&mut bytes, text);
    }
    let mut out = Vec::new();
    let end = server("off").advance(&bytes, &mut out, &Exports);
    assert_eq!(render(&out), "UNSUP INFO ACK");
    assert_eq!(render_end(end.map(|advance| advance.end)), "simple");
}

#[test]
fn caps_on_options_count_on_behind_tls() {
    let mut server = server("allow");
    let steps = ["PEEK"; 60].join(";");
    run(&mut server, &format!("{steps};TLS"));
    let mut bytes = Vec::new();
    (0..4).for_each(|_| step(&mut bytes, "PEEK"));
    let mut out = Vec::new();
    let end = server.advance(&bytes, &mut out, &Exports);
    assert_eq!(end, Err(HandshakeError::TooManyOptions(65)));
}

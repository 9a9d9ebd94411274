//! Requests to the backend by kind, which is what a provider bills, and what it was found to do.

use std::fmt;

use taipan_engine::api::BackendStatus;
use taipan_engine::backend::{ConditionalWrites, VerbCounts};

use super::families::Families;

/// A counter by kind of request: name, help and value.
type ByVerb = (&'static str, &'static str, fn(&VerbCounts) -> u64);

const BY_VERB: [ByVerb; 5] = [
    (
        "backend_requests",
        "Requests made, repeated ones included",
        |c| c.requests,
    ),
    ("backend_request_errors", "Requests that failed", |c| {
        c.errors
    }),
    (
        "backend_request_retries",
        "Requests that repeated a failed one",
        |c| c.retries,
    ),
    ("backend_sent_bytes", "Bytes of request bodies", |c| {
        c.sent_bytes
    }),
    ("backend_received_bytes", "Bytes of response bodies", |c| {
        c.received_bytes
    }),
];

/// Writes them.
pub(super) fn encode(out: &mut Families<'_>, backend: &BackendStatus) -> fmt::Result {
    let classes = [
        ("full", Some(ConditionalWrites::Full)),
        ("create_only", Some(ConditionalWrites::CreateOnly)),
        ("none", Some(ConditionalWrites::None)),
        ("unknown", None),
    ];
    let found = backend.conditional_writes;
    let rows =
        classes.map(|(name, class)| ([("class", name)], f64::from(u8::from(found == class))));
    out.gauges(
        "backend_conditional_writes",
        "1 for which conditional writes the backend keeps",
        rows.into_iter(),
    )?;
    out.counter(
        "backend_mismatches",
        "Replies to other than clients' reads whose bytes were wrong, never believed",
        backend.mismatches as f64,
    )?;
    for (name, help, value) in BY_VERB {
        let rows = backend.requests.iter();
        let rows = rows.map(|count| ([("verb", count.verb.as_ref())], value(count) as f64));
        out.counters(name, help, rows)?;
    }
    Ok(())
}

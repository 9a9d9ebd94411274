//! How many requests of each kind were made, and what they carried: what a provider bills.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::VerbCounts;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Delete,
    DeleteMany,
    Get,
    Head,
    List,
    Multipart,
    Put,
}

const VERBS: [(Verb, &str); 7] = [
    (Verb::Delete, "delete"),
    (Verb::DeleteMany, "delete_many"),
    (Verb::Get, "get"),
    (Verb::Head, "head"),
    (Verb::List, "list"),
    (Verb::Multipart, "multipart"),
    (Verb::Put, "put"),
];

#[derive(Default)]
struct Cell {
    requests: AtomicU64,
    errors: AtomicU64,
    retries: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

/// Counters of all kinds, shared by all threads.
#[derive(Default)]
pub(super) struct Tally {
    verbs: [Cell; VERBS.len()],
    answers: AtomicU64,
}

impl Tally {
    fn cell(&self, verb: Verb) -> &Cell {
        &self.verbs[verb as usize]
    }

    /// A request goes out with a body of so many bytes.
    pub(super) fn request(&self, verb: Verb, body_bytes: usize) {
        let cell = self.cell(verb);
        cell.requests.fetch_add(1, Ordering::Relaxed);
        cell.sent_bytes
            .fetch_add(body_bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes of a body came back.
    pub(super) fn received(&self, verb: Verb, bytes: usize) {
        let received = &self.cell(verb).received_bytes;
        received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A request failed (an absent object or a lost condition is an answer, not a failure).
    pub(super) fn error(&self, verb: Verb) {
        self.cell(verb).errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The next request repeats one that failed.
    pub(super) fn retry(&self, verb: Verb) {
        self.cell(verb).retries.fetch_add(1, Ordering::Relaxed);
    }

    /// The server answered a request, be it with no.
    pub(super) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it did.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// The counts of now.
    pub(super) fn counts(&self) -> Vec<VerbCounts> {
        let count = |&(verb, name): &(Verb, &'static str)| {
            let cell = self.cell(verb);
            VerbCounts {
                verb: Cow::Borrowed(name),
                requests: cell.requests.load(Ordering::Relaxed),
                errors: cell.errors.load(Ordering::Relaxed),
                retries: cell.retries.load(Ordering::Relaxed),
                sent_bytes: cell.sent_bytes.load(Ordering::Relaxed),
                received_bytes: cell.received_bytes.load(Ordering::Relaxed),
            }
        };
        VERBS.iter().map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_counts_by_itself() {
        let tally = Tally::default();
        for (verb, _) in VERBS {
            tally.request(verb, verb as usize + 1);
        }
        tally.retry(Verb::Put);
        tally.error(Verb::Put);
        tally.received(Verb::Get, 7);
        for (count, (verb, _)) in tally.counts().iter().zip(VERBS) {
            assert_eq!((count.requests, count.sent_bytes), (1, verb as u64 + 1));
            assert_eq!(count.errors, u64::from(verb == Verb::Put));
            assert_eq!(count.retries, u64::from(verb == Verb::Put));
            assert_eq!(count.received_bytes, if verb == Verb::Get { 7 } else { 0 });
        }
    }
}

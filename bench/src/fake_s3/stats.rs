//! What a server was asked: requests and bytes per operation, and the latest requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::call::Verb;
use super::locked;

/// Requests that the log keeps.
const LOG_MAX: usize = 20_000;

/// Requests and bytes since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests per operation, refused and cut ones included.
    pub requests: BTreeMap<Verb, u64>,
    /// Bytes of request bodies that were received, per operation.
    pub bytes_in: BTreeMap<Verb, u64>,
    /// Bytes of reply bodies that were sent or begun, per operation.
    pub bytes_out: BTreeMap<Verb, u64>,
    /// Replies per status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests that ended with their connection cut, by the server or the client.
    pub unanswered: u64,
}

impl Stats {
    /// Requests of all operations together.
    pub fn requests_total(&self) -> u64 {
        self.requests.values().sum()
    }

    /// Requests of one operation.
    pub fn requests_of(&self, verb: Verb) -> u64 {
        self.requests.get(&verb).copied().unwrap_or(0)
    }
}

/// One request as the log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Number since the start or the last reset, from 0.
    pub number: u64,
    /// Its operation.
    pub verb: Verb,
    /// Its key; the prefix of a listing.
    pub key: String,
    /// Its `Range` header.
    pub range: Option<String>,
    /// Status of the reply; none while it is under way and when the connection was cut.
    pub status: Option<u16>,
    /// Bytes of its body.
    pub bytes_in: u64,
    /// Bytes of the reply's body.
    pub bytes_out: u64,
}

#[derive(Default)]
struct Records {
    stats: Stats,
    log: VecDeque<Seen>,
    begun: u64,
    /// Grows with every reset, so that a request from before it does not count after it.
    generation: u64,
}

/// Counts requests.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Records>);

/// One request under way; dropped without a reply it counts as unanswered.
pub(crate) struct Ticket<'a> {
    recorder: &'a Recorder,
    verb: Verb,
    number: u64,
    generation: u64,
    answered: bool,
}

impl Recorder {
    /// A request has come.
    pub(crate) fn begin(&self, verb: Verb, key: &str, range: Option<&str>) -> Ticket<'_> {
        let mut records = locked(&self.0);
        let number = records.begun;
        records.begun += 1;
        *records.stats.requests.entry(verb).or_default() += 1;
        if records.log.len() == LOG_MAX {
            records.log.pop_front();
        }
        records.log.push_back(Seen {
            number,
            verb,
            key: key.to_owned(),
            range: range.map(str::to_owned),
            status: None,
            bytes_in: 0,
            bytes_out: 0,
        });
        Ticket {
            recorder: self,
            verb,
            number,
            generation: records.generation,
            answered: false,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        locked(&self.0).stats.clone()
    }

    pub(crate) fn log(&self) -> Vec<Seen> {
        locked(&self.0).log.iter().cloned().collect()
    }

    pub(crate) fn reset(&self) {
        let mut records = locked(&self.0);
        *records = Records {
            generation: records.generation + 1,
            ..Records::default()
        };
    }
}

impl Ticket<'_> {
    fn record(&self, change: impl FnOnce(&mut Stats, Option<&mut Seen>)) {
        let mut records = locked(&self.recorder.0);
        if records.generation != self.generation {
            return;
        }
        let Records { stats, log, .. } = &mut *records;
        let first = log.front().map_or(0, |seen| seen.number);
        let place = self.number.checked_sub(first);
        change(stats, place.and_then(|place| log.get_mut(place as usize)));
    }

    /// Its body was received.
    pub(crate) fn received(&self, bytes: usize) {
        self.record(|stats, seen| {
            *stats.bytes_in.entry(self.verb).or_default() += bytes as u64;
            if let Some(seen) = seen {
                seen.bytes_in = bytes as u64;
            }
        });
    }

    /// It is answered.
    pub(crate) fn answered(mut self, status: u16, bytes: usize) {
        self.answered = true;
        self.record(|stats, seen| {
            *stats.bytes_out.entry(self.verb).or_default() += bytes as u64;
            *stats.statuses.entry(status).or_default() += 1;
            if let Some(seen) = seen {
                seen.status = Some(status);
                seen.bytes_out = bytes as u64;
            }
        });
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.record(|stats, _| stats.unanswered += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_late_answers_find_their_place() {
        let recorder = Recorder::default();
        let early = recorder.begin(Verb::Put, "early", None);
        for number in 0..LOG_MAX {
            let ticket = recorder.begin(Verb::Get, &format!("{number}"), Some("bytes=0-1"));
            ticket.answered(206, 2);
        }
        early.received(5);
        early.answered(200, 0);
        let log = recorder.log();
        assert_eq!((log.len(), log[0].key.as_str()), (LOG_MAX, "0"));
        assert_eq!(log[0].status, Some(206));
        let stats = recorder.stats();
        assert_eq!(stats.requests_of(Verb::Put), 1);
        assert_eq!(stats.requests_total(), LOG_MAX as u64 + 1);
        assert_eq!(stats.bytes_in[&Verb::Put], 5);
        assert_eq!(stats.unanswered, 0);
    }

    #[test]
    fn a_dropped_request_is_unanswered_and_a_reset_forgets_it() {
        let recorder = Recorder::default();
        drop(recorder.begin(Verb::List, "p/", None));
        assert_eq!(recorder.stats().unanswered, 1);
        let old = recorder.begin(Verb::Put, "k", None);
        recorder.reset();
        old.answered(200, 0);
        assert_eq!(recorder.stats(), Stats::default());
    }
}

//! Which interesting things a run has reached.

use std::collections::BTreeMap;

/// Everything that a range of seeds has to reach, else the simulator does not test what it claims.
pub const EVENTS: &[&str] = &[
    "a FLUSH or FUA waited for the bucket",
    "a commit that was never answered fenced a start without the backend",
    "a data directory was lost",
    "a clone was written",
    "a cut that waited for room stepped aside",
    "a sweep came to its end",
    "an orphan was swept",
    "a compaction had nothing left to do",
    "a compaction was begun",
    "a compaction was committed",
    "a compaction was given up",
    "a snapshot of a life before was read",
    "a snapshot was cut beside a commit under way",
    "a commit of nothing made room",
    "a clone was deleted",
    "a snapshot was cloned",
    "a snapshot was deleted",
    "a snapshot was kept because it has a clone",
    "a rollback was stored and not noted locally",
    "a served volume was rolled back",
    "a group of snapshots was complete",
    "a group of snapshots was given up",
    "a group was settled by a later life",
    "a verdict on a group was not answered",
    "a whole group was one cut",
    "what a broken group left was deleted",
    "a point in time left the window",
    "a point in time was read again",
    "a taken snapshot was lost with its process",
    "a volume was served without the backend",
    "an unverified volume was verified",
    "writes waited because the bucket lacked too much",
    "writes went on when the bucket lacked less",
    "a block was read from a chunk",
    "a block was read from the WAL file",
    "a boot failed on a read error and was repeated",
    "a boot failed on the backend and was repeated",
    "a boot was shown an old list of manifests",
    "a cancelled write was dropped before it was appended",
    "a chunk was deleted",
    "a chunk was deleted under a read",
    "a commit was repeated after a failure",
    "a commit's lost response was recognised",
    "a connection took over from a dead one",
    "a cut packed blocks from the WAL file",
    "a dead life's put landed late",
    "a durable write overtook a plain one",
    "a flush barrier failed",
    "a flush failed on a failed shard",
    "a later batch was kept and an earlier one lost",
    "a log failed closed",
    "a log noted its headers",
    "a map told of zeros",
    "a partial write waited for the old block",
    "a power loss tore a batch",
    "a process was killed",
    "a process was killed during recovery",
    "a read failed on rot or errors",
    "a segment was used again",
    "a WAL write error was survived by rewriting",
    "an image was compared with the history",
    "an index checkpoint was written",
    "memory alone held answered records",
    "power was lost",
    "power was lost during recovery",
    "the bucket was ahead of the local head",
    "the WAL was full while the backend was away",
    "two recoveries in a row were interrupted",
    "what a log noted was believed",
    "what a log noted was not believed",
    "two cores shared a map",
    "two cores shared a request",
    "writes resumed after the WAL was full",
];

/// Counts of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(super) fn hit(&mut self, event: &'static str) {
        self.add(event, 1);
    }

    pub(super) fn add(&mut self, event: &'static str, times: u64) {
        let lists = [
            EVENTS,
            super::race::RACE_EVENTS,
            super::family::FAMILY_EVENTS,
        ];
        let listed = lists.iter().any(|list| list.contains(&event));
        debug_assert!(listed, "{event:?} is not listed");
        if times > 0 {
            *self.0.entry(event).or_default() += times;
        }
    }

    /// Adds what another run has reached.
    pub fn merge(&mut self, other: &Self) {
        for (event, times) in &other.0 {
            *self.0.entry(event).or_default() += times;
        }
    }

    /// How often this was reached.
    pub fn count(&self, event: &str) -> u64 {
        self.0.get(event).copied().unwrap_or(0)
    }

    /// Which of these events were never reached.
    pub fn missing(&self, events: &[&'static str]) -> Vec<&'static str> {
        events
            .iter()
            .copied()
            .filter(|event| self.count(event) == 0)
            .collect()
    }
}

//! What the data cores say of themselves, and what one that stands still said last.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::inbox::{CoreAddress, CoreMessage, CoreReport};

/// How long a core may take to answer.
pub(super) const REPORT_WAIT: Duration = Duration::from_secs(2);

/// The cores, and what each said last.
pub(super) struct Reports {
    cores: Vec<CoreAddress>,
    /// Zero of the daemon's clock.
    started: Instant,
    last: Mutex<Vec<Option<CoreReport>>>,
}

impl Reports {
    /// Reports of these cores, none of which has said anything.
    pub(super) fn new(cores: Vec<CoreAddress>, started: Instant) -> Self {
        let last = Mutex::new(vec![None; cores.len()]);
        Self {
            cores,
            started,
            last,
        }
    }

    /// What the cores answer; those that do not in time are left out.
    pub(super) fn ask<T>(&self, ask: impl Fn(Sender<T>) -> CoreMessage) -> Vec<T> {
        let (reply, answers) = bounded(self.cores.len());
        for core in &self.cores {
            core.send(ask(reply.clone()));
        }
        drop(reply);
        let deadline = Instant::now() + REPORT_WAIT;
        let mut given = Vec::new();
        while let Ok(answer) = answers.recv_deadline(deadline) {
            given.push(answer);
        }
        given
    }

    /// How all cores are now; those that do not answer in time are left out.
    pub(super) fn fresh(&self) -> Vec<CoreReport> {
        let reports = self.ask(CoreMessage::Report);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for report in &reports {
            if let Some(last) = last.get_mut(report.core) {
                *last = Some(report.clone());
            }
        }
        reports
    }

    /// The same with what those that do not answer said last, marked with how long they are silent.
    pub(super) fn all(&self) -> Vec<CoreReport> {
        let mut reports = self.fresh();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = |core: usize| reports.iter().any(|report| report.core == core);
        let silent = (0..self.cores.len()).filter(|core| !answered(*core));
        let known = silent.filter_map(|core| last[core].clone());
        let stale: Vec<_> = known.map(|report| self.marked(report)).collect();
        reports.extend(stale);
        reports
    }

    fn marked(&self, mut report: CoreReport) -> CoreReport {
        let turned_ms = self.cores[report.core].heartbeat().load(Ordering::Relaxed);
        let now_ms = self.started.elapsed().as_millis() as u64;
        let still = Duration::from_millis(now_ms.saturating_sub(turned_ms));
        for shard in &mut report.shards {
            shard.silent_seconds = Some(still.max(REPORT_WAIT).as_secs_f64());
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use taipan_engine::api::ShardStatus;

    use super::*;

    fn report(core: usize) -> CoreReport {
        let shard = ShardStatus {
            shard: core as u8,
            core,
            last_batch: 7,
            ..ShardStatus::default()
        };
        CoreReport {
            core,
            shards: vec![shard],
            ..CoreReport::default()
        }
    }

    #[test]
    fn a_core_that_stands_still_is_shown_as_it_was() {
        let made = (0..2).map(|_| CoreAddress::new().expect("a core"));
        let (cores, inboxes): (Vec<_>, Vec<_>) = made.unzip();
        let reports = Reports::new(cores, Instant::now());
        let shown = |reports: Vec<CoreReport>| {
            let mut shards: Vec<_> = reports.into_iter().flat_map(|r| r.shards).collect();
            shards.sort_by_key(|shard| shard.shard);
            let silent = |shard: &ShardStatus| shard.silent_seconds.is_some();
            assert!(shards.iter().all(|shard| shard.last_batch == 7));
            shards.iter().map(silent).collect::<Vec<_>>()
        };
        // How many questions each core still answers.
        let answering = |questions: [usize; 2]| {
            let serve = |core: usize| {
                for _ in 0..questions[core] {
                    if let Ok(CoreMessage::Report(reply)) = inboxes[core].recv() {
                        let _ = reply.send(report(core));
                    }
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(|| serve(0));
                scope.spawn(|| serve(1));
                shown(reports.all())
            })
        };
        let forget_questions = || {
            for inbox in &inboxes {
                inbox.try_iter().for_each(drop);
            }
        };
        assert_eq!(
            answering([0, 1]),
            [false],
            "the other one never said a word"
        );
        forget_questions();
        assert_eq!(answering([1, 1]), [false, false]);
        assert_eq!(answering([1, 0]), [false, true]);
        forget_questions();
        assert_eq!(answering([1, 1]), [false, false], "it goes on");
    }
}
